"""Waiting with kqueue(2), on macOS and the BSDs.

Facts that shape the code:

a) There is one filter a direction, EVFILT_READ and EVFILT_WRITE, and an event for each: an fd may be reported twice,
   and room for events is counted in filters. With room for 0 events kevent returns at once, whatever the timeout.
   Adding a filter that is there changes nothing but its ``udata``.
b) A change that fails is an event with EV_ERROR and the errno in ``data`` if there is room for it; without room kevent
   fails with that errno and the changes after it are not made. With room, kevent goes on to look for what is ready,
   only to have it thrown away: so no room is given, and after a failure the changes are made one by one.
c) EV_DELETE says ENOENT where the filter is absent, and EBADF where the fd is closed: a close removes its filters,
   those of that number alone, so that no duplicate goes on being reported.
d) A filter for writing may be refused because the reader of a pipe is gone (table below). That means that a write would
   fail, which is the writer's to find out: the fd is reported as ready from then on.
e) EV_EOF comes with data still to be read, and as long as the filter is there.
f) A kqueue is not inherited by a forked child. Python before 3.13 does not know (cpython issue 110395), so the object
   is closed in the child at once, before another descriptor has its number.
g) A negative timeout is a ValueError. A signal that ends a wait finds the changes made; Python waits on. The resolution
   is the clock's.
h) A regular file is readable while its offset is not at its end, and not when it is, where poll(2) has it ready always;
   for writing the manual pages have it unsupported. So files are refused, by the errno with which epoll refuses them,
   EPERM, and so are devices which kqueue refuses (difference 3) and which are no terminals, as /dev/null: whoever
   registered decides what that means.
i) A kqueue can be watched, but not by itself (EINVAL): it may be given the number of what was closed while registered.

Where the platforms differ (FreeBSD 14, NetBSD 10, OpenBSD 7, macOS 14):

===================================== ============== ============== ============== ====================================
what                                  FreeBSD        NetBSD         OpenBSD        macOS
===================================== ============== ============== ============== ====================================
1 EVFILT_WRITE, reader of a pipe gone EPIPE          EBADF          EPIPE          EV_EOF; EPIPE on old ones
2 EVFILT_READ on the writing end      never reported EV_EOF         EV_EOF         EV_EOF
3 devices that are not prepared       ENODEV         by device      by device      EINVAL, also for /dev/tty
4 longest timeout                     none           none           24 h on old    10**8 s
5 limited descriptors                 ENOTCAPABLE    none           none           none
6 a FIFO that has lost its writers    EV_EOF         EV_EOF         EV_EOF         reported by select(2) alone
7 type of ``udata``                   pointer        integer to 9   pointer        pointer
8 EVFILT_WRITE, the reader goes later EV_EOF once    EV_EOF         EV_EOF         EV_EOF
===================================== ============== ============== ============== ====================================

1) ``pipe_kqfilter`` in sys/kern/sys_pipe.c of each, bsd/kern/sys_pipe.c of xnu; for macOS 10.11 and before, mio issue
   582. NetBSD's EBADF is that of a closed fd, too, so the fd is asked whether it is open.
2) The same functions. Nothing here can make up for it: on FreeBSD, who wants to know that the reader of a pipe is gone
   waits for writing.
3) ``no_kqfilter`` in FreeBSD's sys/kern/kern_conf.c, ``spec_kqfilter`` in xnu. For /dev/tty libuv waits by select(2) in
   ``uv__stream_try_select``, as the user may.
4) ``itimerfix`` in xnu; BUGS in OpenBSD's kqueue(2) of 2013, which cuts a longer one. LONGEST is below the first, and a
   wait that ends early with nothing ready is allowed.
5) A descriptor without CAP_EVENT, rights(4): ``kqueue_register`` in sys/kern/kern_event.c. A filter from before that
   cannot even be removed, and would be reported for ever: a new kqueue is the only way to be rid of it.
6) Go issue 24164: of a named FIFO, and of no pipe of pipe(2), macOS tells while there are bytes. Who reads one there
   waits by select(2).
7) HISTORY in NetBSD's kqueue(2). It is a small number here, which both can hold.
8) The filter is kept by the reader, whose close removes it: ``knlist_clear`` in ``pipeclose``. It is reported for the
   last time with EV_EOF and EV_ONESHOT, ``knlist_cleardel`` in sys/kern/kern_event.c. From then on fact d holds.
"""

import errno
import os
import select
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any, ClassVar, Final

from flowno_backends.base import LONGEST, BackendSelector, Capability, clamped

__all__ = ["KqueueSelector"]


#: Of a filter that is to be removed: it is gone already, fact c.
_GONE: Final = (errno.ENOENT, errno.EBADF)


def _decode(report: int) -> tuple[int, int]:
    """A report is the ``udata`` of the filter: the fd, and in the lowest bit whether it is the one for writing."""
    return report >> 1, EVENT_WRITE if report & 1 else EVENT_READ


def _is_open(fd: int) -> bool:
    try:
        os.get_inheritable(fd)  # fcntl(F_GETFD)
    except OSError:
        return False
    return True


def _is_mere_device(fd: int) -> bool:
    return stat.S_ISCHR(os.fstat(fd).st_mode) and not os.isatty(fd)


class KqueueSelector(BackendSelector):
    """Waits with ``select.kqueue``: any number of descriptors, at a cost that depends on the ready ones only."""

    name: ClassVar[str] = "kqueue"
    capabilities: ClassVar[frozenset[Capability]] = frozenset({"any_fd", "scales", "submillisecond"})
    facts: ClassVar[str] = "macOS, BSD; the cost does not grow with idle descriptors; below 1 ms; no regular files"

    _on_freebsd = sys.platform.startswith("freebsd")

    def __init__(self, select_module: Any = select) -> None:
        #: Fact d: the events that are ready for ever because there can be no filter. Each change of an fd says anew
        #: which those are.
        self._broken: dict[int, int] = {}
        super().__init__(select_module)

    def _open(self) -> Any:
        module = self._module
        self._filters = ((EVENT_READ, module.KQ_FILTER_READ, 0), (EVENT_WRITE, module.KQ_FILTER_WRITE, 1))
        return module.kqueue()

    def _decoder(self) -> Callable[[Any], tuple[int, int]]:
        return _decode

    def _change(self, fd: int, old: int, new: int) -> None:
        module = self._module
        if not old and stat.S_IFMT(os.fstat(fd).st_mode) in (stat.S_IFREG, stat.S_IFDIR):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))  # fact h
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
                    is_file = number in (errno.EINVAL, errno.ENODEV) and _is_mere_device(fd)
                    refusal = errno.EPERM if is_file else number  # fact h
                    raise OSError(refusal, os.strerror(refusal))
                broken |= event  # fact d
            elif number not in _GONE:
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
        if self._on_freebsd:
            self._remember_the_last(reports)
        return result

    def _remember_the_last(self, reports: list[Any]) -> None:
        """Difference 8: of a filter that was reported for the last time, report the fd from now on."""
        for report in reports:
            if report.flags & self._module.KQ_EV_ONESHOT and report.ident in self._keys:
                self._broken[report.ident] = self._broken.get(report.ident, 0) | _decode(report.udata)[1]

    def _without_strays(self, reports: list[Any]) -> list[tuple[SelectorKey, int]]:
        """What ``select`` returns where a filter is left over: a signal has interrupted a change, or difference 5."""
        result = []
        removed = True
        for report in reports:
            try:
                result.append(self._ready[report.udata])
            except KeyError:
                delete = self._module.kevent(report.ident, report.filter, self._module.KQ_EV_DELETE)
                removed &= all(number in _GONE for _, number in self._submit([delete]))
        if not removed:
            with suppress(OSError):  # no descriptor free for a new object: the next report tries again
                self._reopen()
        return result

    def _close(self, kernel: Any) -> None:
        kernel.close()

    def fileno(self) -> int:
        """The descriptor of the kqueue object; it changes in a forked child."""
        return int(self._kernel.fileno())
