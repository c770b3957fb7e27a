"""AF_UNIX: streams, datagrams, abstract names, and fds that are passed."""

import errno
import os
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import flowno
from flowno import ClosedResourceError, EventLoop, SocketHandle, sleep, spawn
from tests.support.loopback import pair
from tests.support.virtual_time import VirtualTimeSelector

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(
        not hasattr(socket, "AF_UNIX") or os.name == "nt", reason="the Python of this platform has no Unix sockets"
    ),
]

Operation = Callable[[str], Coroutine[Any, Any, None]]

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has this")


def unix(type: int = socket.SOCK_STREAM) -> SocketHandle:
    return flowno.socket(socket.AF_UNIX, type)


@contextmanager
def datagram_pair(folder: Path) -> Iterator[tuple[SocketHandle, SocketHandle]]:
    with unix(socket.SOCK_DGRAM) as one, unix(socket.SOCK_DGRAM) as other:
        one.bind(str(folder / "one"))
        other.bind(str(folder / "other"))
        yield one, other


# --------------------------------------------------------------------------------------------------------- to connect


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize("blocking", [False, True], ids=["await connect", "connect"])
@pytest.mark.parametrize("name", ["path", "bytes", pytest.param("abstract", marks=on_linux)])
def test_a_stream_is_connected_by_its_name(name: str, blocking: bool, tmp_path: Path) -> None:
    address: Any = {
        "path": str(tmp_path / "sock"),
        "bytes": os.fsencode(tmp_path / "sock"),
        "abstract": f"\0{tmp_path}",
    }[name]

    async def root() -> None:
        with unix() as listener, unix() as client:
            listener.bind(address)
            listener.listen()
            if blocking:
                client.connect(address)
            else:
                await flowno.connect(client, address)
            connection, peer = await listener.accept()
            with connection:
                assert peer in ("", b"", None)
                await client.sendAll(b"ping")
                assert await connection.recv(9) == b"ping"
                await connection.sendAll(b"pong")
                assert await client.recv(9) == b"pong"
                client.shutdown(socket.SHUT_WR)
                assert await connection.recv(9) == b""
            shown = f"@{tmp_path}" if name == "abstract" else str(tmp_path / "sock")
            assert shown in repr(listener)
            assert shown in repr(client)

    flowno.run(root())


@on_linux
def test_a_full_backlog_is_waited_out() -> None:
    """Linux answers EAGAIN, and reports no readiness when there is room."""

    async def root() -> None:
        with unix() as listener:
            listener.bind("")
            listener.listen(0)
            name = listener.getsockname()
            clients = [unix() for _ in range(4)]
            try:
                tasks = [await spawn(flowno.connect(client, name)) for client in clients]
                await sleep(0.1)
                assert not all(task.is_finished for task in tasks)
                for _ in clients:
                    connection, _ = await listener.accept()
                    connection.close()
                for task in tasks:
                    await task.join()
            finally:
                for client in clients:
                    client.close()

    with EventLoop(VirtualTimeSelector()) as loop:
        loop.run_until_complete(root(), join=True)
        loop.selector.inner.close()  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------------------- datagrams


def test_a_datagram_comes_with_the_path_of_its_sender(tmp_path: Path) -> None:
    async def root() -> None:
        with datagram_pair(tmp_path) as (one, other):
            receiver = await spawn(other.recvfrom(9))
            await one.sendto(b"first", other.getsockname())
            await one.sendmsg([b"sec", b"ond"], (), 0, other.getsockname())
            assert await receiver.join() == (b"first", str(tmp_path / "one"))
            assert await other.recvfrom(9) == (b"second", str(tmp_path / "one"))
            await flowno.connect(one, other.getsockname())
            await one.send(b"third")
            assert await other.recv(9) == b"third"

    flowno.run(root())


@on_linux
def test_abstract_names_do_for_datagrams() -> None:
    async def root() -> None:
        with unix(socket.SOCK_DGRAM) as one, unix(socket.SOCK_DGRAM) as other:
            for handle in (one, other):
                handle.bind("")  # the system chooses one, unix(7)
            await one.sendto(b"x", other.getsockname())
            assert await other.recvfrom(9) == (b"x", one.getsockname())

    flowno.run(root())


@on_linux
def test_a_receiver_without_room_is_waited_for_without_spinning(tmp_path: Path) -> None:
    """The sender's socket is reported as writable all the while."""
    selector = VirtualTimeSelector(cost=0.001)

    async def root() -> None:
        with datagram_pair(tmp_path) as (one, other):
            count = 0
            while True:
                try:
                    one.socket.sendto(b"fill", other.getsockname())
                except BlockingIOError:
                    break
                count += 1
            sender = await spawn(one.sendto(b"last", other.getsockname()))
            before = selector.calls["select"]
            await sleep(0.1)
            assert not sender.is_finished
            assert selector.calls["select"] - before < 40
            received = [await other.recv(9) for _ in range(count)]
            assert await sender.join() == 4
            assert [*received, await other.recv(9)] == [b"fill"] * count + [b"last"]
            for _ in range(count):
                await one.sendto(b"fill", other.getsockname())
            cancelled = await spawn(one.sendto(b"never", other.getsockname()))
            await sleep(0)
            await cancelled.cancel()
            assert {await other.recv(9) for _ in range(count)} == {b"fill"}
            with pytest.raises(BlockingIOError):
                other.socket.recv(9)

    with EventLoop(selector) as loop:
        loop.run_until_complete(root(), join=True)
    selector.inner.close()


# --------------------------------------------------------------------------------------------------------- passing fds


def in_pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.write(writer, b"through the pipe")
    return reader, writer


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_fds_are_passed_with_the_data() -> None:
    async def root() -> None:
        with pair() as (one, other):
            reader, writer = in_pipe()
            receiver = await spawn(other.recv_fds(9, 4))
            assert await one.send_fds([b"da", b"ta"], [reader, writer]) == 4
            os.close(reader)
            os.close(writer)
            data, fds, flags, _ = await receiver.join()
            try:
                assert (data, len(fds), flags) == (b"data", 2, 0)
                assert os.read(fds[0], 99) == b"through the pipe"
                assert not any(os.get_inheritable(fd) for fd in fds)
            finally:
                for fd in fds:
                    os.close(fd)

    flowno.run(root())


def test_fds_are_passed_by_datagrams(tmp_path: Path) -> None:
    async def root() -> None:
        with datagram_pair(tmp_path) as (one, other):
            reader, writer = in_pipe()
            await one.send_fds([b"x"], iter([reader]), 0, other.getsockname())
            os.close(reader)
            os.close(writer)
            data, (fd,), _, address = await other.recv_fds(9, 1)
            assert (data, address) == (b"x", str(tmp_path / "one"))
            assert os.read(fd, 99) == b"through the pipe"
            os.close(fd)

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_data_without_fds_and_the_end_come_through() -> None:
    async def root() -> None:
        with pair() as (one, other):
            await one.sendAll(b"plain")
            assert (await other.recv_fds(9, 4))[:2] == (b"plain", [])
            one.shutdown(socket.SHUT_WR)
            assert (await other.recv_fds(9, 4))[:2] == (b"", [])

    flowno.run(root())


def test_more_fds_than_were_asked_for_are_closed_and_said_to_be() -> None:
    async def root() -> None:
        with pair() as (one, other):
            reader, writer = in_pipe()
            await one.send_fds([b"x"], [reader, writer, reader])
            os.close(reader)
            os.close(writer)
            data, fds, flags, _ = await other.recv_fds(9, 1)
            assert (data, len(fds)) == (b"x", 1)
            assert flags & socket.MSG_CTRUNC
            os.close(fds[0])

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_a_handle_is_passed_and_used_at_the_other_end() -> None:
    async def root() -> None:
        with pair() as (one, other), pair() as (left, right):
            await one.send_fds([b"x"], [left.fileno()])
            left.close()
            _, (fd,), _, _ = await other.recv_fds(9, 1)
            with SocketHandle.from_fd(fd) as again:
                await right.sendAll(b"hello")
                assert await again.recv(9) == b"hello"

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it counts turns of the loop, or what is done in one of them")
def test_cancelling_who_waits_for_fds_leaks_none() -> None:
    """The leak check of the suite sees what this one left open."""

    async def receive(handle: SocketHandle) -> tuple[bytes, list[int]]:
        data, fds, _, _ = await handle.recv_fds(9, 1)
        return data, fds

    async def root() -> None:
        with pair() as (one, other):
            waiter = await spawn(receive(other))
            assert await waiter.cancel() is None
            waiter = await spawn(receive(other))
            reader, writer = in_pipe()
            await one.send_fds([b"x"], [reader])
            os.close(reader)
            os.close(writer)
            await sleep(0)  # the waiter is ready, behind this task
            assert not waiter.is_finished
            result = await waiter.cancel()
            assert result is not None
            data, (fd,) = result
            assert data == b"x"
            assert os.read(fd, 99) == b"through the pipe"
            os.close(fd)

    flowno.run(root())


def test_the_rights_can_be_received_by_hand() -> None:
    async def root() -> None:
        with pair() as (one, other):
            reader, writer = in_pipe()
            await one.send_fds([b"x"], [reader])
            os.close(writer)
            data, [(level, kind, content)], _, _ = await other.recvmsg(9, socket.CMSG_LEN(4))
            assert (data, level, kind) == (b"x", socket.SOL_SOCKET, socket.SCM_RIGHTS)
            fd = int.from_bytes(content, sys.byteorder)
            assert os.path.sameopenfile(fd, reader)
            assert os.get_inheritable(fd), "by hand, flags are the caller's business"
            os.close(fd)
            os.close(reader)

    flowno.run(root())


# ----------------------------------------------------------------------------------------------------------- bad input


LONG = "/tmp/" + 200 * "x"


async def bind(path: str) -> None:
    with unix() as handle:
        handle.bind(path)


async def connect(path: str) -> None:
    with unix() as handle:
        handle.connect(path)


async def await_connect(path: str) -> None:
    with unix() as handle:
        await flowno.connect(handle, path)


async def sendto(path: str) -> None:
    with unix(socket.SOCK_DGRAM) as handle:
        await handle.sendto(b"x", path)


async def sendmsg(path: str) -> None:
    with unix(socket.SOCK_DGRAM) as handle:
        await handle.sendmsg([b"x"], (), 0, path)


operations = pytest.mark.parametrize("operation", [bind, connect, await_connect, sendto, sendmsg])


@operations
def test_a_path_that_is_too_long_is_named(operation: Operation) -> None:
    with pytest.raises(OSError, match="path too long: '/tmp/xxx") as caught:
        flowno.run(operation(LONG))
    assert (caught.value.errno, caught.value.filename) == (errno.ENAMETOOLONG, LONG)


@operations
def test_a_path_in_a_folder_that_is_not_there_is_named(operation: Operation, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        flowno.run(operation(str(tmp_path / "nowhere" / "sock")))


def test_a_wrong_fd_is_an_error_of_the_sender_only() -> None:
    async def root() -> None:
        with pair() as (one, other):
            with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as caught:
                await one.send_fds([b"x"], [1_000_000])
            assert not isinstance(caught.value, ClosedResourceError)
            with pytest.raises(TypeError):
                one.send_fds([b"x"], ["1"])  # type: ignore[list-item]
            await one.sendAll(b"y")
            assert await other.recv(9) == b"y"

    flowno.run(root())
