"""Selectors that are not ours: the standard library's as they are, five methods and nothing else, and broken ones."""

import errno
import gc
import logging
import select
import selectors
import socket
from collections.abc import Callable
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any

import pytest

import flowno
from flowno import BusyResourceError, ClosedResourceError, EventLoop, SocketHandle, sleep, spawn
from flowno.core.event_loop.fd_table import identity_of
from tests.support.loopback import LARGE, listening, pair, pair_with_number, receive

STANDARD = [
    getattr(selectors, name)
    for name in ("SelectSelector", "PollSelector", "EpollSelector", "DevpollSelector", "KqueueSelector")
    if hasattr(selectors, name)
]


class FiveMethods:
    """All that the protocol asks for, over select(2)."""

    def __init__(self) -> None:
        self.keys: dict[int, SelectorKey] = {}
        self.closed = False

    def register(self, fileobj: Any, events: int, data: Any = None, /) -> SelectorKey:
        assert type(fileobj) is int, "the loop registers by number"
        if fileobj in self.keys:
            raise KeyError(fileobj)
        self.keys[fileobj] = key = SelectorKey(fileobj, fileobj, events, data)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None, /) -> SelectorKey:
        self.unregister(fileobj)
        return self.register(fileobj, events, data)

    def unregister(self, fileobj: Any, /) -> SelectorKey:
        return self.keys.pop(fileobj)

    def select(self, timeout: float | None = None, /) -> list[tuple[SelectorKey, int]]:
        assert timeout is None or 0 <= timeout <= 86_400
        sets = [[fd for fd, key in self.keys.items() if key.events & event] for event in (1, 2)]
        ready: dict[int, int] = {}
        for event, fds in zip((1, 2), select.select(*sets, [], timeout), strict=False):
            for fd in fds:
                ready[fd] = ready.get(fd, 0) | event
        return [(self.keys[fd], mask) for fd, mask in ready.items()]

    def close(self) -> None:
        self.closed = True
        self.keys.clear()


async def exercise() -> str:
    """A bit of everything."""
    with listening() as listener, flowno.socket() as client:
        acceptor = await spawn(listener.accept())
        await flowno.connect(client, listener.getsockname())
        server, _ = await acceptor.join()
        with server:
            sender = await spawn(client.sendAll(bytes(LARGE)))
            assert len(await receive(server, LARGE)) == LARGE
            await sender.join()
            waiting = await spawn(client.recv(1))
            assert await waiting.cancel() is None
            waiting = await spawn(client.recv(9))
            await sleep(0.001)
            await server.sendAll(b"data")
            assert await waiting.join() == b"data"
            waiting = await spawn(client.recv(9))
            await sleep(0)
            client.close()
            with pytest.raises(ClosedResourceError):
                await waiting.join()
            assert await server.recv(1) == b""
    return "done"


# --------------------------------------------------------------------------------------------- the standard library's


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize("factory", [*STANDARD, FiveMethods], ids=lambda factory: factory.__name__)
def test_a_selector_of_any_make_serves_a_loop(factory: Callable[[], Any]) -> None:
    assert flowno.run(exercise(), selector=factory) == "done"


@pytest.mark.not_under_faults(reason="it looks at the selector of the loop")
@pytest.mark.parametrize("factory", STANDARD, ids=lambda factory: factory.__name__)
def test_a_selector_that_was_passed_in_is_emptied_and_not_closed(factory: Callable[[], Any]) -> None:
    with factory() as selector:
        with EventLoop(selector) as loop:
            assert loop.selector is selector
            for _ in range(2):
                assert loop.run_until_complete(exercise(), join=True) == "done"
                assert dict(selector.get_map()) == {}
        assert flowno.run(exercise(), selector=selector) == "done"
        assert dict(selector.get_map()) == {}
        with pair() as (one, _):
            key = selector.register(one.socket, EVENT_WRITE)
            assert selector.select(0) == [(key, EVENT_WRITE)]  # it is open


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize("factory", STANDARD, ids=lambda factory: factory.__name__)
def test_what_others_have_registered_in_a_selector_stays(factory: Callable[[], Any]) -> None:
    with factory() as selector, pair() as (one, other):
        key = selector.register(one.socket, EVENT_READ, "mine")
        assert flowno.run(exercise(), selector=selector) == "done"
        assert list(selector.get_map().values()) == [key]
        other.socket.send(b"x")
        assert selector.select(0) == [(key, EVENT_READ)]


def test_a_selector_that_was_passed_in_is_left_to_its_owner_also_when_the_run_fails() -> None:
    async def root() -> None:
        with pair() as (one, _):
            await spawn(one.recv(1))
            raise KeyError("root")

    with selectors.DefaultSelector() as selector:
        with pytest.raises(KeyError, match="root"):
            flowno.run(root(), selector=selector)
        assert dict(selector.get_map()) == {}


def test_a_selector_made_for_the_loop_is_closed_with_it() -> None:
    made = []

    def factory() -> FiveMethods:
        made.append(FiveMethods())
        return made[-1]

    with EventLoop(factory) as loop:
        loop.run_until_complete(sleep(0))
        assert not made[0].closed
    assert made[0].closed
    flowno.run(sleep(0), selector=factory)
    assert made[1].closed


def test_a_selector_serves_one_loop_at_a_time() -> None:
    with selectors.DefaultSelector() as selector:
        with EventLoop(selector):
            with pytest.raises(BusyResourceError, match="in use"):
                EventLoop(selector)
            with pytest.raises(BusyResourceError, match="in use"):
                flowno.run(sleep(0), selector=selector)
        with EventLoop(selector) as again:
            again.run_until_complete(sleep(0))
        dropped = EventLoop(selector)
        del dropped
        gc.collect()
        EventLoop(selector).close()


# ---------------------------------------------------------------------------------------------------- broken selectors


class Broken(FiveMethods):
    """Does what ``misbehave`` says in its next select."""

    misbehave: Callable[[], object] | None = None
    selects = 0

    def select(self, timeout: float | None = None, /) -> list[tuple[SelectorKey, int]]:
        self.selects += 1
        if self.misbehave is not None:
            misbehave, self.misbehave = self.misbehave, None
            result = misbehave()
            if isinstance(result, BaseException):
                raise result
            if result is not None:
                return result  # type: ignore[return-value]
        return super().select(timeout)


class Lookalike:
    """What another framework may have registered: it has the names that the loop looks for, and more."""

    reader = writer = None

    def __repr__(self) -> str:
        return "foreign"


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize("data", ["foreign", Lookalike()], ids=["text", "lookalike"])
def test_a_key_that_the_loop_did_not_register_is_logged_once_and_unregistered(
    data: object, caplog: pytest.LogCaptureFixture
) -> None:
    async def root() -> None:
        with pair() as (one, other):
            reader = await spawn(one.recv(9))
            for _ in range(5):
                await sleep(0)
            await other.sendAll(b"data")
            assert await reader.join() == b"data"
            await sleep(0.01)

    foreign, peer = socket.socketpair()
    with foreign, peer, EventLoop(selector := Broken()) as loop:
        peer.send(b"x")
        selector.register(foreign.fileno(), EVENT_READ, data)
        loop.run_until_complete(root(), join=True)
        assert selector.keys == {}
        assert selector.selects < 20
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "foreign" in record.message


@pytest.mark.not_under_faults(reason="it counts calls")
def test_a_key_that_is_nobodys_is_logged_and_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    async def root() -> None:
        with pair() as (one, other):
            reader = await spawn(one.recv(9))
            await sleep(0)
            selector.misbehave = lambda: [(SelectorKey(12345, 12345, 1, None), 1)]
            await sleep(0)
            await sleep(0)
            await other.sendAll(b"data")
            assert await reader.join() == b"data"

    with EventLoop(selector := Broken()) as loop:
        loop.run_until_complete(root(), join=True)
    assert len(caplog.records) == 1
    assert "12345" in caplog.text


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_an_event_of_a_registration_that_is_gone_does_not_touch_the_one_that_has_its_number_now() -> None:
    async def root() -> None:
        with pair() as (one, other):
            reader = await spawn(one.recv(9))
            await other.sendAll(b"data")
            await reader.join()
            stale = selector.keys[one.fileno()]
            one.close()
            with pair_with_number(stale.fd) as (new, peer):
                late = await spawn(new.recv(9))
                await sleep(0)
                selector.misbehave = lambda: [(stale, EVENT_READ)]
                await sleep(0)
                await sleep(0)
                assert selector.misbehave is None
                assert not late.is_finished
                await peer.sendAll(b"new")
                assert await late.join() == b"new"

    with EventLoop(selector := Broken()) as loop:
        loop.run_until_complete(root(), join=True)


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_readiness_that_is_none_makes_nobody_return_empty_handed() -> None:
    async def root() -> None:
        with pair() as (one, other), listening() as listener:
            reader = await spawn(one.recv(9))
            into = bytearray(9)
            second = await spawn(other.recv_into(into))
            acceptor = await spawn(listener.accept())
            for _ in range(5):
                await sleep(0)
                selector.misbehave = lambda: [(key, key.events) for key in selector.keys.values()]
                await sleep(0)
            assert [task.is_finished for task in (reader, second, acceptor)] == [False, False, False]
            await other.sendAll(b"data")
            assert await reader.join() == b"data"
            await one.sendAll(b"back")
            assert await second.join() == 4
            await acceptor.cancel()

    with EventLoop(selector := Broken()) as loop:
        loop.run_until_complete(root(), join=True)


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EBADF, "bad file descriptor"),
        OSError(errno.ENOTSOCK, "not a socket"),
        ValueError("file descriptor cannot be a negative integer (-1)"),
    ],
    ids=["EBADF", "ENOTSOCK", "ValueError"],
)
def test_one_dead_fd_among_many_does_not_end_the_loop(error: Exception) -> None:
    """FiveMethods lets select(2) fail as it does; the loop finds out whose fd it was."""

    class Strict(FiveMethods):
        def select(self, timeout: float | None = None, /) -> list[tuple[SelectorKey, int]]:
            if any(identity_of(fd) is None for fd in self.keys):
                raise error
            return super().select(timeout)

    async def root() -> None:
        with pair() as (dead, _), pair() as (one, other):
            victim = await spawn(dead.recv(1))
            bystander = await spawn(one.recv(9))
            dead.socket.close()
            with pytest.raises(ClosedResourceError):
                await victim.join()
            assert not bystander.is_finished
            await other.sendAll(b"data")
            assert await bystander.join() == b"data"

    flowno.run(root(), selector=Strict)


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_an_interrupted_select_is_asked_again() -> None:
    async def root() -> None:
        with pair() as (one, other):
            reader = await spawn(one.recv(9))
            await sleep(0)
            selector.misbehave = lambda: InterruptedError(errno.EINTR, "interrupted")
            await sleep(0)
            await sleep(0)
            assert selector.misbehave is None
            await other.sendAll(b"data")
            assert await reader.join() == b"data"

    with EventLoop(selector := Broken()) as loop:
        loop.run_until_complete(root(), join=True)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), ValueError("broken"), RuntimeError("broken")])
def test_a_selector_that_cannot_wait_ends_the_run_with_its_error_and_the_tasks_clean_up(error: Exception) -> None:
    cleaned = []

    class CannotWait(FiveMethods):
        def select(self, timeout: float | None = None, /) -> list[tuple[SelectorKey, int]]:
            raise error

    async def reader(handle: SocketHandle) -> None:
        try:
            await handle.recv(1)
        finally:
            cleaned.append("reader")

    async def root() -> None:
        with pair() as (one, _):
            await spawn(reader(one))
            await sleep(1000)

    with EventLoop(selector := CannotWait()) as loop:
        with pytest.raises(type(error), match="broken") as caught:
            loop.run_until_complete(root())
        assert caught.value is error
        assert cleaned == ["reader"]
        assert selector.keys == {}


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize("error", [OSError(errno.ENOMEM, "no memory"), ValueError("no room")])
def test_a_run_that_cannot_begin_leaves_nothing_behind_and_the_next_one_works(error: Exception) -> None:
    class Full(FiveMethods):
        full = True

        def register(self, fileobj: Any, events: int, data: Any = None, /) -> SelectorKey:
            if self.full:
                raise error
            return super().register(fileobj, events, data)

    with EventLoop(selector := Full()) as loop:
        coroutine = exercise()
        with pytest.raises(type(error)):
            loop.run_until_complete(coroutine, join=True)
        coroutine.close()
        assert flowno.current_event_loop() is None
        selector.full = False
        assert loop.run_until_complete(exercise(), join=True) == "done"


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize("error", [KeyError("forgotten"), OSError(errno.ENOENT, "lost")], ids=["KeyError", "OSError"])
def test_a_selector_that_fails_to_forget_does_not_end_the_loop(error: Exception) -> None:
    """What is taken out is gone also where the selector complains, and the other direction goes on."""

    class Complaining(FiveMethods):
        def unregister(self, fileobj: Any, /) -> SelectorKey:
            super().unregister(fileobj)
            raise error

        def modify(self, fileobj: Any, events: int, data: Any = None, /) -> SelectorKey:
            if events < self.keys[fileobj].events:
                self.unregister(fileobj)
            self.keys[fileobj] = key = SelectorKey(fileobj, fileobj, events, data)
            return key

    async def root() -> None:
        with pair(4096) as (one, other):
            reader = await spawn(one.recv(9))
            writer = await spawn(one.sendAll(bytes(100_000)))
            assert len(await receive(other, 100_000)) == 100_000
            await writer.join()
            await sleep(0)
            assert not reader.is_finished
            await other.sendAll(b"data")
            assert await reader.join() == b"data"

    flowno.run(root(), selector=Complaining)
