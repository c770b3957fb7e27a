"""What is known of the connection of a stream, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .streams import Stream

__all__ = ["EXTRA_INFO", "layers"]


def layers(handle: Any) -> Iterator[Any]:
    """The handle, and in TLS inside of TLS those below it; the last one has the socket of the system."""
    yield handle
    while (below := getattr(handle.socket, "below", None)) is not None:
        handle = below
        yield handle


def _socket_of(stream: Stream) -> Any:
    *_, lowest = layers(stream.handle)
    return lowest.socket


def _of_tls(name: str) -> Callable[[Stream], Any]:
    """What a method of the SSLObject says; None without one, and while the handshake goes on."""

    def look_up(stream: Stream) -> Any:
        tls = getattr(stream.handle, "ssl_object", None)
        try:
            return None if tls is None else getattr(tls, name)()
        except ValueError:  # of getpeercert(): the handshake is not done yet
            return None

    return look_up


EXTRA_INFO: dict[str, Callable[[Stream], Any]] = {
    "peername": lambda stream: stream._peername,
    "sockname": lambda stream: stream._sockname,
    "socket": _socket_of,
    "sslcontext": lambda stream: getattr(stream.handle, "ssl_context", None),
    "ssl_object": lambda stream: getattr(stream.handle, "ssl_object", None),
    "alpn_protocol": _of_tls("selected_alpn_protocol"),
    "cipher": _of_tls("cipher"),
    "compression": _of_tls("compression"),
    "peercert": _of_tls("getpeercert"),
    "version": _of_tls("version"),
}
