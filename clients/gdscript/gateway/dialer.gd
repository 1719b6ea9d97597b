# Says how tunnels are opened and resumed. README.md has an example.

signal event(what, error) # "reconnecting", "back", "failed" or "ended"

const Platform = preload("platform.gd")
const Streams = preload("streams.gd")
const Session = preload("session.gd")
const Tunnel = preload("tunnel.gd")
const GatewayError = preload("error.gd")

var gateways # host:port, or with tls://, ws:// or wss:// in front; tried in turn
var new_line = null # a FuncRef: called with the error, asks your login server for a new line; "" for none
var plain = false # asks for no more than a plain tunnel
# Milliseconds: for one gateway to be reached and to answer; for which a lost tunnel is tried to
# be resumed; after which a silent gateway is asked, and has to answer.
var timeout = 5000
var hold = 30000
var silence = 5000
var patience = 3000
var certificate = null # an X509Certificate: the authority to trust, in place of the system's
var certificate_name = "" # what a gateway's certificate is for, in place of its host
var error = null # why the last dial gave no tunnel

func _init(list):
	gateways = [list] if list is String else list

# Opens a tunnel to the game server whose sealed line, or token, is given. Returns it, or null:
# error says why.
func dial(line):
	for again in [true, false]:
		for at in range(gateways.size()):
			var tunnel = _open(at, line.strip_edges())
			if tunnel:
				return tunnel
			if error.status == 401:
				break # the next gateway would say the same
		line = ""
		if again and error.status != 0 and new_line:
			line = Platform.call_back(new_line, error)
		if not line:
			break
	return null

func _open(at, line):
	if not plain:
		var session = Session.new(Platform.random(32))
		var stream = ask(at, Platform.utf8(Session.open_line(session.public, line)))
		if stream:
			return _begin(at, stream, session)
		if error.status != 400 and error.status != 401:
			return null
		# What knows of no sessions calls them a bad address.
	var stream = ask(at, Platform.utf8(line + "\n"))
	return Tunnel.new(self, at, stream, null) if stream else null

# Waits for HELLO.
func _begin(at, stream, session):
	var deadline = Platform.now() + timeout
	while session.key == null:
		var data = stream.read(4096, max(0, deadline - Platform.now()))
		var wrong = session.input(data)
		if data.size() == 0 or wrong != "":
			stream.close()
			error = GatewayError.new(0, wrong)
			return null
	return Tunnel.new(self, at, stream, session)

# Sends a request to a gateway, and returns the stream behind its 200, or null.
func ask(at, request, within = -1):
	within = timeout if within < 0 else within
	var deadline = Platform.now() + within
	var stream = Streams.connect_to(gateways[at], within, certificate, certificate_name)
	if stream is String:
		error = GatewayError.new(0, "%s: %s: connect again" % [gateways[at], stream])
		return null
	var status = Platform.no_bytes()
	stream.stall = within
	var ok = stream.write(request)
	while ok and status.size() < 3: # a fourth byte would be the game server's
		var data = stream.read(3 - status.size(), max(0, deadline - Platform.now()))
		ok = data.size() > 0
		status.append_array(data)
	var text = status.get_string_from_ascii()
	if text == "200":
		return stream
	stream.close()
	if not ok:
		error = GatewayError.new(0, "%s: the gateway did not answer: connect again" % gateways[at])
	elif text != "0" and text in ["400", "401", "410", "502", "504"]:
		error = GatewayError.new(int(text))
	else:
		error = GatewayError.new(0, "the answer is no status: is this the gateway's address?")
	return null
