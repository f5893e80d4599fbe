-- What was changed since a version.
--
-- KEYS[1..3]  as in limits_set.lua
-- ARGV[1]     the epoch that is known
-- ARGV[2]     the version that is known
-- ARGV[3]     how many changes to return at most, the oldest first
-- ARGV[4]     the id of the table that is known, or nothing
--
-- Returns the epoch and the version as they are, whether all has to be read anew, for each
-- change the name, the version and the override, which is nothing when it was deleted, the id of the table, and the
-- last loss that an operator accepted.

local epoch = redis.call('HGET', KEYS[3], 'epoch') or ''
local version = tonumber(redis.call('HGET', KEYS[3], 'version') or 0)
local floor = tonumber(redis.call('HGET', KEYS[3], 'floor') or 0)
local accepted = redis.call('HGET', KEYS[3], 'accepted') or ''
local table_id = redis.call('HGET', KEYS[1], '#table') or ''
local since = tonumber(ARGV[2])
local is_other = ARGV[4] ~= '' and ARGV[4] ~= table_id
if epoch ~= ARGV[1] or is_other or since < floor or since > version then
  return { epoch, version, 1, {}, table_id, accepted }
end
local changes = {}
if since < version then
  local changed =
    redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[2], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[3])
  for n = 1, #changed, 2 do
    local to = #changes
    changes[to + 1], changes[to + 2] = changed[n], changed[n + 1]
    changes[to + 3] = redis.call('HGET', KEYS[1], changed[n]) or ''
  end
end
return { epoch, version, 0, changes, table_id, accepted }
