# X25519 (RFC 7748), HMAC-SHA256 (RFC 2104) and base64url. Their time depends on the values:
# for keys that live as long as one tunnel, and for nothing that is kept.

const Platform = preload("platform.gd")

static func sha256(b):
	var context = HashingContext.new()
	context.start(HashingContext.HASH_SHA256)
	context.update(b)
	return context.finish()

# Keys here are never longer than a block of 64 bytes. Godot 3.2 has no HMACContext.
static func hmac(key, message):
	var inner = Platform.no_bytes()
	var outer = Platform.no_bytes()
	for i in range(64):
		var k = key[i] if i < key.size() else 0
		inner.append(k ^ 0x36)
		outer.append(k ^ 0x5c)
	inner.append_array(message)
	outer.append_array(sha256(inner))
	return sha256(outer)

static func base64url(b):
	return Marshalls.raw_to_base64(b).replace("+", "-").replace("/", "_").replace("=", "")

# The field of 2^255-19 as 16 limbs of 16 bits, after TweetNaCl (public domain).
static func _carry(o):
	for _pass in range(2):
		for i in range(16):
			var c = o[i] >> 16 # of negative limbs too: the shift is arithmetic
			o[i] -= c << 16
			if i < 15:
				o[i + 1] += c
			else:
				o[0] += 38 * c
	return o

static func _add(a, b):
	var o = []
	for i in range(16):
		o.append(a[i] + b[i])
	return o

static func _sub(a, b):
	var o = []
	for i in range(16):
		o.append(a[i] - b[i])
	return o

static func _multiply(a, b):
	var t = []
	t.resize(32)
	for i in range(32):
		t[i] = 0
	for i in range(16):
		var x = a[i]
		for j in range(16):
			t[i + j] += x * b[j]
	var o = []
	for i in range(16):
		o.append(t[i] + 38 * t[i + 16])
	return _carry(o)

static func _number(n):
	var o = [n & 0xffff, n >> 16]
	for _i in range(14):
		o.append(0)
	return o

# Returns what both sides get, 32 bytes; all zeros is a public key that is none.
static func x25519(secret, point):
	var z = []
	for i in range(32):
		z.append(secret[i])
	z[0] &= 248
	z[31] = (z[31] & 63) | 64
	var x = []
	for i in range(16):
		x.append(point[2 * i] | point[2 * i + 1] << 8)
	x[15] &= 0x7fff
	var a = _number(1)
	var b = x
	var c = _number(0)
	var d = _number(1)
	var small = _number(121665)
	var swap
	for at in range(254, -1, -1):
		var bit = (z[at >> 3] >> (at & 7)) & 1
		if bit:
			swap = a
			a = b
			b = swap
			swap = c
			c = d
			d = swap
		var e = _add(a, c)
		var f = _sub(a, c)
		var g = _add(b, d)
		var h = _sub(b, d)
		var ee = _multiply(e, e)
		var ff = _multiply(f, f)
		var fg = _multiply(g, f)
		var he = _multiply(h, e)
		var sum = _add(fg, he)
		var difference = _sub(fg, he)
		b = _multiply(sum, sum)
		d = _multiply(_multiply(difference, difference), x)
		var k = _sub(ee, ff)
		a = _multiply(ee, ff)
		c = _multiply(k, _add(ee, _multiply(k, small)))
		if bit:
			swap = a
			a = b
			b = swap
			swap = c
			c = d
			d = swap
	var inverse = c
	for i in range(253, -1, -1):
		inverse = _multiply(inverse, inverse)
		if i != 2 and i != 4:
			inverse = _multiply(inverse, c)
	var t = _carry(_carry(_multiply(a, inverse)))
	for _pass in range(2): # take the prime off where it fits
		var m = []
		var borrow = 0
		for i in range(16):
			var limb = t[i] - (0xffed if i == 0 else 0x7fff if i == 15 else 0xffff) - borrow
			borrow = 1 if limb < 0 else 0
			m.append(limb & 0xffff)
		if borrow == 0:
			t = m
	var out = Platform.no_bytes()
	for i in range(16):
		out.append(t[i] & 0xff)
		out.append(t[i] >> 8)
	return out

static func base_point():
	var b = Platform.no_bytes()
	b.append(9)
	for _i in range(31):
		b.append(0)
	return b
