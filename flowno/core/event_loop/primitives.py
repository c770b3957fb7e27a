"""What a coroutine can ask of the event loop that runs it, as functions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Generator
from math import inf
from types import coroutine
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from .commands import Command, ExitCommand, SleepCommand, SpawnCommand
from .running import current_world
from .selectors import SocketHandle
from .tasks import GIVE_WAY

if TYPE_CHECKING:
    import ssl
    from typing import NoReturn

    from .selectors import Address
    from .tasks import TaskHandle
    from .tls import TLSSocketHandle

__all__ = ["azip", "connect", "exit", "sleep", "socket", "spawn"]

T = TypeVar("T")
T2 = TypeVar("T2")
T3 = TypeVar("T3")


@coroutine
def spawn(coroutine: Awaitable[T]) -> Generator[Command, Any, TaskHandle[T]]:
    """Start a task that runs beside this one. Its first step is made before this one goes on.

    The child runs in a copy of the parent's context variables. It is not cancelled with its parent.

    Args:
        coroutine: What the task runs.

    Returns:
        The handle by which it can be joined and cancelled.

    Raises:
        TypeError: That is no coroutine.

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
    handle: TaskHandle[T] = yield SpawnCommand(coroutine)
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
    if seconds.__class__ is int and seconds <= 0:  # the usual way to give way; the rest is for any number
        nothing: float = yield GIVE_WAY
        return nothing
    if not isinstance(seconds, (int, float)):
        raise TypeError(f"seconds must be a number, not {seconds!r}")
    try:
        seconds = float(seconds)
    except OverflowError:  # an int beyond any float
        seconds = inf if seconds > 0 else 0.0
    slept: float = yield SleepCommand(seconds)
    return slept


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

    Cancellation: the handle is closed, as an attempt that is half done can be neither used nor repeated.
    """
    if not isinstance(handle, SocketHandle):
        raise TypeError(f"handle must be a SocketHandle, not {handle!r}")
    await handle._connect(address)


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
        for iterator in iterators:
            if isinstance(iterator, AsyncGenerator):
                await iterator.aclose()
