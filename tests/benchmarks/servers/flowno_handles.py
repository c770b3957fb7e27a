"""flowno's handles: sockets whose calls wait."""

import socket
import ssl
from collections.abc import Awaitable, Callable

from flowno import EventLoop, SocketHandle, TLSSocketHandle, spawn
from tests.benchmarks.servers import CHUNK

Handler = Callable[[SocketHandle], Awaitable[None]]


def serve(listener: socket.socket, handler: Handler, context: ssl.SSLContext | None, loop: str) -> None:
    async def accept() -> None:
        handle = SocketHandle(listener)
        while True:
            connection, _ = await handle.accept()
            if context is not None:
                connection = TLSSocketHandle(connection.socket, context, None, server_side=True)
            await spawn(handler(connection))

    EventLoop(selector=loop or None).run_until_complete(accept(), join=True)


async def echo(connection: SocketHandle) -> None:
    with connection:
        while data := await connection.recv(CHUNK):
            await connection.sendAll(data)


tls_echo = echo


async def churn(connection: SocketHandle) -> None:
    with connection:
        await connection.sendAll(await connection.recv(CHUNK))


async def sink(connection: SocketHandle) -> None:
    with connection:
        while await connection.recv(CHUNK):
            pass
