"""A program with a bug: a server that knows the prices of fruit, and a client that gets two of three answers."""

import signal
import sys
from contextlib import asynccontextmanager
from functools import partial

from flowno import AsyncQueue, open_connection, run, serve_tcp, timeout
from flowno.debug import report_on_signal

PRICES = {b"apples\n": b"3\n", b"pears\n": b"4\n", b"plums\n": b"5\n"}


class Pool:
    """Connections, each of them lent to one at a time."""

    def __init__(self, *connections):
        self.free = AsyncQueue()
        for connection in connections:
            self.free.put_nowait(connection)

    @asynccontextmanager
    async def connection(self):
        connection = await self.free.get()
        try:
            yield connection
        finally:
            self.free.put(connection)


async def database(stream):
    async for name in stream:
        await stream.write(PRICES[name])


async def answer(pool, stream):
    name = await stream.readline()
    print("server: asked for", name.decode().strip())
    async with pool.connection() as connection:
        await connection.write(name)
        await stream.write(await connection.readline())


async def client(address, patience):
    for name in PRICES:
        async with timeout(patience), await open_connection(*address) as stream:
            await stream.write(name)
            print("client:", name.decode().strip(), "cost", (await stream.readline()).decode().strip())


async def main(patience):
    data = await serve_tcp(database, "127.0.0.1", 0)
    address = data.addresses[0]
    async with await open_connection(*address) as one, await open_connection(*address) as other:
        server = await serve_tcp(partial(answer, Pool(one, other)), "127.0.0.1", 0)
        await client(server.addresses[0], patience)


if __name__ == "__main__":
    with report_on_signal(signal.SIGUSR1):
        run(main(float(sys.argv[1]) if sys.argv[1:] else 0.5))
