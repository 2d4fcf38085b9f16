-- Settles a transfer that the borrower has received for good: from then on it may be lent to again.
-- Running it again changes nothing.
--
-- KEYS     sale ledger
-- ARGV     floor: EPOCH-SEQUENCE, what the store is known to hold; borrower: number of the shard that has received;
--          number: of the transfer between these two
-- Returns  {ok|replayed}, or {missing|fenced|behind}
-- Ledger   t settled BORROWER NUMBER LINES TRANSFERS
--@include commit
--@include ledger
--@include transfers

local floor, borrower, number = ARGV[1], ARGV[2], tonumber(ARGV[3])
local slot, refused = open_slot({ sale = KEYS[1], ledger = KEYS[2] }, floor)
if not slot then
  return { refused }
end
local transfers = transfers_of(slot)
local last = transfers.out[borrower]
if not last or last.number ~= number or not last.lines then
  return { OUTCOME.replayed }
end
local packed = last.lines
transfers.out[borrower] = { number = number }
log_line(slot, 't ' .. 'settled ' .. borrower .. ' ' .. whole(number) .. ' ' .. packed .. ' '
  .. write_transfers(slot, transfers))
commit(slot, true)
return { OUTCOME.ok }
