"""The registry in Redis when writers die, connections break and servers fall silent."""
