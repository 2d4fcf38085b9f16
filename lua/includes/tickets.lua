-- The record of a ticket: 'r LINES RESERVED_AT EXPIRES_AT BUYER' while it is reserved, and once it has ended
-- 'STATUS LINES RESERVED_AT EXPIRES_AT BUYER ENDED_AT SEQUENCE OPERATION REFERENCE', STATUS one of p, c, x.
--@include slot
--@include buyers

local function load_tickets(slot, ids)
  local wanted = {}
  for _, id in ipairs(ids) do
    if slot.tickets[id] == nil then
      slot.tickets[id] = false
      wanted[#wanted + 1] = id
    end
  end
  if #wanted == 0 then
    return
  end
  local records = redis.call('HMGET', slot.keys.tickets, unpack(wanted))
  for i, id in ipairs(wanted) do
    slot.tickets[id] = records[i]
  end
end

local function ticket_of(record)
  local status, lines, reserved_at, expires_at, buyer, rest =
    string.match(record, '^(%a) (%S+) (%d+) (%d+) (%S+) ?(.*)$')
  local ticket = {
    status = status,
    lines = lines,
    reserved_at = reserved_at,
    expires_at = tonumber(expires_at),
    buyer = buyer,
  }
  if status ~= 'r' then
    local ended_at, sequence, operation, reference = string.match(rest, '^(%d+) (%d+) (%S+) ?(.*)$')
    ticket.ended_at = tonumber(ended_at)
    ticket.sequence = tonumber(sequence)
    ticket.operation = operation
    ticket.reference = reference
  end
  return ticket
end

local function change_ticket(slot, id, record)
  slot.tickets[id] = record
  slot.changed_tickets[#slot.changed_tickets + 1] = id
end

-- Leaves `reserved` for good: to p the units are sold, to c and x they go back to the pool and off the buyer's count.
-- Its buyer must be loaded unless it is sold. Writes the ledger line `STATUS ID LINES OPERATION REFERENCE`, for x with
-- the deadline in the reference's place.
local function end_ticket(slot, id, ticket, status, ended_at, operation, reference)
  local lines = lines_of(ticket.lines)
  for _, line in ipairs(lines) do
    local at = 3 * line.item
    slot.counts[at - 1] = slot.counts[at - 1] - line.quantity
    if status == 'p' then
      slot.counts[at] = slot.counts[at] + line.quantity
    else
      slot.counts[at - 2] = slot.counts[at - 2] + line.quantity
    end
  end
  if status ~= 'p' then
    count_for_buyer(slot, ticket.buyer, ticket.lines, -1)
  end
  slot.ledger[#slot.ledger + 1] = table.concat({
    status, id, ticket.lines, operation, status == 'x' and whole(ended_at) or reference,
  }, ' ')
  local record = table.concat({
    status, ticket.lines, ticket.reserved_at, whole(ticket.expires_at), ticket.buyer,
    whole(ended_at), whole(slot.sequence + #slot.ledger), operation, reference,
  }, ' ')
  change_ticket(slot, id, record)
  return record
end
