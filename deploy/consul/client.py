#!/usr/bin/env python3
"""Finds gateways in Consul and says hello to a game server through one of them.

    python3 client.py LINE [http://127.0.0.1:8500]

LINE is what the login server hands out: a sealed address, which any gateway
opens. So it does not matter which gateway answers, and one that is gone costs a
client no more than the next attempt.
"""
import json
import random
import socket
import sys
import urllib.request


def gateways(consul):
    """Returns (host, port) of all gateways that pass their health check."""
    with urllib.request.urlopen(consul + "/v1/health/service/gateway?passing", timeout=5) as r:
        entries = json.load(r)
    # A service without an address of its own has its node's.
    found = [(e["Service"]["Address"] or e["Node"]["Address"], e["Service"]["Port"]) for e in entries]
    random.shuffle(found)  # a share for each
    return found


def connect(gateway, line, timeout=10):
    """Connects to the backend that is sealed in line."""
    s = socket.create_connection(gateway, timeout)
    try:
        s.sendall(line.encode() + b"\n")
        status = b""
        while len(status) < 3:              # Three bytes, no newline:
            part = s.recv(3 - len(status))  # a fourth would be the backend's.
            if not part:
                raise ConnectionError("the gateway closed without a status")
            status += part
        if status != b"200":
            raise ConnectionError("the gateway answered " + status.decode())
        return s
    except BaseException:
        s.close()
        raise


def main(line, consul="http://127.0.0.1:8500"):
    error = "Consul knows of no gateway"
    for gateway in gateways(consul):
        try:
            s = connect(gateway, line)
        except OSError as e:
            error = e
            continue
        s.sendall(b"hello\n")
        s.shutdown(socket.SHUT_WR)
        print("by %s:%d:" % gateway, s.makefile("r").read().strip())
        return
    sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
