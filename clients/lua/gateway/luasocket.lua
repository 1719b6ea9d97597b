-- Streams by LuaSocket. Others have the same four functions: read(n, wait) returns data, ""
-- at the end, or nil and "timeout" or a reason; write(data, wait) returns true, or nil and
-- "timeout", where the connection takes nothing for so long, or a reason; close_write();
-- close(), which does not wait. Times are seconds.

local socket = require "socket"

local M = { now = socket.gettime, sleep = socket.sleep }

local Stream = {}
Stream.__index = Stream

function Stream:read(n, wait)
  local readable = socket.select({ self.socket }, nil, wait)
  if #readable == 0 then return nil, "timeout" end
  self.socket:settimeout(0)
  local data, err, partial = self.socket:receive(n)
  data = data or partial
  if data and data ~= "" then return data end
  if err == "closed" then return "" end
  return nil, err or "timeout"
end

function Stream:write(data, wait)
  self.socket:settimeout(wait or 30)
  local sent, err = self.socket:send(data)
  if not sent then return nil, err end
  return true
end

function Stream:close_write() self.socket:shutdown("send") end

function Stream:close() self.socket:close() end

function M.connect(gateway, timeout)
  local host, port = gateway:match("^%[?(.-)%]?:(%d+)$")
  if not host then return nil, "no host:port" end
  local s, err = socket.tcp()
  if not s then return nil, err end
  s:settimeout(timeout)
  local ok
  ok, err = s:connect(host, tonumber(port))
  if not ok then
    s:close()
    return nil, err
  end
  s:setoption("tcp-nodelay", true)
  return setmetatable({ socket = s }, Stream)
end

return M
