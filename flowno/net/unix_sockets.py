"""Unix sockets in the file system: their paths, the permissions of their files, and how one listens there."""

from __future__ import annotations

import errno
import logging
import os
import socket as _socket
import stat
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from ..core.event_loop.primitives import socket

if TYPE_CHECKING:
    from ..core.event_loop.sockets import SocketHandle

__all__ = ["SocketFile", "UnixPath", "listen_on_path", "set_mode", "unix_path"]

logger = logging.getLogger("flowno.net")

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


class SocketFile:
    """The file of a Unix socket that this process listens on.

    Args:
        path: Where it is.
    """

    def __init__(self, path: str | bytes) -> None:
        self._path = os.path.abspath(path)  # the current folder may be another one at the end
        self._identity = _identity(self._path)
        self._process = os.getpid()

    def remove(self) -> None:
        """Remove it, if it is still the same file, and this the process that made it, not one that was forked off."""
        if self._process == os.getpid() and self._identity is not None and _identity(self._path) == self._identity:
            try:
                os.unlink(self._path)
            except OSError as error:
                logger.warning("a server could not remove its socket: %s", error)


def _identity(path: str | bytes) -> tuple[int, int] | None:
    """What tells a file from another one at the same place; None where there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def listen_on_path(path: str | bytes, mode: int | None, backlog: int) -> tuple[SocketHandle, SocketFile | None]:
    """A socket that listens there, and its file; an abstract one has none.

    Args:
        path: As :func:`unix_path` gives it.
        mode: The permissions of the file; None leaves them to the umask.
        backlog: How many connections wait for an accept at most.

    Raises:
        ValueError: ``mode`` is for a file, and there is none.
        OSError: Another server listens there, or the system refuses. No file is left behind.
    """
    is_abstract = path[:1] in ("\0", b"\0")
    if is_abstract and mode is not None:
        raise ValueError("mode is for files; an abstract socket has no permissions: all of this machine may connect")
    if not is_abstract:
        _remove_stale(path)
    file: SocketFile | None = None
    listener = socket(_socket.AF_UNIX)
    try:
        if mode is not None:
            with suppress(OSError):  # on Linux the file has the mode of the socket, less the umask: unix(7)
                os.fchmod(listener.fileno(), mode)
        listener.bind(path)
        if not is_abstract:
            file = SocketFile(path)
            if mode is not None and stat.S_IMODE(os.lstat(path).st_mode) != mode:
                set_mode(path, mode)  # before it listens: until then nobody can connect
        listener.listen(backlog)
    except BaseException:
        listener.close()
        if file is not None:
            file.remove()
        raise
    return listener, file


def _remove_stale(path: str | bytes) -> None:
    """Remove a socket that no server listens on any more.

    Raises:
        OSError: A server listens on it.
    """
    before = _identity(path)
    if before is None or not stat.S_ISSOCK(os.lstat(path).st_mode):
        return  # nothing is there; or something that is not ours to remove, as bind() will say
    with socket(_socket.AF_UNIX) as probe:
        code = probe.socket.connect_ex(path)
    if code == errno.ENOENT:
        return
    if code != errno.ECONNREFUSED:
        why = "" if code in (0, errno.EAGAIN, errno.EINPROGRESS) else f" ({os.strerror(code)})"
        raise OSError(errno.EADDRINUSE, f"another server listens there{why}", path)
    if _identity(path) == before:  # not one that has begun meanwhile
        os.unlink(path)
