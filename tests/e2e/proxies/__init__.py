"""The configurations of deploy/ for nginx, Caddy and HAProxy, with the real programs."""
