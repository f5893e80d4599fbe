-- Takes a lease by name if its tenant and the total have room. A live lease is taken over: it is not counted again, its
-- time to live starts again, and it gets this holder.
--
-- KEYS[1]      the leases of all keys, and the epoch, as in acquire.lua
-- KEYS[2]      the tenant's leases
-- KEYS[3]      the holder of this lease: a word, and the time to live of the lease in milliseconds
-- KEYS[4]      exists if this holder has released the lease already, because it stopped waiting
-- ARGV[1..3]   as in acquire.lua
-- ARGV[4]      the name of the lease in KEYS[1] and KEYS[2]
-- ARGV[5]      the total limit, or -1 for none
-- ARGV[6]      the tenant's limit, or -1 for none
-- ARGV[7]      the holder
--
-- Returns the outcome (as acquire.lua does), the server's time, the epoch, and the number of leases that count towards
-- the limit that was reached.
--
-- Reads everything before it writes anything. The first write is a command that a server without memory rejects.

local ttl = tonumber(ARGV[2])
local not_after = tonumber(ARGV[3])
local epoch = redis.call('ZRANGEBYSCORE', KEYS[1], '+inf', '+inf')[1]
local function answer(outcome, taken)
  return { outcome, now, epoch or '', taken }
end

if not_after > 0 and now > not_after then
  return answer(-2, 0)
end
local live = '(' .. now
local held = redis.call('ZSCORE', KEYS[1], ARGV[4])
local in_all = redis.call('ZCOUNT', KEYS[1], live, '(+inf')
local of_tenant = redis.call('ZCOUNT', KEYS[2], live, '+inf')
redis.call('GET', KEYS[3]) -- fails if it holds other data
if redis.call('GET', KEYS[4]) then
  return answer(-2, 0)
end
if not (held and tonumber(held) > now) then
  local total_limit, tenant_limit = tonumber(ARGV[5]), tonumber(ARGV[6])
  local of_tenant_full = tenant_limit >= 0 and of_tenant >= tenant_limit
  if of_tenant_full or total_limit >= 0 and in_all >= total_limit then
    shorten(KEYS[1], ttl)
    shorten(KEYS[2], ttl)
    return answer(of_tenant_full and -1 or 0, of_tenant_full and of_tenant or in_all)
  end
end

redis.call('SET', KEYS[3], ARGV[7] .. ' ' .. ARGV[2], 'PX', ARGV[2])
for n = 1, 2 do
  redis.call('ZADD', KEYS[n], now + ttl, ARGV[4])
  redis.call('ZREMRANGEBYSCORE', KEYS[n], '-inf', now)
  if redis.call('PTTL', KEYS[n]) < ttl then
    redis.call('PEXPIRE', KEYS[n], ARGV[2])
  end
end
if not epoch then
  epoch = ARGV[1]
  redis.call('ZADD', KEYS[1], '+inf', epoch)
end
return answer(1, 0)
