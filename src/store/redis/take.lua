-- Decides requests in their order of arrival, as if each was decided alone at one instant of this server's
-- clock: takes their costs, asks what is left, or gives costs back. A request charges one or more keys, and is
-- granted whole or not at all, over all quotas of all its keys. A quota is a bucket, as GCRA's virtual
-- scheduling algorithm has it (ITU-T I.371), or a sliding window of 15 sub-windows (store/memory/mod.rs has its
-- rule).
--
-- KEYS[n]   one for each charged entity: a part for each of its quotas, joined by semicolons. (Its
--           name tells buckets from windows, so that a part is always of its quota's kind.)
--           b <interval> <arrival> <limit>    a bucket; it is full at the arrival time. The others are
--                                             those of the quota by which it was charged last
--           s <length> <newest> <count> ..    a window: the length of a sub-window, the number of the
--                                             newest, what was admitted in it and in the 15 before, and the
--                                             sum of these (older versions stored no sum)
--           -                                 nothing: a quota that denies everything stores neither
-- ARGV[1]   words: take, look or give; how many keys each run of requests names, 0 if each charges all keys; and for
--           each key a letter for each of its quotas, b for a bucket, s for a window and - for a quota that is off.
--           The word = stands for the rules of the key before, and . for no quotas
-- ARGV[2..] for each quota of these two numbers: its interval or the length of its sub-windows, and the most
--           requests it admits at once. 0 admits nothing. What is stored stays as it is then, and of a quota that is
--           off, whichever sort it is of
-- then      the runs, each of requests of one cost that charge the same keys: the cost, how many requests, and
--           the places of their keys in KEYS if runs name keys. Cost 0 is admitted, takes nothing, and reports
--           what is left
--
-- Returns for each run, one after the other:
--   how many requests were granted, the first ones; -1 if a key holds something else than quotas. (If there is
--     one run, that is an error.)
--   if any was granted, two numbers for each of its quotas, in order, after the first grant: how many more would
--     be admitted, and the time until it is as good as unused. Later grants follow from them
--   if any was not granted, three numbers for each quota after the grants: the same two, and the time until the
--     request fits: 0 now, -1 never. So it is for every request that takes nothing, and for a refund, after it
-- The numbers of a quota that is off mean nothing.
--
-- All times are whole microseconds. They stay below 2^53, where Lua's numbers are exact, but for what a
-- bucket owes by a quota that holds less, which is only compared.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local head = ARGV[1]

-- A window with its sum.
local SUMMED = '^s (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$'

-- Early branches for the common calls, without tables and closures: one run, one key, quotas that did not change
-- and of which all requests fit. All else is decided below, and so would these be.
if head == 'take 0 b' and #ARGV == 5 then
  local value = redis.call('GET', KEYS[1])
  local interval, limit, cost, count = ARGV[2] + 0, ARGV[3] + 0, ARGV[4] + 0, ARGV[5] + 0
  local debt = 0
  local is_plain = cost > 0 and limit > 0
  if value then
    local before, arrival, most = string.match(value, '^b (%d+) (%d+) (%d+)$')
    if before == ARGV[2] then
      debt = arrival - now
      is_plain = is_plain and debt <= interval * most
      debt = debt > 0 and debt or 0
    else
      is_plain = false
    end
  end
  if is_plain then
    local full, price = limit * interval, cost * interval
    local room = full - debt
    local left = room > 0 and (room - room % interval) / interval or 0
    local after = debt + count * price
    if after <= full then
      local stored = string.format('b %s %.0f %s', ARGV[2], now + after, ARGV[3])
      redis.call('SET', KEYS[1], stored, 'PX', math.ceil(after / 1000) + 1)
      return { count, left - cost, debt + price }
    elseif room < price then
      return { 0, left, debt, cost > limit and -1 or price - room }
    end
  end
elseif head == 'take 0 bb' and #ARGV == 7 then
  local value = redis.call('GET', KEYS[1])
  local first, first_limit, second, second_limit = ARGV[2] + 0, ARGV[3] + 0, ARGV[4] + 0, ARGV[5] + 0
  local cost, count = ARGV[6] + 0, ARGV[7] + 0
  local debt, owed = 0, 0
  local is_plain = cost > 0 and first_limit > 0 and second_limit > 0
  if value then
    local before, arrival, most, before_second, arrival_second, most_second =
      string.match(value, '^b (%d+) (%d+) (%d+);b (%d+) (%d+) (%d+)$')
    if before == ARGV[2] and before_second == ARGV[4] then
      debt, owed = arrival - now, arrival_second - now
      is_plain = is_plain and debt <= first * most and owed <= second * most_second
      debt = debt > 0 and debt or 0
      owed = owed > 0 and owed or 0
    else
      is_plain = false
    end
  end
  local after, owed_after = debt + count * cost * first, owed + count * cost * second
  local room, room_second = first * first_limit - debt, second * second_limit - owed
  if is_plain and after <= debt + room and owed_after <= owed + room_second then
    local stored = string.format(
      'b %s %.0f %s;b %s %.0f %s', ARGV[2], now + after, ARGV[3], ARGV[4], now + owed_after, ARGV[5]
    )
    local longest = after > owed_after and after or owed_after
    redis.call('SET', KEYS[1], stored, 'PX', math.ceil(longest / 1000) + 1)
    return {
      count,
      (room - room % first) / first - cost,
      debt + cost * first,
      (room_second - room_second % second) / second - cost,
      owed + cost * second,
    }
  end
elseif head == 'take 0 s' and #ARGV == 5 then
  local value = redis.call('GET', KEYS[1])
  local length, cost = ARGV[2] + 0, ARGV[4] + 0
  local newest = (now - now % length) / length
  -- Its length, the newest, 16 counts, and the sum.
  local found = value and { string.match(value, SUMMED) }
    or { ARGV[2], newest, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }
  if found[1] == ARGV[2] then
    local charge = ARGV[5] * cost
    local passed = newest - found[2]
    local sum = found[19] + 0
    if passed > 0 and passed < 16 then
      for from = 18, 3, -1 do
        local to = from + passed
        if to > 18 then
          sum = sum - found[from]
        else
          found[to] = found[from]
        end
        if from < passed + 3 then
          found[from] = 0
        end
      end
    end
    if passed >= 0 and passed < 16 and cost > 0 and sum + charge <= ARGV[3] + 0 then
      local reset = (newest + 16) * length - now
      found[2] = string.format('%.0f', newest)
      found[3], found[19] = found[3] + charge, sum + charge
      redis.call('SET', KEYS[1], 's ' .. table.concat(found, ' '), 'PX', math.ceil(reset / 1000) + 1)
      return { ARGV[5] + 0, ARGV[3] - sum - cost, reset }
    end
  end
end

local PARTS = 16 -- sub-windows that are counted: 15, and the one in which the period began
local WINDOW = '^s %d+ %d+[ %d]*$'

local words = string.gmatch(head, '%S+')
local mode, named = words(), tonumber(words())
local takes, gives = mode == 'take', mode == 'give'

-- A bucket: what it owes under which interval and limit, which are those of the quota by which it was charged
-- last, and what it owes by its own.
local function bucket_of(stored, length, limit)
  local debt, owed, before, most, is_new = 0, 0, length, limit, false
  if stored then
    local arrival
    before, arrival, most = string.match(stored, '^b (%d+) (%d+) (%d+)$')
    if not before then
      return nil
    end
    before, most = before + 0, most + 0
    debt = math.max(arrival - now, 0)
    if debt > before * most then
      -- More than an empty bucket owed then means that the clock stepped back.
      debt, is_new = before * most, true
    end
    owed = debt
    if before ~= length and before > 0 then
      -- As many requests stay spent when the quota was changed.
      owed = math.ceil(debt * length / before)
    end
  end
  return {
    kind = 'bucket', part = stored or '-', is_new = is_new, length = length, limit = limit,
    debt = debt, owed = owed, interval = before, most = most,
  }
end

-- A window: its counts from 1 for the newest sub-window, that one's number, and their sum.
local function window_of(stored, length, limit)
  if stored and not string.find(stored, WINDOW) then
    return nil
  end
  local counts = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }
  local index = math.floor(now / length)
  local numbers = string.gmatch(stored or '', '%d+')
  local before, newest = tonumber(numbers() or length), tonumber(numbers() or index)
  local age, passed, sum = 0, 0, 0
  if before ~= length then
    -- The quota was changed: all that counts is as young as the youngest can be, which is
    -- from the end of its sub-window, or from now.
    newest = math.min(math.floor(((newest + 1) * before - 1) / length), index)
  end
  if newest > index + 1 then
    newest = index + 1
  elseif newest < index then
    passed = index - newest
    newest = index
  end
  for count in numbers do
    local to = 1 + passed + (before == length and age or 0)
    -- The sum comes after the counts.
    if age < PARTS and to <= PARTS and count ~= '0' then
      counts[to] = counts[to] + count
      sum = sum + count
    end
    age = age + 1
  end
  return {
    kind = 'window', part = stored or '-', is_new = before ~= length, length = length, limit = limit,
    counts = counts, newest = newest, sum = sum,
  }
end

-- A quota whose part stays as it is, and when it is as good as unused.
local function kept_of(kind, stored, limit)
  local reset = 0
  if stored then
    local arrival = string.match(stored, '^b %d+ (%d+) %d+$')
    local length, newest = string.match(stored, '^s (%d+) (%d+)[ %d]*$')
    if arrival then
      reset = math.max(arrival - now, 0)
    elseif length then
      newest = math.min(newest + 0, math.floor(now / length) + 1)
      reset = math.max((newest + PARTS + 1) * length - now, 0)
    else
      return nil
    end
  end
  return { kind = kind, part = stored or '-', is_new = false, limit = limit, reset = reset }
end

local function junk()
  return redis.error_reply('JUNK the value is not one of quotas')
end

-- A key: its quotas by their places, or what is wrong with what it holds. Everything is read before anything is
-- written, as a script that fails is not rolled back.
local function key_of(name, letters, numbers)
  local value = redis.pcall('GET', name)
  if type(value) == 'table' then
    return string.find(value.err, 'WRONGTYPE', 1, true) and { wrong = value } or error(value)
  end
  -- It has to be written though requests are rejected when it is unsettled: the sub-windows of a window were
  -- changed, or the clock stepped back. What that does to what is stored has to be once, and not anew from request
  -- to request. A bucket whose quota was changed stays as it is. Other replicas may go by the other quota, and to a
  -- lower one a bucket cannot be brought without forgetting what is more than that one's empty bucket owes.
  local key = { name = name, is_unsettled = false, is_written = false }
  local parts = value and #letters > 1 and string.gmatch(value .. ';', '([^;]+);')
  local size = 0
  for at = 1, #letters do
    local part = value
    if parts then
      part = parts()
      if not part then
        return { wrong = junk() }
      end
      size = size + #part + 1
    end
    local letter = string.sub(letters, at, at)
    local length, limit = ARGV[numbers] + 0, ARGV[numbers + 1] + 0
    local stored = part ~= '-' and part or nil
    local quota
    if letter == '-' then
      quota = kept_of('off', stored, limit)
    elseif limit == 0 then
      quota = kept_of('closed', stored, limit)
    elseif letter == 'b' then
      quota = bucket_of(stored, length, limit)
    else
      quota = window_of(stored, length, limit)
    end
    if not quota then
      return { wrong = junk() }
    end
    key.is_unsettled = key.is_unsettled or quota.is_new
    key[at] = quota
    numbers = numbers + 2
  end
  if parts and size ~= #value + 1 then
    return { wrong = junk() }
  end
  return key
end

local function gone(window, age)
  return math.max((window.newest + PARTS + 1 - age) * window.length - now, 0)
end

-- The time until a quota is as good as unused.
local function reset_of(quota)
  if quota.kind == 'bucket' then
    return quota.debt
  elseif quota.kind == 'window' then
    for age = 1, PARTS do
      if quota.counts[age] > 0 then
        return gone(quota, age)
      end
    end
    return 0
  end
  return quota.reset
end

-- How many requests of a cost would be admitted.
local function room_of(quota, cost)
  local kind, room = quota.kind, 0
  if kind == 'bucket' then
    room = math.floor((quota.limit * quota.length - quota.owed) / (cost * quota.length))
  elseif kind == 'window' then
    room = math.floor((quota.limit - quota.sum) / cost)
  elseif kind == 'off' then
    room = 4294967295
  end
  return room > 0 and room or 0
end

-- The time until a request fits: 0 now, -1 never.
local function wait_of(quota, cost)
  local kind = quota.kind
  if cost == 0 or kind == 'off' then
    return 0
  elseif cost > quota.limit then
    return -1
  elseif kind == 'bucket' then
    local length, before = quota.length, quota.interval
    local room = (quota.limit - cost) * length
    if quota.owed <= room then
      return 0
    end
    -- Until it is charged by this quota it regains by the one that it was charged by last.
    room = before ~= length and before > 0 and math.floor(room * before / length) or room
    return math.max(quota.debt - room, 1)
  end
  local rest, wait = quota.sum, 0
  for age = PARTS, 1, -1 do
    if rest + cost <= quota.limit then
      break
    end
    rest = rest - quota.counts[age]
    wait = gone(quota, age)
  end
  return wait
end

local function charge(quota, cost)
  if quota.kind == 'bucket' then
    quota.owed = quota.owed + cost * quota.length
    quota.debt, quota.interval, quota.most = quota.owed, quota.length, quota.limit
    quota.is_new = true
  elseif quota.kind == 'window' then
    quota.counts[1] = quota.counts[1] + cost
    quota.sum = quota.sum + cost
    quota.is_new = true
  end
end

local function give_back(quota, cost)
  if quota.kind == 'bucket' then
    -- As with the wait, a request is as long as it was when it was charged.
    local length, before = quota.length, quota.interval
    quota.debt = math.max(quota.debt - cost * before, 0)
    quota.owed = before ~= length and before > 0 and math.ceil(quota.debt * length / before) or quota.debt
    quota.is_new = true
  elseif quota.kind == 'window' then
    local counts = quota.counts
    for age = 1, PARTS do
      local from = math.min(cost, counts[age])
      counts[age] = counts[age] - from
      quota.sum = quota.sum - from
      cost = cost - from
    end
    quota.is_new = true
  end
end

local function part_of(quota)
  if not quota.is_new then
    return quota.part
  elseif quota.kind == 'bucket' then
    return string.format('b %.0f %.0f %.0f', quota.interval, now + quota.debt, quota.most)
  end
  local counts = table.concat(quota.counts, ' ')
  return string.format('s %.0f %.0f %s %.0f', quota.length, quota.newest, counts, quota.sum)
end

local function write(key)
  local value, expiry
  for at = 1, #key do
    local part, reset = part_of(key[at]), reset_of(key[at])
    value = value and value .. ';' .. part or part
    expiry = math.max(expiry or 0, reset)
  end
  if expiry and expiry > 0 then
    redis.call('SET', key.name, value, 'PX', math.ceil(expiry / 1000) + 1)
  else
    redis.call('DEL', key.name)
  end
end

local keys = {}
local at, numbers, letters = 2, 0, ''
for n = 1, #KEYS do
  local word = words()
  if word ~= '=' then
    letters, numbers = word == '.' and '' or word, at
    at = at + 2 * #letters
  end
  keys[n] = key_of(KEYS[n], letters, numbers)
end

local is_single = at + 1 + named == #ARGV
local charged = named == 0 and keys or {}
local reply = {}
local size = 0
while at < #ARGV do
  local cost, count = ARGV[at] + 0, ARGV[at + 1] + 0
  for n = 1, named do
    charged[n] = keys[ARGV[at + 1 + n] + 0]
  end
  at = at + 2 + named
  local granted = takes and cost > 0 and count or 0
  local wrong
  for n = 1, #charged do
    local key = charged[n]
    wrong = wrong or key.wrong
    for quota = 1, granted > 0 and #key or 0 do
      local room = room_of(key[quota], cost)
      granted = room < granted and room or granted
    end
  end
  if wrong and is_single then
    return wrong
  end
  size = size + 1
  reply[size] = wrong and -1 or granted
  for n = 1, wrong and 0 or #charged do
    local key = charged[n]
    if granted > 0 then
      key.is_written = true
      for at = 1, #key do
        local quota = key[at]
        reply[size + 1] = room_of(quota, 1) - cost
        charge(quota, cost)
        reply[size + 2] = reset_of(quota)
        size = size + 2
        charge(quota, (granted - 1) * cost)
      end
    else
      key.is_written = key.is_written or takes and key.is_unsettled or gives and cost > 0
    end
  end
  if not wrong and granted < count then
    for n = 1, #charged do
      local key = charged[n]
      for at = 1, #key do
        local quota = key[at]
        if gives then
          give_back(quota, cost * count)
        end
        reply[size + 1], reply[size + 2], reply[size + 3] = room_of(quota, 1), reset_of(quota), wait_of(quota, cost)
        size = size + 3
      end
    end
  end
end

for n = 1, #keys do
  if keys[n].is_written then
    write(keys[n])
  end
end
return reply
