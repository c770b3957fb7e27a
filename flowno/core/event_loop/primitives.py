"""What a coroutine can ask of the event loop that runs it, as functions."""

from __future__ import annotations

import socket as _socket
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Generator
from math import inf
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from .commands import (
    Command,
    ExitCommand,
    FdCommand,
    FdReadableCommand,
    FdWritableCommand,
    SleepCommand,
    SpawnCommand,
)
from .operations import coroutine
from .running import current_world, required_event_loop
from .sockets import SocketHandle
from .tasks import DONE, GIVE_WAY, checked_name
from .timers import checked_seconds

if TYPE_CHECKING:
    import ssl
    from typing import NoReturn

    from .addresses import Address
    from .backend import FileObject
    from .tasks import TaskHandle
    from .tls import TLSSocketHandle

__all__ = [
    "azip",
    "connect",
    "current_time",
    "exit",
    "sleep",
    "sleep_forever",
    "sleep_until",
    "socket",
    "socketpair",
    "spawn",
    "wait_readable",
    "wait_writable",
]

T = TypeVar("T")
T2 = TypeVar("T2")
T3 = TypeVar("T3")

_FOR_EVER = SleepCommand(inf)


@coroutine
def spawn(coroutine: Awaitable[T], *, name: str | None = None) -> Generator[Command, Any, TaskHandle[T]]:
    """Start a task that runs beside this one. Its first step is made before this one goes on.

    The child runs in a copy of the parent's context variables. It is not cancelled with its parent.

    Args:
        coroutine: What the task runs.
        name: What it is called in messages; by default, as the function that it runs.

    Returns:
        The handle by which it can be joined and cancelled.

    Raises:
        TypeError: That is no coroutine, or no name.

    Cancellation: spawning is no wait; it always happens.

    Example:
        >>> from flowno import run, sleep, spawn
        >>> async def double(number):
        ...     await sleep(0)
        ...     return 2 * number
        >>> async def main():
        ...     handles = [await spawn(double(number)) for number in range(3)]
        ...     return [await handle.join() for handle in handles]
        >>> run(main())
        [0, 2, 4]
    """
    if name is not None:
        checked_name(name)
    handle: TaskHandle[T] = yield SpawnCommand(coroutine, name)
    return handle


@coroutine
def sleep(seconds: float) -> Generator[Command, Any, float]:
    """Wait for some time.

    Args:
        seconds: How long; may be infinite. 0 and less let the other ready tasks run once.

    Returns:
        The seconds that it took, by the loop's clock; 0.0 where there was nothing to wait for.

    Raises:
        TypeError: ``seconds`` is no number.
        ValueError: ``seconds`` is NaN.

    Cancellation: the wait ends at once, and no timer is left.
    """
    if seconds.__class__ is not float:
        if seconds.__class__ is int and seconds <= 0:  # the usual way to give way; the rest is for any number
            yield GIVE_WAY
            return 0.0
        seconds = checked_seconds(seconds, "seconds")
    slept: float = yield SleepCommand(seconds)
    return slept


@coroutine
def sleep_until(deadline: float) -> Generator[Command, Any, float]:
    """Wait until the loop's clock, :func:`current_time`, has come to a time.

    Args:
        deadline: When, in seconds; one that has passed lets the other ready tasks run once.

    Returns:
        The seconds that it took; 0.0 where there was nothing to wait for.

    Raises:
        TypeError: ``deadline`` is no number.
        ValueError: ``deadline`` is NaN.

    Cancellation: the wait ends at once, and no timer is left.
    """
    slept: float = yield SleepCommand(checked_seconds(deadline, "deadline") - current_time())
    return slept


@coroutine
def sleep_forever() -> Generator[Command, Any, NoReturn]:
    """Wait until the task is cancelled.

    Cancellation: what this is for.
    """
    while True:
        yield _FOR_EVER


def current_time() -> float:
    """The time of the loop's clock, in seconds: what the deadlines of scopes and of :func:`sleep_until` count by.

    It never goes back, and is no time of day. With :func:`time.monotonic` it is comparable unless the selector brings a
    clock of its own.

    Raises:
        EventLoopError: No event loop runs in this thread.
    """
    return required_event_loop("current_time()").clock()


@coroutine
def exit(return_value: object = None, exception: BaseException | None = None) -> Generator[Command, Any, NoReturn]:
    """End the run of the loop now. The other tasks are cancelled and run until they have ended; so is this one.

    Args:
        return_value: What ``run_until_complete(join=True)`` and :func:`flowno.run` return.
        exception: What they raise instead, where it is given.

    Raises:
        TypeError: ``exception`` is no exception.
    """
    if exception is not None and not isinstance(exception, BaseException):
        raise TypeError(f"exception must be an exception, not {exception!r}")
    yield ExitCommand(return_value, exception)
    raise RuntimeError("unreachable: the loop cancels the task that called exit()")


async def connect(handle: SocketHandle, address: Address) -> None:
    """Connect a handle to a peer while the other tasks run; with TLS the handshake is part of it.

    A name is resolved in a worker thread, a numeric address needs none.

    Args:
        handle: A handle that is not connected yet.
        address: As the socket's family has it: ``(host, port)`` for IPv4 and IPv6, a path for a Unix socket.

    Raises:
        OSError: What the system says of the attempt, with the address.
        ssl.SSLError: The handshake failed. The handle is closed then.
        TimeoutError: The peer took longer than ``handshake_timeout`` over the handshake. The handle is closed then.
        BusyResourceError: Another task uses the handle.
        ClosedResourceError: The handle is closed.
        TypeError: ``handle`` is no handle, or ``address`` no address of its family.
        ValueError: The host can be no name, or the port is not 0 to 65535.

    Cancellation: the handle is closed, as an attempt that is half done can be neither used nor repeated.
    """
    if not isinstance(handle, SocketHandle):
        raise TypeError(f"handle must be a SocketHandle, not {handle!r}")
    await handle._connect(address)


async def wait_readable(fileobj: FileObject) -> None:
    """Wait until a read would not block: there is data, the end, an error, or a connection to accept.

    For what flowno has no handle for: pipes, terminals, devices, sockets of other libraries. The descriptor is not
    touched. A regular file is always ready; the other tasks run once.

    A system may say of a socket that it is readable when it is not, as where a datagram arrives with a wrong checksum
    (select(2), BUGS). A read of a blocking descriptor would hold up the loop then; one of a non-blocking descriptor
    says BlockingIOError, and is tried again after another wait.

    Args:
        fileobj: A file descriptor, or an object with a ``fileno()`` method, also a :class:`SocketHandle`: then it is
            its socket that is waited for, whatever TLS has decrypted already. On Windows only sockets will do.

    Raises:
        ValueError: A negative number, or one that no fd has; a number that the selector cannot hold (1024 and more for
            select); on Windows anything but an open socket.
        TypeError: That is no descriptor, and has none.
        OSError: The selector does not take it.
        BusyResourceError: Another task reads from it, or waits to.
        ClosedResourceError: It is closed, or was closed meanwhile. A handle says so at once. A descriptor that
            something else closes is missed within a second or so; close it only when nobody waits for it.

    Cancellation: the wait ends, and nothing is left of it.

    Example:
        >>> import socket
        >>> from flowno import run, spawn, wait_readable
        >>> async def main():
        ...     reader, writer = socket.socketpair()  # anywhere but on Windows, os.pipe() does as well
        ...     with reader, writer:
        ...         waiting = await spawn(wait_readable(reader))
        ...         writer.send(b"a line")
        ...         await waiting.join()
        ...         return reader.recv(100)
        >>> run(main())
        b'a line'
    """
    if isinstance(fileobj, SocketHandle):
        await fileobj._wait_until(EVENT_READ)
    else:
        await _wait_for_fd(FdReadableCommand(fileobj), EVENT_READ)


async def wait_writable(fileobj: FileObject) -> None:
    """Wait until a write would not block: there is room, or nobody reads any more.

    Everything else is as of :func:`wait_readable`.

    Args:
        fileobj: A file descriptor, or an object with a ``fileno()`` method. On Windows only sockets will do.

    Raises:
        ValueError, TypeError, OSError, ClosedResourceError: As of :func:`wait_readable`.
        BusyResourceError: Another task writes to it, or waits to.

    Cancellation: the wait ends, and nothing is left of it.
    """
    if isinstance(fileobj, SocketHandle):
        await fileobj._wait_until(EVENT_WRITE)
    else:
        await _wait_for_fd(FdWritableCommand(fileobj), EVENT_WRITE)


@coroutine
def _wait_for_fd(command: FdCommand, direction: int) -> Generator[Command, Any, None]:
    fds = required_event_loop("wait_readable()" if direction == EVENT_READ else "wait_writable()").fds
    try:
        yield command
        fds.verify(command)
    finally:
        fds.end_wait(command, direction)


@overload
def socket(
    family: int = ...,
    type: int = ...,
    proto: int = ...,
    fileno: int | None = ...,
    use_tls: Literal[False] = ...,
    ssl_context: ssl.SSLContext | None = ...,
    server_hostname: str | None = ...,
) -> SocketHandle: ...


@overload
def socket(
    family: int = ...,
    type: int = ...,
    proto: int = ...,
    fileno: int | None = ...,
    *,
    use_tls: Literal[True],
    ssl_context: ssl.SSLContext | None = ...,
    server_hostname: str | None = ...,
) -> TLSSocketHandle: ...


@overload
def socket(
    family: int = ...,
    type: int = ...,
    proto: int = ...,
    fileno: int | None = ...,
    use_tls: bool = ...,
    ssl_context: ssl.SSLContext | None = ...,
    server_hostname: str | None = ...,
) -> SocketHandle: ...


def socket(
    family: int = -1,
    type: int = -1,
    proto: int = -1,
    fileno: int | None = None,
    use_tls: bool = False,
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
) -> SocketHandle:
    """A new socket, as ``socket.socket`` makes it, with the handle that tasks use it by.

    Args:
        family: Such as ``socket.AF_INET``, which is the default.
        type: Such as ``socket.SOCK_STREAM``, which is the default.
        proto: The protocol number, usually left out.
        fileno: An open socket fd to take over, whose family, type and protocol are then found out.
        use_tls: Whether the bytes go through TLS.
        ssl_context: The TLS settings; by default those of ``ssl.create_default_context()``, which verify the peer.
        server_hostname: The name that the peer's certificate must be for.

    Returns:
        A :class:`SocketHandle`, or with ``use_tls`` a :class:`TLSSocketHandle`.

    Raises:
        OSError: The system has no such socket to give.
        ValueError: TLS settings without ``use_tls``.
    """
    if not use_tls and (ssl_context is not None or server_hostname is not None):
        raise ValueError("ssl_context and server_hostname need use_tls=True")
    sock = current_world().socket(family, type, proto, fileno)
    try:
        if not use_tls:
            return SocketHandle(sock)
        import ssl

        from .tls import TLSSocketHandle

        return TLSSocketHandle(sock, ssl_context or ssl.create_default_context(), server_hostname)
    except BaseException:
        sock.close()
        raise


def socketpair(
    family: int | None = None, type: int = _socket.SOCK_STREAM, proto: int = 0
) -> tuple[SocketHandle, SocketHandle]:
    """Two sockets that are connected to each other, as ``socket.socketpair`` makes them, with their handles.

    Args:
        family: By default ``socket.AF_UNIX`` where the system has that, else ``socket.AF_INET``.
        type: ``socket.SOCK_STREAM``, or another type where the system can.
        proto: The protocol number, usually left out.

    Raises:
        OSError: The system has no such sockets to give.
        ValueError: The system makes pairs of that kind not at all (Windows: anything but streams of the internet
            families).

    Example:
        >>> from flowno import run, socketpair
        >>> async def main():
        ...     one, other = socketpair()
        ...     with one, other:
        ...         await one.sendAll(b"Hello")
        ...         return await other.recv(100)
        >>> run(main())
        b'Hello'
    """
    make = current_world().socketpair
    if family is None:  # as a default the system knows it, as an argument not everywhere
        one, other = make(type=type, proto=proto)
    else:
        one, other = make(family, type, proto)
    return SocketHandle(one), SocketHandle(other)


@overload
def azip(iterable: AsyncIterable[T], /) -> AsyncGenerator[tuple[T], None]: ...


@overload
def azip(iterable1: AsyncIterable[T], iterable2: AsyncIterable[T2], /) -> AsyncGenerator[tuple[T, T2], None]: ...


@overload
def azip(
    iterable1: AsyncIterable[T], iterable2: AsyncIterable[T2], iterable3: AsyncIterable[T3], /
) -> AsyncGenerator[tuple[T, T2, T3], None]: ...


@overload
def azip(*iterables: AsyncIterable[Any]) -> AsyncGenerator[tuple[Any, ...], None]: ...


async def azip(*iterables: AsyncIterable[Any]) -> AsyncGenerator[tuple[Any, ...], None]:
    """Step through asynchronous iterables side by side, as ``zip`` does; ends with the shortest, and closes them all.

    Args:
        *iterables: What to step through. Each is asked for its next item in turn.

    Yields:
        A tuple with one item of each.

    Example:
        >>> from flowno import azip, run
        >>> async def count(start):
        ...     for number in range(start, start + 2):
        ...         yield number
        >>> async def main():
        ...     return [pair async for pair in azip(count(0), count(10))]
        >>> run(main())
        [(0, 10), (1, 11)]
    """
    iterators = [aiter(iterable) for iterable in iterables]
    if not iterators:
        await DONE  # with nobody to ask it would never give way
    try:
        while iterators:
            items = []
            for iterator in iterators:
                try:
                    items.append(await anext(iterator))
                except StopAsyncIteration:
                    return
            yield tuple(items)
    finally:
        await _close_all(iterators)


async def _close_all(iterators: list[AsyncIterator[Any]]) -> None:
    """Close those that can be closed, the others also where the clean-up of one fails or is cancelled."""
    for position, iterator in enumerate(iterators, 1):
        if isinstance(iterator, AsyncGenerator):
            try:
                await iterator.aclose()
            except BaseException:
                await _close_all(iterators[position:])
                raise
