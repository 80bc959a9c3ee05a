"""The shared bucket store: Redis or Valkey, our Lua, and the client discipline around it."""
