-- The record of a ticket: 'r LINES RESERVED_AT EXPIRES_AT BUYER' while it is reserved, and once it has ended
-- 'STATUS LINES RESERVED_AT EXPIRES_AT BUYER ENDED_AT SEQUENCE OPERATION REFERENCE', STATUS one of p, c, x.
-- RESERVED_AT and EXPIRES_AT have 13 digits (until the year 2286) and BUYER 22 characters, so that they are found from
-- the end of a reserved one.
--@include slot
--@include buyers
--@include ledger

local function load_tickets(slot, ids)
  local wanted, n = {}, 0
  for i = 1, #ids do
    local id = ids[i]
    if slot.tickets[id] == nil then
      slot.tickets[id] = false
      n = n + 1
      wanted[n] = id
    end
  end
  if n == 0 then
    return
  end
  local records = redis.call('HMGET', slot.keys.tickets, unpack(wanted))
  for i = 1, n do
    slot.tickets[wanted[i]] = records[i]
  end
end

-- Lines, deadline and buyer of a ticket that is reserved; nothing when it has ended. The shortest look there is: most
-- of what scripts do begins with it.
local RESERVED = string.byte('r')

local function held(record)
  if string.byte(record) == RESERVED then
    return string.sub(record, 3, -52), tonumber(string.sub(record, -36, -24)), string.sub(record, -22)
  end
end

local function ticket_of(record)
  local status, lines, expires_at, buyer, rest = string.match(record, '^(%a) (%S+) %d+ (%d+) (%S+) ?(.*)$')
  local ticket = { status = status, lines = lines, expires_at = tonumber(expires_at), buyer = buyer }
  if status ~= 'r' then
    local ended_at, sequence, operation, reference = string.match(rest, '^(%d+) (%d+) (%S+) ?(.*)$')
    ticket.ended_at = tonumber(ended_at)
    ticket.sequence = tonumber(sequence)
    ticket.operation = operation
    ticket.reference = reference
  end
  return ticket
end

local function write_ticket(slot, id, record)
  slot.tickets[id] = record
  local writes = slot.ticket_writes
  local at = writes.n
  writes[at + 1], writes[at + 2] = id, record
  writes.n = at + 2
end

-- Leaves `reserved` for good: to p the units are sold, to c and x they go back to the pool and off the buyer's count.
-- `record` is the ticket's, with `lines` and `buyer` as held() found them; the buyer must be loaded unless it is sold.
-- `ended_at` is a text.
-- Writes the ledger line `STATUS ID LINES OPERATION REFERENCE`; `reference` is the deadline for x.
local function end_ticket(slot, id, record, lines, buyer, status, ended_at, operation, reference)
  local counts, list = slot.counts, lines_of(lines)
  for i = 1, #list do
    local at, quantity = 3 * list[i].item, list[i].quantity
    counts[at - 1] = counts[at - 1] - quantity
    if status == 'p' then
      counts[at] = counts[at] + quantity
    else
      counts[at - 2] = counts[at - 2] + quantity
    end
  end
  if status ~= 'p' then
    take_from_buyer(slot, buyer, lines, id)
  end
  log_line(slot, status .. ' ' .. id .. ' ' .. lines .. ' ' .. operation .. ' ' .. reference)
  record = status .. string.sub(record, 2) .. ' ' .. ended_at .. ' '
    .. string.format('%.0f', slot.sequence + slot.transitions) .. ' ' .. operation .. ' '
    .. (status == 'x' and '' or reference)
  write_ticket(slot, id, record)
  return record
end
