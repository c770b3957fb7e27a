"""A trace in a file: Chrome's "Trace Event Format", in its JSON object form, as Perfetto and chrome://tracing read it.

The file is written as the events come, a piece at a time, and each piece with the end of the document behind it, which
the next one overwrites. So what there is in memory is bounded, and the file is whole after every piece: after an
exception, and also after SIGKILL.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import suppress
from threading import RLock
from time import perf_counter
from typing import Any

__all__ = ["TraceFile"]

#: How many events are collected, and for how many seconds, before they are written.
PIECE = 500
DELAY = 0.25

_HEAD = b'{"displayTimeUnit":"ms","otherData":%s,"traceEvents":[\n'
_TAIL = b"\n]}\n"

_encode = json.JSONEncoder(separators=(",", ":")).encode

logger = logging.getLogger("flowno.trace")


class TraceFile:
    """Takes the events of a trace, from any thread. It never raises but when it is made.

    A forked child that has inherited one writes nothing. Where the system takes no more, as on a full disk, the trace
    ends there, which is logged.

    Args:
        path: The file. One that is there already is replaced.

    Raises:
        OSError: It cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115  # close() is what closes it
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
