-- The script of the peers that make one call per request: one reservation with everything that Holdfast's has: a limit
-- per buyer, a stock counter, a ticket with a deadline, an index of deadlines, a ledger entry, a lease.
--
-- KEYS     sale tickets buyers deadlines ledger lease
-- ARGV     id buyer quantity
-- Returns  {'ok', now, expires_at}, {'limit_reached', remaining}, {'sold_out', available}, {'all_held', available},
--          or {'unknown_sale'}
local sale, tickets, buyers, deadlines, ledger, lease = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local id, buyer, quantity = ARGV[1], ARGV[2], tonumber(ARGV[3])
local state = redis.call('HMGET', sale, 'available', 'reserved', 'hold_ms', 'max_per_buyer')
if not state[1] then
  return { 'unknown_sale' }
end
local available, limit = tonumber(state[1]), tonumber(state[4])
local has = tonumber(redis.call('HGET', buyers, buyer) or '0')
if limit > 0 and has + quantity > limit then
  return { 'limit_reached', math.max(0, limit - has) }
end
if available < quantity then
  return { available + tonumber(state[2]) < quantity and 'sold_out' or 'all_held', available }
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local expires_at = now + tonumber(state[3])
local now_text, expires_text = string.format('%.0f', now), string.format('%.0f', expires_at)
redis.call('XADD', ledger, '*', 'k', 'r', 't', id, 'q', ARGV[3], 'b', buyer, 'e', expires_text)
redis.call('HINCRBY', sale, 'available', -quantity)
redis.call('HINCRBY', sale, 'reserved', quantity)
redis.call('HINCRBY', buyers, buyer, quantity)
redis.call('HSET', tickets, id, 'r ' .. ARGV[3] .. ' ' .. now_text .. ' ' .. expires_text .. ' ' .. buyer)
redis.call('ZADD', deadlines, expires_text, id)
redis.call('SET', lease, '', 'PXAT', expires_text)
return { 'ok', now, expires_at }
