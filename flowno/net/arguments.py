"""What connections, servers and streams ask of the same arguments, before anything is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.event_loop.timers import checked_seconds

if TYPE_CHECKING:
    import ssl

__all__ = ["HANDSHAKE_TIMEOUT", "check_host", "check_limit", "check_tls", "check_tls_options"]

#: Seconds that a TLS handshake may take, unless told otherwise.
HANDSHAKE_TIMEOUT = 30.0


def check_host(host: object, argument: str = "host") -> None:
    """See that this can be a name.

    Raises:
        TypeError: It is neither text nor None.
    """
    if host is not None and not isinstance(host, (str, bytes)):
        raise TypeError(f"{argument} must be a str, bytes or None, not {host!r}")


def check_limit(limit: int) -> None:
    """See that this is a limit for a stream.

    Raises:
        TypeError, ValueError: It is not.
    """
    if not isinstance(limit, int):
        raise TypeError(f"limit must be an int, not {limit!r}")
    if limit <= 0:
        raise ValueError(f"limit is a number of bytes above 0, not {limit!r}")


def check_tls(tls: object, *, server_side: bool, session: ssl.SSLSession | None = None) -> None:
    """See that these are TLS settings for this side, and that the session is one of theirs.

    Raises:
        TypeError: They are no TLS settings, or it is no session.
        ValueError: The session was made with other settings.
        ssl.SSLError: They are for the other side only.
    """
    import ssl

    if not isinstance(tls, ssl.SSLContext):
        raise TypeError(f"tls must be an ssl.SSLContext, not {tls!r}")
    if session is not None and not isinstance(session, ssl.SSLSession):
        raise TypeError(f"session must be an ssl.SSLSession, not {session!r}")
    tls.wrap_bio(
        ssl.MemoryBIO(),
        ssl.MemoryBIO(),
        server_side=server_side,
        server_hostname=None if server_side else "x",
        session=session,
    )


def check_tls_options(tls: object, require_close_notify: bool, handshake_timeout: float) -> None:
    """See that these are options for TLS, and not given without it.

    Raises:
        TypeError, ValueError: They are not.
    """
    if checked_seconds(handshake_timeout, "handshake_timeout") <= 0:
        raise ValueError(f"handshake_timeout must be above 0 seconds, not {handshake_timeout!r}")
    if not tls:
        if handshake_timeout != HANDSHAKE_TIMEOUT:
            raise ValueError("handshake_timeout needs tls: without it, there is no handshake")
        if not require_close_notify:
            raise ValueError("require_close_notify needs tls: without it, no end of a stream has a close_notify")
