"""Values and rules. Standard library only: no I/O, no asyncio; time is an argument."""
