-- Cancels reserved tickets: their units go back to the pool at once.
--
-- KEYS     sale tickets buyers deadlines ledger
-- ARGV     floor: EPOCH-SEQUENCE, what the store is known to hold
--          entry...: a batch; each one ID (22), BUYER (22), OPERATION (22) without spaces between
-- Returns  {ok, now, epoch, sequence, answer...}, or {missing|fenced|behind}. An answer is `ok RECORD`,
--          `replayed RECORD` (cancelled before, by whatever operation), `unknown_ticket`, `not_your_ticket`,
--          `already_purchased RECORD`, `ticket_expired EXPIRED_AT`
-- Ledger   c ID LINES OPERATION
--@include commit
--@include tickets

local floor = ARGV[1]
local slot, refused = open_slot({
  sale = KEYS[1], tickets = KEYS[2], buyers = KEYS[3], deadlines = KEYS[4], ledger = KEYS[5],
}, floor)
if not slot then
  return { refused }
end

local function cancel(id, buyer, operation)
  local record = slot.tickets[id]
  if not record then
    return OUTCOME.unknown_ticket
  end
  local ticket = ticket_of(record)
  if ticket.buyer ~= buyer then
    return OUTCOME.not_your_ticket
  end
  if ticket.status == 'c' then
    return OUTCOME.replayed .. ' ' .. record
  end
  if ticket.status == 'p' then
    return OUTCOME.already_purchased .. ' ' .. record
  end
  if ticket.status == 'x' or slot.now >= ticket.expires_at then
    return OUTCOME.ticket_expired .. ' ' .. whole(ticket.expires_at)
  end
  return OUTCOME.ok .. ' ' .. end_ticket(slot, id, ticket, 'c', slot.now, operation, '')
end

local ids, names = {}, {}
for i = 2, #ARGV do
  ids[#ids + 1] = string.sub(ARGV[i], 1, 22)
  names[#names + 1] = string.sub(ARGV[i], 23, 44)
end
load_tickets(slot, ids)
load_buyers(slot, names)
local reply = { OUTCOME.ok, slot.now, slot.epoch, 0 }
for i, id in ipairs(ids) do
  reply[#reply + 1] = cancel(id, names[i], string.sub(ARGV[i + 1], 45, 66))
end
commit(slot, true)
reply[4] = slot.sequence
return reply
