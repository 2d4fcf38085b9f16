-- The text of a ledger entry, line by line. Every line is one transition, but for those of reservations:
-- 'r LINES EXPIRES_AT IDBUYERIDBUYER...' (ids and buyers of 22 characters) is one for each.
--@include slot

-- Begins a line; `line` is the whole of it, or what comes before the ids.
local function begin_line(slot, line)
  local pieces = slot.ledger
  local n = pieces.n
  if n > 0 then
    n = n + 1
    pieces[n] = '\n'
  end
  pieces[n + 1] = line
  pieces.n = n + 1
end

-- Adds a transition that has a line to itself.
local function log_line(slot, line)
  slot.open_group = nil
  slot.transitions = slot.transitions + 1
  begin_line(slot, line)
end

-- Sees to it that the last line is one of reservations with these lines.
local function open_group(slot, packed, expires_at)
  if slot.open_group ~= packed then
    slot.open_group = packed
    begin_line(slot, 'r ' .. packed .. ' ' .. expires_at .. ' ')
  end
end

local function log_reservation(slot, packed, expires_at, id, buyer)
  open_group(slot, packed, expires_at)
  slot.transitions = slot.transitions + 1
  local pieces = slot.ledger
  local n = pieces.n
  pieces[n + 1], pieces[n + 2] = id, buyer
  pieces.n = n + 2
end
