"""trio: its sockets and, for TLS, its streams. It has no buffered streams, so the lines are found by hand."""

import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from tests.benchmarks.servers import CHUNK

Handler = Callable[[Any], Awaitable[None]]


def serve(listener: socket.socket, handler: Handler, context: ssl.SSLContext | None, loop: str) -> None:
    async def accept() -> None:
        listening = trio.socket.from_stdlib_socket(listener)
        async with trio.open_nursery() as nursery:
            while True:
                connection, _ = await listening.accept()
                if context is not None:
                    stream = trio.SSLStream(trio.SocketStream(connection), context, server_side=True)
                    nursery.start_soon(handler, stream)
                else:
                    nursery.start_soon(handler, connection)

    trio.run(accept)


async def echo(connection: trio.socket.SocketType) -> None:
    with connection:
        while data := await connection.recv(CHUNK):
            await _send_all(connection, data)


async def lines(connection: trio.socket.SocketType) -> None:
    async with trio.SocketStream(connection) as stream:
        buffer = bytearray()
        async for data in stream:
            start = len(buffer)
            buffer += data
            begin = 0
            while (end := buffer.find(b"\n", start) + 1) > 0:
                await stream.send_all(buffer[begin:end])
                begin = start = end
            del buffer[:begin]


async def tls_echo(stream: trio.SSLStream[trio.SocketStream]) -> None:
    async with stream:
        while data := await stream.receive_some(CHUNK):
            await stream.send_all(data)


async def churn(connection: trio.socket.SocketType) -> None:
    with connection:
        await _send_all(connection, await connection.recv(CHUNK))


async def sink(connection: trio.socket.SocketType) -> None:
    with connection:
        while await connection.recv(CHUNK):
            pass


async def _send_all(connection: trio.socket.SocketType, data: bytes) -> None:
    sent = await connection.send(data)
    while sent < len(data):
        sent += await connection.send(memoryview(data)[sent:])
