"""Handles that close under their waiters, and numbers that are used again."""

import errno
import gc
import socket
import warnings
import weakref
from selectors import SelectorKey
from typing import Any

import pytest

import flowno
from flowno import ClosedResourceError, EventLoop, SocketHandle, sleep, spawn
from tests.support.counting_selector import CountingSelector
from tests.support.garbage import no_collections
from tests.support.loopback import LARGE, READS, WRITES, fill, listening, pair, pair_with_number, receive
from tests.support.virtual_time import VirtualTimeSelector

pytestmark = pytest.mark.usefixtures("backend")


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


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
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


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
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


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
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


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
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


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize("how", ["by its handle", "behind its back"])
def test_a_duplicate_that_outlives_a_handle_neither_spins_nor_wakes_who_has_its_number_now(how: str) -> None:
    """epoll watches the open file, not the number: a duplicate keeps what nobody can take out any more."""

    async def root() -> None:
        with pair() as (one, other):
            number = one.fileno()
            reader = await spawn(one.recv(9))
            await sleep(0)
            with one.dup() as duplicate:
                (one if how == "by its handle" else one.socket).close()
                with pair_with_number(number) as (fresh, peer):
                    late = await spawn(fresh.recv(9))
                    await other.sendAll(b"old")  # readable by the duplicate alone
                    with pytest.raises(ClosedResourceError):
                        await reader.join()
                    before = counting.calls["select"]
                    await sleep(0.05)
                    assert counting.calls["select"] - before < 10
                    assert not late.is_finished
                    await peer.sendAll(b"new")
                    assert await late.join() == b"new"
                    assert await duplicate.recv(9) == b"old"

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)


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

    with no_collections(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of the socket module, for the dropped socket
        with CountingSelector() as counting, EventLoop(counting) as loop:
            loop.run_until_complete(root(), join=True)


def test_a_handle_and_its_commands_are_freed_without_the_garbage_collector() -> None:
    async def root() -> weakref.ref[SocketHandle]:
        with pair() as (one, other):
            reader = await spawn(one.recv(1))
            await other.sendAll(b"x")
            await reader.join()
            return weakref.ref(one)

    gc.collect()
    with no_collections():
        assert flowno.run(root())() is None


@pytest.mark.parametrize("busy", ["traffic", "a ticker", "a task that is always ready"])
def test_a_socket_closed_behind_the_back_of_a_loop_that_is_never_quiet_raises_in_its_waiter(busy: str) -> None:
    """epoll drops a closed fd without a word, and a loop that is never quiet for a second looks all the same."""

    async def keep_busy(one: SocketHandle, other: SocketHandle) -> None:
        while True:
            if busy == "traffic":
                await one.sendAll(b"x")
                await other.recv(9)
                await sleep(0)
                await spawn(one.sendAll(b"y"))
                await other.recv(9)
            elif busy == "a ticker":
                await sleep(0.01)
            else:
                await sleep(0)

    async def root() -> None:
        with pair() as (one, _), pair() as busy_pair:
            reader = await spawn(one.recv(1))
            ticker = await spawn(keep_busy(*busy_pair))
            await sleep(0.01)
            one.socket.close()
            start = selector.world.now
            with pytest.raises(ClosedResourceError):
                await reader.join()
            assert selector.world.now - start < 5
            await ticker.cancel()

    with VirtualTimeSelector(cost=0.005) as selector, EventLoop(selector) as loop:
        loop.run_until_complete(root(), join=True)
