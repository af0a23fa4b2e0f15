-- Requests for wrk, all of them built before the first one is sent:
--   wrk … URL -- TARGET BODY_FILE CREDENTIALS_FILE HEADER PREFIX CONNECTION
-- One request per line of CREDENTIALS_FILE, with the line in header HEADER after PREFIX; a single request without credentials
-- if the file is "-". CONNECTION is "keep-alive" or "close".
wrk.method = "POST"
local requests, last = {}, 0

function init(arguments)
  local target, body_file, credentials, header, prefix, connection = unpack(arguments)
  local body = ""
  if body_file ~= "-" then body = io.open(body_file):read("*a") end
  local headers = {
    ["Host"] = "localhost", ["User-Agent"] = "bench/1", ["Accept"] = "*/*", ["Content-Type"] = "application/json",
  }
  if connection == "close" then headers["Connection"] = "close" end
  if credentials == "-" then
    requests[1] = wrk.format("POST", target, headers, body)
    return
  end
  for line in io.lines(credentials) do
    headers[header] = prefix .. line
    requests[#requests + 1] = wrk.format("POST", target, headers, body)
  end
end

function request()
  last = last % #requests + 1
  return requests[last]
end
