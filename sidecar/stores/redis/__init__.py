"""The shared bucket store in Redis or Valkey: the client and its Lua scripts."""
