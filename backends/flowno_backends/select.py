"""Waiting with select(2), on every platform.

Facts that shape the code:

a) On Unix a set is a bitmap of FD_SETSIZE bits, and CPython refuses a larger fd with a ValueError. On Windows it is an
   array of socket handles of any value, for which CPython is compiled with room for 512 (selectmodule.c).
b) One closed fd fails the whole call, with EBADF (WSAENOTSOCK on Windows), and does not say which.
c) Windows reports a refused connect in the exceptional set only, and refuses three empty sets with WSAEINVAL,
   learn.microsoft.com/windows/win32/api/winsock2/nf-winsock2-select. On Unix the exceptional set is urgent data.
d) CPython makes the sets from any sequence, from lists the fastest; the answers are lists.
e) Less than 0 is a ValueError and from about 10**12 seconds on an OverflowError. The resolution is a microsecond; on
   Windows it is the system's timer.
"""

import errno
import sys
import time
from collections.abc import Callable
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any, ClassVar, Final

from flowno_backends.base import LONGEST, BackendSelector, Capability, clamped

__all__ = ["SelectSelector"]

_WSAENOTSOCK: Final = 10038


def _decode(report: int) -> tuple[int, int]:
    """A report is the fd where it is readable, and its complement where it is writable."""
    return (report, EVENT_READ) if report >= 0 else (~report, EVENT_WRITE)


class SelectSelector(BackendSelector):
    """Waits with ``select.select``, which exists everywhere and holds few descriptors."""

    name: ClassVar[str] = "select"
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {"fork_safe", "sees_closed"}
        if sys.platform == "win32"
        else {"files", "fork_safe", "sees_closed", "submillisecond"}
    )
    facts: ClassVar[str] = "everywhere; descriptors below FD_SETSIZE, on Windows 512 sockets; the cost grows with all"

    _on_windows = sys.platform == "win32"

    def _open(self) -> Any:
        self._readers: set[int] = set()
        self._writers: set[int] = set()
        self._lists: tuple[list[int], list[int], list[int]] | None = None
        return self._module

    def _decoder(self) -> Callable[[Any], tuple[int, int]]:
        return _decode

    def _change(self, fd: int, old: int, new: int) -> None:
        if not old:
            self._check(fd)
        for event, watched in ((EVENT_READ, self._readers), (EVENT_WRITE, self._writers)):
            if new & event:
                watched.add(fd)
            else:
                watched.discard(fd)
        self._lists = None

    def _check(self, fd: int) -> None:
        """Refuse now what would fail every later wait: facts a and b."""
        if self._on_windows and len(self._keys) >= 512:
            raise ValueError("select holds 512 sockets on Windows (FD_SETSIZE), and has them already")
        try:
            self._kernel.select([fd], [], [], 0)
        except ValueError:
            raise ValueError(
                f"select cannot hold file descriptor {fd}: it ends at FD_SETSIZE (1024 on most systems); "
                "use epoll, kqueue or poll"
            ) from None

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        if timeout is not None and not 0 <= timeout <= LONGEST:
            timeout = clamped(timeout)
        wait = self._kernel.select
        if not self._keys:
            # Three empty sets: fact c. Nothing can become ready, so without a limit the longest wait will do.
            time.sleep(LONGEST if timeout is None else timeout)
            return []
        readers, writers, exceptional = self._lists or self._make_lists()
        try:
            readable, writable, failed = wait(readers, writers, exceptional, timeout)
        except OSError as error:
            if error.errno not in (errno.EBADF, _WSAENOTSOCK):
                raise
            readable, writable = self._test_each()
        else:
            if failed:
                writable = [*writable, *set(failed).difference(writable)]
        ready = self._ready
        return [ready[fd] for fd in readable] + [ready[~fd] for fd in writable]

    def _make_lists(self) -> tuple[list[int], list[int], list[int]]:
        writers = list(self._writers)
        self._lists = (list(self._readers), writers, writers if self._on_windows else [])
        return self._lists

    def _test_each(self) -> tuple[list[int], list[int]]:
        """What is ready when each fd is asked alone. A closed one is, so that whoever waits for it gets the error."""
        readable = [fd for fd in self._readers if self._is_ready([fd], [], [])]
        writable = [fd for fd in self._writers if self._is_ready([], [fd], [fd] if self._on_windows else [])]
        return readable, writable

    def _is_ready(self, *sets: list[int]) -> bool:
        try:
            return any(self._kernel.select(*sets, 0))
        except OSError:
            return True

    def _close(self, kernel: Any) -> None:
        """select keeps nothing between two calls: nothing to close."""
