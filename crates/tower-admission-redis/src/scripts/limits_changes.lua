-- Reads the changes since a version.
--
-- KEYS[1..4]  as in limits_set.lua
-- ARGV[1]     the epoch that the caller knows
-- ARGV[2]     the version that the caller knows
-- ARGV[3]     the maximum number of changes, the oldest first
-- ARGV[4]     the id of the table that the caller knows, or empty
-- ARGV[5]     the maximum number of records of the audit trail
--
-- Returns the epoch; the version; 1 if the caller must read the whole table, else 0; for each change the name, the
-- version and the override, which is empty after a deletion; the id of the table; the time of the last accepted loss;
-- and the records of the audit trail that may be newer, the newest first.

local epoch = redis.call('HGET', KEYS[3], 'epoch') or ''
local version = tonumber(redis.call('HGET', KEYS[3], 'version') or 0)
local floor = tonumber(redis.call('HGET', KEYS[3], 'floor') or 0)
local accepted = redis.call('HGET', KEYS[3], 'accepted') or ''
local table_id = redis.call('HGET', KEYS[1], '#table') or ''
local since = tonumber(ARGV[2])

-- Each change has a version, and most changes have a record in the audit trail.
local count = since > version and version or version - since
count = math.min(count, tonumber(ARGV[5]))
local audited = {}
if count > 0 then
  audited = redis.call('LRANGE', KEYS[4], 0, count - 1)
end

local is_other = ARGV[4] ~= '' and ARGV[4] ~= table_id
-- The last change is missing, so others may be missing, too.
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
