-- Sets the limit of one key, or deletes it, and notes that it was changed.
--
-- KEYS[1]  the limits, a hash by name
-- KEYS[2]  the names that were changed, by the version of their last change
-- KEYS[3]  a hash: the version, the epoch (which tells data that was lost from data that is older), and
--          the floor: up to which version changes may have been forgotten
-- ARGV[1]  the name
-- ARGV[2]  the limit, or nothing to delete it
-- ARGV[3]  how many there may be
-- ARGV[4]  how many changes are kept
-- ARGV[5]  the epoch, if there is none yet
--
-- Returns the epoch, the version, and what the limit was before, or nothing as it may be no more.
--
-- Everything is read before anything is written.

local before = redis.call('HGET', KEYS[1], ARGV[1])
local full = redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3])
local changes = redis.call('ZCARD', KEYS[2])
local epoch = redis.call('HGET', KEYS[3], 'epoch')
if ARGV[2] ~= '' and not before and full then
  return {}
end

if not epoch then
  epoch = ARGV[5]
  redis.call('HSET', KEYS[3], 'epoch', epoch)
end
local version = redis.call('HINCRBY', KEYS[3], 'version', 1)
if ARGV[2] ~= '' then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
else
  redis.call('HDEL', KEYS[1], ARGV[1])
end
redis.call('ZADD', KEYS[2], version, ARGV[1])
local over = changes + 1 - tonumber(ARGV[4])
if over > 0 then
  local forgotten = redis.call('ZPOPMIN', KEYS[2], over)
  redis.call('HSET', KEYS[3], 'floor', forgotten[#forgotten])
end
return { epoch, version, before }
