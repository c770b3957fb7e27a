"""The operations of handles and queues, as they are while somebody watches."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import wraps
from socket import SOCK_STREAM
from types import coroutine
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

from ..addresses import Address
from ..commands import Command
from ..errors import ClosedResourceError
from ..exchange import Replacement
from ..fd_table import CLOSED
from ..queues import BaseQueue
from ..running import current_task, current_world
from ..sockets import SocketHandle
from .metadata import (
    InstrumentationMetadata,
    ReadySocketInstrumentationMetadata,
    SocketConnectReadyMetadata,
    SocketConnectStartMetadata,
    SocketRecvDataMetadata,
    SocketSendDataMetadata,
    TLSHandshakeMetadata,
)
from .watching import Entries, steps, tell, those_here

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ..tls import TLSSocketHandle

__all__ = ["replacements"]


class _Operation:
    """An operation that goes on, and who is told of it: those who were there when it began."""

    __slots__ = ("_common", "_entries", "_start_time", "_step", "handle")

    def __init__(self, entries: Entries, handle: SocketHandle) -> None:
        self._entries = entries
        self._step = steps.count
        self._start_time = current_world().clock()
        self._common: dict[str, Any] = {"socket_handle": handle, "task": current_task()}
        self.handle = handle

    @classmethod
    def begun(cls, handle: SocketHandle) -> _Operation | None:
        """The operation that begins here; None where nobody watches."""
        entries = those_here()
        return cls(entries, handle) if entries else None

    @property
    def is_immediate(self) -> bool:
        """Whether the task was not suspended since it began."""
        return self._step == steps.count

    def tell(self, hook: str, metadata: type[Any], peer: Address = None, **known: Any) -> None:
        """Call a hook with metadata of this class."""
        peer = _peer_of(self.handle) if peer is None else peer
        tell(self._entries, hook, metadata(**self._common, peer_address=peer, **known))

    def tell_start(self, kind: str) -> None:
        self.tell(f"on_socket_{kind}_start", InstrumentationMetadata, start_time=self._start_time)

    def tell_ready(self, kind: str, peer: Address = None) -> None:
        self.tell(
            f"on_socket_{kind}_ready",
            ReadySocketInstrumentationMetadata,
            peer,
            start_time=self._start_time,
            immediate=self.is_immediate,
            finish_time=current_world().clock(),
        )

    def tell_received(self, data: bytes, peer: Address = None) -> None:
        self.tell_ready("recv", peer)
        self.tell("on_socket_recv_data", SocketRecvDataMetadata, peer, data=data)

    def tell_sent(self, data: bytes, count: int, peer: Address = None) -> None:
        self.tell_ready("send", peer)
        self.tell("on_socket_send_data", SocketSendDataMetadata, peer, data=data, bytes_sent=count)

    def tell_connecting(self, address: Address) -> None:
        self.tell(
            "on_socket_connect_start",
            SocketConnectStartMetadata,
            start_time=self._start_time,
            target_address=address,
        )

    def tell_connected(self, address: Address, *, immediate: bool) -> None:
        _peers.pop(self.handle, None)
        self.tell(
            "on_socket_connect_ready",
            SocketConnectReadyMetadata,
            start_time=self._start_time,
            immediate=immediate,
            target_address=address,
            finish_time=current_world().clock(),
        )

    def tell_handshake(self) -> None:
        handle: Any = self.handle
        self.tell(
            "on_tls_handshake_complete",
            TLSHandshakeMetadata,
            cipher=handle.cipher(),
            version=handle.version(),
            server_hostname=handle.server_hostname,
            start_time=self._start_time,
            finish_time=current_world().clock(),
        )

    def tell_closing(self) -> None:
        self.tell("on_socket_close", InstrumentationMetadata, start_time=self._start_time, immediate=True)


#: The peers of handles, as they were found: of a connection that has broken down, the system does not know it any more.
_peers: WeakKeyDictionary[SocketHandle, Address] = WeakKeyDictionary()


def _peer_of(handle: SocketHandle) -> Address:
    """The address of the other end; None where there is none."""
    try:
        peer = _peers.get(handle)
        if peer is None:
            peer = _peers[handle] = handle.socket.getpeername()
    except Exception:  # what is like a socket may lack it, and raise what it likes
        return None
    return peer


#: What goes on while an operation does: it is driven from within one of the generators below.
_Driven: TypeAlias = Generator[Command, Any, Any]


def _coroutine_layer(watch: Callable[..., _Driven]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A layer over a method whose call gives an operation to await.

    Args:
        watch: Called with the object, the operation, and the arguments of the method.
    """
    begin: Callable[..., Any] = coroutine(watch)

    def layer(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            operation = original(self, *args, **kwargs)
            watched = begin(self, operation, *args, **kwargs)
            watched.__name__, watched.__qualname__ = operation.__name__, operation.__qualname__  # tasks are called so
            return watched

        return method

    return layer


@_coroutine_layer
def _accept(handle: SocketHandle, operation: _Driven) -> _Driven:
    accepting = _Operation.begun(handle)
    if accepting is None:
        return (yield from operation)
    accepting.tell_start("accept")
    accepted: tuple[SocketHandle, Address] = yield from operation
    accepting.tell_ready("accept", accepted[1])
    return accepted


def _accept_nowait(original: Callable[[SocketHandle], Any]) -> Callable[..., Any]:
    @wraps(original)
    def method(self: SocketHandle) -> Any:
        accepted: tuple[SocketHandle, Address] | None = original(self)
        if accepted is not None and (accepting := _Operation.begun(self)) is not None:
            accepting.tell_start("accept")
            accepting.tell_ready("accept", accepted[1])
        return accepted

    return method


@_coroutine_layer
def _recv(handle: SocketHandle, operation: _Driven, bufsize: int) -> _Driven:
    receiving = _Operation.begun(handle)
    if receiving is None:
        return (yield from operation)
    receiving.tell_start("recv")
    data: bytes = yield from operation
    receiving.tell_received(data)
    return data


@_coroutine_layer
def _recv_into(handle: SocketHandle, operation: _Driven, buffer: Buffer, nbytes: int = 0) -> _Driven:
    receiving = _Operation.begun(handle)
    if receiving is None:
        return (yield from operation)
    receiving.tell_start("recv")
    received: int = yield from operation
    receiving.tell_received(_first_of(buffer, received))
    return received


@_coroutine_layer
def _read_by(handle: SocketHandle, operation: _Driven, function: Callable[..., Any], *args: Any) -> _Driven:
    """``recvfrom`` and ``recvmsg``, and both into buffers; what they give ends with the address of the sender."""
    receiving = _Operation.begun(handle)
    if receiving is None:
        return (yield from operation)
    receiving.tell_start("recv")
    result = yield from operation
    if function.__name__ == "recvfrom_into":
        data = _first_of(args[0], result[0])
    elif function.__name__ == "recvmsg_into":
        data = b"".join(args[0])[: result[0]]
    else:
        data = result[0]
    # A stream comes from its peer: most systems give no address with it, and Windows what is none.
    receiving.tell_received(data, None if handle.type == SOCK_STREAM else result[-1])
    return result


@_coroutine_layer
def _send(handle: SocketHandle, operation: _Driven, data: Buffer) -> _Driven:
    sending = _Operation.begun(handle)
    if sending is None:
        return (yield from operation)
    sending.tell_start("send")
    count: int = yield from operation
    sending.tell_sent(bytes(data), count)
    return count


@_coroutine_layer
def _send_all(handle: SocketHandle, operation: _Driven, data: Buffer) -> _Driven:
    sending = _Operation.begun(handle)
    if sending is None:
        return (yield from operation)
    was_open = handle._record is not CLOSED and handle.fileno() >= 0
    sending.tell_start("send")
    try:
        result = yield from operation
    except BaseException as error:
        # Not so where it was refused: then bytes_sent is another task's, or an earlier operation's.
        if (
            (isinstance(error, OSError) or not isinstance(error, Exception))
            and (was_open or not isinstance(error, ClosedResourceError))
            and (count := handle.bytes_sent)
        ):
            sending.tell("on_socket_send_data", SocketSendDataMetadata, data=_first_of(data, count), bytes_sent=count)
        raise
    octets = bytes(data)
    sending.tell_sent(octets, len(octets))
    return result


@_coroutine_layer
def _write_by(
    handle: SocketHandle, operation: _Driven, function: Callable[..., Any], *args: Any, to: Address = None
) -> _Driven:
    """``sendto``, ``sendmsg``, and the system's own ``sendfile``."""
    sending = _Operation.begun(handle)
    if sending is None:
        return (yield from operation)
    sending.tell_start("send")
    count: int = yield from operation
    if function.__name__ == "_sendfile":
        data = b""
    elif function.__name__ == "sendmsg":
        data = b"".join(args[0])
    else:
        data = bytes(args[0])
    sending.tell_sent(data, count, to)
    return count


def _first_of(buffer: Buffer, count: int) -> bytes:
    """The first bytes of a buffer."""
    return bytes(memoryview(buffer).cast("B")[:count]) if count else b""


@_coroutine_layer
def _connect(handle: SocketHandle, operation: _Driven, address: Address) -> _Driven:
    connecting = _Operation.begun(handle)
    if connecting is None:
        return (yield from operation)
    connecting.tell_connecting(address)
    result = yield from operation
    connecting.tell_connected(address, immediate=connecting.is_immediate)
    return result


def _connect_blocking(original: Callable[[SocketHandle, Address], None]) -> Callable[..., Any]:
    @wraps(original)
    def method(self: SocketHandle, address: Address, /) -> None:
        connecting = _Operation.begun(self)
        if connecting is not None:
            connecting.tell_connecting(address)
        original(self, address)
        if connecting is not None:
            connecting.tell_connected(address, immediate=False)

    return method


@_coroutine_layer
def _handshake(handle: TLSSocketHandle, operation: _Driven) -> _Driven:
    shaking = _Operation.begun(handle)
    yield from operation
    if shaking is not None:
        shaking.tell_handshake()


def _handshake_blocking(original: Callable[[TLSSocketHandle, float], None]) -> Callable[..., Any]:
    @wraps(original)
    def method(self: TLSSocketHandle, deadline: float) -> None:
        shaking = _Operation.begun(self)
        original(self, deadline)
        if shaking is not None:
            shaking.tell_handshake()

    return method


def _close(original: Callable[[SocketHandle], None]) -> Callable[..., Any]:
    @wraps(original)
    def method(self: SocketHandle) -> None:
        if self._record is not CLOSED and (closing := _Operation.begun(self)) is not None:
            closing.tell_closing()
        original(self)

    return method


@_coroutine_layer
def _put(queue: BaseQueue[Any, Any], operation: _Driven, item: Any) -> _Driven:
    entries, step = those_here(), steps.count
    yield from operation
    if entries:
        tell(entries, "on_queue_put", queue, item, step == steps.count)


@_coroutine_layer
def _get(queue: BaseQueue[Any, Any], operation: _Driven) -> _Driven:
    entries, step = those_here(), steps.count
    item = yield from operation
    if entries:
        tell(entries, "on_queue_get", queue, item, step == steps.count)
    return item


def _put_nowait(original: Callable[[BaseQueue[Any, Any], Any], bool]) -> Callable[..., Any]:
    @wraps(original)
    def method(self: BaseQueue[Any, Any], item: Any) -> bool:
        is_new = original(self, item)
        tell(those_here(), "on_queue_put", self, item, True)
        return is_new

    return method


def _get_nowait(original: Callable[[BaseQueue[Any, Any]], Any]) -> Callable[..., Any]:
    @wraps(original)
    def method(self: BaseQueue[Any, Any]) -> Any:
        item = original(self)
        tell(those_here(), "on_queue_get", self, item, True)
        return item

    return method


def replacements() -> Iterator[Replacement]:
    """What is exchanged while somebody watches."""
    handle_layers: dict[str, Any] = {
        "accept": _accept,
        "_accept_nowait": _accept_nowait,
        "recv": _recv,
        "recv_into": _recv_into,
        "_read_by": _read_by,
        "send": _send,
        "sendAll": _send_all,
        "sendall": _send_all,
        "_write_by": _write_by,
        "connect": _connect_blocking,
        "_connect": _connect,
        "close": _close,
    }
    tls_layers: dict[str, Any] = {
        "recv": _recv,
        "recv_into": _recv_into,
        "send": _send,
        "sendAll": _send_all,
        "sendall": _send_all,
        "_handshake": _handshake,
        "_handshake_blocking": _handshake_blocking,
    }
    queue_layers: dict[str, Any] = {
        "put": _put,
        "get": _get,
        "_put_nowait": _put_nowait,
        "get_nowait": _get_nowait,
    }
    owners: list[tuple[type, dict[str, Any]]] = [
        (SocketHandle, handle_layers),
        (BaseQueue, queue_layers),
    ]
    try:
        from ..tls import TLSSocketHandle
    except ImportError:
        pass  # a Python without ssl
    else:
        owners.append((TLSSocketHandle, tls_layers))
    for owner, layers in owners:
        for name, layer in layers.items():
            yield Replacement(owner, name, layer)
