"""Each backend under asyncio, whose loop takes any ``selectors.BaseSelector``."""

import asyncio
import os
import socket
from collections.abc import Awaitable
from typing import Any

import pytest

from tests.backends.conftest import SelectorFactory, posix

pytestmark = pytest.mark.stdlib_differs("asyncio is at home there")


def run(make_selector: SelectorFactory, main: Awaitable[Any]) -> Any:
    loop = asyncio.SelectorEventLoop(make_selector())
    try:
        return loop.run_until_complete(main)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def test_streams_echo(make_selector: SelectorFactory) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def client(port: int, size: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(bytes(size))
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    async def main() -> list[bytes]:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        answers = await asyncio.gather(*(client(port, size) for size in (1, 1000, 1_000_000, 10)))
        server.close()
        await server.wait_closed()
        return answers

    assert [len(answer) for answer in run(make_selector, main())] == [1, 1000, 1_000_000, 10]


def test_sockets_threads_and_timers(make_selector: SelectorFactory) -> None:
    async def main() -> list[object]:
        loop = asyncio.get_running_loop()
        ours, peer = socket.socketpair()
        ours.setblocking(False)
        peer.setblocking(False)
        with ours, peer:
            received = asyncio.ensure_future(loop.sock_recv(ours, 100))
            await asyncio.sleep(0.001)
            await loop.sock_sendall(peer, b"data")
            in_thread = await loop.run_in_executor(None, sum, [1, 2])
            return [await received, in_thread]

    assert run(make_selector, main()) == [b"data", 3]


@posix
def test_the_writer_of_a_pipe_learns_that_its_reader_is_gone(make_selector: SelectorFactory) -> None:
    async def main() -> str:
        reader, writer = os.pipe()
        loop = asyncio.get_running_loop()
        lost: asyncio.Future[str] = loop.create_future()

        class Protocol(asyncio.BaseProtocol):
            def connection_lost(self, exc: Exception | None) -> None:
                lost.set_result("lost")

        await loop.connect_write_pipe(Protocol, open(writer, "wb", buffering=0))  # noqa: SIM115
        os.close(reader)
        return await lost

    assert run(make_selector, main()) == "lost"
