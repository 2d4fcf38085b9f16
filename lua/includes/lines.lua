-- The lines of a ticket: 'ITEM:QUANTITY,ITEM:QUANTITY', items numbered from 1 in the order of the sale.
local function lines_of(packed)
  local lines = {}
  for item, quantity in string.gmatch(packed, '(%d+):(%d+)') do
    lines[#lines + 1] = { item = tonumber(item), quantity = tonumber(quantity) }
  end
  return lines
end
