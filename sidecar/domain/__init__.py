"""Pure values and rules. Standard library only; no I/O, no asyncio; time comes in as an argument."""
