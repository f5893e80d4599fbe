-- What was changed since a version.
--
-- KEYS[1..4]  as in limits_set.lua
-- ARGV[1]     the epoch that is known
-- ARGV[2]     the version that is known
-- ARGV[3]     how many changes to return at most, the oldest first
-- ARGV[4]     the id of the table that is known, or nothing
-- ARGV[5]     how many changes of the audit trail to return at most
--
-- Returns the epoch and the version as they are, whether all has to be read anew, for each
-- change the name, the version and the override, which is nothing when it was deleted, the id of the table, the
-- last loss that an operator accepted, and the changes of the audit trail that may be later, the newest first.

local epoch = redis.call('HGET', KEYS[3], 'epoch') or ''
local version = tonumber(redis.call('HGET', KEYS[3], 'version') or 0)
local floor = tonumber(redis.call('HGET', KEYS[3], 'floor') or 0)
local accepted = redis.call('HGET', KEYS[3], 'accepted') or ''
local table_id = redis.call('HGET', KEYS[1], '#table') or ''
local since = tonumber(ARGV[2])

-- Each change has a version, and most have an entry in the audit trail.
local count = since > version and version or version - since
count = math.min(count, tonumber(ARGV[5]))
local audited = {}
if count > 0 then
  audited = redis.call('LRANGE', KEYS[4], 0, count - 1)
end

local is_other = ARGV[4] ~= '' and ARGV[4] ~= table_id
-- The last change is not there, so others may be missing as well.
local has_gap = since < version and redis.call('ZCOUNT', KEYS[2], version, version) == 0
if epoch ~= ARGV[1] or is_other or since < floor or since > version or has_gap then
  return { epoch, version, 1, {}, table_id, accepted, audited }
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
return { epoch, version, 0, changes, table_id, accepted, audited }
