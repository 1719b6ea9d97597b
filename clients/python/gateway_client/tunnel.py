"""Tunnels for programs with threads, or with a loop of their own."""

import io
import random
import select
import socket
import ssl
import threading
import time

from .errors import BadRequest, GatewayError, Gone, NoAnswer, Unauthorized, check
from .session import Session, Violation, open_line
from .websocket import WebSocket

CHUNK = 64 << 10


class Dialer:
    """Says how tunnels are opened and resumed.

    gateways: tried in turn, "host:port" or a URL: tcp, tls, ws or wss, "//host:port".
    new_line: called with the error where a new line may help; returns one, or None.
    plain: asks for no more than a plain tunnel.
    timeout: seconds for one gateway to be reached and to answer.
    hold: seconds that a lost tunnel is tried to be resumed.
    silence, patience: seconds after which a silent gateway is asked whether it is
      there, and has to answer.
    on_event: called with "reconnecting", "back", "failed" or "ended", and the error.
    context: an ssl.SSLContext for tls and wss.
    """

    def __init__(self, gateways, *, new_line=None, plain=False, timeout=5.0, hold=30.0,
                 silence=5.0, patience=3.0, on_event=None, context=None):
        self.gateways = [gateways] if isinstance(gateways, str) else list(gateways)
        if not self.gateways:
            raise ValueError("no gateway to dial")
        self.new_line, self.plain, self.timeout, self.hold = new_line, plain, timeout, hold
        self.silence, self.patience, self.on_event, self.context = silence, patience, on_event, context

    def dial(self, line):
        """Opens a tunnel to the game server whose sealed line, or token, is given."""
        for again in (True, False):
            error = None
            for at in range(len(self.gateways)):
                try:
                    return self._open(at, line.strip())
                except Unauthorized as e:  # the next gateway would say the same
                    error = e
                    break
                except OSError as e:
                    error = e if isinstance(e, GatewayError) else NoAnswer(f"{self.gateways[at]}: {e}: connect again")
            line = again and self.new_line and error.status and self.new_line(error)
            if not line:
                raise error

    def _open(self, at, line):
        if not self.plain:
            session = Session()
            deadline = time.monotonic() + self.timeout
            try:
                s = self.ask(at, open_line(session.public, line))
            except (BadRequest, Unauthorized):
                pass  # what knows of no sessions calls them a bad address
            else:
                try:
                    while session.key is None:
                        s.settimeout(max(0.001, deadline - time.monotonic()))
                        data = s.recv(4096)
                        if not data:
                            raise NoAnswer()
                        session.input(data)
                    return Tunnel(self, s, at, session)
                except Violation as e:
                    s.close()
                    raise NoAnswer(str(e))
                except BaseException:
                    s.close()
                    raise
        return Tunnel(self, self.ask(at, line + "\n"), at, None)

    def ask(self, at, request, then=b""):
        """Connects, sends a request, and returns the socket if the answer is 200."""
        scheme, _, rest = self.gateways[at].rpartition("://")
        rest = rest.partition("/")[0]
        host, _, port = rest.rpartition(":")
        host = host.strip("[]")
        deadline = time.monotonic() + self.timeout
        s = socket.create_connection((host, int(port)), self.timeout)
        try:
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if scheme in ("tls", "wss"):
                s = (self.context or ssl.create_default_context()).wrap_socket(s, server_hostname=host)
            if scheme in ("ws", "wss"):
                s = WebSocket(s, rest)
                request = request.rstrip("\n")
            s.sendall(request.encode() + then)
            status = b""
            while len(status) < 3:  # a fourth byte would be the game server's
                s.settimeout(max(0.001, deadline - time.monotonic()))
                part = s.recv(3 - len(status))
                if not part:
                    raise NoAnswer("the gateway closed without a status: connect again")
                status += part
            check(status)
            return s
        except (socket.timeout, TimeoutError):
            s.close()
            raise NoAnswer("the gateway did not answer in time: connect again")
        except BaseException:
            s.close()
            raise


class Tunnel:
    """A tunnel to a game server. One thread may read while another one writes."""

    def __init__(self, dialer, s, at, session):
        self.resumes = 0
        self._dialer, self._socket, self._at, self._session = dialer, s, at, session
        self._state = threading.RLock()  # of the session and of the fields here
        # What on_event does with the tunnel is done by the thread that recovers.
        self._pumping, self._flushing, self._recovering = threading.Lock(), threading.RLock(), threading.RLock()
        self._attempting = False  # while one does: seen by its on_event alone
        self._generation, self._closed, self._ended = 0, False, None
        self._heard, self._asked, self._woken = time.monotonic(), None, False
        s.settimeout(None if session is None else dialer.hold)

    @property
    def resumable(self):
        """Whether the tunnel outlives its connection."""
        return self._session is not None

    def fileno(self):
        return self._socket.fileno()

    def read(self, n=CHUNK, timeout=None):
        """Returns at most n bytes; none at the end. Raises TimeoutError after timeout
        seconds without any."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._session is None:
            self._wait(self._socket, deadline)
            return self._socket.recv(n)
        while True:
            with self._state:
                data = self._session.take(n, time.monotonic())
                end = self._session.at_end()
            if data or end:
                self._flush()
                return data
            self._pump(deadline)

    def write(self, data):
        """Sends all of data, and waits where the game server does not read."""
        if self._session is None:
            return self._socket.sendall(data)
        data = memoryview(data)
        while True:
            with self._state:
                self._check_open()
                n = min(len(data), self._session.room())
                self._session.send(data[:n])
            data = data[n:]
            self._flush()
            if not data:
                return
            if not n:
                self._pump(time.monotonic() + 0.05, quiet=True)

    def close_write(self):
        """Finishes writing; reading goes on."""
        if self._session is None:
            s = self._socket
            if isinstance(s, ssl.SSLSocket):  # its shutdown would end reading too
                raise io.UnsupportedOperation("a plain tunnel by TLS cannot finish writing")
            return s.close_write() if isinstance(s, WebSocket) else s.shutdown(socket.SHUT_WR)
        with self._state:
            self._session.finish()
        self._flush()

    def close(self, wait=2.0):
        """Ends the tunnel. What was written still arrives, for which it waits a little."""
        if self._session is not None and not self._closed:
            try:
                self.close_write()
                deadline = time.monotonic() + wait
                while not self._session.over():
                    self.read(timeout=max(0, deadline - time.monotonic()))
                    if self._session.at_end():
                        self._pump(deadline)
            except (OSError, Violation):
                pass
        self._end(None)

    def abort(self):
        """Ends the tunnel at once: the game server sees a reset."""
        if self._session is not None:
            with self._flushing:
                try:
                    self._socket.sendall(b"\0\0\3\0")
                except OSError:
                    pass
        self._end(None)

    def reconnect(self):
        """Goes on by another connection: for when the system tells of a change of networks."""
        if self._session is not None:
            with self._state:
                generation = self._generation
            self._recover(generation, NoAnswer("reconnect was called"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _tell(self, event, error=None):
        if self._dialer.on_event:
            self._dialer.on_event(event, error)

    def _check_open(self):
        if self._closed:
            raise self._ended or ConnectionError("the tunnel is closed")

    def _end(self, error):
        with self._state:
            if self._closed:
                return
            self._closed, self._ended = True, error
        self._socket.close()
        self._tell("ended", error)

    @staticmethod
    def _wait(s, deadline):
        if deadline is not None and not getattr(s, "pending", lambda: 0)():
            if not select.select([s], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError("nothing came in time")

    def _flush(self):
        with self._flushing:
            with self._state:
                s, generation = self._socket, self._generation
                b = b"" if self._closed else self._session.output(time.monotonic())
            if not b:
                return
            try:
                s.sendall(b)
                return
            except OSError as e:
                error = e
        if not self._session.over():
            self._recover(generation, error)

    def _pump(self, deadline, quiet=False):
        """Reads once, and takes care that a silent gateway is found out."""
        if not self._pumping.acquire(timeout=-1 if deadline is None else max(0, deadline - time.monotonic())):
            if quiet:
                return
            raise TimeoutError("nothing came in time")
        try:
            with self._state:
                self._check_open()
                s, generation = self._socket, self._generation
                if self._session.closed is not None:
                    raise Gone("the game server or the gateway has ended the tunnel")
            until = time.monotonic() + min(1.0, self._dialer.silence, self._dialer.patience)
            try:
                self._wait(s, until if deadline is None else min(until, deadline))
                data = s.recv(CHUNK)
                if not data:
                    raise ConnectionError("the connection ended")
                self._heard, self._asked = time.monotonic(), None
            except TimeoutError:
                data = None
            with self._state:
                if data and generation == self._generation:
                    try:
                        self._session.input(data)
                    except Violation as e:
                        self._end(ConnectionError(f"the gateway breaks the protocol: {e}"))
                        self._check_open()
            error = None if data else self._silent()
        except (OSError, ValueError) as e:
            if self._closed or isinstance(e, Gone):
                self._end(e)
                raise
            error = e
        finally:
            self._pumping.release()
        if error:
            if not self._session.over():
                self._recover(generation, error)
        self._flush()
        if not quiet and deadline is not None and time.monotonic() >= deadline and not self._session.inbox:
            raise TimeoutError("nothing came in time")

    def _silent(self):
        now = time.monotonic()
        if self._asked is None:
            if now - self._heard >= self._dialer.silence:
                self._asked = now
                with self._state:
                    self._session.ping = True
        elif now - self._asked >= self._dialer.patience:
            return NoAnswer("the gateway is silent")
        return None

    def _recover(self, generation, error):
        """Looks for a connection that carries the tunnel on, unless somebody has found one."""
        with self._recovering, self._flushing:
            with self._state:
                self._check_open()
                if generation != self._generation or self._attempting:
                    return
                self._attempting = True
            try:
                self._tell("reconnecting", error)
                self._socket.close()
                lost, pause, failed, d = time.monotonic(), 0.05, 0, self._dialer
                while True:
                    with self._state:
                        self._check_open()
                        self._generation += 1
                        line = self._session.reattach()
                        first = self._session.output(time.monotonic())
                    try:
                        s = d.ask(self._at, line, first)
                        break
                    except OSError as e:
                        error = e if isinstance(e, GatewayError) else NoAnswer(f"{d.gateways[self._at]}: {e}")
                    if isinstance(error, (Unauthorized, Gone)) or time.monotonic() - lost >= d.hold:
                        self._end(error)
                        raise error
                    self._tell("failed", error)
                    self._at = (self._at + 1) % len(d.gateways)
                    failed += 1
                    if failed % len(d.gateways) == 0:
                        time.sleep(pause + random.random() * pause)
                        pause = min(2 * pause, 1.0)
                s.settimeout(d.hold)
                with self._state:
                    self._socket = s
                    self._generation += 1
                    self._heard, self._asked = time.monotonic(), None
                    self.resumes += 1
                    self._attempting = False
                self._tell("back")
            finally:
                self._attempting = False
