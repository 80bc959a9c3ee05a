"""The services, one module each; the process binds their handlers to transports."""
