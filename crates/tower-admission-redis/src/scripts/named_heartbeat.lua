-- Extends a live lease by name. An expired one stays gone.
--
-- KEYS[1..3]  as in named_acquire.lua
-- ARGV[1]     the lease
-- ARGV[2]     the required holder, or empty for any
-- ARGV[3]     the time to live from now on, in milliseconds
--
-- Returns 1, or 0 if the lease is gone or belongs to another holder.
--
-- Reads everything before it writes anything. The first write is a command that a server without memory accepts, and it
-- makes room for the others.

local held = redis.call('ZSCORE', KEYS[1], ARGV[1])
local of_tenant = redis.call('ZSCORE', KEYS[2], ARGV[1])
local stored = redis.call('GET', KEYS[3]) -- fails if it holds other data
local holder = stored and string.match(stored, '^%d+')
if not (held and tonumber(held) > now and of_tenant) then
  return 0
end
-- Redis may evict the holder's entry. Then the lease belongs to the first holder that claims it.
local is_lost = not holder and ARGV[2] ~= ''
if ARGV[2] ~= '' and holder ~= ARGV[2] and not is_lost then
  return 0
end

local ttl = tonumber(ARGV[3])
redis.call('PEXPIRE', KEYS[3], ARGV[3])
local whose = is_lost and ARGV[2] or holder
if whose and stored ~= whose .. ' ' .. ARGV[3] then
  redis.call('SET', KEYS[3], whose .. ' ' .. ARGV[3], 'PX', ARGV[3])
end
for n = 1, 2 do
  redis.call('ZADD', KEYS[n], 'XX', now + ttl, ARGV[1])
  if redis.call('PTTL', KEYS[n]) < ttl then
    redis.call('PEXPIRE', KEYS[n], ARGV[3])
  end
end
return 1
