-- Creates a sale in its slot, with all its units available. Running it again changes nothing.
--
-- KEYS     sale ledger
-- ARGV     definition: JSON, kept for readers; origin: digest of what was asked for; rules; counts
-- Returns  {ok|replayed|sale_exists|fenced}: replayed where this very sale stands already
-- Ledger   s DEFINITION
--@include outcomes
--@include clock
--@include numbers

local keys = { sale = KEYS[1], ledger = KEYS[2] }
local definition, origin, rules, counts = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local field = redis.call('HMGET', keys.sale, 'fence', 'epoch', 'origin')
if field[1] then
  return { OUTCOME.fenced }
end
if field[2] then
  return { field[3] == origin and OUTCOME.replayed or OUTCOME.sale_exists }
end
redis.call('XADD', keys.ledger, '1-1', 'at', whole(clock()), 'd', 's ' .. definition)
redis.call('HSET', keys.sale, 'epoch', '1', 'sequence', '1', 'definition', definition, 'origin', origin, 'version', '1',
  'rules', rules, 'counts', counts)
return { OUTCOME.ok }
