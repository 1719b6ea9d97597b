"""The same for asyncio: each tunnel is read and written by threads of the loop's."""

import asyncio

from .tunnel import CHUNK, Dialer


class AsyncTunnel:
    def __init__(self, tunnel):
        self.tunnel = tunnel

    @property
    def resumable(self):
        return self.tunnel.resumable

    @property
    def resumes(self):
        return self.tunnel.resumes

    async def read(self, n=CHUNK, timeout=None):
        while True:  # a cancelled read must not hold its thread for ever
            try:
                step = 1.0 if timeout is None else min(1.0, timeout)
                return await asyncio.to_thread(self.tunnel.read, n, step)
            except TimeoutError:
                if timeout is not None:
                    timeout -= step
                    if timeout <= 0:
                        raise

    async def write(self, data):
        await asyncio.to_thread(self.tunnel.write, data)

    async def close_write(self):
        await asyncio.to_thread(self.tunnel.close_write)

    async def close(self):
        await asyncio.to_thread(self.tunnel.close)

    async def reconnect(self):
        await asyncio.to_thread(self.tunnel.reconnect)

    def abort(self):
        self.tunnel.abort()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.close()


async def dial(line, gateways, **options):
    """Opens a tunnel; options are those of Dialer."""
    return AsyncTunnel(await asyncio.to_thread(Dialer(gateways, **options).dial, line))
