-- Takes leases in their order of arrival, each if all its keys and the total have room. Taking the same lease again
-- changes nothing.
--
-- KEYS[1]  the leases of all keys: a sorted set of lease ids by their expiry in the server's milliseconds. It also holds
--          the epoch, which does not expire: a random word that is lost together with the leases
-- KEYS[2..] for each lease the leases of its keys
-- ARGV[1]  a new epoch, if there is none
-- ARGV[2]  the time to live of the leases, in milliseconds
-- ARGV[3]  the server's time after which the caller has stopped waiting, or 0
-- then for each lease: its id, which is a word and its time to live; the total limit, or -1 for none; the number of its
--          keys; and for each key its limit
--
-- Returns the server's time, the epoch, and for each lease two numbers: the outcome (1 granted, 0 total full, -1 a key is
-- full, -2 too late, -3 a key holds other data), and the index of the first full key, counted from 0.
--
-- Reads everything before it writes anything, because Redis does not roll back a script that fails. The first write is
-- a command that a server without memory rejects.

local ttl = ARGV[2] + 0
local is_late = ARGV[3] + 0 > 0 and now > ARGV[3] + 0
local is_single = not ARGV[7 + ARGV[6]]

-- The common call: one lease, which has room even if all others are live. Expired leases are left to heartbeats, and to
-- calls that find less room.
if is_single and not is_late then
  local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
  local has_room = last[2] == 'inf' and (ARGV[5] == '-1' or redis.call('ZCARD', KEYS[1]) <= ARGV[5] + 0)
  for n = 2, #KEYS do
    has_room = has_room and redis.call('ZCARD', KEYS[n]) < ARGV[n + 5] + 0
  end
  if has_room then
    for n = 1, #KEYS do
      redis.call('ZADD', KEYS[n], now + ttl, ARGV[4])
      if redis.call('PTTL', KEYS[n]) < ttl then
        redis.call('PEXPIRE', KEYS[n], ARGV[2])
      end
    end
    return { now, last[1], 1, 0 }
  end
end

local live = '(' .. now
local epoch = redis.call('ZRANGEBYSCORE', KEYS[1], '+inf', '+inf')[1]
local in_all = redis.call('ZCOUNT', KEYS[1], live, '(+inf')
local counts = {} -- leases of each key, by its name
local granted, size = {}, 0 -- alternating names and ids
local full -- the keys of leases that did not fit
local reply = { now, epoch or '' }
local key, at = 2, 4
while ARGV[at] do
  local id, limit, keys = ARGV[at], ARGV[at + 1] + 0, ARGV[at + 2] + 0
  local outcome, place = is_late and -2 or 1, 0
  for n = 0, is_late and -1 or keys - 1 do
    -- Reads every key, also after a full one: a key with other data fails here.
    local name = KEYS[key + n]
    local count = counts[name] or redis.pcall('ZCOUNT', name, live, '+inf')
    if type(count) == 'table' then
      outcome = string.find(count.err, 'WRONGTYPE', 1, true) and -3 or error(count)
    else
      counts[name] = count
      if outcome == 1 and count >= ARGV[at + 3 + n] + 0 then
        outcome, place = -1, n
      end
    end
  end
  if outcome == 1 and limit >= 0 and in_all >= limit then
    outcome = 0
  end
  local is_counted = false
  if outcome == 0 or outcome == -1 or outcome == 1 and not is_single then
    local held = redis.call('ZSCORE', KEYS[1], id)
    is_counted = held and held + 0 > now
    if is_counted then
      outcome, place = 1, 0
    end
    if outcome ~= 1 then
      full = full or {}
      full[KEYS[1]] = true
      for n = key, key + keys - 1 do
        full[KEYS[n]] = true
      end
    end
  end
  if outcome == 1 then
    granted[size + 1], granted[size + 2] = KEYS[1], id
    size = size + 2
    for n = key, key + keys - 1 do
      granted[size + 1], granted[size + 2] = KEYS[n], id
      size = size + 2
    end
    if not is_counted then
      in_all = in_all + 1
      for n = key, key + keys - 1 do
        counts[KEYS[n]] = counts[KEYS[n]] + 1
      end
    end
  end
  local to = #reply
  reply[to + 1], reply[to + 2] = outcome, place
  key, at = key + keys, at + 3 + keys
end

for n = 1, size, 2 do
  redis.call('ZADD', granted[n], now + ttl, granted[n + 1])
end
local done = {}
for n = 1, size, 2 do
  local name = granted[n]
  if not done[name] then
    done[name] = true
    redis.call('ZREMRANGEBYSCORE', name, '-inf', now)
    if redis.call('PTTL', name) < ttl then
      redis.call('PEXPIRE', name, ttl)
    end
  end
end
if size > 0 and not epoch then
  redis.call('ZADD', KEYS[1], '+inf', ARGV[1])
  reply[2] = ARGV[1]
end
if full then
  for name in pairs(full) do
    shorten(name, ttl)
  end
end
return reply
