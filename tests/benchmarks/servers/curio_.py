"""curio: its sockets and their streams."""

import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import curio
import curio.io
import curio.ssl

from tests.benchmarks.servers import CHUNK

Handler = Callable[[Any], Awaitable[None]]


def serve(listener: socket.socket, handler: Handler, context: ssl.SSLContext | None, loop: str) -> None:
    async def accept() -> None:
        listening = curio.io.Socket(listener)
        if context is not None:
            listening = curio.ssl.CurioSSLContext(context).wrap_socket(
                listening, server_side=True, do_handshake_on_connect=False
            )
        while True:
            connection, _ = await listening.accept()
            await curio.spawn(handler, connection, daemon=True)

    curio.run(accept)


async def echo(connection: curio.io.Socket) -> None:
    async with connection:
        while data := await connection.recv(CHUNK):
            await connection.sendall(data)


async def lines(connection: curio.io.Socket) -> None:
    async with connection.as_stream() as stream:
        async for line in stream:
            await stream.write(line)


async def tls_echo(connection: curio.io.Socket) -> None:
    await connection.do_handshake()
    await echo(connection)


async def churn(connection: curio.io.Socket) -> None:
    async with connection:
        await connection.sendall(await connection.recv(CHUNK))


async def sink(connection: curio.io.Socket) -> None:
    async with connection:
        while await connection.recv(CHUNK):
            pass
