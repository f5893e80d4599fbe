-- Gives a lease back that is known by name.
--
-- KEYS[1..3]  as in named_acquire.lua
-- KEYS[4]     the same, if it is given back by a holder
-- ARGV[1]     the lease
-- ARGV[2]     whose it has to be, or nothing when that does not matter
-- ARGV[3]     how long it is to be known that the holder gave it back, in milliseconds
--
-- Returns 1, or 0 when it was gone or is another holder's.
--
-- Everything is read before anything is written. The first write is one that a server without memory
-- allows, and which lets the others pass.

local held = redis.call('ZSCORE', KEYS[1], ARGV[1])
redis.call('ZSCORE', KEYS[2], ARGV[1]) -- fails when it is something else
local stored = redis.call('GET', KEYS[3])
local holder = stored and string.match(stored, '^%d+')
-- One whose holder was lost, as Redis evicts keys, is that of the first to say so.
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
