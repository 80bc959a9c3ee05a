"""The native decision service over a socket, with the stubs that callers use."""
