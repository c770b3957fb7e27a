"""The paths of Unix sockets."""

from __future__ import annotations

import errno
import os
import socket as _socket
import sys
from typing import TypeAlias

__all__ = ["UnixPath", "unix_path"]

UnixPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
"""Where a Unix socket is. On Linux a name that begins with a zero byte is abstract: it is in no file system."""


def unix_path(path: UnixPath) -> str | bytes:
    """The path of a Unix socket as the system takes it.

    Raises:
        TypeError: That is no path.
        ValueError: It is empty, or has a zero byte within.
        OSError: This system, or this Python, has no Unix sockets (EAFNOSUPPORT).
    """
    if not hasattr(_socket, "AF_UNIX"):
        raise OSError(errno.EAFNOSUPPORT, f"Python has no Unix sockets on {sys.platform}; use TCP on 127.0.0.1 instead")
    try:
        taken: str | bytes = os.fspath(path)
    except TypeError:
        raise TypeError(f"path must be a str, bytes or os.PathLike, not {path!r}") from None
    if not taken:
        raise ValueError("path is empty; it is where the Unix socket is to be found")
    rest = taken[1:]
    if (0 in rest if isinstance(rest, bytes) else "\0" in rest) and taken[:1] not in ("\0", b"\0"):
        raise ValueError(f"path has a zero byte within: {taken!r}")
    return taken
