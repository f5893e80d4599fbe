-- Takes leases in their order of arrival, each if all its keys and the whole have room. Taking one again changes
-- nothing.
--
-- KEYS[1]  the leases of all keys: lease ids by when they expire, in this server's milliseconds; and
--          the epoch, which does not expire: a word that is lost with them
-- KEYS[2..] for each lease the leases of its keys
-- ARGV[1]  a word for the epoch, if there is none
-- ARGV[2]  how long the leases live, in milliseconds
-- ARGV[3]  the server's time after which the caller has given up, or 0
-- then for each lease: its id, which is a word and how long it lives; how many leases there may be in all, or -1
--          for any number; how many keys it has; and for each of them how many leases there may be
--
-- Returns the server's time, the epoch, and for each lease two numbers: what became of it (1 granted, 0 no room in
-- all, -1 no room for a key, -2 too late, -3 a key holds something else), and the place of the first key without
-- room, counted from 0.
--
-- Everything is read before anything is written: a script that fails is not rolled back. The first
-- write is one that a server without memory refuses.

local ttl = ARGV[2] + 0
local is_late = ARGV[3] + 0 > 0 and now > ARGV[3] + 0
local is_single = not ARGV[7 + ARGV[6]]

-- The common call: one lease, which has room even if all that are there are live. What has expired is left to
-- heartbeats, and to calls that find less room.
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
local counts = {} -- of keys, by their names
local granted, size = {}, 0 -- names and ids, in turn
local full -- names that were named by leases for which there was no room
local reply = { now, epoch or '' }
local key, at = 2, 4
while ARGV[at] do
  local id, limit, keys = ARGV[at], ARGV[at + 1] + 0, ARGV[at + 2] + 0
  local outcome, place = is_late and -2 or 1, 0
  for n = 0, is_late and -1 or keys - 1 do
    -- Each is read, also behind a full one: a key that holds something else fails here.
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
    bring_back(name, ttl)
  end
end
return reply
