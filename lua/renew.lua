-- Marks a slot with the history of the server that has it, and raises its epoch where that is another than before.
-- A failover or a restart may have lost transitions: their numbers are then never used again, and a primary that was cut
-- off and goes on in the epoch before is behind the store as soon as this one has been copied. Running it again changes
-- nothing.
--
-- KEYS     sale ledger
-- ARGV     floor: EPOCH-SEQUENCE, what the store is known to hold; reign: what the server calls its history
-- Returns  {ok, epoch, sequence}, or {missing|fenced|behind}
-- Ledger   s DEFINITION
--@include slot

local floor, reign = ARGV[1], ARGV[2]
local slot, refused = open_slot({ sale = KEYS[1], ledger = KEYS[2] }, floor)
if not slot then
  return { refused }
end
local field = redis.call('HMGET', slot.keys.sale, 'reign', 'definition')
if field[1] ~= reign then
  if field[1] then
    slot.epoch, slot.sequence = slot.epoch + 1, slot.sequence + 1
    local id = whole(slot.epoch) .. '-' .. whole(slot.sequence)
    redis.call('XADD', slot.keys.ledger, id, 'at', whole(slot.now), 'd', 's ' .. field[2])
  end
  redis.call('HSET', slot.keys.sale, 'epoch', whole(slot.epoch), 'sequence', whole(slot.sequence), 'reign', reign)
end
return { OUTCOME.ok, slot.epoch, slot.sequence }
