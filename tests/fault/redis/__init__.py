"""The shared store fails in every way that can be arranged."""
