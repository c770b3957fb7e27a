"""Waiting with epoll(7), on Linux.

Facts that shape the code:

a) epoll refuses regular files and directories with EPERM. Whoever registered decides what that means, so it is raised.
b) An entry belongs to the open file description *and* the number, epoll(7) "Questions and answers" 6. Closing the
   number removes the entry only if no duplicate (dup, fork, a descriptor passed over a socket) keeps the description
   open. Such an entry goes on being reported, under a number that is closed or that is another file by now, and cannot
   be removed through it: EPOLL_CTL_DEL says EBADF or ENOENT. A new epoll object is the only way to be rid of it.
c) EPOLLHUP and EPOLLERR are reported without being asked for, and may come alone.
d) The resolution is one millisecond. CPython rounds up to it (``_PyTime_ROUND_CEILING`` in selectmodule.c), so rounding
   here as well would add a millisecond; and 0.067 as a float is a hair above 67 ms, so a nanosecond is taken off.
e) More than 2**31 - 1 milliseconds is an OverflowError, less than 0 waits for ever, and room for 0 events a ValueError.
"""

import errno
import functools
from collections.abc import Callable
from contextlib import suppress
from selectors import SelectorKey
from typing import Any, ClassVar

from flowno_backends.base import LONGEST, BackendSelector, Capability, clamped, poll_events

__all__ = ["EpollSelector"]


class EpollSelector(BackendSelector):
    """Waits with ``select.epoll``: any number of descriptors, at a cost that depends on the ready ones only."""

    name: ClassVar[str] = "epoll"
    capabilities: ClassVar[frozenset[Capability]] = frozenset({"any_fd", "scales"})
    facts: ClassVar[str] = "Linux; the cost does not grow with idle descriptors; 1 ms; no regular files"

    def _open(self) -> Any:
        module = self._module
        self._masks = (0, module.EPOLLIN, module.EPOLLOUT, module.EPOLLIN | module.EPOLLOUT)
        return module.epoll()

    def _decoder(self) -> Callable[[Any], tuple[int, int]]:
        return functools.partial(poll_events, self._module.EPOLLIN, self._module.EPOLLOUT)

    def _change(self, fd: int, old: int, new: int) -> None:
        if not old:
            try:
                self._kernel.register(fd, self._masks[new])
            except FileExistsError:
                # An entry that could not be removed under this number, and is the same open file again.
                self._kernel.modify(fd, self._masks[new])
        elif new:
            try:
                self._kernel.modify(fd, self._masks[new])
            except FileNotFoundError:
                # The fd was closed and its number given to another file. Fact b: the first may still be reported.
                self._ready.doubtful.add(fd)
                self._kernel.register(fd, self._masks[new])
        else:
            try:
                self._kernel.unregister(fd)
            except OSError as error:
                # ENOENT: the number is another file by now. EBADF: it is closed. EPERM: it is a regular file by now.
                if error.errno not in (errno.ENOENT, errno.EBADF, errno.EPERM):
                    raise
                self._ready.doubtful.add(fd)

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        if timeout is not None:
            if 1e-9 < timeout <= LONGEST:
                timeout -= 1e-9  # fact d
            elif timeout != 0:
                timeout = clamped(timeout)
        ready = self._ready
        reports = self._kernel.poll(timeout, self._room)
        try:
            return [ready[report] for report in reports]
        except KeyError:
            return self._without_strays(reports)

    def _without_strays(self, reports: list[tuple[int, int]]) -> list[tuple[SelectorKey, int]]:
        """What ``select`` returns where some reports are, or may be, those of fact b."""
        found: dict[int, tuple[SelectorKey, int]] = {}
        removed = True
        for report in reports:
            fd = report[0]
            try:
                if fd not in self._keys:
                    self._kernel.unregister(fd)
                elif fd in found:
                    removed = False
                elif fd not in self._ready.doubtful:
                    found[fd] = self._ready.translate(report)
                elif answer := self._by_number(fd):
                    found[fd] = self._ready.translate(answer[0])
                else:
                    removed = False
            except (KeyError, OSError):  # reported for what nobody asked for, or not to be removed under its number
                removed = False
        if not removed:
            with suppress(OSError):  # no descriptor free for a new object: the next report tries again
                self._reopen()
        return list(found.values())

    def _by_number(self, fd: int) -> list[tuple[int, int]]:
        """What poll(2), which goes by the number alone, reports of a registration."""
        number = self._module.poll()
        number.register(fd, self._masks[self._keys[fd].events])
        return list(number.poll(0))

    def _close(self, kernel: Any) -> None:
        kernel.close()

    def fileno(self) -> int:
        """The descriptor of the epoll object; it changes when the object is replaced (fact b, fork)."""
        return int(self._kernel.fileno())
