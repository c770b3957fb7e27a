"""What accept passes over, and what it raises."""

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import flowno
from flowno import SocketHandle, sleep, spawn
from tests.conftest import RunPython

if sys.platform != "win32":
    pass

pytestmark = pytest.mark.usefixtures("backend")


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
          "ENETUNREACH", "ENOTCONN"),
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


@pytest.mark.not_under_faults(reason="it counts calls")
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
