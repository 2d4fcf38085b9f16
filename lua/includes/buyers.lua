-- What each buyer holds and has bought, 'ITEM:QUANTITY,... IDS', where IDS are 22 characters each, newest last.
--@include slot
--@include lines

-- Ids kept per buyer: bounds the record at 11 KB; whoever has more finds the older ones in the store.
local BUYER_TICKETS_MAX = 512
local ID_LENGTH = 22

local function ids_of(packed)
  local ids = {}
  for at = 1, #packed, ID_LENGTH do
    ids[#ids + 1] = string.sub(packed, at, at + ID_LENGTH - 1)
  end
  return ids
end

local function load_buyers(slot, names)
  local wanted, seen = {}, {}
  for _, name in ipairs(names) do
    if not slot.buyers[name] and not seen[name] then
      seen[name] = true
      wanted[#wanted + 1] = name
    end
  end
  if #wanted == 0 then
    return
  end
  local records = redis.call('HMGET', slot.keys.buyers, unpack(wanted))
  for i, name in ipairs(wanted) do
    local buyer = { counts = {}, total = 0, ids = '' }
    if records[i] then
      local counts, ids = string.match(records[i], '^(%S+) (.*)$')
      local lines
      lines, buyer.total = lines_of(counts)
      for _, line in ipairs(lines) do
        buyer.counts[line.item] = line.quantity
      end
      buyer.packed = counts
      buyer.ids = ids
    end
    slot.buyers[name] = buyer
  end
end

local function touch_buyer(slot, name)
  local buyer = slot.buyers[name]
  if not buyer.changed then
    buyer.changed = true
    slot.changed_buyers[#slot.changed_buyers + 1] = name
  end
  return buyer
end

-- Adds `sign` times the lines of a ticket to what the buyer has.
local function count_for_buyer(slot, name, packed, sign)
  local buyer, lines = touch_buyer(slot, name), lines_of(packed)
  local counts = buyer.counts
  -- Who had nothing has just these lines now; otherwise the counts are packed anew by commit_buyers().
  buyer.packed = buyer.total == 0 and sign > 0 and packed or nil
  for i = 1, #lines do
    local item = lines[i].item
    counts[item] = (counts[item] or 0) + sign * lines[i].quantity
  end
  buyer.total = buyer.total + sign * lines.total
  return buyer
end

local function remember_ticket(buyer, id)
  buyer.ids = buyer.ids .. id
  if #buyer.ids > BUYER_TICKETS_MAX * ID_LENGTH then
    buyer.ids = string.sub(buyer.ids, -BUYER_TICKETS_MAX * ID_LENGTH)
  end
end

local function forget_ticket(slot, name, id)
  local buyer = touch_buyer(slot, name)
  for at = 1, #buyer.ids, ID_LENGTH do
    if string.sub(buyer.ids, at, at + ID_LENGTH - 1) == id then
      buyer.ids = string.sub(buyer.ids, 1, at - 1) .. string.sub(buyer.ids, at + ID_LENGTH)
      return
    end
  end
end

-- What the buyer has as lines, or '-'.
local function pack_counts(slot, buyer)
  local counts = {}
  if buyer.total > 0 then
    for item = 1, #slot.counts / 3 do
      local units = buyer.counts[item]
      if units and units > 0 then
        counts[#counts + 1] = whole(item) .. ':' .. whole(units)
      end
    end
  end
  return #counts > 0 and table.concat(counts, ',') or '-'
end

local function commit_buyers(slot)
  local pairs_out, gone = {}, {}
  for _, name in ipairs(slot.changed_buyers) do
    local buyer = slot.buyers[name]
    local packed = buyer.packed or pack_counts(slot, buyer)
    if packed == '-' and buyer.ids == '' then
      gone[#gone + 1] = name
    else
      local at = #pairs_out
      pairs_out[at + 1] = name
      pairs_out[at + 2] = packed .. ' ' .. buyer.ids
    end
  end
  if #pairs_out > 0 then
    redis.call('HSET', slot.keys.buyers, unpack(pairs_out))
  end
  if #gone > 0 then
    redis.call('HDEL', slot.keys.buyers, unpack(gone))
  end
end
