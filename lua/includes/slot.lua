-- A slot in memory for the length of one script: read here, changed by the script, written once by commit().
--
-- rules   hold_ms, max_per_buyer, opens_at, closes_at, then max_per_buyer of each item; 0 is "none"
-- counts  available, reserved, purchased of each item, one after the other
--@include outcomes
--@include clock
--@include numbers

-- Returns the slot, or nil and the outcome that refuses the whole call. `floor` is EPOCH-SEQUENCE, the store's
-- cursor: a server that knows less than the store has lost something and must not sell.
local function open_slot(keys, floor)
  local field = redis.call('HMGET', keys.sale, 'fence', 'epoch', 'sequence', 'rules', 'counts', 'dropped')
  if field[1] then
    return nil, OUTCOME.fenced
  end
  if not field[2] then
    return nil, OUTCOME.missing
  end
  local epoch, sequence = tonumber(field[2]), tonumber(field[3])
  local floor_epoch, floor_sequence = string.match(floor, '^(%d+)-(%d+)$')
  floor_epoch, floor_sequence = tonumber(floor_epoch), tonumber(floor_sequence)
  if epoch < floor_epoch or (epoch == floor_epoch and sequence < floor_sequence) then
    return nil, OUTCOME.behind
  end
  return {
    keys = keys,
    now = clock(),
    epoch = epoch,
    sequence = sequence,
    rules = numbers(field[4]),
    counts = numbers(field[5]),
    dropped = field[6] and true or false, -- ended tickets have left this slot: a miss is not yet a proof
    tickets = {}, -- id to record, or false where there is none; filled by load_tickets()
    ticket_writes = { n = 0 }, -- id, record, id, record...: as HSET takes them; n is their number
    dropped_tickets = {}, -- ids of records to delete
    buyers = {}, -- buyer to what it holds; filled by load_buyers()
    changed_buyers = { n = 0 }, -- names; n is their number
    buyer_writes = { n = 0 }, -- name, text, name, text...: as HSET takes them, for those who came for the first time
    ledger = { n = 0 }, -- pieces of the text of this call's entry; n is their number
    transitions = 0, -- how many the text tells
    open_group = nil, -- the line of reservations that can still be added to: its LINES
    dead_deadlines = {}, -- members of the deadline index with nothing left to expire
    sale_fields = {}, -- further fields of the sale's hash to write
  }
end
