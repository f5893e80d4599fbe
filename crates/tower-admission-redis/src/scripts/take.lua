-- Decides requests in their order of arrival, as if each was decided alone at one instant of the server's clock: takes
-- their costs, reports what remains, or refunds costs. A request charges one or more keys, and is admitted whole or not
-- at all, over all quotas of all its keys. A quota is a bucket (GCRA's virtual scheduling algorithm, ITU-T I.371) or a
-- sliding window of 15 sub-windows (see the documentation of `tower_admission::store::memory`).
--
-- KEYS[n]   one for each charged key: a part for each of its quotas, joined by semicolons. (The name of the key
--           separates buckets from windows, so a part always has the kind of its quota.)
--           b <interval> <arrival> <limit>    a bucket, which is full at the arrival time. The interval and the limit
--                                             are those of the quota that charged it last
--           s <length> <newest> <count> ..    a window: the length of a sub-window, the number of the newest one, the
--                                             admitted requests in it and in the 15 before, and their sum (older
--                                             versions stored no sum)
--           -                                 nothing: a `deny all` quota stores neither
-- ARGV[1]   words: take, look or give; how many keys each run names, 0 if each run charges all keys; then for each key
--           a letter for each of its quotas: b for a bucket, s for a window, - for a quota that is off. The word =
--           repeats the rules of the key before, and the word . means no quotas
-- ARGV[2..] two numbers for each quota: its interval or the length of its sub-windows, and its limit. A limit of 0
--           rejects every request. The stored part then stays unchanged; so does the part of a quota that is off
-- then      the runs. A run is a number of requests of one cost that charge the same keys: the cost, the number of
--           requests, and the indexes of their keys in KEYS if runs name keys. Cost 0 is admitted, takes nothing, and
--           reports what remains
--
-- Returns for each run, one after the other:
--   the number of admitted requests, which are the first ones; -1 if a key holds other data. (If there is one run, that
--     is an error.)
--   if any was admitted, two numbers for each of its quotas, in order, after the first admission: how many more requests
--     fit, and the time until the quota is unused again. The numbers of later admissions follow from these
--   if any was not admitted, three numbers for each quota after the admissions: the same two, and the time until the
--     request fits: 0 for now, -1 for never. This covers every request that takes nothing, and a refund, after it
-- The numbers of a quota that is off have no meaning.
--
-- All times are whole microseconds. They stay below 2^53, where Lua's numbers are exact, except for the debt of a
-- bucket under a quota that holds less, which is only compared. A key with longer times holds other data.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local head = ARGV[1]

-- A window with its sum.
local SUMMED = '^s (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$'

-- Fast branches for the common calls, without closures: unchanged quotas, on a clock that did not step back. The first
-- three are for one run over one key. take_general.lua decides all other calls, and would decide these in the same way.
if head == 'take 0 b' and #ARGV == 5 then
  local value = redis.call('GET', KEYS[1])
  local interval, limit, cost, count = ARGV[2] + 0, ARGV[3] + 0, ARGV[4] + 0, ARGV[5] + 0
  local debt = 0
  local is_plain = cost > 0 and limit > 0
  if value then
    local before, arrival, most = string.match(value, '^b (%d+) (%d+) (%d+)$')
    if before == ARGV[2] then
      debt = arrival - now
      is_plain = is_plain and debt <= interval * most and debt < 2^53
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
  -- The length, the newest number, 16 counts, and the sum.
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
elseif string.find(head, '^take %d+ b[ b=]*$') and not string.find(head, 'bb', 1, true) then
  -- Any runs over keys with one bucket each. Nothing is written before all keys are known to be plain.
  local is_plain = true
  local intervals, limits, debts, is_charged = {}, {}, {}, {}
  local at, interval, limit = 2, nil, nil
  for n = 1, #KEYS do
    if string.sub(head, 2 * (n - #KEYS) - 1, 2 * (n - #KEYS) - 1) == 'b' then
      interval, limit = ARGV[at], ARGV[at + 1]
      at = at + 2
    end
    intervals[n], limits[n], debts[n] = interval, limit, 0
    local value = redis.pcall('GET', KEYS[n])
    if type(value) == 'string' then
      local before, arrival, most = string.match(value, '^b (%d+) (%d+) (%d+)$')
      local debt = before and arrival - now
      is_plain = is_plain and before == interval and debt <= before * most and debt < 2^53
      debts[n] = is_plain and debt > 0 and debt or 0
    end
    is_plain = is_plain and type(value) ~= 'table' and limit ~= '0'
  end
  local named = string.match(head, '%d+') + 0
  local charged = named == 0 and #KEYS or named
  local reply, size = {}, 0
  while is_plain and at < #ARGV do
    local cost, count = ARGV[at] + 0, ARGV[at + 1] + 0
    local granted = count
    is_plain = cost > 0
    for place = 1, is_plain and charged or 0 do
      local n = named == 0 and place or ARGV[at + 1 + place] + 0
      local room, price = limits[n] * intervals[n] - debts[n], cost * intervals[n]
      if granted * price > room then
        granted = room > 0 and (room - room % price) / price or 0
      end
    end
    size = size + 1
    reply[size] = granted
    for place = 1, is_plain and granted > 0 and charged or 0 do
      local n = named == 0 and place or ARGV[at + 1 + place] + 0
      local interval, debt = intervals[n] + 0, debts[n]
      local room = limits[n] * interval - debt
      reply[size + 1], reply[size + 2] = (room - room % interval) / interval - cost, debt + cost * interval
      size = size + 2
      debts[n], is_charged[n] = debt + granted * cost * interval, true
    end
    for place = 1, is_plain and granted < count and charged or 0 do
      local n = named == 0 and place or ARGV[at + 1 + place] + 0
      local interval, debt = intervals[n] + 0, debts[n]
      local room = limits[n] * interval - debt
      local missing = cost * interval - room
      reply[size + 1], reply[size + 2] = room > 0 and (room - room % interval) / interval or 0, debt
      reply[size + 3] = cost > limits[n] + 0 and -1 or missing > 0 and missing or 0
      size = size + 3
    end
    at = at + 2 + named
  end
  if is_plain then
    for n in pairs(is_charged) do
      local stored = string.format('b %s %.0f %s', intervals[n], now + debts[n], limits[n])
      redis.call('SET', KEYS[n], stored, 'PX', math.ceil(debts[n] / 1000) + 1)
    end
    return reply
  end
end

