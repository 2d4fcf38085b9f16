-- Confirms reserved tickets: confirming is the payment, and reserved becomes purchased.
--
-- KEYS     sale tickets buyers deadlines ledger
-- ARGV     floor: EPOCH-SEQUENCE, what the store is known to hold
--          id (22)..., buyer (22)..., operation (22)..., payment...: a batch, as many of each. A payment is MODE and
--          REFERENCE without a space between; MODE is a where it is approved, d where it is declined
-- Returns  {ok, now, epoch, sequence, answer...}, or {missing|fenced|behind}. An answer is RECORD, as it was, of one that
--          is purchased now, or `replayed RECORD`, `unknown_ticket`, `not_your_ticket`, `idempotency_key_reused`,
--          `already_purchased RECORD`, `already_cancelled`, `ticket_expired EXPIRED_AT`, `payment_declined`
-- Ledger   p ID LINES OPERATION REFERENCE
--@include commit
--@include tickets

local floor = ARGV[1]
local slot, refused = open_slot({
  sale = KEYS[1], tickets = KEYS[2], buyers = KEYS[3], deadlines = KEYS[4], ledger = KEYS[5],
}, floor)
if not slot then
  return { refused }
end

local APPROVED = string.byte('a')

local function confirm(id, buyer, operation, payment)
  local record = slot.tickets[id]
  if not record then
    return OUTCOME.unknown_ticket
  end
  local approved, reference = string.byte(payment) == APPROVED, string.sub(payment, 2)
  local lines, expires_at, holder = held(record)
  if lines and holder == buyer and slot.now < expires_at and approved then
    end_ticket(slot, id, record, lines, buyer, 'p', whole(slot.now), operation, reference)
    return record
  end
  local ticket = ticket_of(record)
  if ticket.buyer ~= buyer then
    return OUTCOME.not_your_ticket
  end
  if ticket.status == 'p' then
    if ticket.operation ~= operation then
      return OUTCOME.already_purchased .. ' ' .. record
    elseif ticket.reference ~= reference or not approved then
      return OUTCOME.idempotency_key_reused
    end
    return OUTCOME.replayed .. ' ' .. record
  end
  if ticket.status == 'c' then
    return OUTCOME.already_cancelled
  end
  -- A deadline that has passed ends the hold, whether it has been swept or not.
  if ticket.status == 'x' or slot.now >= ticket.expires_at then
    return OUTCOME.ticket_expired .. ' ' .. whole(ticket.expires_at)
  end
  return OUTCOME.payment_declined
end

local size = (#ARGV - 1) / 4
load_tickets(slot, { unpack(ARGV, 2, size + 1) })
local reply = { OUTCOME.ok, slot.now, slot.epoch, 0 }
for i = 1, size do
  reply[4 + i] = confirm(ARGV[1 + i], ARGV[1 + size + i], ARGV[1 + 2 * size + i], ARGV[1 + 3 * size + i])
end
commit(slot, true)
reply[4] = slot.sequence
return reply
