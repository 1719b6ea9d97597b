# A tunnel to a game server, for one thread: a game's, which reads once a frame. It is resumed
# within read and write, which wait for it.

const Platform = preload("platform.gd")
const GatewayError = preload("error.gd")

# Milliseconds that close gives a connection which takes nothing, and between attempts to resume
# that bring nothing: at first, and at most.
const STUCK = 500
const PAUSE = 50
const LONGEST = 1000

var resumes = 0
var ended = false # there is no more to read
var error = null # why the tunnel broke

var _dialer
var _at
var _stream
var _session
var _heard
var _asked = -1
var _recovering = false # until "back" is told
var _closing = -1 # when close has waited for long enough
# Of attempts to resume since bytes got through: how many, since when, and what there was then.
var _tries = 0
var _pause = PAUSE
var _since = 0
var _back = -1
var _before = 0

func _init(dialer, at, stream, session):
	_dialer = dialer
	_at = at
	_stream = stream
	_session = session
	_heard = Platform.now()
	_stream.stall = _stall()

# A gateway takes something in the time that it has to answer.
func _stall():
	if not _session:
		return 30000
	return STUCK if _closing >= 0 else _dialer.silence + _dialer.patience

# Whether the tunnel outlives its connection.
func resumable():
	return _session != null

# Reads at most n bytes. Returns none if none come within wait milliseconds, which may be 0;
# at the end, and then "ended" is true; and if the tunnel is broken, and then "error" says why.
func read(n = 65536, wait = 0):
	if not _stream:
		return Platform.no_bytes()
	if not _session:
		var data = _stream.read(n, wait)
		ended = _stream.ended
		return data
	var deadline = Platform.now() + wait
	while true:
		var data = _session.take(n, Platform.now())
		ended = _session.at_end()
		if data.size() > 0 or ended:
			_flush()
			return data
		if not _pump(deadline):
			return data
		if _session.inbox.size() == 0 and not _session.ended and Platform.now() >= deadline:
			return data

# Sends all of data, and waits where the game server does not read. Returns whether it could.
func write(data):
	if data is String:
		data = Platform.utf8(data)
	if not _stream:
		return false
	if not _session:
		if not _stream.write(data):
			error = GatewayError.new(0, _stream.why)
		return error == null
	while _stream:
		var part = Platform.slice(data, 0, _session.room())
		_session.send(part)
		data = Platform.slice(data, part.size(), data.size())
		if not _flush():
			return false
		if data.size() == 0:
			return true
		if part.size() == 0 and not _pump(Platform.now() + 1000):
			return false
	return false

# Finishes writing; reading goes on. Only a resumable tunnel can: returns whether it could.
func close_write():
	if not _session or not _stream:
		return false
	_session.finish()
	return _flush()

# Ends the tunnel. What was written still arrives, for which it waits a little: half a second where
# the connection takes nothing.
func close(wait = 2000):
	if _session and _stream and not _recovering:
		_closing = Platform.now() + wait
		_stream.stall = _stall()
		var ok = close_write()
		while ok and _stream and not _session.over() and Platform.now() < _closing:
			_session.take(65536, Platform.now())
			ok = _flush() and (_session.over() or _pump(_closing))
	_end(null)

# Ends the tunnel at once: the game server of a resumable one sees a reset.
func abort():
	if _session and _stream and not _recovering:
		_stream.stall = STUCK / 2
		_stream.write(Platform.bytes_of([0, 0, 3, 0]))
	_end(null)

# Goes on by another connection: for when the system tells of a change of networks.
func reconnect():
	if not _session or not _stream or _recovering:
		return true
	_tries = 0
	return _recover("reconnect was called") and _flush()

func _end(why):
	if not _stream:
		return false
	_stream.close()
	_stream = null
	error = why
	_dialer.emit_signal("event", "ended", why)
	return false

func _flush():
	while _stream:
		var data = _session.output(Platform.now())
		if data.size() == 0:
			return true
		if not _stream.write(data):
			if _session.over():
				return true
			if _closing >= 0 and _stream.stalled:
				return false
			if not _recover(_stream.why):
				return false
	return false

# Reads once, at the latest until deadline; finds out a silent gateway.
func _pump(deadline):
	if not _stream:
		return false
	if _session.closed >= 0:
		return _end(GatewayError.new(410, "the game server or the gateway has ended the tunnel"))
	var wait = min(1000, min(_dialer.silence, min(_dialer.patience, max(0, deadline - Platform.now()))))
	var data = _stream.read(65536, wait)
	var lost = _stream.why
	var now = Platform.now()
	if data.size() > 0:
		_heard = now
		_asked = -1
		var wrong = _session.input(data)
		if wrong != "":
			return _end(GatewayError.new(0, "the gateway breaks the protocol: " + wrong))
	elif _asked >= 0:
		if now - _asked >= _dialer.patience:
			lost = "the gateway is silent"
	elif now - _heard >= _dialer.silence:
		_asked = now
		_session.ping = true
	if lost != "" and not _session.over() and not _recover(lost):
		return false
	return _flush()

# Looks for a connection that carries the tunnel on.
func _recover(lost):
	_recovering = true
	var why = GatewayError.new(0, lost)
	_dialer.emit_signal("event", "reconnecting", why)
	if _stream:
		_stream.close()
	while _stream: # the event may have ended the tunnel
		if not _prepare():
			return _end(why)
		var request = Platform.utf8(_session.reattach())
		request.append_array(_session.output(Platform.now()))
		var within = _dialer.timeout
		if _closing >= 0:
			within = max(1, min(within, _closing - Platform.now()))
		var stream = _dialer.ask(_at, request, within)
		if stream:
			_stream = stream
			_stream.stall = _stall()
			resumes += 1
			_heard = Platform.now()
			_back = _heard
			_asked = -1
			_recovering = false
			_dialer.emit_signal("event", "back", null)
			return _stream != null
		why = _dialer.error
		if why.status == 401 or why.status == 410:
			return _end(why)
		_dialer.emit_signal("event", "failed", why)
	return false

# Waits where the last attempt has brought nothing, and chooses the gateway; false: it was tried
# for long enough. A gateway that answers 200 and ends the connection again and again brings
# nothing.
func _prepare():
	var now = Platform.now()
	if _tries == 0 or _session.progress() != _before or (_back >= 0 and now - _back >= 2 * LONGEST):
		_tries = 0
		_pause = PAUSE
		_since = now
	elif now - _since >= _dialer.hold or (_closing >= 0 and now >= _closing):
		return false
	else:
		_at = (_at + 1) % _dialer.gateways.size()
	if _tries > 0 and _tries % _dialer.gateways.size() == 0:
		var wait = _pause * (1 + randf())
		if _closing >= 0:
			wait = max(0, min(wait, _closing - now))
		Platform.sleep(wait)
		_pause = min(2 * _pause, LONGEST)
	_tries += 1
	_back = -1
	_before = _session.progress()
	return true
