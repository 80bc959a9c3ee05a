"""Tests of the transports: listeners, TLS and the fast server, mostly without a socket."""
