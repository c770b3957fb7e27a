"""Handles as things: made from fds, duplicated, given away; and files sent through them."""

import errno
import gzip
import io
import os
import random
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import flowno
from flowno import BusyResourceError, ClosedResourceError, EventLoop, EventLoopError, SocketHandle, sleep, spawn
from flowno.core.event_loop.backend import SystemWorld
from tests.support.counting_selector import CountingSelector
from tests.support.fairness import another_task
from tests.support.loopback import fill, listening, pair, receive, tcp_pair

pytestmark = pytest.mark.usefixtures("backend")

has_unix_sockets = hasattr(socket, "AF_UNIX") and os.name != "nt"


# --------------------------------------------------------------------------------------------------------- socketpair


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_socketpair_gives_two_connected_handles() -> None:
    async def root() -> None:
        one, other = flowno.socketpair()
        with one, other:
            assert not one.socket.getblocking()
            assert not other.socket.getblocking()
            await one.sendAll(b"there")
            assert await other.recv(9) == b"there"
            await other.sendAll(b"back")
            assert await one.recv(9) == b"back"
            assert one.family == (socket.AF_UNIX if has_unix_sockets else socket.AF_INET)

    flowno.run(root())


@pytest.mark.skipif(not has_unix_sockets, reason="the pairs of this platform are always streams")
def test_socketpair_takes_a_family_and_a_type() -> None:
    async def root() -> None:
        one, other = flowno.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with one, other:
            assert (one.family, one.type, one.proto) == (socket.AF_UNIX, socket.SOCK_DGRAM, 0)
            for text in (b"first", b"second"):
                await one.send(text)
            assert [await other.recv(99) for _ in range(2)] == [b"first", b"second"]

    flowno.run(root())


def test_socketpair_asks_the_world_of_the_loop() -> None:
    asked: list[Any] = []

    class World(SystemWorld):
        def socketpair(self, *args: Any, **kwargs: Any) -> Any:
            asked.append(args)
            return socket.socketpair(*args, **kwargs)

    async def root() -> None:
        asked.clear()  # the waker of the loop
        one, other = flowno.socketpair()
        one.close()
        other.close()
        assert len(asked) == 1

    selector = CountingSelector()
    selector.world = World()
    with EventLoop(selector) as loop:
        loop.run_until_complete(root(), join=True)
    selector.inner.close()


def test_a_pair_that_cannot_be_had_is_an_error() -> None:
    with pytest.raises((OSError, ValueError)):
        flowno.socketpair(socket.AF_INET, socket.SOCK_RAW)


# --------------------------------------------------------------------------------------------- family, type and number


def test_a_handle_says_what_kind_of_socket_it_has() -> None:
    with flowno.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP) as handle:
        assert (handle.family, handle.type, handle.proto) == (
            socket.AF_INET,
            socket.SOCK_DGRAM,
            socket.IPPROTO_UDP,
        )
    assert handle.type == socket.SOCK_DGRAM, "also once it is closed"


# -------------------------------------------------------------------------------------------- from_fd, detach and dup


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_a_handle_that_is_detached_goes_on_as_another_made_from_its_fd() -> None:
    async def root() -> None:
        with pair() as (one, other):
            await other.sendAll(b"for the first")
            assert await one.recv(99) == b"for the first"
            fd = one.fileno()
            assert one.detach() == fd
            assert one.fileno() == -1
            with SocketHandle.from_fd(fd) as again:
                assert again.fileno() == fd
                assert (again.family, again.type) == (other.family, other.type)
                await other.sendAll(b"for the second")
                assert await again.recv(99) == b"for the second"
                with pytest.raises(ClosedResourceError):
                    await one.recv(9)
                one.close()
                await other.sendAll(b"x")
                assert await again.recv(9) == b"x", "closing the detached handle closed the fd"
            assert await other.recv(9) == b""

    flowno.run(root())


def test_from_fd_makes_the_socket_non_blocking() -> None:
    one, other = socket.socketpair()
    with other, SocketHandle.from_fd(one.detach()) as handle:
        assert handle.socket.gettimeout() == 0.0


def test_detaching_takes_the_registration_along_and_tells_who_waits() -> None:
    selector = CountingSelector()

    async def root() -> None:
        with pair(4096) as (one, _):
            fill(one)
            reader, writer = await spawn(one.recv(1)), await spawn(one.send(b"x"))
            fd = one.fileno()
            assert fd in selector.masks
            assert one.detach() == fd
            assert fd not in selector.masks
            for task in (reader, writer):
                with pytest.raises(ClosedResourceError) as caught:
                    await task.join()
                assert caught.value.errno == errno.EBADF
            os.close(fd) if os.name != "nt" else socket.close(fd)

    with EventLoop(selector) as loop:
        loop.run_until_complete(root(), join=True)
    selector.inner.close()


def test_a_closed_handle_has_nothing_to_detach_or_to_duplicate() -> None:
    with pair() as (one, other):
        one.close()
        other.socket.close()
        for handle in (one, other):
            for operation in (handle.detach, handle.dup):
                with pytest.raises(ClosedResourceError):
                    operation()


def test_a_handle_in_use_by_the_loop_of_another_thread_is_not_detached() -> None:
    async def root() -> None:
        with pair() as (one, other):
            waiter = await spawn(one.recv(9))
            with pytest.raises(EventLoopError, match="another thread"):
                await in_thread(one.detach)
            await other.sendAll(b"x")
            assert await waiter.join() == b"x"

    flowno.run(root())


async def in_thread(function: Callable[[], Any]) -> Any:
    """What a function gives in another thread, while this loop waits for it."""
    from flowno.core.event_loop.commands import ThreadCommand

    class Call:
        def __await__(self) -> Any:
            return (yield ThreadCommand(function, ()))

    return await Call()


@pytest.mark.parametrize(
    ("fd", "error"),
    [
        (None, TypeError),
        ("1", TypeError),
        (1.0, TypeError),
        (-1, ValueError),
        (2**32, ValueError),
        (2**64, ValueError),
        (1_000_000, OSError),
    ],
    ids=["None", "str", "float", "negative", "the number of another", "too large", "not open"],
)
def test_from_fd_of_what_is_no_fd(fd: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"fd|1000000"):
        SocketHandle.from_fd(fd)


@pytest.mark.skipif(os.name == "nt", reason="fds of files and of sockets are different things on Windows")
def test_from_fd_of_a_file_leaves_it_open(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        with pytest.raises(OSError, match=str(file.fileno())) as caught:
            SocketHandle.from_fd(file.fileno())
        assert caught.value.errno == errno.ENOTSOCK
        file.write(b"x")


def test_from_fd_of_a_class_that_cannot_be_made_so_leaves_the_fd_open() -> None:
    class Named(SocketHandle):
        def __init__(self, socket: socket.socket, name: str) -> None:
            super().__init__(socket)

    one, other = socket.socketpair()
    with one, other:
        with pytest.raises(TypeError, match="name"):
            Named.from_fd(one.fileno())
        one.send(b"x")
        assert other.recv(9) == b"x"


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_a_duplicate_is_another_fd_of_the_same_connection() -> None:
    async def root() -> None:
        with pair() as (one, other):
            await other.sendAll(b"x")
            await one.recv(9)
            with one.dup() as again:
                assert again.fileno() not in (-1, one.fileno())
                assert not again.socket.getblocking()
                one.close()
                reader = await spawn(again.recv(99))
                await other.sendAll(b"to the duplicate")
                assert await reader.join() == b"to the duplicate"
            assert await other.recv(9) == b""

    flowno.run(root())


def test_a_handle_and_its_duplicate_wait_independently() -> None:
    async def root() -> None:
        with pair() as (one, other), one.dup() as again:
            readers = [await spawn(one.recv(1)), await spawn(again.recv(1))]
            await other.sendAll(b"ab")
            assert {await reader.join() for reader in readers} == {b"a", b"b"}

    flowno.run(root())


# ----------------------------------------------------------------------------------------------- half-close, options


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_a_connection_is_closed_one_half_at_a_time() -> None:
    async def root() -> None:
        with tcp_pair() as (one, other):
            one.shutdown(socket.SHUT_WR)
            assert await other.recv(9) == b""
            await other.sendAll(b"the answer")
            assert await one.recv(99) == b"the answer"
            with pytest.raises((BrokenPipeError, ConnectionError)):
                await one.send(b"x")
            waiter = await spawn(one.recv(9))
            other.shutdown(socket.SHUT_WR)
            assert await waiter.join() == b""

    flowno.run(root())


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="this platform has no SO_REUSEPORT")
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])
def test_several_sockets_can_share_a_port(kind: int) -> None:
    async def root() -> None:
        with flowno.socket(socket.AF_INET, kind) as one, flowno.socket(socket.AF_INET, kind) as other:
            for handle in (one, other):
                handle.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind(("127.0.0.1", 0))
            other.bind(one.getsockname())
            if kind == socket.SOCK_STREAM:
                one.listen()
                other.listen()
            with (
                flowno.socket(socket.AF_INET, kind) as third,
                pytest.raises(OSError, match=str(one.getsockname()[1])),
            ):
                third.bind(one.getsockname())

    flowno.run(root())


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
def test_one_ipv6_socket_serves_both_families_where_it_is_told_to() -> None:
    async def root() -> None:
        with flowno.socket(socket.AF_INET6) as listener, flowno.socket() as client:
            try:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                listener.bind(("::", 0))
            except OSError as error:
                pytest.skip(f"this machine has no IPv6: {error}")
            listener.listen()
            await flowno.connect(client, ("127.0.0.1", listener.getsockname()[1]))
            connection, address = await listener.accept()
            with connection:
                assert address[0] == "::ffff:127.0.0.1"
                assert "[::ffff:127.0.0.1]:" in repr(connection)

    flowno.run(root())


# ------------------------------------------------------------------------------------------------------------ sendfile

CONTENT = random.Random(1).randbytes(700_001)  # more than two of the pieces that a file is sent in


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@contextmanager
def system_says(monkeypatch: pytest.MonkeyPatch, how: str) -> Iterator[list[int]]:
    """How os.sendfile behaves, and the sizes that it was asked for."""
    calls: list[int] = []
    system_call = getattr(os, "sendfile", None)
    if how == "missing":
        monkeypatch.delattr(os, "sendfile", raising=False)
    elif how != "present":

        def refuse(*args: Any) -> int:
            calls.append(args[-1])
            raise OSError(getattr(errno, how), os.strerror(getattr(errno, how)))

        monkeypatch.setattr(os, "sendfile", refuse)
    else:

        def sendfile(out: int, source: int, offset: int, size: int) -> int:
            calls.append(size)
            assert system_call is not None
            sent: int = system_call(out, source, offset, size)
            return sent

        monkeypatch.setattr(os, "sendfile", sendfile)
    yield calls


WAYS = ["missing", *(("present", "EINVAL", "ENOSYS", "ENOTSOCK") if hasattr(os, "sendfile") else ())]
each_way = pytest.mark.parametrize("how", WAYS)


@each_way
@pytest.mark.parametrize(
    ("offset", "count", "expected"),
    [
        (0, None, CONTENT),
        (5, None, CONTENT[5:]),
        (5, 300_000, CONTENT[5:300_005]),
        (0, 3, CONTENT[:3]),
        (600_000, 10_000_000, CONTENT[600_000:]),
        (len(CONTENT), None, b""),
        (len(CONTENT) + 5, 9, b""),
    ],
    ids=["whole", "from", "part", "little", "beyond", "nothing", "behind"],
)
def test_a_file_is_sent(
    how: str, offset: int, count: int | None, expected: bytes, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def root() -> None:
        with pair() as (one, other), path.open("rb") as file:
            reader = await spawn(receive(other, len(expected) + 1))
            assert await one.sendfile(file, offset, count) == len(expected)
            assert one.bytes_sent == len(expected)
            assert file.tell() == offset + len(expected)
            one.shutdown(socket.SHUT_WR)
            assert await reader.join() == expected

    with system_says(monkeypatch, how) as calls:
        flowno.run(root())
        assert bool(calls) == (how != "missing")
        assert all(size <= 262_144 for size in calls)
        if how not in ("present", "missing"):
            assert len(calls) == 1


def test_a_large_file_goes_through_a_small_buffer_while_the_other_tasks_run(path: Path) -> None:
    async def root() -> None:
        with pair(65536) as (one, other), path.open("rb") as file:
            async with another_task() as turns:
                sender = await spawn(one.sendfile(file))
                assert await receive(other, len(CONTENT)) == CONTENT
                assert await sender.join() == len(CONTENT)
                assert turns.taken > 4

    flowno.run(root())


class Stream:
    """The least that can be read: no fd, no seeking."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)


def files(path: Path) -> dict[str, Callable[[], Any]]:
    def written() -> Any:
        file = path.open("r+b")
        file.write(CONTENT[:10][::-1])
        return file

    def compressed() -> Any:
        with gzip.open(path.with_suffix(".gz"), "wb") as file:
            file.write(CONTENT)
        return gzip.open(path.with_suffix(".gz"), "rb")

    def temporary() -> Any:
        file = tempfile.NamedTemporaryFile()  # noqa: SIM115
        file.write(CONTENT)
        return file

    return {
        "unbuffered": lambda: path.open("rb", buffering=0),
        "unflushed": written,
        "compressed": compressed,
        "temporary": temporary,
        "in memory": lambda: io.BytesIO(CONTENT),
        "a stream": lambda: Stream(CONTENT),
    }


@pytest.mark.parametrize("kind", ["unbuffered", "unflushed", "compressed", "temporary", "in memory", "a stream"])
def test_what_is_sent_is_what_reading_the_file_would_give(kind: str, path: Path) -> None:
    expected = CONTENT[:10][::-1] + CONTENT[10:] if kind == "unflushed" else CONTENT

    async def root() -> None:
        file = files(path)[kind]()
        with pair() as (one, other):
            try:
                reader = await spawn(receive(other, len(expected)))
                assert await one.sendfile(file) == len(expected)
                assert await reader.join() == expected
                assert kind == "a stream" or file.tell() == len(expected)
            finally:
                getattr(file, "close", bool)()

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@each_way
def test_a_cancelled_sendfile_says_how_far_it_came(how: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def root() -> None:
        with pair(65536) as (one, other), path.open("rb") as file:
            sender = await spawn(one.sendfile(file, 7))
            await other.recv(1000)
            await sleep(0)
            assert await sender.cancel() is None
            assert 0 < one.bytes_sent < len(CONTENT)
            assert file.tell() == 7 + one.bytes_sent
            rest = await spawn(one.sendfile(file, file.tell()))
            received = await receive(other, len(CONTENT) - 7 - 1000)
            await rest.join()
            assert received == CONTENT[1007:]

    with system_says(monkeypatch, how):
        flowno.run(root())


@pytest.mark.not_under_faults(reason="it takes EAGAIN for the sign of a full socket")
@each_way
def test_a_sendfile_owns_the_write_side_to_its_end(how: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def root() -> None:
        with pair(65536) as (one, other), path.open("rb") as file:
            sender = await spawn(one.sendfile(file))
            received = b""
            while not sender.is_finished and len(received) < len(CONTENT):
                with pytest.raises(BusyResourceError):
                    await one.send(b"in between")
                received += await other.recv(1 << 20)
            assert received + await receive(other, len(CONTENT) - len(received)) == CONTENT
            await sender.join()
            fill(one)
            sender = await spawn(one.send(b"x"))
            with pytest.raises(BusyResourceError):
                await one.sendfile(file)
            await sender.cancel()

    with system_says(monkeypatch, how):
        flowno.run(root())


@each_way
def test_an_error_in_the_middle_of_a_file_is_raised_and_counted(
    how: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def root() -> None:
        with pair(65536) as (one, other), path.open("rb") as file:
            sender = await spawn(one.sendfile(file))
            await other.recv(1)
            other.close()
            with pytest.raises((BrokenPipeError, ConnectionError)):
                await sender.join()
            assert file.tell() == one.bytes_sent > 0

    with system_says(monkeypatch, how):
        flowno.run(root())


@each_way
def test_a_handle_closed_under_a_sendfile_raises_in_it(how: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def root() -> None:
        with pair(65536) as (one, _), path.open("rb") as file:
            sender = await spawn(one.sendfile(file))
            one.close()
            with pytest.raises(ClosedResourceError):
                await sender.join()
            with pytest.raises(ClosedResourceError):
                await one.sendfile(file)

    with system_says(monkeypatch, how):
        flowno.run(root())


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((-1,), ValueError, "offset"),
        ((1.5,), TypeError, "offset"),
        (("0",), TypeError, "offset"),
        ((0, 0), ValueError, "count"),
        ((0, -1), ValueError, "count"),
        ((0, 1.5), TypeError, "count"),
    ],
)
def test_a_wrong_part_of_a_file_is_named(args: Any, error: type[Exception], message: str, path: Path) -> None:
    async def root() -> None:
        with pair() as (one, _), path.open("rb") as file:
            file.seek(3)
            with pytest.raises(error, match=message):
                await one.sendfile(file, *args)
            assert file.tell() == 3

    flowno.run(root())


def test_a_wrong_file_or_socket_is_named(path: Path) -> None:
    async def root() -> None:
        with pair() as (one, _), flowno.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            with path.open() as text, pytest.raises(ValueError, match="binary"):
                await one.sendfile(text)  # type: ignore[arg-type]
            with path.open("rb") as file, pytest.raises(ValueError, match="stream"):
                await datagrams.sendfile(file)
            with pytest.raises(ValueError, match="seek"):
                await one.sendfile(Stream(b"x"), 1)  # type: ignore[arg-type]
            with path.open("r+b", buffering=0) as closed:
                pass
            with pytest.raises(ValueError, match="closed"):
                await one.sendfile(closed)
            with path.open("ab") as unreadable, pytest.raises(io.UnsupportedOperation):
                await one.sendfile(unreadable)

    flowno.run(root())


# ---------------------------------------------------------------------------------------------------------- listening


def test_an_accepted_connection_can_be_given_to_another_handle() -> None:
    """As a server does that hands connections to others."""

    async def root() -> None:
        with listening() as listener, flowno.socket() as client:
            await flowno.connect(client, listener.getsockname())
            connection, _ = await listener.accept()
            with SocketHandle.from_fd(connection.detach()) as worker:
                await client.sendAll(b"x")
                assert await worker.recv(9) == b"x"

    flowno.run(root())
