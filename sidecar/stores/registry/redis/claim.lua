-- claim.lua: claim a credential id for an integration, unless another one has claimed it.
--
-- KEYS[1]  c:<credential id>, value '<time, us> <integration>'; in the partition of the credential id
-- ARGV[1]  the integration
-- ARGV[2]  a claim that was found void and may be taken over, as it was read; '' = none
-- Reply    {integration whose claim it is now, its age in us, the claim}
-- TTL      none: an id is used once in a registry's life

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local claim = redis.call('GET', KEYS[1])

if not claim or claim == ARGV[2] then
  claim = string.format('%.0f %s', now, ARGV[1])
  redis.call('SET', KEYS[1], claim)
end
local at, owner = string.match(claim, '^(%d+) (.+)$')
return {owner, string.format('%.0f', math.max(0, now - tonumber(at))), claim}
