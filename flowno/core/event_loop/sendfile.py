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
    from typing import Self

    from .sockets import SocketHandle

__all__ = ["send_file", "source_of"]

#: Bytes of a file that are read, or given to the system to send, in one go; the loop stands still for so long.
_FILE_CHUNK = 262_144

#: What os.sendfile says where it cannot take this file, or this socket, sendfile(2) of Linux, FreeBSD and macOS.
_NO_SENDFILE = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSOCK, errno.EOPNOTSUPP, errno.ENOTSUP})


class _BytesSent:
    """How many bytes the sends in a ``with`` block have handed over together.

    ``bytes_sent`` of the handle says so afterwards, unless one was refused: then that is what another task counts.
    """

    __slots__ = ("_handle", "total")

    def __init__(self, handle: SocketHandle) -> None:
        self._handle = handle
        self.total = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, BusyResourceError):
            self._handle.bytes_sent = self.total


async def send_file(handle: SocketHandle, file: BinaryIO, offset: int, count: int | None) -> int:
    """Send a file, or a part of it, as :meth:`SocketHandle.sendfile` says."""
    _check_arguments(handle, file, offset, count)
    source = handle._sendfile_source(file)
    can_seek = source is not None or _can_seek(file)
    if offset and not can_seek:
        raise ValueError(f"offset must be 0 for a file that cannot seek: {file!r}")
    sent = _BytesSent(handle)
    try:
        with sent:
            if source is None or not await _send_by_system(handle, source, offset, count, sent):
                if can_seek:
                    file.seek(offset)
                await _send_by_reading(handle, file, count, sent)
    finally:
        if can_seek and not getattr(file, "closed", False):
            file.seek(offset + sent.total)
    return sent.total


async def _send_by_system(handle: SocketHandle, source: int, offset: int, count: int | None, sent: _BytesSent) -> bool:
    """Let the system send the file. False where it cannot do that with this file, or to this socket."""
    while sent.total != count:
        try:
            size = await handle._write_by(handle._sendfile, source, offset + sent.total, _next_size(count, sent))
        except OSError as error:
            if sent.total or error.errno not in _NO_SENDFILE:
                raise
            return False
        if not size:
            break
        sent.total += size
    return True


async def _send_by_reading(handle: SocketHandle, file: BinaryIO, count: int | None, sent: _BytesSent) -> None:
    """Read the file from where it stands, and send that."""
    while sent.total != count:
        data = file.read(_next_size(count, sent))
        if not data:
            break
        try:
            await handle.sendAll(data)
        except BusyResourceError:
            raise  # of this data nothing was sent
        except BaseException:
            sent.total += handle.bytes_sent
            raise
        sent.total += len(data)


def _next_size(count: int | None, sent: _BytesSent) -> int:
    return _FILE_CHUNK if count is None else min(count - sent.total, _FILE_CHUNK)


def _can_seek(file: BinaryIO) -> bool:
    """What the file says itself; of an object that is only like one, whether it has a ``seek``."""
    if hasattr(file, "seekable"):
        return file.seekable()
    return hasattr(file, "seek")


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
    _check_number("offset", offset, 0)
    if count is not None:
        _check_number("count", count, 1)


def _check_number(name: str, value: object, least: int) -> None:
    if not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
