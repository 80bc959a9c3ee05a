"""One contract for every registry store."""
