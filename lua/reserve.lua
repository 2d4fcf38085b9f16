-- Reserves units for buyers until a common deadline, ticket by ticket in the order given.
--
-- KEYS     sale tickets buyers deadlines ledger
-- ARGV     floor: EPOCH-SEQUENCE, what the store is known to hold
--          id (22)..., buyer (22)..., order...: a batch, as many of each. An order is FLAG and LINES without a space
--          between; FLAG is n for an id just made at random, which is nobody's and not looked up, k for one derived from
--          a key, s for one that may have been sent before, and that the store does not know
-- Returns  {ok, now, expires_at, epoch, sequence, answer...}, or {missing|fenced|behind}. An answer is `ok`,
--          `replayed RECORD`, `idempotency_key_reused`, `check_store`, `sweep_first`, `unknown_item`,
--          `not_yet_open OPENS_AT`, `closed`, `limit_reached ITEM REMAINING` (item 0: the sale's own limit),
--          `sold_out ITEM AVAILABLE`, `all_held ITEM AVAILABLE DEADLINE`
-- Ledger   r LINES EXPIRES_AT IDBUYERIDBUYER...; x as in expire, for holds that had run out
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
local expires_at = now + rules[1]
-- Formatted once: every ticket of the call has the same.
local now_text, expires_text = whole(now), whole(expires_at)
local NOBODY = { total = 0, counts = {} }
local new_tickets, new = {}, 0

-- Why nothing can be had now, whoever asks; or nil.
local window
if opens_at > 0 and now < opens_at then
  window = OUTCOME.not_yet_open .. ' ' .. whole(opens_at)
elseif closes_at > 0 and now >= closes_at then
  window = OUTCOME.closed
end

-- The limit that these lines would break, by its item (0 is the sale's own), and what is left of it; or nil.
local function over_limit(buyer, lines)
  if max_per_buyer > 0 and buyer.total + lines.total > max_per_buyer then
    return 0, math.max(0, max_per_buyer - buyer.total)
  end
  for i = 1, #lines do
    local item, quantity = lines[i].item, lines[i].quantity
    local item_max = rules[4 + item]
    if item_max > 0 then
      local had = buyer.counts[item] or 0
      if had + quantity > item_max then
        return item, math.max(0, item_max - had)
      end
    end
  end
end

-- Why the stock does not give these lines, or nil. For good comes before for now.
local function shortage(lines)
  local held_item, held_available
  for i = 1, #lines do
    local item, quantity = lines[i].item, lines[i].quantity
    local available = counts[3 * item - 2]
    if available < quantity then
      if available + counts[3 * item - 1] < quantity then
        return OUTCOME.sold_out, item, available
      elseif not held_item then
        held_item, held_available = item, available
      end
    end
  end
  if held_item then
    return OUTCOME.all_held, held_item, held_available
  end
end

-- An order read, with what is the same for all who give it: worked out once, since in a stampede nearly all do.
local orders = {}

local function order_of(text)
  local order = orders[text]
  if not order then
    local packed = string.sub(text, 2)
    local lines = lines_of(packed)
    order = { flag = string.sub(text, 1, 1), packed = packed, lines = lines }
    order.record = 'r ' .. packed .. ' ' .. now_text .. ' ' .. expires_text .. ' '
    order.first_of_buyer = packed .. ' '
    -- Sorted by item: the last is the highest.
    order.refusal = lines[#lines].item > #counts / 3 and OUTCOME.unknown_item or window
    if not order.refusal then
      order.limit_item, order.limit_left = over_limit(NOBODY, lines)
    end
    order.plain = #lines == 1 and not order.refusal and not order.limit_item and not (order.flag == 'k' and slot.dropped)
    orders[text] = order
  end
  return order
end

-- Why this buyer cannot have what is ordered, or nil. A limit comes before stock.
local function why_not(name, order)
  local item, left
  if slot.buyers[name] then
    item, left = over_limit(buyer_of(slot, name), order.lines)
  else
    item, left = order.limit_item, order.limit_left
  end
  if item then
    return OUTCOME.limit_reached, item, left
  end
  return shortage(order.lines)
end

local function reserve(id, name, order)
  local packed, lines = order.packed, order.lines
  local record = slot.tickets[id]
  if record then
    local ticket = ticket_of(record)
    if ticket.buyer ~= name or ticket.lines ~= packed then
      return OUTCOME.idempotency_key_reused
    end
    return OUTCOME.replayed .. ' ' .. record
  end
  if order.flag == 'k' and slot.dropped then
    return OUTCOME.check_store
  end
  if order.refusal then
    return order.refusal
  end
  local why, item, left = why_not(name, order)
  if why and why ~= OUTCOME.sold_out then
    -- Holds that have run out may be what is missing.
    if sweep(slot) > 0 then
      why, item, left = why_not(name, order)
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
  give_to_buyer(slot, name, packed, id)
  write_ticket(slot, id, order.record .. name)
  log_reservation(slot, packed, expires_text, id, name)
  new = new + 1
  new_tickets[new] = id
  slot.new_deadline = expires_at
  return OUTCOME.ok
end

local size = (#ARGV - 1) / 3
local args, names_at, orders_at = ARGV, 1 + size, 1 + 2 * size
local reply = { OUTCOME.ok, now, expires_at, slot.epoch, 0 }

-- Reserves from the `from`-th on those who give the same order of one item, come for the first time and find stock: what
-- reserve() does, without what cannot be the case. In a stampede that is nearly everybody, and it halves the time.
-- Returns the first of whom it is not true.
local function reserve_plain(from)
  local text = args[orders_at + from]
  local order = orders[text]
  local tickets, buyers, writes, pieces = slot.tickets, slot.buyers, slot.ticket_writes, slot.ledger
  local buyer_writes = slot.buyer_writes
  if not order.plain or tickets[args[1 + from]] or buyers[args[names_at + from]] then
    return from
  end
  local available_at, quantity = 3 * order.lines[1].item - 2, order.lines[1].quantity
  local record, first_of_buyer, ok = order.record, order.first_of_buyer, OUTCOME.ok
  local available, before = counts[available_at], new
  if available < quantity then
    return from
  end
  open_group(slot, order.packed, expires_text)
  local w, p, b, i = writes.n, pieces.n, buyer_writes.n, from
  while i <= size and available >= quantity and args[orders_at + i] == text do
    local id, name = args[1 + i], args[names_at + i]
    if buyers[name] or tickets[id] then
      break
    end
    available = available - quantity
    local had, ticket = first_of_buyer .. id, record .. name
    buyers[name], tickets[id] = had, ticket
    buyer_writes[b + 1], buyer_writes[b + 2] = name, had
    writes[w + 1], writes[w + 2] = id, ticket
    pieces[p + 1], pieces[p + 2] = id, name
    w, p, b, new = w + 2, p + 2, b + 2, new + 1
    new_tickets[new] = id
    reply[5 + i] = ok
    i = i + 1
  end
  writes.n, pieces.n, buyer_writes.n = w, p, b
  local taken = counts[available_at] - available
  counts[available_at], counts[available_at + 1] = available, counts[available_at + 1] + taken
  slot.transitions = slot.transitions + new - before
  slot.new_deadline = expires_at
  return i
end

local asked, last, is_asked = {}, nil, nil
for i = 1, size do
  local text = args[orders_at + i]
  if text ~= last then
    last, is_asked = text, order_of(text).flag ~= 'n'
  end
  if is_asked then
    asked[#asked + 1] = args[1 + i]
  end
end
load_tickets(slot, asked)
load_buyers(slot, { unpack(args, size + 2, 2 * size + 1) })
slot.new_tickets = new_tickets
local at = 1
while at <= size do
  at = reserve_plain(at)
  if at <= size then
    reply[5 + at] = reserve(args[1 + at], args[names_at + at], orders[args[orders_at + at]])
    at = at + 1
  end
end
commit(slot)
reply[5] = slot.sequence
return reply
