"""The network, above the handles: names, connections, servers, and the streams that these talk through."""

from .connections import open_connection, open_unix_connection
from .resolver import getaddrinfo, getnameinfo
from .servers import Server, serve_activated, serve_sockets, serve_tcp, serve_unix
from .streams import IncompleteReadError, LimitOverrunError, Stream

__all__ = [
    "IncompleteReadError",
    "LimitOverrunError",
    "Server",
    "Stream",
    "getaddrinfo",
    "getnameinfo",
    "open_connection",
    "open_unix_connection",
    "serve_activated",
    "serve_sockets",
    "serve_tcp",
    "serve_unix",
]
