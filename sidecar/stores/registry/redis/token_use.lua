-- token_use.lua: record uses of administrators' tokens.
--
-- KEYS[1..3]  tokens, token-uses, token-uses-age of partition 0 (keys.py)
-- ARGV[1]     maximum number of tokens whose use is stored
-- ARGV[3i-1..3i+1]  use i: token id, time in us, source
-- Reply       integer: number of tokens whose use was updated
-- Writes      nothing for an unknown token; never replaces a later time

local call, format = redis.call, string.format
local TOKENS, USES, AGE = unpack(KEYS, 1, 3)

local moved = 0
for i = 2, #ARGV, 3 do
  local token_id, at, source = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if call('HEXISTS', TOKENS, token_id) == 1 then
    local known = call('ZSCORE', AGE, token_id)
    if not known or tonumber(at) >= tonumber(known) then
      call('HSET', USES, token_id, at .. ' ' .. source)
      call('ZADD', AGE, at, token_id)
      moved = moved + 1
    end
  end
end
local excess = call('ZCARD', AGE) - tonumber(ARGV[1])
if excess > 0 then
  for _, token_id in ipairs(call('ZRANGE', AGE, 0, format('%.0f', excess - 1))) do
    call('HDEL', USES, token_id)
    call('ZREM', AGE, token_id)
  end
end
return moved
