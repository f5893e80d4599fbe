-- Sets the override of one key, or deletes it, and notes that it was changed.
--
-- KEYS[1]  the overrides, a hash by name; under `#table` lies the id of this table, which is lost with it
-- KEYS[2]  the names that were changed, by the version of their last change
-- KEYS[3]  a hash: the version, the epoch (which tells data that was lost from data that is older),
--          the floor (up to which version changes may have been forgotten), and the last loss that an operator accepted
-- KEYS[4]  the audit trail, a list of the last changes, the newest first
-- ARGV[1]  the name
-- ARGV[2]  the override, or nothing to delete it
-- ARGV[3]  how many there may be
-- ARGV[4]  how many changes are kept for replicas
-- ARGV[5]  the epoch and the id of the table, if there is none yet
-- ARGV[6]  `*`, or `=` and what the override has to be: nothing when there must be none
-- ARGV[7]  nothing, or the end of the override, in seconds since the Unix epoch: it is deleted only after that
-- ARGV[8]  who makes the change
-- ARGV[9]  from where
-- ARGV[10] how many changes the audit trail keeps
-- ARGV[11] 1 when replicas keep overrides that were lost: a deletion of one that is not here leaves an empty text, which
--          tells it from one that was lost
-- ARGV[12] nothing, or after how many seconds the override ends, in place of the end that it has
--
-- Returns `set`, the epoch, the version, the id of the table, what the override was before and what it is now; `full`;
-- `changed` and what the override is; or `early`.
--
-- Everything is read before anything is written.

local time = redis.call('TIME')
local now = tonumber(time[1])
local after = ARGV[2]
if ARGV[12] ~= '' then
  -- Rounded up, as all ends.
  local from = tonumber(time[2]) > 0 and now + 1 or now
  local stored_end = string.format('\nend: %d', from + tonumber(ARGV[12]))
  after = string.gsub(after, '\nend: %d+', stored_end, 1)
end
local before = redis.call('HGET', KEYS[1], ARGV[1])
if before == '' then
  before = false
end
local table_id = redis.call('HGET', KEYS[1], '#table')
-- One of them is the id.
local full = redis.call('HLEN', KEYS[1]) > tonumber(ARGV[3])
local changes = redis.call('ZCARD', KEYS[2])
local epoch = redis.call('HGET', KEYS[3], 'epoch')
redis.call('LLEN', KEYS[4])
if ARGV[6] ~= '*' and ARGV[6] ~= '=' .. (before or '') then
  return { 'changed', before }
end
if ARGV[7] ~= '' and now < tonumber(ARGV[7]) then
  return { 'early' }
end
if after ~= '' and not before and full then
  return { 'full' }
end

if not epoch then
  epoch = ARGV[5]
  redis.call('HSET', KEYS[3], 'epoch', epoch)
end
if not table_id then
  table_id = ARGV[5]
  redis.call('HSET', KEYS[1], '#table', table_id)
end
local version = redis.call('HINCRBY', KEYS[3], 'version', 1)
if after ~= '' then
  redis.call('HSET', KEYS[1], ARGV[1], after)
elseif ARGV[11] == '1' and not before and not full then
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
if before or after ~= '' then
  local change = {
    at = now,
    key = ARGV[1],
    before = before or '',
    after = after,
    author = ARGV[8],
    origin = ARGV[9],
    ended = ARGV[7] ~= '',
  }
  redis.call('LPUSH', KEYS[4], cjson.encode(change))
  redis.call('LTRIM', KEYS[4], 0, tonumber(ARGV[10]) - 1)
end
return { 'set', epoch, version, table_id, before, after }
