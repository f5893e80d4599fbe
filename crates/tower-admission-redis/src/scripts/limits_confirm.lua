-- Looks up names, after all overrides were read page by page.
--
-- KEYS[1..3]  as in limits_set.lua
-- ARGV        the names
--
-- Returns the version, the id of the table, the number of fields of the table including its id, and for each name the
-- override, which is empty if there is none, and the version of its last change, which is 0 if it is not known any more.

local found = {}
for n, name in ipairs(ARGV) do
  found[2 * n - 1] = redis.call('HGET', KEYS[1], name) or ''
  found[2 * n] = redis.call('ZSCORE', KEYS[2], name) or '0'
end
return {
  tonumber(redis.call('HGET', KEYS[3], 'version') or 0),
  redis.call('HGET', KEYS[1], '#table') or '',
  redis.call('HLEN', KEYS[1]),
  found,
}
