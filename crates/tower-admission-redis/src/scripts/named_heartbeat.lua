-- Lets a lease that is live live anew. One that is gone stays gone.
--
-- KEYS[1..3]  as in named_acquire.lua
-- ARGV[1]     the lease
-- ARGV[2]     whose it has to be, or nothing when that does not matter
-- ARGV[3]     how long it lives from now on, in milliseconds
--
-- Returns 1, or 0 when it is gone or is another holder's.
--
-- Everything is read before anything is written. The first write is one that a server without memory
-- allows, and which lets the others pass.

local held = redis.call('ZSCORE', KEYS[1], ARGV[1])
local of_tenant = redis.call('ZSCORE', KEYS[2], ARGV[1])
local stored = redis.call('GET', KEYS[3]) -- fails when it is something else
local holder = stored and string.match(stored, '^%d+')
if not (held and tonumber(held) > now and of_tenant) then
  return 0
end
-- One whose holder was lost, as Redis evicts keys, is that of the first to say so.
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
