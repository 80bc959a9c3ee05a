"""
A sidecar, a real Envoy and a small API on free loopback ports: `make demo`, and the parts that tests reuse.

`programs` runs child processes, `envoy` and `sidecar` know how to start those two, `upstream` is the
API, `calling` asks like a client, `tour` is what `make demo` shows.
"""
