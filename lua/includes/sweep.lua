-- Ends the holds that have run out. The deadline index has one member per reserve call: the ids of its tickets, 22
-- characters each, with their common deadline as score; tickets that ended meanwhile are passed over.
--@include tickets

-- Tickets that one call looks at before it leaves the rest to the next, so that it ends in about 2 ms. The last member
-- is finished, and may be a whole batch.
local SWEEP_MAX = 150
-- Members read at a time: a member may be one ticket or a whole batch.
local SWEEP_STEP = 8

-- The ids in members up to the one that makes them `most`, and how many members that were.
local function ids_in(members, most)
  local ids, n = {}, 0
  for m = 1, #members do
    if n >= most then
      return ids, m - 1
    end
    for from = 1, #members[m], ID_LENGTH do
      n = n + 1
      ids[n] = string.sub(members[m], from, from + ID_LENGTH - 1)
    end
  end
  return ids, #members
end

-- Whether any ticket of a member is still reserved.
local function is_live(slot, member)
  local ids = ids_of(member)
  load_tickets(slot, ids)
  for i = 1, #ids do
    local record = slot.tickets[ids[i]]
    if record and held(record) then
      return true
    end
  end
  return false
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
    if looked >= SWEEP_MAX and #members > 0 then
      slot.more_due = true
      return expired
    end
    local ids, taken = ids_in(members, SWEEP_MAX - looked)
    load_tickets(slot, ids)
    local due, packed, deadlines, names, n = {}, {}, {}, {}, 0
    for i = 1, #ids do
      local record = slot.tickets[ids[i]]
      local lines, expires_at, buyer
      if record then
        lines, expires_at, buyer = held(record)
      end
      if lines then
        n = n + 1
        due[n], packed[n], deadlines[n], names[n] = ids[i], lines, expires_at, buyer
      end
    end
    load_buyers(slot, names)
    for i = 1, n do
      local deadline = whole(deadlines[i])
      end_ticket(slot, due[i], slot.tickets[due[i]], packed[i], names[i], 'x', deadline, '-', deadline)
    end
    expired = expired + n
    for m = 1, taken do
      slot.dead_deadlines[#slot.dead_deadlines + 1] = members[m]
    end
    looked = looked + #ids
    if #members < SWEEP_STEP and taken == #members then
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
    if is_live(slot, members[i]) or i > 2 * SWEEP_STEP then
      slot.next_deadline = math.min(tonumber(members[i + 1]), slot.new_deadline or math.huge)
      return slot.next_deadline
    end
    slot.dead_deadlines[#slot.dead_deadlines + 1] = members[i]
  end
  -- Everything held was taken in this very call.
  slot.next_deadline = slot.new_deadline or slot.now + slot.rules[1]
  return slot.next_deadline
end
