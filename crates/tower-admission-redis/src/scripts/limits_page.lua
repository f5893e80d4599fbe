-- Reads a page of all overrides.
--
-- KEYS[1..3]  as in limits_set.lua
-- ARGV[1]     the cursor: 0 for the first page, then the returned one
-- ARGV[2]     the approximate number of overrides
--
-- Returns the next cursor, 0 at the end, and each name with its override.

return redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
