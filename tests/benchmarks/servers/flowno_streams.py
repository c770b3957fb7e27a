"""flowno's streams and its TCP server."""

import socket
import ssl
from collections.abc import Awaitable, Callable

from flowno import EventLoop, SocketHandle, Stream, serve_sockets
from tests.benchmarks.servers import CHUNK

Handler = Callable[[Stream], Awaitable[None]]


def serve(listener: socket.socket, handler: Handler, context: ssl.SSLContext | None, loop: str) -> None:
    async def main() -> None:
        async with await serve_sockets(handler, [SocketHandle(listener)], tls=context) as server:
            await server.serve_forever()

    EventLoop(selector=loop or None).run_until_complete(main(), join=True)


async def echo(stream: Stream) -> None:
    while data := await stream.read(CHUNK):
        await stream.write(data)


async def lines(stream: Stream) -> None:
    async for line in stream:
        await stream.write(line)


tls_echo = echo


async def churn(stream: Stream) -> None:
    await stream.write(await stream.read(CHUNK))


async def sink(stream: Stream) -> None:
    while await stream.read(CHUNK):
        pass
