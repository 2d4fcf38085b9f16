-- Reads the tickets of one buyer that Redis still knows, and the clock, at one instant.
--
-- KEYS     sale tickets buyers
-- ARGV     floor: EPOCH-SEQUENCE, what the store is known to hold; buyer: 22 characters
-- Returns  {ok, now, id, record, id, record...}, oldest first, or {missing|fenced|behind}
-- Ledger   nothing
--@include slot
--@include tickets

local floor, buyer = ARGV[1], ARGV[2]
local slot, refused = open_slot({ sale = KEYS[1], tickets = KEYS[2], buyers = KEYS[3] }, floor)
if not slot then
  return { refused }
end
load_buyers(slot, { buyer })
local ids = ids_of(buyer_of(slot, buyer).ids)
load_tickets(slot, ids)
local reply = { OUTCOME.ok, slot.now }
for _, id in ipairs(ids) do
  if slot.tickets[id] then
    reply[#reply + 1] = id
    reply[#reply + 1] = slot.tickets[id]
  end
end
return reply
