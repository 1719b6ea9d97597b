-- Tunnels to game servers through a gateway. README.md has an example.

local Session = require "gateway.session"

local M = {}
local min, max = math.min, math.max

-- Seconds that close gives a connection which takes nothing, and between attempts to resume that
-- bring nothing: at first, and at most.
local STUCK, PAUSE, LONGEST = 0.5, 0.05, 1

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
    tries = 0, -- of attempts to resume since bytes got through
  }, Tunnel)
end

-- Sends a request to a gateway and returns the stream behind its 200.
function Dialer:ask(at, request, timeout)
  timeout = timeout or self.timeout
  local deadline = self.net.now() + timeout
  local stream, err = self.net.connect(self.gateways[at], timeout)
  if not stream then return nil, failure(0, ("%s: %s: connect again"):format(self.gateways[at], err)) end
  local status = ""
  local ok, why = stream:write(request, timeout)
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
    if not self.stream then return nil, failure(0, "the tunnel is closed") end
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
    if not self.stream then return nil, failure(0, "the tunnel is closed") end
    local ok, why = self.stream:write(data)
    if ok then return true end
    return nil, failure(0, why)
  end
  while true do
    if not self.stream then return self:closed() end
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

-- Ends the tunnel. What was written still arrives, for which it waits a little: wait, or 2; half
-- a second where the connection takes nothing.
function Tunnel:close(wait)
  if self.session and self.stream and not self.recovering then
    local now = self.dialer.net.now
    self.closing = now() + (wait or 2)
    local ok = self:close_write()
    while ok and self.stream and not self.session:over() and now() < self.closing do
      self.session:take(65536, now())
      ok = self:flush() and (self.session:over() or self:pump(self.closing))
    end
  end
  self:finish(nil)
end

-- Ends the tunnel at once: the game server of a resumable one sees a reset.
function Tunnel:abort()
  if self.session and self.stream and not self.recovering then self.stream:write("\0\0\3\0", STUCK / 2) end
  self:finish(nil)
end

-- Goes on by another connection: for when the system tells of a change of networks.
function Tunnel:reconnect()
  if not self.session or not self.stream or self.recovering then return true end
  self.tries = 0
  local ok, err = self:recover(failure(0, "reconnect was called"))
  if not ok then return nil, err end
  return self:flush()
end

function Tunnel:finish(err)
  if not self.stream then return nil, err end
  self.stream:close()
  self.stream, self.why = nil, err
  self.dialer.on_event("ended", err)
  return nil, err
end

function Tunnel:closed() return nil, self.why or failure(0, "the tunnel is closed") end

function Tunnel:flush()
  local d = self.dialer
  while self.stream do
    local data = self.session:output(d.net.now())
    if data == "" then return true end
    -- A gateway takes something in the time that it has to answer.
    local ok, why = self.stream:write(data, self.closing and STUCK or d.silence + d.patience)
    if not ok then
      if self.session:over() then return true end
      if self.closing and why == "timeout" then return nil, failure(0, "the gateway takes nothing") end
      local err
      ok, err = self:recover(failure(0, why == "timeout" and "the gateway takes nothing" or why))
      if not ok then return nil, err end
    end
  end
  return self:closed()
end

-- Reads once, at the latest until deadline; finds out a silent gateway.
function Tunnel:pump(deadline)
  local d, s = self.dialer, self.session
  local now = d.net.now
  if not self.stream then return self:closed() end
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
  if self.stream then self.stream:close() end
  while true do
    if not self.stream then return self:closed() end -- by on_event
    if not self:prepare() then return self:finish(err) end
    local stream
    local left = self.closing and max(0.001, self.closing - d.net.now()) or d.timeout
    stream, err = d:ask(self.at, s:reattach() .. s:output(d.net.now()), min(d.timeout, left))
    if stream then
      self.stream, self.resumes = stream, self.resumes + 1
      self.heard, self.asked, self.recovering = d.net.now(), nil, false
      self.back = self.heard
      d.on_event("back")
      return true
    end
    if err.status == 401 or err.status == 410 then return self:finish(err) end
    d.on_event("failed", err)
  end
end

-- Waits where the last attempt has brought nothing, and chooses the gateway; false: it was tried
-- for long enough. A gateway that answers 200 and ends the connection again and again brings
-- nothing.
function Tunnel:prepare()
  local d = self.dialer
  local now, progress = d.net.now(), self.session:progress()
  if self.tries == 0 or progress ~= self.before or (self.back and now - self.back >= 2 * LONGEST) then
    self.tries, self.pause, self.since = 0, PAUSE, now
  elseif now - self.since >= d.hold or (self.closing and now >= self.closing) then
    return false
  else
    self.at = self.at % #d.gateways + 1
  end
  if self.tries > 0 and self.tries % #d.gateways == 0 then
    local wait = self.pause * (1 + math.random())
    d.net.sleep(self.closing and max(0, min(wait, self.closing - now)) or wait)
    self.pause = min(2 * self.pause, LONGEST)
  end
  self.tries, self.back, self.before = self.tries + 1, nil, progress
  return true
end

return M
