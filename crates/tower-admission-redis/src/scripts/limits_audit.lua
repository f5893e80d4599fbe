-- The last changes of overrides.
--
-- KEYS[1]  the audit trail, as in limits_set.lua
-- ARGV[1]  how many to return at most
--
-- Returns the changes, the newest first.

return redis.call('LRANGE', KEYS[1], 0, tonumber(ARGV[1]) - 1)
