# What tunnels go by: TCP, TLS and WebSocket of Godot 3. Each has read(n, wait), which returns
# at most n bytes, or none: then "ended" and "why" say whether there will be more; write(data),
# which returns whether it could: not where the connection takes nothing for "stall"; close_write()
# and close(), which does not wait. Times are milliseconds.

const Platform = preload("platform.gd")
const STEP = 2 # ms between looks at a socket: Godot's cannot be waited for

class TCP:
	var peer
	var ended = false
	var why = ""
	var stall = 30000
	var stalled = false

	func _init(connected):
		peer = connected

	func _open():
		return peer.get_status() == StreamPeerTCP.STATUS_CONNECTED

	func read(n, wait):
		var deadline = Platform.now() + wait
		while true:
			var open = _open()
			# What has come before an end is still there.
			var there = peer.get_available_bytes() if open else 0
			if there > 0:
				var got = peer.get_partial_data(min(n, there))
				if got[1].size() > 0:
					return got[1]
			if not open:
				ended = true
				why = "the connection ended"
				return Platform.no_bytes()
			if Platform.now() >= deadline:
				return Platform.no_bytes()
			Platform.sleep(STEP)

	func write(data):
		var deadline = Platform.now() + stall
		while data.size() > 0:
			var result = peer.put_partial_data(data) if _open() else [FAILED, 0]
			stalled = result[0] == OK and result[1] == 0 and Platform.now() > deadline
			if result[0] != OK or stalled:
				why = "the gateway takes nothing" if stalled else "the connection broke"
				return false
			data = Platform.slice(data, result[1], data.size())
			if result[1] == 0:
				Platform.sleep(STEP)
			else:
				deadline = Platform.now() + stall
		return true

	# Godot's sockets cannot finish writing; frames of a resumable tunnel can.
	func close_write():
		return false

	func close():
		peer.disconnect_from_host()

class TLS:
	extends TCP
	var tcp

	func _init(connected, below).(connected):
		tcp = below

	func _open():
		peer.poll()
		return peer.get_status() == StreamPeerSSL.STATUS_CONNECTED

	func close():
		peer.disconnect_from_stream()
		tcp.disconnect_from_host()

class WS:
	var client
	var ended = false
	var why = ""
	var stall = 30000
	var stalled = false
	var rest = Platform.no_bytes()
	var first = true # the request is text

	func _init(connected):
		client = connected
		# What comes right before an end is lost, unless it is taken where the signal tells.
		client.connect("data_received", self, "_take")

	func _take():
		rest.append_array(client.get_peer(1).get_packet())

	func read(n, wait):
		var deadline = Platform.now() + wait
		while rest.size() == 0:
			client.poll()
			if rest.size() > 0:
				break
			elif client.get_connection_status() != NetworkedMultiplayerPeer.CONNECTION_CONNECTED:
				ended = true
				why = "the connection ended"
				return rest
			elif Platform.now() >= deadline:
				return rest
			else:
				Platform.sleep(STEP)
		var data = Platform.slice(rest, 0, n)
		rest = Platform.slice(rest, data.size(), rest.size())
		return data

	func write(data):
		var peer = client.get_peer(1)
		if first: # up to its newline, which has its place in the border of messages
			first = false
			var line = 0
			while data[line] != 10:
				line += 1
			peer.set_write_mode(WebSocketPeer.WRITE_MODE_TEXT)
			if peer.put_packet(Platform.slice(data, 0, line)) != OK:
				why = "the connection broke"
				return false
			data = Platform.slice(data, line + 1, data.size())
		peer.set_write_mode(WebSocketPeer.WRITE_MODE_BINARY)
		for at in range(0, data.size(), 16384): # its buffer has 64 KiB
			client.poll()
			if client.get_connection_status() != NetworkedMultiplayerPeer.CONNECTION_CONNECTED \
					or peer.put_packet(Platform.slice(data, at, at + 16384)) != OK:
				why = "the connection broke"
				return false
			client.poll()
		return true

	func close_write():
		return false

	func close():
		client.disconnect_from_host(1000)

# Connects to host:port, or one with tls://, ws:// or wss:// in front. Returns a stream, or why
# there is none. certificate is the authority to trust, in place of the system's; name is what
# the gateway's certificate has to be for, in place of the host.
static func connect_to(gateway, timeout, certificate, name):
	var deadline = Platform.now() + timeout
	if gateway.begins_with("ws://") or gateway.begins_with("wss://"):
		return _connect_ws(gateway, deadline, certificate)
	var tls = gateway.begins_with("tls://")
	var address = gateway.substr(6) if tls else gateway
	var colon = address.find_last(":")
	if colon < 0:
		return "no host:port"
	var host = address.substr(0, colon).replace("[", "").replace("]", "")
	var tcp = StreamPeerTCP.new()
	if tcp.connect_to_host(host, int(address.substr(colon + 1))) != OK:
		return "no such host"
	while tcp.get_status() == StreamPeerTCP.STATUS_CONNECTING:
		if Platform.now() >= deadline:
			tcp.disconnect_from_host()
			return "connecting took too long"
		Platform.sleep(STEP)
	if tcp.get_status() != StreamPeerTCP.STATUS_CONNECTED:
		return "connecting was refused"
	tcp.set_no_delay(true)
	if not tls:
		return TCP.new(tcp)
	var ssl = StreamPeerSSL.new()
	ssl.blocking_handshake = false
	if ssl.connect_to_stream(tcp, true, name if name != "" else host, certificate) != OK:
		return "TLS failed"
	while ssl.get_status() == StreamPeerSSL.STATUS_HANDSHAKING:
		ssl.poll()
		if Platform.now() >= deadline:
			tcp.disconnect_from_host()
			return "the gateway's handshake took too long"
		Platform.sleep(STEP)
	if ssl.get_status() != StreamPeerSSL.STATUS_CONNECTED:
		tcp.disconnect_from_host()
		return "the gateway's certificate is not trusted, or for another name"
	return TLS.new(ssl, tcp)

static func _connect_ws(gateway, deadline, certificate):
	var client = WebSocketClient.new()
	client.verify_ssl = true
	if certificate:
		client.trusted_ssl_certificate = certificate
	if client.connect_to_url(gateway) != OK:
		return "no WebSocket URL"
	while client.get_connection_status() == NetworkedMultiplayerPeer.CONNECTION_CONNECTING:
		client.poll()
		if Platform.now() >= deadline:
			client.disconnect_from_host()
			return "connecting took too long"
		Platform.sleep(STEP)
	if client.get_connection_status() != NetworkedMultiplayerPeer.CONNECTION_CONNECTED:
		return "connecting was refused"
	return WS.new(client)
