"""The sockets of handles whose event loop has faults: they receive and send less than they could, or say EAGAIN.

A handle comes to a loop by its first operation, or with a server that has accepted it. So as long as any loop of the
process has faults, these ways in are exchanged, and a socket that comes to a loop with faults is of another class from
then on: one that is derived from its own, with the methods below in the place of those of the same names. It stays the
object that the program knows. What it accepts has faults at once.

No answer is made up where the kernel can give it: a short send sends less, a reset exchanges the connection for one
that its peer has reset, and the call that comes then asks the system.
"""

from __future__ import annotations

import errno
import os
import select
import socket as system_socket
import struct
import weakref
from collections.abc import Callable
from functools import wraps
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING, Any, Final, TypeVar

from flowno.core.event_loop.exchange import Exchange, Layer, Replacement
from flowno.core.event_loop.running import here
from flowno.core.event_loop.sockets import SocketHandle

from .dice import Dice
from .faults import LoopFaults

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from flowno.core.event_loop.fd_table import FdTable

__all__ = ["begin", "end"]

T = TypeVar("T")

#: Has close(2) send a reset, and drop what was not sent yet, socket(7). Windows has two shorts in its struct linger.
_RESET_AT_CLOSE: Final = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)

#: Bytes that are looked at to see how much there is to receive.
_LONGEST_LOOK: Final = 65_536

#: Milliseconds within which the reset of a connection within this machine arrives.
_PATIENCE: Final = 5000

_OUT_OF_DESCRIPTORS: Final = {"emfile": errno.EMFILE, "enfile": errno.ENFILE, "enobufs": errno.ENOBUFS}


class _SocketFaults:
    """What is known of a socket that has faults.

    Args:
        loop: The faults of its loop.
        name: What it is, in words that are the same in each run.
    """

    def __init__(self, loop: LoopFaults, name: str) -> None:
        self.loop = loop
        self.name = name
        self.receiving = Dice(loop.faults, f"receiving by {name}")
        self.sending = Dice(loop.faults, f"sending by {name}")
        self.accepted = 0
        self.is_reset = False

    @staticmethod
    def of(sock: system_socket.socket) -> _SocketFaults | None:
        """Those of a socket, which are over with its loop; a call that blocks is the program's, and has none."""
        mine = _sockets.get(sock)
        return mine if mine is not None and not mine.loop.is_over and sock.gettimeout() == 0 else None

    def before(self, sock: system_socket.socket, dice: Dice, readiness: int) -> None:
        """What may happen to any call that receives or sends, or accepts.

        Raises:
            BlockingIOError: EAGAIN is due. The selector will say that the socket is ready, as it is; of one that is not
                the system says the same, or has an error to tell.
        """
        if dice.is_due("reset") and not self.is_reset and _is_connected_stream(sock):
            self._reset(sock)
            self.is_reset = True
            dice.record("reset")
        elif dice.inject_eagain(lambda: _is_ready(sock, readiness)):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def size_to_receive(self, sock: system_socket.socket, size: int) -> int:
        """How many bytes are received where ``size`` were asked for."""
        dice = self.receiving
        self.before(sock, dice, EVENT_READ)
        if size > 1 and sock.type == system_socket.SOCK_STREAM:
            kind = "byte" if dice.is_due("byte") else "short" if dice.is_due("short") else None
            if kind is not None and (there := min(_bytes_there(sock), size)) > 1:
                dice.record(kind)
                return 1 if kind == "byte" else dice.fewer(there)
        return size

    def size_to_send(self, sock: system_socket.socket, size: int) -> int:
        """How many bytes are sent where there are ``size``."""
        dice = self.sending
        self.before(sock, dice, EVENT_WRITE)
        if dice.inject("enobufs"):
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        if size > 1 and sock.type == system_socket.SOCK_STREAM:
            if dice.inject("byte"):
                return 1
            if dice.inject("short"):
                return dice.fewer(size)
        return size

    def before_accept(self, sock: system_socket.socket) -> None:
        """What accept says before it looks for a connection, accept(2)."""
        for kind, code in _OUT_OF_DESCRIPTORS.items():
            if self.receiving.inject(kind):
                raise OSError(code, os.strerror(code))
        self.before(sock, self.receiving, EVENT_READ)

    def take(self, connection: system_socket.socket) -> None:
        """A connection was accepted.

        Raises:
            ConnectionAbortedError: It was reset before.
        """
        self.accepted += 1
        if self.receiving.inject("aborted"):
            _reset_at_close(connection)
            connection.close()
            raise ConnectionAbortedError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))
        _sockets[connection] = _SocketFaults(self.loop, f"connection {self.accepted} of {self.name}")
        connection.__class__ = _faulty_class(type(connection))

    def _reset(self, sock: system_socket.socket) -> None:
        """Have the peer see that the connection was reset, and this side, too."""
        fd = sock.fileno()
        with _broken_connection(sock.family) as broken:
            _reset_at_close(sock)
            inheritable = os.get_inheritable(fd)
            self.loop.selector.reopen(fd, lambda: os.dup2(broken.fileno(), fd, inheritable))


#: The sockets that have faults.
_sockets: weakref.WeakKeyDictionary[system_socket.socket, _SocketFaults] = weakref.WeakKeyDictionary()


# ------------------------------------------------------------------------------------------------- methods of a socket


def _recv(own: Callable[..., T]) -> Callable[..., T]:
    """Of ``recv(size, ...)``, and whatever else is asked for a number of bytes first."""

    @wraps(own)
    def recv(self: system_socket.socket, size: int, *args: Any) -> T:
        mine = _SocketFaults.of(self)
        return own(self, size if mine is None else mine.size_to_receive(self, size), *args)

    return recv


def _recv_into(own: Callable[..., T]) -> Callable[..., T]:
    """Of ``recv_into(buffer, size, ...)``."""

    @wraps(own)
    def recv_into(self: system_socket.socket, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> T:
        mine = _SocketFaults.of(self)
        if mine is not None:
            nbytes = mine.size_to_receive(self, nbytes or memoryview(buffer).nbytes)
        return own(self, buffer, nbytes, flags)

    return recv_into


def _recvmsg_into(own: Callable[..., T]) -> Callable[..., T]:
    @wraps(own)
    def recvmsg_into(self: system_socket.socket, buffers: list[Buffer], *args: Any) -> T:
        mine = _SocketFaults.of(self)
        if mine is not None:
            size = sum(memoryview(buffer).nbytes for buffer in buffers)
            buffers = _first(buffers, mine.size_to_receive(self, size))
        return own(self, buffers, *args)

    return recvmsg_into


def _send(own: Callable[..., T]) -> Callable[..., T]:
    """Of ``send(data, ...)`` and ``sendto(data, ...)``."""

    @wraps(own)
    def send(self: system_socket.socket, data: Buffer, *args: Any) -> T:
        mine = _SocketFaults.of(self)
        if mine is not None:
            whole = memoryview(data)
            size = mine.size_to_send(self, whole.nbytes)
            if size < whole.nbytes:
                data = whole.cast("B")[:size]
        return own(self, data, *args)

    return send


def _sendmsg(own: Callable[..., T]) -> Callable[..., T]:
    @wraps(own)
    def sendmsg(self: system_socket.socket, buffers: list[Buffer], *args: Any) -> T:
        mine = _SocketFaults.of(self)
        if mine is not None:
            size = sum(memoryview(buffer).nbytes for buffer in buffers)
            buffers = _first(buffers, mine.size_to_send(self, size))
        return own(self, buffers, *args)

    return sendmsg


def _accept(own: Callable[..., T]) -> Callable[..., T]:
    @wraps(own)
    def accept(self: system_socket.socket) -> T:
        mine = _SocketFaults.of(self)
        if mine is None:
            return own(self)
        mine.before_accept(self)
        accepted: Any = own(self)
        mine.take(accepted[0])
        return accepted  # type: ignore[no-any-return]

    return accept


def _connect_ex(own: Callable[..., int]) -> Callable[..., int]:
    @wraps(own)
    def connect_ex(self: system_socket.socket, address: Any) -> int:
        mine = _SocketFaults.of(self)
        code = own(self, address)
        if code == errno.EINPROGRESS and mine is not None and mine.sending.inject("eintr"):
            return errno.EINTR
        return code

    return connect_ex


#: What makes the methods of a socket with faults out of those of its class, as far as that has them.
_METHODS: Final[dict[str, Layer]] = {
    "recv": _recv,
    "recv_into": _recv_into,
    "recvfrom": _recv,
    "recvfrom_into": _recv_into,
    "recvmsg": _recv,
    "recvmsg_into": _recvmsg_into,
    "send": _send,
    "sendto": _send,
    "sendmsg": _sendmsg,
    "accept": _accept,
    "connect_ex": _connect_ex,
}

#: By their own class, the classes of the sockets that have faults; and the way back.
_faulty_classes: dict[type, type] = {}
_own_classes: dict[type, type] = {}


def _faulty_class(own: type) -> type:
    """The class of a socket of this class that has faults; it looks like that in a repr."""
    if own in _own_classes:
        return own
    if own not in _faulty_classes:
        namespace: dict[str, Any] = {"__slots__": (), "__module__": own.__module__, "__qualname__": own.__qualname__}
        namespace |= {name: layer(getattr(own, name)) for name, layer in _METHODS.items() if hasattr(own, name)}
        made = _faulty_classes[own] = type(own.__name__, (own,), namespace)
        _own_classes[made] = own
    return _faulty_classes[own]


# ---------------------------------------------------------------------------------------------- the ways in of a handle


def _take_record(own: Callable[..., None]) -> Callable[..., None]:
    @wraps(own)
    def take_record(self: SocketHandle, *args: Any) -> None:
        own(self, *args)
        _take_in(self, self._record.table)

    return take_record


def _by(own: Callable[..., T]) -> Callable[..., T]:
    """Of ``_read_by`` and ``_write_by``, which are given a method of the socket before the handle comes to its loop."""

    @wraps(own)
    def by(self: SocketHandle, function: Callable[..., Any], *args: Any, **options: Any) -> T:
        loop = here.loop
        bound = getattr(function, "__wrapped__", function)  # a trace counts what it gives
        if loop is not None and getattr(bound, "__self__", None) is self.socket:
            _take_in(self, loop.fds)
            if bound is function:
                function = getattr(self.socket, function.__name__)
        return own(self, function, *args, **options)

    return by


def _sendfile(own: Callable[..., int]) -> Callable[..., int]:
    @wraps(own)
    def sendfile(self: SocketHandle, source: int, offset: int, size: int) -> int:
        mine = _SocketFaults.of(self.socket)
        return own(self, source, offset, size if mine is None else mine.size_to_send(self.socket, size))

    return sendfile


def _take_in(handle: SocketHandle, table: FdTable | None) -> None:
    """A handle comes to a loop, or is closed: its socket has the faults of that loop from now on, or none."""
    sock: object = handle.socket
    if not isinstance(sock, system_socket.socket) or table is None:
        return
    loop = LoopFaults.of(table)
    mine = _sockets.get(sock)
    if (None if mine is None else mine.loop) is not loop:
        if loop is None:
            del _sockets[sock]
        else:
            loop.sockets += 1
            _sockets[sock] = _SocketFaults(loop, f"socket {loop.sockets}")
            sock.__class__ = _faulty_class(type(sock))
    handle._sock_recv = sock.recv
    handle._sock_send = sock.send


_exchange = Exchange(
    lambda: (
        Replacement(SocketHandle, "_read_by", _by),
        Replacement(SocketHandle, "_sendfile", _sendfile),
        Replacement(SocketHandle, "_take_record", _take_record),
        Replacement(SocketHandle, "_write_by", _by),
    )
)


def begin() -> None:
    """One more event loop has faults."""
    _exchange.begin()


def end() -> None:
    """One less has."""
    _exchange.end()


# --------------------------------------------------------------------------------------------------- asking the system


def _bytes_there(sock: system_socket.socket) -> int:
    """How many bytes can be received now, as far as one look tells.

    Raises:
        OSError: What the call would raise that is to come. The system says it only once, so it is raised.
    """
    return len(system_socket.socket.recv(sock, _LONGEST_LOOK, system_socket.MSG_PEEK))


def _is_ready(sock: system_socket.socket, readiness: int) -> bool:
    """Whether a socket is ready in this direction, as a selector would say it."""
    if sock.fileno() < 0:
        return False
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, select.POLLIN if readiness == EVENT_READ else select.POLLOUT)
        return bool(poll.poll(0))
    ready = select.select([sock] * (readiness == EVENT_READ), [sock] * (readiness == EVENT_WRITE), [sock], 0)
    return any(ready)


def _first(buffers: list[Buffer], size: int) -> list[Buffer]:
    """Of several buffers the first so many bytes."""
    first: list[Buffer] = []
    for buffer in buffers:
        if size <= 0 and first:
            break
        view = memoryview(buffer).cast("B")[:size] if memoryview(buffer).nbytes else memoryview(b"")
        first.append(view)
        size -= view.nbytes
    return first


def _is_connected_stream(sock: system_socket.socket) -> bool:
    if sock.type != system_socket.SOCK_STREAM:
        return False
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _reset_at_close(sock: system_socket.socket) -> None:
    sock.setsockopt(system_socket.SOL_SOCKET, system_socket.SO_LINGER, _RESET_AT_CLOSE)


def _broken_connection(family: int) -> system_socket.socket:
    """A connection whose peer has reset it: reading it is ECONNRESET once, and then its end; writing is EPIPE."""
    if family in (system_socket.AF_INET, system_socket.AF_INET6):
        host = "::1" if family == system_socket.AF_INET6 else "127.0.0.1"
        with system_socket.create_server((host, 0), family=family) as listener:
            one = system_socket.create_connection(listener.getsockname()[:2])
            other, _ = listener.accept()
        _reset_at_close(other)
    else:
        one, other = system_socket.socketpair(family)
        one.send(b"x")  # what is unread when it is closed makes a reset of that, unix(7)
    other.close()
    one.setblocking(False)
    poll = select.poll()
    poll.register(one, select.POLLIN)
    poll.poll(_PATIENCE)  # until the reset is there
    return one
