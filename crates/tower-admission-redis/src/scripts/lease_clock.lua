-- The server's clock in milliseconds, for the scripts that count leases. This text comes before each of them.
--
-- After the clock steps back, leases expire further ahead than their time to live. Such a lease is shortened to its
-- full time to live from now. The next heartbeat of a running holder extends it again; the slot of a dead holder becomes
-- free when that time is over. The time to live is the second word of the lease's id, or the second word of the holder's
-- entry if the lease is known by name.

local time = redis.call('TIME')
local now = time[1] * 1000 + (time[2] - time[2] % 1000) / 1000

-- Shortens leases that expire later than `ttl` from now, unless their own time to live is longer. A failure for lack of
-- memory is ignored.
local function shorten(key, ttl)
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

