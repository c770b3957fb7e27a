"""Addresses of sockets: what can be one, and the number that stands for the name of a host."""

from __future__ import annotations

import socket as _socket
from collections.abc import Generator
from typing import Any, TypeAlias

from .commands import Command
from .running import required_event_loop
from .threads import look_up

__all__ = ["AF_UNIX", "Address", "addresses_of", "check_address", "check_name", "check_port", "resolve"]

Address: TypeAlias = Any
"""An address as the socket's family has it: ``(host, port)`` for IPv4 and IPv6, a path for a Unix socket."""

#: The family of Unix sockets; None where there are none.
AF_UNIX: int | None = getattr(_socket, "AF_UNIX", None)


def resolve(sock: _socket.socket, address: Address) -> Generator[Command, Any, Address]:
    """The address with its name replaced by the number that stands for it, found out in a worker thread."""
    name = _name_in(sock, address)
    if name is None:
        return address
    found: Any = yield from addresses_of(name, address[1], sock.family, sock.type, sock.proto).__await__()
    number = found[0][4]
    return (*number[:2], *(address[2:] or number[2:]))  # the scope of an IPv6 address is one of the rest


def check_address(sock: _socket.socket, address: Address) -> None:
    """Refuse an address that no system takes, in the way in which :func:`resolve` does."""
    check_name(_name_in(sock, address))


async def addresses_of(
    host: str | bytes | None, port: str | bytes | int | None, family: int, type: int, proto: int, flags: int = 0
) -> Any:
    """Ask the system's resolver for the addresses of a name, as ``socket.getaddrinfo`` gives them.

    Raises:
        socket.gaierror: The name does not resolve; host and port are in the message.
        ValueError: That can be no name.

    Cancellation: as of :func:`look_up`.
    """
    check_name(host)
    world = required_event_loop("a call to the resolver").world
    try:
        return await look_up(world.getaddrinfo, host, port, family, type, proto, flags)
    except _socket.gaierror as error:
        error.filename = (host, port)  # str() shows it behind the reason
        raise


def check_name(host: str | bytes | None) -> None:
    """Refuse what can be no name of a host.

    Raises:
        ValueError: It has a zero byte, where resolvers stop reading; or a label that is empty, or longer than 63 bytes,
            RFC 1035 section 2.3.4.
    """
    if host and (0 in host if isinstance(host, bytes) else "\0" in host):
        raise ValueError(f"{host!r} cannot be the name of a host: it has a zero byte")
    try:
        if isinstance(host, str):
            host.encode("idna")  # as socket.getaddrinfo() does
    except UnicodeError as error:
        raise ValueError(f"{host!r} cannot be the name of a host: {error}") from None


def check_port(port: int, given: object = None) -> None:
    """Refuse a number that is no port; some resolvers would drop its upper bits.

    Args:
        port: The number.
        given: How it was given, where that was not as a number.

    Raises:
        ValueError: It is none.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be 0 to 65535, not {port if given is None else given!r}")


def _name_in(sock: _socket.socket, address: Address) -> str | bytes | None:
    """The host of an address, where that is a name to be resolved; else None.

    Raises:
        ValueError: The port is none.
    """
    is_internet = sock.family in (_socket.AF_INET, _socket.AF_INET6)
    if not (is_internet and isinstance(address, tuple) and len(address) >= 2):
        return None
    host, port = address[:2]
    if isinstance(port, int):
        check_port(port)
    return host if _needs_resolver(host) else None


def _needs_resolver(host: object) -> bool:
    """Whether a host is a name. The empty one, which is any of this machine's addresses, and what is no text at all are
    the socket's to judge."""
    if isinstance(host, (bytes, bytearray)):
        host = host.decode("ascii", "replace")
    if not host or not isinstance(host, str) or host == "<broadcast>":
        return False
    for family in (_socket.AF_INET, _socket.AF_INET6):
        try:
            _socket.inet_pton(family, host)
        except (OSError, ValueError):  # ValueError: not ASCII, or a zero byte
            continue
        return False
    return True
