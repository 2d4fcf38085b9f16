-- Expires what is due, a bounded number at a time.
--
-- KEYS     sale tickets buyers deadlines ledger
-- ARGV     most: tickets in one call
-- Returns  how many
local sale, tickets, buyers, deadlines, ledger = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local time = redis.call('TIME')
local now = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
local due = redis.call('ZRANGEBYSCORE', deadlines, '-inf', now, 'LIMIT', 0, ARGV[1])
for _, id in ipairs(due) do
  local record = redis.call('HGET', tickets, id)
  local quantity, buyer = string.match(record, '^r (%d+) %d+ %d+ (%S+)')
  redis.call('XADD', ledger, '*', 'k', 'x', 't', id, 'q', quantity)
  redis.call('HINCRBY', sale, 'available', quantity)
  redis.call('HINCRBY', sale, 'reserved', -tonumber(quantity))
  redis.call('HINCRBY', buyers, buyer, -tonumber(quantity))
  redis.call('HSET', tickets, id, 'x' .. string.sub(record, 2))
  redis.call('ZREM', deadlines, id)
end
return #due
