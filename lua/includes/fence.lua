-- The fence of a slot that is being rebuilt: a token in the sale's hash. Only its holder may write.
--@include outcomes
local function holds_fence(sale_key, token)
  return redis.call('HGET', sale_key, 'fence') == token
end
