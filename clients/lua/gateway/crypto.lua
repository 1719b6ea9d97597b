-- X25519 (RFC 7748), SHA-256 and HMAC for Lua 5.1 to 5.4 and LuaJIT. Their time depends on
-- the values: for keys that live as long as one tunnel, and for nothing that is kept.

local M = {}
local floor, byte, char = math.floor, string.byte, string.char

-- Bits, by what this Lua has: operators, a library, or arithmetic.
local band, bxor, rshift
local load51 = loadstring or load
local made = load51("return function(a, b) return a & b end, function(a, b) return a ~ b end, function(a, n) return a >> n end")
local ok, library = pcall(require, "bit")
if not ok then ok, library = bit32 ~= nil, bit32 end
if made then
  band, bxor, rshift = made()
elseif ok then
  local positive = function(x) return x % 4294967296 end -- LuaJIT's are signed
  band = function(a, b) return positive(library.band(a, b)) end
  bxor = function(a, b) return positive(library.bxor(a, b)) end
  rshift = function(a, n) return positive(library.rshift(a, n)) end
else
  local ands, xors = {}, {}
  for a = 0, 15 do
    for b = 0, 15 do
      local x, y, both, one, bit1 = a, b, 0, 0, 1
      for _ = 1, 4 do
        if x % 2 + y % 2 == 2 then both = both + bit1 end
        if x % 2 + y % 2 == 1 then one = one + bit1 end
        x, y, bit1 = floor(x / 2), floor(y / 2), bit1 * 2
      end
      ands[a * 16 + b], xors[a * 16 + b] = both, one
    end
  end
  local by = function(t)
    return function(a, b)
      local r, unit = 0, 1
      for _ = 1, 8 do
        r = r + t[a % 16 * 16 + b % 16] * unit
        a, b, unit = floor(a / 16), floor(b / 16), unit * 16
      end
      return r
    end
  end
  band, bxor = by(ands), by(xors)
  rshift = function(a, n) return floor(a / 2 ^ n) end
end

local function rotate(x, n)
  local low = 2 ^ n
  return floor(x / low) + floor(x % low * 2 ^ (32 - n))
end

-- The first 32 bits of the fractions of cube and square roots of primes.
local K, H = {}, {}
do
  local p = 2
  while #K < 64 do
    local prime = true
    for d = 2, floor(p ^ 0.5) do
      if p % d == 0 then prime = false end
    end
    if prime then
      -- The root to the last bit of a double: one step of Newton's behind pow's.
      local r = p ^ (1 / 3)
      r = r - (r * r * r - p) / (3 * r * r)
      if #H < 8 then H[#H + 1] = floor(p ^ 0.5 % 1 * 4294967296) end
      K[#K + 1] = floor(r % 1 * 4294967296)
    end
    p = p + 1
  end
end

function M.sha256(m)
  local bits = #m * 8
  m = m .. "\128" .. ("\0"):rep((55 - #m) % 64) .. "\0\0\0" ..
    char(floor(bits / 4294967296) % 256, floor(bits / 16777216) % 256, floor(bits / 65536) % 256, floor(bits / 256) % 256, bits % 256)
  local h = {}
  for i = 1, 8 do h[i] = H[i] end
  local w = {}
  for at = 1, #m, 64 do
    for i = 1, 16 do
      local a, b, c, d = byte(m, at + 4 * i - 4, at + 4 * i - 1)
      w[i] = ((a * 256 + b) * 256 + c) * 256 + d
    end
    for i = 17, 64 do
      local a, b = w[i - 15], w[i - 2]
      w[i] = (w[i - 16] + w[i - 7] + bxor(bxor(rotate(a, 7), rotate(a, 18)), rshift(a, 3)) +
        bxor(bxor(rotate(b, 17), rotate(b, 19)), rshift(b, 10))) % 4294967296
    end
    local a, b, c, d, e, f, g, z = h[1], h[2], h[3], h[4], h[5], h[6], h[7], h[8]
    for i = 1, 64 do
      local t1 = z + bxor(bxor(rotate(e, 6), rotate(e, 11)), rotate(e, 25)) +
        bxor(band(e, f), band(4294967295 - e, g)) + K[i] + w[i]
      local t2 = bxor(bxor(rotate(a, 2), rotate(a, 13)), rotate(a, 22)) + bxor(bxor(band(a, b), band(a, c)), band(b, c))
      z, g, f, e, d, c, b, a = g, f, e, (d + t1) % 4294967296, c, b, a, (t1 + t2) % 4294967296
    end
    for i, x in ipairs { a, b, c, d, e, f, g, z } do h[i] = (h[i] + x) % 4294967296 end
  end
  local out = {}
  for i = 1, 8 do out[i] = M.u32(h[i]) end
  return table.concat(out)
end

function M.u32(x)
  return char(floor(x / 16777216) % 256, floor(x / 65536) % 256, floor(x / 256) % 256, floor(x % 256))
end

function M.hmac(key, message)
  if #key > 64 then key = M.sha256(key) end
  key = key .. ("\0"):rep(64 - #key)
  local inner = key:gsub(".", function(c) return char(floor(bxor(byte(c), 0x36))) end)
  local outer = key:gsub(".", function(c) return char(floor(bxor(byte(c), 0x5c))) end)
  return M.sha256(outer .. M.sha256(inner .. message))
end
-- "." matches no zero byte in Lua 5.1.
if #("\0"):gsub(".", "x") ~= 1 or ("\0"):gsub(".", "x") ~= "x" then
  function M.hmac(key, message)
    if #key > 64 then key = M.sha256(key) end
    local inner, outer = {}, {}
    for i = 1, 64 do
      local k = byte(key, i) or 0
      inner[i], outer[i] = char(bxor(k, 0x36)), char(bxor(k, 0x5c))
    end
    return M.sha256(table.concat(outer) .. M.sha256(table.concat(inner) .. message))
  end
end

function M.base64url(b)
  local alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
  local out = {}
  for at = 1, #b, 3 do
    local x, y, z = byte(b, at, at + 2)
    local n = x * 65536 + (y or 0) * 256 + (z or 0)
    for i = 0, (z and 3) or (y and 2) or 1 do
      local d = floor(n / 64 ^ (3 - i)) % 64 + 1
      out[#out + 1] = alphabet:sub(d, d)
    end
  end
  return table.concat(out)
end

-- The field of 2^255-19 as 16 limbs of 16 bits, after TweetNaCl (public domain).
local function carry(o)
  for _ = 1, 2 do
    for i = 1, 16 do
      local c = floor(o[i] / 65536)
      o[i] = o[i] - c * 65536
      if i < 16 then o[i + 1] = o[i + 1] + c else o[1] = o[1] + 38 * c end
    end
  end
  return o
end

local function add(a, b)
  local o = {}
  for i = 1, 16 do o[i] = a[i] + b[i] end
  return o
end

local function sub(a, b)
  local o = {}
  for i = 1, 16 do o[i] = a[i] - b[i] end
  return o
end

local function multiply(a, b)
  local t = {}
  for i = 1, 32 do t[i] = 0 end
  for i = 1, 16 do
    local x = a[i]
    for j = 1, 16 do t[i + j - 1] = t[i + j - 1] + x * b[j] end
  end
  local o = {}
  for i = 1, 16 do o[i] = t[i] + 38 * t[i + 16] end
  return carry(o)
end

local function number(n)
  local o = { n % 65536, floor(n / 65536) }
  for i = 3, 16 do o[i] = 0 end
  return o
end

-- Returns what both sides get, 32 bytes; all zeros is a public key that is none.
function M.x25519(secret, point)
  local z, x = { byte(secret, 1, 32) }, {}
  z[1] = z[1] - z[1] % 8
  z[32] = z[32] % 64 + 64
  for i = 1, 16 do x[i] = byte(point, 2 * i - 1) + 256 * byte(point, 2 * i) end
  x[16] = x[16] % 32768
  local a, b, c, d = number(1), x, number(0), number(1)
  for t = 254, 0, -1 do
    local bit1 = floor(z[floor(t / 8) + 1] / 2 ^ (t % 8)) % 2 == 1
    if bit1 then a, b, c, d = b, a, d, c end
    local e, f = add(a, c), sub(a, c)
    local g, h = add(b, d), sub(b, d)
    local ee, ff = multiply(e, e), multiply(f, f)
    local fg, he = multiply(g, f), multiply(h, e)
    local sum, difference = add(fg, he), sub(fg, he)
    b, d = multiply(sum, sum), multiply(multiply(difference, difference), x)
    local k = sub(ee, ff)
    a, c = multiply(ee, ff), multiply(k, add(ee, multiply(k, number(121665))))
    if bit1 then a, b, c, d = b, a, d, c end
  end
  local inverse = c
  for i = 253, 0, -1 do
    inverse = multiply(inverse, inverse)
    if i ~= 2 and i ~= 4 then inverse = multiply(inverse, c) end
  end
  local t = carry(carry(multiply(a, inverse)))
  for _ = 1, 2 do -- take the prime off where it fits
    local m, borrow = {}, 0
    for i = 1, 16 do
      m[i] = t[i] - (i == 1 and 0xffed or i == 16 and 0x7fff or 0xffff) - borrow
      borrow = m[i] < 0 and 1 or 0
      m[i] = m[i] % 65536
    end
    if borrow == 0 then t = m end
  end
  local out = {}
  for i = 1, 16 do out[i] = char(floor(t[i] % 256), floor(t[i] / 256)) end
  return table.concat(out)
end

M.base = "\9" .. ("\0"):rep(31)

return M
