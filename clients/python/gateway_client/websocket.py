"""As much of WebSocket (RFC 6455) as a tunnel needs, with the methods of a socket."""

import base64
import hashlib
import os
import struct
import threading

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class WebSocket:
    def __init__(self, s, host):
        self._socket, self._raw, self._data, self._masked = s, bytearray(), bytearray(), False
        self._ended, self._sending = False, threading.Lock()
        key = base64.b64encode(os.urandom(16))
        s.sendall(b"GET / HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                  b"Sec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n\r\n" % (host.encode(), key))
        while b"\r\n\r\n" not in self._raw:
            part = s.recv(4096)
            if not part or len(self._raw) > 16384:
                raise ConnectionError("no answer to the WebSocket handshake")
            self._raw += part
        head, _, rest = bytes(self._raw).partition(b"\r\n\r\n")
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        if not head.startswith(b"HTTP/1.1 101") or accept not in head:
            raise ConnectionError("the gateway does not take WebSockets: " + head[:40].decode("latin1"))
        self._raw = bytearray(rest)

    def sendall(self, data, opcode=2):
        with self._sending:  # who reads answers pings
            self._send(data, opcode)

    def _send(self, data, opcode):
        data, mask, n = bytes(data), os.urandom(4), len(data)
        size = bytes((128 | n,)) if n < 126 else struct.pack(">BH", 254, n) if n < 65536 else struct.pack(">BQ", 255, n)
        pad = (mask * (n // 4 + 1))[:n]
        masked = (int.from_bytes(data, "big") ^ int.from_bytes(pad, "big")).to_bytes(n, "big")
        self._socket.sendall(bytes((128 | opcode,)) + size + mask + masked)

    def recv(self, n):
        while not self._data and not self._ended:
            if not self._frame():
                part = self._socket.recv(65536)
                if not part:
                    return b""
                self._raw += part
        data = bytes(self._data[:n])
        del self._data[:n]
        return data

    def _frame(self):
        raw = self._raw
        if len(raw) < 2:
            return False
        n, at = raw[1] & 127, 2
        if n > 125:
            at = 4 if n == 126 else 10
            if len(raw) < at:
                return False
            n = int.from_bytes(raw[2:at], "big")
        if len(raw) < at + n:
            return False
        opcode, body = raw[0] & 15, bytes(raw[at:at + n])
        del raw[:at + n]
        if opcode < 3:
            self._data += body
        elif opcode == 8:
            self._ended = True
            if body[:2] == struct.pack(">H", 1011):
                raise ConnectionResetError("the game server broke the connection")
        elif opcode == 9:
            self.sendall(body, 10)
        return True

    def pending(self):
        while not self._data and not self._ended and self._frame():
            pass
        return len(self._data) or self._ended

    def close_write(self):
        raise OSError("a WebSocket has no half-close: use close")

    def settimeout(self, t):
        self._socket.settimeout(t)

    def fileno(self):
        return self._socket.fileno()

    def below(self):
        return self._socket

    def close(self):
        """Says so, unless somebody is in the middle of a message."""
        if self._sending.acquire(blocking=False):
            try:
                self._send(struct.pack(">H", 1000), 8)
            except OSError:
                pass
            finally:
                self._sending.release()
        self._socket.close()
