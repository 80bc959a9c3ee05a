"""
The demo (`make demo`): a sidecar, a real proxy and a small API on free loopback ports. Tests reuse its parts.

`programs` runs child processes, `envoy`, `proxies` and `sidecar` start the programs, `upstream` is the API,
`calling` is an HTTP client, `tour` shows the demo.
"""
