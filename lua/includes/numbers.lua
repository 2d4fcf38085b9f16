-- Packed whole numbers: '100 0 0' to {100, 0, 0} and back. `%.0f` since tostring() of a large double is '1.7e+12'.
local function numbers(packed)
  local list = {}
  for digits in string.gmatch(packed, '%d+') do
    list[#list + 1] = tonumber(digits)
  end
  return list
end

-- Formatted once per script: the same few numbers come again and again.
local whole_texts = {}

local function whole(number)
  local text = whole_texts[number]
  if not text then
    text = string.format('%.0f', number)
    whole_texts[number] = text
  end
  return text
end

local function pack_numbers(list)
  local out = {}
  for i = 1, #list do
    out[i] = whole(list[i])
  end
  return table.concat(out, ' ')
end
