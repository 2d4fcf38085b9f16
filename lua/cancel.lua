-- Cancels reserved tickets: their units go back to the pool at once.
--
-- KEYS     sale tickets buyers deadlines ledger
-- ARGV     floor: EPOCH-SEQUENCE, what the store is known to hold
--          id..., buyer..., operation...: a batch, as many of each, all of 22 characters
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
  local lines, expires_at, holder = held(record)
  if lines and holder == buyer and slot.now < expires_at then
    return OUTCOME.ok .. ' ' .. end_ticket(slot, id, record, lines, buyer, 'c', whole(slot.now), operation, '')
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
  return OUTCOME.ticket_expired .. ' ' .. whole(ticket.expires_at)
end

local size = (#ARGV - 1) / 3
load_tickets(slot, { unpack(ARGV, 2, size + 1) })
load_buyers(slot, { unpack(ARGV, size + 2, 2 * size + 1) })
local reply = { OUTCOME.ok, slot.now, slot.epoch, 0 }
for i = 1, size do
  reply[4 + i] = cancel(ARGV[1 + i], ARGV[1 + size + i], ARGV[1 + 2 * size + i])
end
commit(slot, true)
reply[4] = slot.sequence
return reply
