-- Takes a lease if its key and the whole have room. Taking it again changes nothing.
--
-- KEYS[1]  the leases of all keys: lease ids by when they expire, in this server's milliseconds
-- KEYS[2]  the epoch: a random word that is lost with the data
-- KEYS[3]  the leases of one key, if that has a limit
-- ARGV[1]  the lease's id
-- ARGV[2]  how long it lives, in milliseconds
-- ARGV[3]  the server's time after which the caller has given up, or 0
-- ARGV[4]  a word for the epoch, if there is none
-- ARGV[5]  how many leases there may be in all, or 0 for any number
-- ARGV[6]  how many of one key
--
-- Returns what became of it (1 granted, 0 no room in all, -1 no room for the key, -2 too late), the
-- server's time and the epoch.
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
local epoch = redis.call('GET', KEYS[2])
local function answer(outcome)
  return { outcome, now, epoch or '' }
end

if not_after > 0 and now > not_after then
  return answer(-2)
end
local live = '(' .. text(now)
local held = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not (held and tonumber(held) > now) then
  local in_all = redis.call('ZCOUNT', KEYS[1], live, '+inf')
  local of_key = KEYS[3] and redis.call('ZCOUNT', KEYS[3], live, '+inf')
  if of_key and of_key >= tonumber(ARGV[6]) then
    return answer(-1)
  end
  if total_limit > 0 and in_all >= total_limit then
    return answer(0)
  end
end

local ttl = tonumber(ARGV[2])
local expired = text(now)
for n, key in ipairs({ KEYS[1], KEYS[3] }) do
  redis.call('ZADD', key, text(now + ttl), ARGV[1])
  redis.call('ZREMRANGEBYSCORE', key, '-inf', expired)
  if redis.call('PTTL', key) < ttl then
    redis.call('PEXPIRE', key, ARGV[2])
  end
end
if not epoch then
  epoch = ARGV[4]
  redis.call('SET', KEYS[2], epoch)
end
return answer(1)
