"""python3 driver.py [aio] MODE GATEWAYS LINES MILLISECONDS TEXT; see ../suite_test.go."""

import asyncio
import os
import ssl
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../../python"))

from gateway_client import Dialer, GatewayError, aio, session  # noqa: E402


def vectors():
    for request in sys.stdin:
        word, *rest = request.rstrip("\n").split(" ")
        try:
            print(globals()["vector_" + word](*rest))
        except session.Violation:
            print("refused")


def vector_key(private, gateway):
    s = session.Session(bytes.fromhex(private))
    return session.base64url(s.public) + " " + session.session_key(s.private, s.public, bytes.fromhex(gateway)).hex()


def vector_open(public, sealed):
    return session.open_line(bytes.fromhex(public), sealed).rstrip("\n")


def vector_resume(key, ticket, seq, start, recv):
    return session.resume_line(bytes.fromhex(key), ticket, seq, start, recv).rstrip("\n")


def vector_session(key, *steps):
    s = session.Session()
    line = reads = b""
    for step in steps:
        what, _, value = step.partition(":")
        if what == "receive":
            for b in bytes.fromhex(value):
                s.input(bytes((b,)))
            if s.key:
                s.key = bytes.fromhex(key)
        elif what == "write":
            s.send(bytes.fromhex(value))
            s.output(0)
        elif what == "finish":
            s.finish()
            s.output(0)
        elif what == "resume":
            s.reattach()
        reads += s.take(1 << 20, 0)
    line = s.reattach().rstrip("\n")
    return f"{line} {s.output(0).hex()} {reads.hex()}"


# Mode again: reconnect in each event, up to the 20th success. Any thread may tell one.
tunnel, backs = None, 0


def on_event(event, _):
    global backs
    backs += event == "back"
    if tunnel and event != "ended" and backs <= 20:
        tunnel.reconnect()


def reconnect_often():
    for _ in range(50):
        try:
            tunnel.reconnect()
        except OSError:  # it is over
            return
        time.sleep(0.001)


def again(t):
    global tunnel
    tunnel = t
    t.reconnect()
    threading.Thread(target=reconnect_often, daemon=True).start()


def options(lines, milliseconds):
    more = iter(lines[1:])
    context = ssl.create_default_context(cafile=os.environ.get("CA"))
    return dict(new_line=lambda error: next(more, None), timeout=int(milliseconds) / 1000, hold=10, context=context,
                on_event=on_event)


STUCK = ("told", "silent", "leave")


def patient(mode):
    """How long a gateway may be silent, where that is tested."""
    return dict(zip(("silence", "patience"), (0.5, 0.5) if mode == "silent" else (60.0, 60.0))) if mode in STUCK else {}


def stick(t, mode, n):
    """Writes all at once, while it reads, into a connection that takes nothing more."""
    want, got, written = pattern(n), bytearray(), 0

    def write():
        nonlocal written
        for at in range(0, n, 4096):
            t.write(want[at:at + 4096])
            written = at

    def read():
        while len(got) < n:
            got.extend(t.read())

    def ignore(f):
        try:
            f()
        except (OSError, ValueError):
            assert mode == "leave"

    threads = [threading.Thread(target=ignore, args=(f,), daemon=True) for f in (write, read)]
    for thread in threads:
        thread.start()
    if mode != "silent":
        last, rests = -1, 0
        while rests < 100:
            rests = rests + 1 if written == last else 0
            last = written
            time.sleep(0.01)
        if not threads[0].is_alive():
            return "not stuck"
    if mode == "told":
        t.reconnect()
    if mode == "leave":
        began = time.monotonic()
        t.close()
        took = time.monotonic() - began
        return "closed in time" if took < 1 else f"closed after {took} s"
    for thread in threads:
        thread.join()
    t.close()
    return f"ok {len(got)} {'resumed' if t.resumes else 'not resumed'}" if got == want else "other bytes"


async def stick_async(t, mode, n):
    """The same by tasks."""
    want, got, written = pattern(n), bytearray(), 0

    async def write():
        nonlocal written
        for at in range(0, n, 4096):
            await t.write(want[at:at + 4096])
            written = at

    async def read():
        while len(got) < n:
            got.extend(await t.read())

    tasks = [asyncio.create_task(write()), asyncio.create_task(read())]
    if mode != "silent":
        last, rests = -1, 0
        while rests < 100:
            rests = rests + 1 if written == last else 0
            last = written
            await asyncio.sleep(0.01)
        if tasks[0].done():
            return "not stuck"
    if mode == "told":
        await t.reconnect()
    if mode == "leave":
        began = time.monotonic()
        await t.close()
        took = time.monotonic() - began
        await asyncio.gather(*tasks, return_exceptions=True)
        return "closed in time" if took < 1 else f"closed after {took} s"
    await asyncio.gather(*tasks)
    await t.close()
    return f"ok {len(got)} {'resumed' if t.resumes else 'not resumed'}" if got == want else "other bytes"


def pattern(n):
    return bytes((i * 7 + i // 251) & 255 for i in range(n))


def run(mode, gateways, lines, milliseconds, text):
    lines = lines.split(",")
    dialer = Dialer(gateways.split(","), plain=mode == "talk", **options(lines, "60000" if mode in STUCK else milliseconds),
                    **patient(mode))
    t = dialer.dial(lines[0])
    if mode in STUCK:
        dialer.timeout = int(milliseconds) / 1000  # dialling is not what is tested
        return stick(t, mode, int(text))
    if mode == "again":
        again(t)
    if mode in ("bulk", "again"):
        want, got = pattern(int(text)), b""
        for at in range(0, len(want), 4096):
            t.write(want[at:at + 4096])
            end = min(len(want), at + 4096)
            while len(got) < end:
                part = t.read()
                if not part:
                    return "the end came early"
                got += part
        t.close()
        return f"ok {len(got)} {'resumed' if t.resumes else 'not resumed'}" if got == want else "other bytes"
    t.write(text.encode())
    if not gateways.startswith("ws"):
        t.close_write()
    got = b""
    while gateways.startswith("ws") and len(got) < len("welcome" + text) or not gateways.startswith("ws"):
        part = t.read()
        if not part:
            break
        got += part
    t.close()
    return f"ok {'resumable' if t.resumable else 'plain'} {got.decode()}"


async def run_async(mode, gateways, lines, milliseconds, text):
    lines = lines.split(",")
    t = await aio.dial(lines[0], gateways.split(","), plain=mode == "talk",
                       **options(lines, "60000" if mode in STUCK else milliseconds), **patient(mode))
    if mode in STUCK:
        t.tunnel._dialer.timeout = int(milliseconds) / 1000  # dialling is not what is tested
        return await stick_async(t, mode, int(text))
    async with t:
        want, got = text.encode(), b""
        if mode == "again":
            await asyncio.to_thread(again, t.tunnel)
        if mode in ("bulk", "again"):
            want = pattern(int(text))

        async def write():
            await t.write(want)
            await t.close_write()

        writing = asyncio.create_task(write())
        while part := await t.read():
            got += part
        await writing
    if mode in ("bulk", "again"):
        return f"ok {len(got)} {'resumed' if t.resumes else 'not resumed'}" if got == want else "other bytes"
    return f"ok {'resumable' if t.resumable else 'plain'} {got.decode()}"


def main(mode, *args):
    if mode == "vectors":
        return vectors()
    try:
        if mode == "aio":
            print(asyncio.run(run_async(*args)))
        else:
            print(run(mode, *args))
    except GatewayError as e:
        print(f"error {e.status} {e.advice}")


main(*sys.argv[1:])
