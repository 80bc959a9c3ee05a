"""
Several worker processes behind one address: `workers: N`.

The main process becomes the supervisor. It decides no request: it starts the workers, restarts those that
crash, replaces them one by one on SIGHUP, drains them on SIGTERM, and serves the admin and metrics listeners
for all of them. See docs/operate/workers.md.
"""
