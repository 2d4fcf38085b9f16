-- Confirms reserved tickets: confirming is the payment, and reserved becomes purchased.
--
-- KEYS     sale tickets buyers deadlines ledger
-- ARGV     floor: EPOCH-SEQUENCE, what the store is known to hold
--          entry...: a batch; each one MODE, ID (22), BUYER (22), OPERATION (22), REFERENCE without spaces between.
--          MODE is a where the payment is approved, d where it is declined
-- Returns  {ok, now, epoch, sequence, answer...}, or {missing|fenced|behind}. An answer is `ok RECORD`,
--          `replayed RECORD`, `unknown_ticket`, `not_your_ticket`, `idempotency_key_reused`,
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

local function confirm(mode, id, buyer, operation, reference)
  local record = slot.tickets[id]
  if not record then
    return OUTCOME.unknown_ticket
  end
  local ticket = ticket_of(record)
  if ticket.buyer ~= buyer then
    return OUTCOME.not_your_ticket
  end
  if ticket.status == 'p' then
    if ticket.operation ~= operation then
      return OUTCOME.already_purchased .. ' ' .. record
    elseif ticket.reference ~= reference or mode ~= 'a' then
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
  if mode ~= 'a' then
    return OUTCOME.payment_declined
  end
  return OUTCOME.ok .. ' ' .. end_ticket(slot, id, ticket, 'p', slot.now, operation, reference)
end

local ids = {}
for i = 2, #ARGV do
  ids[#ids + 1] = string.sub(ARGV[i], 2, 23)
end
load_tickets(slot, ids)
local reply = { OUTCOME.ok, slot.now, slot.epoch, 0 }
for i, id in ipairs(ids) do
  local entry = ARGV[i + 1]
  reply[#reply + 1] = confirm(string.sub(entry, 1, 1), id, string.sub(entry, 24, 45), string.sub(entry, 46, 67),
    string.sub(entry, 68))
end
commit(slot, true)
reply[4] = slot.sequence
return reply
