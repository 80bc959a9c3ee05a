"""One module per promise made to a caller; they export handlers, the app binds them."""
