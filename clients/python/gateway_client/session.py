"""The client's end of a resumable tunnel: offsets, frames and keys, without a socket
or a clock. docs/roaming.md describes the protocol; clients/testdata has its vectors.
"""

import base64
import hashlib
import hmac
import os
import struct

from .x25519 import BASE, x25519

ACK, FIN, CLOSE, PING, PONG, HELLO, SKIPPED = 1, 2, 3, 4, 5, 6, 128
MAX_DATA = 16384
ACK_WITH_DATA, ACK_ALONE, ACK_DELAY = 4 << 10, 32 << 10, 1.0  # bytes, bytes, seconds


class Violation(Exception):
    """What was received is not the protocol."""


def base64url(b):
    return base64.urlsafe_b64encode(b).rstrip(b"=").decode()


def session_key(private, public, gateway):
    """Returns K, or raises Violation where the gateway's key is none."""
    shared = x25519(private, gateway)
    if not any(shared):
        raise Violation("the gateway's key is none")
    # HKDF-SHA256 (RFC 5869), of which one block is enough.
    prk = hmac.new(public + gateway, shared, hashlib.sha256).digest()
    return hmac.new(prk, b"gateway resume key 1\x01", hashlib.sha256).digest()


def open_line(public, sealed):
    return f"~1N {base64url(public)} {sealed}\n"


def resume_line(key, ticket, seq, start, recv):
    text = f"resume 1\n{ticket}\n{seq}\n{start}\n{recv}".encode()
    mac = base64url(hmac.new(key, text, hashlib.sha256).digest())
    return f"~1R {ticket} {seq} {start} {recv} {mac}\n"


class Session:
    """All offsets count from 0, and the end of a direction as one more byte."""

    def __init__(self, private=None):
        self.private = private or os.urandom(32)
        self.public = x25519(self.private, BASE)
        self.key = self.ticket = None
        self.window = 0
        self.seq = 0
        # What is sent. out holds the bytes from base on: the lowest that was not
        # acknowledged, or that this connection has yet to carry.
        self.out, self.base, self.end, self.finished = bytearray(), 0, 0, False
        self.acked = self.next = self.sent = 0
        # What is received.
        self.inbox, self.received, self.passed, self.reported = bytearray(), 0, 0, 0
        self.since, self.ended = 0.0, False
        self.closed = None  # the reason of the gateway's CLOSE
        self._begin()

    def _begin(self):
        """Stands before the first frame of a connection."""
        self.head, self.left, self.skipping = bytearray(), 0, False
        self.ack_now = self.ping = self.pong = False

    def room(self):
        """How many bytes may be sent now."""
        return 0 if self.finished or self.closed is not None else max(0, self.window - len(self.out))

    def send(self, data):
        self.out += data
        self.end += len(data)

    def finish(self):
        self.finished = True

    def complete(self):
        """Both directions have ended, and both sides know."""
        return (self.finished and self.acked == self.end + 1
                and self.ended and self.passed == self.received == self.reported)

    def over(self):
        return self.closed is not None or self.complete()

    def at_end(self):
        return self.ended and not self.inbox

    def take(self, n, now):
        """Returns at most n received bytes: the application has them now."""
        data = bytes(self.inbox[:n])
        del self.inbox[:n]
        passed = self.received - len(self.inbox) - (self.ended and len(self.inbox) > 0)
        if passed > self.passed:
            if self.passed == self.reported:
                self.since = now
            self.passed = passed
            self.ack_now = self.ack_now or self.at_end()
        return data

    def progress(self):
        """Grows with each byte that is acknowledged or received."""
        return self.acked + self.received

    def output(self, now):
        """Returns what is to be written next to the connection: at most one frame of data."""
        b = bytearray()
        unreported = self.passed - self.reported
        if self.pong:
            b += bytes((0, 0, PONG))
        if (self.ack_now or unreported >= ACK_ALONE or unreported >= ACK_WITH_DATA and self.next < self.end
                or unreported and now - self.since >= ACK_DELAY):
            b += struct.pack(">HBI", 0, ACK, self.passed & 0xFFFFFFFF)
            self.reported = self.passed
        if self.ping:
            b += bytes((0, 0, PING))
        self.pong = self.ack_now = self.ping = False
        if self.next < self.end:
            at = self.next - self.base
            part = self.out[at:at + MAX_DATA]
            b += struct.pack(">H", len(part)) + part
            self.next += len(part)
        if self.finished and self.next == self.end:
            b += bytes((0, 0, FIN))
            self.next += 1
        self.sent = max(self.sent, self.next)
        self._drop()
        return bytes(b)

    def _drop(self):
        kept = min(self.acked, self.next, self.end)
        del self.out[:kept - self.base]
        self.base = kept

    def input(self, data):
        """Takes what was read from the connection, cut anywhere; raises Violation."""
        while data and self.closed is None:
            if self.left:  # of a frame of data, or of one to be skipped
                part, data = data[:self.left], data[self.left:]
                self.left -= len(part)
                if not self.skipping:
                    self._take_data(part)
                continue
            n = self._size() - len(self.head)
            self.head += data[:n]
            data = data[n:]
            if len(self.head) == self._size():
                head, self.head = bytes(self.head), bytearray()
                self._take(head)

    def _size(self):
        """How long the head at hand is at least, by what there is of it."""
        h = self.head
        if len(h) < 2 or h[0] or h[1]:
            return 2
        if len(h) < 3:
            return 3
        if h[2] == HELLO and len(h) >= 5:
            return 5 + (h[3] << 8 | h[4])
        return {ACK: 7, CLOSE: 4, HELLO: 5}.get(h[2], 5 if h[2] >= SKIPPED else 3)

    def _take(self, head):
        kind = head[2] if len(head) > 2 else 0
        if (kind == HELLO) != (self.key is None):
            raise Violation("HELLO comes once, and first")
        if len(head) == 2:
            self.left, self.skipping = head[0] << 8 | head[1], False
        elif kind == ACK:
            self._take_ack(struct.unpack(">I", head[3:])[0])
        elif kind == FIN:
            if self.ended:
                raise Violation("a second end")
            self.ended = True
            self.received += 1
        elif kind == CLOSE:
            self.closed = head[3]
        elif kind == PING:
            self.pong = True
        elif kind == HELLO:
            self._take_hello(head[5:])
        elif kind >= SKIPPED:
            self.left, self.skipping = head[3] << 8 | head[4], True
        elif kind != PONG:
            raise Violation(f"there is no frame of type {kind}")

    def _take_hello(self, body):
        window = int.from_bytes(body[:4], "big")
        if not 36 < len(body) <= 36 + 256 or not 64 << 10 <= window <= 1 << 30:
            raise Violation("a HELLO that is none")
        self.ticket = body[4:-32].decode("ascii", "replace")
        self.key = session_key(self.private, self.public, body[-32:])
        self.window = window

    def _take_data(self, data):
        if self.ended:
            raise Violation("data behind the end")
        if self.received - self.reported + len(data) > self.window:
            raise Violation("more than the window")
        self.inbox += data
        self.received += len(data)

    def _take_ack(self, low):
        acked = self.acked + ((low - self.acked) & 0xFFFFFFFF)
        if acked > self.sent:
            raise Violation("an ACK beyond what was sent")
        self.acked = acked
        self._drop()

    def reattach(self):
        """Begins with a new connection, and returns the line to send on it. What is
        sent behind it starts at the lowest byte that is not acknowledged."""
        self.seq += 1
        self._begin()
        self.ack_now = True
        self.next = self.acked
        self._drop()
        return resume_line(self.key, self.ticket, self.seq, self.acked, self.received)
