-- The server's clock in whole milliseconds. Called once per script, so that a script happens at one instant.
local function clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
