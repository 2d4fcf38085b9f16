-- Pays for one ticket.
--
-- KEYS     sale tickets deadlines ledger lease
-- ARGV     id buyer
-- Returns  {'ok', now, quantity, reserved_at, expires_at}, or {why not}
local sale, tickets, deadlines, ledger, lease = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local id, buyer = ARGV[1], ARGV[2]
local record = redis.call('HGET', tickets, id)
if not record then
  return { 'unknown_ticket' }
end
local status, quantity, reserved_at, expires_at, owner = string.match(record, '^(%a) (%d+) (%d+) (%d+) (%S+)')
if owner ~= buyer then
  return { 'not_your_ticket' }
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if status ~= 'r' then
  return { 'already_ended' }
elseif now >= tonumber(expires_at) then
  return { 'ticket_expired' }
end
local now_text = string.format('%.0f', now)
redis.call('XADD', ledger, '*', 'k', 'p', 't', id, 'q', quantity)
redis.call('HINCRBY', sale, 'reserved', -tonumber(quantity))
redis.call('HINCRBY', sale, 'purchased', quantity)
redis.call('HSET', tickets, id,
  'p ' .. quantity .. ' ' .. reserved_at .. ' ' .. expires_at .. ' ' .. owner .. ' ' .. now_text)
redis.call('ZREM', deadlines, id)
redis.call('UNLINK', lease)
return { 'ok', now, tonumber(quantity), tonumber(reserved_at), tonumber(expires_at) }
