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
f) What fact b leaves over takes room from what is ready, and ends each wait at once. So the question is asked again of
   the new object, for the rest of the time. A new object takes a descriptor, and there may be none (EMFILE, ENFILE), or
   no room for as many entries once more (ENOSPC, epoll(7) "max_user_watches"). The old one is kept then, as closing it
   first would lose every registration if another thread were quicker; and poll(2), which goes by the number alone, does
   the waiting until there is a new one. It must not be asked about closed numbers, which it would report at once.
"""

import errno
import functools
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from selectors import SelectorKey
from typing import Any, ClassVar

from flowno_backends.base import LONGEST, BackendSelector, Capability, clamped, poll_events

__all__ = ["EpollSelector"]


class _Timed:
    """Stands where the epoll object is while it may hold what fact b leaves over: who meets that has to know when the
    wait began, and nobody else has to pay for it."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self.began = 0.0

    def poll(self, timeout: float | None, room: int) -> Any:
        self.began = time.monotonic()
        return self._kernel.poll(timeout, room)

    def __getattr__(self, call: str) -> Any:
        return getattr(self._kernel, call)


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
                self._doubt(fd)
                self._kernel.register(fd, self._masks[new])
        else:
            try:
                self._kernel.unregister(fd)
            except OSError as error:
                # ENOENT: the number is another file by now. EBADF: it is closed. EPERM: it is a regular file by now.
                if error.errno not in (errno.ENOENT, errno.EBADF, errno.EPERM):
                    raise
                self._doubt(fd)

    def _doubt(self, fd: int) -> None:
        """From now on what is reported of this number may be of fact b."""
        self._ready.doubtful.add(fd)
        if not isinstance(self._kernel, _Timed):
            self._kernel = _Timed(self._kernel)

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
            return self._without_strays(reports, timeout)

    def _without_strays(self, reports: list[tuple[int, int]], timeout: float | None) -> list[tuple[SelectorKey, int]]:
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
                elif answer := self._by_number([fd], 0):
                    found[fd] = self._ready.translate(answer[0])
                else:
                    removed = False
            except (KeyError, OSError):  # reported for what nobody asked for, or not to be removed under its number
                removed = False
        # Fact f: strays may have had the room of what is ready, or have ended the wait.
        took_room = len(found) < len(reports) == self._room
        is_over = bool(found) or timeout == 0
        left = 0 if is_over else self._left(timeout)
        if not removed:
            with suppress(OSError):  # the next report tries again
                self._reopen()
                removed = True
        if is_over and not took_room:
            return list(found.values())
        if removed:
            return EpollSelector.select(self, left)
        return [self._ready.translate(report) for report in self._by_number(self._keys, left)]

    def _left(self, timeout: float | None) -> float | None:
        """What is left of a wait that a stray has ended."""
        if timeout is None:
            return None
        if not isinstance(self._kernel, _Timed):
            return 0  # a signal handler raised in the middle of a change: nobody could know, and this wait ends early
        return max(self._kernel.began + timeout - time.monotonic(), 0)

    def _by_number(self, fds: Iterable[int], timeout: float | None) -> list[tuple[int, int]]:
        """What poll(2), which goes by the number alone, reports of those registrations that are open."""
        poll = self._module.poll()
        for fd in fds:
            with suppress(OSError):
                os.get_inheritable(fd)  # fcntl(F_GETFD): EBADF where it is closed
                poll.register(fd, self._masks[self._keys[fd].events])
        return list(poll.poll(None if timeout is None else timeout * 1e3))

    def _close(self, kernel: Any) -> None:
        kernel.close()

    def fileno(self) -> int:
        """The descriptor of the epoll object; it changes when the object is replaced (fact b, fork)."""
        return int(self._kernel.fileno())
