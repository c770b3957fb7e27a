"""How connections come about: what is tried to reach a peer, and what is accepted."""

from __future__ import annotations

import errno
import os
import socket as _socket
import sys
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from .addresses import AF_UNIX, resolve
from .commands import Command, SleepCommand, SocketConnectCommand

if TYPE_CHECKING:
    from .addresses import Address
    from .fd_table import FdRecord
    from .sockets import SocketHandle

__all__ = ["accept_now", "attempt", "connect_blocking", "pauses", "ran_out_of_time", "system_error"]

#: The attempt goes on while we wait, connect(2). EWOULDBLOCK is what Windows says.
_IN_PROGRESS = frozenset({errno.EINPROGRESS, errno.EINTR, getattr(errno, "WSAEWOULDBLOCK", errno.EINPROGRESS)})

#: A connection that failed before it was accepted says nothing about the listening socket, accept(2): the next one is
#: awaited. EPERM is a firewall's refusal; the network errors were pending on the new socket, and Linux passes them on.
#: EOPNOTSUPP, which the manual has among them, is not here: it is also what a socket says that cannot listen at all.
#: ENOTCONN is what Wine says, as its accept() asks for the address of a peer that has reset the connection.
_CONNECTION_FAILED = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED", "EPROTO", "EPERM", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH",
        "ENETUNREACH", "ETIMEDOUT", "ECONNRESET", "ENOTCONN",
    )
    if hasattr(errno, name)
)  # fmt: skip


def pauses() -> Iterator[SleepCommand]:
    """The waits between tries where the system reports no readiness that could be waited for.

    A Unix socket of Linux does not say when the queue of a receiver that it is not connected to, or the backlog of a
    server, has room again. Each pause is twice as long as the one before, up to a limit.
    """
    seconds = 0.001
    while True:
        yield SleepCommand(seconds)
        seconds = min(2 * seconds, 0.064)


def attempt(handle: SocketHandle, record: FdRecord, address: Address) -> Generator[Command, Any, None]:
    """Connect, for a task that owns both directions of the handle."""
    try:
        if handle.socket.type == _socket.SOCK_STREAM and _is_connected(handle.socket):
            raise system_error(errno.EISCONN)  # Linux says so only the second time
        resolved = yield from resolve(handle.socket, address)
        code = handle.socket.connect_ex(resolved)
        if code == errno.ECONNABORTED:  # Linux says once more that an earlier attempt has failed
            code = handle.socket.connect_ex(resolved)
        pause = pauses()
        while code == errno.EAGAIN and handle.socket.family == AF_UNIX:  # the backlog is full, and nothing tells
            yield next(pause)
            code = handle.socket.connect_ex(resolved)
        if code in _IN_PROGRESS:
            command = SocketConnectCommand(handle, record)
            outcome = None
            while outcome is None:
                yield command
                outcome = _outcome(handle.socket)
            code = outcome
        if code:
            raise system_error(code)
    except OSError as error:
        raise handle._failure(error, "connect", address) from None
    except TypeError as error:
        reason = str(error).removeprefix("connect_ex(): ")
        raise TypeError(f"connect() cannot take {address!r} for an address: {reason}") from None


def _outcome(sock: _socket.socket) -> int | None:
    """What has become of an attempt to connect: an errno, 0 for success, None while it goes on."""
    code: int = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
    if code or _is_connected(sock):
        return code
    # Mostly a readiness that meant nothing. But a peer can also have gone already, which Wine tells by neither of
    # the two: there is no error and no address any more, and still an end of the stream.
    try:
        sock.recv(1, _socket.MSG_PEEK)
    except BlockingIOError:
        return None
    except OSError as error:
        return None if error.errno == errno.ENOTCONN else error.errno
    return 0


def _is_connected(sock: _socket.socket) -> bool:
    """Whether there is a peer."""
    try:
        sock.getpeername()
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        return False
    return True


def system_error(code: int) -> OSError:
    """What a call of the system raises that fails with this errno, for a call that returns it instead.

    On Windows the errors of sockets have numbers of their own, and their words are not those that C has.
    """
    if sys.platform == "win32":
        from ctypes import WinError

        return WinError(code)
    return OSError(code, os.strerror(code))


def connect_blocking(handle: SocketHandle, address: Address, seconds: float) -> None:
    """Connect while the loop stands still, for so many seconds at most."""
    try:
        handle.socket.settimeout(seconds)
        try:
            handle.socket.connect(address)
        finally:
            handle.socket.setblocking(False)
    except OSError as error:
        if ran_out_of_time(error):
            raise TimeoutError(
                f"connecting to {address!r} took longer than connect_timeout, {seconds:g} s; "
                "if the server runs in this loop, use await flowno.connect"
            ) from None
        raise handle._failure(error, "connect", address) from None


def ran_out_of_time(error: BaseException) -> bool:
    """Whether that is the end of ``settimeout()``, which Python raises without an errno. ETIMEDOUT is the system's."""
    return isinstance(error, TimeoutError) and error.errno is None


def accept_now(handle: SocketHandle) -> tuple[SocketHandle, Address] | None:
    """The next connection, or None where there is none, or it is one that failed: then there may be more."""
    try:
        connection, address = handle.socket.accept()
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno in _CONNECTION_FAILED and handle._fileno() >= 0:
            return None
        raise handle._failure(error, "accept") from None
    return handle._accepted(connection), address
