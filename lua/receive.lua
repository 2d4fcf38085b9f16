-- Receives what another shard of the sale has lent: units in transit become available here.
-- Running it again changes nothing.
--
-- KEYS     sale ledger
-- ARGV     floor: EPOCH-SEQUENCE, what the store is known to hold; lender: number of the shard that gives;
--          number: of the transfer between these two; packed: its LINES
-- Returns  {ok|replayed}, or {missing|fenced|behind}: behind also where the transfer before this one is not known
-- Ledger   t received LENDER NUMBER LINES TRANSFERS
--@include commit
--@include lines
--@include ledger
--@include transfers

local floor, lender, number, packed = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local slot, refused = open_slot({ sale = KEYS[1], ledger = KEYS[2] }, floor)
if not slot then
  return { refused }
end
local transfers, lines = transfers_of(slot), lines_of(packed)
local last = transfers.into[lender] or 0
if number <= last then
  return { OUTCOME.replayed }
end
-- An item that is not here was added by an amendment that this shard should have had before it asked.
if number > last + 1 or lines[#lines].item > #slot.counts / 3 then
  return { OUTCOME.behind }
end
move(slot, transfers, lines, -1)
transfers.into[lender] = number
log_line(slot, 't ' .. 'received ' .. lender .. ' ' .. whole(number) .. ' ' .. packed .. ' '
  .. write_transfers(slot, transfers))
commit(slot, true)
return { OUTCOME.ok }
