"""wait_readable and wait_writable: readiness of anything that has a file descriptor."""

import errno
import gc
import io
import os
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import flowno
from flowno import (
    BusyResourceError,
    ClosedResourceError,
    EventLoop,
    EventLoopError,
    SocketHandle,
    TaskHandle,
    sleep,
    spawn,
)
from flowno.core.event_loop.commands import FdReadableCommand, FdWritableCommand
from tests.support.counting_selector import CountingSelector
from tests.support.fairness import another_task
from tests.support.loopback import fill, listening, pair

pytestmark = pytest.mark.usefixtures("backend")

posix = pytest.mark.skipif(os.name == "nt", reason="Windows waits for sockets only")

Wait = Callable[[Any], Awaitable[None]]
WAITS: list[Wait] = [flowno.wait_readable, flowno.wait_writable]
both = pytest.mark.parametrize("wait", WAITS, ids=["readable", "writable"])


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """The two ends of a pipe, closed at the end unless the test has done it."""
    ends = os.pipe()
    identities = [os.fstat(fd) for fd in ends]
    try:
        yield ends
    finally:
        for fd, identity in zip(ends, identities, strict=True):
            try:
                if os.path.samestat(os.fstat(fd), identity):
                    os.close(fd)
            except OSError:
                pass


def fill_socket(sock: socket.socket) -> None:
    sock.setblocking(False)
    fill(sock)


async def drain_until_ended(task: TaskHandle[Any], sock: socket.socket) -> None:
    sock.setblocking(False)
    while not task.is_finished:
        try:
            sock.recv(1 << 20)
        except BlockingIOError:
            pass
        await sleep(0)


def fill_pipe(fd: int) -> None:
    os.set_blocking(fd, False)
    try:
        while True:
            os.write(fd, bytes(65536))
    except BlockingIOError:
        os.set_blocking(fd, True)


# ---------------------------------------------------------------------------------------------------------- readiness


@posix
def test_a_pipe_is_waited_for_until_there_is_data() -> None:
    async def root() -> None:
        with pipe() as (reader, writer):
            waiter = await spawn(flowno.wait_readable(reader))
            for _ in range(3):
                await sleep(0)
            assert not waiter.is_finished
            os.write(writer, b"x")
            await waiter.join()
            assert os.read(reader, 9) == b"x"
            assert os.get_blocking(reader), "the descriptor was changed"

    flowno.run(root())


@posix
def test_a_pipe_is_waited_for_until_there_is_room() -> None:
    async def root() -> None:
        with pipe() as (reader, writer):
            await flowno.wait_writable(writer)
            fill_pipe(writer)
            waiter = await spawn(flowno.wait_writable(writer))
            for _ in range(3):
                await sleep(0)
            assert not waiter.is_finished
            os.read(reader, 1 << 20)
            await waiter.join()
            os.write(writer, b"x")

    flowno.run(root())


@posix
def test_the_end_of_a_pipe_ends_the_wait_at_either_end() -> None:
    async def root() -> None:
        with pipe() as (reader, writer):
            waiter = await spawn(flowno.wait_readable(reader))
            os.close(writer)
            await waiter.join()
            assert os.read(reader, 9) == b""
        with pipe() as (reader, writer):
            fill_pipe(writer)
            waiter = await spawn(flowno.wait_writable(writer))
            os.close(reader)
            await waiter.join()
            with pytest.raises(BrokenPipeError):
                os.write(writer, b"x")

    flowno.run(root())


@posix
def test_a_terminal_is_waited_for_in_both_directions() -> None:
    pty = pytest.importorskip("pty", reason="this platform has no pseudo-terminals")

    async def root() -> None:
        controller, terminal = pty.openpty()
        try:
            await flowno.wait_writable(terminal)
            waiter = await spawn(flowno.wait_readable(terminal))
            await sleep(0)
            assert not waiter.is_finished
            os.write(controller, b"a line\n")
            await waiter.join()
            assert os.read(terminal, 100) == b"a line\n"
        finally:
            os.close(controller)
            os.close(terminal)

    flowno.run(root())


@posix
@both
def test_a_regular_file_is_always_ready_and_the_others_run(wait: Wait, tmp_path: Path) -> None:
    """Also at its end, where kqueue would report nothing."""
    path = tmp_path / "file"
    path.write_bytes(b"")
    selector = CountingSelector()

    async def root() -> None:
        with path.open("r+b", buffering=0) as file:
            async with another_task() as turns:
                for expected in range(2, 5):
                    await wait(file)
                    assert turns.taken == expected

    with EventLoop(selector) as loop:
        loop.run_until_complete(root(), join=True)
    assert selector.calls["register"] == 1, "the waker only"
    selector.inner.close()


@posix
@pytest.mark.parametrize(
    ("wait", "path"),
    [(flowno.wait_readable, "/dev/null"), (flowno.wait_writable, "/dev/null"), (flowno.wait_readable, ".")],
    ids=["reading /dev/null", "writing /dev/null", "reading a folder"],
)
def test_what_never_blocks_is_always_ready(wait: Wait, path: str) -> None:
    async def root() -> None:
        fd = os.open(path, os.O_RDONLY if path == "." else os.O_RDWR)
        try:
            await wait(fd)
            await wait(fd)
        finally:
            os.close(fd)

    flowno.run(root())


def test_a_plain_socket_is_waited_for_and_stays_as_it_is() -> None:
    async def root(by: Callable[[socket.socket], Any]) -> None:
        one, other = socket.socketpair()
        with one, other:
            await flowno.wait_writable(by(one))
            waiter = await spawn(flowno.wait_readable(by(one)))
            await sleep(0)
            assert not waiter.is_finished
            other.send(b"x")
            await waiter.join()
            assert one.recv(9) == b"x"
            assert one.gettimeout() is None

    for by in (lambda sock: sock, lambda sock: sock.fileno()):
        flowno.run(root(by))


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_a_handle_can_be_waited_for_and_loses_nothing() -> None:
    async def root() -> None:
        with pair(4096) as (one, other):
            waiter = await spawn(flowno.wait_readable(one))
            await sleep(0)
            assert not waiter.is_finished
            await other.sendAll(b"abc")
            await waiter.join()
            assert await one.recv(9) == b"abc"
            fill(one)
            waiter = await spawn(flowno.wait_writable(one))
            await sleep(0)
            assert not waiter.is_finished
            await drain_until_ended(waiter, other.socket)

    flowno.run(root())


def test_a_listening_socket_is_readable_when_somebody_connects() -> None:
    async def root() -> None:
        with listening() as listener, flowno.socket() as client:
            waiter = await spawn(flowno.wait_readable(listener))
            await flowno.connect(client, listener.getsockname())
            await waiter.join()
            connection, _ = await listener.accept()
            connection.close()

    flowno.run(root())


@posix
def test_both_directions_of_one_fd_can_be_waited_for_at_once() -> None:
    async def root() -> None:
        one, other = socket.socketpair()
        with one, other:
            fill_socket(one)
            fd = one.fileno()
            reader = await spawn(flowno.wait_readable(fd))
            writer = await spawn(flowno.wait_writable(fd))
            other.send(b"x")
            await reader.join()
            assert not writer.is_finished
            await drain_until_ended(writer, other)

    flowno.run(root())


# ----------------------------------------------------------------------------------------------- nothing stays behind


@posix
@pytest.mark.parametrize("how", ["ready", "cancelled", "refused"])
def test_a_wait_that_has_ended_leaves_no_registration(how: str) -> None:
    selector = CountingSelector()

    async def root() -> None:
        with pipe() as (reader, writer):
            for _ in range(3):
                waiter = await spawn(flowno.wait_readable(reader))
                assert reader in selector.masks
                if how == "ready":
                    os.write(writer, b"x")
                    await waiter.join()
                    os.read(reader, 9)
                elif how == "cancelled":
                    await waiter.cancel()
                else:
                    selector.fail["register"] = OSError("as asked")
                    with pytest.raises(OSError, match="as asked"):
                        await flowno.wait_writable(writer)
                    selector.fail.clear()
                    await waiter.cancel()
                assert not {reader, writer} & set(selector.masks)

    with EventLoop(selector) as loop:
        loop.run_until_complete(root(), join=True)
    selector.inner.close()


@posix
def test_a_number_that_is_used_again_for_another_file_is_waited_for_anew() -> None:
    async def root() -> None:
        with pipe() as (reader, writer), pipe() as (second_reader, second_writer):
            os.write(writer, b"x")
            await flowno.wait_readable(reader)
            os.dup2(second_reader, reader)
            waiter = await spawn(flowno.wait_readable(reader))
            await sleep(0)
            os.write(second_writer, b"y")
            await waiter.join()
            assert os.read(reader, 9) == b"y"
            os.close(reader)

    flowno.run(root())


@posix
def test_who_waits_for_a_number_that_is_now_another_file_is_told() -> None:
    async def root() -> None:
        with pipe() as (reader, _), pipe() as (second_reader, second_writer):
            waiter = await spawn(flowno.wait_readable(reader))
            await sleep(0)
            os.dup2(second_reader, reader)
            again = await spawn(flowno.wait_readable(reader))
            with pytest.raises(ClosedResourceError):
                await waiter.join()
            os.write(second_writer, b"y")
            await again.join()
            os.close(reader)

    flowno.run(root())


@posix
def test_a_handle_on_a_number_that_somebody_waits_for_in_vain_is_not_disturbed() -> None:
    async def root() -> None:
        with pipe() as (reader, _), pair() as (one, other):
            waiter = await spawn(flowno.wait_readable(reader))
            await sleep(0)
            os.dup2(one.socket.fileno(), reader)
            with SocketHandle.from_fd(reader) as again:
                task = await spawn(again.recv(9))
                with pytest.raises(ClosedResourceError):
                    await waiter.join()
                await other.sendAll(b"x")
                assert await task.join() == b"x"

    flowno.run(root())


@posix
def test_a_wait_for_an_fd_that_is_closed_elsewhere_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowno.core.event_loop.event_loop.QUIET_BEFORE_AUDIT", 0.01)

    async def root() -> None:
        with pipe() as (reader, _):
            waiter = await spawn(flowno.wait_readable(reader))
            await sleep(0)
            os.close(reader)
            with pytest.raises(ClosedResourceError) as caught:
                await waiter.join()
            assert caught.value.errno == errno.EBADF

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it counts turns of the loop, or what is done in one of them")
def test_a_task_that_is_cancelled_when_it_is_ready_goes_on() -> None:
    async def wait(sock: socket.socket) -> str:
        await flowno.wait_readable(sock)
        return "went on"

    async def root() -> None:
        one, other = socket.socketpair()
        with one, other:
            waiter = await spawn(wait(one))
            await sleep(0)
            other.send(b"x")
            await sleep(0)  # the selector has reported it, and it is behind this task
            assert not waiter.is_finished
            assert await waiter.cancel() == "went on"

    flowno.run(root())


# ------------------------------------------------------------------------------------------------ with other waiters


@both
@pytest.mark.parametrize("as_number", [False, True], ids=["object", "number"])
def test_a_second_wait_in_a_direction_is_refused_and_the_first_is_unaffected(wait: Wait, as_number: bool) -> None:
    async def root() -> None:
        one, other = socket.socketpair()
        with one, other:
            fill_socket(one)
            fileobj: Any = one.fileno() if as_number else one
            first = await spawn(wait(fileobj))
            await sleep(0)
            for _ in range(2):
                with pytest.raises(BusyResourceError, match="another task is (reading|writing)"):
                    await wait(fileobj)
            assert not first.is_finished
            other.send(b"x")
            await drain_until_ended(first, other)

    flowno.run(root())


@pytest.mark.parametrize("bound", [False, True], ids=["new handle", "used handle"])
def test_handles_and_waits_share_the_directions_of_a_socket(bound: bool) -> None:
    async def root() -> None:
        with pair() as (one, other):
            if bound:
                await other.sendAll(b"x")
                assert await one.recv(9) == b"x"
            for fileobj in (one, one.socket, one.fileno()):
                waiter = await spawn(flowno.wait_readable(fileobj))
                await sleep(0)
                with pytest.raises(BusyResourceError):
                    await one.recv(9)
                await one.sendAll(b"the other direction")
                await waiter.cancel()
            receiver = await spawn(one.recv(9))
            await sleep(0)
            for fileobj in (one, one.socket, one.fileno()):
                with pytest.raises(BusyResourceError):
                    await flowno.wait_readable(fileobj)
            await other.sendAll(b"y")
            assert await receiver.join() == b"y"

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it counts turns of the loop, or what is done in one of them")
@pytest.mark.parametrize("bound", [False, True], ids=["new handle", "used handle"])
@pytest.mark.parametrize("by", ["handle", "socket", "number"])
def test_closing_the_handle_ends_a_wait_for_its_fd(by: str, bound: bool) -> None:
    async def root() -> None:
        with pair() as (one, other):
            if bound:
                await other.sendAll(b"x")
                assert await one.recv(9) == b"x"
            fileobj: Any = {"handle": one, "socket": one.socket, "number": one.fileno()}[by]
            waiter = await spawn(flowno.wait_readable(fileobj))
            await sleep(0)
            one.close()
            await sleep(0)
            assert waiter.is_error, "it is told at once, not when the loop looks around"
            with pytest.raises(ClosedResourceError):
                await waiter.join()

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it counts turns of the loop, or what is done in one of them")
@pytest.mark.parametrize("by", ["handle", "socket", "number"])
def test_a_direction_is_owned_between_wake_and_resume_too(by: str) -> None:
    async def root() -> None:
        with pair() as (one, other):
            fileobj: Any = {"handle": one, "socket": one.socket, "number": one.fileno()}[by]
            waiter = await spawn(flowno.wait_readable(fileobj))
            await other.sendAll(b"x")
            await sleep(0)  # the waiter is ready, behind this task
            assert not waiter.is_finished
            with pytest.raises(BusyResourceError):
                await one.recv(9)
            await waiter.join()
            assert await one.recv(9) == b"x"

    flowno.run(root())


def test_a_wait_goes_on_where_a_handle_on_the_same_socket_is_dropped() -> None:
    async def root() -> None:
        one, other = socket.socketpair()
        with one, other:
            handle = SocketHandle(one)
            other.send(b"x")
            assert await handle.recv(9) == b"x"
            waiter = await spawn(flowno.wait_readable(one))
            await sleep(0)
            del handle
            gc.collect()
            await sleep(0)
            assert not waiter.is_finished
            other.send(b"y")
            await waiter.join()

    flowno.run(root())


def test_a_handle_that_waits_in_another_loop_is_refused() -> None:
    with pair() as (one, _), EventLoop() as first:

        async def begin() -> None:
            await spawn(one.recv(1))
            await sleep(0)

        async def root() -> None:
            with pytest.raises(BusyResourceError):
                await flowno.wait_readable(one)

        first.run_until_complete(begin(), wait_for_spawned_tasks=False)
        flowno.run(root())


# ----------------------------------------------------------------------------------------------------------- bad input


@both
@pytest.mark.parametrize("fileobj", [None, "0", 1.0, object(), b"x"], ids=["None", "str", "float", "object", "bytes"])
def test_what_has_no_fd_is_a_type_error(wait: Wait, fileobj: Any) -> None:
    async def root() -> None:
        with pytest.raises(TypeError, match="fileno"):
            await wait(fileobj)

    flowno.run(root())


@both
def test_a_negative_number_is_a_value_error(wait: Wait) -> None:
    async def root() -> None:
        with pytest.raises(ValueError, match="negative"):
            await wait(-1)

    flowno.run(root())


class Numbered:
    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        return self.fd


@both
@pytest.mark.parametrize("fd", [2**31, 2**64], ids=["2**31", "2**64"])
@pytest.mark.parametrize("wrap", [int, Numbered], ids=["number", "object"])
def test_a_number_that_no_descriptor_can_have_is_a_value_error(wait: Wait, fd: int, wrap: Any) -> None:
    async def root() -> None:
        with pytest.raises(ValueError, match=str(fd)):
            await wait(wrap(fd))

    flowno.run(root())


@both
def test_a_file_in_memory_says_that_it_has_no_fd(wait: Wait) -> None:
    async def root() -> None:
        with pytest.raises(io.UnsupportedOperation):
            await wait(io.BytesIO())

    flowno.run(root())


@posix
@both
def test_a_closed_number_is_an_error_at_once(wait: Wait) -> None:
    async def root() -> None:
        with pipe() as (reader, writer):
            os.close(reader)
            os.close(writer)
            with pytest.raises(ClosedResourceError) as caught:
                await wait(reader)
            assert caught.value.errno == errno.EBADF

    flowno.run(root())


@both
def test_a_closed_object_is_an_error_at_once(wait: Wait, tmp_path: Path) -> None:
    async def root() -> None:
        with pair() as (one, other), (tmp_path / "file").open("wb") as file:
            sock = other.socket
        for closed in (one, other, sock, file):
            with pytest.raises(ClosedResourceError):
                await wait(closed)

    flowno.run(root())


def test_a_socket_closed_behind_its_handle_is_an_error_at_once() -> None:
    async def root() -> None:
        with pair() as (one, other):
            await other.sendAll(b"x")
            await one.recv(9)
            one.socket.close()
            with pytest.raises(ClosedResourceError):
                await flowno.wait_readable(one)

    flowno.run(root())


@pytest.mark.skipif(os.name != "nt", reason="elsewhere everything can be waited for")
@both
def test_on_windows_only_sockets_can_be_waited_for(wait: Wait, tmp_path: Path) -> None:
    async def root() -> None:
        with (tmp_path / "file").open("wb") as file:
            with pytest.raises(ValueError, match="Windows"):
                await wait(file)
            with pytest.raises(ValueError, match="Windows"):
                await wait(4_000)

    flowno.run(root())


@both
def test_outside_of_a_loop_it_says_so(wait: Wait) -> None:
    coroutine: Any = wait(0)
    with pytest.raises(EventLoopError, match="wait_"):
        coroutine.send(None)


@posix
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of select is looked for on Linux")
def test_a_number_beyond_the_limit_of_the_selector_is_refused_and_the_loop_goes_on(backend: str) -> None:
    if backend != "select":
        pytest.skip("only select has a limit")
    resource = pytest.importorskip("resource")
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= 1100:
        pytest.skip("this process cannot have so many fds")

    async def root() -> None:
        with pipe() as (reader, writer):
            os.dup2(reader, 1099)
            try:
                with pytest.raises(ValueError, match="1099"):
                    await flowno.wait_readable(1099)
            finally:
                os.close(1099)
            os.write(writer, b"x")
            await flowno.wait_readable(reader)

    flowno.run(root())


# ----------------------------------------------------------------------------------------------------------- the loop


@posix
def test_a_task_that_waits_for_an_fd_is_no_deadlock() -> None:
    """Another process, or a thread, may write."""

    async def root() -> None:
        with pipe() as (reader, writer):
            thread = threading.Timer(0.05, os.write, (writer, b"x"))
            thread.start()
            await flowno.wait_readable(reader)
            thread.join()

    flowno.run(root())


@posix
def test_the_end_of_a_run_takes_a_wait_with_it() -> None:
    selector = CountingSelector()
    with pipe() as (reader, _):

        async def root() -> None:
            await spawn(flowno.wait_readable(reader))
            await sleep(0)

        with EventLoop(selector) as loop:
            loop.run_until_complete(root(), wait_for_spawned_tasks=False)
            assert reader in selector.masks
        assert not selector.masks
    selector.inner.close()


def test_waits_yield_their_commands() -> None:
    one, other = socket.socketpair()
    with one, other:

        async def root() -> None:
            for wait, command in zip(WAITS, (FdReadableCommand, FdWritableCommand), strict=True):
                coroutine: Any = wait(one)
                yielded = coroutine.send(None)
                assert type(yielded) is command
                assert yielded.fileobj is one
                assert repr(one) in repr(yielded)
                coroutine.close()

        flowno.run(root())
