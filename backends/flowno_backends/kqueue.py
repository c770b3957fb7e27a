"""Waiting with kqueue(2), on macOS and the BSDs.

Facts that shape the code:

a) There is one filter a direction, EVFILT_READ and EVFILT_WRITE, and an event for each: an fd may be reported twice,
   and room for events is counted in filters. With room for 0 events kevent returns at once, whatever the timeout.
   Adding a filter that is there changes nothing but its ``udata``.
b) A change that fails is an event with EV_ERROR and the errno in ``data`` if there is room for it; without room kevent
   fails with that errno and the changes after it are not made. With room, kevent goes on to look for what is ready,
   only to have it thrown away: so no room is given, and after a failure the changes are made one by one.
c) EV_DELETE says ENOENT where the filter is absent, and EBADF where the fd is closed: a close removes its filters.
d) EVFILT_WRITE on a pipe whose reader is gone says EPIPE (FreeBSD, macOS), and EBADF on an open fd (NetBSD). Both mean
   that a write would fail, which is the writer's to find out: the fd is reported as ready from then on.
e) EV_EOF comes with data still to be read, and as long as the filter is there.
f) A kqueue is not inherited by a forked child. Python before 3.13 does not know (cpython issue 110395), so the object
   is closed in the child at once, before another descriptor has its number.
g) A negative timeout is a ValueError, and the BSDs limit it to 10**8 seconds. The resolution is the clock's.
"""

import errno
import os
from collections.abc import Callable
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any, ClassVar

from flowno_backends.base import LONGEST, BackendSelector, Capability, clamped

__all__ = ["KqueueSelector"]


def _decode(report: int) -> tuple[int, int]:
    """A report is the ``udata`` of the filter: the fd, and in the lowest bit whether it is the one for writing."""
    return report >> 1, EVENT_WRITE if report & 1 else EVENT_READ


def _is_open(fd: int) -> bool:
    try:
        os.get_inheritable(fd)  # fcntl(F_GETFD)
    except OSError:
        return False
    return True


class KqueueSelector(BackendSelector):
    """Waits with ``select.kqueue``: any number of descriptors, at a cost that depends on the ready ones only."""

    name: ClassVar[str] = "kqueue"
    capabilities: ClassVar[frozenset[Capability]] = frozenset({"any_fd", "scales", "submillisecond"})
    facts: ClassVar[str] = "macOS and BSD; the cost does not grow with idle descriptors; below 1 ms"

    def _open(self) -> Any:
        module = self._module
        self._filters = ((EVENT_READ, module.KQ_FILTER_READ, 0), (EVENT_WRITE, module.KQ_FILTER_WRITE, 1))
        #: Fact d: the events that are ready for ever because their filter could not be added.
        self._broken: dict[int, int] = {}
        return module.kqueue()

    def _decoder(self) -> Callable[[Any], tuple[int, int]]:
        return _decode

    def _change(self, fd: int, old: int, new: int) -> None:
        module = self._module
        # What stays is added again, which changes nothing unless the number is another file by now: fact c.
        changes = [
            module.kevent(fd, filter_, module.KQ_EV_ADD if new & event else module.KQ_EV_DELETE, 0, 0, fd << 1 | bit)
            for event, filter_, bit in self._filters
            if (old | new) & event
        ]
        self._broken.pop(fd, None)
        broken = 0
        for filter_, number in self._submit(changes):
            event = EVENT_READ if filter_ == module.KQ_FILTER_READ else EVENT_WRITE
            if new & event:
                if number != errno.EPIPE and not (number == errno.EBADF and _is_open(fd)):
                    self._submit([module.kevent(fd, change.filter, module.KQ_EV_DELETE) for change in changes])
                    raise OSError(number, os.strerror(number))
                broken |= event  # fact d
            elif number not in (errno.ENOENT, errno.EBADF):  # fact c: it is gone already
                raise OSError(number, os.strerror(number))
        if broken:
            self._broken[fd] = broken

    def _submit(self, changes: list[Any]) -> list[tuple[int, int]]:
        """Make the changes, each whatever becomes of the others; the filter and the errno of those that failed."""
        try:
            self._kernel.control(changes, 0, 0)
        except OSError as error:
            if len(changes) > 1:  # fact b: those after the one that failed were not made
                return [failure for change in changes for failure in self._submit([change])]
            return [(changes[0].filter, error.errno or 0)]
        return []

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        if timeout is not None and not 0 <= timeout <= LONGEST:
            timeout = clamped(timeout)
        if self._broken:
            timeout = 0
        ready = self._ready
        reports = self._kernel.control(None, self._room * 2, timeout)
        try:
            result = [ready[report.udata] for report in reports]
        except KeyError:
            result = self._without_strays(reports)
        if self._broken:
            result += [(self._keys[fd], events) for fd, events in self._broken.items()]
        return result

    def _without_strays(self, reports: list[Any]) -> list[tuple[SelectorKey, int]]:
        """What ``select`` returns where a filter is left over from a change that was interrupted by a signal."""
        result = []
        for report in reports:
            try:
                result.append(self._ready[report.udata])
            except KeyError:
                self._submit([self._module.kevent(report.ident, report.filter, self._module.KQ_EV_DELETE)])
        return result

    def _close(self, kernel: Any) -> None:
        kernel.close()

    def fileno(self) -> int:
        """The descriptor of the kqueue object; it changes in a forked child."""
        return int(self._kernel.fileno())
