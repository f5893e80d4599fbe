-- Has everybody read all limits anew.
--
-- KEYS[1..3]  as in limits_set.lua
-- ARGV[1]     the next epoch

redis.call('HSET', KEYS[3], 'epoch', ARGV[1])
return 1
