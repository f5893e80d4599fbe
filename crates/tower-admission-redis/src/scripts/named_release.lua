-- Releases a lease by name.
--
-- KEYS[1..3]  as in named_acquire.lua
-- KEYS[4]     as in named_acquire.lua, if a holder releases it
-- ARGV[1]     the lease
-- ARGV[2]     the required holder, or empty for any
-- ARGV[3]     how long KEYS[4] remembers the release, in milliseconds
--
-- Returns 1, or 0 if the lease was gone or belongs to another holder.
--
-- Reads everything before it writes anything. The first write is a command that a server without memory accepts, and it
-- makes room for the others.

local held = redis.call('ZSCORE', KEYS[1], ARGV[1])
redis.call('ZSCORE', KEYS[2], ARGV[1]) -- fails if it holds other data
local stored = redis.call('GET', KEYS[3])
local holder = stored and string.match(stored, '^%d+')
-- Redis may evict the holder's entry. Then the lease belongs to the first holder that claims it.
local is_theirs = ARGV[2] == '' or not holder or holder == ARGV[2]
if KEYS[4] then
  redis.call('GET', KEYS[4])
  redis.call('DEL', KEYS[4])
  redis.call('SET', KEYS[4], '', 'PX', ARGV[3])
end
if not is_theirs then
  return 0
end

redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[3])
return held and tonumber(held) > now and 1 or 0
