"""Cancellation: it acts at once, arrives at a wait, and nothing is lost by it."""

import gc
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import flowno
from flowno import CancelScope, EventLoop, SocketHandle, TaskCancelled, TaskHandle, current_event_loop, sleep, spawn
from tests.support.counting_selector import CountingSelector
from tests.support.loopback import LARGE, fill, listening, pair, receive
from tests.support.tasks import FOREVER, value

pytestmark = pytest.mark.usefixtures("backend")


# ------------------------------------------------------------------------------------------------- what cancel() gives


def test_cancel_gives_none_where_the_cancellation_went_through() -> None:
    async def root() -> None:
        handle = await spawn(sleep(FOREVER))
        assert await handle.cancel() is None
        assert handle.is_cancelled

    flowno.run(root())


@pytest.mark.parametrize("how", ["except", "finally"])
def test_cancel_gives_the_value_that_the_task_returns_all_the_same(how: str) -> None:
    async def child() -> str:
        if how == "except":
            try:
                await sleep(FOREVER)
            except TaskCancelled:
                await sleep(0)
                return "value"
        else:
            try:
                await sleep(FOREVER)
            finally:
                await sleep(0)
                return "value"  # noqa: B012 - what is tested
        return "not reached"

    async def root() -> None:
        handle = await spawn(child())
        assert await handle.cancel() == "value"
        assert (handle.is_finished, handle.is_cancelled) == (True, False)
        assert await handle.join() == "value"

    flowno.run(root())


def test_cancel_raises_the_error_of_the_clean_up() -> None:
    async def child() -> None:
        try:
            await sleep(FOREVER)
        finally:
            raise ValueError("clean-up")

    async def root() -> None:
        handle = await spawn(child())
        with pytest.raises(ValueError, match="clean-up"):
            await handle.cancel()
        assert handle.is_error

    flowno.run(root())


def test_cancelling_a_task_that_has_ended_gives_its_outcome() -> None:
    async def root() -> None:
        finished = await spawn(value("x"))
        assert await finished.cancel() == "x"
        assert finished.is_finished

        async def fail() -> None:
            raise ValueError("text")

        failed = await spawn(fail())
        with pytest.raises(ValueError, match="text"):
            await failed.cancel()
        assert failed.is_error
        cancelled = await spawn(sleep(FOREVER))
        for _ in range(3):
            assert await cancelled.cancel() is None
        assert cancelled.is_cancelled

    flowno.run(root())


def test_the_exception_that_arrives_names_the_task() -> None:
    caught = []

    async def child() -> None:
        try:
            await sleep(FOREVER)
        except TaskCancelled as error:
            caught.append(error.by)
            raise

    async def root() -> TaskHandle[None]:
        handle = await spawn(child())
        await handle.cancel()
        return handle

    handle = flowno.run(root())
    assert caught == [handle]


# ------------------------------------------------------------------------------------------------------- when it acts


def test_cancel_acts_at_once_also_where_it_is_not_awaited() -> None:
    async def root() -> None:
        handle = await spawn(sleep(FOREVER))
        handle.cancel()
        await sleep(0)
        assert handle.is_cancelled

    flowno.run(root())


def test_cancel_can_be_awaited_later() -> None:
    async def root() -> None:
        handle = await spawn(sleep(FOREVER))
        cancellation = handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle.join()
        assert await cancellation is None

    flowno.run(root())


def test_except_exception_does_not_stop_a_cancellation() -> None:
    async def child() -> str:
        try:
            await sleep(FOREVER)
        except Exception:
            return "swallowed"
        return "slept"

    async def root() -> None:
        assert await (await spawn(child())).cancel() is None

    flowno.run(root())


def test_after_it_was_caught_a_task_waits_as_usual() -> None:
    async def child() -> str:
        try:
            await sleep(FOREVER)
        except TaskCancelled:
            pass
        with pair() as (one, other):
            helper = await spawn(one.recv(9))
            await sleep(0)
            await other.sendAll(b"x")
            assert await helper.join() == b"x"
        await sleep(0.001)
        return "done"

    async def root() -> None:
        handle = await spawn(child())
        assert await handle.cancel() == "done"

    flowno.run(root())


def test_a_cancellation_can_be_repeated() -> None:
    async def child() -> str:
        for _ in range(3):
            try:
                await sleep(FOREVER)
            except TaskCancelled:
                continue
        return "three times"

    async def root() -> None:
        handle = await spawn(child())
        for _ in range(2):
            handle.cancel()
            await sleep(0)
            assert not handle.is_finished
        assert await handle.cancel() == "three times"

    flowno.run(root())


def test_cancellations_in_one_breath_are_one() -> None:
    caught = 0

    async def child() -> None:
        nonlocal caught
        while True:
            try:
                await sleep(0.001)
                return
            except TaskCancelled:
                caught += 1

    async def root() -> None:
        handle = await spawn(child())
        for _ in range(5):
            handle.cancel()
        await handle.join()

    flowno.run(root())
    assert caught == 1


@pytest.mark.parametrize("first", ["clean-up swallows the second", "clean-up ends with the second"])
def test_a_task_is_cancelled_whichever_of_its_cancellations_leaves_it(
    first: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def child() -> None:
        try:
            await sleep(FOREVER)
        finally:
            try:
                await sleep(FOREVER)
            except TaskCancelled:
                if first == "clean-up ends with the second":
                    raise

    async def root() -> None:
        handle = await spawn(child())
        handle.cancel()
        await sleep(0)
        assert await handle.cancel() is None
        assert handle.is_cancelled

    flowno.run(root())
    gc.collect()
    assert caplog.records == []


def test_a_task_that_was_never_started_runs_to_its_first_wait() -> None:
    seen = []

    async def child(sock: socket.socket) -> None:
        with sock:  # an argument that it owns is not lost
            seen.append("started")
            await sleep(0)
            seen.append("not reached")

    async def root(end: socket.socket) -> None:
        handle = current_event_loop().create_task(child(end))  # type: ignore[union-attr]
        assert await handle.cancel() is None

    one, other = socket.socketpair()
    with other:
        flowno.run(root(one))
        assert one.fileno() == -1
    assert seen == ["started"]


def test_a_task_can_cancel_itself() -> None:
    handles: list[TaskHandle[Any]] = []

    async def child(awaited: bool) -> None:
        await sleep(0)
        cancellation = handles[-1].cancel()
        if awaited:
            await cancellation
        await flowno.sleep(0)
        raise AssertionError("it went on")

    async def root() -> None:
        for awaited in (True, False):
            handles.append(await spawn(child(awaited)))
            with pytest.raises(TaskCancelled):
                await handles[-1].join()
            assert handles[-1].is_cancelled

    flowno.run(root())


def test_spawning_is_no_wait_and_happens_all_the_same() -> None:
    spawned = []

    async def child() -> None:
        handle = handles[0]
        handle.cancel()
        spawned.append(await spawn(value("spawned")))
        await sleep(0)
        spawned.append(None)

    async def root() -> None:
        async def start() -> None:
            await sleep(0)
            await child()

        handles.append(await spawn(start()))
        with pytest.raises(TaskCancelled):
            await handles[0].join()
        assert await spawned[0].join() == "spawned"

    handles: list[TaskHandle[None]] = []
    flowno.run(root())
    assert len(spawned) == 1


def test_children_are_not_cancelled_with_their_parent() -> None:
    async def root() -> None:
        children: list[TaskHandle[object]] = []

        async def parent() -> None:
            children.append(await spawn(value("child", 5)))
            await sleep(FOREVER)

        await (await spawn(parent())).cancel()
        assert await children[0].join() == "child"

    flowno.run(root())


def test_a_loop_cancels_by_coroutine() -> None:
    async def root() -> None:
        loop = current_event_loop()
        assert loop is not None
        coroutine = sleep(FOREVER)
        handle = await spawn(coroutine)
        assert loop.cancel(handle.raw_task) is True
        with pytest.raises(TaskCancelled):
            await handle.join()
        assert loop.cancel(handle.raw_task) is False
        stranger = value(1)
        assert loop.cancel(stranger) is False  # type: ignore[arg-type]
        stranger.close()

    flowno.run(root())


def test_a_loop_cancels_by_coroutine_before_the_task_has_started() -> None:
    async def child() -> None:
        await sleep(FOREVER)

    with EventLoop() as loop:
        coroutine = child()
        handle = loop.create_task(coroutine)
        assert loop.cancel(coroutine) is True
        loop.run_until_complete(sleep(0))
        assert handle.is_cancelled


def test_a_task_is_cancelled_between_two_runs() -> None:
    with EventLoop() as loop, pair() as (one, _):

        async def root() -> list[TaskHandle[Any]]:
            return [await spawn(one.recv(1)), await spawn(sleep(FOREVER)), await spawn(value(1, 9))]

        handles = loop.run_until_complete(root(), join=True, wait_for_spawned_tasks=False)
        for handle in handles:
            handle.cancel()
        loop.run_until_complete(sleep(0))
        assert [handle.is_cancelled for handle in handles] == [True, True, True]


# --------------------------------------------------------------------------------------------------- what it leaves


Wait = Callable[[SocketHandle, SocketHandle, TaskHandle[Any]], Coroutine[Any, Any, Any]]

WAITS: dict[str, Wait] = {
    "sleep": lambda one, listener, task: sleep(FOREVER),  # type: ignore[dict-item, return-value]
    "join": lambda one, listener, task: task.join(),  # type: ignore[dict-item, return-value]
    "recv": lambda one, listener, task: one.recv(1),  # type: ignore[dict-item, return-value]
    "recv_into": lambda one, listener, task: one.recv_into(bytearray(1)),  # type: ignore[dict-item, return-value]
    "send": lambda one, listener, task: one.send(b"x"),  # type: ignore[dict-item, return-value]
    "sendAll": lambda one, listener, task: one.sendAll(b"x"),  # type: ignore[dict-item, return-value]
    "accept": lambda one, listener, task: listener.accept(),  # type: ignore[dict-item, return-value]
}


@pytest.mark.not_under_faults(reason="it takes EAGAIN for the sign of an empty socket")
@pytest.mark.parametrize("wait", WAITS.values(), ids=list(WAITS))
def test_a_cancelled_wait_leaves_nothing_behind(wait: Wait) -> None:
    """It can be waited for again, by another task, and at the end the selector is empty."""

    async def root() -> None:
        sleeper = await spawn(sleep(FOREVER))
        with pair(4096) as (one, other), listening() as listener:
            filled = fill(one)
            for _ in range(3):
                handle = await spawn(wait(one, listener, sleeper))
                await sleep(0)
                assert await handle.cancel() is None
            await sleep(0)
            reader = await spawn(one.recv(1))
            await other.sendAll(b"y")
            assert await reader.join() == b"y"
            assert len(await receive(other, filled)) == filled
            await one.sendAll(b"z")
            assert await other.recv(1) == b"z"
            with flowno.socket() as client:
                client.connect(listener.getsockname())
                (await listener.accept())[0].close()
        await sleeper.cancel()

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)
        assert counting.masks == {}


def test_cancelled_sleeps_do_not_pile_up() -> None:
    async def root() -> None:
        loop = current_event_loop()
        assert loop is not None
        for _ in range(5000):
            handle = await spawn(sleep(1000))
            handle.cancel()
            await sleep(0)
        assert len(loop.timers) == 0
        assert len(loop.timers.heap) < 2100

    flowno.run(root())


def test_a_cancelled_send_says_how_far_it_came() -> None:
    async def root() -> None:
        data = bytes(range(256)) * (LARGE // 256)
        with pair() as (one, other):
            sender = await spawn(one.sendAll(data))
            received = await receive(other, 100_000)
            await sleep(0)
            assert await sender.cancel() is None
            sent = one.bytes_sent
            assert 100_000 <= sent < len(data)
            one.shutdown(socket.SHUT_WR)
            received += await receive(other, len(data))
            assert received == data[:sent]

    flowno.run(root())


def test_the_rest_of_a_cancelled_send_can_be_sent_later() -> None:
    async def root() -> None:
        data = bytes(range(256)) * 4096
        with pair(4096) as (one, other):
            sender = await spawn(one.sendAll(data))
            await sender.cancel()
            reader = await spawn(receive(other, len(data)))
            await one.sendAll(memoryview(data)[one.bytes_sent :])
            assert await reader.join() == data

    flowno.run(root())


# ------------------------------------------------------------------------------------ cancelled just after it was ready


@pytest.mark.not_under_faults(reason="it counts turns of the loop, or what is done in one of them")
def test_a_connection_that_was_accepted_is_not_lost() -> None:
    """Two tasks become ready by one report; the first that runs cancels the other, which accepts all the same."""

    async def acceptor(listener: SocketHandle, others: list[TaskHandle[None]]) -> None:
        accepted, _ = await listener.accept()
        with accepted:
            for other in others:
                other.cancel()
            await accepted.sendAll(b"welcome")
            await sleep(0)
            raise AssertionError("it went on after its next wait")

    async def root() -> None:
        with listening() as here, listening() as there, flowno.socket() as one, flowno.socket() as other:
            tasks: list[TaskHandle[None]] = []
            tasks.append(await spawn(acceptor(here, tasks)))
            tasks.append(await spawn(acceptor(there, tasks)))
            one.connect(here.getsockname())
            other.connect(there.getsockname())
            for task in tasks:
                with pytest.raises(TaskCancelled):
                    await task.join()
                assert task.is_cancelled
            assert await one.recv(9) == b"welcome"
            assert await other.recv(9) == b"welcome"

    flowno.run(root())


def test_a_connection_that_was_not_accepted_yet_stays_for_the_next_accept() -> None:
    async def root() -> None:
        with listening() as listener, flowno.socket() as client:
            acceptor = await spawn(listener.accept())
            client.connect(listener.getsockname())
            assert await acceptor.cancel() is None
            accepted, address = await listener.accept()
            accepted.close()
            assert address == client.getsockname()

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it counts turns of the loop, or what is done in one of them")
def test_a_task_that_is_ready_keeps_what_it_was_given() -> None:
    """Two tasks become ready by one report; the first that runs cancels the other, which receives its data still."""
    got: dict[str, bytes] = {}

    async def reader(name: str, handle: SocketHandle, others: list[TaskHandle[None]]) -> None:
        got[name] = await handle.recv(9)
        for other in others:
            other.cancel()
        await sleep(0)
        got[name] += b" and went on"

    async def root() -> None:
        with pair() as (a1, a2), pair() as (b1, b2):
            tasks: list[TaskHandle[None]] = []
            tasks.append(await spawn(reader("a", a1, tasks)))
            tasks.append(await spawn(reader("b", b1, tasks)))
            a2.socket.send(b"to a")
            b2.socket.send(b"to b")
            for task in tasks:
                with pytest.raises(TaskCancelled):
                    await task.join()

    flowno.run(root())
    assert got == {"a": b"to a", "b": b"to b"}


def test_a_joiner_that_is_ready_gets_the_value_and_is_cancelled_at_its_next_wait() -> None:
    seen = []

    async def joiner(target: TaskHandle[object]) -> None:
        seen.append(await target.join())
        await sleep(0)
        seen.append("not reached")

    async def root() -> None:
        handles: list[TaskHandle[None]] = []
        target = await spawn(value("value", 10))

        async def killer() -> None:
            await target.join()
            handles[0].cancel()  # it is ready, too, by the same end

        await spawn(killer())
        handles.append(await spawn(joiner(target)))
        with pytest.raises(TaskCancelled):
            await handles[0].join()

    flowno.run(root())
    assert seen == ["value"]


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_data_that_comes_with_the_cancellation_is_there_for_the_next_reader() -> None:
    async def root() -> None:
        with pair() as (one, other):
            for number in range(20):
                data = b"%02d" % number
                reader = await spawn(one.recv(2))
                await other.sendAll(data)
                if number % 2:
                    await sleep(0)
                got = await reader.cancel()
                assert (got or await one.recv(2)) == data

    flowno.run(root())


def test_a_timer_that_fires_with_the_cancellation_resumes_its_task_once() -> None:
    steps = []

    async def sleeper() -> None:
        await sleep(0.001)
        steps.append("slept")
        await sleep(0)
        steps.append("not reached")

    async def root() -> None:
        handles: list[TaskHandle[None]] = []

        async def killer() -> None:
            await sleep(0.001)
            handles[0].cancel()

        first = await spawn(killer())
        handles.append(await spawn(sleeper()))
        await first.join()
        with pytest.raises(TaskCancelled):
            await handles[0].join()

    flowno.run(root())
    assert steps in (["slept"], [])


@pytest.mark.parametrize("seed", range(4))
def test_wherever_a_server_is_cancelled_no_connection_and_no_byte_is_lost(seed: int) -> None:
    """Another server goes on where the first was stopped, with nothing but what that one had written down."""
    question, answer = b"q" * 3000, b"a" * 50_000

    class State:
        connection: SocketHandle | None = None
        received = b""
        answered = 0

    async def serve(listener: SocketHandle, state: State) -> None:
        if state.connection is None:
            state.connection, _ = await listener.accept()
            state.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        connection = state.connection
        while len(state.received) < len(question):
            state.received += await connection.recv(1000)
        while state.answered < len(answer):
            try:
                await connection.sendAll(memoryview(answer)[state.answered :])
            finally:
                state.answered += connection.bytes_sent
        await sleep(0)

    async def ask(address: Any) -> bytes:
        with flowno.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await flowno.connect(client, address)
            for start in range(0, len(question), 500):
                await client.sendAll(question[start : start + 500])
                await sleep(0)
            return await receive(client, len(answer) + 1)

    async def root(turns: list[int]) -> int:
        state, cancelled = State(), 0
        with listening() as listener:
            client = await spawn(ask(listener.getsockname()))
            while state.answered < len(answer):
                server = await spawn(serve(listener, state))
                for _ in range(turns[cancelled % len(turns)]):
                    await sleep(0)
                await server.cancel()
                cancelled += server.is_cancelled
            assert state.connection is not None
            state.connection.close()
            assert await client.join() == answer
            assert state.received == question
        return cancelled

    turns = [[0, 3], [1, 2], [2, 7, 1], [5, 0, 0, 1]][seed]
    assert flowno.run(root(turns)) > 2


def test_two_cancellations_in_one_breath_are_one_inside_of_a_scope_too() -> None:
    log: list[str] = []

    async def child() -> None:
        with CancelScope():
            try:
                await sleep(FOREVER)
            finally:
                await sleep(0)
                log.append("cleaned up")

    async def root() -> None:
        task = await spawn(child())
        task.cancel()
        task.cancel()
        assert await task.cancel() is None

    flowno.run(root())
    assert log == ["cleaned up"]
