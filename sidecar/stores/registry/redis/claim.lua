-- claim.lua: claim a credential id for an integration, unless it is claimed.
--
-- KEYS[1]  c:<credential id>, value '<time, us> <integration>'; in the partition of the credential id
-- ARGV[1]  the integration
-- ARGV[2]  the value of a void claim that may be taken over; '' = none
-- Reply    {integration that has the claim now, age of the claim in us, value of the claim}
-- TTL      none: an id is issued only once

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local claim = redis.call('GET', KEYS[1])

if not claim or claim == ARGV[2] then
  claim = string.format('%.0f %s', now, ARGV[1])
  redis.call('SET', KEYS[1], claim)
end
local at, owner = string.match(claim, '^(%d+) (.+)$')
return {owner, string.format('%.0f', math.max(0, now - tonumber(at))), claim}
