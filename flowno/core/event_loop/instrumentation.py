"""Instruments: objects that are told what the tasks do, with their sockets and queues.

An :class:`EventLoopInstrument` is a context manager with one method a hook. It sees what is done inside of its ``with``
block, which may be around a whole run, or in a task: then it sees that task, and those that are started from there on.

While nobody watches, none of this is anywhere near: the methods of handles and queues, and what the tasks of a loop are
stepped by, are exchanged when the first instrument is entered, and put back when the last one is left.

Example:
    >>> from flowno import run, socketpair
    >>> from flowno.core.event_loop.instrumentation import EventLoopInstrument
    >>> class Traffic(EventLoopInstrument):
    ...     sent = received = 0
    ...     def on_socket_send_data(self, metadata):
    ...         self.sent += metadata.bytes_sent
    ...     def on_socket_recv_data(self, metadata):
    ...         self.received += len(metadata.data)
    >>> async def main():
    ...     one, other = socketpair()
    ...     with one, other:
    ...         await one.sendAll(b"Hello, world!")
    ...         return await other.recv(5)
    >>> with Traffic() as traffic:
    ...     run(main())
    b'Hello'
    >>> traffic.sent, traffic.received
    (13, 5)
"""

from __future__ import annotations

import logging
import reprlib
import sys
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from contextvars import Context, ContextVar
from dataclasses import dataclass
from functools import wraps
from socket import SOCK_STREAM
from threading import local
from types import coroutine
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary, WeakSet

from . import exchange
from .commands import Command
from .errors import ClosedResourceError, EventLoopError
from .exchange import Exchange, Replacement
from .queues import _Queue
from .running import current_task, current_world, here
from .selectors import _CLOSED, Address, SocketHandle
from .tasks import TaskCancelled, TaskHandle, function_name
from .words import address_in_words, peer_in_words

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from typing_extensions import Buffer

    from .event_loop import EventLoop
    from .tls import TLSSocketHandle

__all__ = [
    "EventLoopInstrument",
    "InstrumentationMetadata",
    "LogInstrument",
    "PrintInstrument",
    "ReadySocketInstrumentationMetadata",
    "SocketConnectReadyMetadata",
    "SocketConnectStartMetadata",
    "SocketRecvDataMetadata",
    "SocketSendDataMetadata",
    "TLSHandshakeMetadata",
    "TaskSendMetadata",
    "TaskThrowMetadata",
    "get_current_instrument",
]

#: A task as the hooks know it: its coroutine, as :func:`~flowno.current_task` has it.
RawTask: TypeAlias = Coroutine[Any, Any, Any]

logger = logging.getLogger("flowno.instrumentation")


# --------------------------------------------------------------------------------------------------------- the metadata


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


# ------------------------------------------------------------------------------------------------------ the instruments


class EventLoopInstrument:
    """Is told what tasks do while it is entered. Derive from it, and define the hooks that you want.

    A context manager, which may be entered several times, in several threads, and left in any order. What it sees goes
    by the context variables of a task, :mod:`contextvars`: the code inside of the ``with`` block, and the tasks that
    are started there, until it is left. Of several that see the same, the one that was entered last is told first.

    Hooks are called where things happen, in the context and the thread of whoever does them, so they must not block.
    What one does itself is not reported. One that raises is logged, and its instrument is not called any more; no task
    ever notices. Only KeyboardInterrupt and SystemExit go through.
    """

    _entries: Sequence[_Entry] = ()  # those that were not left, in the order in which they were made

    def on_queue_put(self, queue: _Queue[Any, Any], item: Any, immediate: bool) -> None:
        """An item was put into a queue, or given to the task that waited for it."""

    def on_queue_get(self, queue: _Queue[Any, Any], item: Any, immediate: bool) -> None:
        """An item was taken out of a queue."""

    def on_socket_connect_start(self, metadata: SocketConnectStartMetadata) -> None:
        """A handle is to be connected."""

    def on_socket_connect_ready(self, metadata: SocketConnectReadyMetadata) -> None:
        """It is connected; through TLS with the handshake, which was told before."""

    def on_socket_accept_start(self, metadata: InstrumentationMetadata) -> None:
        """A task wants to accept a connection. For a server it is told when the connection is there."""

    def on_socket_accept_ready(self, metadata: ReadySocketInstrumentationMetadata) -> None:
        """It has accepted one, from ``peer_address``; ``socket_handle`` is the handle that listens."""

    def on_socket_recv_start(self, metadata: InstrumentationMetadata) -> None:
        """A task wants to receive."""

    def on_socket_recv_ready(self, metadata: ReadySocketInstrumentationMetadata) -> None:
        """It has received."""

    def on_socket_recv_data(self, metadata: SocketRecvDataMetadata) -> None:
        """What it has received, told next."""

    def on_socket_send_start(self, metadata: InstrumentationMetadata) -> None:
        """A task wants to send."""

    def on_socket_send_ready(self, metadata: ReadySocketInstrumentationMetadata) -> None:
        """It has sent what it wanted to, or by ``send`` a part."""

    def on_socket_send_data(self, metadata: SocketSendDataMetadata) -> None:
        """What it has sent, told next; without the other where a ``sendAll`` failed or was cancelled half-way."""

    def on_socket_close(self, metadata: InstrumentationMetadata) -> None:
        """A handle is being closed; it is open still. Told once for each handle, and not for one that is dropped."""

    def on_tls_handshake_complete(self, metadata: TLSHandshakeMetadata) -> None:
        """A TLS handshake is done."""

    def on_task_before_send(self, metadata: TaskSendMetadata) -> None:
        """A task is about to begin, or to go on with an answer."""

    def on_task_after_send(self, metadata: TaskSendMetadata, command: Command) -> None:
        """That step has come to its end, and the task asks for this."""

    def on_task_before_throw(self, metadata: TaskThrowMetadata) -> None:
        """A task is about to go on with an exception, mostly its cancellation."""

    def on_task_after_throw(self, metadata: TaskThrowMetadata, command: Command) -> None:
        """That step has come to its end, and the task asks for this."""

    def on_task_completed(self, task: RawTask, result: Any) -> None:
        """A task has returned."""

    def on_task_error(self, task: RawTask, exception: BaseException) -> None:
        """A task has ended with an exception that is not its own cancellation."""

    def on_task_cancelled(self, task: RawTask, exception: BaseException) -> None:
        """A task was cancelled, and has ended by that."""

    def __enter__(self) -> Self:
        _watching.begin()
        entry = _Entry(self)
        self._entries = [*self._entries, entry]
        _stack.set((entry, *_those_here()))
        if here.loop is not None:
            _watch_steps_of(here.loop)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        entries = self._entries
        if not entries:
            raise EventLoopError(f"{self!r} was left more often than it was entered")
        entry = next((each for each in _stack.get() if each in entries), entries[-1])
        self._entries = [each for each in entries if each is not entry]
        entry.leave()
        _stack.set(_those_here())


class _Entry:
    """One entering of an instrument, which contexts may keep for long after it was left."""

    __slots__ = ("instrument", "is_active")

    def __init__(self, instrument: EventLoopInstrument) -> None:
        self.instrument = instrument
        self.is_active = True

    def leave(self) -> None:
        """It is told of nothing any more; also not by tasks that have it in their context."""
        with exchange.lock:
            was_active, self.is_active = self.is_active, False
        if was_active:
            self.instrument = _NOBODY
            _watching.end()
            if not _watching.users:
                _watch_steps_no_more()


_Entries: TypeAlias = tuple[_Entry, ...]

#: Who was entered in this context, the last one first; some may have been left since.
_stack: ContextVar[_Entries] = ContextVar("flowno instruments", default=())

_NOBODY = EventLoopInstrument()


def get_current_instrument() -> EventLoopInstrument:
    """The instrument that sees what is done here; of several, the one that was entered last.

    Where there is none, it is one whose hooks do nothing. So libraries can call hooks of their own.
    """
    entries = _those_here()
    return entries[0].instrument if entries else _NOBODY


def _those_here() -> _Entries:
    """Who sees what is done here, the last one first."""
    entries = _stack.get()
    return _active(entries) if entries else entries


def _active(entries: _Entries) -> _Entries:
    return tuple(entry for entry in entries if entry.is_active)


def _tell(entries: _Entries, hook: str, *args: Any) -> None:
    """Call a hook of each of them."""
    if not entries:
        return
    failed: BaseException | None = None
    token = _stack.set(())  # what a hook does is not reported, or an instrument with a queue would never come to an end
    try:
        for entry in entries:
            instrument = entry.instrument
            try:
                getattr(instrument, hook)(*args)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                failed = error
            if failed is not None:
                _leave_out(sys.exception(), failed)
                _take_out(instrument, hook, failed)
                failed = None
    finally:
        _stack.reset(token)


def _leave_out(outer: BaseException | None, error: BaseException) -> None:
    """Have an error of a hook not come "during handling" of what the hook was told of, as the end of a step is."""
    while outer is not None and error.__context__ is not None:
        if error.__context__ is outer:
            error.__context__ = None
        else:
            error = error.__context__


def _take_out(instrument: EventLoopInstrument, hook: str, error: BaseException) -> None:
    """An instrument has raised."""
    name = type(instrument).__qualname__
    logger.error("%s.%s() raised; the instrument is not called any more", name, hook, exc_info=error)
    for entry in instrument._entries:
        entry.leave()


# ------------------------------------------------------------------------------------------------- the steps of tasks


class _Steps(local):
    """How many steps the loop of this thread has made, while it was watched: it tells what has suspended its task."""

    count = 0


_steps = _Steps()

#: The loops whose steps are watched.
_watched_loops: WeakSet[EventLoop] = WeakSet()


def _watch_steps_of(loop: EventLoop) -> None:
    with exchange.lock:
        _watched_loops.add(loop)
    if _watch_step not in loop.step_wrappers:
        loop.add_step_wrapper(_watch_step)


def _watch_steps_no_more() -> None:
    with exchange.lock:
        loops = list(_watched_loops)
        _watched_loops.clear()
    for loop in loops:
        loop.inbox.act(_stop_watching, loop)


def _stop_watching(loop: EventLoop) -> None:
    if _watching.users:  # another one has come meanwhile
        with exchange.lock:
            _watched_loops.add(loop)
    elif _watch_step in loop.step_wrappers:
        loop.remove_step_wrapper(_watch_step)


def _watch_new_task(original: Callable[..., Any]) -> Callable[..., Any]:
    """A task that is made where somebody watches: its loop may be one that nobody has watched yet."""

    @wraps(original)
    def __init__(
        self: TaskHandle[Any], event_loop: EventLoop, raw_task: Coroutine[Any, Any, Any], context: Context
    ) -> None:
        original(self, event_loop, raw_task, context)
        if _active(context.get(_stack, ())):
            inbox = event_loop.inbox
            # That they are watched says nothing in another thread: they may be about to be watched no more.
            if not inbox.is_mine or _watch_step not in event_loop.step_wrappers:
                inbox.act(_watch_steps_from_now_on, self)

    return __init__


def _watch_steps_from_now_on(task: TaskHandle[Any]) -> None:
    """Watch the steps of a loop, and of a new task, which is not among those of the loop yet."""
    _watch_steps_of(task.event_loop)
    task._wrap_steps()


def _watch_step(task: TaskHandle[Any], run: Callable[..., Any], method: Callable[[Any], Any], argument: Any) -> Any:
    """Make a step of a task; see :meth:`EventLoop.add_step_wrapper`."""
    _steps.count += 1
    entries = _active(task._context.get(_stack, ()))
    if not entries:
        return run(method, argument)
    inside = task._context.run
    raw_task = task.raw_task
    metadata: TaskSendMetadata | TaskThrowMetadata
    if method is task._send:
        kind = "send"
        metadata = TaskSendMetadata(raw_task, argument)
    else:
        kind = "throw"
        metadata = TaskThrowMetadata(raw_task, _copy_of(argument))
    try:
        inside(_tell, entries, f"on_task_before_{kind}", metadata)
        try:
            command = run(method, argument)
        except StopIteration as stop:
            inside(_tell, entries, "on_task_completed", raw_task, stop.value)
            raise
        except BaseException as error:
            # Whose end it is, EventLoop._fail() decides in the same way.
            was_cancelled = isinstance(error, TaskCancelled) and error._was_thrown_in and error._by is task
            inside(_tell, entries, "on_task_cancelled" if was_cancelled else "on_task_error", raw_task, error)
            raise
        inside(_tell, entries, f"on_task_after_{kind}", metadata, command)
        return command
    finally:
        del task, run, method, argument, inside, raw_task, metadata  # an error may lead here, and its task has that


def _copy_of(error: BaseException) -> BaseException:
    """What a hook may keep of an exception that is thrown in; see :class:`TaskThrowMetadata`."""
    if not isinstance(error, TaskCancelled):
        return error
    copy = TaskCancelled.__new__(TaskCancelled, *error.args)
    copy._by = error._by
    copy.scope = error.scope
    return copy


# ------------------------------------------------------------------------------------------------------- the operations


class _Operation:
    """An operation that goes on, and who is told of it: those who were there when it began."""

    __slots__ = ("_common", "_entries", "_start_time", "_step", "handle")

    def __init__(self, entries: _Entries, handle: SocketHandle) -> None:
        self._entries = entries
        self._step = _steps.count
        self._start_time = current_world().clock()
        self._common: dict[str, Any] = {"socket_handle": handle, "task": current_task()}
        self.handle = handle

    @classmethod
    def begun(cls, handle: SocketHandle) -> _Operation | None:
        """The operation that begins here; None where nobody watches."""
        entries = _those_here()
        return cls(entries, handle) if entries else None

    @property
    def is_immediate(self) -> bool:
        """Whether the task was not suspended since it began."""
        return self._step == _steps.count

    def tell(self, hook: str, metadata: type[Any], peer: Address = None, **known: Any) -> None:
        """Call a hook with metadata of this class."""
        peer = _peer_of(self.handle) if peer is None else peer
        _tell(self._entries, hook, metadata(**self._common, peer_address=peer, **known))

    def starts(self, kind: str) -> None:
        self.tell(f"on_socket_{kind}_start", InstrumentationMetadata, start_time=self._start_time)

    def succeeds(self, kind: str, peer: Address = None) -> None:
        self.tell(
            f"on_socket_{kind}_ready",
            ReadySocketInstrumentationMetadata,
            peer,
            start_time=self._start_time,
            immediate=self.is_immediate,
            finish_time=current_world().clock(),
        )

    def has_received(self, data: bytes, peer: Address = None) -> None:
        self.succeeds("recv", peer)
        self.tell("on_socket_recv_data", SocketRecvDataMetadata, peer, data=data)

    def has_sent(self, data: bytes, count: int, peer: Address = None) -> None:
        self.succeeds("send", peer)
        self.tell("on_socket_send_data", SocketSendDataMetadata, peer, data=data, bytes_sent=count)

    def connects(self, address: Address) -> None:
        self.tell(
            "on_socket_connect_start",
            SocketConnectStartMetadata,
            start_time=self._start_time,
            target_address=address,
        )

    def is_connected(self, address: Address, *, immediate: bool) -> None:
        _peers.pop(self.handle, None)
        self.tell(
            "on_socket_connect_ready",
            SocketConnectReadyMetadata,
            start_time=self._start_time,
            immediate=immediate,
            target_address=address,
            finish_time=current_world().clock(),
        )

    def has_made_handshake(self) -> None:
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

    def is_closing(self) -> None:
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
    accepting.starts("accept")
    accepted: tuple[SocketHandle, Address] = yield from operation
    accepting.succeeds("accept", accepted[1])
    return accepted


def _accept_nowait(original: Callable[[SocketHandle], Any]) -> Callable[..., Any]:
    @wraps(original)
    def method(self: SocketHandle) -> Any:
        accepted: tuple[SocketHandle, Address] | None = original(self)
        if accepted is not None and (accepting := _Operation.begun(self)) is not None:
            accepting.starts("accept")
            accepting.succeeds("accept", accepted[1])
        return accepted

    return method


@_coroutine_layer
def _recv(handle: SocketHandle, operation: _Driven, bufsize: int) -> _Driven:
    receiving = _Operation.begun(handle)
    if receiving is None:
        return (yield from operation)
    receiving.starts("recv")
    data: bytes = yield from operation
    receiving.has_received(data)
    return data


@_coroutine_layer
def _recv_into(handle: SocketHandle, operation: _Driven, buffer: Buffer, nbytes: int = 0) -> _Driven:
    receiving = _Operation.begun(handle)
    if receiving is None:
        return (yield from operation)
    receiving.starts("recv")
    received: int = yield from operation
    receiving.has_received(_first_of(buffer, received))
    return received


@_coroutine_layer
def _read_by(handle: SocketHandle, operation: _Driven, function: Callable[..., Any], *args: Any) -> _Driven:
    """``recvfrom`` and ``recvmsg``, and both into buffers; what they give ends with the address of the sender."""
    receiving = _Operation.begun(handle)
    if receiving is None:
        return (yield from operation)
    receiving.starts("recv")
    result = yield from operation
    if function.__name__ == "recvfrom_into":
        data = _first_of(args[0], result[0])
    elif function.__name__ == "recvmsg_into":
        data = b"".join(args[0])[: result[0]]
    else:
        data = result[0]
    # A stream comes from its peer: most systems give no address with it, and Windows what is none.
    receiving.has_received(data, None if handle.type == SOCK_STREAM else result[-1])
    return result


@_coroutine_layer
def _send(handle: SocketHandle, operation: _Driven, data: Buffer) -> _Driven:
    sending = _Operation.begun(handle)
    if sending is None:
        return (yield from operation)
    sending.starts("send")
    count: int = yield from operation
    sending.has_sent(bytes(data), count)
    return count


@_coroutine_layer
def _send_all(handle: SocketHandle, operation: _Driven, data: Buffer) -> _Driven:
    sending = _Operation.begun(handle)
    if sending is None:
        return (yield from operation)
    was_open = handle._record is not _CLOSED and handle.fileno() >= 0
    sending.starts("send")
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
    sending.has_sent(octets, len(octets))
    return result


@_coroutine_layer
def _write_by(
    handle: SocketHandle, operation: _Driven, function: Callable[..., Any], *args: Any, to: Address = None
) -> _Driven:
    """``sendto``, ``sendmsg``, and the system's own ``sendfile``."""
    sending = _Operation.begun(handle)
    if sending is None:
        return (yield from operation)
    sending.starts("send")
    count: int = yield from operation
    if function.__name__ == "_sendfile":
        data = b""
    elif function.__name__ == "sendmsg":
        data = b"".join(args[0])
    else:
        data = bytes(args[0])
    sending.has_sent(data, count, to)
    return count


def _first_of(buffer: Buffer, count: int) -> bytes:
    """The first bytes of a buffer."""
    return bytes(memoryview(buffer).cast("B")[:count]) if count else b""


@_coroutine_layer
def _connect(handle: SocketHandle, operation: _Driven, address: Address) -> _Driven:
    connecting = _Operation.begun(handle)
    if connecting is None:
        return (yield from operation)
    connecting.connects(address)
    result = yield from operation
    connecting.is_connected(address, immediate=connecting.is_immediate)
    return result


def _connect_blocking(original: Callable[[SocketHandle, Address], None]) -> Callable[..., Any]:
    @wraps(original)
    def method(self: SocketHandle, address: Address, /) -> None:
        connecting = _Operation.begun(self)
        if connecting is not None:
            connecting.connects(address)
        original(self, address)
        if connecting is not None:
            connecting.is_connected(address, immediate=False)

    return method


@_coroutine_layer
def _handshake(handle: TLSSocketHandle, operation: _Driven) -> _Driven:
    shaking = _Operation.begun(handle)
    yield from operation
    if shaking is not None:
        shaking.has_made_handshake()


def _handshake_blocking(original: Callable[[TLSSocketHandle, float], None]) -> Callable[..., Any]:
    @wraps(original)
    def method(self: TLSSocketHandle, deadline: float) -> None:
        shaking = _Operation.begun(self)
        original(self, deadline)
        if shaking is not None:
            shaking.has_made_handshake()

    return method


def _close(original: Callable[[SocketHandle], None]) -> Callable[..., Any]:
    @wraps(original)
    def method(self: SocketHandle) -> None:
        if self._record is not _CLOSED and (closing := _Operation.begun(self)) is not None:
            closing.is_closing()
        original(self)

    return method


@_coroutine_layer
def _put(queue: _Queue[Any, Any], operation: _Driven, item: Any) -> _Driven:
    entries, step = _those_here(), _steps.count
    yield from operation
    if entries:
        _tell(entries, "on_queue_put", queue, item, step == _steps.count)


@_coroutine_layer
def _get(queue: _Queue[Any, Any], operation: _Driven) -> _Driven:
    entries, step = _those_here(), _steps.count
    item = yield from operation
    if entries:
        _tell(entries, "on_queue_get", queue, item, step == _steps.count)
    return item


def _put_nowait(original: Callable[[_Queue[Any, Any], Any], bool]) -> Callable[..., Any]:
    @wraps(original)
    def method(self: _Queue[Any, Any], item: Any) -> bool:
        is_new = original(self, item)
        _tell(_those_here(), "on_queue_put", self, item, True)
        return is_new

    return method


def _get_nowait(original: Callable[[_Queue[Any, Any]], Any]) -> Callable[..., Any]:
    @wraps(original)
    def method(self: _Queue[Any, Any]) -> Any:
        item = original(self)
        _tell(_those_here(), "on_queue_get", self, item, True)
        return item

    return method


def _replacements() -> Iterator[Replacement]:
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
        (_Queue, queue_layers),
        (TaskHandle, {"__init__": _watch_new_task}),
    ]
    try:
        from .tls import TLSSocketHandle
    except ImportError:
        pass  # a Python without ssl
    else:
        owners.append((TLSSocketHandle, tls_layers))
    for owner, layers in owners:
        for name, layer in layers.items():
            yield Replacement(owner, name, layer)


_watching = Exchange(_replacements)


# ---------------------------------------------------------------------------------------------------------- to look at


class PrintInstrument(EventLoopInstrument):
    """Prints what happens to sockets and queues, and how tasks end, a line each.

    Example:
        >>> from flowno import AsyncQueue, run
        >>> from flowno.core.event_loop.instrumentation import PrintInstrument
        >>> async def main():
        ...     queue = AsyncQueue()
        ...     await queue.put("an item")
        ...     return await queue.get()
        >>> with PrintInstrument():
        ...     run(main())
        [put] <AsyncQueue with 1 items>: 'an item', at once
        [get] <AsyncQueue with 0 items>: 'an item', at once
        [task] main returned 'an item'
        'an item'
    """

    def _write(self, template: str, *args: object) -> None:
        print(template % args)

    def on_queue_put(self, queue: _Queue[Any, Any], item: Any, immediate: bool) -> None:
        self._write("[put] %r: %s, %s", queue, _shown(item), _at_once(immediate))

    def on_queue_get(self, queue: _Queue[Any, Any], item: Any, immediate: bool) -> None:
        self._write("[get] %r: %s, %s", queue, _shown(item), _at_once(immediate))

    def on_socket_connect_start(self, metadata: SocketConnectStartMetadata) -> None:
        self._write("[connect] %r to %s", metadata.socket_handle, address_in_words(metadata.target_address))

    def on_socket_connect_ready(self, metadata: SocketConnectReadyMetadata) -> None:
        self._write("[connect] %r: connected, %s", metadata.socket_handle, _duration(metadata))

    def on_socket_accept_start(self, metadata: InstrumentationMetadata) -> None:
        self._write("[accept] %r", metadata.socket_handle)

    def on_socket_accept_ready(self, metadata: ReadySocketInstrumentationMetadata) -> None:
        peer = peer_in_words(metadata.peer_address)
        self._write("[accept] %r: %s, %s", metadata.socket_handle, peer, _duration(metadata))

    def on_socket_recv_start(self, metadata: InstrumentationMetadata) -> None:
        self._write("[recv] %r", metadata.socket_handle)

    def on_socket_recv_ready(self, metadata: ReadySocketInstrumentationMetadata) -> None:
        self._write("[recv] %r: ready, %s", metadata.socket_handle, _duration(metadata))

    def on_socket_recv_data(self, metadata: SocketRecvDataMetadata) -> None:
        self._write("[recv] %r: %d bytes, %s", metadata.socket_handle, len(metadata.data), _shown(metadata.data))

    def on_socket_send_start(self, metadata: InstrumentationMetadata) -> None:
        self._write("[send] %r", metadata.socket_handle)

    def on_socket_send_ready(self, metadata: ReadySocketInstrumentationMetadata) -> None:
        self._write("[send] %r: done, %s", metadata.socket_handle, _duration(metadata))

    def on_socket_send_data(self, metadata: SocketSendDataMetadata) -> None:
        sent = metadata.data[: metadata.bytes_sent]
        self._write("[send] %r: %d bytes, %s", metadata.socket_handle, metadata.bytes_sent, _shown(sent))

    def on_socket_close(self, metadata: InstrumentationMetadata) -> None:
        self._write("[close] %r", metadata.socket_handle)

    def on_tls_handshake_complete(self, metadata: TLSHandshakeMetadata) -> None:
        cipher = metadata.cipher[0] if metadata.cipher is not None else "no cipher"
        seconds = metadata.finish_time - metadata.start_time
        self._write("[tls] %r: %s, %s, after %.6f s", metadata.socket_handle, metadata.version, cipher, seconds)

    def on_task_completed(self, task: RawTask, result: Any) -> None:
        self._write("[task] %s returned %s", function_name(task), _shown(result))

    def on_task_error(self, task: RawTask, exception: BaseException) -> None:
        self._write("[task] %s ended with %s", function_name(task), _shown(exception))

    def on_task_cancelled(self, task: RawTask, exception: BaseException) -> None:
        self._write("[task] %s was cancelled", function_name(task))


class LogInstrument(PrintInstrument):
    """Logs what :class:`PrintInstrument` prints, at level DEBUG of the logger ``flowno.instrumentation``."""

    def _write(self, template: str, *args: object) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s", template % args)  # now: what is said of a handle changes


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


def _shown(value: object) -> str:
    """A value in one line of ASCII, however long it is, whatever is in it, and also where its repr raises."""
    text = repr(value[:48]) + ("..." if len(value) > 48 else "") if isinstance(value, bytes) else _short.repr(value)
    return text.encode("ascii", "backslashreplace").decode()


def _at_once(immediate: bool) -> str:
    return "at once" if immediate else "after a wait"


def _duration(metadata: ReadySocketInstrumentationMetadata | SocketConnectReadyMetadata) -> str:
    if metadata.immediate:
        return "at once"
    return f"after {metadata.finish_time - metadata.start_time:.6f} s"
