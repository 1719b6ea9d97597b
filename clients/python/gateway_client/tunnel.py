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
STUCK = 0.5  # seconds that close gives a connection which takes nothing
PAUSE, LONGEST = 0.05, 1.0  # between attempts to resume that bring nothing: at first, and at most


def cut(s):
    """Closes a connection that is given up: who writes or reads it does no longer."""
    s = s.below() if isinstance(s, WebSocket) else s
    try:
        socket.socket.shutdown(s, socket.SHUT_RDWR)  # closing alone wakes nobody
    except OSError:
        pass
    s.close()


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

    def ask(self, at, request, then=b"", timeout=None):
        """Connects, sends a request, and returns the socket if the answer is 200."""
        timeout = self.timeout if timeout is None else timeout
        scheme, _, rest = self.gateways[at].rpartition("://")
        rest = rest.partition("/")[0]
        host, _, port = rest.rpartition(":")
        host = host.strip("[]")
        deadline = time.monotonic() + timeout
        s = socket.create_connection((host, int(port)), timeout)
        try:
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if scheme in ("tls", "wss"):
                s = (self.context or ssl.create_default_context()).wrap_socket(s, server_hostname=host)
            if scheme in ("ws", "wss"):
                s = WebSocket(s, rest)
                s.sendall(request.rstrip("\n").encode())  # a message of its own
                if then:
                    s.sendall(then)
            else:
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
            cut(s)
            raise NoAnswer("the gateway did not answer in time: connect again")
        except BaseException:
            cut(s)
            raise


class Link:
    """A connection that carries, or has carried, a tunnel."""

    def __init__(self, s, generation, patience):
        self.socket, self.generation = s, generation
        self.writing, self.moved = False, 0.0  # whether somebody does, and since when it takes nothing
        s.settimeout(patience)


class Tunnel:
    """A tunnel to a game server. One thread may read while another one writes."""

    def __init__(self, dialer, s, at, session):
        self.resumes = 0
        self._dialer, self._at, self._session = dialer, at, session
        # Guards the session and the fields here, and is notified of changes.
        self._state = threading.Condition(threading.RLock())
        # What on_event does with the tunnel is done by the thread that recovers.
        self._pumping, self._recovering = threading.Lock(), threading.RLock()
        self._attempting = self._pausing = False
        self._generation, self._closed, self._ended, self._closing = 0, False, None, None
        self._heard, self._asked = time.monotonic(), None
        # Of attempts to resume since bytes got through: how many, since when, what there was then.
        self._tries, self._pause, self._since, self._before, self._back = 0, PAUSE, 0.0, 0, None
        # A gateway takes something in the time that it has to answer.
        self._stall = None if session is None else dialer.silence + dialer.patience
        self._link = Link(s, 0, self._stall)

    @property
    def resumable(self):
        """Whether the tunnel outlives its connection."""
        return self._session is not None

    def fileno(self):
        return self._link.socket.fileno()

    def read(self, n=CHUNK, timeout=None):
        """Returns at most n bytes; none at the end. Raises TimeoutError after timeout
        seconds without any."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._session is None:
            self._wait(self._link.socket, deadline)
            return self._link.socket.recv(n)
        while True:
            with self._state:
                data = self._session.take(n, time.monotonic())
                end = self._session.at_end()
            if data or end:
                try:
                    self._flush()
                except OSError:
                    pass  # what is read next tells
                return data
            self._pump(deadline)

    def write(self, data):
        """Sends all of data, and waits where the game server does not read."""
        if self._session is None:
            return self._link.socket.sendall(data)
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
            s = self._link.socket
            if isinstance(s, ssl.SSLSocket):  # its shutdown would end reading too
                raise io.UnsupportedOperation("a plain tunnel by TLS cannot finish writing")
            return s.close_write() if isinstance(s, WebSocket) else s.shutdown(socket.SHUT_WR)
        with self._state:
            self._session.finish()
        self._flush()

    def close(self, wait=2.0):
        """Ends the tunnel. What was written still arrives, for which it waits a little: half a
        second where the connection takes nothing."""
        if self._session is not None and not self._closed:
            try:
                self._farewell(time.monotonic() + wait)
            except (OSError, ValueError, Violation):
                pass
        self._end(None)

    def _farewell(self, deadline):
        with self._state:
            self._closing = deadline
            link = self._link
            link.socket.settimeout(STUCK)
        self.close_write()
        while time.monotonic() < deadline:
            with self._state:
                data, link = self._session.take(CHUNK, time.monotonic()), self._link
                if self._closed or self._session.over():
                    return
                busy = self._attempting or link.writing
                if busy:
                    if link.writing and time.monotonic() - link.moved >= STUCK:
                        return
                    self._state.wait(0.05)
            if busy:
                continue
            self._flush()
            with self._state:
                if self._session.over():
                    return
            if not data:
                self._pump(min(deadline, time.monotonic() + 0.05), quiet=True)

    def abort(self):
        """Ends the tunnel at once: the game server of a resumable one sees a reset."""
        said = False
        with self._state:
            link = self._link
            if self._session is not None and not (self._closed or self._attempting or link.writing):
                said = link.writing = True
        if said:  # else the gateway finds out in time
            try:
                link.socket.settimeout(STUCK / 2)
                link.socket.sendall(b"\0\0\3\0")
            except OSError:
                pass
            link.writing = False
        self._end(None)

    def reconnect(self):
        """Goes on by another connection: for when the system tells of a change of networks."""
        if self._session is None:
            return
        with self._state:
            generation = self._generation
            if self._pausing:
                self._pausing = False
                self._state.notify_all()
            elif not self._attempting:
                self._tries = 0
        self._recover(generation, NoAnswer("reconnect was called"))
        self._flush()

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
            link, stuck = self._link, self._link.writing
            self._state.notify_all()
        if stuck:
            cut(link.socket)
        else:
            try:
                if isinstance(link.socket, WebSocket):  # which has last words
                    link.socket.settimeout(STUCK)
                    link.socket.close()
            except OSError:
                pass
            cut(link.socket)
        self._tell("ended", error)

    @staticmethod
    def _wait(s, deadline):
        if deadline is not None and not getattr(s, "pending", lambda: 0)():
            if not select.select([s], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError("nothing came in time")

    def _flush(self):
        """Writes what is to be written, unless somebody does already, or resumes: who does
        looks again."""
        while True:
            with self._state:
                link = self._link
                if self._closed or self._attempting or link.writing:
                    return
                b = self._session.output(time.monotonic())
                if not b:
                    return
                link.writing, link.moved = True, time.monotonic()
            error = None
            try:
                link.socket.sendall(b)
            except OSError as e:
                error = e
            with self._state:
                link.writing = False
                self._state.notify_all()
                if self._closed or error and self._session.over():
                    return
            if error and self._closing and isinstance(error, TimeoutError):
                raise error
            if error:
                self._recover(link.generation, error)

    def _pump(self, deadline, quiet=False):
        """Reads once, and takes care that a silent gateway is found out."""
        if not self._pumping.acquire(timeout=-1 if deadline is None else max(0, deadline - time.monotonic())):
            if quiet:
                return
            raise TimeoutError("nothing came in time")
        try:
            with self._state:
                self._check_open()
                link = self._link
                if self._session.closed is not None:
                    raise Gone("the game server or the gateway has ended the tunnel")
            until = time.monotonic() + min(1.0, self._dialer.silence, self._dialer.patience)
            try:
                self._wait(link.socket, until if deadline is None else min(until, deadline))
                data = link.socket.recv(CHUNK)
                if not data:
                    raise ConnectionError("the connection ended")
                self._heard, self._asked = time.monotonic(), None
            except TimeoutError:
                data = None
            with self._state:
                if data and link.generation == self._generation:
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
                self._recover(link.generation, error)
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
        while not self._recovering.acquire(timeout=0.05):
            self._check_open()
            self._check_late()
        try:
            with self._state:
                self._check_open()
                if generation != self._generation or self._attempting:
                    return
                self._attempting = True
            try:
                self._tell("reconnecting", error)
                cut(self._link.socket)
                self._attempt(error)
            finally:
                self._attempting = False
        finally:
            self._recovering.release()

    def _check_late(self):
        if self._closing and time.monotonic() >= self._closing:
            raise NoAnswer("the tunnel is being closed")

    def _attempt(self, error):
        d = self._dialer
        while True:
            if not self._prepare():
                if not isinstance(error, GatewayError):
                    error = NoAnswer(str(error))
                self._end(error)
                raise error
            with self._state:
                self._check_open()
                self._check_late()
                self._generation += 1
                line = self._session.reattach()
                first = self._session.output(time.monotonic())
                left = self._closing and max(0.001, self._closing - time.monotonic())
            try:
                s = d.ask(self._at, line, first, min(d.timeout, left) if left else d.timeout)
                break
            except OSError as e:
                error = e if isinstance(e, GatewayError) else NoAnswer(f"{d.gateways[self._at]}: {e}")
            if isinstance(error, (Unauthorized, Gone)):
                self._end(error)
                raise error
            self._tell("failed", error)
        with self._state:
            self._generation += 1
            self._link = Link(s, self._generation, STUCK if self._closing else self._stall)
            self._heard = self._back = time.monotonic()
            self._asked = None
            self.resumes += 1
            self._attempting = False
            self._state.notify_all()
            if self._closed:
                cut(s)
        if not self._closed:
            self._tell("back")

    def _prepare(self):
        """Waits where the last attempt has brought nothing, and chooses the gateway; False: it
        was tried for long enough. A gateway that answers 200 and ends the connection again and
        again brings nothing."""
        with self._state:
            now, gateways = time.monotonic(), len(self._dialer.gateways)
            if (self._tries == 0 or self._session.progress() != self._before
                    or self._back is not None and now - self._back >= 2 * LONGEST):
                self._tries, self._pause, self._since = 0, PAUSE, now
            elif now - self._since >= self._dialer.hold:
                return False
            else:
                self._at = (self._at + 1) % gateways
            if self._tries and self._tries % gateways == 0:
                until = now + self._pause * (1 + random.random())
                self._pausing = True
                while self._pausing and not self._closed and time.monotonic() < until:
                    self._state.wait(until - time.monotonic())
                self._pausing = False
                self._pause = min(2 * self._pause, LONGEST)
            self._tries += 1
            self._back = None
            self._before = self._session.progress()
            return True
