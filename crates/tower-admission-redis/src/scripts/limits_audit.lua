-- Reads the last changes of overrides.
--
-- KEYS[1]  the audit trail, as in limits_set.lua
-- ARGV[1]  the maximum number of records
--
-- Returns the records, the newest first.

return redis.call('LRANGE', KEYS[1], 0, tonumber(ARGV[1]) - 1)
