"""Values and rules of the domain. Standard library only: no I/O, no asyncio; time is an argument."""
