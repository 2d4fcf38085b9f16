-- Opens a rebuilt slot: sets its counters, raises its epoch, writes the first entry of the new epoch, lifts the fence.
--
-- KEYS     sale ledger
-- ARGV     token: the fence's; epoch: the new one; sequence: that of the entry written here; definition; origin; version;
--          rules; counts; dropped: 1 when the store may know tickets that are not here;
--          transfers: of a shard, empty where there are none
-- Returns  {ok}, or {fenced} where another holds the fence
-- Ledger   s DEFINITION
--@include fence
--@include clock
--@include numbers
local keys = { sale = KEYS[1], ledger = KEYS[2] }
local token, epoch, sequence, definition, origin, version = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local rules, counts, dropped, transfers = ARGV[7], ARGV[8], ARGV[9], ARGV[10]
if not holds_fence(keys.sale, token) then
  return { OUTCOME.fenced }
end
redis.call('XADD', keys.ledger, epoch .. '-' .. sequence, 'at', whole(clock()), 'd', 's ' .. definition)
redis.call('HSET', keys.sale, 'epoch', epoch, 'sequence', sequence, 'definition', definition, 'origin', origin,
  'version', version, 'rules', rules, 'counts', counts)
if dropped == '1' then
  redis.call('HSET', keys.sale, 'dropped', '1')
end
redis.call('HDEL', keys.sale, 'transfers')
if transfers ~= '' then
  redis.call('HSET', keys.sale, 'transfers', transfers)
end
redis.call('HDEL', keys.sale, 'fence')
return { OUTCOME.ok }
