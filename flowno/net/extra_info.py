"""What is known of the connection of a stream, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.event_loop.sockets import layers_of

if TYPE_CHECKING:
    from ..core.event_loop.addresses import Address
    from ..core.event_loop.sockets import SocketHandle

__all__ = ["EXTRA_INFO", "Connection"]


class Connection(NamedTuple):
    """What a stream has of its connection: the handle, and the addresses as they were when that was still connected."""

    handle: SocketHandle
    peername: Address
    sockname: Address


def _system_socket(connection: Connection) -> Any:
    *_, lowest = layers_of(connection.handle)
    return lowest.socket


def _ssl_object(connection: Connection) -> Any:
    return getattr(connection.handle, "ssl_object", None)


def _of_tls(method: str) -> Callable[[Connection], Any]:
    """What a method of the SSLObject says; None without one, and while the handshake goes on."""

    def ask(connection: Connection) -> Any:
        tls = _ssl_object(connection)
        try:
            return None if tls is None else getattr(tls, method)()
        except ValueError:  # of getpeercert(): the handshake is not done yet
            return None

    return ask


#: What Stream.get_extra_info() gives, by name. None is: not known of this connection.
EXTRA_INFO: dict[str, Callable[[Connection], Any]] = {
    "peername": lambda connection: connection.peername,
    "sockname": lambda connection: connection.sockname,
    "socket": _system_socket,
    "sslcontext": lambda connection: getattr(connection.handle, "ssl_context", None),
    "ssl_object": _ssl_object,
    "alpn_protocol": _of_tls("selected_alpn_protocol"),
    "cipher": _of_tls("cipher"),
    "compression": _of_tls("compression"),
    "peercert": _of_tls("getpeercert"),
    "version": _of_tls("version"),
}
