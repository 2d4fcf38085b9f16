-- Expires the holds whose deadline has passed: their units go back to the pool. Bounded; may be run by anyone, any time.
--
-- KEYS     sale tickets buyers deadlines ledger
-- ARGV     floor: EPOCH-SEQUENCE, what the store is known to hold
-- Returns  {ok, now, epoch, sequence, expired, more_due, deadline}, or {missing|fenced|behind}. `expired` counts tickets,
--          `more_due` is 1 when more were due than one call may take, `deadline` is the next one or -1
-- Ledger   x ID LINES - EXPIRES_AT
--@include commit
--@include tickets
--@include sweep

local floor = ARGV[1]
local slot, refused = open_slot({
  sale = KEYS[1], tickets = KEYS[2], buyers = KEYS[3], deadlines = KEYS[4], ledger = KEYS[5],
}, floor)
if not slot then
  return { refused }
end
local expired = sweep(slot)
if slot.swept and #slot.dead_deadlines > 0 then
  commit(slot, true)
end
local head = redis.call('ZRANGE', slot.keys.deadlines, 0, 0, 'WITHSCORES')
return {
  OUTCOME.ok, slot.now, slot.epoch, slot.sequence, expired, slot.more_due and 1 or 0, tonumber(head[2] or '-1'),
}
