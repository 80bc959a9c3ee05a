-- refuse.lua: record callers that the allowlist of one integration refused.
--
-- KEYS[1..2]  r:, x: of the integration (keys.py)
-- ARGV[1..2]  maximum number of callers; TTL of the key, ms
-- ARGV[2i+1..2i+2]  caller i: '<credential id> <address in hex>', time in us
-- Reply       integer: number of stored callers
-- Writes      nothing for an unknown integration; never replaces a later time

local call, format = redis.call, string.format
if call('EXISTS', KEYS[1]) == 0 then return 0 end
for i = 3, #ARGV, 2 do call('ZADD', KEYS[2], 'GT', ARGV[i + 1], ARGV[i]) end
call('ZREMRANGEBYRANK', KEYS[2], 0, format('%.0f', -1 - tonumber(ARGV[1])))
call('PEXPIRE', KEYS[2], ARGV[2])
return call('ZCARD', KEYS[2])
