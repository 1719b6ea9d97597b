-- lua driver.lua MODE GATEWAYS LINES MILLISECONDS TEXT; see ../suite_test.go.

local root = arg[0]:gsub("suite/drivers/driver.lua$", "lua/")
package.path = root .. "?.lua;" .. root .. "?/init.lua;" .. package.path
-- Debian's LuaSocket in whatever Lua.
local version = _VERSION:match("%d.%d")
package.cpath = "/usr/lib/x86_64-linux-gnu/lua/" .. version .. "/?.so;/usr/lib/aarch64-linux-gnu/lua/" .. version .. "/?.so;" .. package.cpath
package.path = package.path .. ";/usr/share/lua/" .. version .. "/?.lua"

local gateway = require "gateway"
local Session = require "gateway.session"
local crypto = require "gateway.crypto"

local function bytes(hex) return (hex:gsub("%x%x", function(b) return string.char(tonumber(b, 16)) end)) end
local function hex(b)
  local out = {}
  for i = 1, #b do out[i] = ("%02x"):format(b:byte(i)) end
  return table.concat(out)
end
local function split(s, by)
  local parts = {}
  for part in s:gmatch("[^" .. by .. "]+") do parts[#parts + 1] = part end
  return parts
end

local answers = {
  key = function(secret, peer)
    local own = crypto.x25519(bytes(secret), crypto.base)
    return crypto.base64url(own) .. " " .. hex(Session.key_of(bytes(secret), own, bytes(peer)))
  end,
  open = function(own, sealed) return (Session.open_line(bytes(own), sealed):gsub("\n", "")) end,
  resume = function(key, ...) return (Session.resume_line(bytes(key), ...):gsub("\n", "")) end,
  session = function(key, ...)
    local s, reads = Session.new(("\1"):rep(32)), ""
    for _, step in ipairs { ... } do
      local what, value = step:match("^(%a+):?(%x*)$")
      if what == "receive" then
        for c in value:gmatch("%x%x") do s:input(bytes(c)) end
        if s.key then s.key = bytes(key) end
      elseif what == "write" then
        s:send(bytes(value))
        s:output(0)
      elseif what == "finish" then
        s:finish()
        s:output(0)
      else
        s:reattach()
      end
      reads = reads .. hex(s:take(4096, 0))
    end
    local line = s:reattach():gsub("\n", "")
    return line .. " " .. hex(s:output(0)) .. " " .. reads
  end,
}

local mode, gateways, given, milliseconds, text = arg[1], arg[2], arg[3], arg[4], arg[5]

if mode == "vectors" then
  for request in io.lines() do
    local w = split(request, " ")
    local ok, answer = pcall(answers[w[1]], (unpack or table.unpack)(w, 2))
    if not ok and type(answer) ~= "table" then error(answer) end
    print(ok and answer or "refused")
  end
  return
end

local function fail(err)
  print(("error %d %s"):format(err.status, err.advice))
  os.exit(0)
end

local lines = split(given, ",")
local tunnel, err
local backs = 0
local stuck = mode == "told" or mode == "silent" or mode == "leave"
local now = require("socket").gettime
local function on_event(event)
  if mode == "leave" and event == "reconnecting" then
    local began = now()
    tunnel:close()
    local took = now() - began
    print(took < 1 and "closed in time" or ("closed after %g s"):format(took))
  end
  if event == "back" then backs = backs + 1 end
  if mode == "again" and event ~= "ended" and backs <= 20 then tunnel:reconnect() end
end
local dialer = gateway.dialer {
  gateways = split(gateways, ","), plain = mode == "talk", hold = 10,
  timeout = stuck and 60 or tonumber(milliseconds) / 1000, -- dialling is not what is stuck
  silence = stuck and 0.5 or nil, patience = stuck and 0.5 or nil,
  new_line = function() return lines[2] end, on_event = on_event,
}
tunnel, err = dialer:dial(lines[1])
dialer.timeout = tonumber(milliseconds) / 1000
if not tunnel then fail(err) end

local function must(...)
  local ok, wrong = ...
  if ok == nil and mode == "leave" then os.exit(0) end
  if ok == nil then fail(wrong) end
  return ok
end

if mode == "again" then must(tunnel:reconnect()) end
if mode == "bulk" or mode == "again" or stuck then
  local want, got = {}, ""
  for i = 0, tonumber(text) - 1 do want[i + 1] = string.char((i * 7 + math.floor(i / 251)) % 256) end
  want = table.concat(want)
  for at = 1, #want, 4096 do
    must(tunnel:write(want:sub(at, at + 4095)))
    while not stuck and #got < math.min(#want, at + 4095) do
      local data = must(tunnel:read())
      if data == "" then error("the end came early") end
      got = got .. data
    end
  end
  while #got < #want do got = got .. must(tunnel:read()) end
  tunnel:close()
  print(got == want and ("ok %d %s"):format(#got, tunnel.resumes > 0 and "resumed" or "not resumed") or "other bytes")
else
  must(tunnel:write(text))
  must(tunnel:close_write())
  local got = ""
  while true do
    local data = must(tunnel:read())
    if data == "" then break end
    got = got .. data
  end
  tunnel:close()
  print("ok " .. (tunnel.resumable and "resumable " or "plain ") .. got)
end
