"""What hooks are told."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from ..addresses import Address
    from ..sockets import SocketHandle

__all__ = [
    "InstrumentationMetadata",
    "RawTask",
    "ReadySocketInstrumentationMetadata",
    "SocketConnectReadyMetadata",
    "SocketConnectStartMetadata",
    "SocketRecvDataMetadata",
    "SocketSendDataMetadata",
    "TLSHandshakeMetadata",
    "TaskSendMetadata",
    "TaskThrowMetadata",
]

#: A task as the hooks know it: its coroutine, as :func:`~flowno.current_task` has it.
RawTask: TypeAlias = Coroutine[Any, Any, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _SocketMetadata:
    """What is known of every operation on a socket.

    Attributes:
        socket_handle: The handle.
        task: The coroutine of the task that uses it; None outside of a task.
        peer_address: The address of the other end, None where there is none. Of a datagram it is whom that is from, or
            goes to; of a connection that was accepted, who has come.
    """

    socket_handle: SocketHandle
    task: RawTask | None
    peer_address: Address


@dataclass(frozen=True, kw_only=True, slots=True)
class InstrumentationMetadata(_SocketMetadata):
    """An operation that begins, and a handle that is closed.

    Attributes:
        start_time: When it began, in seconds of the loop's clock, :func:`~flowno.current_time`.
        immediate: Whether it was done without suspending its task. When it begins nobody knows: False.
    """

    start_time: float
    immediate: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadySocketInstrumentationMetadata(InstrumentationMetadata):
    """An operation that has succeeded.

    Attributes:
        finish_time: When that was, in seconds of the loop's clock.
    """

    finish_time: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SocketRecvDataMetadata(_SocketMetadata):
    """What was received.

    Attributes:
        data: The bytes; ``b""`` at the end of the stream. Through TLS, what was decrypted.
    """

    data: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class SocketSendDataMetadata(_SocketMetadata):
    """What was sent.

    Attributes:
        data: What was to be sent, of which the first ``bytes_sent`` are underway; ``b""`` where the system itself sends
            a file. Through TLS, what was encrypted.
        bytes_sent: How many bytes were taken.
    """

    data: bytes
    bytes_sent: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SocketConnectStartMetadata(InstrumentationMetadata):
    """A connection that is asked for.

    Attributes:
        target_address: What it is to be connected to, as it was asked for: maybe by a name.
    """

    target_address: Address


@dataclass(frozen=True, kw_only=True, slots=True)
class SocketConnectReadyMetadata(SocketConnectStartMetadata):
    """A connection that is made, through TLS with its handshake. That of the blocking ``connect`` is never immediate.

    Attributes:
        finish_time: When that was, in seconds of the loop's clock.
    """

    finish_time: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TLSHandshakeMetadata(_SocketMetadata):
    """A TLS handshake that was made.

    Attributes:
        cipher: The name of the cipher, the version of TLS that defines it, its secret bits.
        version: Such as ``"TLSv1.3"``.
        server_hostname: What the peer is called, as the handle has it; None at the server.
        start_time: When it began, in seconds of the loop's clock.
        finish_time: When it was done.
    """

    cipher: tuple[str, str, int] | None
    version: str | None
    server_hostname: str | None
    start_time: float
    finish_time: float


@dataclass(frozen=True, slots=True)
class TaskSendMetadata:
    """A step of a task that goes on.

    Attributes:
        task: Its coroutine.
        send_value: The answer that it gets; None at its first step.
    """

    task: RawTask
    send_value: Any


@dataclass(frozen=True, slots=True)
class TaskThrowMetadata:
    """A step of a task in which an exception is raised where it waits.

    Attributes:
        task: Its coroutine.
        exception: The exception. Of a :class:`~flowno.TaskCancelled` it is a copy: the loop sees by the exception
            itself, by whether anybody still has it, how long a task deals with its cancellation.
    """

    task: RawTask
    exception: BaseException
