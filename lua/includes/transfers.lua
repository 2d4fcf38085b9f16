-- What a shard has lent and borrowed: JSON in the sale's hash, and absent where nothing ever was.
--
-- steps  how often it has changed: of two that are known of one shard, the one with more is the newer
-- lent   of each item, the units sent to other shards less those received from them
-- out    by number of the borrower, the last transfer to it: its `number`, and its `lines` until it is settled
-- into   by number of the lender, the number of the last transfer received from it
--@include slot

local function transfers_of(slot)
  local packed = redis.call('HGET', slot.keys.sale, 'transfers')
  local transfers = packed and cjson.decode(packed) or { steps = 0, lent = {}, out = {}, into = {} }
  for item = 1, #slot.counts / 3 do
    transfers.lent[item] = transfers.lent[item] or 0
  end
  return transfers
end

-- Moves units of these lines away from here; with a negative sign, to here.
local function move(slot, transfers, lines, sign)
  for i = 1, #lines do
    local item, units = lines[i].item, sign * lines[i].quantity
    slot.counts[3 * item - 2] = slot.counts[3 * item - 2] - units
    transfers.lent[item] = transfers.lent[item] + units
  end
end

-- Has commit() write them; their text, for the ledger.
local function write_transfers(slot, transfers)
  transfers.steps = transfers.steps + 1
  local packed, fields = cjson.encode(transfers), slot.sale_fields
  fields[#fields + 1] = 'transfers'
  fields[#fields + 1] = packed
  return packed
end
