-- Reads a part of a slot together with where the slot stands, at one instant: for an audit, which replays the ledger.
--
-- KEYS     sale tickets buyers
-- ARGV     what: scan, buyers or tickets; then for scan what HSCAN takes after the key, otherwise the names to read
-- Returns  {ok, epoch, sequence, counts, version, rules, transfers, cursor, name, value, name, value...}, or {missing|fenced}.
--          `value` is empty where there is nothing; of a buyer it is what they have, without the ids. `cursor` is where
--          the scan goes on, 0 at its end
-- Ledger   nothing
--@include outcomes
local keys = { sale = KEYS[1], tickets = KEYS[2], buyers = KEYS[3] }
local what = ARGV[1]
local field = redis.call('HMGET', keys.sale, 'fence', 'epoch', 'sequence', 'counts', 'version', 'rules',
  'transfers')
if field[1] then
  return { OUTCOME.fenced }
end
if not field[2] then
  return { OUTCOME.missing }
end
local reply = { OUTCOME.ok, field[2], field[3] or '', field[4] or '', field[5] or '', field[6] or '',
  field[7] or '', '0' }

local function add(name, value)
  if value and what ~= 'tickets' then
    value = string.match(value, '^%S*')
  end
  reply[#reply + 1] = name
  reply[#reply + 1] = value or ''
end

if what == 'scan' then
  local part = redis.call('HSCAN', keys.buyers, unpack(ARGV, 2))
  reply[8] = part[1]
  for at = 1, #part[2], 2 do
    add(part[2][at], part[2][at + 1])
  end
else
  local names, values = { unpack(ARGV, 2) }, nil
  if what == 'buyers' then
    values = redis.call('HMGET', keys.buyers, unpack(names))
  else
    values = redis.call('HMGET', keys.tickets, unpack(names))
  end
  for at = 1, #names do
    add(names[at], values[at])
  end
end
return reply
