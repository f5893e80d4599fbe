-- Gives a lease back that is known by name.
--
-- KEYS[1..3]  as in named_acquire.lua
-- ARGV[1]     the lease
-- ARGV[2]     whose it has to be, or nothing when that does not matter
--
-- Returns 1, or 0 when it was gone or is another holder's.
--
-- Everything is read before anything is written.

local time = redis.call('TIME')
local now = math.floor(time[1] * 1000 + time[2] / 1000)
local held = redis.call('ZSCORE', KEYS[1], ARGV[1])
redis.call('ZSCORE', KEYS[2], ARGV[1]) -- fails when it is something else
local holder = redis.call('GET', KEYS[3])
if ARGV[2] ~= '' and holder ~= ARGV[2] then
  return 0
end

redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[3])
return held and tonumber(held) > now and 1 or 0
