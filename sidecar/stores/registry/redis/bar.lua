-- bar.lua: bar an integration from issuing a credential id, unless it has issued the id.
--
-- KEYS[1]  k:<integration>, hash: credential id -> generation that issued it; 0 = barred
-- ARGV[1]  the credential id
-- Reply    integer: 1 = the id was issued; 0 = it was not, and change.lua refuses it from now on

redis.call('HSETNX', KEYS[1], ARGV[1], '0')
return redis.call('HGET', KEYS[1], ARGV[1]) == '0' and 0 or 1
