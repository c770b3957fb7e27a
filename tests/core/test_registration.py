"""What the selector is asked: as little as possible, and the interest that it holds is the one that somebody has."""

import os
import socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

import pytest

from flowno import AsyncQueue, EventLoop, Lock, SocketHandle, TaskGroup, run, sleep, sleep_forever, spawn, timeout
from flowno.core.event_loop.backend import BUILT_IN
from flowno.core.event_loop.environment import VARIABLES
from tests.examples.programs import environment, require
from tests.support.counting_selector import CountingSelector
from tests.support.loopback import fill, pair, receive
from tests.support.peers import Client, TLSClient, answer_by_handle, answer_by_tls, answer_lines

pytestmark = pytest.mark.usefixtures("backend")


class CountedSocket(socket.socket):
    """Counts the system calls of an exchange."""

    calls: Counter[str]

    def recv(self, *args: int) -> bytes:
        self.calls["recv"] += 1
        return super().recv(*args)

    def recv_into(self, *args: Any) -> int:
        self.calls["recv_into"] += 1
        return super().recv_into(*args)

    def send(self, *args: object) -> int:
        self.calls["send"] += 1
        return super().send(*args)  # type: ignore[arg-type]

    def accept(self) -> tuple[socket.socket, Any]:
        self.calls["accept"] += 1
        return super().accept()


@contextmanager
def counted_pair() -> Iterator[tuple[SocketHandle, socket.socket, Counter[str]]]:
    """A handle whose system calls are counted, and a blocking socket for its peer."""
    mine, peer = socket.socketpair()
    with peer, CountedSocket(fileno=mine.detach()) as counted:
        counted.calls = Counter()
        with SocketHandle(counted) as handle:
            yield handle, peer, counted.calls


@pytest.mark.not_under_faults(reason="it counts calls")
def test_a_steady_exchange_costs_one_wait_one_receive_and_one_send() -> None:
    rounds, warm_up = 200, 5
    before: Counter[str] = Counter()

    async def serve(handle: SocketHandle) -> None:
        for number in range(rounds):
            if number == warm_up:
                before.update(counting.calls + calls)
            data = await handle.recv(100)
            assert data
            await handle.sendAll(data)

    def ask(peer: socket.socket) -> None:
        for _ in range(rounds):
            peer.sendall(b"question")
            assert peer.recv(100) == b"question"

    with counted_pair() as (handle, peer, calls), CountingSelector() as counting, EventLoop(counting) as loop:
        client = threading.Thread(target=ask, args=(peer,))
        client.start()
        loop.run_until_complete(serve(handle), join=True)
        client.join()
        counting.calls["unregister"] -= 2  # at the end: the socket, and the waker of the loop
        cost = (counting.calls + calls) - before
    messages = rounds - warm_up
    assert cost["register"] == cost["modify"] == cost["unregister"] == 0
    assert cost["recv"] == cost["send"] == messages
    assert messages - 1 <= cost["select"] <= messages + 2


@pytest.mark.not_under_faults(reason="it counts calls")
def test_messages_that_fill_the_buffer_cost_few_tries_in_vain_and_a_stream_no_waits() -> None:
    """After a full receive there may be more, or nothing: which it was before is taken for the next time."""
    rounds = 500

    async def serve(handle: SocketHandle) -> None:
        for _ in range(rounds):
            assert await handle.recv(100) == bytes(100)
            await handle.sendAll(b"answer")

    def ask() -> None:
        nonlocal asked
        if asked == calls["send"] < rounds:
            if asked:
                peer.recv(100)
            asked += 1
            peer.sendall(bytes(100))

    async def read(handle: SocketHandle) -> None:
        for _ in range(rounds):
            assert await handle.recv(100) == bytes(100)

    asked = 0
    with counted_pair() as (handle, peer, calls), CountingSelector() as counting, EventLoop(counting) as loop:
        counting.before_select = ask
        loop.run_until_complete(serve(handle), join=True)
        assert calls["recv"] <= rounds + rounds / 64 + 10
        counting.before_select = bool
        calls.clear()
        counting.calls.clear()
        peer.sendall(bytes(100 * rounds))  # as one, which takes less room in the kernel
        loop.run_until_complete(read(handle), join=True)
        assert calls["recv"] == rounds
        # Until it tries each time, and where it gives way.
        assert counting.calls["select"] <= 64 + 32 + 16 + 8 + 4 + 2 + 10


@dataclass(frozen=True)
class Service:
    """A server of one connection, and a client for the other end of it."""

    serve: Callable[[socket.socket], Coroutine[Any, Any, None]]
    ask: Callable[[socket.socket, bytes, int], Client]


@pytest.fixture(params=["handles", "lines", "tls"])
def service(request: pytest.FixtureRequest) -> Service:
    if request.param == "handles":
        return Service(answer_by_handle, Client)
    if request.param == "lines":
        return Service(answer_lines, Client)
    server_context: ssl.SSLContext = request.getfixturevalue("server_context")
    client_context: ssl.SSLContext = request.getfixturevalue("client_context")
    return Service(
        lambda sock: answer_by_tls(sock, server_context),
        lambda sock, question, rounds: TLSClient(sock, question, rounds, client_context),
    )


CONNECTIONS = 50


def cost_of(rounds: int, service: Service) -> Counter[str]:
    """What the selector and the sockets of a server are asked from beginning to end, all clients asking at once."""
    calls: Counter[str] = Counter()

    def accepted(sock: socket.socket) -> socket.socket:
        counted = CountedSocket(fileno=sock.detach())
        counted.calls = calls
        return counted

    async def serve(ours: list[socket.socket]) -> None:
        for sock in ours:
            await spawn(service.serve(sock))

    def act() -> None:
        for client in clients:
            client.act()

    pairs = [socket.socketpair() for _ in range(CONNECTIONS)]
    clients = [service.ask(theirs, b"question\n", rounds) for _, theirs in pairs]
    with CountingSelector() as counting, EventLoop(counting) as loop:
        counting.before_select = act
        loop.run_until_complete(serve([accepted(ours) for ours, _ in pairs]))
    return counting.calls + calls


@pytest.mark.not_under_faults(reason="it counts calls")
@pytest.mark.skipif(os.name == "nt", reason="socket pairs of Windows are TCP connections: answers take a while")
def test_connections_that_are_ready_together_share_a_wait_and_cost_one_receive_and_one_send_each(
    service: Service,
) -> None:
    few, many = cost_of(5, service), cost_of(25, service)
    assert many - few == {"select": 20, "recv": 20 * CONNECTIONS, "send": 20 * CONNECTIONS}


#: A server of eight connections, the half of which are read by lines, and its clients, which make system calls, too: a
#: receive and a send for each question.
PROGRAM = """
import socket
import sys

import flowno_backends
from flowno import EventLoop, spawn
from tests.support.peers import Client, answer_by_handle, answer_lines, before_each_wait

async def main():
    for (ours, _), serve in zip(pairs, 4 * [answer_by_handle, answer_lines], strict=True):
        await spawn(serve(ours))

pairs = [socket.socketpair() for _ in range(8)]
clients = [Client(theirs, b"question\\n", int(sys.argv[2])) for _, theirs in pairs]
with before_each_wait(getattr(flowno_backends, sys.argv[1]), clients) as selector, EventLoop(selector) as loop:
    loop.run_until_complete(main())
"""

#: What waits, by the names that the system calls have on one processor or another.
WAITS = {"epoll_pwait", "epoll_wait", "poll", "ppoll", "pselect6", "select"}

#: What Python does for its memory.
MEMORY = {"brk", "madvise", "mmap", "mremap", "munmap"}


def system_calls(rounds: int, backend: str, folder: Path) -> Counter[str]:
    """The system calls of the whole program, those included that start Python."""
    table = folder / f"{rounds}.txt"
    selector_class = BUILT_IN[backend].rpartition(":")[2]
    result = subprocess.run(
        [require("strace"), "-f", "-c", "-o", str(table), sys.executable, "-c", PROGRAM, selector_class, str(rounds)],
        env={**environment(), **dict.fromkeys(VARIABLES, "")},  # whoever watches makes system calls of its own
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if result.returncode and "ptrace" in result.stderr.lower():
        pytest.skip(f"nothing may be traced here: {result.stderr.strip()}")
    assert (result.returncode, result.stderr) == (0, "")
    calls: Counter[str] = Counter()
    for line in table.read_text(encoding="utf-8").splitlines():
        columns = line.split()  # % time, seconds, usecs/call, calls, maybe errors, and the name
        if len(columns) >= 5 and columns[3].isdigit() and columns[-1] != "total":
            calls["wait" if columns[-1] in WAITS else columns[-1]] += int(columns[3])
    return calls


@pytest.mark.not_in_debug_mode(reason="the watchdog makes system calls")
@pytest.mark.skipif(sys.platform != "linux", reason="strace is a program of Linux")
def test_the_system_is_asked_for_nothing_else(backend: str, tmp_path: Path) -> None:
    if backend not in BUILT_IN:
        pytest.skip(f"{backend} makes other system calls than the one that it stands for")
    few, many = system_calls(10, backend, tmp_path), system_calls(30, backend, tmp_path)
    # What comes a few times in all is Python's, which reads a folder anew where something was written into it.
    difference = {call: count for call, count in (many - few).items() if count >= 10 and call not in MEMORY}
    assert difference == {"wait": 20, "recvfrom": 2 * 20 * 8, "sendto": 2 * 20 * 8}


async def deal_with_each_other() -> None:
    """What tasks do without any socket, each of them some times."""
    lock, queue = Lock(), AsyncQueue[int](maxsize=1)

    async def work() -> None:
        for number in range(5):
            async with lock, timeout(60):
                await queue.put(number)
                await sleep(0)
                await queue.get()

    async with TaskGroup() as group:
        for _ in range(3):
            await group.spawn(work())
        sleeper = await group.spawn(sleep_forever())
        await (await spawn(work())).join()
        await sleeper.cancel()


def test_tasks_that_deal_with_each_other_ask_nothing() -> None:
    async def root() -> None:
        before = counting.calls.copy()
        await deal_with_each_other()
        assert counting.calls == before

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)


def test_with_a_socket_registered_each_turn_asks_once_and_does_not_wait() -> None:
    async def root() -> None:
        with pair() as (one, _):
            reader = await spawn(one.recv(9))
            await sleep(0)
            before, asked = counting.calls.copy(), len(counting.timeouts)
            for _ in range(100):
                await sleep(0)
            assert counting.calls - before == {"select": 100}
            assert set(counting.timeouts[asked:]) == {0}
            await reader.cancel()

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)


@pytest.mark.not_under_faults(reason="it counts calls")
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere connect() may return before accept() finds anybody")
def test_connections_that_have_come_together_are_accepted_after_one_wait() -> None:
    async def root() -> None:
        with CountedSocket() as listener, SocketHandle(listener) as server, ExitStack() as stack:
            listener.calls = Counter()
            server.bind(("127.0.0.1", 0))
            server.listen(20)
            acceptor = await spawn(accept(server, 20))
            assert listener.calls == {"accept": 1}  # nobody was there
            before = counting.calls.copy()
            for _ in range(20):
                stack.enter_context(socket.create_connection(server.getsockname()))
            assert await acceptor.join() - before == {"select": 1}
            assert listener.calls == {"accept": 21}

    async def accept(server: SocketHandle, number: int) -> Counter[str]:
        for _ in range(number):
            handle, _ = await server.accept()
            handle.close()
        return counting.calls.copy()

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)


@pytest.mark.not_under_faults(reason="it counts calls")
def test_a_message_that_fills_the_buffer_of_the_receiver_is_followed_without_waiting() -> None:
    async def root() -> None:
        with pair() as (one, other):
            await one.sendAll(b"abcdef")
            registered = counting.calls["register"]
            assert [await other.recv(2) for _ in range(3)] == [b"ab", b"cd", b"ef"]
            assert counting.calls["register"] == registered

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)


@pytest.mark.not_under_faults(reason="it counts calls")
@pytest.mark.parametrize("how", ["recv", "recv_into"])
@pytest.mark.parametrize("waited", [False, True], ids=["was there at once", "was waited for"])
def test_after_a_receive_that_took_all_there_was_the_next_waits_before_it_tries(waited: bool, how: str) -> None:
    async def take(handle: SocketHandle) -> bytes:
        if how == "recv":
            return await handle.recv(9)
        buffer = bytearray(9)
        return bytes(buffer[: await handle.recv_into(buffer)])

    async def root() -> None:
        for number in range(1, 4):
            if waited or number > 1:
                before = calls[how]
                reader = await spawn(take(handle))
                await sleep(0)
                assert calls[how] - before == (number == 1)  # nobody knew that there was nothing
                peer.send(b"short")
                assert await reader.join() == b"short"
                assert calls[how] - before == 1 + (number == 1)
            else:
                peer.send(b"short")
                assert await take(handle) == b"short"

    with counted_pair() as (handle, peer, calls), EventLoop() as loop:
        loop.run_until_complete(root(), join=True)


@pytest.mark.not_under_faults(reason="it counts calls")
def test_a_send_that_the_socket_takes_asks_the_selector_nothing() -> None:
    async def root() -> None:
        with pair() as (one, _):
            before = counting.calls.copy()
            for _ in range(50):
                await one.sendAll(b"x")
            assert counting.calls == before

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)


@pytest.mark.not_under_faults(reason="it counts calls")
def test_a_socket_is_registered_at_its_first_wait_and_stays_so() -> None:
    async def root() -> None:
        with pair() as (one, other):
            fd = one.fileno()
            assert fd not in counting.masks
            for _ in range(5):
                reader = await spawn(one.recv(9))
                await sleep(0)
                assert counting.masks[fd] == EVENT_READ
                await other.sendAll(b"x")
                await reader.join()
                assert counting.masks[fd] == EVENT_READ
            assert counting.calls["register"] == 2  # this one, and the loop's own waker
            one.close()
            assert fd not in counting.masks

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_write_interest_goes_at_once_and_read_interest_when_it_is_reported_in_vain() -> None:
    async def root() -> None:
        with pair(4096) as (one, other):
            fd = one.fileno()
            filled = fill(one)
            reader = await spawn(one.recv(9))

            async def write() -> int:
                await one.sendAll(b"end")
                return counting.masks[fd]  # as soon as it has sent

            writer = await spawn(write())
            await sleep(0)
            assert counting.masks[fd] == EVENT_READ | EVENT_WRITE
            assert len(await receive(other, filled + 3)) == filled + 3
            assert await writer.join() == EVENT_READ
            await reader.cancel()
            assert counting.masks[fd] == EVENT_READ  # it may be wanted again
            await other.sendAll(b"in vain")
            for _ in range(3):
                await sleep(0)
            assert fd not in counting.masks
            assert await one.recv(9) == b"in vain"

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)


def test_a_cancelled_writer_takes_its_interest_with_it() -> None:
    async def root() -> None:
        with pair(4096) as (one, _):
            fill(one)
            writer = await spawn(one.send(b"x"))
            await sleep(0)
            assert counting.masks[one.fileno()] == EVENT_WRITE
            await writer.cancel()
            assert one.fileno() not in counting.masks

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)


def test_the_waker_is_the_only_thing_that_a_run_without_sockets_registers() -> None:
    async def root() -> None:
        assert list(counting.masks.values()) == [EVENT_READ]
        await sleep(0.001)

    with CountingSelector() as counting, EventLoop(counting) as loop:
        for _ in range(3):
            loop.run_until_complete(root(), join=True)
            assert counting.masks == {}


def test_a_handle_that_outlives_the_run_is_registered_nowhere_after_it() -> None:
    async def use(one: SocketHandle, other: SocketHandle) -> None:
        reader = await spawn(one.recv(1))
        await other.sendAll(b"x")
        assert await reader.join() == b"x"

    with CountingSelector() as counting, EventLoop(counting) as loop, pair() as (one, other):
        for _ in range(2):
            loop.run_until_complete(use(one, other), join=True)
            assert counting.calls["register"] > 1
            assert counting.masks == {}
        run(use(one, other))  # another loop, while the first one is alive
