"""Connections to servers that are named: the name is looked up, and whatever address answers first is taken.

A host often has several addresses, and some of them may not answer: an IPv6 route that leads nowhere is the usual case.
RFC 8305 ("Happy Eyeballs") says what to do. The attempts are started one after the other, a moment apart, alternating
between the families; the first connection that stands is used, and the other attempts are given up.
"""

from __future__ import annotations

import errno
import socket as _socket
import sys
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.event_loop.primitives import connect, socket, spawn
from ..core.event_loop.scopes import move_on_after
from ..core.event_loop.synchronization import Event
from ..core.event_loop.threads import run_in_thread
from ..core.event_loop.timers import checked_seconds
from ..core.event_loop.words import address_in_words
from .arguments import HANDSHAKE_TIMEOUT, check_host, check_limit, check_tls, check_tls_options
from .resolver import getaddrinfo
from .streams import DEFAULT_LIMIT, Stream
from .unix_sockets import UnixPath, unix_path

if TYPE_CHECKING:
    import ssl

    from ..core.event_loop.sockets import SocketHandle
    from ..core.event_loop.tasks import TaskHandle
    from .resolver import AddressInfo

__all__ = ["open_connection", "open_unix_connection"]

#: Seconds. Attempts never follow each other faster than this, RFC 8305 section 5, unless one has failed.
SHORTEST_DELAY = 0.010

#: IP_BIND_ADDRESS_NO_PORT, ip(7): the local port is chosen when both ends are known, so that there are more to choose
#: from. Python has the name from 3.12 on.
_LATE_PORT: int | None = getattr(_socket, "IP_BIND_ADDRESS_NO_PORT", 24 if sys.platform == "linux" else None)


async def open_connection(
    host: str | bytes | None,
    port: str | bytes | int,
    *,
    tls: ssl.SSLContext | bool | None = None,
    server_hostname: str | None = None,
    session: ssl.SSLSession | None = None,
    require_close_notify: bool = True,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
    local_address: tuple[str | None, int] | None = None,
    happy_eyeballs_delay: float | None = 0.25,
    limit: int = DEFAULT_LIMIT,
) -> Stream:
    """Connect to a server by TCP.

    Of a host with several addresses the one that answers first is taken, by the rules of RFC 8305: the attempts are
    started one after the other, alternating between IPv6 and IPv4, each when the one before it has failed or has taken
    ``happy_eyeballs_delay`` seconds. The attempts that were not needed are closed when this returns.

    Args:
        host: A name or a number; None is this machine.
        port: A number or the name of a service.
        tls: The TLS settings; True takes those of ``ssl.create_default_context()``, which verify the server.
        server_hostname: The name that the server's certificate must be for; the host where it is left out.
        session: That of an earlier connection to the same server by the same ``tls``, which makes the handshake
            shorter: ``stream.get_extra_info("ssl_object").session``, once something was read.
        require_close_notify: Whether a stream that ends without the server's close_notify is an error, as it may have
            been cut off. False takes it for the end, for servers that never send one.
        handshake_timeout: How many seconds the TLS handshake may take.
        local_address: ``(host, port)`` to connect from; port 0 has the system choose one.
        happy_eyeballs_delay: Seconds, not below 0.01. None tries an address only when the one before it has failed.
        limit: How many bytes may stand before a separator, see :class:`~flowno.Stream`.

    Returns:
        The connection, with the TLS handshake done.

    Raises:
        socket.gaierror: The name does not resolve.
        OSError: No address could be connected to. The message has each with its error, and ``__cause__`` is an
            ExceptionGroup of them. Where all failed in the same way, it is that error, such as
            ConnectionRefusedError; of a single address it is the system's error with the address.
        ssl.SSLError: The handshake failed; ``ssl.SSLCertVerificationError`` where the server is not who it should be.
        TimeoutError: The handshake took longer than ``handshake_timeout``.
        ValueError: What is for TLS without ``tls``, a session of another context, or a number that is out of range.
        TypeError: An argument is of the wrong type.

    Cancellation: every attempt is closed.
    """
    check_limit(limit)
    through = _TLS(tls, server_hostname, session, require_close_notify, handshake_timeout)
    through.check(host)
    _check_local_address(local_address)
    delay = _checked_delay(happy_eyeballs_delay)
    candidates = await _candidates(host, port, local_address)
    if len(candidates) == 1:
        handle = await _connect_to(candidates[0])
    else:
        handle = await _Race(f"{host!r} port {port!r}").run(candidates, delay)
    return await _stream(handle, through, host, limit)


async def open_unix_connection(
    path: UnixPath,
    *,
    tls: ssl.SSLContext | bool | None = None,
    server_hostname: str | None = None,
    session: ssl.SSLSession | None = None,
    require_close_notify: bool = True,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
    limit: int = DEFAULT_LIMIT,
) -> Stream:
    """Connect to a server by a Unix socket. Where its queue is full, this waits for a place in it.

    Args:
        path: Where the socket is; on Linux, a name that begins with a zero byte is abstract.
        tls: The TLS settings; True takes those of ``ssl.create_default_context()``.
        server_hostname: The name that the server's certificate must be for; TLS that verifies names needs one.
        session: As of :func:`open_connection`.
        require_close_notify: As of :func:`open_connection`.
        handshake_timeout: As of :func:`open_connection`.
        limit: How many bytes may stand before a separator, see :class:`~flowno.Stream`.

    Returns:
        The connection, with the TLS handshake done.

    Raises:
        OSError: What the system says of the attempt, with the path; ENAMETOOLONG where that is too long, EAFNOSUPPORT
            where there are no Unix sockets.
        ssl.SSLError: The handshake failed.
        TimeoutError: The handshake took longer than ``handshake_timeout``.
        ValueError: The path is empty; and as of :func:`open_connection`.
        TypeError: An argument is of the wrong type.

    Cancellation: the attempt is closed.
    """
    check_limit(limit)
    through = _TLS(tls, server_hostname, session, require_close_notify, handshake_timeout)
    through.check(None)
    address = unix_path(path)
    handle = socket(_socket.AF_UNIX)
    try:
        await connect(handle, address)
    except BaseException:
        handle.close()
        raise
    return await _stream(handle, through, None, limit)


# ----------------------------------------------------------------------------------------------------------- candidates


class _Candidate(NamedTuple):
    """One way to connect."""

    family: int
    type: int
    proto: int
    address: tuple[Any, ...]
    local: tuple[tuple[Any, ...], ...]  # addresses to connect from, of the same family; empty leaves it to the system


async def _candidates(
    host: str | bytes | None, port: str | bytes | int, local_address: tuple[str | None, int] | None
) -> list[_Candidate]:
    """The ways to connect, in the order in which they are to be tried; at least one."""
    found = await getaddrinfo(host, port, type=_socket.SOCK_STREAM)
    ways = list(dict.fromkeys(_interleaved(found)))
    if not ways:
        raise OSError(errno.EADDRNOTAVAIL, "the name has no address", (host, port))
    if local_address is None:
        return [_Candidate(*way[:3], way[4], ()) for way in ways]
    own = await getaddrinfo(*local_address, type=_socket.SOCK_STREAM, flags=_socket.AI_PASSIVE)
    local: dict[int, list[tuple[Any, ...]]] = {}
    for info in own:
        local.setdefault(info[0], []).append(info[4])
    fitting = [_Candidate(*way[:3], way[4], tuple(local[way[0]])) for way in ways if way[0] in local]
    if not fitting:
        texts = ", ".join(address_in_words(way[4]) for way in ways)
        raise OSError(
            errno.EAFNOSUPPORT,
            f"local_address {local_address!r} is of another family than what it is to connect to: {texts}",
        )
    return fitting


def _interleaved(found: Sequence[AddressInfo]) -> list[AddressInfo]:
    """Addresses with their families in turn, beginning with that of the first, RFC 8305 section 4."""
    families: dict[int, list[AddressInfo]] = {}
    for info in found:
        families.setdefault(info[0], []).append(info)
    columns = list(families.values())
    longest = max(map(len, columns), default=0)
    return [column[row] for row in range(longest) for column in columns if row < len(column)]


async def _connect_to(candidate: _Candidate) -> SocketHandle:
    """Connect in this way; what was opened is closed where that fails."""
    handle = _opened(candidate)
    try:
        await connect(handle, candidate.address)
    except BaseException:
        handle.close()
        raise
    return handle


def _opened(candidate: _Candidate) -> SocketHandle:
    """A handle that is ready to connect in this way."""
    handle = socket(candidate.family, candidate.type, candidate.proto)
    try:
        set_no_delay(handle)
        if candidate.local:
            _bind_to_one(handle, candidate.local)
    except BaseException:
        handle.close()
        raise
    return handle


def _bind_to_one(handle: SocketHandle, addresses: Sequence[tuple[Any, ...]]) -> None:
    """Take the first of these addresses that can be had."""
    for position, address in enumerate(addresses, 1):
        if not address[1] and _LATE_PORT is not None:
            _try_option(handle, _socket.IPPROTO_IP, _LATE_PORT)
        try:
            handle.bind(address)
            break
        except OSError as error:
            if position == len(addresses):
                text = f"the local address {address_in_words(address)}: {error.strerror}"
                raise OSError(error.errno, text) from None


def set_no_delay(handle: SocketHandle) -> None:
    """Send small pieces at once, tcp(7): with Nagle's algorithm a reply could wait for the peer's delayed ACK."""
    if handle.socket.family in (_socket.AF_INET, _socket.AF_INET6):
        _try_option(handle, _socket.IPPROTO_TCP, _socket.TCP_NODELAY)


def _try_option(handle: SocketHandle, level: int, option: int) -> None:
    """Switch on what improves a connection, but is not needed for it."""
    try:
        handle.setsockopt(level, option, 1)
    except OSError:
        pass  # a protocol, or a kernel, that does not have it


# ------------------------------------------------------------------------------------------------------------- the race


class _Race:
    """Several attempts to connect, of which the first that succeeds is kept.

    Args:
        asked: What was asked for, to say so where all fail.
    """

    def __init__(self, asked: str) -> None:
        self._asked = asked
        self._tasks: list[TaskHandle[None]] = []
        self._handles: list[SocketHandle] = []
        self._errors: list[tuple[_Candidate, Exception]] = []
        self._winner: SocketHandle | None = None
        self._changed = Event()

    async def run(self, candidates: Sequence[_Candidate], delay: float) -> SocketHandle:
        """Start the attempts, ``delay`` seconds apart, and give the connection of the one that succeeds first."""
        waiting = list(reversed(candidates))
        try:
            while self._winner is None and len(self._errors) < len(candidates):
                self._changed = Event()
                if waiting:
                    self._tasks.append(await spawn(self._attempt(waiting.pop())))
                with move_on_after(delay if waiting else None):
                    await self._changed.wait()
            self._give_up()
            for task in self._tasks:
                await task.cancel()
            if self._winner is None:
                raise self._failure() from ExceptionGroup("each attempt", [error for _, error in self._errors])
            return self._winner
        except BaseException:
            self._winner = None
            self._give_up()
            raise
        finally:
            self._errors.clear()  # their tracebacks have frames that refer to this object

    def _give_up(self) -> None:
        """Close every attempt but the one that has won, at once."""
        for task in self._tasks:
            task.cancel()
        for handle in self._handles:
            if handle is not self._winner:
                handle.close()

    async def _attempt(self, candidate: _Candidate) -> None:
        try:
            handle = _opened(candidate)
            self._handles.append(handle)
            await connect(handle, candidate.address)
        except Exception as error:
            self._errors.append((candidate, error))
        else:
            if self._winner is None:
                self._winner = handle
        finally:
            self._changed.set()

    def _failure(self) -> OSError:
        """What to raise where every attempt has failed."""
        reasons = [
            f"{address_in_words(candidate.address)}: {getattr(error, 'strerror', None) or error}"
            for candidate, error in self._errors
        ]
        text = f"cannot connect to {self._asked}: {'; '.join(reasons)}"
        numbers = {getattr(error, "errno", None) for _, error in self._errors}
        number = numbers.pop() if len(numbers) == 1 else None
        return OSError(text) if number is None else OSError(number, text)  # of which Python makes the right subclass


# ------------------------------------------------------------------------------------------------------- the connection


class _TLS(NamedTuple):
    """How a client goes through TLS, if it does."""

    context: ssl.SSLContext | bool | None
    server_hostname: str | None
    session: ssl.SSLSession | None
    require_close_notify: bool
    handshake_timeout: float

    def check(self, host: str | bytes | None) -> None:
        """See that it can be done, before there is a connection."""
        check_tls_options(self.context, self.require_close_notify, self.handshake_timeout)
        if self.server_hostname is not None and not isinstance(self.server_hostname, str):
            raise TypeError(f"server_hostname must be a str or None, not {self.server_hostname!r}")
        if not self.context:
            if self.server_hostname is not None:
                raise ValueError("server_hostname needs tls: without it, nothing verifies the name")
            if self.session is not None:
                raise ValueError("session needs tls: without it, there is nothing to resume")
            return
        if self.context is not True:
            check_tls(self.context, server_side=False, session=self.session)
        elif self.session is not None:
            raise ValueError("session belongs to the context that it was made with; say by tls which that is, not True")
        if host is None and not self.server_hostname and (self.context is True or self.context.check_hostname):
            raise ValueError("these TLS settings verify the name of the server; say by server_hostname which it is")

    async def begin(self, handle: SocketHandle, host: str | bytes | None) -> SocketHandle:
        """The handle to go on with, after the handshake where there is to be one."""
        if not self.context:
            return handle
        from ..core.event_loop.tls import start_tls

        return await start_tls(
            handle,
            await _default_context() if self.context is True else self.context,
            server_hostname=_name_to_verify(self.server_hostname, host),
            session=self.session,
            require_close_notify=self.require_close_notify,
            handshake_timeout=self.handshake_timeout,
        )


async def _stream(handle: SocketHandle, through: _TLS, host: str | bytes | None, limit: int) -> Stream:
    """The stream of a connected handle, through TLS where that is asked for; closed where that fails."""
    try:
        return Stream(await through.begin(handle, host), limit=limit)
    except BaseException:
        handle.close()
        raise


def _name_to_verify(server_hostname: str | None, host: str | bytes | None) -> str | None:
    """The name that the certificate must be for: of a host as it stands in certificates and in SNI, RFC 6066."""
    if server_hostname is not None:
        return server_hostname or None
    name = host.decode("ascii") if isinstance(host, bytes) else host
    if name is None:
        return None
    return name.partition("%")[0].rstrip(".")


async def _default_context() -> ssl.SSLContext:
    """The settings that verify the peer; made in a thread, as they read every certificate of the system's store."""
    return await run_in_thread(_make_default_context, abandon_on_cancel=True)


def _make_default_context() -> ssl.SSLContext:
    import ssl

    return ssl.create_default_context()


# -------------------------------------------------------------------------------------------------------- the arguments


def _check_local_address(local_address: object) -> None:
    if local_address is None:
        return
    if not (isinstance(local_address, tuple) and len(local_address) == 2 and isinstance(local_address[1], (int, str))):
        raise TypeError(f"local_address must be a tuple (host, port), not {local_address!r}")
    check_host(local_address[0], "the host of local_address")


def _checked_delay(seconds: float | None) -> float:
    """The delay between attempts, infinite for none."""
    if seconds is None:
        return inf
    delay = checked_seconds(seconds, "happy_eyeballs_delay")
    if delay < 0:
        raise ValueError(f"happy_eyeballs_delay must not be negative, and is {seconds!r}")
    return max(delay, SHORTEST_DELAY)
