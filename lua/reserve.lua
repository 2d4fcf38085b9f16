-- Reserves units for buyers until a common deadline, ticket by ticket in the order given.
--
-- KEYS     sale tickets buyers deadlines ledger
-- ARGV     floor: EPOCH-SEQUENCE, what the store is known to hold
--          entry...: a batch; each one FLAG, ID (22), BUYER (22), LINES without spaces between. FLAG is n for an id
--          made at random, k for one derived from a key, s for one derived from a key and looked up in the store in vain
-- Returns  {ok, now, expires_at, epoch, sequence, answer...}, or {missing|fenced|behind}. An answer is `ok`,
--          `replayed RECORD`, `idempotency_key_reused`, `check_store`, `sweep_first`, `unknown_item`,
--          `not_yet_open OPENS_AT`, `closed`, `limit_reached ITEM REMAINING` (item 0: the sale's own limit),
--          `sold_out ITEM AVAILABLE`, `all_held ITEM AVAILABLE DEADLINE`
-- Ledger   r ID LINES BUYER EXPIRES_AT; x as in expire, for holds that had run out
--@include commit
--@include tickets
--@include sweep

local floor = ARGV[1]
local slot, refused = open_slot({
  sale = KEYS[1], tickets = KEYS[2], buyers = KEYS[3], deadlines = KEYS[4], ledger = KEYS[5],
}, floor)
if not slot then
  return { refused }
end
local rules, counts, now = slot.rules, slot.counts, slot.now
local max_per_buyer, opens_at, closes_at = rules[2], rules[3], rules[4]
local items = #counts / 3
local expires_at = now + rules[1]
-- Formatted once: every ticket of the call has the same.
local now_text, expires_text = whole(now), whole(expires_at)
local new_tickets = {}

-- Why the lines cannot be had, or nil. A limit comes before stock; for good comes before for now.
local function shortage(buyer, lines)
  if max_per_buyer > 0 and buyer.total + lines.total > max_per_buyer then
    return OUTCOME.limit_reached, 0, math.max(0, max_per_buyer - buyer.total)
  end
  for i = 1, #lines do
    local line = lines[i]
    local item_max = rules[4 + line.item]
    if item_max > 0 then
      local had = buyer.counts[line.item] or 0
      if had + line.quantity > item_max then
        return OUTCOME.limit_reached, line.item, math.max(0, item_max - had)
      end
    end
  end
  local held_item, held_available
  for i = 1, #lines do
    local line = lines[i]
    local available = counts[3 * line.item - 2]
    if available < line.quantity then
      if available + counts[3 * line.item - 1] < line.quantity then
        return OUTCOME.sold_out, line.item, available
      elseif not held_item then
        held_item, held_available = line.item, available
      end
    end
  end
  if held_item then
    return OUTCOME.all_held, held_item, held_available
  end
end

local function reserve(flag, id, name, packed)
  local record = slot.tickets[id]
  if record then
    local ticket = ticket_of(record)
    if ticket.buyer ~= name or ticket.lines ~= packed then
      return OUTCOME.idempotency_key_reused
    end
    return OUTCOME.replayed .. ' ' .. record
  end
  if flag == 'k' and slot.dropped then
    return OUTCOME.check_store
  end
  local lines = lines_of(packed)
  -- Sorted by item: the last is the highest.
  if lines[#lines].item > items then
    return OUTCOME.unknown_item
  end
  if opens_at > 0 and now < opens_at then
    return OUTCOME.not_yet_open .. ' ' .. whole(opens_at)
  end
  if closes_at > 0 and now >= closes_at then
    return OUTCOME.closed
  end
  local buyer = slot.buyers[name]
  local why, item, left = shortage(buyer, lines)
  if why and why ~= OUTCOME.sold_out then
    -- Holds that have run out may be what is missing.
    if sweep(slot) > 0 then
      why, item, left = shortage(buyer, lines)
    end
    if why and why ~= OUTCOME.sold_out and slot.more_due then
      return OUTCOME.sweep_first
    end
  end
  if why then
    local answer = why .. ' ' .. whole(item) .. ' ' .. whole(left)
    return why == OUTCOME.all_held and answer .. ' ' .. whole(next_deadline(slot)) or answer
  end
  for i = 1, #lines do
    local at, quantity = 3 * lines[i].item, lines[i].quantity
    counts[at - 2] = counts[at - 2] - quantity
    counts[at - 1] = counts[at - 1] + quantity
  end
  remember_ticket(count_for_buyer(slot, name, packed, 1), id)
  change_ticket(slot, id, 'r ' .. packed .. ' ' .. now_text .. ' ' .. expires_text .. ' ' .. name)
  slot.ledger[#slot.ledger + 1] = 'r ' .. id .. ' ' .. packed .. ' ' .. name .. ' ' .. expires_text
  new_tickets[#new_tickets + 1] = id
  slot.new_tickets, slot.new_deadline = new_tickets, expires_at
  return OUTCOME.ok
end

local ids, names = {}, {}
for i = 2, #ARGV do
  ids[#ids + 1] = string.sub(ARGV[i], 2, 23)
  names[#names + 1] = string.sub(ARGV[i], 24, 45)
end
load_tickets(slot, ids)
load_buyers(slot, names)
local reply = { OUTCOME.ok, now, expires_at, slot.epoch, 0 }
for i, id in ipairs(ids) do
  local entry = ARGV[i + 1]
  reply[#reply + 1] = reserve(string.sub(entry, 1, 1), id, names[i], string.sub(entry, 46))
end
commit(slot)
reply[5] = slot.sequence
return reply
