-- Ends the holds that have run out. The deadline index has one member per reserve call: the ids of its tickets, 22
-- characters each, with their common deadline as score; tickets that ended meanwhile are passed over.
--@include tickets

-- Tickets that one call looks at before it leaves the rest to the next, so that it ends in about 2 ms. The last member
-- is finished, and may be a whole batch.
local SWEEP_MAX = 150
-- Members read at a time: a member may be one ticket or a whole batch.
local SWEEP_STEP = 8

-- The reserved ones among a member's tickets, as {id, ticket} pairs.
local function live_tickets(slot, member)
  local ids, live = ids_of(member), {}
  load_tickets(slot, ids)
  for _, id in ipairs(ids) do
    local record = slot.tickets[id]
    if record and string.sub(record, 1, 1) == 'r' then
      live[#live + 1] = { id = id, ticket = ticket_of(record) }
    end
  end
  return live, #ids
end

-- Expires what is due, once per script. Sets slot.swept, and slot.more_due when it stopped at SWEEP_MAX.
local function sweep(slot)
  if slot.swept then
    return 0
  end
  slot.swept = true
  local looked, expired = 0, 0
  while true do
    local members = redis.call('ZRANGEBYSCORE', slot.keys.deadlines, '-inf', whole(slot.now),
      'LIMIT', #slot.dead_deadlines, SWEEP_STEP)
    for _, member in ipairs(members) do
      if looked >= SWEEP_MAX then
        slot.more_due = true
        return expired
      end
      local live, size = live_tickets(slot, member)
      local names = {}
      for i, entry in ipairs(live) do
        names[i] = entry.ticket.buyer
      end
      load_buyers(slot, names)
      for _, entry in ipairs(live) do
        end_ticket(slot, entry.id, entry.ticket, 'x', entry.ticket.expires_at, '-', '')
      end
      slot.dead_deadlines[#slot.dead_deadlines + 1] = member
      looked = looked + size
      expired = expired + #live
    end
    if #members < SWEEP_STEP then
      return expired
    end
  end
end

-- The instant at which the next hold can run out, looked up once per script. Members whose tickets have all ended are
-- cleared away on the look; past SWEEP_STEP of those the next member's score is taken as it is.
local function next_deadline(slot)
  if slot.next_deadline then
    return slot.next_deadline
  end
  local members = redis.call('ZRANGE', slot.keys.deadlines, #slot.dead_deadlines, #slot.dead_deadlines + SWEEP_STEP,
    'WITHSCORES')
  for i = 1, #members, 2 do
    if #live_tickets(slot, members[i]) > 0 or i > 2 * SWEEP_STEP then
      slot.next_deadline = math.min(tonumber(members[i + 1]), slot.new_deadline or math.huge)
      return slot.next_deadline
    end
    slot.dead_deadlines[#slot.dead_deadlines + 1] = members[i]
  end
  -- Everything held was taken in this very call.
  slot.next_deadline = slot.new_deadline or slot.now + slot.rules[1]
  return slot.next_deadline
end
