-- Writes what the script changed: the only place where a transition writes.
--@include slot
--@include buyers

-- The ledger goes first: it is the write that memory pressure (or a wrong stream id) can refuse, and then nothing is
-- written at all. `even_when_full` is for what must always work: after any first write, a script may use memory.
local function commit(slot, even_when_full)
  local keys = slot.keys
  if even_when_full then
    redis.call('HDEL', keys.sale, '-')
  end
  if slot.transitions > 0 then
    slot.sequence = slot.sequence + slot.transitions
    redis.call('XADD', keys.ledger, whole(slot.epoch) .. '-' .. whole(slot.sequence),
      'at', whole(slot.now), 'd', table.concat(slot.ledger, '', 1, slot.ledger.n))
    local fields = slot.sale_fields
    fields[#fields + 1] = 'sequence'
    fields[#fields + 1] = whole(slot.sequence)
    fields[#fields + 1] = 'counts'
    fields[#fields + 1] = pack_numbers(slot.counts)
    redis.call('HSET', keys.sale, unpack(fields))
  end
  local writes = slot.ticket_writes
  if writes.n > 0 then
    redis.call('HSET', keys.tickets, unpack(writes, 1, writes.n))
  end
  if #slot.dropped_tickets > 0 then
    redis.call('HDEL', keys.tickets, unpack(slot.dropped_tickets))
  end
  commit_buyers(slot)
  if slot.new_deadline then
    redis.call('ZADD', keys.deadlines, whole(slot.new_deadline), table.concat(slot.new_tickets))
  end
  if #slot.dead_deadlines > 0 then
    redis.call('ZREM', keys.deadlines, unpack(slot.dead_deadlines))
  end
end
