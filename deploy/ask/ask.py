#!/usr/bin/env python3
"""A service for the gateway's -ask: it looks up names and tickets in a file, in etcd or in
Redis, with nothing but Python's standard library. It is meant to be copied and changed: a
strategy of your own goes into answer()."""

import argparse
import base64
import hmac
import http.client
import http.server
import json
import os
import socket
import threading
import urllib.parse

STORE_TIMEOUT = 0.5  # seconds; less than -ask-timeout, so that the gateway hears why


class File:
    """An object of JSON with an answer for each key, read again when it changes."""

    def __init__(self, path):
        self.path, self.changed, self.answers = path, None, {}
        self.read()

    def read(self):
        changed = os.stat(self.path).st_mtime_ns
        if changed != self.changed:
            with open(self.path, encoding="utf-8") as f:
                self.answers = {k: json.dumps(v).encode() for k, v in json.load(f).items()}
            self.changed = changed

    def get(self, key):
        try:
            self.read()
        except (OSError, ValueError) as err:
            print("the file stays as it was:", err, flush=True)
        return self.answers.get(key)


class Kept(threading.local):
    """A connection of each thread: the gateway's connections have a thread each."""

    conn = None

    def use(self, make, ask):
        """Asks by the kept connection, and if that has ended by a new one."""
        if self.conn is not None:
            try:
                return ask(self.conn)
            except (OSError, http.client.HTTPException):
                self.conn.close()
        self.conn = None
        conn = make()
        try:
            answer = ask(conn)
        except BaseException:
            conn.close()
            raise
        self.conn = conn
        return answer


class Etcd:
    """The gateway from HTTP to gRPC that etcd has at /v3. The keys stand below /ask/."""

    def __init__(self, url):
        self.url, self.kept = urllib.parse.urlsplit(url), Kept()

    def get(self, key):
        body = json.dumps({"key": base64.b64encode(b"/ask/" + key.encode()).decode()})

        def ask(conn):
            conn.request("POST", "/v3/kv/range", body)
            resp = conn.getresponse()
            text = resp.read()
            if resp.status != 200:
                raise OSError(f"etcd says {resp.status}")
            found = json.loads(text).get("kvs")
            return base64.b64decode(found[0]["value"]) if found else None

        return self.kept.use(
            lambda: http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=STORE_TIMEOUT), ask)


class Redis:
    """RESP 2. The keys begin with ask:."""

    def __init__(self, addr):
        host, _, port = addr.rpartition(":")
        self.addr, self.kept = (host, int(port)), Kept()

    def get(self, key):
        key = b"ask:" + key.encode()

        def ask(conn):
            conn.sendall(b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(key), key))
            line = conn.reader.readline()
            if not line.startswith(b"$"):
                raise OSError(f"redis says {line!r}")
            size = int(line[1:])
            if size < 0:
                return None
            value = conn.reader.read(size + 2)
            if len(value) < size + 2:
                raise OSError("redis has broken off")
            return value[:size]

        return self.kept.use(lambda: RedisConnection(self.addr), ask)


class RedisConnection:
    def __init__(self, addr):
        self.socket = socket.create_connection(addr, STORE_TIMEOUT)
        self.reader = self.socket.makefile("rb")
        self.sendall = self.socket.sendall

    def close(self):
        self.reader.close()
        self.socket.close()


def answer(store, question):
    """The strategy: JSON like {"backend": "10.0.0.7:4000", "ttl": 10}, or None."""
    if question.get("ticket"):
        return store.get("ticket/" + question["ticket"])
    return store.get("name/" + question["name"])


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # with keep-alive
    disable_nagle_algorithm = True
    wbufsize = -1
    timeout = 60

    def do_POST(self):
        try:
            body = self.rfile.read(min(int(self.headers.get("Content-Length", 0)), 1 << 20))
            shown = self.headers.get("Authorization", "")
            if self.server.token and not hmac.compare_digest(shown.encode(), b"Bearer " + self.server.token):
                return self.say(401, b"whose gateway are you?\n")
            found = answer(self.server.store, json.loads(body))
        except (KeyError, ValueError):
            return self.say(400, b"this is no question\n")
        except (OSError, http.client.HTTPException) as err:
            print("the store:", err, flush=True)
            return self.say(503, b"ask again\n")  # the last answer serves on
        if found is None:
            return self.say(404, b"no such thing\n")  # the client gets 401
        self.say(200, found)

    def say(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass  # a line for each question would be too much, and hold no more than the gateway's log


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    allow_reuse_address = True


def main():
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--listen", default="127.0.0.1:9000", help="host:port")
    flags.add_argument("--store", default="file:routes.json", help="file:PATH, etcd:http://HOST:PORT or redis:HOST:PORT")
    flags.add_argument("--token-file", help="holds the token that the gateway shows by its -ask-token-file")
    args = flags.parse_args()
    kind, _, where = args.store.partition(":")
    host, _, port = args.listen.rpartition(":")
    server = Server((host, int(port)), Handler)
    server.store = {"file": File, "etcd": Etcd, "redis": Redis}[kind](where)
    server.token = b""
    if args.token_file:
        with open(args.token_file, "rb") as f:
            server.token = f.read().strip()
    print(f"asks {args.store}, listens on {args.listen}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
