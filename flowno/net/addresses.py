"""The paths of Unix sockets, and the permissions of their files."""

from __future__ import annotations

import errno
import os
import socket as _socket
import stat
import sys
from typing import TypeAlias

__all__ = ["UnixPath", "set_mode", "unix_path"]

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


def set_mode(path: str | bytes, mode: int) -> None:
    """Set the permissions of a socket's file, and never of what a symbolic link leads to.

    In a folder that others may write to, one of them could put such a link in the place of the socket, and have us
    change the permissions of any file of ours.

    Raises:
        OSError: There is something else (EEXIST), or the system refuses.
    """
    if not hasattr(os, "O_PATH"):
        os.chmod(path, mode, follow_symlinks=os.chmod not in os.supports_follow_symlinks)  # lchmod(2), of BSD and macOS
        return
    found = os.open(path, os.O_PATH | os.O_NOFOLLOW)  # Linux has no lchmod, but names for what is open: open(2)
    try:
        if not stat.S_ISSOCK(os.fstat(found).st_mode):
            raise OSError(errno.EEXIST, "the socket was replaced by something else while it was made", path)
        os.chmod(f"/proc/self/fd/{found}", mode)
    finally:
        os.close(found)
