-- Takes a lease if each of its keys and the whole have room. Taking it again changes nothing.
--
-- KEYS[1]  the leases of all keys: lease ids by when they expire, in this server's milliseconds; and
--          the epoch, which does not expire: a word that is lost with them
-- KEYS[n + 2]  the leases of the key at place n, counted from 0
-- ARGV[1]  a word for the epoch, if there is none
-- ARGV[2]  how long the lease lives, in milliseconds
-- ARGV[3]  the server's time after which the caller has given up, or 0
-- ARGV[4]  the lease's id
-- ARGV[5]  how many leases there may be in all, or -1 for any number
-- ARGV[n + 6]  how many of the key at place n
--
-- Returns what became of it (1 granted, 0 no room in all, -1 no room for a key, -2 too late), the
-- server's time, the epoch, and the place of the first key without room.
--
-- Everything is read before anything is written: a script that fails is not rolled back. The first
-- write is one that a server without memory refuses.

local time = redis.call('TIME')
local now = math.floor(time[1] * 1000 + time[2] / 1000)
local function text(number)
  return string.format('%.0f', number)
end
local not_after = tonumber(ARGV[3])
local total_limit = tonumber(ARGV[5])
local epoch = redis.call('ZRANGEBYSCORE', KEYS[1], '+inf', '+inf')[1]
local function answer(outcome, place)
  return { outcome, now, epoch or '', place or 0 }
end

if not_after > 0 and now > not_after then
  return answer(-2)
end
local live = '(' .. text(now)
local held = redis.call('ZSCORE', KEYS[1], ARGV[4])
local in_all = redis.call('ZCOUNT', KEYS[1], live, '(+inf')
local full
for n = 2, #KEYS do
  -- Each is read, also behind a full one: a key that holds something else fails here.
  local of_key = redis.call('ZCOUNT', KEYS[n], live, '+inf')
  if not full and of_key >= tonumber(ARGV[n + 4]) then
    full = n - 2
  end
end
if not (held and tonumber(held) > now) then
  if full then
    return answer(-1, full)
  end
  if total_limit >= 0 and in_all >= total_limit then
    return answer(0)
  end
end

local ttl = tonumber(ARGV[2])
local expired = text(now)
for _, key in ipairs(KEYS) do
  redis.call('ZADD', key, text(now + ttl), ARGV[4])
  redis.call('ZREMRANGEBYSCORE', key, '-inf', expired)
  if redis.call('PTTL', key) < ttl then
    redis.call('PEXPIRE', key, ARGV[2])
  end
end
if not epoch then
  epoch = ARGV[1]
  redis.call('ZADD', KEYS[1], '+inf', epoch)
end
return answer(1)
