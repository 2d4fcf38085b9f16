-- Lends units to another shard of the sale: what is available here is in transit until the other has received it.
-- More than is needed, up to half of what there is, so that the other does not have to ask again so soon.
--
-- KEYS     sale tickets buyers deadlines ledger
-- ARGV     floor: EPOCH-SEQUENCE, what the store is known to hold; borrower: number of the shard that asks;
--          wanted: LINES, of each item the units that are needed
-- Returns  {ok|replayed, number, lines}, or {missing|fenced|behind}. replayed is the last transfer to this borrower,
--          told again, where it is not settled yet; `lines` are empty where there is nothing to give
-- Ledger   t lent BORROWER NUMBER LINES TRANSFERS; x as in expire, for holds that had run out
--@include commit
--@include sweep
--@include lines
--@include transfers

local floor, borrower, wanted = ARGV[1], ARGV[2], ARGV[3]
local slot, refused = open_slot({
  sale = KEYS[1], tickets = KEYS[2], buyers = KEYS[3], deadlines = KEYS[4], ledger = KEYS[5],
}, floor)
if not slot then
  return { refused }
end
local counts, transfers = slot.counts, transfers_of(slot)
local last = transfers.out[borrower] or { number = 0 }
if last.lines then
  return { OUTCOME.replayed, last.number, last.lines }
end
local needed, given = lines_of(wanted), {}
for i = 1, #needed do
  if (counts[3 * needed[i].item - 2] or 0) < needed[i].quantity then
    -- Holds that have run out may be what is missing.
    sweep(slot)
  end
end
for i = 1, #needed do
  local item, available = needed[i].item, counts[3 * needed[i].item - 2] or 0
  local units = math.min(available, math.max(needed[i].quantity, math.floor(available / 2)))
  if units > 0 then
    given[#given + 1] = whole(item) .. ':' .. whole(units)
  end
end
local packed = table.concat(given, ',')
if packed ~= '' then
  local number = last.number + 1
  move(slot, transfers, lines_of(packed), 1)
  transfers.out[borrower] = { number = number, lines = packed }
  local text = borrower .. ' ' .. whole(number) .. ' ' .. packed .. ' ' .. write_transfers(slot, transfers)
  log_line(slot, 't ' .. 'lent ' .. text)
  last = transfers.out[borrower]
end
commit(slot)
return { OUTCOME.ok, last.number, packed }
