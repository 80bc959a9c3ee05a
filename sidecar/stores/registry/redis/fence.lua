-- fence.lua: let a partition know of a change of the administrators.
--
-- From then on change.lua refuses what was planned on accounts as they were before.
--
-- KEYS[1]  epoch: sequence of the latest change of administrators that the partition knows of
-- ARGV[1]  sequence of the change; an earlier one than the partition knows of changes nothing
-- Reply    integer 1

if tonumber(redis.call('GET', KEYS[1]) or 0) < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[1], ARGV[1])
end
return 1
