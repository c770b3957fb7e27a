"""Instruments: what they are told, of whom, and that nothing else changes."""

import dataclasses
import gc
import logging
import socket as system_socket
import ssl
import sys
import threading
import traceback
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest

import flowno
from flowno import (
    AsyncLifoQueue,
    AsyncMapQueue,
    AsyncPriorityQueue,
    AsyncQueue,
    AsyncSetQueue,
    BusyResourceError,
    ClosedResourceError,
    Event,
    EventLoop,
    QueueClosedError,
    SocketHandle,
    TaskCancelled,
    current_event_loop,
    current_task,
    move_on_after,
    sleep,
    spawn,
    start_tls,
)
from flowno.core.event_loop import instrumentation
from flowno.core.event_loop.commands import SleepCommand
from flowno.core.event_loop.instrumentation import (
    EventLoopInstrument,
    InstrumentationMetadata,
    LogInstrument,
    PrintInstrument,
    ReadySocketInstrumentationMetadata,
    SocketConnectReadyMetadata,
    SocketConnectStartMetadata,
    SocketRecvDataMetadata,
    SocketSendDataMetadata,
    TaskSendMetadata,
    TaskThrowMetadata,
    TLSHandshakeMetadata,
    get_current_instrument,
)
from flowno.core.event_loop.queues import BaseQueue
from flowno.core.event_loop.tasks import TaskHandle
from flowno.core.event_loop.tls import TLSSocketHandle
from flowno.testing import cancel_everywhere
from tests.support.garbage import no_collections
from tests.support.instruments import HOOKS, Recorder
from tests.support.loopback import LARGE, listening, pair, receive, reset, tcp_pair
from tests.support.tasks import FOREVER, fail, value
from tests.support.tls import client, echo, tls_pair, tls_peer

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.not_under_faults(reason="it looks at what is exchanged, and knows what completes at once"),
]

#: What is exchanged while somebody watches, as it is when nobody does.
CLASSES = (SocketHandle, TLSSocketHandle, BaseQueue, TaskHandle, EventLoop)
ORIGINALS = {(owner, name): attribute for owner in CLASSES for name, attribute in vars(owner).items()}


def exchanged() -> set[str]:
    """The names of all methods that are not themselves."""
    now = {(owner, name): attribute for owner in CLASSES for name, attribute in vars(owner).items()}
    assert now.keys() == ORIGINALS.keys()
    return {f"{owner.__name__}.{name}" for owner, name in now if now[owner, name] is not ORIGINALS[owner, name]}


@pytest.fixture(autouse=True)
def nothing_is_left_exchanged() -> Iterator[None]:
    assert exchanged() == set()
    yield
    assert exchanged() == set()
    assert get_current_instrument().__class__ is EventLoopInstrument


#: Makes two connected handles.
Pair = Callable[[], Any]


@pytest.fixture(params=["plain", "tls"])
def connected(request: pytest.FixtureRequest, server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> Pair:
    if request.param == "plain":
        return tcp_pair

    @contextmanager
    def through_tls() -> Iterator[tuple[SocketHandle, SocketHandle]]:
        with tcp_pair() as (one, other):
            yield (
                TLSSocketHandle(one.socket, client_context, "localhost"),
                TLSSocketHandle(other.socket, server_context, None, server_side=True),
            )

    return through_tls


async def shake_hands(one: SocketHandle, other: SocketHandle) -> None:
    if isinstance(one, TLSSocketHandle):
        task = await spawn(one.do_handshake())
        await other.do_handshake()  # type: ignore[attr-defined]
        await task.join()


# ----------------------------------------------------------------------------------------------- what they are told of


async def recv_into(handle: SocketHandle, size: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: await handle.recv_into(buffer)])


async def recvfrom(handle: SocketHandle, size: int) -> bytes:
    return (await handle.recvfrom(size))[0]


async def recvfrom_into(handle: SocketHandle, size: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: (await handle.recvfrom_into(buffer))[0]])


async def recvmsg(handle: SocketHandle, size: int) -> bytes:
    return (await handle.recvmsg(size))[0]


async def recvmsg_into(handle: SocketHandle, size: int) -> bytes:
    first, second = bytearray(2), bytearray(size - 2)
    received = (await handle.recvmsg_into([first, second]))[0]
    return bytes((first + second)[:received])


RECEIVES: dict[str, Callable[[Any, int], Awaitable[bytes]]] = {
    "recv": lambda handle, size: handle.recv(size),
    "recv_into": recv_into,
    "recvfrom": recvfrom,
    "recvfrom_into": recvfrom_into,
    "recvmsg": recvmsg,
    "recvmsg_into": recvmsg_into,
}
PLAIN_ONLY = {"recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into"}

SENDS: dict[str, Callable[[Any, bytes], Awaitable[object]]] = {
    "send": lambda handle, data: handle.send(data),
    "sendAll": lambda handle, data: handle.sendAll(data),
    "sendall": lambda handle, data: handle.sendall(data),
    "sendmsg": lambda handle, data: handle.sendmsg([data[:2], data[2:]]),
}


def skip_what_there_is_not(handle: SocketHandle, operation: str) -> None:
    if isinstance(handle, TLSSocketHandle) and operation in PLAIN_ONLY:
        pytest.skip("it would go past TLS")
    if "msg" in operation and not hasattr(handle.socket, "recvmsg"):
        pytest.skip("this system has no such call")


def check_pair_of(recorder: Recorder, kind: str, handle: SocketHandle, *, immediate: bool) -> tuple[Any, Any]:
    """The metadata of the start and of the end of an operation, whose fields are as they should be."""
    start, ready = (recorder.only(f"on_socket_{kind}_{when}") for when in ("start", "ready"))
    assert type(start) is InstrumentationMetadata
    assert type(ready) is ReadySocketInstrumentationMetadata
    assert start.socket_handle is ready.socket_handle is handle
    assert start.task is ready.task
    assert not start.immediate
    assert ready.immediate == immediate
    assert start.start_time == ready.start_time <= ready.finish_time
    return start, ready


@pytest.mark.parametrize("operation", RECEIVES)
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after a wait"])
def test_a_receive_is_told_with_its_data(connected: Pair, operation: str, waits: bool) -> None:
    async def main() -> None:
        with connected() as (one, other):
            skip_what_there_is_not(one, operation)
            await shake_hands(one, other)
            if not waits:
                await other.sendAll(b"xHello")
                assert await one.recv(1) == b"x"  # through TLS, the rest is decrypted by now
            with Recorder("on_socket_recv") as recorder:
                receiving: Any = RECEIVES[operation](one, 100)
                task = await spawn(receiving)
                await sleep(0)
                names = ["on_socket_recv_start", "on_socket_recv_ready", "on_socket_recv_data"]
                assert recorder.names == (names[:1] if waits else names)
                if waits:
                    await other.sendAll(b"Hello")
                assert await task.join() == b"Hello"
            assert recorder.names == names
            start, _ = check_pair_of(recorder, "recv", one, immediate=not waits)
            data = recorder.only("on_socket_recv_data")
            assert type(data) is SocketRecvDataMetadata
            assert (data.socket_handle, data.task, data.data) == (one, receiving, b"Hello")
            assert start.task is receiving
            assert start.peer_address == data.peer_address == one.getpeername()

    flowno.run(main())


@pytest.mark.parametrize("operation", ["recv", "recv_into"])
def test_the_end_of_a_stream_is_told_as_no_data(connected: Pair, operation: str) -> None:
    async def main() -> None:
        with connected() as (one, other):
            await shake_hands(one, other)
            other.close()
            with Recorder("on_socket_recv") as recorder:
                assert await RECEIVES[operation](one, 100) == b""
            assert recorder.only("on_socket_recv_data").data == b""

    flowno.run(main())


@pytest.mark.parametrize("operation", SENDS)
def test_a_send_is_told_with_its_data(connected: Pair, operation: str) -> None:
    async def main() -> None:
        with connected() as (one, other):
            skip_what_there_is_not(one, operation)
            await shake_hands(one, other)
            with Recorder("on_socket") as recorder:
                await SENDS[operation](one, b"Hello")
            assert recorder.names == ["on_socket_send_start", "on_socket_send_ready", "on_socket_send_data"]
            start, _ = check_pair_of(recorder, "send", one, immediate=True)
            data = recorder.only("on_socket_send_data")
            assert type(data) is SocketSendDataMetadata
            assert (data.socket_handle, data.task, data.data, data.bytes_sent) == (one, current_task(), b"Hello", 5)
            assert start.peer_address == data.peer_address == one.getpeername()

    flowno.run(main())


def test_a_send_that_waits_is_told_when_it_is_done(connected: Pair) -> None:
    async def main() -> None:
        with connected() as (one, other):
            await shake_hands(one, other)
            data = bytes(LARGE)
            with Recorder("on_socket_send") as recorder:
                task = await spawn(one.sendAll(data))
                assert recorder.names == ["on_socket_send_start"]
                await receive(other, LARGE)
                await task.join()
            check_pair_of(recorder, "send", one, immediate=False)
            sent = recorder.only("on_socket_send_data")
            assert (sent.data, sent.bytes_sent) == (data, LARGE)

    flowno.run(main())


def test_a_send_of_a_part_says_how_much_it_was() -> None:
    async def main() -> None:
        with pair() as (one, _):
            with Recorder("on_socket_send") as recorder:
                count = await one.send(bytes(LARGE))
            sent = recorder.only("on_socket_send_data")
            assert (len(sent.data), sent.bytes_sent) == (LARGE, count)
            assert count < LARGE

    flowno.run(main())


def test_nothing_that_is_sent_is_told_too() -> None:
    async def main() -> None:
        with pair() as (one, _), Recorder("on_socket_send") as recorder:
            await one.sendAll(b"")
        assert recorder.only("on_socket_send_data").bytes_sent == 0
        assert len(recorder.names) == 3

    flowno.run(main())


@pytest.mark.parametrize("end", ["cancelled", "closed"])
def test_of_a_send_that_does_not_come_to_its_end_the_part_is_told(connected: Pair, end: str) -> None:
    async def main() -> None:
        with connected() as (one, other):
            await shake_hands(one, other)
            with Recorder("on_socket_send") as recorder:
                task = await spawn(one.sendAll(bytes(LARGE)))
                if end == "cancelled":
                    await task.cancel()
                else:
                    one.close()
                    with pytest.raises(ClosedResourceError):
                        await task.join()
            assert recorder.names == ["on_socket_send_start", "on_socket_send_data"]
            sent = recorder.only("on_socket_send_data")
            assert 0 < sent.bytes_sent == len(sent.data) == one.bytes_sent < LARGE

    flowno.run(main())


def test_of_a_send_that_is_refused_no_bytes_are_told(connected: Pair) -> None:
    async def main() -> None:
        with connected() as (one, other):
            await shake_hands(one, other)
            task = await spawn(one.sendAll(bytes(LARGE)))
            with Recorder("on_socket_send") as recorder:
                with pytest.raises(BusyResourceError):
                    await one.sendAll(b"second")
                assert one.bytes_sent > 0  # those of the other task
                await task.cancel()
                one.close()
                with pytest.raises(ClosedResourceError):
                    await one.sendAll(b"third")
            assert recorder.names == ["on_socket_send_start"] * 2

    flowno.run(main())


def test_a_receive_that_fails_has_no_end() -> None:
    async def main() -> None:
        with pair() as (one, _), Recorder("on_socket") as recorder:
            task = await spawn(one.recv(1))
            with pytest.raises(BusyResourceError):
                await one.recv(1)
            await task.cancel()
        assert recorder.names == ["on_socket_recv_start"] * 2

    flowno.run(main())


def test_datagrams_are_told_with_who_they_are_from_and_for() -> None:
    async def main() -> None:
        with (
            flowno.socket(type=system_socket.SOCK_DGRAM) as one,
            flowno.socket(type=system_socket.SOCK_DGRAM) as other,
        ):
            for each in (one, other):
                each.bind(("127.0.0.1", 0))
            with Recorder("on_socket") as recorder:
                await one.sendto(b"Hello", other.getsockname())
                await other.recvfrom(100)
            sent, received = recorder.only("on_socket_send_data"), recorder.only("on_socket_recv_data")
            assert (sent.data, sent.bytes_sent, sent.peer_address) == (b"Hello", 5, other.getsockname())
            assert (received.data, received.peer_address) == (b"Hello", one.getsockname())
            assert recorder.only("on_socket_send_start").peer_address is None

    flowno.run(main())


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after a wait"])
@pytest.mark.parametrize("through_tls", [False, True], ids=["plain", "tls"])
def test_an_accept_is_told_with_who_has_come(waits: bool, through_tls: bool, server_context: ssl.SSLContext) -> None:
    async def main() -> None:
        with listening() as plain, ExitStack() as stack:
            listener = TLSSocketHandle(plain.socket, server_context, None) if through_tls else plain
            address = listener.getsockname()
            with Recorder("on_socket_accept") as recorder:
                if not waits:
                    peer = stack.enter_context(system_socket.create_connection(address))
                task = await spawn(listener.accept())
                assert "on_socket_accept_start" in recorder.names
                if waits:
                    assert recorder.names == ["on_socket_accept_start"]
                    peer = stack.enter_context(system_socket.create_connection(address))
                accepted, _ = await task.join()
                accepted.close()
            _, ready = check_pair_of(recorder, "accept", listener, immediate=not waits)
            assert ready.peer_address == peer.getsockname()

    flowno.run(main())


@pytest.mark.parametrize("blocking", [False, True], ids=["awaited", "blocking"])
def test_a_connect_is_told_with_its_address(blocking: bool) -> None:
    async def main() -> None:
        with listening() as listener, flowno.socket() as handle:
            address = ("localhost", listener.getsockname()[1])
            with Recorder("on_socket_connect") as recorder:
                if blocking:
                    handle.connect(address)
                else:
                    await flowno.connect(handle, address)
            assert recorder.names == ["on_socket_connect_start", "on_socket_connect_ready"]
            start, ready = (recorder.only(name) for name in recorder.names)
            assert (type(start), type(ready)) == (SocketConnectStartMetadata, SocketConnectReadyMetadata)
            assert start.socket_handle is ready.socket_handle is handle
            assert start.task is ready.task is current_task()
            assert start.target_address == ready.target_address == address
            assert start.peer_address is None
            assert ready.peer_address == listener.getsockname()
            assert start.start_time == ready.start_time <= ready.finish_time
            assert not start.immediate
            assert not ready.immediate  # a name is looked up by a thread

    flowno.run(main())


def test_a_connect_that_fails_has_no_end(free_port: int) -> None:
    async def main() -> None:
        with Recorder("on_socket") as recorder:
            for blocking in (True, False):
                with flowno.socket() as handle, suppress(ConnectionRefusedError):
                    if blocking:
                        handle.connect(("127.0.0.1", free_port))
                    else:
                        await flowno.connect(handle, ("127.0.0.1", free_port))
                    raise AssertionError
        assert recorder.names == ["on_socket_connect_start", "on_socket_close"] * 2

    flowno.run(main())


@pytest.mark.parametrize("blocking", [False, True], ids=["awaited", "blocking"])
def test_a_handshake_is_told_with_what_was_agreed_upon(
    blocking: bool, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def main(address: tuple[str, int]) -> None:
        with client(client_context) as handle:
            with Recorder("on_") as recorder:
                if blocking:
                    handle.connect(address)
                else:
                    await flowno.connect(handle, address)
            assert [name for name in recorder.names if "task" not in name] == [
                "on_socket_connect_start",
                "on_tls_handshake_complete",
                "on_socket_connect_ready",
            ]
            done = recorder.only("on_tls_handshake_complete")
            check_handshake(done, handle)
            assert done.server_hostname == "localhost"
            assert done.peer_address == handle.getpeername()

    with tls_peer(server_context, echo) as address:
        flowno.run(main(address))


def check_handshake(done: Any, handle: TLSSocketHandle) -> None:
    assert type(done) is TLSHandshakeMetadata
    assert done.socket_handle is handle
    assert done.version == handle.version() is not None
    assert done.cipher == handle.cipher() is not None
    assert done.start_time <= done.finish_time


def test_a_handshake_that_the_first_operation_makes_is_told_at_both_ends(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def main() -> None:
        with tls_pair(server_context, client_context) as (one, other), Recorder() as recorder:
            task = await spawn(one.sendAll(b"Hello"))
            assert await other.recv(100) == b"Hello"
            await task.join()
        made = {done.socket_handle: done for done in recorder.all("on_tls_handshake_complete")}
        assert made.keys() == {one, other}
        for handle, done in made.items():
            check_handshake(done, handle)
        assert (made[one].server_hostname, made[other].server_hostname) == ("localhost", None)
        assert recorder.names.index("on_tls_handshake_complete") > recorder.names.index("on_socket_recv_start")

    flowno.run(main())


def test_an_upgrade_to_tls_is_told(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    async def main() -> None:
        with pair() as (one, other), Recorder() as recorder:
            task = await spawn(start_tls(other, server_context, server_side=True))
            with await start_tls(one, client_context, server_hostname="localhost") as upgraded, await task.join():
                handles = {done.socket_handle for done in recorder.all("on_tls_handshake_complete")}
                assert upgraded in handles
                assert len(handles) == 2

    flowno.run(main())


def test_a_handshake_that_fails_is_not_told(server_context: ssl.SSLContext) -> None:
    async def main() -> None:
        with tls_pair(server_context, ssl.create_default_context()) as (one, other), Recorder() as recorder:
            task = await spawn(one.do_handshake())
            for shaking in (other.do_handshake(), task.join()):
                with suppress(ssl.SSLError, ConnectionError):
                    await shaking
        assert recorder.all("on_tls_handshake_complete") == []

    flowno.run(main())


@pytest.mark.parametrize("how", ["close", "abort", "with"])
def test_a_close_is_told_once_while_the_handle_is_open(connected: Pair, how: str) -> None:
    class Looks(Recorder):
        def on_socket_close(self, metadata: InstrumentationMetadata) -> None:
            super()._keep("on_socket_close", (metadata,))
            assert metadata.socket_handle.fileno() >= 0

    async def main() -> None:
        with connected() as (one, other):
            await shake_hands(one, other)
            peer = one.getpeername()
            with Looks() as recorder:
                if how == "with":
                    with one:
                        pass
                else:
                    getattr(one, how)()
                one.close()
                one.abort()
            closed = recorder.only("on_socket_close")
            assert type(closed) is InstrumentationMetadata
            assert (closed.socket_handle, closed.task, closed.peer_address) == (one, current_task(), peer)
            assert closed.immediate
            assert closed.start_time > 0

    flowno.run(main())


def test_the_peer_of_a_connection_that_broke_down_is_still_known() -> None:
    async def main() -> None:
        with tcp_pair() as (one, other), Recorder() as recorder:
            peer = one.getpeername()
            await one.sendAll(b"unread")
            reset(other)
            with suppress(ConnectionError):
                while await one.recv(1):
                    pass
            one.close()
        assert recorder.all("on_socket_close")[-1].peer_address == peer

    flowno.run(main())


QUEUES: dict[str, tuple[Callable[[], Any], Any, Any]] = {
    "AsyncQueue": (lambda: AsyncQueue(maxsize=1), "item", "item"),
    "AsyncLifoQueue": (lambda: AsyncLifoQueue(maxsize=1), "item", "item"),
    "AsyncPriorityQueue": (lambda: AsyncPriorityQueue(maxsize=1), 3, 3),
    "AsyncSetQueue": (lambda: AsyncSetQueue(maxsize=1), "item", "item"),
    "AsyncMapQueue": (lambda: AsyncMapQueue(maxsize=1), ("key", "cause"), ("key", ["cause"])),
}


@pytest.mark.parametrize("kind", QUEUES)
def test_an_item_is_told_when_it_is_put_and_when_it_is_got(kind: str) -> None:
    make, item, got = QUEUES[kind]

    async def main() -> None:
        queue = make()
        with Recorder("on_queue") as recorder:
            await queue.put(item)
            await queue.get()
            queue.put_nowait(item)
            queue.get_nowait()
            queue.close()
            for operation in (lambda: queue.put(item), lambda: queue.get()):
                with pytest.raises(QueueClosedError):
                    await operation()
            with pytest.raises(QueueClosedError):
                queue.get_nowait()
        assert (
            recorder.calls
            == [
                ("on_queue_put", (queue, item, True)),
                ("on_queue_get", (queue, got, True)),
            ]
            * 2
        )

    flowno.run(main())


def test_who_waits_at_a_queue_is_told_of_when_the_wait_is_over() -> None:
    async def main() -> None:
        queue: AsyncQueue[str] = AsyncQueue(maxsize=1)
        with Recorder("on_queue") as recorder:
            getter = await spawn(queue.get())
            assert recorder.calls == []
            await queue.put("first")
            assert await getter.join() == "first"
            await queue.put("second")
            putter = await spawn(queue.put("third"))
            assert await queue.get() == "second"
            await putter.join()
        assert [(name[9:], *args[1:]) for name, args in recorder.calls] == [
            ("put", "first", True),
            ("get", "first", False),
            ("put", "second", True),
            ("get", "second", True),
            ("put", "third", False),
        ]

    flowno.run(main())


def test_iterating_over_a_queue_is_told() -> None:
    async def main() -> None:
        queue: AsyncSetQueue[int] = AsyncSetQueue()
        with Recorder("on_queue") as recorder:
            await queue.putAll([1, 2, 1])
            assert [item async for item in queue.until_empty()] == [1, 2]
        assert [args[1] for _, args in recorder.calls] == [1, 2, 1, 1, 2]

    flowno.run(main())


def test_each_step_of_a_task_is_told_with_what_goes_in_and_what_comes_out() -> None:
    async def child() -> str:
        await sleep(0)
        with suppress(TaskCancelled):
            await sleep(FOREVER)
        await sleep(0.0)
        return "done"

    async def main() -> None:
        with Recorder("on_task") as recorder:
            task = await spawn(child())
            await sleep(0)
            recorder.calls.clear()
            assert await task.cancel() == "done"
        steps = [(name, args) for name, args in recorder.calls if getattr(args[0], "task", args[0]) is task.raw_task]
        assert [name for name, _ in steps] == [
            "on_task_before_throw",
            "on_task_after_throw",
            "on_task_before_send",
            "on_task_completed",
        ]
        (thrown,), (thrown_too, command), (sent,), end = (args for _, args in steps)
        assert type(thrown) is TaskThrowMetadata
        assert thrown is thrown_too
        assert isinstance(thrown.exception, TaskCancelled)
        assert thrown.exception.by is task
        assert thrown.exception.scope is None
        assert str(thrown.exception) == f"{task!r} was cancelled"
        assert isinstance(command, SleepCommand)
        assert type(sent) is TaskSendMetadata
        assert sent.send_value == 0.0
        assert end == (task.raw_task, "done")

    flowno.run(main())


def test_the_answer_of_a_command_is_what_is_sent_in() -> None:
    async def main() -> None:
        queue: AsyncQueue[str] = AsyncQueue()
        with Recorder("on_task_before_send") as recorder:
            task = await spawn(queue.get())
            await queue.put("an item")
            await task.join()
        values = [step.send_value for step in recorder.all("on_task_before_send") if step.task is task.raw_task]
        assert values == [None, "an item"]

    flowno.run(main())


def test_the_end_of_a_task_is_told_once_as_what_it_is() -> None:
    error = ValueError("of the task")

    async def joins(task: TaskHandle[Any]) -> None:
        await task.join()

    async def main() -> None:
        with Recorder("on_task") as recorder:
            returned, failed, cancelled = [
                await spawn(each) for each in (value("a value", 2), fail(error, 2), sleep(FOREVER))
            ]
            joiner = await spawn(joins(cancelled))
            await cancelled.cancel()
            with pytest.raises(TaskCancelled):
                await joiner.join()
            with pytest.raises(ValueError, match="of the task"):
                await failed.join()
            assert await returned.join() == "a value"
        ends = {
            args[0]: (name, args[1])
            for name, args in recorder.calls
            if name in ("on_task_completed", "on_task_error", "on_task_cancelled")
        }
        assert ends.keys() == {each.raw_task for each in (returned, failed, cancelled, joiner)}
        assert ends[returned.raw_task] == ("on_task_completed", "a value")
        assert ends[failed.raw_task] == ("on_task_error", error)
        assert ends[cancelled.raw_task][0] == "on_task_cancelled"
        assert ends[joiner.raw_task][0] == "on_task_error"  # the cancellation of another task is an error of this one
        for _, exception in (ends[cancelled.raw_task], ends[joiner.raw_task]):
            assert isinstance(exception, TaskCancelled)
            assert exception.by is cancelled
        befores = sum(name.startswith("on_task_before") for name in recorder.names)
        afters = sum(name.startswith("on_task_after") for name in recorder.names)
        assert befores == afters + len(ends) + 1  # main is in a step of which only the beginning was told

    flowno.run(main())


# ------------------------------------------------------------------------------------------ all of them, on everything


async def cleans_up() -> None:
    try:
        await sleep(FOREVER)
    finally:
        await sleep(0)


async def everything(
    server_context: ssl.SSLContext | None = None, client_context: ssl.SSLContext | None = None
) -> list[object]:
    """A program in which all happens that is told; its results."""
    results: list[object] = []

    def handle(sock: system_socket.socket, is_server: bool) -> SocketHandle:
        if server_context is None or client_context is None:
            return SocketHandle(sock)
        context = server_context if is_server else client_context
        return TLSSocketHandle(sock, context, None if is_server else "localhost", server_side=is_server)

    async def serve(listener: SocketHandle) -> None:
        connection, _ = await listener.accept()
        with handle(connection.socket, True) as connection:
            while data := await connection.recv(4):
                results.append(data)
                await connection.sendAll(data.upper())
            if isinstance(connection, TLSSocketHandle):
                await connection.send_eof()

    async def ask(address: Any) -> None:
        with handle(system_socket.socket(), False) as asking:
            await flowno.connect(asking, address)
            for data in (b"one", b"two"):
                await asking.send(data)
                buffer = bytearray(10)
                count = await asking.recv_into(buffer)
                results.append(bytes(buffer[:count]))

    with listening() as listener:
        server = await spawn(serve(listener))
        await ask(listener.getsockname())
        await server.join()
    queue: AsyncQueue[int] = AsyncQueue(maxsize=1)
    putter = await spawn(queue.put(1))
    getter = await spawn(queue.get())
    results.append(await getter.join())
    await putter.join()
    failing = await spawn(fail(ValueError("of a child"), 1))
    with pytest.raises(ValueError, match="of a child") as raised:
        await failing.join()
    results.append(str(raised.value))
    results.append(await (await spawn(sleep(FOREVER))).cancel())
    results.append(await (await spawn(cleans_up())).cancel())
    with move_on_after(0) as scope:
        await sleep(FOREVER)
    results.append(scope.cancelled_caught)
    return results


@pytest.fixture(params=["plain", "tls"])
def program(
    request: pytest.FixtureRequest, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> Callable[[], Coroutine[Any, Any, list[object]]]:
    if request.param == "plain":
        return everything
    return lambda: everything(server_context, client_context)


Program = Callable[[], Coroutine[Any, Any, list[object]]]

#: What is None rightly: at an end of a connection that there is not, at a server, and in a step that goes on.
MAY_BE_NONE = {"peer_address", "server_hostname", "send_value"}


def test_every_hook_is_called_with_every_field_filled(program: Program, request: pytest.FixtureRequest) -> None:
    with Recorder() as recorder:
        flowno.run(program())
    is_tls = "tls" in request.node.callspec.id
    assert set(recorder.names) == set(HOOKS) - (set() if is_tls else {"on_tls_handshake_complete"})
    filled: dict[type, set[str]] = {}
    for _, args in recorder.calls:
        for metadata in args:
            if dataclasses.is_dataclass(metadata):
                fields = {field.name: getattr(metadata, field.name) for field in dataclasses.fields(metadata)}
                empty = {name for name, content in fields.items() if content is None}
                assert empty <= MAY_BE_NONE
                filled.setdefault(type(metadata), set()).update(fields.keys() - empty)
    for kind, names in filled.items():
        known = {field.name for field in dataclasses.fields(kind)}
        assert names == known - ({"peer_address"} if kind is SocketConnectStartMetadata else set()), kind


def test_a_program_does_the_same_where_it_is_watched(program: Program) -> None:
    expected = flowno.run(program())
    with Recorder(), Recorder():
        assert flowno.run(program()) == expected


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_raises_is_logged_once_and_its_instrument_taken_out(
    hook: str, server_context: ssl.SSLContext, client_context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    expected = flowno.run(everything(server_context, client_context))
    raising = Recorder()

    def broken(*args: Any) -> None:
        raising.calls.append(("broken", args))
        raise ZeroDivisionError("of the hook")

    setattr(raising, hook, broken)
    with Recorder() as outer, raising, Recorder() as inner:
        assert flowno.run(everything(server_context, client_context)) == expected
    (record,) = caplog.records
    assert record.name == "flowno.instrumentation"
    assert record.getMessage() == f"Recorder.{hook}() raised; the instrument is not called any more"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)
    assert record.exc_info[1].__context__ is None  # and not how the step has ended, which is no part of the hook
    assert raising.names[-1] == "broken"
    assert raising.names.count("broken") == 1
    assert inner.names == outer.names
    assert len(inner.names) > len(raising.names)


@pytest.mark.not_watched(reason="it looks at a loop that nobody else watches")
def test_with_the_last_instrument_that_raises_everything_is_put_back(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(EventLoopInstrument):
        def on_queue_put(self, queue: Any, item: Any, immediate: bool) -> None:
            raise TaskCancelled.__new__(TaskCancelled, "whatever it is")

    async def main() -> None:
        queue: AsyncQueue[int] = AsyncQueue()
        with Broken():
            assert exchanged()
            queue.put_nowait(1)
            assert exchanged() == set()
            await queue.put(2)
        assert queue.items == [1, 2]

    flowno.run(main())
    assert len(caplog.records) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_goes_through_a_hook(error: type[BaseException]) -> None:
    class Interrupted(EventLoopInstrument):
        def on_queue_put(self, queue: Any, item: Any, immediate: bool) -> None:
            raise error

    async def main() -> None:
        with Interrupted():
            await AsyncQueue().put(1)

    with pytest.raises(error):
        flowno.run(main())


# ------------------------------------------------------------------------------------------------- who is told of whom


def put(name: str) -> Coroutine[Any, Any, None]:
    """Something that is told."""

    async def task() -> None:
        await AsyncQueue().put(name)

    return task()


class Puts(Recorder):
    """Keeps what was put into queues."""

    def __init__(self) -> None:
        super().__init__("on_queue_put")

    @property
    def items(self) -> list[str]:
        return [args[1] for _, args in self.calls]


def test_one_that_is_entered_around_a_run_sees_all_of_it() -> None:
    async def main() -> None:
        await put("main")
        await (await spawn(put("child"))).join()

    with Puts() as puts:
        flowno.run(main())
        flowno.run(put("the next run"))
    flowno.run(put("too late"))
    assert puts.items == ["main", "child", "the next run"]


def test_one_that_is_entered_in_a_task_sees_that_task_and_those_that_it_starts_from_then_on() -> None:
    async def main() -> None:
        gate = Event()

        async def waits(name: str) -> None:
            await gate.wait()
            await put(name)

        async def watched() -> None:
            before = await spawn(waits("started before"))
            with puts:
                await put("itself")
                after = await spawn(waits("started after"))
                created = current_event_loop().create_task(waits("created after"))  # type: ignore[union-attr]
                await sleep(0)
                await gate.set()
                for each in (before, after, created):
                    await each.join()
            await put("left")

        beside = await spawn(waits("beside"))
        await (await spawn(watched())).join()
        await beside.join()
        await put("outside")

    puts = Puts()
    flowno.run(main())
    assert sorted(puts.items) == ["created after", "itself", "started after"]


def test_nested_instruments_are_told_the_last_one_first() -> None:
    order: list[str] = []

    class Named(EventLoopInstrument):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_queue_put(self, queue: Any, item: Any, immediate: bool) -> None:
            order.append(self.name)

    async def main() -> None:
        with Named("inner"):
            await put("something")
        await put("something")

    with Named("outer"), Named("middle"):
        flowno.run(main())
    assert order == ["inner", "middle", "outer", "middle", "outer"]


@pytest.mark.not_watched(reason="it looks at a loop that nobody else watches")
def test_they_are_left_in_any_order() -> None:
    async def main() -> None:
        first, second, third = Puts(), Puts(), Puts()
        for each in (first, second, third):
            each.__enter__()
        await put("all")
        second.__exit__(None, None, None)
        await put("two")
        third.__exit__(None, None, None)
        await put("one")
        first.__exit__(None, None, None)
        assert exchanged() == set()
        await put("none")
        assert (first.items, second.items, third.items) == (["all", "two", "one"], ["all"], ["all", "two"])

    flowno.run(main())


def test_one_that_is_entered_twice_is_told_twice() -> None:
    async def main() -> None:
        puts = Puts()
        with puts:
            with puts:
                await put("twice")
            await put("once")
        assert puts.items == ["twice", "twice", "once"]
        with puts:
            await put("again")
        assert puts.items[3:] == ["again"]

    flowno.run(main())


def test_one_is_left_by_another_task_than_it_was_entered_by() -> None:
    async def main() -> None:
        puts = Puts()

        async def enters() -> None:
            puts.__enter__()
            await put("entered")
            await left.wait()
            await put("left")

        left = Event()
        task = await spawn(enters())
        puts.__exit__(None, None, None)
        await left.set()
        await task.join()
        assert puts.items == ["entered"]

    flowno.run(main())


def test_one_that_was_not_entered_cannot_be_left() -> None:
    puts = Puts()
    with puts:
        pass
    with pytest.raises(flowno.EventLoopError, match="left more often than it was entered"):
        puts.__exit__(None, None, None)


@pytest.mark.not_watched(reason="it looks at a loop that nobody else watches")
def test_tasks_that_are_still_seen_when_it_is_left_go_on_unseen() -> None:
    async def main() -> None:
        with pair() as (one, other):
            with Recorder() as recorder:
                queue: AsyncQueue[str] = AsyncQueue()
                getter, reader = await spawn(queue.get()), await spawn(one.recv(10))
            assert exchanged() == set()
            told = len(recorder.calls)
            await queue.put("an item")
            await other.sendAll(b"Hello")
            assert await getter.join() == "an item"
            assert await reader.join() == b"Hello"
            assert len(recorder.calls) == told
            with Puts() as puts:  # another one does not bring the first one back
                await queue.put("an item")
            assert puts.items == ["an item"]
            assert len(recorder.calls) == told

    flowno.run(main())


def test_an_operation_that_goes_on_when_it_is_entered_is_not_told_of() -> None:
    async def main() -> None:
        queue: AsyncQueue[str] = AsyncQueue()
        getting: Any = queue.get()
        getting.send(None)  # it waits now, and what it gets is up to whoever drives it
        with Recorder() as recorder:
            with pytest.raises(StopIteration) as ended:
                getting.send("an item")
            assert ended.value.value == "an item"
            assert recorder.names == []

    flowno.run(main())


def test_a_task_that_enters_it_is_told_of_from_its_next_step_on() -> None:
    async def main() -> None:
        with Recorder() as recorder:
            assert recorder.names == []
            await sleep(0)
            assert recorder.names == ["on_task_before_send"]
            await sleep(0)
            assert recorder.names[1:] == ["on_task_after_send", "on_task_before_send"]

    flowno.run(main())


def test_two_loops_in_two_threads_have_their_own() -> None:
    barrier = threading.Barrier(2)
    seen: dict[str, list[str]] = {}

    def work(name: str) -> None:
        async def main() -> None:
            for number in range(50):
                await put(f"{name} {number}")
                await sleep(0)

        with Puts() as puts, Recorder("on_task_before") as steps:
            barrier.wait()
            flowno.run(main())
            barrier.wait()
        seen[name] = puts.items
        assert len(steps.calls) == 51

    threads = [threading.Thread(target=work, args=[name]) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {name: [f"{name} {number}" for number in range(50)] for name in ("one", "other")}


@pytest.mark.not_watched(reason="it looks at a loop that nobody else watches")
def test_a_task_that_another_thread_starts_in_a_loop_is_seen_by_what_that_thread_has_entered() -> None:
    async def main() -> None:
        loop = current_event_loop()
        assert loop is not None
        done = Event()
        recorder = Recorder()

        async def child() -> None:
            await sleep(0)
            await put("by the thread")

        async def finish() -> None:
            await done.set()

        def elsewhere() -> None:
            with recorder:
                task = loop.create_task(child())
                ended = threading.Event()
                task.add_done_callback(lambda _: ended.set())
                assert ended.wait(10)
            loop.create_task(finish())

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await done.wait()
        thread.join()
        await sleep(0)
        assert recorder.names == [
            "on_task_before_send",
            "on_task_after_send",
            "on_task_before_send",
            "on_queue_put",
            "on_task_completed",
        ]
        assert loop.step_wrappers == []

    flowno.run(main())


def test_what_a_hook_does_itself_is_not_told() -> None:
    class Collects(Puts):
        def on_queue_put(self, queue: Any, item: Any, immediate: bool) -> None:
            super()._keep("on_queue_put", (queue, item))
            collected.put_nowait(item)
            assert get_current_instrument().__class__ is EventLoopInstrument
            tasks.append(current_event_loop().create_task(put("by the hook")))  # type: ignore[union-attr]

    collected: AsyncQueue[str] = AsyncQueue()
    tasks: list[TaskHandle[None]] = []

    async def main() -> None:
        await put("main")
        for task in tasks:
            await task.join()

    with Collects() as puts:
        flowno.run(main())
    assert puts.items == collected.items == ["main"]


def test_a_hook_runs_in_the_context_of_the_task() -> None:
    class Looks(EventLoopInstrument):
        def on_task_before_send(self, metadata: TaskSendMetadata) -> None:
            seen.append((metadata.task, current_task()))

    seen: list[tuple[object, object]] = []
    with Looks():
        flowno.run(put("something"))
    assert seen
    assert all(told is running for told, running in seen)


def test_the_current_instrument_is_the_one_that_was_entered_last() -> None:
    assert isinstance(get_current_instrument(), EventLoopInstrument)
    get_current_instrument().on_queue_put(AsyncQueue(), "nobody is told", True)
    with Puts() as outer:
        assert get_current_instrument() is outer
        with Puts() as inner:
            assert get_current_instrument() is inner
        assert get_current_instrument() is outer


# --------------------------------------------------------------------------------------------- and nothing else changes


def test_what_is_exchanged_is_put_back_and_nothing_else_ever_is() -> None:
    with Recorder():
        names = exchanged()
        with Recorder():
            assert exchanged() == names
        assert exchanged() == names
    assert exchanged() == set()
    methods = {name.partition(".")[2] for name in names}
    assert methods >= {"recv", "recv_into", "send", "sendAll", "accept", "connect", "close", "put", "get"}
    assert not any(name.startswith("EventLoop.") for name in names)


@pytest.mark.not_watched(reason="it looks at a loop that nobody else watches")
def test_a_loop_has_its_steps_as_they_are_when_nobody_watches() -> None:
    async def main() -> None:
        loop = current_event_loop()
        assert loop is not None
        beside = await spawn(sleep(FOREVER))
        run = beside._run
        with Recorder():
            assert len(loop.step_wrappers) == 1
            with Recorder():
                assert len(loop.step_wrappers) == 1
            assert beside._run != run
        assert loop.step_wrappers == []
        assert beside._run == run == beside._context.run
        await beside.cancel()

    with EventLoop() as loop:
        loop.run_until_complete(main(), join=True)
        with Recorder():
            loop.run_until_complete(put("something"))
            assert len(loop.step_wrappers) == 1
        assert loop.step_wrappers == []


@pytest.mark.timeout(180)  # on a machine that does much else, too
def test_a_watched_program_can_be_cancelled_everywhere(program: Program) -> None:
    async def watched() -> None:
        with Recorder():
            await program()

    # By TCP, what was sent comes at once or, on a busy machine, a moment later: now and then there is a wait more.
    assert any(cancel_everywhere(watched) == cancel_everywhere(program) for _ in range(3))


def test_an_instrument_that_keeps_what_it_is_told_does_not_change_how_a_run_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def swallows() -> None:
        while True:
            with suppress(TaskCancelled):
                await sleep(FOREVER)

    async def main() -> None:
        await spawn(swallows(), name="swallows")

    flowno.run(main())
    expected = [record.getMessage() for record in caplog.records]
    assert len(expected) == 1
    assert "has swallowed its cancellation 3 times" in expected[0]
    caplog.clear()
    with Recorder():
        flowno.run(main())
    assert [record.getMessage() for record in caplog.records] == expected


def test_the_traceback_of_a_watched_task_begins_in_the_task() -> None:
    async def main() -> None:
        task = await spawn(fail(ValueError("of a child"), 1))
        with pytest.raises(ValueError, match="of a child") as raised:
            await task.join()
        names = [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
        assert names == expected or not expected
        expected[:] = names

    expected: list[str] = []
    flowno.run(main())
    with Recorder("nothing"):
        flowno.run(main())
    assert expected[-1] == "fail"


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="this Python does not count references")
def test_what_a_watched_task_drops_is_freed_at_once() -> None:
    class Thing:
        pass

    async def child(fails: bool) -> None:
        thing = Thing()
        things.append(weakref.ref(thing))
        with pair() as (one, other):
            handles.append(weakref.ref(one))
            await other.sendAll(b"x")
            await one.recv(1)
            await sleep(0)
        if fails:
            raise ValueError("of a child")

    async def main() -> None:
        await (await spawn(child(False))).join()
        failing = await spawn(child(True))
        with suppress(ValueError):
            await failing.join()
        tasks.append(weakref.ref(failing))
        del failing  # this very frame is in the traceback of the error that it has

    things: list[weakref.ref[Any]] = []
    handles: list[weakref.ref[Any]] = []
    tasks: list[weakref.ref[Any]] = []
    gc.collect()
    with no_collections(), EventLoopInstrument():
        flowno.run(main())
        assert [each() for each in (*things, *handles, *tasks)] == [None] * 5


def test_operations_are_called_as_they_were(connected: Pair) -> None:
    async def main() -> None:
        with connected() as (one, other):
            await shake_hands(one, other)
            plain = [getattr(one, name) for name in ("recv", "send", "sendAll", "accept")]
            with Recorder():
                watched = [getattr(one, name) for name in ("recv", "send", "sendAll", "accept")]
                for function, original in zip(watched, plain, strict=True):
                    assert function.__name__ == original.__name__
                    assert function.__doc__ == original.__doc__
                await other.sendAll(data=b"Hello")
                task = await spawn(one.recv(bufsize=10))
                names = [task.name]
                assert await task.join() == b"Hello"
                with pytest.raises(TypeError):
                    await one.recv()
                with pytest.raises((TypeError, ValueError)):
                    await one.recv_into(b"read-only")
            task = await spawn(one.recv(bufsize=10))
            names.append(task.name)
            await task.cancel()
            assert names[0] == names[1]

    flowno.run(main())


def test_who_does_not_have_one_in_its_context_is_not_told_of_though_others_are() -> None:
    """What is exchanged is for the whole process; who is told goes by the task."""

    async def beside() -> None:
        queue: AsyncQueue[str] = AsyncQueue()
        with pair() as (one, other):
            await go_on.wait()
            await queue.put("beside")
            queue.put_nowait("beside")
            await queue.get()
            await one.sendAll(b"Hello")
            await one.send(b"")
            await one.sendmsg([b"Hello"]) if hasattr(one.socket, "sendmsg") else None
            await other.recv(3)
            await other.recv_into(bytearray(1))
            await other.recvfrom(1)
        with listening() as listener, flowno.socket() as handle, flowno.socket() as blocking:
            await flowno.connect(handle, listener.getsockname())
            blocking.connect(listener.getsockname())
            for _ in range(2):
                (await listener.accept())[0].close()

    async def main() -> None:
        task = await spawn(beside())
        with Recorder() as recorder:
            names = exchanged()
            assert names
            await go_on.set()
            await task.join()
            recorded = [name for name in recorder.names if not name.startswith("on_task")]
        assert recorded == []

    go_on = Event()
    flowno.run(main())


# ------------------------------------------------------------------------------------------------ what can be looked at


def test_print_instrument_prints_a_line_for_each(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, capsys: pytest.CaptureFixture[str]
) -> None:
    with PrintInstrument():
        flowno.run(everything(server_context, client_context))
    lines = capsys.readouterr().out.splitlines()
    assert {line.partition(" ")[0] for line in lines} == {
        "[accept]", "[close]", "[connect]", "[get]", "[put]", "[recv]", "[send]", "[task]", "[tls]",
    }  # fmt: skip
    text = "\n".join(lines)
    parts = ["3 bytes, b'one'", "0 bytes, b''", " -> 127.0.0.1:", "TLSv1.", "at once", "after 0."]
    parts += ["[task] fail ended with ValueError('of a child')", "[task] sleep was cancelled"]
    assert [part for part in parts if part not in text] == []


class Rude:
    def __repr__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("item", "shown"),
    [
        (b"\x00\xff\r\n\x1b[2J", r"b'\x00\xff\r\n\x1b[2J'"),
        (bytes(1000), "b'" + r"\x00" * 48 + "'..."),
        ("\x1b[2J\u202e\n", r"'\x1b[2J\u202e\n'"),
        ("caf\u00e9 \U0001f600", r"'caf\xe9 \U0001f600'"),
        (Rude(), "<Rude instance at 0x"),
        ("x" * 1000, "'" + "x" * 27 + "..." + "x" * 28 + "'"),
    ],
)
def test_what_is_printed_is_safe_to_look_at(item: object, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        with PrintInstrument():
            await AsyncQueue().put(item)

    flowno.run(main())
    (line,) = capsys.readouterr().out.splitlines()
    assert f": {shown}" in line
    assert line.isascii()
    assert line.isprintable()


def test_log_instrument_logs_what_is_printed(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        await AsyncQueue().put("an item")

    with caplog.at_level(logging.DEBUG, "flowno.instrumentation"), LogInstrument():
        flowno.run(main())
    assert capsys.readouterr().out == ""
    records = [record for record in caplog.records if record.name == "flowno.instrumentation"]
    assert [(record.levelno, record.getMessage()) for record in records] == [
        (logging.DEBUG, "[put] <AsyncQueue with 1 items>: 'an item', at once"),
        (logging.DEBUG, "[task] test_log_instrument_logs_what_is_printed.<locals>.main returned None"),
    ]


def test_log_instrument_formats_nothing_where_nobody_wants_it(caplog: pytest.LogCaptureFixture) -> None:
    class Formatted(AsyncQueue[str]):
        def __repr__(self) -> str:
            raise AssertionError

    async def main() -> None:
        await Formatted().put("an item")

    with caplog.at_level(logging.INFO, "flowno.instrumentation"), LogInstrument():
        flowno.run(main())
    assert caplog.records == []


def test_metadata_cannot_be_changed_under_the_next_one() -> None:
    for name in instrumentation.__all__:
        if name.endswith("Metadata"):
            assert getattr(instrumentation, name).__dataclass_params__.frozen, name
