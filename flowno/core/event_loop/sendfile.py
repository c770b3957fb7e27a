"""Files that are sent through a socket: by the system's own ``sendfile`` where that takes them, else by reading."""

from __future__ import annotations

import errno
import io
import os
import socket as _socket
import stat
from typing import TYPE_CHECKING, BinaryIO

from .errors import BusyResourceError

if TYPE_CHECKING:
    from .sockets import SocketHandle

__all__ = ["send_file", "source_of"]

#: Bytes of a file that are read, or given to the system to send, in one go; the loop stands still for so long.
_FILE_CHUNK = 262_144

#: What os.sendfile says where it cannot take this file, or this socket, sendfile(2) of Linux, FreeBSD and macOS.
_NO_SENDFILE = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSOCK, errno.EOPNOTSUPP, errno.ENOTSUP})


async def send_file(handle: SocketHandle, file: BinaryIO, offset: int, count: int | None) -> int:
    """Send a file, or a part of it, as :meth:`SocketHandle.sendfile` says."""
    _check_arguments(handle, file, offset, count)
    source = handle._sendfile_source(file)
    seekable = source is not None or getattr(file, "seekable", lambda: hasattr(file, "seek"))()
    if offset and not seekable:
        raise ValueError(f"offset must be 0 for a file that cannot seek: {file!r}")
    sent = 0
    is_ours = True
    try:
        while source is not None and sent != count:
            size = _FILE_CHUNK if count is None else min(count - sent, _FILE_CHUNK)
            try:
                taken = await handle._write_by(handle._sendfile, source, offset + sent, size)
            except OSError as error:
                if sent or error.errno not in _NO_SENDFILE:
                    raise
                source = None
            else:
                sent += taken
                if not taken:
                    return sent
        if seekable and sent != count:
            file.seek(offset)
        while sent != count:
            size = _FILE_CHUNK if count is None else min(count - sent, _FILE_CHUNK)
            data = file.read(size)
            if not data:
                break
            try:
                await handle.sendAll(data)
            except BusyResourceError:
                raise
            except BaseException:
                sent += handle.bytes_sent
                raise
            sent += len(data)
        return sent
    except BusyResourceError:
        is_ours = False  # another task counts its bytes there
        raise
    finally:
        if is_ours:
            handle.bytes_sent = sent
        if seekable and not getattr(file, "closed", False):
            file.seek(offset + sent)


def source_of(file: BinaryIO) -> int | None:
    """The fd from which the system can send what reading the file would give; None where only reading will do.

    A ``fileno()`` is not enough: a GzipFile has one, and other bytes behind it.
    """
    raw = getattr(file, "raw", file)
    if not isinstance(raw, io.FileIO) or not raw.readable() or not hasattr(os, "sendfile"):
        return None
    file.flush()  # what was written, and only Python knows
    fd = raw.fileno()
    return fd if stat.S_ISREG(os.fstat(fd).st_mode) else None


def _check_arguments(handle: SocketHandle, file: BinaryIO, offset: int, count: int | None) -> None:
    """Look at the arguments of a sendfile before anything is done."""
    if isinstance(file, io.TextIOBase):
        raise ValueError(f"file must be open in binary mode: {file!r}")
    if handle.type != _socket.SOCK_STREAM:
        raise ValueError(f"sendfile needs a stream socket, not {handle!r}")
    for name, value, least in (("offset", offset, 0), ("count", count, 1)):
        if value is None and name == "count":
            continue
        if not isinstance(value, int):
            raise TypeError(f"{name} must be an int, not {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
