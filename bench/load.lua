-- wrk: POSTs one tools/call over and over, taking turns over the sessions it is given.
-- Environment: BENCH_HEADERS, "Name: value" lines for every request; BENCH_SESSIONS, lines of
-- which each request carries one. The last line printed is JSON, times in microseconds.
local BODY = '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"forecast","arguments":{"city":"Oslo"}}}'

local function lines(text)
   local out = {}
   for line in (text or ""):gmatch("[^\n]+") do
      out[#out + 1] = line
   end
   return out
end

local requests, turn = {}, 0

function init(args)
   local sessions = lines(os.getenv("BENCH_SESSIONS"))
   for i = 1, math.max(1, #sessions) do
      local headers = {
         ["Content-Type"] = "application/json",
         ["Accept"] = "application/json, text/event-stream",
         ["MCP-Protocol-Version"] = "2025-06-18",
      }
      for _, line in ipairs(lines(os.getenv("BENCH_HEADERS"))) do
         local name, value = line:match("^([^:]+): (.*)$")
         headers[name] = value
      end
      if sessions[i] then
         local name, value = sessions[i]:match("^([^:]+): (.*)$")
         headers[name] = value
      end
      requests[i] = wrk.format("POST", nil, headers, BODY)
   end
end

function request()
   turn = turn % #requests + 1
   return requests[turn]
end

function done(summary, latency, requests)
   local e = summary.errors
   io.write(string.format(
      '{"requests":%d,"us":%d,"p50":%d,"p95":%d,"p99":%d,"errors":%d}\n',
      summary.requests, summary.duration,
      latency:percentile(50), latency:percentile(95), latency:percentile(99),
      e.connect + e.read + e.write + e.status + e.timeout))
end
