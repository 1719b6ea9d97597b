# The client's end of a resumable tunnel: offsets, frames and keys, without a socket or a
# clock. docs/roaming.md describes the protocol; clients/testdata has its vectors.

const Platform = preload("platform.gd")
const Crypto25519 = preload("crypto.gd")

const ACK = 1
const FIN = 2
const CLOSE = 3
const PING = 4
const PONG = 5
const HELLO = 6
const SKIPPED = 128

var secret
var public
var key = null
var ticket = ""
var window = 0
var seq = 0

# All offsets count from 0, and the end of a direction as one more byte. out holds the bytes
# from base on: the lowest that was not acknowledged, or that this connection has yet to carry.
var out = Platform.no_bytes()
var base = 0
var stop = 0
var acked = 0
var next = 0
var sent = 0
var finished = false

var inbox = Platform.no_bytes()
var received = 0
var passed = 0
var reported = 0
var since = 0
var ended = false
var closed = -1 # the reason of a CLOSE

var ack_now = false
var ping = false
var pong = false

# The frame at hand.
var head = Platform.no_bytes()
var left = 0
var skipping = false

# Takes 32 random bytes.
func _init(random):
	secret = random
	public = Crypto25519.x25519(secret, Crypto25519.base_point())

# Returns nothing for a key of the gateway's that is none.
static func key_of(secret, own, gateway):
	var shared = Crypto25519.x25519(secret, gateway)
	var bits = 0
	for b in shared:
		bits |= b
	if bits == 0:
		return null
	# HKDF-SHA256 (RFC 5869), of which one block is enough.
	var salt = Platform.slice(own, 0, 32)
	salt.append_array(gateway)
	var info = Platform.utf8("gateway resume key 1")
	info.append(1)
	return Crypto25519.hmac(Crypto25519.hmac(salt, shared), info)

static func open_line(own, sealed):
	return "~1N %s %s\n" % [Crypto25519.base64url(own), sealed]

# The numbers may be text.
static func resume_line(key, ticket, seq, from, recv):
	var said = PoolStringArray([ticket, str(seq), str(from), str(recv)])
	var mac = Crypto25519.hmac(key, Platform.utf8("resume 1\n" + said.join("\n")))
	return "~1R %s %s\n" % [said.join(" "), Crypto25519.base64url(mac)]

# How many bytes may be sent now.
func room():
	return 0 if finished or closed >= 0 else max(0, window - out.size())

func send(data):
	out.append_array(data)
	stop += data.size()

func finish():
	finished = true

# Whether both directions have ended, and both sides know.
func complete():
	return finished and acked == stop + 1 and ended and passed == received and reported == passed

func over():
	return closed >= 0 or complete()

func at_end():
	return ended and inbox.size() == 0

# Returns at most n received bytes: the application has them now.
func take(n, now):
	var data = Platform.slice(inbox, 0, n)
	inbox = Platform.slice(inbox, data.size(), inbox.size())
	var has = received - inbox.size() - (1 if ended and inbox.size() > 0 else 0)
	if has > passed:
		if passed == reported:
			since = now
		passed = has
		if at_end():
			ack_now = true
	return data

# Grows with each byte that is acknowledged or received.
func progress():
	return acked + received

# Returns what is to be written next to the connection: at most one frame of data. now is in
# milliseconds.
func output(now):
	var b = Platform.no_bytes()
	var unreported = passed - reported
	if pong:
		b.append_array(Platform.bytes_of([0, 0, PONG]))
	if ack_now or unreported >= 32768 or (unreported >= 4096 and next < stop) or (unreported > 0 and now - since >= 1000):
		b.append_array(Platform.bytes_of([0, 0, ACK, passed >> 24 & 255, passed >> 16 & 255, passed >> 8 & 255, passed & 255]))
		reported = passed
	if ping:
		b.append_array(Platform.bytes_of([0, 0, PING]))
	pong = false
	ack_now = false
	ping = false
	if next < stop:
		var part = Platform.slice(out, next - base, next - base + 16384)
		b.append_array(Platform.bytes_of([part.size() >> 8, part.size() & 255]))
		b.append_array(part)
		next += part.size()
	if finished and next == stop:
		b.append_array(Platform.bytes_of([0, 0, FIN]))
		next += 1
	sent = max(sent, next)
	_drop()
	return b

func _drop():
	var kept = min(acked, min(next, stop))
	if kept == base:
		return
	out = Platform.slice(out, kept - base, out.size())
	base = kept

# Takes what was read from the connection, cut anywhere. Returns nothing, or what breaks the
# protocol.
func input(data):
	var at = 0
	while at < data.size() and closed < 0:
		var wrong = ""
		if left > 0: # of a frame of data, or of one to be skipped
			var part = Platform.slice(data, at, at + left)
			at += part.size()
			left -= part.size()
			if not skipping:
				wrong = _take_data(part)
		else:
			var part = Platform.slice(data, at, at + _size() - head.size())
			at += part.size()
			head.append_array(part)
			if head.size() == _size():
				var h = head
				head = Platform.no_bytes()
				wrong = _take_head(h)
		if wrong != "":
			return wrong
	return ""

# How long the head at hand is at least, by what there is of it.
func _size():
	var n = head.size()
	if n < 2 or head[0] > 0 or head[1] > 0:
		return 2
	if n < 3:
		return 3
	var kind = head[2]
	if kind == ACK:
		return 7
	if kind == CLOSE:
		return 4
	if kind == HELLO and n >= 5:
		return 5 + (head[3] << 8 | head[4])
	return 5 if kind == HELLO or kind >= SKIPPED else 3

static func _u32(b, at):
	return b[at] << 24 | b[at + 1] << 16 | b[at + 2] << 8 | b[at + 3]

func _take_head(h):
	var kind = h[2] if h.size() > 2 else 0
	if (kind == HELLO) != (key == null):
		return "HELLO comes once, and first"
	if h.size() == 2:
		left = h[0] << 8 | h[1]
		skipping = false
	elif kind == ACK:
		var offset = acked + ((_u32(h, 3) - acked) & 0xffffffff)
		if offset > sent:
			return "an ACK beyond what was sent"
		acked = offset
		_drop()
	elif kind == FIN:
		if ended:
			return "a second end"
		ended = true
		received += 1
	elif kind == CLOSE:
		closed = h[3]
	elif kind == PING:
		pong = true
	elif kind == HELLO:
		return _take_hello(h)
	elif kind >= SKIPPED:
		left = h[3] << 8 | h[4]
		skipping = true
	elif kind != PONG:
		return "there is no frame of type %d" % kind
	return ""

func _take_hello(h):
	var w = _u32(h, 5) if h.size() > 41 and h.size() <= 41 + 256 else 0
	if w < 65536 or w > 1073741824:
		return "a HELLO that is none"
	ticket = Platform.slice(h, 9, h.size() - 32).get_string_from_ascii()
	key = key_of(secret, public, Platform.slice(h, h.size() - 32, h.size()))
	window = w
	return "" if key != null else "the gateway's key is none"

func _take_data(data):
	if ended:
		return "data behind the end"
	if received - reported + data.size() > window:
		return "more than the window"
	inbox.append_array(data)
	received += data.size()
	return ""

# Begins with a new connection, and returns the line to send on it. What is sent behind it
# starts at the lowest byte that is not acknowledged.
func reattach():
	seq += 1
	head = Platform.no_bytes()
	left = 0
	pong = false
	ping = false
	ack_now = true
	next = acked
	_drop()
	return resume_line(key, ticket, seq, acked, received)
