"""Directions are owned: by one task, by one handle of several on a socket, by one event loop."""

import errno
import os
import socket
import threading
from selectors import SelectorKey
from typing import Any

import pytest

import flowno
from flowno import (
    BusyResourceError,
    ClosedResourceError,
    EventLoop,
    SocketHandle,
    TaskCancelled,
    TaskHandle,
    sleep,
    spawn,
)
from tests.support.counting_selector import CountingSelector
from tests.support.loopback import READS, WRITES, Operation, fill, listening, pair, receive

pytestmark = pytest.mark.usefixtures("backend")


# ------------------------------------------------------------------------------------------- two tasks on one handle


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
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


@pytest.mark.not_under_faults(reason="it counts turns of the loop, or what is done in one of them")
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


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
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


# ----------------------------------------------------------------------------------- two handles, two loops, one socket


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
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


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
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


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
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


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
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


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
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


READ_OPERATIONS = {
    "recv": lambda handle: handle.recv(9),
    "recv_into": lambda handle: handle.recv_into(bytearray(9)),
}
WRITE_OPERATIONS = {
    "send": lambda handle: handle.send(b"intruder"),
    "sendAll": lambda handle: handle.sendAll(b"intruder"),
}


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize("operation", [*READ_OPERATIONS, *WRITE_OPERATIONS])
def test_a_handle_that_waits_in_another_living_loop_is_refused_also_where_there_is_nothing_to_wait_for(
    operation: str,
) -> None:
    """There is data to receive, and room to send."""

    async def wait(handle: SocketHandle) -> TaskHandle[bytes]:
        reader = await spawn(handle.recv(9))
        await sleep(0)
        return reader

    async def intrude(handle: SocketHandle) -> None:
        with pytest.raises(BusyResourceError):
            await {**READ_OPERATIONS, **WRITE_OPERATIONS}[operation](handle)

    with pair() as (one, other), EventLoop() as first, EventLoop() as second:
        reader = first.run_until_complete(wait(one), join=True, wait_for_spawned_tasks=False)
        other.socket.send(b"data")
        second.run_until_complete(intrude(one), join=True)
        assert first.run_until_complete(reader.join(), join=True) == b"data"
        with pytest.raises(BlockingIOError):
            other.socket.recv(9)


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize("operation", [*READ_OPERATIONS, *WRITE_OPERATIONS])
def test_a_handle_that_is_armed_in_a_loop_that_runs_elsewhere_is_refused_though_nobody_waits(operation: str) -> None:
    """There is data to receive, and room to send. The other loop is in its selector all the while."""
    armed, go_on = threading.Event(), threading.Event()

    async def use(handle: SocketHandle, other: SocketHandle) -> None:
        reader = await spawn(handle.recv(9))
        await sleep(0)
        other.socket.send(b"first")
        assert await reader.join() == b"first"
        selector.before_select = stay
        await sleep(0)

    def stay() -> None:
        armed.set()
        assert go_on.wait(20)

    async def intrude(handle: SocketHandle) -> None:
        with pytest.raises(BusyResourceError, match="another event loop"):
            await {**READ_OPERATIONS, **WRITE_OPERATIONS}[operation](handle)

    with pair() as (one, other), CountingSelector() as selector, EventLoop(selector) as first:
        thread = threading.Thread(target=first.run_until_complete, args=(use(one, other),))
        thread.start()
        try:
            assert armed.wait(20)
            other.socket.send(b"data")
            flowno.run(intrude(one))
        finally:
            go_on.set()
            thread.join(20)
        assert flowno.run(one.recv(9)) == b"data"
        with pytest.raises(BlockingIOError):
            other.socket.recv(9)


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_directions_are_owned_by_a_connect_in_another_loop_than_the_one_that_knew_the_handle_before() -> None:
    """The first loop lives on, in a thread of its own."""
    used = threading.Event()

    async def use(handle: SocketHandle) -> None:
        with pytest.raises(OSError):  # noqa: PT011 - not connected
            await handle.recv(9)
        used.set()
        try:
            await sleep(float("inf"))
        except TaskCancelled:
            pass

    async def root(handle: SocketHandle, listener: SocketHandle) -> None:
        connecting = await spawn(flowno.connect(handle, listener.getsockname()))
        if not connecting.is_finished:
            for operation in (*READS.values(), *WRITES.values()):
                with pytest.raises(BusyResourceError):
                    await operation(handle)
        await connecting.join()
        accepted, _ = await listener.accept()
        with accepted:
            await handle.sendAll(b"data")
            assert await accepted.recv(9) == b"data"
            reader = await spawn(handle.recv(9))
            await sleep(0)
            with pytest.raises(BusyResourceError):
                await handle.recv(9)
            await accepted.sendAll(b"answer")
            assert await reader.join() == b"answer"

    with EventLoop() as loop, flowno.socket() as handle, listening() as listener:
        user = use(handle)
        thread = threading.Thread(target=loop.run_until_complete, args=(user,))
        thread.start()
        try:
            assert used.wait(20)
            flowno.run(root(handle, listener))
        finally:
            loop.cancel(user)
            thread.join(20)
