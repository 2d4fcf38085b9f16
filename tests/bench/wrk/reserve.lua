-- Reserves, every request for a buyer of its own.
dofile(os.getenv('BENCH_WRK') .. '/common.lua')

function init(args)
  prepare(args)
end

function request()
  return reserve_request(buyer_name())
end
