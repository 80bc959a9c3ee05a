"""One module per service: each exports handlers, which the process binds to transports."""
