-- This server's clock, in milliseconds, as the scripts see it that count leases: it comes before each of them.
--
-- After the clock stepped back, leases expire further ahead than they live. Each is given what it would have if it
-- was taken now: a holder that is alive makes it more with its next heartbeat, and the slot of a dead one is free
-- when that time is over. How long a lease lives is the second word of its id, or that of the word for its holder
-- if it is known by name.

local time = redis.call('TIME')
local now = time[1] * 1000 + (time[2] - time[2] % 1000) / 1000

-- Of leases that expire further ahead than `ttl`: there are none, but for those that live longer. It may fail
-- for want of memory, which is no harm.
local function bring_back(key, ttl)
  local ahead = redis.pcall('ZRANGEBYSCORE', key, '(' .. now + ttl, '(+inf', 'WITHSCORES')
  for n = 1, #ahead, 2 do
    local lives = string.match(ahead[n], ' (%d+)$')
    if not lives then
      local holder = redis.pcall('GET', string.gsub(KEYS[1], 'total$', 'by:') .. ahead[n])
      lives = type(holder) == 'string' and string.match(holder, ' (%d+)$')
    end
    if lives and ahead[n + 1] - lives > now then
      redis.pcall('ZADD', key, 'XX', now + lives, ahead[n])
    end
  end
end

