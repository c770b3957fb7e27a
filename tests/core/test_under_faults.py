"""Programs that use everything that does I/O, on sockets and selectors that are as unhelpful as a system may be.

Each runs on a selector that is more than that, too, and on the sockets of the system: where those are of no help
either, a call that is tried again hides much of what a selector does.

Each runs by five seeds; ``-m long`` takes a hundred. A failure tells its seed, which makes it again.
"""

import os
import random
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import flowno
from flowno import (
    AsyncQueue,
    EventLoop,
    SocketHandle,
    Stream,
    TaskGroup,
    TruncatedStreamError,
    current_event_loop,
    move_on_after,
    open_connection,
    serve_tcp,
    sleep,
    spawn,
    timeout,
    wait_readable,
    wait_writable,
)
from flowno.core.event_loop.tls import TLSSocketHandle, start_tls
from flowno.net import servers
from flowno.testing import faults
from tests.support.counting_selector import CountingSelector
from tests.support.loopback import listening, pair, receive, tcp_pair
from tests.support.tls import tls_pair
from tests.support.unhelpful_selector import UNHELPFUL

pytestmark = pytest.mark.usefixtures("backend")

Contexts = tuple[ssl.SSLContext, ssl.SSLContext]

SEEDS = [*range(5), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(5, 100))]

#: What is of no help, by the faults that make it so.
HARDSHIPS = {"sockets and selector": {"harmless": 0.3, "byte": 0.02}, "selector alone": UNHELPFUL}

DATA = random.Random(1).randbytes(60_000)

#: Seconds; none of them takes one.
PATIENCE = 50


async def both_ways(one: SocketHandle, other: SocketHandle, data: bytes = DATA) -> None:
    """The same data in both directions at once."""
    async with TaskGroup() as group:
        readers = [await group.spawn(receive(end, len(data))) for end in (one, other)]
        for end in (one, other):
            await group.spawn(end.sendAll(data))
    for reader in readers:
        assert await reader.join() == data


async def a_pair(contexts: Contexts, folder: Path) -> None:
    with pair(4096) as (one, other):
        await both_ways(one, other)


async def tcp(contexts: Contexts, folder: Path) -> None:
    with tcp_pair() as (one, other):
        await both_ways(one, other)
        one.shutdown(socket.SHUT_WR)
        assert await other.recv(9) == b""
        await other.sendAll(b"the end")
        assert await receive(one, 7) == b"the end"


async def buffers(contexts: Contexts, folder: Path) -> None:
    """What is received into buffers, and sent from several."""
    with pair() as (one, other):
        left = [memoryview(DATA)[at : at + 777] for at in range(0, 7770, 777)]
        reading = await spawn(receive(other, 7770))
        while left:
            sent = await one.sendmsg(left) if hasattr(one.socket, "sendmsg") else await one.send(left[0])
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if sent:
                left[0] = left[0][sent:]
        assert await reading.join() == DATA[:7770]
        room = memoryview(bytearray(5000))
        sending = await spawn(one.sendAll(DATA[:5000]))
        while room:
            room = room[await other.recv_into(room) :]
        await sending.join()
        assert room.obj == DATA[:5000]


async def a_file(contexts: Contexts, folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(DATA)
    with tcp_pair() as (one, other), path.open("rb") as file:
        reading = await spawn(receive(other, len(DATA) - 7))
        assert await one.sendfile(file, 7) == len(DATA) - 7
        assert file.tell() == len(DATA)
        assert await reading.join() == DATA[7:]


async def datagrams(contexts: Contexts, folder: Path) -> None:
    with flowno.socket(type=socket.SOCK_DGRAM) as one, flowno.socket(type=socket.SOCK_DGRAM) as other:
        for end in (one, other):
            end.bind(("127.0.0.1", 0))
        for number in range(20):
            await one.sendto(DATA[: number * 50], other.getsockname())
            data, address = await other.recvfrom(2000)
            assert (data, address) == (DATA[: number * 50], one.getsockname())
            await other.sendto(b"yes", address)
            assert await one.recv(9) == b"yes"


async def descriptors(contexts: Contexts, folder: Path) -> None:
    if not hasattr(socket, "SCM_RIGHTS"):
        return
    with pair() as (one, other):
        for _ in range(5):
            ends = os.pipe()
            try:
                assert await one.send_fds([b"x"], ends) == 1
            finally:
                for end in ends:
                    os.close(end)
            data, received, _, _ = await other.recv_fds(9, 2)
            assert data == b"x"
            os.write(received[1], b"through")
            assert os.read(received[0], 9) == b"through"
            for end in received:
                os.close(end)


async def connections(contexts: Contexts, folder: Path) -> None:
    async def call(address: object, number: int) -> None:
        with flowno.socket() as client:
            await flowno.connect(client, address)
            await client.sendAll(b"%d" % number)
            client.shutdown(socket.SHUT_WR)
            assert await client.recv(1) == b""

    with listening() as listener:
        async with TaskGroup() as group:
            for number in range(20):
                await group.spawn(call(listener.getsockname(), number))
            numbers = set()
            for _ in range(20):
                connection, _ = await listener.accept()
                with connection:
                    numbers.add(int(await receive(connection, 9)))
        assert numbers == set(range(20))


async def plain_descriptors(contexts: Contexts, folder: Path) -> None:
    """Waits without a handle; a false alarm is for the program to find out."""
    one, other = socket.socketpair()
    with one, other:
        for end in (one, other):
            end.setblocking(False)
        for number in range(20):
            await wait_writable(one)
            one.send(b"%d" % number)
            data = b""
            while not data:
                try:
                    await wait_readable(other)
                    data = other.recv(9)
                except BlockingIOError:
                    pass
            assert data == b"%d" % number


async def streams(contexts: Contexts, folder: Path) -> None:
    async def answer(stream: Stream) -> None:
        while line := await stream.readline():
            size = int(line)
            await stream.write(await stream.readexactly(size))
            await stream.write(b"\r\n.\r\n")

    async def ask(address: tuple[str, int], size: int) -> None:
        async with await open_connection(*address) as stream:
            for data in (DATA[:size], DATA[size : 2 * size]):
                await stream.writelines([b"%d\n" % size, data])
                assert await stream.readuntil(b"\r\n.\r\n") == data + b"\r\n.\r\n"

    async with await serve_tcp(answer, "127.0.0.1", 0, limit=1 << 20) as server, TaskGroup() as group:
        for size in (1, 10, 1000, 9000, 30_000) * 3:
            await group.spawn(ask(server.addresses[0], size))


async def tls(contexts: Contexts, folder: Path) -> None:
    with tls_pair(*contexts) as (one, other):
        await both_ways(one, other)
        await one.send_eof()
        assert await other.recv(9) == b""
        closing = await spawn(one.aclose())
        await other.aclose()
        await closing.join()


async def tls_that_begins_later_and_ends_before(contexts: Contexts, folder: Path) -> None:
    with pair() as (one, other):
        await one.sendAll(b"plain")
        assert await receive(other, 5) == b"plain"
        beginning = await spawn(start_tls(other, contexts[0], server_side=True))
        client = await start_tls(one, contexts[1], server_hostname="localhost")
        with client, await beginning.join() as server:
            await both_ways(client, server, DATA[:20_000])
            ending = await spawn(server.unwrap())
            below, rest = await client.unwrap()
            with below, (await ending.join())[0] as below_server:
                assert rest == b""
                await both_ways(below, below_server, DATA[:2000])


async def tls_servers(contexts: Contexts, folder: Path) -> None:
    async def echo(stream: Stream) -> None:
        async for chunk in stream.chunks():
            await stream.write(chunk)

    async def ask(address: tuple[str, int]) -> None:
        stream = await open_connection(*address, tls=contexts[1], server_hostname="localhost")
        async with stream:
            await stream.write(DATA[:3000])
            assert await stream.readexactly(3000) == DATA[:3000]

    async with await serve_tcp(echo, "127.0.0.1", 0, tls=contexts[0]) as server, TaskGroup() as group:
        for _ in range(4):
            await group.spawn(ask(server.addresses[0]))


async def cancelled_wherever_they_wait(one: SocketHandle, other: SocketHandle) -> None:
    """The same data in both directions, by sends and receives that end by time limits and by cancel(), in all turns."""
    chosen = random.Random(3)
    data = DATA[:20_000]

    async def send(handle: SocketHandle) -> None:
        sent = 0
        while sent < len(data):
            try:
                with move_on_after(chosen.choice((0, 0, 0.001, 1))):
                    await handle.sendAll(memoryview(data)[sent : sent + chosen.randrange(1, 5000)])
            finally:
                sent += handle.bytes_sent
        if isinstance(handle, TLSSocketHandle):
            await handle.send_eof()  # with what a cancelled send has left

    async def read(handle: SocketHandle) -> bytes:
        received = b""
        while len(received) < len(data):
            reader = await spawn(handle.recv(chosen.randrange(1, 5000)))
            for _ in range(chosen.randrange(4)):
                await sleep(0)
            received += await reader.cancel() or b""
        return received

    async with TaskGroup() as group:
        readers = [await group.spawn(read(end)) for end in (one, other)]
        for end in (one, other):
            await group.spawn(send(end))
    for reader in readers:
        assert await reader.join() == data


async def cancellations(contexts: Contexts, folder: Path) -> None:
    """No byte is lost or sent twice where every wait may be cancelled."""
    with pair(4096) as (one, other):
        await cancelled_wherever_they_wait(one, other)


async def cancellations_of_tls(contexts: Contexts, folder: Path) -> None:
    with tls_pair(*contexts) as (one, other):
        async with TaskGroup() as group:  # a handshake that is cancelled ends the connection
            for end in (one, other):
                await group.spawn(end.do_handshake())
        await cancelled_wherever_they_wait(one, other)


async def threads_and_timers(contexts: Contexts, folder: Path) -> None:
    queue: AsyncQueue[int] = AsyncQueue()
    loop = current_event_loop()
    assert loop is not None

    def work() -> None:
        for number in range(50):
            loop.create_task(queue.put(number))

    thread = threading.Thread(target=work)
    thread.start()
    start = loop.clock()
    assert await sleep(0.005) >= 0.005
    assert loop.clock() - start >= 0.005
    assert [await queue.get() for _ in range(50)] == list(range(50))
    thread.join()


PROGRAMS: list[Callable[[Contexts, Path], Awaitable[None]]] = [
    a_pair,
    tcp,
    buffers,
    a_file,
    datagrams,
    descriptors,
    connections,
    plain_descriptors,
    streams,
    tls,
    tls_that_begins_later_and_ends_before,
    tls_servers,
    cancellations,
    cancellations_of_tls,
    threads_and_timers,
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rates", HARDSHIPS.values(), ids=HARDSHIPS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_does_the_same_under_faults(
    program: Callable[[Contexts, Path], Awaitable[None]],
    rates: dict[str, float],
    seed: int,
    server_context: ssl.SSLContext,
    client_context: ssl.SSLContext,
    tmp_path: Path,
) -> None:
    async def root() -> None:
        async with timeout(PATIENCE):
            await program((server_context, client_context), tmp_path)

    with CountingSelector() as selector, faults(seed, **rates), EventLoop(selector) as loop:
        loop.run_until_complete(root(), join=True)
        assert selector.masks == {}


@pytest.mark.skipif(os.name == "nt", reason="reset cannot be made on Windows")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_server_goes_on_whatever_happens_to_its_connections(
    seed: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where peers are reset, connections aborted, and descriptors run out, who tries again gets an answer at last."""
    monkeypatch.setattr(servers, "PAUSE", 0.001)

    async def double(stream: Stream) -> None:
        async with stream:
            await stream.write(2 * await stream.readline())

    async def ask(address: tuple[str, int], number: int) -> bytes:
        while True:
            try:
                async with await open_connection(*address) as stream:
                    await stream.write(b"%d\n" % number)
                    return await stream.readexactly(2 * len(b"%d\n" % number))
            except (OSError, flowno.IncompleteReadError, TruncatedStreamError):
                await sleep(0.001)

    async def root() -> None:
        async with timeout(PATIENCE), await serve_tcp(double, "127.0.0.1", 0) as server:
            async with TaskGroup() as group:
                asking = [await group.spawn(ask(server.addresses[0], number)) for number in range(10)]
            assert [await task.join() for task in asking] == [2 * (b"%d\n" % number) for number in range(10)]

    with faults(seed, harmless=0.1, reset=0.1, aborted=0.2, emfile=0.2, enfile=0.1, enobufs=0.1) as made:
        flowno.run(root())
    assert made.injected.keys() & {"reset", "aborted", "emfile"}
    assert not [record for record in caplog.records if record.name == "flowno.tasks"]
