-- Tunnels to game servers through a gateway. README.md has an example.

local Session = require "gateway.session"

local M = {}
local min, max = math.min, math.max

-- Errors are tables: status, what the gateway answered, 0 for no answer; name; advice, what
-- the player can do: "reconnect"; "new line", from the login server; "new line or later";
-- "start anew", at the login; and message, which tostring gives.
local Error = { __tostring = function(e) return e.message end }
local kinds = {
  [0] = { "no_answer", "reconnect", "the gateway gave no answer: connect again" },
  [400] = { "bad_request", "reconnect", "the gateway could not read the line (400): connect again" },
  [401] = { "unauthorized", "new line", "the line does not open (401): get a new line" },
  [410] = { "gone", "start anew", "the session is gone (410): start anew" },
  [502] = { "bad_gateway", "new line or later", "the game server cannot be connected (502): get a new line, or try later" },
  [504] = { "gateway_timeout", "new line or later", "connecting the game server took too long (504): get a new line, or try later" },
}
local function failure(status, message)
  local k = kinds[status]
  return setmetatable({ status = status, name = k[1], advice = k[2], message = message or k[3] }, Error)
end

local function random()
  local f = io and io.open("/dev/urandom", "rb")
  if not f then return nil end
  local b = f:read(32)
  f:close()
  return b
end

local Dialer = {}
Dialer.__index = Dialer
local Tunnel = {}
Tunnel.__index = Tunnel

-- Says how tunnels are opened and resumed. Options, times in seconds:
--   gateways: host:port, or several, tried in turn
--   new_line: function(error), asks your login server for a new line; nil: there is none
--   plain: asks for no more than a plain tunnel
--   timeout (5): for one gateway to be reached and to answer
--   hold (30): for which a lost tunnel is tried to be resumed
--   silence (5), patience (3): after which a silent gateway is asked, and has to answer
--   on_event: function("reconnecting", "back", "failed" or "ended", error)
--   net: connect, now and sleep, see gateway/luasocket.lua, which it is unless given
--   random: function that returns 32 random bytes, where there is no /dev/urandom
function M.dialer(options)
  local d = { timeout = 5, hold = 30, silence = 5, patience = 3, random = random, on_event = function() end }
  for k, v in pairs(options) do d[k] = v end
  if type(d.gateways) == "string" then d.gateways = { d.gateways } end
  assert(d.gateways and #d.gateways > 0, "no gateway to dial")
  d.net = d.net or require "gateway.luasocket"
  return setmetatable(d, Dialer)
end

-- Opens a tunnel to the game server whose sealed line, or token, is given. Returns it, or
-- nil and an error.
function Dialer:dial(line)
  for again = 1, 2 do
    local tunnel, err
    for at = 1, #self.gateways do
      tunnel, err = self:open(at, line)
      if tunnel then return tunnel end
      if err.status == 401 then break end -- the next gateway would say the same
    end
    line = again == 1 and err.status ~= 0 and self.new_line and self.new_line(err)
    if not line then return nil, err end
  end
end

function Dialer:open(at, line)
  local secret = not self.plain and self.random()
  if secret then
    local session = Session.new(secret)
    local stream, err = self:ask(at, Session.open_line(session.public, line))
    if stream then
      local deadline = self.net.now() + self.timeout
      while not session.key do
        local data, why = stream:read(4096, max(0, deadline - self.net.now()))
        if not data or data == "" then
          stream:close()
          return nil, failure(0, why)
        end
        local ok, wrong = pcall(session.input, session, data)
        if not ok then
          stream:close()
          return nil, failure(0, type(wrong) == "table" and wrong.violation or wrong)
        end
      end
      return self:tunnel(at, stream, session)
    end
    -- What knows of no sessions calls them a bad address.
    if err.status ~= 400 and err.status ~= 401 then return nil, err end
  end
  local stream, err = self:ask(at, line .. "\n")
  if not stream then return nil, err end
  return self:tunnel(at, stream, nil)
end

function Dialer:tunnel(at, stream, session)
  return setmetatable({
    dialer = self, at = at, stream = stream, session = session, resumes = 0,
    resumable = session ~= nil, heard = self.net.now(),
  }, Tunnel)
end

-- Sends a request to a gateway and returns the stream behind its 200.
function Dialer:ask(at, request)
  local deadline = self.net.now() + self.timeout
  local stream, err = self.net.connect(self.gateways[at], self.timeout)
  if not stream then return nil, failure(0, ("%s: %s: connect again"):format(self.gateways[at], err)) end
  local status = ""
  local ok, why = stream:write(request)
  while ok and #status < 3 do -- a fourth byte would be the game server's
    local data
    data, why = stream:read(3 - #status, max(0, deadline - self.net.now()))
    if not data or data == "" then
      ok = nil
      if data then why = "the gateway closed without a status" end
    else
      status = status .. data
    end
  end
  if status == "200" then return stream end
  stream:close()
  if not ok then return nil, failure(0, ("%s: %s: connect again"):format(self.gateways[at], why)) end
  local number = status:match("^%d%d%d$") and tonumber(status)
  if number and number ~= 0 and kinds[number] then return nil, failure(number) end
  return nil, failure(0, "the answer is no status: is this the gateway's address?")
end

-- A tunnel is for one thread or coroutine. It is resumed within read and write.

-- Reads at most n bytes. Returns "" at the end; nil and "timeout" if nothing comes within
-- wait seconds, which may be 0; nil and an error.
function Tunnel:read(n, wait)
  if not self.session then
    local data, why = self.stream:read(n or 65536, wait)
    if data or why == "timeout" then return data, why end
    return nil, failure(0, why)
  end
  local now = self.dialer.net.now
  local deadline = wait and now() + wait
  while true do
    local data = self.session:take(n or 65536, now())
    if data ~= "" or self.session:at_end() then
      local ok, err = self:flush()
      if not ok and data == "" and not self.session:at_end() then return nil, err end
      return data
    end
    local ok, err = self:pump(deadline)
    if not ok then return nil, err end
    if self.session.inbox == "" and not self.session.ended and deadline and now() >= deadline then return nil, "timeout" end
  end
end

-- Sends all of data, and waits where the game server does not read. Returns true, or nil and
-- an error.
function Tunnel:write(data)
  if not self.session then
    local ok, why = self.stream:write(data)
    if ok then return true end
    return nil, failure(0, why)
  end
  while true do
    if not self.stream then return nil, self.why or failure(0, "the tunnel is closed") end
    local part = data:sub(1, self.session:room())
    self.session:send(part)
    data = data:sub(#part + 1)
    local ok, err = self:flush()
    if not ok then return nil, err end
    if data == "" then return true end
    if part == "" then
      ok, err = self:pump(self.dialer.net.now() + 1)
      if not ok then return nil, err end
    end
  end
end

-- Finishes writing; reading goes on.
function Tunnel:close_write()
  if not self.session then
    self.stream:close_write()
    return true
  end
  self.session:finish()
  return self:flush()
end

-- Ends the tunnel. What was written still arrives, for which it waits a little: wait, or 2.
function Tunnel:close(wait)
  if self.session and self.stream and self:close_write() then
    local now = self.dialer.net.now
    local deadline = now() + (wait or 2)
    while self.stream and not self.session:over() and now() < deadline do
      self.session:take(65536, now())
      if not self:flush() or self.session:over() or not self:pump(deadline) then break end
    end
  end
  self:finish(nil)
end

-- Ends the tunnel at once: the game server sees a reset.
function Tunnel:abort()
  if self.session and self.stream then self.stream:write("\0\0\3\0") end
  self:finish(nil)
end

-- Goes on by another connection: for when the system tells of a change of networks.
function Tunnel:reconnect()
  if not self.session or not self.stream or self.recovering then return true end
  return self:recover(failure(0, "reconnect was called"))
end

function Tunnel:finish(err)
  if not self.stream then return nil, err end
  self.stream:close()
  self.stream, self.why = nil, err
  self.dialer.on_event("ended", err)
  return nil, err
end

function Tunnel:flush()
  if not self.stream then return nil, self.why or failure(0, "the tunnel is closed") end
  local data = self.session:output(self.dialer.net.now())
  if data == "" then return true end
  local ok, why = self.stream:write(data)
  if ok or self.session:over() then return true end
  return self:recover(failure(0, why))
end

-- Reads once, at the latest until deadline; finds out a silent gateway.
function Tunnel:pump(deadline)
  local d, s = self.dialer, self.session
  local now = d.net.now
  if not self.stream then return nil, self.why or failure(0, "the tunnel is closed") end
  if s.closed then return self:finish(failure(410, "the game server or the gateway has ended the tunnel")) end
  local wait = min(1, d.silence, d.patience, deadline and max(0, deadline - now()) or 1)
  local data, why = self.stream:read(65536, wait)
  local lost
  if data and data ~= "" then
    self.heard, self.asked = now(), nil
    local ok, wrong = pcall(s.input, s, data)
    if not ok then
      return self:finish(failure(0, "the gateway breaks the protocol: " .. (type(wrong) == "table" and wrong.violation or wrong)))
    end
  elseif data then
    lost = "the connection ended"
  elseif why ~= "timeout" then
    lost = why
  elseif self.asked then
    if now() - self.asked >= d.patience then lost = "the gateway is silent" end
  elseif now() - self.heard >= d.silence then
    self.asked, s.ping = now(), true
  end
  if lost and not s:over() then
    local ok, err = self:recover(failure(0, lost))
    if not ok then return nil, err end
  end
  return self:flush()
end

-- Looks for a connection that carries the tunnel on.
function Tunnel:recover(err)
  local d, s = self.dialer, self.session
  self.recovering = true -- until on_event is told "back"
  d.on_event("reconnecting", err)
  self.stream:close()
  local since, pause, failed = d.net.now(), 0.05, 0
  while true do
    local stream
    stream, err = d:ask(self.at, s:reattach() .. s:output(d.net.now()))
    if stream then
      self.stream, self.resumes = stream, self.resumes + 1
      self.heard, self.asked, self.recovering = d.net.now(), nil, false
      d.on_event("back")
      return true
    end
    if err.status == 401 or err.status == 410 or d.net.now() - since >= d.hold then return self:finish(err) end
    d.on_event("failed", err)
    self.at = self.at % #d.gateways + 1
    failed = failed + 1
    if failed % #d.gateways == 0 then
      d.net.sleep(pause * (1 + math.random()))
      pause = min(2 * pause, 1)
    end
  end
end

return M
