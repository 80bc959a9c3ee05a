"""
`sidecar verify-limits`: checks under load that real sidecars admit exactly what their limits allow.

The serving sidecar never imports this package.
"""
