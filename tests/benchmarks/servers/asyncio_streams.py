"""asyncio's streams; also on uvloop."""

import asyncio
import socket
import ssl
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable

from tests.benchmarks.servers import CHUNK
from tests.benchmarks.servers.asyncio_loops import run

Handler = Callable[[StreamReader, StreamWriter], Awaitable[None]]


def serve(listener: socket.socket, handler: Handler, context: ssl.SSLContext | None, loop: str) -> None:
    async def main() -> None:
        server = await asyncio.start_server(handler, sock=listener, ssl=context, backlog=1024)
        await server.serve_forever()

    run(main(), loop)


async def echo(reader: StreamReader, writer: StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    writer.close()


async def lines(reader: StreamReader, writer: StreamWriter) -> None:
    async for line in reader:
        writer.write(line)
        await writer.drain()
    writer.close()


tls_echo = echo


async def churn(reader: StreamReader, writer: StreamWriter) -> None:
    writer.write(await reader.read(CHUNK))
    await writer.drain()
    writer.close()


async def sink(reader: StreamReader, writer: StreamWriter) -> None:
    while await reader.read(CHUNK):
        pass
    writer.close()
