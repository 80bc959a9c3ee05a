"""
Several worker processes behind one address: `workers: N`.

The main process becomes the supervisor. It serves no call itself: it starts the workers, restarts
those that crash, replaces them one by one on SIGHUP, drains them on SIGTERM, and answers for all of
them on the admin listener. docs/operate/workers.md describes it for those who run it.
"""
