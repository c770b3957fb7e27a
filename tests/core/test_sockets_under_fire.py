"""Sockets under fire: peers that break off, tasks that get in each other's way, numbers that are used again."""

import errno
import gc
import logging
import os
import socket
import struct
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from selectors import SelectorKey
from typing import Any

import pytest

import flowno
from flowno import BusyResourceError, ClosedResourceError, EventLoop, SocketHandle, TaskHandle, sleep, spawn
from tests.conftest import RunPython
from tests.support.counting_selector import CountingSelector
from tests.support.loopback import LARGE, fill, listening, pair, receive, tcp_pair

if sys.platform != "win32":
    import fcntl
    import resource

pytestmark = pytest.mark.usefixtures("backend")


def reset(handle: SocketHandle) -> None:
    """Break the connection off: the peer gets a reset instead of the end of the stream."""
    handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handle.close()


@contextmanager
def open_files(number: int) -> Iterator[None]:
    """Room for so many open files, else the test is skipped."""
    if sys.platform == "win32":
        pytest.skip("this platform has no RLIMIT_NOFILE")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
        except (ValueError, OSError):
            pytest.skip(f"RLIMIT_NOFILE cannot be raised from {soft} to {number}; the hard limit is {hard}")
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ------------------------------------------------------------------------------------------------- peers that break off


@pytest.mark.parametrize("waiting", [False, True])
def test_a_connection_reset_is_raised_where_it_is_received_from(waiting: bool) -> None:
    async def root() -> None:
        with tcp_pair() as (one, other):
            reader = await spawn(one.recv(1)) if waiting else None
            reset(other)
            with pytest.raises(ConnectionResetError):
                await (reader.join() if reader else one.recv(1))

    flowno.run(root())


def test_a_connection_reset_is_raised_in_both_directions_at_once() -> None:
    async def root() -> None:
        with tcp_pair() as (one, other):
            writer = await spawn(one.sendAll(bytes(LARGE)))
            reader = await spawn(one.recv(1))
            reset(other)
            outcomes = []
            for task in (writer, reader):
                try:
                    outcomes.append(await task.join())
                except OSError as error:
                    outcomes.append(type(error))
            # The system tells the reset once; the other direction sees what is left of the connection.
            assert ConnectionResetError in outcomes
            assert outcomes[0] in (ConnectionResetError, BrokenPipeError)
            assert outcomes[1] in (ConnectionResetError, b"")

    flowno.run(root())


def test_a_peer_that_closes_while_more_is_sent_breaks_the_pipe() -> None:
    async def root() -> None:
        with tcp_pair() as (one, other):
            writer = await spawn(one.sendAll(bytes(LARGE)))
            assert len(await receive(other, 100_000)) == 100_000
            other.close()
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                await writer.join()
            assert 100_000 <= one.bytes_sent < LARGE

    flowno.run(root())


def test_a_peer_that_closes_half_way_can_still_be_answered() -> None:
    async def root() -> None:
        with tcp_pair() as (one, other):
            reader = await spawn(receive(other, LARGE))
            await one.sendAll(b"question")
            one.shutdown(socket.SHUT_WR)
            assert await reader.join() == b"question"
            for _ in range(3):
                assert await other.recv(100) == b""
            collector = await spawn(receive(one, LARGE))
            await other.sendAll(bytes(LARGE))
            other.close()
            assert len(await collector.join()) == LARGE

    flowno.run(root())


@pytest.mark.parametrize("how", ["end of stream", "reset", "half close"])
@pytest.mark.parametrize("armed", ["read", "write", "both"])
def test_a_hang_up_that_nobody_waits_for_does_not_spin(how: str, armed: str) -> None:
    async def root() -> None:
        with tcp_pair() as (one, other):
            tasks: list[TaskHandle[Any]] = []
            if armed != "write":
                tasks.append(await spawn(one.recv(1)))
            if armed != "read":
                fill(one)
                tasks.append(await spawn(one.send(b"x")))
            for task in tasks:
                await task.cancel()
            if how == "half close":
                other.shutdown(socket.SHUT_WR)
            else:
                (reset if how == "reset" else SocketHandle.close)(other)
            before = counting.calls["select"]
            await sleep(0.1)
            assert counting.calls["select"] - before < 10

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)


def test_data_that_nobody_receives_does_not_spin_and_is_not_lost() -> None:
    async def root() -> None:
        with pair() as (one, other):
            await (await spawn(one.recv(1))).cancel()
            await other.sendAll(b"for later")
            before = counting.calls["select"]
            await sleep(0.1)
            assert counting.calls["select"] - before < 10
            assert await one.recv(100) == b"for later"

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)


# ------------------------------------------------------------------------------------------- two tasks on one handle


Operation = Callable[[SocketHandle], Any]

READS: dict[str, Operation] = {
    "recv": lambda handle: handle.recv(100),
    "recv_into": lambda handle: handle.recv_into(bytearray(100)),
    "accept": lambda handle: handle.accept(),
}
WRITES: dict[str, Operation] = {
    "send": lambda handle: handle.send(b"second"),
    "sendAll": lambda handle: handle.sendAll(b"second"),
    "nothing": lambda handle: handle.sendAll(b""),
}


@pytest.mark.parametrize("second", READS.values(), ids=list(READS))
@pytest.mark.parametrize("first", ["recv", "recv_into"])
def test_a_second_reader_is_refused_and_the_first_is_unaffected(first: str, second: Operation) -> None:
    async def root() -> None:
        with pair() as (one, other):
            reader = await spawn(READS[first](one))
            for _ in range(3):
                with pytest.raises(BusyResourceError, match="receiving"):
                    await second(one)
            assert not reader.is_finished
            await other.sendAll(b"data")
            assert await reader.join() in (b"data", 4)

    flowno.run(root())


@pytest.mark.parametrize("second", READS.values(), ids=list(READS))
def test_a_second_acceptor_is_refused_and_the_first_is_unaffected(second: Operation) -> None:
    async def root() -> None:
        with listening() as listener, flowno.socket() as client:
            acceptor = await spawn(listener.accept())
            with pytest.raises(BusyResourceError):
                await second(listener)
            client.connect(listener.getsockname())
            connection, _ = await acceptor.join()
            connection.close()

    flowno.run(root())


@pytest.mark.parametrize("second", WRITES.values(), ids=list(WRITES))
@pytest.mark.parametrize("first", ["send", "sendAll"])
def test_a_second_sender_is_refused_before_a_byte_moves(first: str, second: Operation) -> None:
    data = os.urandom(1 << 20)

    async def root() -> None:
        with pair(4096) as (one, other):
            filled = fill(one) if first == "send" else 0
            sender = await spawn(getattr(one, first)(data))
            progress = one.bytes_sent
            with pytest.raises(BusyResourceError, match="sending"):
                await second(one)
            assert one.bytes_sent == progress
            assert len(await receive(other, filled)) == filled
            reader = await spawn(receive(other, len(data)))
            sent = await sender.join() if first == "send" else len(data)
            if first == "sendAll":
                await sender.join()
            one.shutdown(socket.SHUT_WR)
            assert await reader.join() == data[:sent]

    flowno.run(root())


def test_a_direction_is_owned_between_wake_and_resume_too() -> None:
    """Two readers become ready by one report; whichever runs first tries to take the other's data."""
    got: dict[str, bytes] = {}
    refused = []

    async def reader(name: str, mine: SocketHandle, theirs: SocketHandle) -> None:
        got[name] = await mine.recv(9)
        if len(got) == 1:
            try:
                got[name] += await theirs.recv(9)
            except BusyResourceError:
                refused.append(name)

    async def root() -> None:
        with pair() as (a1, a2), pair() as (b1, b2):
            tasks = [await spawn(reader("a", a1, b1)), await spawn(reader("b", b1, a1))]
            a2.socket.send(b"for a")
            b2.socket.send(b"for b")
            for task in tasks:
                await task.join()

    flowno.run(root())
    assert got == {"a": b"for a", "b": b"for b"}
    assert len(refused) == 1


def test_a_refused_or_failed_operation_leaves_its_direction_free() -> None:
    async def root() -> None:
        with pair() as (one, other):
            reader = await spawn(one.recv(9))
            with pytest.raises(BusyResourceError):
                await one.recv(9)
            await reader.cancel()
            counting.fail["register"] = OSError(errno.ENOSPC, "no space")
            with pytest.raises(OSError, match="no space"):
                await other.recv(9)
            counting.fail.clear()
            for handle, peer in ((one, other), (other, one)):
                reader = await spawn(handle.recv(9))
                await peer.sendAll(b"x")
                assert await reader.join() == b"x"

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)


def test_a_failing_modify_reaches_the_task_that_asked_and_the_other_direction_goes_on() -> None:
    async def root() -> None:
        with pair(4096) as (one, other):
            fill(one)
            reader = await spawn(one.recv(9))

            def fail_modify(fileobj: Any, events: int, data: Any = None, /) -> SelectorKey:
                counting.unregister(fileobj)  # as the protocol has it: a failure leaves the fd unregistered
                raise OSError(errno.ENOMEM, "no memory")

            original, counting.modify = counting.modify, fail_modify  # type: ignore[method-assign]
            with pytest.raises(OSError, match="no memory"):
                await one.send(b"x")
            counting.modify = original  # type: ignore[method-assign]
            await sleep(0)
            await other.sendAll(b"data")
            assert await reader.join() == b"data"

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)


# --------------------------------------------------------------------------------------------------- handles that close


@pytest.mark.parametrize("wait", ["recv", "recv_into", "send", "sendAll", "accept"])
def test_a_handle_closed_under_a_waiter_raises_in_it(wait: str) -> None:
    async def root() -> None:
        with pair(4096) as (one, _), listening() as listener:
            handle = listener if wait == "accept" else one
            fill(one)
            operations = {**READS, **WRITES}
            waiter = await spawn(operations[wait](handle))
            handle.close()
            with pytest.raises(ClosedResourceError) as caught:
                await waiter.join()
            assert caught.value.errno == errno.EBADF

    flowno.run(root())


def test_a_handle_closed_under_both_directions_raises_in_both() -> None:
    async def root() -> None:
        with pair(4096) as (one, other):
            reader = await spawn(one.recv(1))
            writer = await spawn(one.sendAll(bytes(LARGE)))
            one.close()
            for task in (reader, writer):
                with pytest.raises(ClosedResourceError):
                    await task.join()
            assert set(await receive(other, LARGE)) <= {0}

    flowno.run(root())


def test_a_handle_closed_under_a_task_that_is_ready_raises_in_it() -> None:
    """Two readers become ready by one report; the first that runs closes the other's handle."""
    outcomes: list[Any] = []

    async def reader(mine: SocketHandle, theirs: SocketHandle) -> None:
        try:
            outcomes.append(await mine.recv(9))
            theirs.close()
        except ClosedResourceError:
            outcomes.append("closed")

    async def root() -> None:
        with pair() as (a1, a2), pair() as (b1, b2):
            tasks = [await spawn(reader(a1, b1)), await spawn(reader(b1, a1))]
            a2.socket.send(b"data")
            b2.socket.send(b"data")
            for task in tasks:
                await task.join()

    flowno.run(root())
    assert outcomes == [b"data", "closed"]


def test_close_unregisters_before_the_fd_is_closed() -> None:
    async def root() -> None:
        with pair() as (one, _):
            await (await spawn(one.recv(1))).cancel()
            assert one.fileno() in counting.masks

            def unregister(fileobj: Any, /) -> SelectorKey:
                assert one.fileno() == fileobj  # still open
                return original(fileobj)

            original, counting.unregister = counting.unregister, unregister  # type: ignore[method-assign]
            one.close()
            assert fd not in counting.masks
            counting.unregister = original  # type: ignore[method-assign]

    with CountingSelector() as counting, EventLoop(counting) as loop, pair() as (probe, _):
        fd = probe.fileno()
        loop.run_until_complete(root(), join=True)


@contextmanager
def pair_with_number(number: int) -> Iterator[tuple[SocketHandle, SocketHandle]]:
    """A pair whose first handle has this number, which is the lowest free one."""
    with pair() as (one, other):
        fresh, peer = (one, other) if one.fileno() == number else (other, one)
        assert fresh.fileno() == number
        yield fresh, peer


def test_a_number_that_is_used_again_belongs_to_the_new_handle_alone() -> None:
    """The old handle is closed while its readiness is known already, and the new one waits at once."""

    async def root() -> None:
        for _ in range(20):
            with pair() as (old, old_peer):
                reader = await spawn(old.recv(9))
                await old_peer.sendAll(b"for the old one")
                number = old.fileno()
                old.close()
                with pair_with_number(number) as (new, new_peer):
                    late = await spawn(new.recv(99))
                    with pytest.raises(ClosedResourceError):
                        await reader.join()
                    old.close()
                    await sleep(0)
                    assert not late.is_finished
                    await new_peer.sendAll(b"for the new one")
                    assert await late.join() == b"for the new one"

    flowno.run(root())


class LateSelector(CountingSelector):
    """Reports once more, in the next report, what was ready before; whatever has become of it."""

    late: list[tuple[SelectorKey, int]]

    def __init__(self) -> None:
        super().__init__()
        self.late = []

    def select(self, timeout: float | None = None, /) -> list[tuple[SelectorKey, int]]:
        late, self.late = self.late, []
        self.late = super().select(0 if late else timeout)
        return late + self.late


def test_an_event_that_comes_late_does_not_reach_the_new_handle_of_its_number() -> None:
    async def write(handle: SocketHandle) -> None:
        await sleep(0)
        await handle.sendAll(b"data")

    async def root() -> None:
        with pair() as (one, other):
            await spawn(write(other))
            assert await one.recv(9) == b"data"
            number = one.fileno()
            one.close()
            with pair_with_number(number) as (fresh, peer):
                late = await spawn(fresh.recv(9))
                assert [key.fd for key, _ in selector.late] == [number]
                for _ in range(3):
                    await sleep(0)
                assert not late.is_finished
                await peer.sendAll(b"new data")
                assert await late.join() == b"new data"

    with LateSelector() as selector, EventLoop(selector) as loop:
        loop.run_until_complete(root(), join=True)


def test_a_socket_closed_behind_the_back_of_a_waiter_raises_in_it() -> None:
    async def root() -> None:
        with pair() as (one, _):
            reader = await spawn(one.recv(1))
            one.socket.close()
            with pytest.raises(ClosedResourceError):
                await reader.join()
            with pytest.raises(ClosedResourceError):
                await one.recv(1)

    flowno.run(root())


def test_a_socket_closed_behind_the_back_of_a_busy_loop_does_not_spin_and_raises_in_its_waiter() -> None:
    async def root() -> None:
        with pair() as (one, _):
            reader = await spawn(one.recv(1))
            await sleep(0.01)
            one.socket.close()
            ticks = 0
            while not reader.is_error and ticks < 300:
                await sleep(0.01)
                ticks += 1
            with pytest.raises(ClosedResourceError):
                await reader.join()
            assert counting.calls["select"] < 4 * ticks + 20

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)


def test_a_socket_closed_behind_our_back_whose_number_is_used_again_raises_in_its_waiter_at_once() -> None:
    async def root() -> None:
        with pair() as (one, _):
            reader = await spawn(one.recv(1))
            number = one.fileno()
            one.socket.close()
            with pair_with_number(number) as (fresh, peer):
                late = await spawn(fresh.recv(9))
                await sleep(0)
                await sleep(0)
                assert reader.is_error
                with pytest.raises(ClosedResourceError):
                    await reader.join()
                one.close()  # the old handle does not close the new one's fd
                await peer.sendAll(b"data")
                assert await late.join() == b"data"

    flowno.run(root())


def test_closing_a_handle_whose_socket_was_closed_behind_our_back_is_fine() -> None:
    async def root() -> None:
        with pair() as (one, _):
            await (await spawn(one.recv(1))).cancel()
            one.socket.close()
            one.close()
            await sleep(0.001)

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)
        assert counting.masks == {}


def test_the_peer_of_a_handle_that_is_dropped_unclosed_sees_the_end_of_the_stream() -> None:
    async def use(sock: socket.socket) -> None:
        handle = SocketHandle(sock)
        await (await spawn(handle.recv(1))).cancel()  # it is registered

    async def root() -> None:
        ends = list(socket.socketpair())
        with SocketHandle(ends.pop()) as peer:
            number = ends[0].fileno()
            await use(ends.pop())
            assert await peer.recv(1) == b""
            await sleep(0)
            assert number not in counting.masks

    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # of the socket module, for the dropped socket
            with CountingSelector() as counting, EventLoop(counting) as loop:
                loop.run_until_complete(root(), join=True)
    finally:
        gc.enable()


def test_a_handle_and_its_commands_are_freed_without_the_garbage_collector() -> None:
    async def root() -> weakref.ref[SocketHandle]:
        with pair() as (one, other):
            reader = await spawn(one.recv(1))
            await other.sendAll(b"x")
            await reader.join()
            return weakref.ref(one)

    gc.collect()
    gc.disable()
    try:
        assert flowno.run(root())() is None
    finally:
        gc.enable()


# ----------------------------------------------------------------------------------- two handles, two loops, one socket


def test_two_handles_on_one_socket_share_its_directions() -> None:
    async def root() -> None:
        with pair(4096) as (one, other):
            twin = SocketHandle(one.socket)
            reader = await spawn(one.recv(9))
            with pytest.raises(BusyResourceError):
                await twin.recv(9)
            writer = await spawn(twin.sendAll(b"x" * 1_000_000))  # the other direction is free
            with pytest.raises(BusyResourceError):
                await one.send(b"y")
            assert await receive(other, 1_000_000) == b"x" * 1_000_000
            await writer.join()
            await other.sendAll(b"data")
            assert await reader.join() == b"data"
            await other.sendAll(b"more")
            assert await twin.recv(9) == b"more"

    flowno.run(root())


def test_a_socket_closed_by_one_of_its_handles_raises_in_the_waiters_of_all() -> None:
    async def root() -> None:
        with pair() as (one, _):
            twin = SocketHandle(one.socket)
            reader = await spawn(one.recv(9))
            twin.close()
            await sleep(0)
            assert reader.is_error  # at once, not when somebody notices
            with pytest.raises(ClosedResourceError):
                await reader.join()
            with pytest.raises(ClosedResourceError):
                await one.recv(9)

    flowno.run(root())


def test_a_handle_that_is_dropped_does_not_disturb_another_on_its_socket() -> None:
    async def root() -> None:
        with pair() as (one, other):
            twin = SocketHandle(one.socket)
            await (await spawn(twin.recv(9))).cancel()
            reader = await spawn(one.recv(9))
            del twin
            for _ in range(3):
                await sleep(0)
            await other.sendAll(b"data")
            assert await reader.join() == b"data"

    flowno.run(root())


def test_a_handle_that_waits_in_one_loop_is_refused_in_another() -> None:
    with pair() as (one, other), EventLoop() as first, EventLoop() as second:

        async def begin() -> TaskHandle[bytes]:
            return await spawn(one.recv(9))

        async def intrude() -> None:
            with pytest.raises(BusyResourceError):
                await one.recv(9)

        reader = first.run_until_complete(begin(), join=True, wait_for_spawned_tasks=False)
        second.run_until_complete(intrude(), join=True)
        other.socket.send(b"data")
        assert first.run_until_complete(reader.join(), join=True) == b"data"


def test_a_handle_whose_other_direction_waits_in_a_living_loop_is_refused_too() -> None:
    with pair(4096) as (one, other), EventLoop() as first, EventLoop() as second:

        async def begin() -> TaskHandle[int]:
            return await spawn(one.send(b"x"))

        async def intrude() -> None:
            with pytest.raises(BusyResourceError, match="another event loop"):
                await one.recv(9)

        filled = fill(one)
        writer = first.run_until_complete(begin(), join=True, wait_for_spawned_tasks=False)
        second.run_until_complete(intrude(), join=True)
        assert len(second.run_until_complete(receive(other, filled), join=True)) == filled
        assert first.run_until_complete(writer.join(), join=True) == 1


def test_a_handle_goes_to_another_loop_once_nobody_waits_for_it() -> None:
    async def exchange(text: bytes) -> bytes:
        reader = await spawn(one.recv(9))
        await sleep(0)
        await other.sendAll(text)
        return await reader.join()

    with pair() as (one, other):
        with EventLoop() as first, EventLoop() as second:
            for number, loop in enumerate((first, second, first, second, second)):
                text = b"%d" % number
                assert loop.run_until_complete(exchange(text), join=True) == text
        assert flowno.run(exchange(b"third")) == b"third"


def test_directions_are_owned_after_a_handle_has_changed_loops() -> None:
    async def root() -> None:
        reader = await spawn(one.recv(9))
        with pytest.raises(BusyResourceError):
            await one.recv(9)
        await other.sendAll(b"data")
        assert await reader.join() == b"data"

    with pair() as (one, other):
        flowno.run(root())
        flowno.run(root())


def test_two_loops_in_two_threads_do_not_disturb_each_other() -> None:
    rounds = 200
    results: dict[int, bytes] = {}

    async def echo(handle: SocketHandle) -> None:
        while data := await handle.recv(100):
            await handle.sendAll(data)

    async def root(number: int) -> bytes:
        with pair() as (one, other):
            server = await spawn(echo(other))
            got = b""
            for _ in range(rounds):
                await one.sendAll(b"%d" % number)
                got += await one.recv(100)
            one.close()
            await server.join()
            return got

    def work(number: int) -> None:
        results[number] = flowno.run(root(number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: b"%d" % number * rounds for number in range(2)}


# --------------------------------------------------------------------------------------------------- accept under fire


class Refusing(socket.socket):
    """A listening socket whose accept fails as told before it works."""

    errors: list[int]
    calls = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.calls += 1
        if self.errors:
            code = self.errors.pop(0)
            raise OSError(code, os.strerror(code))
        return super().accept()


@contextmanager
def refusing_listener(*errors: int) -> Iterator[SocketHandle]:
    sock = Refusing()
    sock.errors = list(errors)
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    with SocketHandle(sock) as listener:
        yield listener


def codes(*names: str) -> list[Any]:
    return [pytest.param(getattr(errno, name), id=name) for name in names if hasattr(errno, name)]


@pytest.mark.parametrize(
    "code",
    codes("ECONNABORTED", "EPROTO", "EPERM", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH",
          "ENETUNREACH"),
)  # fmt: skip
def test_accept_passes_over_connections_that_have_failed(code: int) -> None:
    async def root() -> None:
        with refusing_listener(code, code, code) as listener, flowno.socket() as client:
            acceptor = await spawn(listener.accept())
            client.connect(listener.getsockname())
            connection, address = await acceptor.join()
            connection.close()
            assert address == client.getsockname()

    flowno.run(root())


@pytest.mark.parametrize("code", codes("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EINVAL", "ENOTSOCK"))
def test_accept_raises_what_concerns_the_listener_and_works_again_afterwards(code: int) -> None:
    async def root() -> None:
        with refusing_listener(code) as listener, flowno.socket() as client:
            client.connect(listener.getsockname())
            with pytest.raises(OSError) as caught:  # noqa: PT011
                await listener.accept()
            assert caught.value.errno == code
            connection, _ = await listener.accept()
            connection.close()

    flowno.run(root())


def test_connections_that_fail_without_end_do_not_hold_up_the_loop() -> None:
    async def root() -> None:
        with refusing_listener(*[errno.ECONNABORTED] * 10_000) as listener, flowno.socket() as client:
            client.connect(listener.getsockname())
            acceptor = await spawn(listener.accept())
            first = listener.socket.calls  # type: ignore[attr-defined]
            assert 0 < first <= 65
            await sleep(0)
            await sleep(0)
            assert first < listener.socket.calls <= first + 130  # type: ignore[attr-defined]
            await acceptor.cancel()

    flowno.run(root())


@pytest.mark.parametrize("kind", ["datagram", "not listening"])
def test_accept_on_a_socket_that_does_not_accept_says_so(kind: str) -> None:
    async def root() -> None:
        with flowno.socket(type=socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM) as handle:
            handle.bind(("127.0.0.1", 0))
            with pytest.raises(OSError) as caught:  # noqa: PT011
                await handle.accept()
            assert caught.value.errno in (errno.EOPNOTSUPP, errno.EINVAL)

    flowno.run(root())


@pytest.mark.skipif(sys.platform == "win32", reason="this platform has no RLIMIT_NOFILE")
def test_a_server_without_free_descriptors_gets_emfile_and_goes_on_when_there_are_some(run_python: RunPython) -> None:
    program = """
import errno, os, resource, socket
import flowno

async def root():
    listener = flowno.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    reader = await flowno.spawn(listener.accept())
    await reader.cancel()
    client = flowno.socket()
    client.connect(listener.getsockname())
    limit = max(int(fd) for fd in os.listdir("/dev/fd")) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    held = []
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        assert error.errno == errno.EMFILE
    try:
        await listener.accept()
    except OSError as error:
        print(errno.errorcode[error.errno])
    for fd in held:
        os.close(fd)
    connection, address = await listener.accept()
    print(address == client.getsockname())
    for handle in (connection, client, listener):
        handle.close()

flowno.run(root())
"""
    result = run_python(program)
    assert (result.stdout.split(), result.stderr) == (["EMFILE", "True"], "")


# -------------------------------------------------------------------------------------------------------- many sockets


def test_two_thousand_sockets(backend: str) -> None:
    """A thousand connections, both ends in one loop."""
    number = 1000

    async def echo(handle: SocketHandle) -> None:
        await handle.sendAll(await handle.recv(100))

    async def root() -> None:
        with ExitStack() as stack:
            pairs = [stack.enter_context(pair()) for _ in range(number)]
            servers = [await spawn(echo(other)) for _, other in pairs]
            readers = [await spawn(one.recv(100)) for one, _ in pairs]
            for index, (one, _) in enumerate(pairs):
                await one.sendAll(b"%d" % index)
            assert [await reader.join() for reader in readers] == [b"%d" % index for index in range(number)]
            for server in servers:
                await server.join()

    if backend == "select":
        pytest.skip("select holds FD_SETSIZE sockets, 1024 on most systems")
    with open_files(2 * number + 200):
        flowno.run(root())


@pytest.mark.skipif(sys.platform == "win32", reason="fds are no small numbers there")
def test_a_socket_beyond_what_the_backend_holds_is_a_clear_error_at_the_call_and_the_loop_goes_on(backend: str) -> None:
    async def root() -> None:
        with pair() as (low, low_peer), ExitStack() as stack:
            ends = socket.socketpair()
            high = stack.enter_context(
                SocketHandle(socket.socket(fileno=fcntl.fcntl(ends[0], fcntl.F_DUPFD_CLOEXEC, 1500)))
            )
            ends[0].close()
            peer = stack.enter_context(SocketHandle(ends[1]))
            reader = await spawn(low.recv(9))
            if backend == "select":
                with pytest.raises(ValueError, match="FD_SETSIZE"):
                    await high.recv(9)
                with pytest.raises(ValueError, match="FD_SETSIZE"):
                    await high.recv(9)  # the same again: nobody is registered as waiting
                await high.sendAll(b"what needs no waiting works")
                assert await peer.recv(99) == b"what needs no waiting works"
            else:
                high_reader = await spawn(high.recv(9))
                await peer.sendAll(b"data")
                assert await high_reader.join() == b"data"
            await low_peer.sendAll(b"data")
            assert await reader.join() == b"data"

    with open_files(2000):
        flowno.run(root())


def test_nothing_is_left_registered_after_a_run_that_was_broken_off() -> None:
    async def root() -> None:
        with ExitStack() as stack:
            for _ in range(10):
                one, _ = stack.enter_context(pair(4096))
                fill(one)
                await spawn(one.recv(1))
                await spawn(one.sendAll(b"x"))
            raise KeyError("broken off")

    with CountingSelector() as counting:
        with EventLoop(counting) as loop, pytest.raises(KeyError):
            loop.run_until_complete(root(), join=True)
        assert counting.masks == {}
        assert counting.calls["close"] == 0


def test_a_late_close_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def root() -> None:
        with pair() as (one, other):
            reader = await spawn(one.recv(1))
            await other.sendAll(b"x")
            one.close()
            with pytest.raises(ClosedResourceError):
                await reader.join()
            await sleep(0)

    with caplog.at_level(logging.INFO):
        flowno.run(root())
    assert caplog.records == []
