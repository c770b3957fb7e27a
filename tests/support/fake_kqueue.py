"""A stand-in for the kqueue half of the ``select`` module, for platforms that have poll and no kqueue.

It keeps the rules of kqueue(2) as far as sockets, pipes, terminals and regular files are concerned. These are in the
manual pages of FreeBSD, NetBSD, OpenBSD and macOS alike, and each has its test in tests/backends/test_fake_kqueue.py:

* an event is identified by ``(ident, filter)``; adding it again exchanges its ``udata`` and makes no second one;
* changes are made in order, before anything is reported, in the same call, and also where a signal ends that call; one
  that fails is an event with EV_ERROR and the errno in ``data`` if there is room, reported once and without whatever is
  ready; it ends the call with that errno if there is none; what was changed stays;
* EV_DELETE of what is absent is ENOENT, any change of a closed descriptor EBADF, an unknown filter EINVAL;
* a filter is asked when its event is fetched: what is no longer ready is not reported;
* EV_EOF is reported as long as the filter is there, also while data is left, whose amount is in ``data``;
* closing the descriptor removes its filters, whatever duplicates of it are open;
* with room for 0 events the call returns at once, whatever the timeout;
* what finds no room is reported by the next call, before what had its turn;
* a regular file is readable where its offset is not at its end;
* a forked child does not inherit the queue: the number is closed there.

Where the platforms differ, :data:`DIALECTS` says how. Flags that the backend does not use, such as EV_CLEAR,
EV_ONESHOT, EV_DISPATCH and EV_RECEIPT, are EINVAL here, so that a backend which begins to use one is noticed. The
arguments are checked as CPython's ``selectmodule.c`` checks them.

It differs from a kernel's in six ways. A filter that another thread adds during a wait is seen by the next wait. A
number that was closed and is the same open file again by dup2 keeps its filters. An unconnected TCP socket is reported
with EV_EOF, as Linux reports POLLHUP; a socket whose own side was shut down for writing is not, as Linux has it.
``fflags`` stays 0, because reading the error of a socket would clear it. The room to write, ``data`` of EVFILT_WRITE,
is 1.
"""

import errno
import fcntl
import math
import os
import select
import stat
import sys
import termios
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from flowno_backends.kqueue import KqueueSelector

__all__ = ["DIALECTS", "Dialect", "FakeKqueue", "FakeKqueueSelector", "kevent", "kqueue"]


@dataclass(frozen=True)
class Dialect:
    """What one platform does in its own way; the sources are in backends/flowno_backends/kqueue.py."""

    #: The errno of EVFILT_WRITE on a pipe whose reader is gone; 0 where it is added, and reports EV_EOF.
    dead_pipe: int
    #: Whether EVFILT_READ on the writing end of a pipe reports EV_EOF when the reader is gone; else it never reports.
    writing_end_sees_eof: bool
    #: Whether EVFILT_WRITE on a pipe is removed when the reader goes, after it was reported once with EV_ONESHOT.
    writing_end_is_told_once: bool = False
    #: The errno of devices that are no terminals, and of /dev/tty; 0 where they are added.
    mere_device: int = 0
    #: Seconds, above which a timeout is EINVAL; None where there is no limit.
    longest_timeout: int | None = None


DIALECTS: Final = {
    "freebsd": Dialect(
        dead_pipe=errno.EPIPE, writing_end_sees_eof=False, writing_end_is_told_once=True, mere_device=errno.ENODEV
    ),
    "netbsd": Dialect(dead_pipe=errno.EBADF, writing_end_sees_eof=True),
    "openbsd": Dialect(dead_pipe=errno.EPIPE, writing_end_sees_eof=True),
    "macos": Dialect(dead_pipe=0, writing_end_sees_eof=True, mere_device=errno.EINVAL, longest_timeout=100_000_000),
}

#: FreeBSD's errno for a descriptor whose rights were limited, cap_rights_limit(2). Python has a name for it there.
ENOTCAPABLE: Final = 93

# The values of FreeBSD's sys/event.h.
KQ_FILTER_READ: Final = -1
KQ_FILTER_WRITE: Final = -2
KQ_EV_ADD: Final = 0x0001
KQ_EV_DELETE: Final = 0x0002
KQ_EV_ENABLE: Final = 0x0004
KQ_EV_ONESHOT: Final = 0x0010
KQ_EV_ERROR: Final = 0x4000
KQ_EV_EOF: Final = 0x8000

_HANG_UP: Final = {
    KQ_FILTER_READ: select.POLLRDHUP | select.POLLHUP | select.POLLERR,
    KQ_FILTER_WRITE: select.POLLHUP | select.POLLERR,
}
_READY: Final = {KQ_FILTER_READ: select.POLLIN, KQ_FILTER_WRITE: select.POLLOUT}
_ASKED: Final = {KQ_FILTER_READ: select.POLLIN | select.POLLRDHUP, KQ_FILTER_WRITE: select.POLLOUT}


class kevent:
    """One change or one event, with the fields and the defaults of ``select.kevent``."""

    __slots__ = ("data", "fflags", "filter", "flags", "ident", "udata")

    def __init__(
        self,
        ident: int,
        filter: int = KQ_FILTER_READ,
        flags: int = KQ_EV_ADD,
        fflags: int = 0,
        data: int = 0,
        udata: int = 0,
    ) -> None:
        self.ident = ident
        self.filter = filter
        self.flags = flags
        self.fflags = fflags
        self.data = data
        self.udata = udata

    def __repr__(self) -> str:
        return (
            f"kevent(ident={self.ident}, filter={self.filter}, flags={self.flags:#x}, fflags={self.fflags}, "
            f"data={self.data}, udata={self.udata:#x})"
        )


class _Filter:
    """A filter that is in the queue, and the open file that it was added for."""

    __slots__ = ("file", "udata")

    def __init__(self, file: tuple[int, int], udata: int) -> None:
        self.file = file
        self.udata = udata


class kqueue:
    """A queue of kernel events that is none: it asks poll(2), which goes by the number as kqueue does."""

    def __init__(self, dialect: Dialect, not_capable: set[int]) -> None:
        self._dialect = dialect
        self._not_capable = not_capable
        self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._pid = os.getpid()
        self._poll = select.poll()
        self._filters: dict[int, dict[int, _Filter]] = {}
        self._skipped = 0
        self.closed = False
        _descriptors.add(self._fd)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            if self._pid != os.getpid():
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            _descriptors.remove(self._fd)
            os.close(self._fd)

    def __del__(self) -> None:
        if not self.closed and self._pid == os.getpid():
            self.close()

    def fileno(self) -> int:
        self._check()
        return self._fd

    def control(
        self, changelist: Iterable[kevent] | None, max_events: int, timeout: float | None = None, /
    ) -> list[kevent]:
        self._check()
        if max_events < 0:
            raise ValueError(f"Length of eventlist must be 0 or positive, got {max_events}")
        if timeout is not None:
            if not isinstance(timeout, int | float):
                raise TypeError(f"timeout must be a real number or None, got {type(timeout).__name__}")
            if math.isnan(timeout):
                raise ValueError("Invalid value NaN (not a number)")
            if timeout < 0:
                raise ValueError("timeout must be positive or None")
            if timeout * 1e9 >= 2**63:
                raise OverflowError("timeout is too large")
        changes = list(changelist or ())
        if not all(isinstance(change, kevent) for change in changes):
            raise TypeError("changelist must be an iterable of select.kevent objects")
        if self._pid != os.getpid():
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        longest = self._dialect.longest_timeout
        if timeout is not None and longest is not None and timeout > longest:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        failures: list[kevent] = []
        for change in changes:
            try:
                self._make(change)
            except OSError as error:
                if len(failures) == max_events:
                    raise
                failures.append(
                    kevent(change.ident, change.filter, KQ_EV_ERROR, 0, error.errno or 0, change.udata),
                )
        if failures or not max_events:
            return failures
        return self._wait(max_events, timeout)

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed kqueue object")

    def _make(self, change: kevent) -> None:
        fd = change.ident
        if change.filter not in _READY or change.flags & ~(KQ_EV_ADD | KQ_EV_DELETE | KQ_EV_ENABLE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        status = os.fstat(fd)  # EBADF where it is closed
        if fd in self._not_capable:
            raise OSError(ENOTCAPABLE, "Capabilities insufficient")
        number = errno.EINVAL if fd == self._fd else self._dialect.mere_device if _is_mere_device(fd, status) else 0
        if number:
            raise OSError(number, os.strerror(number))
        file = (status.st_dev, status.st_ino)
        self._drop_unless(fd, file)
        filters = dict(self._filters.get(fd, {}))  # a copy: a change that fails leaves no trace
        if change.flags & KQ_EV_DELETE:
            if filters.pop(change.filter, None) is None:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        elif change.filter in filters:
            filters[change.filter].udata = change.udata
        else:
            number = self._dialect.dead_pipe
            if number and change.filter == KQ_FILTER_WRITE and stat.S_ISFIFO(status.st_mode) and _has_no_reader(fd):
                raise OSError(number, os.strerror(number))
            filters[change.filter] = _Filter(file, change.udata)
        if filters:
            self._filters[fd] = filters
            mask = 0
            for filter_ in filters:
                mask |= _ASKED[filter_]
            self._poll.register(fd, mask)
        else:
            self._drop(fd)

    def _drop(self, fd: int) -> None:
        if self._filters.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _drop_unless(self, fd: int, file: tuple[int, int] | None) -> None:
        """Remove the filters of ``fd`` if it is not the file that they were added for: it was closed since."""
        if any(known.file != file for known in self._filters.get(fd, {}).values()):
            self._drop(fd)

    def _wait(self, room: int, timeout: float | None) -> list[kevent]:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            # poll waits for whole milliseconds, kevent does not: the last one is waited for in slices.
            reports = self._poll.poll(None if left is None else int(max(left, 0) * 1e3))
            events = self._in_turn(reports, room)
            if events:
                if self._dialect.writing_end_is_told_once:
                    self._remove_the_last(events)
                return events
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return []
                if left < 1e-3:
                    time.sleep(min(left, 5e-5))

    def _events(self, fd: int, mask: int) -> list[kevent]:
        try:
            status = os.fstat(fd)
        except OSError:
            self._drop(fd)
            return []
        self._drop_unless(fd, (status.st_dev, status.st_ino))
        events = []
        for filter_, known in self._filters.get(fd, {}).items():
            if not stat.S_ISSOCK(status.st_mode) and self._is_silent(fd, filter_, status):
                continue
            gone = mask & _HANG_UP[filter_]
            if gone or mask & _READY[filter_]:
                data = _waiting(fd) if filter_ == KQ_FILTER_READ else 1
                events.append(kevent(fd, filter_, KQ_EV_ADD | (KQ_EV_EOF if gone else 0), 0, data, known.udata))
        return events

    def _is_silent(self, fd: int, filter_: int, status: os.stat_result) -> bool:
        """Whether kqueue has nothing to say of a file of which poll(2) may."""
        if filter_ != KQ_FILTER_READ:
            return False
        if stat.S_ISREG(status.st_mode):
            return os.lseek(fd, 0, os.SEEK_CUR) == status.st_size
        is_writing_end = stat.S_ISFIFO(status.st_mode) and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
        return is_writing_end and not self._dialect.writing_end_sees_eof

    def _remove_the_last(self, events: list[kevent]) -> None:
        for event in events:
            is_last = event.flags & KQ_EV_EOF and event.filter == KQ_FILTER_WRITE
            if is_last and stat.S_ISFIFO(os.fstat(event.ident).st_mode):
                event.flags |= KQ_EV_ONESHOT
                self._make(kevent(event.ident, event.filter, KQ_EV_DELETE))

    def _in_turn(self, reports: list[tuple[int, int]], room: int) -> list[kevent]:
        """As many events as there is room for, beginning with those that found none the last time."""
        start = self._skipped % len(reports) if reports else 0
        events: list[kevent] = []
        for count, report in enumerate(reports[start:] + reports[:start]):
            if len(events) >= room:
                self._skipped = start + count
                break
            events += self._events(*report)
        return events[:room]


def _has_no_reader(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return any(mask & select.POLLERR for _, mask in poll.poll(0))


def _is_mere_device(fd: int, status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and (not os.isatty(fd) or os.ttyname(fd) == "/dev/tty")


def _waiting(fd: int) -> int:
    """The bytes that a read would find; 1 for a listening socket, which has connections instead."""
    try:
        return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
    except OSError:
        return 1


_descriptors: Final[set[int]] = set()


def _close_in_child() -> None:
    for fd in _descriptors:
        os.close(fd)
    _descriptors.clear()


os.register_at_fork(after_in_child=_close_in_child)


class FakeKqueue:
    """A ``select`` module that has kqueue, as on a platform of :data:`DIALECTS`."""

    KQ_FILTER_READ = KQ_FILTER_READ
    KQ_FILTER_WRITE = KQ_FILTER_WRITE
    KQ_EV_ADD = KQ_EV_ADD
    KQ_EV_DELETE = KQ_EV_DELETE
    KQ_EV_ENABLE = KQ_EV_ENABLE
    KQ_EV_ONESHOT = KQ_EV_ONESHOT
    KQ_EV_ERROR = KQ_EV_ERROR
    KQ_EV_EOF = KQ_EV_EOF
    kevent = kevent

    def __init__(self, platform: str = "openbsd") -> None:
        self.platform = platform
        self.dialect = DIALECTS[platform]
        #: Descriptors that lack CAP_EVENT, rights(4) of FreeBSD.
        self.not_capable: set[int] = set()

    def kqueue(self) -> kqueue:
        return kqueue(self.dialect, self.not_capable)


class FakeKqueueSelector(KqueueSelector):
    """The kqueue backend on this queue: ``FLOWNO_SELECTOR=tests.support.fake_kqueue:FakeKqueueSelector``."""

    def __init__(self, module: FakeKqueue | None = None) -> None:
        module = module or FakeKqueue()
        self._on_freebsd = module.platform == "freebsd"
        super().__init__(select_module=module)
