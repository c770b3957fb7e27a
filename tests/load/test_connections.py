"""Very many connections: at once, and one after another."""

import subprocess
import sys
import time

import pytest

import flowno
from flowno import Stream, open_connection, open_process, serve_tcp
from tests.conftest import ROOT
from tests.support.backends import system_call_of
from tests.support.limits import connections_that_fit, open_files
from tests.support.remains import allocated_blocks, remains, resident_bytes
from tests.support.servers import all_ended

pytestmark = pytest.mark.usefixtures("backend")

#: Files of a process that are no connections.
SPARE = 100


async def echo(stream: Stream) -> None:
    while data := await stream.read(4):
        await stream.write(data)


@pytest.mark.parametrize("number", [500, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
def test_connections_that_are_held_at_once_are_all_served_and_leave_nothing(backend: str, number: int) -> None:
    number = connections_that_fit(system_call_of(backend), number, SPARE)

    async def root() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0) as server:
            await ask_once(server.addresses[0])  # whatever is made once is made now
            await all_ended(server)
            before = remains()
            began, resident = time.perf_counter(), resident_bytes()
            command = [sys.executable, "-m", "tests.load.clients", "hold", str(server.addresses[0][1]), str(number)]
            async with await open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as client:
                assert client.stdin is not None
                assert client.stdout is not None
                assert (await client.stdout.readline()).split() == [b"connected"]
                for _ in range(2):
                    await client.stdin.write(b"\n")
                    assert (await client.stdout.readline()).split() == [b"answered"]
                    assert server.connections == number
                grown = (resident_bytes() or 0) - (resident or 0)
                await client.stdin.aclose()
                assert await client.wait() == 0
            await all_ended(server)
            assert remains() == before
            print(f"{backend}: {number} at once, {time.perf_counter() - began:.1f} s, {grown / number:.0f} bytes each")

    with open_files(number + SPARE):
        flowno.run(root())


@pytest.mark.parametrize("number", [400, pytest.param(200_000, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_connections_one_after_another_leave_no_descriptor_no_registration_and_no_memory(
    backend: str, number: int
) -> None:
    if number > 20_000 and sys.platform != "linux":
        pytest.skip("the ports of 127.0.0.1 are not enough, and only Linux has all of 127.0.0.0/8")

    async def root() -> None:
        async with await serve_tcp(echo, "0.0.0.0", 0) as server:
            port = server.addresses[0][1]
            warm_up = min(number // 4, 10_000)
            for each in range(number):
                if each == warm_up:
                    await all_ended(server)
                    before, blocks, resident = remains(), allocated_blocks(), resident_bytes()
                    began = time.perf_counter()
                # A closed connection keeps its port for a minute, TIME_WAIT: each address has a thousand of them.
                await ask_once((f"127.{each // 1000 >> 8}.{each // 1000 & 255}.1", port))
            await all_ended(server)
            assert remains() == before
            grown = allocated_blocks() - blocks
            counted = number - warm_up
            print(
                f"{backend}: {counted} one after another, {time.perf_counter() - began:.1f} s, {grown} blocks and "
                f"{(resident_bytes() or 0) - (resident or 0)} bytes grown"
            )
            # One object that each connection leaves is a block each. Caches of the interpreter take some hundred once.
            assert grown < max(counted // 10, 100), f"{grown} objects are left of {counted} connections"
            if resident is not None and counted > 10_000:
                # What Python does not count: buffers of OpenSSL and of the system's library. Arenas come by the MiB.
                assert (resident_bytes() or 0) - resident < 4 << 20

    flowno.run(root())


async def ask_once(address: tuple[str, int]) -> None:
    async with await open_connection(*address) as stream:
        await stream.write(b"ping")
        assert await stream.readexactly(4) == b"ping"
