"""asyncio's ``loop.sock_*``; also on uvloop."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

from tests.benchmarks.servers import CHUNK
from tests.benchmarks.servers.asyncio_loops import run

Handler = Callable[[socket.socket], Coroutine[Any, Any, None]]


def serve(listener: socket.socket, handler: Handler, context: ssl.SSLContext | None, loop: str) -> None:
    async def accept() -> None:
        loop = asyncio.get_running_loop()
        tasks = set()  # the loop has weak references only
        while True:
            connection, _ = await loop.sock_accept(listener)
            task = loop.create_task(handler(connection))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    run(accept(), loop)


async def echo(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with connection:
        while data := await loop.sock_recv(connection, CHUNK):
            await loop.sock_sendall(connection, data)


async def churn(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with connection:
        await loop.sock_sendall(connection, await loop.sock_recv(connection, CHUNK))


async def sink(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with connection:
        while await loop.sock_recv(connection, CHUNK):
            pass
