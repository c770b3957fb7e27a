"""A trace in a file: Chrome's "Trace Event Format", in its JSON object form, as Perfetto and chrome://tracing read it.

The file is written as the events come, a piece at a time, and each piece with the end of the document behind it, which
the next one overwrites. So what there is in memory is bounded, and the file is whole after every piece: after an
exception, and also after SIGKILL.

Two who write there would destroy it. So a file has a lock while it is written, which the system takes back however its
process ends: flock(2), or on Windows that of a byte far behind the end, as there a lock keeps readers away, too.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import sys
from contextlib import suppress
from threading import RLock
from time import perf_counter
from typing import Any
from weakref import WeakSet

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["TraceFile"]

#: How many events are collected, and for how many seconds, before they are written.
PIECE = 500
DELAY = 0.25

_HEAD = b'{"displayTimeUnit":"ms","otherData":%s,"traceEvents":[\n'
_TAIL = b"\n]}\n"

#: The byte that is locked on Windows.
_FAR_BEHIND = 1 << 40

_encode = json.JSONEncoder(separators=(",", ":")).encode

logger = logging.getLogger("flowno.trace")


class TraceFile:
    """Takes the events of a trace, from any thread. It never raises but when it is made.

    A forked child that has inherited one writes nothing. Where the system takes no more, as on a full disk, the trace
    ends there, which is logged.

    Args:
        path: The file. One that is there already is replaced.

    Raises:
        OSError: It cannot be written, or another trace is being written there, by whatever process.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = open(path, "wb", buffering=0, opener=_open_alone)  # noqa: SIM115  # close() is what closes it
        self._path = os.fspath(path)
        self.renew_lock()
        self._owner = os.getpid()
        self._events: list[dict[str, Any]] = []
        self._written = perf_counter()
        self._separator = ""
        self._position = 0  # where the next piece begins
        try:
            self._seekable = self._file.seekable()
            about = {"process": os.getpid(), "python": sys.version.split()[0]}
            self._append(_HEAD % json.dumps(about).encode())
        except BaseException:
            self._file.close()
            raise
        _files.add(self)

    def renew_lock(self) -> None:
        """For the child of a fork: whoever had the lock is not there any more."""
        self._lock = RLock()

    @property
    def is_writable(self) -> bool:
        """Whether this is the process that has opened the file, and there is more to come."""
        return not self._file.closed and os.getpid() == self._owner

    def add(self, event: dict[str, Any]) -> None:
        """Add an event, which must not change any more."""
        with self._lock:
            self._events.append(event)
            if len(self._events) >= PIECE or perf_counter() - self._written >= DELAY:
                self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        with self._lock:
            if not self.is_writable:
                self._events.clear()
            elif self._events:
                try:
                    self._append((self._separator + _encode(self._events)[1:-1]).encode())
                except OSError as error:
                    logger.error("the trace in %s ends here: %s", self._path, error)
                    self._repair()
                    self._file.close()
                self._separator = ",\n"
                self._events.clear()
                self._written = perf_counter()

    def close(self) -> None:
        """Write what is left, and close the file. Idempotent."""
        with self._lock:
            self.flush()
            if self.is_writable and not self._seekable:
                with suppress(OSError):  # the reader of a pipe has gone
                    self._write(_TAIL)
            self._file.close()

    def _append(self, piece: bytes) -> None:
        if self._seekable:
            self._file.seek(self._position)
            self._write(piece + _TAIL)
            self._position += len(piece)  # an interrupt before this has the same piece written again, to the same place
        else:
            self._write(piece)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) or 0 :]

    def _repair(self) -> None:
        """Leave the file as it was before the piece that could not be written."""
        if self._seekable:
            with suppress(OSError):
                self._file.truncate(self._position)
                self._file.seek(self._position)
                self._write(_TAIL)


def _open_alone(path: str, flags: int) -> int:
    """Open and lock a file, and only then empty it.

    It is for its owner only, as a trace shows what a program does. In a folder that others may write to, /tmp for one,
    the name may be theirs: a link of theirs would have us empty a file of ours, and a file of theirs show them all.
    """
    link = _link_at(path)
    if link is None:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    elif not _is_ours(link):
        raise OSError(errno.EPERM, "a symbolic link is there, which somebody else has made; choose another path", path)
    fd = os.open(path, flags & ~os.O_TRUNC, 0o600)
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):  # many may write to a device or a pipe
            if not _is_ours(status):
                raise OSError(
                    errno.EPERM, "the file is somebody else's, who could read the trace; choose another path", path
                )
            if not _lock(fd):
                reason = "another trace is being written there; choose another path"
                raise OSError(errno.EBUSY, reason, path)
            os.ftruncate(fd, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _link_at(path: str) -> os.stat_result | None:
    """The symbolic link that a path is, if it is one."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status if stat.S_ISLNK(status.st_mode) else None


def _is_ours(status: os.stat_result) -> bool:
    """Whether something is of this user, or of root, who can do all anyway."""
    return not hasattr(os, "geteuid") or status.st_uid in (os.geteuid(), 0)


def _lock(fd: int) -> bool:
    """Lock a file until it is closed; False where it is locked."""
    try:
        if sys.platform == "win32":
            os.lseek(fd, _FAR_BEHIND, os.SEEK_SET)
            try:
                msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            finally:
                os.lseek(fd, 0, os.SEEK_SET)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass  # a file system that has no locks
    return True


# ----------------------------------------------------------------------------------------------------------- after fork

_files: WeakSet[TraceFile] = WeakSet()


def _after_fork() -> None:
    """In the child: the lock would last as long as its copy of the file."""
    for each in _files:
        each._file.close()
    _files.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
