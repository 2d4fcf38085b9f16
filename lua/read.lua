-- Reads tickets and the clock at one instant.
--
-- KEYS     sale tickets
-- ARGV     floor: EPOCH-SEQUENCE, what the store is known to hold; id...: 22 characters each
-- Returns  {ok, now, record or nothing...} in the order asked for, or {missing|fenced|behind}
-- Ledger   nothing
--@include slot
--@include tickets

local floor = ARGV[1]
local slot, refused = open_slot({ sale = KEYS[1], tickets = KEYS[2] }, floor)
if not slot then
  return { refused }
end
local ids = {}
for i = 2, #ARGV do
  ids[#ids + 1] = ARGV[i]
end
load_tickets(slot, ids)
local reply = { OUTCOME.ok, slot.now }
for _, id in ipairs(ids) do
  reply[#reply + 1] = slot.tickets[id]
end
return reply
