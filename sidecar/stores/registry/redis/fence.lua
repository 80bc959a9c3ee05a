-- fence.lua: record a change of administrators in a partition.
--
-- From then on change.lua refuses changes that were planned on the former accounts.
--
-- KEYS[1]  epoch: sequence of the latest change of administrators known to the partition
-- ARGV[1]  sequence of the change; a sequence earlier than the epoch has no effect
-- Reply    integer 1

if tonumber(redis.call('GET', KEYS[1]) or 0) < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[1], ARGV[1])
end
return 1
