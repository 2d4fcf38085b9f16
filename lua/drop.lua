-- Drops ended tickets that the store has and that nobody will repeat a call for. Counters and limits stay as they are.
--
-- KEYS     sale tickets buyers
-- ARGV     floor: EPOCH-SEQUENCE, what the store is known to hold; cursor: sequence that the store has committed;
--          before: milliseconds, only what ended by then goes; id...: 22 characters each
-- Returns  {ok, dropped}, or {missing|fenced|behind}
-- Ledger   nothing
--@include commit
--@include tickets

local floor, cursor, before = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local slot, refused = open_slot({ sale = KEYS[1], tickets = KEYS[2], buyers = KEYS[3] }, floor)
if not slot then
  return { refused }
end
local ids, names, leaving = {}, {}, {}
for i = 4, #ARGV do
  ids[#ids + 1] = ARGV[i]
end
load_tickets(slot, ids)
for _, id in ipairs(ids) do
  local record = slot.tickets[id]
  local ticket = record and ticket_of(record)
  if ticket and ticket.status ~= 'r' and ticket.sequence <= cursor and ticket.ended_at <= before then
    leaving[#leaving + 1] = { id = id, buyer = ticket.buyer }
    names[#names + 1] = ticket.buyer
  end
end
if #leaving > 0 then
  load_buyers(slot, names)
  -- A deletion first: memory may be full, which is when dropping is needed most.
  redis.call('HDEL', slot.keys.sale, '-')
  if not slot.dropped then
    -- From now on a missing record may be an old ticket: said before the first one leaves.
    redis.call('HSET', slot.keys.sale, 'dropped', '1')
  end
  for _, entry in ipairs(leaving) do
    slot.dropped_tickets[#slot.dropped_tickets + 1] = entry.id
    forget_ticket(slot, entry.buyer, entry.id)
  end
  commit(slot)
end
return { OUTCOME.ok, #leaving }
