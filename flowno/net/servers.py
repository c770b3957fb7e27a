"""Servers: they listen, accept, and run a handler for each connection, in a task of its own.

What goes wrong with one connection is the end of that connection, and of nothing else: a failing handler, a handshake
that stalls, a peer that is gone before it was accepted. Where the system runs out of descriptors, or the selector of
room for them, the connections wait in the backlog until there is some.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import socket as _socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from inspect import (
    CO_ASYNC_GENERATOR,
    CO_GENERATOR,
    CO_ITERABLE_COROUTINE,
    isawaitable,
    iscoroutinefunction,
    isroutine,
)
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

from ..core.event_loop.addresses import Address
from ..core.event_loop.primitives import sleep, socket, wait_readable
from ..core.event_loop.running import current_task, required_event_loop
from ..core.event_loop.scopes import move_on_after
from ..core.event_loop.sockets import SocketHandle
from ..core.event_loop.synchronization import Event
from ..core.event_loop.tasks import TaskCancelled
from ..core.event_loop.timers import checked_seconds
from ..core.event_loop.words import address_in_words, peer_in_words
from .activation import activated_sockets
from .arguments import HANDSHAKE_TIMEOUT, check_host, check_limit, check_tls, check_tls_options
from .connections import set_no_delay
from .resolver import getaddrinfo
from .streams import DEFAULT_LIMIT, Stream
from .unix_sockets import SocketFile, UnixPath, listen_on_path, unix_path

if TYPE_CHECKING:
    import ssl
    from types import TracebackType
    from typing import Self

    from ..core.event_loop.tasks import TaskHandle
    from .resolver import AddressInfo

__all__ = [
    "GRACE",
    "Handler",
    "HandshakeErrorHook",
    "Server",
    "serve_activated",
    "serve_sockets",
    "serve_tcp",
    "serve_unix",
]

Handler: TypeAlias = Callable[[Stream], Awaitable[object]]
"""What serves one connection: an async function of its stream, which is closed when the function returns."""

HandshakeErrorHook: TypeAlias = Callable[[Address, OSError], object]
"""What is told of TLS handshakes that fail: the address of the peer, and the error."""

logger = logging.getLogger("flowno.net")

#: How many connections may wait to be accepted, unless told otherwise. listen(2): the system takes it down to its own
#: bound (net.core.somaxconn), which administrators set for just this. A number of ours would only get in their way.
BACKLOG = max(_socket.SOMAXCONN, 4096)

#: Seconds that a peer has to end its side of TLS after the handler has returned. It need not do so (RFC 8446 section
#: 6.1), and one that keeps silent should not keep its place among ``max_connections``.
CLOSING_TIME = 5.0

#: How many connections a listening socket may accept before the other tasks have their turn.
ACCEPTS_PER_TURN = 64

#: Out of descriptors or memory, accept(2), or of what the selector can hold, such as ENOSPC of epoll_ctl(2):
#: connections stay in the backlog, which is tried again after some seconds.
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC})
PAUSE = 0.1

#: Seconds that handlers have to finish when a server stops, unless told otherwise.
GRACE = 5.0

#: Seconds after which handlers that have swallowed their cancellation are cancelled again, and how often that is done.
#: Those that still run then are named in the log.
REMINDER = 1.0
REMINDERS = 4

#: How often a free port is looked for that every address of a server can have.
PORT_TRIES = 20

#: What a port says that another program has, or that Windows keeps for itself.
_TAKEN = frozenset({errno.EADDRINUSE, errno.EACCES})

#: What an address says that this machine cannot have: the kernel lacks the family, or it is switched off.
_NOT_HERE = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


async def serve_tcp(
    handler: Handler,
    host: str | Sequence[str] | None,
    port: int | str,
    *,
    tls: ssl.SSLContext | None = None,
    backlog: int | None = None,
    reuse_port: bool = False,
    max_connections: int | None = None,
    limit: int = DEFAULT_LIMIT,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
    require_close_notify: bool = True,
    on_handshake_error: HandshakeErrorHook | None = None,
) -> Server:
    """Listen on TCP, and run the handler for each connection.

    The server listens on all addresses of the host; with port 0 the system chooses one that all of them share. When
    this returns, clients can connect.

    Args:
        handler: An async function that is called with the :class:`~flowno.Stream` of each connection, and runs in a
            task of its own. Its error is logged, and ends that connection only.
        host: A name, a number, or several; None is all interfaces of this machine, by IPv4 and IPv6.
        port: A number or the name of a service.
        tls: The TLS settings, with a certificate; each handshake is made in the task of its connection.
        backlog: How many connections may wait to be accepted; None takes as many as the system allows.
        reuse_port: Whether other processes may listen on the same port, and get their share of the connections.
        max_connections: How many connections may be open at once, those included whose TLS handshake is going on; the
            others wait in the backlog.
        limit: How many bytes may stand before a separator, see :class:`~flowno.Stream`.
        handshake_timeout: How many seconds a TLS handshake may take.
        require_close_notify: Whether a stream that ends without the client's close_notify is an error, as it may have
            been cut off. False takes it for the end, for clients that never send one.
        on_handshake_error: A plain function that is called with the address of the peer and the error of its TLS
            handshake, instead of logging it; to count them, or to find out who knocks. What it raises is logged.

    Returns:
        The server; leaving it as an asynchronous context manager stops it.

    Raises:
        OSError: An address is taken, or is not this machine's; it is named.
        socket.gaierror: The host does not resolve.
        ssl.SSLError: The TLS settings are for clients only.
        ValueError: ``reuse_port`` on a system without it, what is for TLS without ``tls``, or a number that is out of
            range.
        TypeError: An argument is of the wrong type.

    Cancellation: nothing is left open.

    Example:
        >>> from flowno import open_connection, run, serve_tcp
        >>> async def shout(stream):
        ...     async for line in stream:
        ...         await stream.write(line.upper())
        >>> async def main():
        ...     async with await serve_tcp(shout, "127.0.0.1", 0) as server:
        ...         async with await open_connection(*server.addresses[0]) as stream:
        ...             await stream.write(b"hello\\n")
        ...             return await stream.readline()
        >>> run(main())
        b'HELLO\\n'
    """
    settings = _Settings(
        handler=handler,
        tls=tls,
        max_connections=max_connections,
        limit=limit,
        handshake_timeout=handshake_timeout,
        require_close_notify=require_close_notify,
        on_handshake_error=on_handshake_error,
    )
    settings.check()
    _check_backlog(backlog)
    if reuse_port and not hasattr(_socket, "SO_REUSEPORT"):
        raise ValueError("reuse_port: this system has no SO_REUSEPORT")
    wanted = await _addresses(host, port)
    return Server(settings, _listen_on_all(wanted, backlog, reuse_port))


async def serve_unix(
    handler: Handler,
    path: UnixPath,
    *,
    mode: int | None = None,
    tls: ssl.SSLContext | None = None,
    backlog: int | None = None,
    max_connections: int | None = None,
    limit: int = DEFAULT_LIMIT,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
    require_close_notify: bool = True,
    on_handshake_error: HandshakeErrorHook | None = None,
) -> Server:
    """Listen on a Unix socket, and run the handler for each connection.

    A socket file that a server has left behind is removed; one that somebody listens on is not. To find out, this
    connects to it. When the server stops, it removes its file, unless another one has taken its place.

    Args:
        handler: As of :func:`serve_tcp`.
        path: Where to put the socket; on Linux, a name that begins with a zero byte is abstract.
        mode: The permissions of the file, such as ``0o660``; who may write may connect. None leaves them to the umask.
        tls: As of :func:`serve_tcp`.
        backlog: As of :func:`serve_tcp`.
        max_connections: As of :func:`serve_tcp`.
        limit: As of :func:`serve_tcp`.
        handshake_timeout: As of :func:`serve_tcp`.
        require_close_notify: As of :func:`serve_tcp`.
        on_handshake_error: As of :func:`serve_tcp`.

    Returns:
        The server; leaving it as an asynchronous context manager stops it.

    Raises:
        OSError: Somebody listens there, or something else is there (EADDRINUSE); the path is too long (ENAMETOOLONG);
            there are no Unix sockets (EAFNOSUPPORT); and what else the system says. The path is in the message.
        ValueError, TypeError, ssl.SSLError: As of :func:`serve_tcp`; ``mode`` for an abstract name, which has none.

    Cancellation: this does not wait.
    """
    settings = _Settings(
        handler=handler,
        tls=tls,
        max_connections=max_connections,
        limit=limit,
        handshake_timeout=handshake_timeout,
        require_close_notify=require_close_notify,
        on_handshake_error=on_handshake_error,
    )
    settings.check()
    _check_backlog(backlog)
    if mode is not None and not isinstance(mode, int):
        raise TypeError(f"mode must be an int, such as 0o660, or None, not {mode!r}")
    required_event_loop("serve_unix()")
    listener, file = listen_on_path(unix_path(path), mode, BACKLOG if backlog is None else backlog)
    return Server(settings, [listener], file)


async def serve_sockets(
    handler: Handler,
    sockets: Iterable[SocketHandle],
    *,
    tls: ssl.SSLContext | None = None,
    max_connections: int | None = None,
    limit: int = DEFAULT_LIMIT,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
    require_close_notify: bool = True,
    on_handshake_error: HandshakeErrorHook | None = None,
) -> Server:
    """Run the handler for each connection to sockets that listen already. The server takes them over.

    Args:
        handler: As of :func:`serve_tcp`.
        sockets: Handles of stream sockets that listen.
        tls: As of :func:`serve_tcp`.
        max_connections: As of :func:`serve_tcp`.
        limit: As of :func:`serve_tcp`.
        handshake_timeout: As of :func:`serve_tcp`.
        require_close_notify: As of :func:`serve_tcp`.
        on_handshake_error: As of :func:`serve_tcp`.

    Returns:
        The server; leaving it as an asynchronous context manager stops it.

    Raises:
        ValueError: There are no sockets, or one does not listen, or is no stream socket. They are left open. And as of
            :func:`serve_tcp`.
        TypeError, ssl.SSLError: As of :func:`serve_tcp`.

    Cancellation: this does not wait.
    """
    settings = _Settings(
        handler=handler,
        tls=tls,
        max_connections=max_connections,
        limit=limit,
        handshake_timeout=handshake_timeout,
        require_close_notify=require_close_notify,
        on_handshake_error=on_handshake_error,
    )
    settings.check()
    required_event_loop("serve_sockets()")
    if not isinstance(sockets, Iterable):
        raise TypeError(f"sockets must be handles of sockets that listen, not {sockets!r}")
    return _serve_on(list(sockets), settings)


async def serve_activated(
    handler: Handler,
    *,
    tls: ssl.SSLContext | None = None,
    max_connections: int | None = None,
    limit: int = DEFAULT_LIMIT,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
    require_close_notify: bool = True,
    on_handshake_error: HandshakeErrorHook | None = None,
) -> Server:
    """Run the handler for each connection to the sockets that systemd opened for this process.

    For sockets that are to be served differently, take them by
    :func:`~flowno.net.activation.activated_sockets`, and give each its server by :func:`serve_sockets`.

    Args:
        handler: As of :func:`serve_tcp`.
        tls: As of :func:`serve_tcp`.
        max_connections: As of :func:`serve_tcp`.
        limit: As of :func:`serve_tcp`.
        handshake_timeout: As of :func:`serve_tcp`.
        require_close_notify: As of :func:`serve_tcp`.
        on_handshake_error: As of :func:`serve_tcp`.

    Returns:
        The server; leaving it as an asynchronous context manager stops it.

    Raises:
        OSError: Nothing was passed (ENOENT); and as :func:`~flowno.net.activation.activated_sockets`.
        ValueError: A socket does not listen, or has no connections: ``ListenStream=`` and ``Accept=no`` are what it
            takes. And as of :func:`serve_tcp`.
        TypeError, ssl.SSLError: As of :func:`serve_tcp`.

    Cancellation: this does not wait.
    """
    settings = _Settings(
        handler=handler,
        tls=tls,
        max_connections=max_connections,
        limit=limit,
        handshake_timeout=handshake_timeout,
        require_close_notify=require_close_notify,
        on_handshake_error=on_handshake_error,
    )
    settings.check()
    required_event_loop("serve_activated()")
    for_us = os.environ.get("LISTEN_PID", ""), os.environ.get("LISTEN_FDS", "")
    sockets = [handle for handles in activated_sockets().values() for handle in handles]
    if not sockets:
        raise OSError(
            errno.ENOENT,
            f"no socket was passed to this process, {os.getpid()} (LISTEN_PID={for_us[0]}, LISTEN_FDS={for_us[1]}); "
            "it is to be started by a systemd socket unit, or by systemd-socket-activate",
        )
    try:
        return _serve_on(sockets, settings)
    except BaseException:
        for handle in sockets:
            handle.close()
        raise


class _Settings(NamedTuple):
    """What a server does with its connections."""

    handler: Handler
    tls: ssl.SSLContext | None
    max_connections: int | None
    limit: int
    handshake_timeout: float
    require_close_notify: bool
    on_handshake_error: HandshakeErrorHook | None

    def check(self) -> None:
        """See that it can be done, before anything listens."""
        handler: object = self.handler
        if not callable(handler) or _gives_generator(handler):
            raise TypeError(f"handler must be an async function that takes a stream, not {handler!r}")
        if self.max_connections is not None:
            if not isinstance(self.max_connections, int):
                raise TypeError(f"max_connections must be an int or None, not {self.max_connections!r}")
            if self.max_connections < 1:
                raise ValueError(f"max_connections must be at least 1, or None, not {self.max_connections!r}")
        check_limit(self.limit)
        check_tls_options(self.tls, self.require_close_notify, self.handshake_timeout)
        hook: object = self.on_handshake_error
        if hook is not None:
            if not callable(hook) or iscoroutinefunction(hook):
                raise TypeError(f"on_handshake_error must be a plain function of an address and an error, not {hook!r}")
            if self.tls is None:
                raise ValueError("on_handshake_error needs tls: without it, there is no handshake")
        if self.tls is not None:
            check_tls(self.tls, server_side=True)


def _gives_generator(handler: Any) -> bool:
    """Whether a call gives a generator, which nothing can await: there is a ``yield`` in what is to be a handler.

    Of another plain function nobody can tell before it is called, as it may give a coroutine.
    """
    while isinstance(handler, functools.partial):
        handler = handler.func
    if not isroutine(handler):
        handler = type(handler).__call__
    flags = getattr(getattr(handler, "__code__", None), "co_flags", 0)
    # What types.coroutine() has marked can be awaited all the same.
    return bool(flags & (CO_GENERATOR | CO_ASYNC_GENERATOR)) and not flags & CO_ITERABLE_COROUTINE


def _name_of(handler: Any) -> str:
    """What the tasks of connections are called: as a task that runs the handler itself would be."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    return getattr(handler, "__qualname__", None) or type(handler).__name__


class Server:
    """Accepts connections and runs their handlers. Made by :func:`serve_tcp` and its like, not by calling this class.

    An asynchronous context manager: leaving it stops it as :meth:`aclose` does. A server that nobody refers to goes on.

    Attributes:
        addresses: What it listens on, as the sockets' family has it; with port 0, with the port that was chosen.
        sockets: The handles of the listening sockets.
    """

    def __init__(self, settings: _Settings, listeners: Sequence[SocketHandle], file: SocketFile | None = None) -> None:
        self._settings = settings
        self._name_of_tasks = _name_of(settings.handler)
        self.sockets = tuple(listeners)
        self._file = file
        self._closing = False
        self._error: Exception | None = None
        self._paused = False  # short of descriptors, and it has been said
        self._connections: dict[TaskHandle[Any], Address] = {}
        #: By their listeners, the connections that were accepted, and that the selector has no room for.
        self._kept: dict[SocketHandle, tuple[SocketHandle, Address]] = {}
        self._changed: Event | None = None  # happens when a connection has ended, where somebody waits for that
        self._ended = Event()  # no longer listening, and no connection is left
        loop = required_event_loop("a server")
        self.addresses: tuple[Address, ...] = tuple(listener.getsockname() for listener in listeners)
        # No wait from here on: nothing can be lost between the sockets and who is responsible for them.
        self._acceptors = [loop.create_task(self._accept(listener)) for listener in listeners]
        self._accepting = len(self._acceptors)

    # --- for users ---------------------------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def close(self) -> None:
        """Stop listening. Connections go on. Idempotent, and it never waits."""
        if self._closing:
            return
        self._closing = True
        for listener in self.sockets:
            listener.close()
        for task in self._acceptors:
            task.cancel()
        for handle, _ in self._kept.values():
            handle.abort()
        self._kept.clear()
        if self._file is not None:
            self._file.remove()

    async def aclose(self, grace: float = GRACE) -> None:
        """Stop: listen no more, let the handlers finish, and cancel those that have not by then. Idempotent.

        This waits until they have ended. A handler that cleans up, in a ``finally`` or an ``except``, has as long as
        that takes; one that has swallowed its cancellation is cancelled again, every second, four times at most. Those
        that still run after five seconds are named in the log.

        A handler that calls this is not waited for, and not cancelled.

        Args:
            grace: How many seconds the handlers have; 0 cancels them now, infinite waits for as long as they take.

        Raises:
            TypeError, ValueError: ``grace`` is no number. Nothing was done.

        Cancellation: the handlers are cancelled at once; this does not wait for them any more.
        """
        grace = checked_seconds(grace, "grace")
        self.close()
        try:
            with move_on_after(grace):
                await self._others_ended()
            self._cancel_others()
            with move_on_after(REMINDER):
                await self._others_ended()
            for _ in range(REMINDERS):
                self._remind_others()
                with move_on_after(REMINDER):
                    await self._others_ended()
            self._name_others()
            await self._others_ended()
        except BaseException:
            self._cancel_others()
            raise

    async def wait_closed(self) -> None:
        """Wait until the server has stopped listening and every connection has ended.

        Cancellation: the wait ends, and the server goes on.
        """
        await self._ended.wait()

    async def serve_forever(self) -> None:
        """Wait until something stops the server.

        Raises:
            Exception: It could not go on accepting; mostly an OSError.

        Cancellation: stops the server as :meth:`aclose` does.
        """
        try:
            await self._ended.wait()
        except BaseException:
            await self.aclose()
            raise
        if self._error is not None:
            raise self._error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        where = ", ".join(address_in_words(address) for address in self.addresses)
        state = "closed" if self._ended.is_set() else "closing" if self._closing else "listening"
        return f"<Server {where} {state}, {len(self._connections)} connections>"

    # --- accepting ---------------------------------------------------------------------------------------------------

    async def _accept(self, listener: SocketHandle) -> None:
        """Accept connections until the server is closed. What ends this ends the server."""
        was_held = is_emptied = False
        try:
            while True:
                try:
                    if listener not in self._kept:
                        await wait_readable(listener)
                        was_held = True
                        if is_emptied:  # and the selector still had room for the listener: that was it
                            self._paused = is_emptied = False
                    while self._is_full:
                        await self._next_change().wait()
                    is_emptied = self._accept_some(listener)
                except (OSError, ValueError) as error:
                    # ValueError: a full selector. A listener that nobody waits for is taken out of it, too.
                    if not (error.errno in _NO_ROOM if isinstance(error, OSError) else was_held):
                        raise
                    await self._pause(listener, error)
        except Exception as error:
            if not self._closing:
                self._error = error
                logger.error("%r cannot accept any more, and stops listening: %s", self, error)
        finally:
            self._accepting -= 1
            self.close()
            self._check_end()

    def _accept_some(self, listener: SocketHandle) -> bool:
        """Accept what is there, up to a bound; without waiting, so that the number of connections stays exact.

        Returns:
            Whether nobody waits in the backlog any more.
        """
        loop = required_event_loop("a server")
        for _ in range(ACCEPTS_PER_TURN):
            if self._is_full:
                break
            accepted = self._next(listener)
            if accepted is None:
                return True
            try:
                loop.fds.hold(accepted[0])
            except (OSError, ValueError, KeyError) as error:
                self._kept[listener] = accepted
                raise OSError(errno.ENOBUFS, str(error)) from error
            serving: Any = self._serve(*accepted)
            serving.__qualname__ = self._name_of_tasks  # by which reports and traces tell one server from another
            self._connections[loop.create_task(serving)] = accepted[1]
        return False

    def _next(self, listener: SocketHandle) -> tuple[SocketHandle, Address] | None:
        """The next connection: the one that was kept, or the first in the backlog; None where there is none.

        A selector may hold low fds only, select(2). The fd of the one that was kept will never be lower; the system
        gives the lowest that is free by now to a copy.
        """
        kept = self._kept.get(listener)
        if kept is None:
            return listener._accept_nowait()
        handle, address = kept
        moved = listener._accepted(handle.socket.dup())
        del self._kept[listener]
        handle.close()
        return moved, address

    @property
    def _is_full(self) -> bool:
        most = self._settings.max_connections
        return most is not None and len(self._connections) >= most

    async def _pause(self, listener: SocketHandle, error: OSError | ValueError) -> None:
        """Leave connections in the backlog for a while; it is logged once, until the backlog was empty again."""
        if not self._paused:
            self._paused = True
            logger.error(
                "%r cannot accept connections for now: %s; they wait in the backlog of %s, which is tried every %g s",
                self, getattr(error, "strerror", None) or error, address_in_words(listener.getsockname()), PAUSE,
            )  # fmt: skip
        await sleep(PAUSE)

    # --- connections -------------------------------------------------------------------------------------------------

    async def _serve(self, handle: SocketHandle, address: Address) -> None:
        """One connection, from its handshake to its end."""
        me = cast("TaskHandle[Any]", required_event_loop("a server").running_task)
        try:
            stream = await self._open(handle, address)
            if stream is not None:
                await self._handle(stream, address)
        finally:
            del self._connections[me]
            changed, self._changed = self._changed, None
            if changed is not None:
                changed.set()
            self._check_end()

    async def _open(self, handle: SocketHandle, address: Address) -> Stream | None:
        """The stream of a connection, through TLS where the server has it; None where the handshake failed."""
        settings = self._settings
        if settings.tls is not None:
            from ..core.event_loop.tls import start_tls

            try:
                handle = await start_tls(
                    handle,
                    settings.tls,
                    server_side=True,
                    require_close_notify=settings.require_close_notify,
                    handshake_timeout=settings.handshake_timeout,
                )
            except OSError as error:  # TimeoutError and ssl.SSLError are some
                self._report(address, error)
                return None
            except Exception:
                logger.exception("%r: the TLS handshake with %s could not be made", self, peer_in_words(address))
                handle.abort()
                return None
        return Stream(handle, limit=settings.limit)

    def _report(self, address: Address, error: OSError) -> None:
        """Say that a TLS handshake has failed: to the hook where there is one."""
        hook = self._settings.on_handshake_error
        if hook is None:
            logger.info("%r: the TLS handshake with %s failed: %s", self, peer_in_words(address), error)
            return
        try:
            hook(address, error)
        except Exception:
            logger.exception("%r: on_handshake_error failed for %s", self, peer_in_words(address))

    async def _handle(self, stream: Stream, address: Address) -> None:
        """Run the handler. Its stream is closed in any case: in order where it returned, else cut off."""
        try:
            try:
                serving: object = self._settings.handler(stream)
                if not isawaitable(serving):
                    logger.error(
                        "%r: the handler %r, which is to be an async function, gave %r for %s, whose connection is "
                        "closed", self, self._settings.handler, serving, peer_in_words(address),
                    )  # fmt: skip
                    return
                await serving
            except Exception as error:
                if stream._is_loss(error):
                    logger.info("%r: the connection of %s was lost: %s", self, peer_in_words(address), error)
                else:
                    logger.exception(
                        "%r: the handler of %s failed, and its connection is closed", self, peer_in_words(address)
                    )
                return
            except TaskCancelled as cancelled:
                if cancelled.by.raw_task is current_task():
                    raise
                logger.exception(
                    "%r: the handler of %s failed, and its connection is closed", self, peer_in_words(address)
                )
                return
            try:
                with move_on_after(CLOSING_TIME):
                    await stream.aclose()
            except Exception as error:
                logger.info("%r: %s was gone before its connection was closed: %s", self, peer_in_words(address), error)
        finally:
            stream.abort()

    # --- the end -----------------------------------------------------------------------------------------------------

    def _others(self) -> list[TaskHandle[Any]]:
        """The connections that are open, but for that of the task which asks."""
        me = required_event_loop("aclose()").running_task
        return [task for task in self._connections if task is not me]

    async def _others_ended(self) -> None:
        while self._others():
            await self._next_change().wait()

    def _cancel_others(self) -> None:
        for task in self._others():
            task.cancel()

    def _remind_others(self) -> None:
        """Cancel those again that have swallowed it; the others clean up.

        A cancelled scope around the handlers would break off clean-ups at each of their waits.
        """
        for task in self._others():
            if task._has_swallowed_cancellation:
                task.cancel()

    def _name_others(self) -> None:
        """Say in the log which handlers still run; of very many, a few."""
        if peers := [peer_in_words(self._connections[task]) for task in self._others()]:
            logger.warning(
                "%r waits for %d handlers that were cancelled and have not ended, those of %s",
                self, len(peers), ", ".join([*peers[:20], *(["others"] if peers[20:] else [])]),
            )  # fmt: skip

    def _next_change(self) -> Event:
        """What happens when the next connection has ended."""
        if self._changed is None:
            self._changed = Event()
        return self._changed

    def _check_end(self) -> None:
        if self._closing and not self._accepting and not self._connections:
            self._ended.set()


# ------------------------------------------------------------------------------------------------------------------ TCP


class _Wanted(NamedTuple):
    """An address to listen on."""

    family: int
    type: int
    proto: int
    address: tuple[Any, ...]
    optional: bool  # one of several that a name stands for: it is left out where this machine does not have it


async def _addresses(host: str | Sequence[str] | None, port: int | str) -> list[_Wanted]:
    """What to listen on, IPv4 first."""
    if host is None or isinstance(host, (str, bytes)):
        hosts: list[str | None] = [host]
    elif isinstance(host, Iterable):
        hosts = list(host)
    else:
        raise TypeError(f"host must be a str, several of them, or None, not {host!r}")
    if not hosts:
        raise ValueError("host is empty; None is all interfaces")
    for each in hosts:  # before the first of them is looked up
        check_host(each)
    wanted: dict[tuple[Any, ...], _Wanted] = {}
    for each in hosts:
        names = ("0.0.0.0", "::") if not each else (each,)
        found: list[AddressInfo] = []
        for name in names:
            found += await getaddrinfo(name, port, type=_socket.SOCK_STREAM, flags=_socket.AI_PASSIVE)
        several = len({info[4] for info in found}) > 1
        for info in found:
            wanted.setdefault(info[4], _Wanted(*info[:3], info[4], several))
    # An IPv6 socket for all addresses would take the port of the IPv4 one, where it is not told to keep to its family.
    return sorted(wanted.values(), key=lambda one: one.family != _socket.AF_INET)


def _listen_on_all(wanted: Sequence[_Wanted], backlog: int | None, reuse_port: bool) -> list[SocketHandle]:
    """Sockets that listen on all of these addresses; where the port is the system's to choose, on the same one."""
    system_chooses = any(one.address[1] == 0 for one in wanted)
    tries = PORT_TRIES if system_chooses else 1
    while True:
        listeners: list[SocketHandle] = []
        missing: list[OSError] = []
        port = 0
        try:
            for one in wanted:
                try:
                    listeners.append(_listen_on(one, port, backlog, reuse_port))
                except OSError as error:
                    if not one.optional or error.errno not in _NOT_HERE:
                        raise
                    missing.append(error)
                else:
                    port = listeners[-1].getsockname()[1]
            if not listeners:
                raise missing[0]
        except BaseException as error:
            for listener in listeners:
                listener.close()
            tries -= 1
            if not tries or getattr(error, "errno", None) not in _TAKEN:
                raise
        else:
            for absent in missing:
                logger.info("listening without an address that this machine does not have: %s", absent)
            return listeners


def _listen_on(one: _Wanted, port: int, backlog: int | None, reuse_port: bool) -> SocketHandle:
    """A socket that listens on this address, and on this port where the system may choose."""
    address = (one.address[0], one.address[1] or port, *one.address[2:])
    try:
        listener = socket(one.family, one.type, one.proto)
    except OSError as error:
        error.filename = address
        raise
    try:
        set_no_delay(listener)  # accepted connections have it from here
        if one.family == _socket.AF_INET6:
            listener.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1)
        if reuse_port:
            listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 1)
        listener.bind(address)
        try:
            listener.listen(BACKLOG if backlog is None else backlog)
        except OSError as error:
            error.filename = address  # two sockets may be bound to it that are not listening, socket(7): SO_REUSEADDR
            raise
    except BaseException:
        listener.close()
        raise
    return listener


# -------------------------------------------------------------------------------------------------------------- sockets


def _serve_on(listeners: list[SocketHandle], settings: _Settings) -> Server:
    """A server on sockets that listen already."""
    if not listeners:
        raise ValueError("sockets is empty; a server needs something to listen on")
    for listener in listeners:
        _check_listening(listener)
    return Server(settings, listeners)


def _check_backlog(backlog: int | None) -> None:
    if backlog is None:
        return
    if not isinstance(backlog, int):
        raise TypeError(f"backlog must be an int or None, not {backlog!r}")
    if not 0 <= backlog < 2**31:
        raise ValueError(f"backlog must be a number of connections, or None, not {backlog!r}")


def _check_listening(listener: SocketHandle) -> None:
    """See that connections can be accepted from this socket.

    Raises:
        TypeError: It is no handle.
        ValueError: They cannot.
    """
    if not isinstance(listener, SocketHandle):
        raise TypeError(f"sockets must be handles, such as flowno.socket() gives them, not {listener!r}")
    if listener.socket.type != _socket.SOCK_STREAM:
        raise ValueError(f"{listener!r} is no stream socket, so there are no connections to it")
    try:
        listens = listener.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN)
    except (OSError, AttributeError):
        return  # not every system can say; then the first accept will
    if not listens:
        raise ValueError(f"{listener!r} does not listen; call its listen() first")
