# MODE GATEWAYS LINES MILLISECONDS TEXT, behind -s driver.gd; see ../suite_test.go. It answers
# in lines that begin with "> ", as the engine prints too. The vectors are in the file IN.
extends SceneTree

const Dialer = preload("res://gateway/dialer.gd")
const Session = preload("res://gateway/session.gd")
const Crypto25519 = preload("res://gateway/crypto.gd")

var _lines
var _again # the tunnel, in the mode of that name
var _backs = 0
var _leaves # the tunnel, in the mode leave
var _took = -1 # closing

func _init():
	var args = OS.get_cmdline_args()
	args = Array(args).slice(2, args.size() - 1)
	if args[0] == "vectors":
		_vectors()
	else:
		print("> ", _run(args[0], args[1].split(","), args[2].split(","), int(args[3]), args[4]))
	quit()

func _bytes(hex):
	var b = PoolByteArray()
	for i in range(0, hex.length(), 2):
		b.append(("0x" + hex.substr(i, 2)).hex_to_int())
	return b

func _vectors():
	var file = File.new()
	file.open(OS.get_environment("IN"), File.READ)
	for request in file.get_as_text().strip_edges().split("\n"):
		print("> ", _answer(request.split(" ")))

func _answer(w):
	if w[0] == "key":
		var own = Crypto25519.x25519(_bytes(w[1]), Crypto25519.base_point())
		var key = Session.key_of(_bytes(w[1]), own, _bytes(w[2]))
		return Crypto25519.base64url(own) + " " + key.hex_encode() if key != null else "refused"
	if w[0] == "open":
		return Session.open_line(_bytes(w[1]), w[2]).strip_edges()
	if w[0] == "resume":
		return Session.resume_line(_bytes(w[1]), w[2], w[3], w[4], w[5]).strip_edges()
	var ones = PoolByteArray()
	for _i in range(32):
		ones.append(1)
	var s = Session.new(ones)
	var reads = PoolByteArray()
	for i in range(2, w.size()):
		var step = w[i].split(":")
		if step[0] == "receive":
			for b in _bytes(step[1]):
				if s.input(PoolByteArray([b])) != "":
					return "refused"
			if s.key != null:
				s.key = _bytes(w[1])
		elif step[0] == "write":
			s.send(_bytes(step[1]))
			s.output(0)
		elif step[0] == "finish":
			s.finish()
			s.output(0)
		else:
			s.reattach()
		reads.append_array(s.take(4096, 0))
	var line = s.reattach().strip_edges()
	return "%s %s %s" % [line, s.output(0).hex_encode(), reads.hex_encode()]

func more(_error):
	return _lines[1] if _lines.size() > 1 else ""

func _event(event, _why):
	_backs += int(event == "back")
	if _leaves and event == "reconnecting":
		var began = OS.get_ticks_msec()
		_leaves.close()
		_took = OS.get_ticks_msec() - began
	if _again and event != "ended" and _backs <= 20:
		_again.reconnect()

func _error(e):
	return "error %d %s" % [e.status, e.advice]

func _run(mode, gateways, lines, milliseconds, text):
	_lines = lines
	var dialer = Dialer.new(gateways)
	dialer.plain = mode == "talk"
	dialer.timeout = milliseconds
	dialer.hold = 10000
	var stuck = mode in ["told", "silent", "leave"]
	if stuck:
		dialer.silence = 500
		dialer.patience = 500
		dialer.timeout = 60000 # dialling is not what is tested
	dialer.new_line = funcref(self, "more")
	if OS.get_environment("CA") != "":
		dialer.certificate = X509Certificate.new()
		dialer.certificate.load(OS.get_environment("CA"))
		dialer.certificate_name = OS.get_environment("CA_NAME")
	dialer.connect("event", self, "_event")
	var tunnel = dialer.dial(lines[0])
	if not tunnel:
		return _error(dialer.error)
	if mode == "again":
		_again = tunnel
		tunnel.reconnect()
	dialer.timeout = milliseconds
	if mode == "leave":
		_leaves = tunnel
	if mode == "bulk" or mode == "again" or stuck:
		return _bulk(tunnel, int(text), stuck)
	tunnel.write(text)
	var finishes = tunnel.close_write()
	var got = PoolByteArray()
	while not tunnel.ended and not tunnel.error:
		got.append_array(tunnel.read(4096, 1000))
		# What cannot finish writing gets an end from nobody.
		if not finishes and got.get_string_from_utf8().ends_with(text):
			break
	if tunnel.error:
		return _error(tunnel.error)
	tunnel.close()
	return "ok %s %s" % ["resumable" if tunnel.resumable() else "plain", got.get_string_from_utf8()]

func _bulk(tunnel, n, stuck):
	var want = PoolByteArray()
	for i in range(n):
		want.append((i * 7 + i / 251) & 255)
	var got = PoolByteArray()
	for at in range(0, n, 4096):
		tunnel.write(want.subarray(at, min(n, at + 4096) - 1))
		if _took >= 0:
			return "closed in time" if _took < 1000 else "closed after %d ms" % _took
		if stuck and at + 4096 < n:
			continue
		while got.size() < min(n, at + 4096) and not tunnel.error and not tunnel.ended:
			got.append_array(tunnel.read(4096, 1000))
		if tunnel.error:
			return _error(tunnel.error)
	tunnel.close()
	if got != want:
		return "other bytes"
	return "ok %d %s" % [got.size(), "resumed" if tunnel.resumes > 0 else "not resumed"]
