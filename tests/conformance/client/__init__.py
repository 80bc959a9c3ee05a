"""The Python client and its middleware, against real sidecar servers and with real applications."""
