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

local words = string.gmatch(head, '%S+')
local mode, named = words(), tonumber(words())
local PARTS = 16 -- sub-windows that are counted: 15, and the one in which the period began
local WINDOW = '^s %d+ %d+[ %d]*$'

local takes, gives = mode == 'take', mode == 'give'

-- What is known of the quotas, which are numbered through all keys.
local kinds, lengths, limits = {}, {}, {}
local parts = {} -- what is stored, or - for nothing
local debts, intervals, most = {}, {}, {} -- of buckets: what they owe, under which interval and limit
local counts, newest, used = {}, {}, {} -- of windows: from 1 for the newest, its number, and their sum
local resets = {} -- of those that stay as they are: the time until they are as good as unused
local is_new = {} -- whether it is not what is stored
-- And of the keys.
local first = {} -- their first quota, and one more
local is_wrong = {} -- whether a key holds something else
-- Whether it has to be written though requests are rejected. It stays as it is then, unless the sub-windows of
-- a window were changed or the clock stepped back: what that does to what is stored has to be once, and not anew
-- from request to request. A bucket whose quota was changed stays as well. Other replicas may go by the other
-- quota, and to a lower one a bucket cannot be brought without forgetting what is more than that one's empty
-- bucket owes.
local is_unsettled = {}
local is_written = {}

local function read_bucket(quota, stored)
  if not stored then
    debts[quota], intervals[quota], most[quota] = 0, lengths[quota], limits[quota]
    return true
  end
  local before, arrival, limit = string.match(stored, '^b (%d+) (%d+) (%d+)$')
  if not before then
    return false
  end
  -- More than an empty bucket owed then means that the clock stepped back.
  local empty = before * limit
  local debt = math.max(arrival - now, 0)
  debts[quota], intervals[quota], most[quota] = math.min(debt, empty), tonumber(before), tonumber(limit)
  is_new[quota] = debt > empty
  return true
end

local function read_window(quota, stored)
  if stored and not string.find(stored, WINDOW) then
    return false
  end
  local length = lengths[quota]
  local found = {}
  local index = math.floor(now / length)
  local numbers = string.gmatch(stored or '', '%d+')
  local before, last = tonumber(numbers() or length), tonumber(numbers() or index)
  local age, passed, sum = 0, 0, 0
  if before ~= length then
    -- The quota was changed: all that counts is as young as the youngest can be, which is
    -- from the end of its sub-window, or from now.
    last = math.min(math.floor(((last + 1) * before - 1) / length), index)
  end
  if last > index + 1 then
    last = index + 1
  elseif last < index then
    passed = index - last
    last = index
  end
  for n = 1, PARTS do
    found[n] = 0
  end
  for count in numbers do
    local to = 1 + passed + (before == length and age or 0)
    if age < PARTS and to <= PARTS then
      found[to] = found[to] + count
      sum = sum + count
    end
    age = age + 1
  end
  counts[quota], newest[quota], used[quota] = found, last, sum
  is_new[quota] = before ~= length
  return true
end

-- What stays as it is.
local function read_kept(quota, stored)
  local arrival = string.match(stored or '', '^b %d+ (%d+) %d+$')
  local length, last = string.match(stored or '', '^s (%d+) (%d+)[ %d]*$')
  resets[quota] = 0
  if arrival then
    resets[quota] = math.max(arrival - now, 0)
  elseif length then
    last = math.min(tonumber(last), math.floor(now / length) + 1)
    resets[quota] = math.max((last + PARTS + 1) * length - now, 0)
  end
  return arrival or length or not stored
end

-- Whether the key holds what this script stored. Everything is read before anything is written, as a script that
-- fails is not rolled back.
local function read(n, letters, numbers)
  local from = first[n]
  local to = from + #letters - 1
  first[n + 1] = to + 1
  local value = redis.pcall('GET', KEYS[n])
  if type(value) == 'table' then
    return string.find(value.err, 'WRONGTYPE', 1, true) and value or error(value)
  end
  if value and to == from then
    parts[from] = value
  elseif value then
    local quota = from
    for part in string.gmatch(value, '[^;]+') do
      parts[quota] = part
      quota = quota + 1
    end
    if quota ~= to + 1 or table.concat(parts, ';', from, to) ~= value then
      return false
    end
  end
  for quota = from, to do
    local stored = parts[quota] ~= '-' and parts[quota] or nil
    parts[quota] = parts[quota] or '-'
    local kind = string.sub(letters, quota - from + 1, quota - from + 1)
    kinds[quota] = kind
    lengths[quota], limits[quota] = tonumber(ARGV[numbers]), tonumber(ARGV[numbers + 1])
    numbers = numbers + 2
    local is_ours
    if kind == '-' or limits[quota] == 0 then
      is_ours = read_kept(quota, stored)
    elseif kind == 'b' then
      is_ours = read_bucket(quota, stored)
    else
      is_ours = read_window(quota, stored)
    end
    if not is_ours then
      return false
    end
    is_unsettled[n] = is_unsettled[n] or is_new[quota]
  end
  return true
end

local function gone(quota, age)
  return math.max((newest[quota] + PARTS + 1 - age) * lengths[quota] - now, 0)
end

-- The time until a quota is as good as unused.
local function reset_of(quota)
  if debts[quota] then
    return debts[quota]
  elseif resets[quota] then
    return resets[quota]
  end
  for age = 1, PARTS do
    if counts[quota][age] > 0 then
      return gone(quota, age)
    end
  end
  return 0
end

-- What a bucket owes by its quota: as many requests stay spent when the quota was changed.
local function owed_of(quota)
  local length, before = lengths[quota], intervals[quota]
  if before ~= length and before > 0 then
    return math.ceil(debts[quota] * length / before)
  end
  return debts[quota]
end

-- How many requests of a cost would be admitted.
local function room_of(quota, cost)
  local limit = limits[quota]
  if resets[quota] then
    return 0
  elseif debts[quota] then
    local length = lengths[quota]
    return math.max(math.floor((limit * length - owed_of(quota)) / (cost * length)), 0)
  end
  return math.max(math.floor((limit - used[quota]) / cost), 0)
end

-- The time until a request fits: 0 now, -1 never.
local function wait_of(quota, cost)
  local limit = limits[quota]
  if cost == 0 or kinds[quota] == '-' then
    return 0
  elseif cost > limit then
    return -1
  elseif debts[quota] then
    local length, before = lengths[quota], intervals[quota]
    local room = (limit - cost) * length
    if owed_of(quota) <= room then
      return 0
    end
    -- Until it is charged by this quota it regains by the one that it was charged by last.
    room = before ~= length and before > 0 and math.floor(room * before / length) or room
    return math.max(debts[quota] - room, 1)
  end
  local rest, wait = used[quota], 0
  for age = PARTS, 1, -1 do
    if rest + cost > limit then
      rest = rest - counts[quota][age]
      wait = gone(quota, age)
    end
  end
  return wait
end

local function charge(quota, cost)
  if debts[quota] then
    debts[quota] = owed_of(quota) + cost * lengths[quota]
    intervals[quota], most[quota] = lengths[quota], limits[quota]
    is_new[quota] = true
  elseif counts[quota] then
    counts[quota][1] = counts[quota][1] + cost
    used[quota] = used[quota] + cost
    is_new[quota] = true
  end
end

local function give_back(quota, cost)
  if debts[quota] then
    -- As with the wait, a request is as long as it was when it was charged.
    debts[quota] = math.max(debts[quota] - cost * intervals[quota], 0)
    is_new[quota] = true
  elseif counts[quota] then
    local found = counts[quota]
    for age = 1, PARTS do
      local from = math.min(cost, found[age])
      found[age] = found[age] - from
      used[quota] = used[quota] - from
      cost = cost - from
    end
    is_new[quota] = true
  end
end

local function write(n)
  local expiry = 0
  for quota = first[n], first[n + 1] - 1 do
    expiry = math.max(expiry, reset_of(quota))
    if is_new[quota] and debts[quota] then
      local arrival = now + debts[quota]
      parts[quota] = string.format('b %.0f %.0f %.0f', intervals[quota], arrival, most[quota])
    elseif is_new[quota] then
      local window = { string.format('s %.0f %.0f', lengths[quota], newest[quota]) }
      for age = 1, PARTS do
        window[age + 1] = string.format('%.0f', counts[quota][age])
      end
      window[PARTS + 2] = string.format('%.0f', used[quota])
      parts[quota] = table.concat(window, ' ')
    end
  end
  if expiry > 0 then
    local value = table.concat(parts, ';', first[n], first[n + 1] - 1)
    redis.call('SET', KEYS[n], value, 'PX', math.ceil(expiry / 1000) + 1)
  else
    redis.call('DEL', KEYS[n])
  end
end

local at, numbers, letters = 2, 0, ''
first[1] = 1
for n = 1, #KEYS do
  local word = words()
  if word ~= '=' then
    letters, numbers = word == '.' and '' or word, at
    at = at + 2 * #letters
  end
  local found = read(n, letters, numbers)
  is_wrong[n] = found ~= true and (found or redis.error_reply('JUNK the value is not one of quotas'))
end

local is_single = at + 1 + named == #ARGV
local charged = {}
for n = 1, named == 0 and #KEYS or 0 do
  charged[n] = n
end
local reply = {}
local size = 0
while at < #ARGV do
  local cost, count = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  for n = 1, named do
    charged[n] = tonumber(ARGV[at + 1 + n])
  end
  at = at + 2 + named
  local granted = takes and cost > 0 and count or 0
  local wrong
  for _, n in ipairs(charged) do
    wrong = wrong or is_wrong[n]
    for quota = first[n], first[n + 1] - 1 do
      if granted > 0 and not wrong and kinds[quota] ~= '-' then
        granted = math.min(granted, room_of(quota, cost))
      end
    end
  end
  if wrong and is_single then
    return wrong
  end
  size = size + 1
  reply[size] = wrong and -1 or granted
  if not wrong and granted > 0 then
    for _, n in ipairs(charged) do
      is_written[n] = true
      for quota = first[n], first[n + 1] - 1 do
        local left = kinds[quota] ~= '-' and room_of(quota, 1) - cost or 0
        charge(quota, cost)
        reply[size + 1], reply[size + 2] = left, reset_of(quota)
        size = size + 2
        charge(quota, (granted - 1) * cost)
      end
    end
  end
  if not wrong and granted < count then
    for _, n in ipairs(charged) do
      is_written[n] = is_written[n] or takes and is_unsettled[n] or gives and cost > 0
      for quota = first[n], first[n + 1] - 1 do
        if gives then
          give_back(quota, cost * count)
        end
        local left = kinds[quota] ~= '-' and room_of(quota, 1) or 0
        reply[size + 1], reply[size + 2], reply[size + 3] = left, reset_of(quota), wait_of(quota, cost)
        size = size + 3
      end
    end
  end
end

for n = 1, #KEYS do
  if is_written[n] then
    write(n)
  end
end
return reply
