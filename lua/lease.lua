-- Sets the leases of tickets that were just reserved: keys that Redis itself lets go at the deadline.
--
-- KEYS     lease...
-- ARGV     deadline: Unix milliseconds
-- Returns  how many were set
-- Ledger   nothing
local deadline = ARGV[1]
for _, lease in ipairs(KEYS) do
  redis.call('SET', lease, '', 'PXAT', deadline)
end
return #KEYS
