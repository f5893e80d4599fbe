-- The general path of take.lua. That script comes before this one, and documents the keys, arguments and answers.

local PARTS = 16 -- counted sub-windows: 15, and the one in which the period began
local WINDOW = '^s %d+ %d+[ %d]*$'

local words = string.gmatch(head, '%S+')
local mode, named = words(), tonumber(words())
local takes, gives = mode == 'take', mode == 'give'

-- A bucket: its debt under the interval and limit of the quota that charged it last, and its debt under its own quota.
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
      -- A debt above that of an empty bucket means that the clock stepped back.
      debt, is_new = before * most, true
    end
    if debt >= 2^53 then
      return nil
    end
    owed = debt
    if before ~= length and before > 0 then
      -- After a change of the quota the same number of requests stays spent.
      owed = math.ceil(debt * length / before)
    end
  end
  return {
    kind = 'bucket', part = stored or '-', is_new = is_new, length = length, limit = limit,
    debt = debt, owed = owed, interval = before, most = most,
  }
end

-- A window: its counts, with index 1 for the newest sub-window, the number of that sub-window, and the sum.
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
    -- The quota was changed: every request counts as the youngest possible one, at the end of its sub-window or now.
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
    -- The sum follows the counts.
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

-- A quota whose part stays unchanged, and the time until it is unused again.
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
    end
    if not (arrival or length) or reset >= 2^53 then
      return nil
    end
  end
  return { kind = kind, part = stored or '-', is_new = false, limit = limit, reset = reset }
end

local function junk()
  return redis.error_reply('JUNK the value is not one of quotas')
end

-- A key: its quotas by their index, or the error if it holds other data. Everything is read before anything is written,
-- because Redis does not roll back a script that fails.
local function key_of(name, letters, numbers)
  local value = redis.pcall('GET', name)
  if type(value) == 'table' then
    return string.find(value.err, 'WRONGTYPE', 1, true) and { wrong = value } or error(value)
  end
  -- An unsettled key is written even when its requests are rejected: the length of its sub-windows was changed, or the
  -- clock stepped back, and that correction must happen once, not with every request. A bucket whose quota was changed
  -- stays unchanged: other replicas may use the other quota, and conversion to a lower quota would forgive the debt that
  -- exceeds its empty bucket.
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

-- The time until a quota is unused again.
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

-- How many requests of a cost fit.
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

-- The time until a request fits: 0 for now, -1 for never.
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
    -- Until this quota charges the bucket, it refills at the rate of the quota that charged it last.
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
    -- As for the wait, a request has the interval at which it was charged.
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
