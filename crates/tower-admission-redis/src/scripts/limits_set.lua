-- Sets or deletes the override of one key, and records the change.
--
-- KEYS[1]  the overrides, a hash by name. The field `#table` holds the id of this table, which is lost with it
-- KEYS[2]  the changed names, by the version of their last change
-- KEYS[3]  a hash: the version; the epoch, which separates lost data from older data; the floor, up to which changes may
--          be missing in KEYS[2]; and the last loss that an operator accepted
-- KEYS[4]  the audit trail, a list of the last changes, the newest first: see `StoredRecord` in overrides.rs
-- ARGV[1]  the name
-- ARGV[2]  the override, or empty to delete it
-- ARGV[3]  the maximum number of overrides
-- ARGV[4]  how many changes KEYS[2] keeps for replicas
-- ARGV[5]  a random id: of this change, and of the epoch and the table if they begin with it
-- ARGV[6]  `*`, or `=` and the expected override, which is empty for none
-- ARGV[7]  empty, or the end of the override in seconds since the Unix epoch: it is not deleted before
-- ARGV[8]  who makes the change
-- ARGV[9]  from where
-- ARGV[10] how many records the audit trail keeps
-- ARGV[11] 1 if the caller keeps overrides that were lost
-- ARGV[12] empty, or after how many seconds the override ends, in place of the end in ARGV[2]
-- ARGV[13] the epoch that the caller knows
-- ARGV[14] the greatest version that the caller has seen of that table
-- ARGV[15] the id of the table that the caller knows, or empty
-- ARGV[16] the override that the caller has for this name
--
-- Returns `set`, the epoch, the version, the id of the table, the override before and the override now; `full`;
-- `changed` and the current override; or `early` and the time in seconds since the Unix epoch.
--
-- Reads everything before it writes anything.

local time = redis.call('TIME')
local now = tonumber(time[1])
local stored = redis.call('HGET', KEYS[1], ARGV[1])
local table_id = redis.call('HGET', KEYS[1], '#table')
-- One of the fields is the id.
local full = redis.call('HLEN', KEYS[1]) > tonumber(ARGV[3])
local changes = redis.call('ZCARD', KEYS[2])
local begins = not table_id
local epoch = redis.call('HGET', KEYS[3], 'epoch')
local version = tonumber(redis.call('HGET', KEYS[3], 'version') or 0)
redis.call('LLEN', KEYS[4])

-- After a failover the version may be smaller than one that the caller has seen: the changes between are lost.
local is_rolled_back = epoch == ARGV[13] and version < tonumber(ARGV[14])
local is_other = ARGV[15] ~= '' and ARGV[15] ~= table_id
local has_lost = ARGV[11] == '1' or is_rolled_back or is_other
-- An empty text is a deletion. An override that the caller has and this table lacks was lost.
local before = stored or (has_lost and ARGV[16]) or ''
local is_expected = ARGV[6] == '*' or ARGV[6] == '=' .. before or ARGV[6] == '=' .. (stored or '')
if not is_expected then
  return { 'changed', stored or '' }
end
if ARGV[7] ~= '' and now < tonumber(ARGV[7]) then
  return { 'early', now }
end
if ARGV[2] ~= '' and not stored and full then
  return { 'full' }
end
local after = ARGV[2]
if ARGV[12] ~= '' then
  -- Rounded up, like all ends.
  local from = tonumber(time[2]) > 0 and now + 1 or now
  local ends = string.format('\nend: %d', from + tonumber(ARGV[12]))
  after = string.gsub(after, '\nend: %d+', ends, 1)
end

if not epoch or is_rolled_back then
  epoch = ARGV[5]
  redis.call('HSET', KEYS[3], 'epoch', epoch)
end
if not table_id or is_rolled_back then
  -- A new id tells all replicas that overrides were lost.
  table_id = ARGV[5]
  redis.call('HSET', KEYS[1], '#table', table_id)
end
version = redis.call('HINCRBY', KEYS[3], 'version', 1)
-- The caller that creates the table cannot know what was lost with the last one.
local may_be_lost = has_lost or begins
if after ~= '' then
  redis.call('HSET', KEYS[1], ARGV[1], after)
elseif may_be_lost and (stored or not full) then
  -- An empty entry separates a deleted override from a lost one.
  redis.call('HSET', KEYS[1], ARGV[1], '')
else
  redis.call('HDEL', KEYS[1], ARGV[1])
end
redis.call('ZADD', KEYS[2], version, ARGV[1])
local over = changes + 1 - tonumber(ARGV[4])
if over > 0 then
  local forgotten = redis.call('ZPOPMIN', KEYS[2], over)
  redis.call('HSET', KEYS[3], 'floor', forgotten[#forgotten])
end
if before ~= '' or after ~= '' then
  local change = {
    id = ARGV[5],
    version = version,
    at = now,
    key = ARGV[1],
    before = before,
    after = after,
    author = ARGV[8],
    origin = ARGV[9],
    ended = ARGV[7] ~= '',
  }
  redis.call('LPUSH', KEYS[4], cjson.encode(change))
  redis.call('LTRIM', KEYS[4], 0, tonumber(ARGV[10]) - 1)
end
return { 'set', epoch, version, table_id, before, after }
