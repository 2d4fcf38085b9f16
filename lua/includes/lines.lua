-- The lines of a ticket: 'ITEM:QUANTITY,ITEM:QUANTITY', items numbered from 1 in the order of the sale.

-- Read once per script: in a stampede nearly all tickets have the same lines. Nobody changes what they get from here.
local known_lines = {}

-- Returns a list of {item, quantity}, and the quantity over all of them.
local function lines_of(packed)
  local lines = known_lines[packed]
  if not lines then
    lines = { total = 0 }
    for item, quantity in string.gmatch(packed, '(%d+):(%d+)') do
      quantity = tonumber(quantity)
      lines[#lines + 1] = { item = tonumber(item), quantity = quantity }
      lines.total = lines.total + quantity
    end
    known_lines[packed] = lines
  end
  return lines, lines.total
end
