-- Asks what is left of the quotas of one decision, takes from all of them if the request fits them
-- all, or gives back. A quota is a bucket, as GCRA's virtual scheduling algorithm has it (ITU-T I.371),
-- or a sliding window of 15 sub-windows (store/memory/mod.rs has its rule). The time is this
-- server's.
--
-- KEYS[n]   one for each charged entity: a part for each of its quotas, joined by semicolons. (Its
--           name tells buckets from windows, so that a part is always of its quota's kind.)
--           b <interval> <arrival> <limit>    a bucket; it is full at the arrival time. The others are
--                                             those of the quota by which it was charged last
--           s <length> <newest> <count> ..    a window: the length of a sub-window, the number of the
--                                             newest, and what was admitted in it and those before
--           -                                 nothing: a quota that denies everything stores neither
-- ARGV[1]   the cost; 0 is admitted, takes nothing, and reports what is left
-- ARGV[2]   take, look or give
-- ARGV[3..] for each key: how many quotas it has, then for each three numbers: 0 for a bucket, 1 for a window and 2
--           for one that is off, its interval or the length of its sub-windows, and the most requests it admits at
--           once; 0 admits nothing. What is stored stays as it is then, and of one that is off, whichever sort it
--           is of
--
-- Returns three numbers for each quota, in order: how many more would be admitted, the time until
-- it is as good as unused, and the time until the request fits: 0 now, -1 never. Those of a quota that is off
-- mean nothing.
--
-- All times are whole microseconds. They stay below 2^53, where Lua's numbers are exact, but for what a
-- bucket owes by a quota that holds less, which is only compared.

local PARTS = 16 -- sub-windows that are counted: 15, and the one in which the period began
local WINDOW = '^s %d+ %d+[ %d]*$'

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local cost = tonumber(ARGV[1])
local cells = math.max(cost, 1)
local mode = ARGV[2]
local takes = mode == 'take'
local gives = mode == 'give'

-- What a bucket owes until it is full, under which interval and limit, and whether that is not what is
-- stored; nothing if it is none.
local function debt_of(stored, interval, limit)
  if not stored then
    return 0, interval, limit, false
  end
  local before, arrival, most = string.match(stored, '^b (%d+) (%d+) (%d+)$')
  if not before then
    return nil
  end
  -- More than an empty bucket owed then means that the clock stepped back.
  local empty = before * most
  local debt = math.max(arrival - now, 0)
  return math.min(debt, empty), tonumber(before), tonumber(most), debt > empty
end

local function bucket_of(interval, debt, limit)
  return string.format('b %.0f %.0f %.0f', interval, now + debt, limit)
end

-- The counters of a window as they are now, from 1 for the newest, the newest's number, and whether
-- they were in sub-windows of another length; nothing if it is none.
local function counts_of(stored, length)
  if stored and not string.find(stored, WINDOW) then
    return nil
  end
  local counts = {}
  local index = math.floor(now / length)
  local numbers = string.gmatch(stored or '', '%d+')
  local before, newest = tonumber(numbers() or length), tonumber(numbers() or index)
  local age = 0
  local passed = 0
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
  for n = 1, PARTS do
    counts[n] = 0
  end
  for count in numbers do
    local at = 1 + passed + (before == length and age or 0)
    if at <= PARTS then
      counts[at] = counts[at] + count
    end
    age = age + 1
  end
  return counts, newest, before ~= length
end

local function window_of(counts, length, newest)
  local window = { string.format('s %.0f %.0f', length, newest) }
  for age = 1, PARTS do
    window[age + 1] = string.format('%.0f', counts[age])
  end
  return table.concat(window, ' ')
end

-- What stays as it is, and the time until it is as good as unused; nothing if it is none.
local function kept(stored)
  local arrival = string.match(stored or '', '^b %d+ (%d+) %d+$')
  local length, newest = string.match(stored or '', '^s (%d+) (%d+)[ %d]*$')
  if arrival then
    return stored, math.max(arrival - now, 0)
  elseif length then
    newest = math.min(tonumber(newest), math.floor(now / length) + 1)
    return stored, math.max((newest + PARTS + 1) * length - now, 0)
  elseif not stored then
    return '-', 0
  end
end

-- A value that is not of this script's making.
local function junk()
  return redis.error_reply('JUNK the value is not one of quotas')
end

-- Everything is read before anything is written, as a script that fails is not rolled back.
local reply = {}
local after = {} -- the reply if the request is taken
local writes = {}
local expiries = {}
-- The same if it is not. It stays as it is then, unless the sub-windows of a window were changed or the
-- clock stepped back: what that does to what is stored has to be once, and not anew from request to
-- request. A bucket whose quota was changed stays as well. Other replicas may go by the other quota, and to
-- a lower one a bucket cannot be brought without forgetting what is more than that one's empty bucket owes.
local settled = {}
local settled_expiries = {}
local fits = true
local at = 3
for n, key in ipairs(KEYS) do
  local value = redis.call('GET', key)
  local quotas = tonumber(ARGV[at])
  local parts = {}
  if value and quotas == 1 then
    parts[1] = value
  elseif value then
    for part in string.gmatch(value, '[^;]+') do
      parts[#parts + 1] = part
    end
    if #parts ~= quotas or table.concat(parts, ';') ~= value then
      return junk()
    end
  end
  local longest = 0
  local longest_settled = 0
  local found = {}
  local unsettled = false
  for quota = 1, quotas do
    local length, limit = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
    local stored = parts[quota] ~= '-' and parts[quota] or nil
    local left, reset, wait, left_after, reset_after
    local kind = tonumber(ARGV[at + 1])
    local off = kind == 2
    if off or limit == 0 then
      parts[quota], reset = kept(stored)
      if not parts[quota] then
        return junk()
      end
      found[quota] = parts[quota]
      longest = math.max(longest, reset)
      left, wait, left_after, reset_after = 0, 0, 0, reset
    elseif kind == 0 then
      local debt, before, most, changed = debt_of(stored, length, limit)
      if not debt then
        return junk()
      end
      unsettled = unsettled or changed
      found[quota] = changed and bucket_of(before, debt, most) or stored or '-'
      -- As many requests stay spent when the quota was changed.
      local full = limit * length
      local rescaled = before ~= length and before > 0
      local owed = rescaled and math.ceil(debt * length / before) or debt
      left = math.max(math.floor((full - owed) / length), 0)
      reset, wait = debt, 0
      local room = full - cells * length
      if owed > room then
        -- Until it is charged by this quota it regains by the one that it was charged by last.
        room = rescaled and math.floor(room * before / length) or room
        wait = math.max(debt - room, 1)
      end
      if gives then
        -- Likewise, a request is as long as it was when it was charged.
        reset_after = math.max(debt - cost * before, 0)
        parts[quota] = bucket_of(before, reset_after, most)
      else
        reset_after = owed + cells * length
        parts[quota] = bucket_of(length, reset_after, limit)
      end
      left_after = left - cells
      longest = math.max(longest, reset_after)
    else
      local counts, newest, changed = counts_of(stored, length)
      if not counts then
        return junk()
      end
      unsettled = unsettled or changed
      found[quota] = changed and window_of(counts, length, newest) or stored or '-'
      local used = 0
      local youngest
      for age = 1, PARTS do
        used = used + counts[age]
        youngest = youngest or counts[age] > 0 and age
      end
      local function gone(age)
        return math.max((newest + PARTS + 1 - age) * length - now, 0)
      end
      left, reset = math.max(limit - used, 0), youngest and gone(youngest) or 0
      wait = 0
      local rest = used
      for age = PARTS, 1, -1 do
        if rest + cells > limit then
          rest = rest - counts[age]
          wait = gone(age)
        end
      end
      if gives then
        local given = cost
        for age = 1, PARTS do
          local from = math.min(given, counts[age])
          counts[age] = counts[age] - from
          given = given - from
        end
      else
        counts[1] = counts[1] + cells
      end
      left_after, reset_after = left - cells, gone(1)
      parts[quota] = window_of(counts, length, newest)
      for age = 1, PARTS do
        longest = counts[age] > 0 and math.max(longest, gone(age)) or longest
      end
    end
    longest_settled = math.max(longest_settled, reset)
    if cells > limit then
      wait = -1
    end
    if cost == 0 or off then
      wait = 0
    end
    fits = fits and wait == 0
    local to = #reply
    reply[to + 1], reply[to + 2], reply[to + 3] = left, reset, wait
    after[to + 1], after[to + 2], after[to + 3] = left_after, reset_after, wait
    at = at + 3
  end
  writes[n] = table.concat(parts, ';', 1, quotas)
  expiries[n] = longest
  if unsettled then
    settled[n] = table.concat(found, ';', 1, quotas)
    settled_expiries[n] = longest_settled
  end
  at = at + 1
end

local function store(key, value, expiry)
  if expiry > 0 then
    redis.call('SET', key, value, 'PX', string.format('%.0f', math.ceil(expiry / 1000) + 1))
  else
    redis.call('DEL', key)
  end
end

if cost == 0 or mode == 'look' or (takes and not fits) then
  if takes then
    for n, key in ipairs(KEYS) do
      if settled[n] then
        store(key, settled[n], settled_expiries[n])
      end
    end
  end
  return reply
end
for n, key in ipairs(KEYS) do
  store(key, writes[n], expiries[n])
end
return after
