"""Names and addresses, looked up beside the other tasks.

The system's resolver blocks, so it is asked in worker threads, for 40 names at a time; further ones wait for their
turn. What is a number already needs no resolver and no thread: it is answered at once, and in the same way on every
system.
"""

from __future__ import annotations

import socket as _socket
from collections.abc import Sequence
from typing import Any, TypeAlias

from ..core.event_loop.addresses import addresses_of, check_port
from ..core.event_loop.running import required_event_loop
from ..core.event_loop.tasks import completed
from ..core.event_loop.threads import look_up
from .arguments import check_host

__all__ = ["AddressInfo", "getaddrinfo", "getnameinfo"]

AddressInfo: TypeAlias = tuple[int, int, int, str, tuple[Any, ...]]
"""Family, type, protocol, canonical name (mostly empty) and the address itself, as ``socket.getaddrinfo`` has them."""

#: The kinds of socket that an address can be used with, in the order in which Linux lists them.
_KINDS = (
    (_socket.SOCK_STREAM, _socket.IPPROTO_TCP),
    (_socket.SOCK_DGRAM, _socket.IPPROTO_UDP),
    (_socket.SOCK_RAW, 0),
)

#: The flags that change nothing about a number.
_PLAIN_FLAGS = _socket.AI_NUMERICHOST | _socket.AI_NUMERICSERV | _socket.AI_PASSIVE | _socket.AI_ADDRCONFIG


async def getaddrinfo(
    host: str | bytes | None,
    port: str | bytes | int | None,
    *,
    family: int = 0,
    type: int = 0,
    proto: int = 0,
    flags: int = 0,
) -> list[AddressInfo]:
    """The addresses of a name, while the other tasks run.

    Args:
        host: A name or a number; None is this machine, or with ``AI_PASSIVE`` all of its interfaces.
        port: A number or the name of a service.
        family: Such as ``socket.AF_INET6``; 0 takes any.
        type: Such as ``socket.SOCK_STREAM``; 0 lists every type.
        proto: The protocol number; 0 takes any.
        flags: A mask of the ``AI_*`` constants.

    Returns:
        What ``socket.getaddrinfo`` gives: for each address the family, type, protocol, canonical name and address, best
        first (RFC 6724).

    Raises:
        socket.gaierror: The name does not resolve; host and port are in the message.
        ValueError: That can be no name, or no port.
        EventLoopError: This was awaited outside of an event loop.

    Cancellation: the task does not wait for the resolver, which cannot be interrupted; its answer is dropped.
    """
    loop = required_event_loop("getaddrinfo()")
    check_host(host)
    number = _port_number(port)
    found = [] if number is None or flags & ~_PLAIN_FLAGS else _numeric(host, number, family, type, proto)
    if found:
        await completed(loop.budget)
        return found
    return list(await addresses_of(host, port, family, type, proto, flags))


async def getnameinfo(sockaddr: tuple[Any, ...], flags: int = 0) -> tuple[str, str]:
    """The name and the service that belong to an address, while the other tasks run.

    Args:
        sockaddr: ``(host, port)`` for IPv4; for IPv6 a flow label and a scope may follow. The host is a number.
        flags: A mask of the ``NI_*`` constants.

    Returns:
        Name and service; what has no name is a number.

    Raises:
        socket.gaierror: There is none, and ``NI_NAMEREQD`` was given; the address is in the message.
        EventLoopError: This was awaited outside of an event loop.

    Cancellation: the task does not wait for the resolver, which cannot be interrupted; its answer is dropped.
    """
    numbers = _socket.NI_NUMERICHOST | _socket.NI_NUMERICSERV
    try:
        if flags & numbers == numbers:
            await completed(required_event_loop("getnameinfo()").budget)
            return _socket.getnameinfo(sockaddr, flags)
        return await look_up(_socket.getnameinfo, sockaddr, flags)
    except _socket.gaierror as error:
        error.filename = sockaddr
        raise


def _port_number(port: object) -> int | None:
    """The port as a number, None where it is the name of a service."""
    if port is None:
        return 0
    if not isinstance(port, (int, str, bytes)):
        raise TypeError(f"port must be an int, str, bytes or None, not {port!r}")
    if not isinstance(port, int):
        if not port:
            return 0
        if not (port.isascii() and port.isdigit()):
            return None
    check_port(int(port), port)
    return int(port)


def _numeric(host: str | bytes | None, port: int, family: int, type: int, proto: int) -> list[AddressInfo]:
    """The answer where no resolver is needed for it; else nothing, also for questions that have no good answer."""
    address = _ip_address(host)
    if address is None or type == _socket.SOCK_RAW:
        return []
    found_family, text, scope = address
    if family not in (0, found_family):
        return []
    sockaddr: tuple[Any, ...] = (text, port, 0, scope) if found_family == _socket.AF_INET6 else (text, port)
    return [
        (found_family, kind, protocol, "", sockaddr)
        for kind, protocol in _KINDS
        if type in (0, kind) and proto in (0, protocol)
    ]


def _ip_address(host: str | bytes | None) -> tuple[int, str, int] | None:
    """Family, address and scope of a host that is an IP address; None for anything else."""
    if isinstance(host, bytes):
        try:
            host = host.decode("ascii")
        except UnicodeDecodeError:
            return None
    if not host:
        return None
    text, percent, zone = host.partition("%")
    families: Sequence[int] = (_socket.AF_INET6,) if percent else (_socket.AF_INET, _socket.AF_INET6)
    for family in families:
        try:
            packed = _socket.inet_pton(family, text)
            scope = _scope_number(zone) if percent else 0
        except (OSError, ValueError):  # ValueError: not ASCII, or a zero byte
            continue
        return family, _socket.inet_ntop(family, packed), scope
    return None


def _scope_number(zone: str) -> int:
    """The number of the interface that is named behind the ``%`` of an IPv6 address, RFC 4007 section 11."""
    return int(zone) if zone.isascii() and zone.isdigit() else _socket.if_nametoindex(zone)
