-- What each buyer holds and has bought, 'ITEM:QUANTITY,... IDS', where IDS are 22 characters each, newest last.
--
-- slot.buyers has each as the text that Redis keeps (false where there is none), and as a table once it had to be read.
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
  local buyers, wanted, n = slot.buyers, {}, 0
  for i = 1, #names do
    local name = names[i]
    if buyers[name] == nil then
      buyers[name] = false
      n = n + 1
      wanted[n] = name
    end
  end
  if n == 0 then
    return
  end
  local records = redis.call('HMGET', slot.keys.buyers, unpack(wanted))
  for i = 1, n do
    buyers[wanted[i]] = records[i]
  end
end

-- The buyer as {counts, total, ids}; loaded before.
local function buyer_of(slot, name)
  local buyer = slot.buyers[name]
  if type(buyer) == 'table' then
    return buyer
  end
  local read = { counts = {}, total = 0, ids = '' }
  if buyer then
    local counts, ids = string.match(buyer, '^(%S+) (.*)$')
    local lines
    lines, read.total = lines_of(counts)
    for _, line in ipairs(lines) do
      read.counts[line.item] = line.quantity
    end
    read.packed = counts
    read.ids = ids
  end
  slot.buyers[name] = read
  return read
end

-- Says that the buyer is to be written; more than once does no harm.
local function write_buyer(slot, name)
  local changed = slot.changed_buyers
  changed.n = changed.n + 1
  changed[changed.n] = name
end

-- Adds `sign` times the lines of a ticket to what the buyer has.
local function count_for_buyer(slot, name, packed, sign)
  local buyer, lines = buyer_of(slot, name), lines_of(packed)
  local counts = buyer.counts
  -- Who had nothing has just these lines now; otherwise the counts are packed anew by commit_buyers().
  buyer.packed = buyer.total == 0 and sign > 0 and packed or nil
  for i = 1, #lines do
    local item = lines[i].item
    counts[item] = (counts[item] or 0) + sign * lines[i].quantity
  end
  buyer.total = buyer.total + sign * lines.total
  write_buyer(slot, name)
  return buyer
end

-- A ticket of a buyer: its lines count, and its id is the newest.
local function give_to_buyer(slot, name, packed, id)
  if not slot.buyers[name] then
    -- Who comes for the first time needs nothing read: in a stampede nearly all do.
    slot.buyers[name] = packed .. ' ' .. id
    return write_buyer(slot, name)
  end
  local buyer = count_for_buyer(slot, name, packed, 1)
  buyer.ids = buyer.ids .. id
  if #buyer.ids > BUYER_TICKETS_MAX * ID_LENGTH then
    buyer.ids = string.sub(buyer.ids, -BUYER_TICKETS_MAX * ID_LENGTH)
  end
end

-- A ticket that has ended unpaid: its lines count no longer, its id stays.
local function take_from_buyer(slot, name, packed, id)
  if slot.buyers[name] == packed .. ' ' .. id then
    -- It was all that the buyer had: nothing needs to be read.
    slot.buyers[name] = '- ' .. id
    return write_buyer(slot, name)
  end
  count_for_buyer(slot, name, packed, -1)
end

local function forget_ticket(slot, name, id)
  local buyer = buyer_of(slot, name)
  write_buyer(slot, name)
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
  local buyers, changed, pairs_out, gone = slot.buyers, slot.changed_buyers, slot.buyer_writes, {}
  local n = pairs_out.n
  for i = 1, changed.n do
    local name = changed[i]
    local buyer = buyers[name]
    if type(buyer) == 'table' and not buyer.done then
      buyer.done = true
      local packed = buyer.packed or pack_counts(slot, buyer)
      if packed == '-' and buyer.ids == '' then
        gone[#gone + 1] = name
        buyer = nil
      else
        buyer = packed .. ' ' .. buyer.ids
      end
    end
    if type(buyer) == 'string' then
      pairs_out[n + 1], pairs_out[n + 2] = name, buyer
      n = n + 2
    end
  end
  if n > 0 then
    redis.call('HSET', slot.keys.buyers, unpack(pairs_out, 1, n))
  end
  if #gone > 0 then
    redis.call('HDEL', slot.keys.buyers, unpack(gone))
  end
end
