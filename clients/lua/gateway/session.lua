-- The client's end of a resumable tunnel: offsets, frames and keys, without a socket or a
-- clock. docs/roaming.md describes the protocol; clients/testdata has its vectors.

local crypto = require "gateway.crypto"

local ACK, FIN, CLOSE, PING, PONG, HELLO, SKIPPED = 1, 2, 3, 4, 5, 6, 128
local floor, byte, char, min, max = math.floor, string.byte, string.char, math.min, math.max

local Session = {}
Session.__index = Session

-- What is raised by input for what is not the protocol: a table, so that it is told apart.
local function violation(text) error({ violation = text }, 0) end

function Session.key_of(secret, own, gateway)
  local shared = crypto.x25519(secret, gateway)
  if shared == ("\0"):rep(32) then violation("the gateway's key is none") end
  -- HKDF-SHA256 (RFC 5869), of which one block is enough.
  return crypto.hmac(crypto.hmac(own .. gateway, shared), "gateway resume key 1\1")
end

function Session.open_line(own, sealed)
  return "~1N " .. crypto.base64url(own) .. " " .. sealed .. "\n"
end

local function digits(n) return type(n) == "string" and n or ("%.0f"):format(n) end

function Session.resume_line(key, ticket, seq, from, recv)
  seq, from, recv = digits(seq), digits(from), digits(recv)
  local mac = crypto.hmac(key, table.concat({ "resume 1", ticket, seq, from, recv }, "\n"))
  return ("~1R %s %s %s %s %s\n"):format(ticket, seq, from, recv, crypto.base64url(mac))
end

-- All offsets count from 0, and the end of a direction as one more byte. secret is 32
-- random bytes.
function Session.new(secret)
  return setmetatable({
    secret = secret, public = crypto.x25519(secret, crypto.base), window = 0, seq = 0,
    -- What is sent. out holds the bytes from base on: the lowest that was not
    -- acknowledged, or that this connection has yet to carry.
    out = "", base = 0, stop = 0, acked = 0, next = 0, sent = 0,
    -- What is received.
    inbox = "", received = 0, passed = 0, reported = 0, since = 0,
    -- The frame at hand.
    head = "", left = 0,
  }, Session)
end

-- How many bytes may be sent now.
function Session:room()
  return (self.finished or self.closed) and 0 or max(0, self.window - #self.out)
end

function Session:send(data)
  self.out = self.out .. data
  self.stop = self.stop + #data
end

function Session:finish() self.finished = true end

-- Whether both directions have ended, and both sides know.
function Session:complete()
  return self.finished and self.acked == self.stop + 1 and self.ended
    and self.passed == self.received and self.reported == self.passed
end

function Session:over() return self.closed ~= nil or self:complete() end

function Session:at_end() return self.ended and self.inbox == "" end

-- Returns at most n received bytes: the application has them now.
function Session:take(n, now)
  local data = self.inbox:sub(1, n)
  self.inbox = self.inbox:sub(#data + 1)
  local passed = self.received - #self.inbox - ((self.ended and self.inbox ~= "") and 1 or 0)
  if passed > self.passed then
    if self.passed == self.reported then self.since = now end
    self.passed = passed
    if self:at_end() then self.ack_now = true end
  end
  return data
end

-- Grows with each byte that is acknowledged or received.
function Session:progress() return self.acked + self.received end

-- Returns what is to be written next to the connection: at most one frame of data. now is in
-- seconds.
function Session:output(now)
  local b, unreported = {}, self.passed - self.reported
  if self.pong then b[#b + 1] = char(0, 0, PONG) end
  if self.ack_now or unreported >= 32768 or (unreported >= 4096 and self.next < self.stop)
    or (unreported > 0 and now - self.since >= 1) then
    b[#b + 1] = char(0, 0, ACK) .. crypto.u32(self.passed % 4294967296)
    self.reported = self.passed
  end
  if self.ping then b[#b + 1] = char(0, 0, PING) end
  self.pong, self.ack_now, self.ping = false, false, false
  if self.next < self.stop then
    local at = self.next - self.base
    local part = self.out:sub(at + 1, at + 16384)
    b[#b + 1] = char(floor(#part / 256), #part % 256) .. part
    self.next = self.next + #part
  end
  if self.finished and self.next == self.stop then
    b[#b + 1] = char(0, 0, FIN)
    self.next = self.next + 1
  end
  self.sent = max(self.sent, self.next)
  self:drop()
  return table.concat(b)
end

function Session:drop()
  local kept = min(self.acked, self.next, self.stop)
  if kept == self.base then return end
  self.out = self.out:sub(kept - self.base + 1)
  self.base = kept
end

-- Takes what was read from the connection, cut anywhere.
function Session:input(data)
  while data ~= "" and not self.closed do
    if self.left > 0 then -- of a frame of data, or of one to be skipped
      local part = data:sub(1, self.left)
      data = data:sub(#part + 1)
      self.left = self.left - #part
      if not self.skipping then self:take_data(part) end
    else
      local n = self:size() - #self.head
      self.head, data = self.head .. data:sub(1, n), data:sub(n + 1)
      if #self.head == self:size() then
        local head = self.head
        self.head = ""
        self:take_head(head)
      end
    end
  end
end

-- How long the head at hand is at least, by what there is of it.
function Session:size()
  local a, b, kind, high, low = byte(self.head, 1, 5)
  if not b or a > 0 or b > 0 then return 2 end
  if not kind then return 3 end
  if kind == ACK then return 7 end
  if kind == CLOSE then return 4 end
  if kind == HELLO and low then return 5 + high * 256 + low end
  return (kind == HELLO or kind >= SKIPPED) and 5 or 3
end

local function u32(s, at)
  local a, b, c, d = byte(s, at, at + 3)
  return ((a * 256 + b) * 256 + c) * 256 + d
end

function Session:take_head(h)
  local a, b, kind, high, low = byte(h, 1, 5)
  kind = kind or 0
  if (kind == HELLO) ~= (self.key == nil) then violation("HELLO comes once, and first") end
  if #h == 2 then
    self.left, self.skipping = a * 256 + b, false
  elseif kind == ACK then
    local acked = self.acked + (u32(h, 4) - self.acked) % 4294967296
    if acked > self.sent then violation("an ACK beyond what was sent") end
    self.acked = acked
    self:drop()
  elseif kind == FIN then
    if self.ended then violation("a second end") end
    self.ended, self.received = true, self.received + 1
  elseif kind == CLOSE then
    self.closed = high
  elseif kind == PING then
    self.pong = true
  elseif kind == HELLO then
    local window = #h > 41 and #h <= 41 + 256 and u32(h, 6) or 0
    if window < 65536 or window > 1073741824 then violation("a HELLO that is none") end
    self.ticket = h:sub(10, -33)
    self.key = Session.key_of(self.secret, self.public, h:sub(-32))
    self.window = window
  elseif kind >= SKIPPED then
    self.left, self.skipping = high * 256 + low, true
  elseif kind ~= PONG then
    violation("there is no frame of type " .. kind)
  end
end

function Session:take_data(data)
  if self.ended then violation("data behind the end") end
  if self.received - self.reported + #data > self.window then violation("more than the window") end
  self.inbox = self.inbox .. data
  self.received = self.received + #data
end

-- Begins with a new connection, and returns the line to send on it. What is sent behind it
-- starts at the lowest byte that is not acknowledged.
function Session:reattach()
  self.seq = self.seq + 1
  self.head, self.left, self.pong, self.ping = "", 0, false, false
  self.ack_now, self.next = true, self.acked
  self:drop()
  return Session.resume_line(self.key, self.ticket, self.seq, self.acked, self.received)
end

return Session
