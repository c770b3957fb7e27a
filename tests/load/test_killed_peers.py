"""Processes at the other end that are killed in the middle of everything: the server goes on, and nothing is left.

When each is killed is made of a seed, which a failure tells and ``FLOWNO_TEST_SEED`` gives; where the others are by
then is up to the system.
"""

import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable
from pathlib import Path

import pytest

import flowno
from flowno import (
    Event,
    Process,
    Server,
    Stream,
    TaskGroup,
    open_connection,
    open_process,
    open_unix_connection,
    serve_tcp,
    serve_unix,
    sleep,
)
from tests.conftest import ROOT
from tests.load.clients import BLOCK
from tests.load.seeds import seed_of_this_run, told_by_a_failure
from tests.support import wine
from tests.support.remains import remains
from tests.support.servers import all_ended

pytestmark = pytest.mark.usefixtures("backend")

#: Connections of each process.
CONNECTIONS = 5

#: Bytes of all of them together, after which a process is killed at the latest.
MOST = 2_000_000

#: Writes back what it reads, and as much again.
PROGRAM = """
import os
while data := os.read(0, 20000):
    view = memoryview(data + data)
    while view:
        view = view[os.write(1, view):]
"""

KILLS = [2, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(3600)])]


class Meter:
    """Counts bytes, and tells when there were so many."""

    def __init__(self) -> None:
        self._count = self._wanted = 0
        self._reached = Event()

    def count(self, number: int) -> None:
        self._count += number
        if self._count >= self._wanted:
            self._reached.set()

    async def wait(self, number: int) -> None:
        """Until so many more have come."""
        self._count, self._wanted, self._reached = 0, number, Event()
        self.count(0)
        await self._reached.wait()


async def killed(process: Process) -> None:
    process.kill()
    assert await process.wait() == (-signal.SIGKILL if os.name == "posix" else 1)


@wine.keeps_sockets_of_killed_programs
@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("kind", ["tcp", "tls", "unix"])
def test_clients_that_are_killed_leave_nothing_at_the_server(
    backend: str, kind: str, kills: int, tmp_path: Path, server_context: ssl.SSLContext, client_context: ssl.SSLContext,
    authority_file: Path,
) -> None:  # fmt: skip
    if kind == "unix" and not hasattr(socket, "AF_UNIX"):
        pytest.skip("this Python has no Unix sockets")
    meter = Meter()

    async def echo(stream: Stream) -> None:
        async for data in stream.chunks():
            meter.count(len(data))
            await stream.write(data)

    async def serve() -> Server:
        if kind == "unix":
            return await serve_unix(echo, tmp_path / "socket")
        return await serve_tcp(echo, "127.0.0.1", 0, tls=server_context if kind == "tls" else None)

    async def ask(server: Server) -> None:
        """The server serves; and none of the clients that were killed is there any more."""
        if kind == "unix":
            opening: Awaitable[Stream] = open_unix_connection(tmp_path / "socket")
        elif kind == "tls":
            opening = open_connection(*server.addresses[0], tls=client_context, server_hostname="localhost")
        else:
            opening = open_connection(*server.addresses[0])
        async with await opening as stream:
            await stream.write(b"still there?")
            assert await stream.readexactly(12) == b"still there?"
        await all_ended(server)

    async def root() -> None:
        async with await serve() as server:
            await ask(server)
            before = remains()
            address = str(tmp_path / "socket") if kind == "unix" else str(server.addresses[0][1])
            command = [sys.executable, "-m", "tests.load.clients", "talk", kind, address, str(CONNECTIONS)]
            for each in range(kills):
                async with await open_process([*command, str(authority_file)], cwd=ROOT) as client:
                    while not server.connections:
                        await sleep(0.001)
                    if each % 5:  # else it is killed as it connects: through TLS, in the handshake
                        await meter.wait(rng.randrange(MOST))
                    await killed(client)
                await ask(server)
                assert remains() == before

    seed, began = seed_of_this_run(), time.perf_counter()
    rng = random.Random(seed)
    with told_by_a_failure(seed):
        flowno.run(root())
    print(f"{backend}: {kills} {kind} clients were killed, {time.perf_counter() - began:.1f} s")


@pytest.mark.parametrize("kills", KILLS)
def test_programs_that_are_killed_leave_nothing_of_their_pipes(backend: str, kills: int) -> None:
    async def send(process: Process) -> None:
        assert process.stdin is not None
        try:
            while True:
                await process.stdin.write(bytes(BLOCK))
        except (BrokenPipeError, ConnectionResetError):
            pass

    async def receive(process: Process, meter: Meter) -> None:
        assert process.stdout is not None
        async for data in process.stdout.chunks():
            meter.count(len(data))

    async def talk(number: int) -> None:
        command = [sys.executable, "-I", "-S", "-c", PROGRAM]
        meter = Meter()
        process = await open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        async with process, TaskGroup() as group:
            await group.spawn(send(process))
            await group.spawn(receive(process, meter))
            await meter.wait(number)
            await killed(process)

    async def root() -> None:
        await talk(1)  # whatever is made once is made now
        before = remains()
        for _ in range(kills):
            await talk(rng.randrange(1, MOST))
            assert remains() == before

    seed, began = seed_of_this_run(), time.perf_counter()
    rng = random.Random(seed)
    with told_by_a_failure(seed):
        flowno.run(root())
    print(f"{backend}: {kills} programs with pipes were killed, {time.perf_counter() - began:.1f} s")
