-- Requests for wrk, all made before the first is sent:
--   wrk … URL -- TARGET BODY_FILE CREDENTIALS_FILE FIELD PREFIX CONNECTION
-- one for each line of CREDENTIALS_FILE, which goes into FIELD after PREFIX; with "-" for the file a single one without
-- credentials. CONNECTION is "keep-alive" or "close".
wrk.method = "POST"
local requests, last = {}, 0

function init(arguments)
  local target, body_file, credentials, field, prefix, connection = unpack(arguments)
  local body = ""
  if body_file ~= "-" then body = io.open(body_file):read("*a") end
  local fields = {
    ["Host"] = "localhost", ["User-Agent"] = "bench/1", ["Accept"] = "*/*", ["Content-Type"] = "application/json",
  }
  if connection == "close" then fields["Connection"] = "close" end
  if credentials == "-" then
    requests[1] = wrk.format("POST", target, fields, body)
    return
  end
  for line in io.lines(credentials) do
    fields[field] = prefix .. line
    requests[#requests + 1] = wrk.format("POST", target, fields, body)
  end
end

function request()
  last = last % #requests + 1
  return requests[last]
end
