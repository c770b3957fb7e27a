"""curio: its sockets and their streams."""

import socket
import ssl
from collections.abc import Awaitable, Callable

import curio
from curio.io import Socket
from curio.network import run_server
from curio.ssl import CurioSSLContext

from tests.benchmarks.servers import CHUNK

Handler = Callable[[Socket, object], Awaitable[None]]


def serve(listener: socket.socket, handler: Handler, context: ssl.SSLContext | None, loop: str) -> None:
    curio.run(run_server, Socket(listener), handler, None if context is None else CurioSSLContext(context))


async def echo(connection: Socket, address: object) -> None:
    while data := await connection.recv(CHUNK):
        await connection.sendall(data)


async def lines(connection: Socket, address: object) -> None:
    async with connection.as_stream() as stream:
        async for line in stream:
            await stream.write(line)


tls_echo = echo


async def churn(connection: Socket, address: object) -> None:
    await connection.sendall(await connection.recv(CHUNK))


async def sink(connection: Socket, address: object) -> None:
    while await connection.recv(CHUNK):
        pass
