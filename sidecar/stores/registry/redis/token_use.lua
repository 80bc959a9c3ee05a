-- token_use.lua: note uses of administrators' tokens.
--
-- KEYS[1..3]  tokens, token-uses, token-uses-age of partition 0 (keys.py)
-- ARGV[1]     tokens whose use is kept
-- ARGV[3i-1..3i+1]  use i: token id, time in us, source
-- Reply       integer: how many tokens have a later use now
-- Writes      nothing for a token that was never issued; never an earlier time

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
