-- A part of all limits.
--
-- KEYS[1..3]  as in limits_set.lua
-- ARGV[1]     where to go on: 0 at first, then what was returned
-- ARGV[2]     how many to return, more or less
--
-- Returns where to go on, 0 at the end, and the limits: each name with its limit.

return redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
