-- What every script shares: one line of JSON at the end, and in a verification the count of every status.
--
-- arguments  sale, prefix (makes this run's buyers unlike all others), `verify` to look at every answer. Looking
--            costs wrk as much as the rest of its work, so that measured runs only have wrk's own count of errors.
local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function count(status)
  local key = tostring(status)
  statuses[key] = (statuses[key] or 0) + 1
end

-- Every buyer is another one. The number is of one width, so that all requests are of one length.
function buyer_name()
  number = number + 1
  return string.format('%s-%09d', prefix, number)
end

function reserve_request(buyer)
  return reserve_head .. buyer .. reserve_tail
end

function prepare(args)
  sale, prefix = args[1], args[2]
  number, statuses = 0, {}
  reserve_head = 'POST /sales/' .. sale .. '/tickets HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n'
    .. 'Content-Length: 14\r\nX-Buyer-Fingerprint: '
  reserve_tail = '\r\n\r\n{"quantity":1}'
  if args[3] == 'verify' then
    response = function(status)
      count(status)
    end
  end
end

function done(summary, latency)
  local parts = {}
  for _, thread in ipairs(threads) do
    for status, times in pairs(thread:get('statuses') or {}) do
      parts[#parts + 1] = string.format('"%s":%d', status, times)
    end
  end
  local errors = summary.errors
  io.write(string.format(
    '\nRESULT {"requests":%d,"seconds":%.6f,"refused":%d,"broken":%d,"timeouts":%d,"p50_us":%d,"p99_us":%d,"statuses":{%s}}\n',
    summary.requests, summary.duration / 1e6, errors.status, errors.connect + errors.read + errors.write,
    errors.timeout, latency:percentile(50), latency:percentile(99), table.concat(parts, ',')))
end
