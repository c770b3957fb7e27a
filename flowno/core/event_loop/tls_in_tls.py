"""TLS inside of TLS: the connection below is the socket of the one above."""

from __future__ import annotations

import errno
import os
import ssl
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .addresses import Address
    from .tls import TLSSocketHandle

__all__ = ["Carrier"]


class Carrier:
    """TLS as a non-blocking socket, for TLS inside of it.

    Args:
        below: A handle whose handshake is done, and which nobody else uses.
    """

    __slots__ = ("__weakref__", "_encrypted", "below")

    def __init__(self, below: TLSSocketHandle) -> None:
        self.below = below
        self._encrypted = 0  # how many bytes of what is sent next are encrypted and underway already

    @property
    def family(self) -> int:
        return self.below.socket.family

    @property
    def type(self) -> int:
        return self.below.socket.type

    @property
    def proto(self) -> int:
        return self.below.socket.proto

    def fileno(self) -> int:
        return self.below.fileno()

    def setblocking(self, flag: bool) -> None:
        """It is non-blocking."""

    def getsockname(self) -> Address:
        return self.below.getsockname()

    def getpeername(self) -> Address:
        return self.below.getpeername()

    def setsockopt(self, *args: Any) -> None:
        self.below.setsockopt(*args)

    def getsockopt(self, *args: Any) -> int | bytes:
        return self.below.getsockopt(*args)

    def shutdown(self, how: int, /) -> None:
        self.below.shutdown(how)

    def close(self) -> None:
        self.below._say_goodbye()
        self.below.socket.close()

    def detach(self) -> int:
        return self.below.socket.detach()

    def recvfrom(self, *args: Any) -> Any:
        raise self.below._unsupported("a datagram")

    recvfrom_into = sendto = recvfrom

    def recv(self, size: int) -> bytes:
        """As ``socket.recv``. Less than ``size`` bytes come only where the socket below is to be waited for."""
        below = self.below
        parts: list[bytes] = []
        while size:
            if below._thirsty:
                if parts:
                    break
                if below._receive() is None:
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            try:
                data = below._decrypt(size)
            except OSError:
                if parts:
                    break  # it comes again
                raise
            if data is None:
                if parts:
                    break
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))  # the others have their turn
            if not data:
                break
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def send(self, data: Buffer) -> int:
        """As ``socket.send``; where it raises BlockingIOError, the same data must come again, as of SSL_write(3).

        By then it is encrypted already: TLS has no way back.
        """
        below = self.below
        if not self._encrypted:
            try:
                self._encrypted = cast(ssl.SSLObject, below._tls).write(data)
            except ssl.SSLWantReadError:
                below._flush_quietly()
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
        if not below._flush():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        sent, self._encrypted = self._encrypted, 0
        return sent
