-- Asks the buckets of one decision, and takes from all of them if the request fits them all:
-- GCRA as a virtual scheduling algorithm (ITU-T I.371), on this server's clock.
--
-- KEYS[n]   one for each charged entity: "<interval> <arrival>" for each of its quotas, joined by
--           spaces. The arrival is the theoretical arrival time: when the bucket is full again.
-- ARGV[1]   the cost; 0 is admitted, takes nothing, and reports what is left
-- ARGV[2]   1 to take, 0 to look
-- ARGV[3..] for each key: how many quotas it has, then for each the interval and the burst; a
--           burst of 0 admits nothing
--
-- Returns three numbers for each quota, in order: how many more would be admitted, the time until
-- its bucket is full, and the time until the request fits: 0 now, -1 never.
--
-- All times are whole microseconds. They stay below 2^53, where Lua's numbers are exact.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local cost = tonumber(ARGV[1])
local cells = math.max(cost, 1)

local function debts(key)
  local stored = redis.call('GET', key)
  local numbers = {}
  if stored then
    for number in string.gmatch(stored, '%S+') do
      local value = tonumber(number)
      if not value then
        return nil
      end
      numbers[#numbers + 1] = value
    end
    if #numbers % 2 == 1 then
      return nil
    end
  end
  return numbers
end

local answer = {}
local writes = {}
local fits = true
local at = 3
for n, key in ipairs(KEYS) do
  local numbers = debts(key)
  if not numbers then
    return redis.error_reply('JUNK the value is not one of arrival times')
  end
  local taken = {}
  local longest = 0
  local count = tonumber(ARGV[at])
  for quota = 1, count do
    local interval = tonumber(ARGV[at + 2 * quota - 1])
    local burst = tonumber(ARGV[at + 2 * quota])
    local before, arrival = numbers[2 * quota - 1], numbers[2 * quota]
    local debt = 0
    if arrival and arrival > now then
      debt = arrival - now
      if before ~= interval and before > 0 then
        -- The quota was changed: as many requests stay spent.
        debt = math.ceil(debt * interval / before)
      end
      -- More than an empty bucket's debt means that the clock stepped back, or that the burst
      -- was lowered.
      debt = math.min(debt, burst * interval)
    end
    local after = debt + cells * interval
    local wait = 0
    if cells > burst then
      wait = -1
    elseif after > burst * interval then
      wait = after - burst * interval
    end
    if cost == 0 then
      wait = 0
    end
    fits = fits and wait == 0
    answer[#answer + 1] = { debt = debt, after = after, wait = wait, interval = interval, burst = burst }
    taken[#taken + 1] = string.format('%.0f %.0f', interval, now + after)
    longest = math.max(longest, after)
  end
  writes[n] = { value = table.concat(taken, ' '), ttl = math.ceil(longest / 1000) + 1 }
  at = at + 1 + 2 * count
end

local take = fits and cost > 0 and ARGV[2] == '1'
if take then
  for n, key in ipairs(KEYS) do
    redis.call('SET', key, writes[n].value, 'PX', string.format('%.0f', writes[n].ttl))
  end
end

local reply = {}
for _, quota in ipairs(answer) do
  local debt = take and quota.after or quota.debt
  local remaining = 0
  if quota.interval > 0 then
    remaining = math.floor((quota.burst * quota.interval - debt) / quota.interval)
  end
  reply[#reply + 1] = remaining
  reply[#reply + 1] = debt
  reply[#reply + 1] = quota.wait
end
return reply
