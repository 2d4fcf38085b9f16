-- The usual flash-sale script: check the stock, refuse who has bought already, take one, queue the order. It has no
-- expiry, no limit but one to a buyer, no payment and no way back.
--
-- KEYS     stock buyers orders
-- ARGV     buyer
-- Returns  0 it is yours, 1 sold out, 2 bought already
local stock, buyers, orders = KEYS[1], KEYS[2], KEYS[3]
local buyer = ARGV[1]
if tonumber(redis.call('GET', stock)) <= 0 then
  return 1
end
if redis.call('SISMEMBER', buyers, buyer) == 1 then
  return 2
end
redis.call('DECR', stock)
redis.call('SADD', buyers, buyer)
redis.call('XADD', orders, '*', 'buyer', buyer)
return 0
