"""Who waits for which file descriptor, and what is armed in the selector: one record per fd.

Registration is persistent and level-triggered. A wait arms what is missing; a wake leaves read interest armed, because
the next wait is usually for the same, and takes write interest back, because a socket is nearly always writable. Read
interest is taken back when readiness is reported that nobody waits for. So a steady exchange of requests and responses
costs no call that changes the selector, and nothing spins: whatever is reported either wakes a task or is disarmed.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import weakref
from collections import deque
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from .commands import FdCommand
from .errors import BusyResourceError, ClosedResourceError
from .running import current_world
from .tasks import Budget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from selectors import SelectorKey

    from .backend import FileObject, Selector
    from .commands import SocketCheckCommand, SocketCommand
    from .inbox import Inbox
    from .sockets import SocketHandle
    from .tasks import TaskHandle

__all__ = ["CLOSED", "UNBOUND", "FdRecord", "FdTable", "Identity", "identity_of", "is_same"]

Identity: TypeAlias = "tuple[Any, ...] | None"
"""What an fd stands for; None where it stands for nothing. A None inside is what could not be told."""

#: What never blocks, poll(2), open(2). epoll refuses these; kqueue would not report a file that was read to its end.
_ALWAYS_READY = frozenset({stat.S_IFREG, stat.S_IFDIR, stat.S_IFBLK})

#: How many fds that nobody waits for yet, or just now, keep a place in a selector that fills up: the last ones, which
#: are about to wait, as a rule. With more of them, each new connection would cost as many calls.
_MOST_PROMISED = 64

logger = logging.getLogger("flowno.selector")


class FdRecord:
    """One open file descriptor in one event loop; every handle on the same socket shares it.

    It is dead, and in no table, before a handle is first used and after the fd was closed or the loop ended. A dead one
    looks owned in both directions, so that an operation finds "closed", "in no loop yet" and "busy" with one test.
    """

    __slots__ = ("always_ready", "armed", "budget", "fd", "handles", "identity", "reader", "reading", "socket",
                 "table", "writer", "writing")  # fmt: skip

    def __init__(self, fd: int, socket: Callable[[], Any], table: FdTable | None) -> None:
        self.fd = fd
        self.socket = socket  # weak reference to the socket object that owns the fd
        self.table = table  # None where it is dead
        self.armed = 0  # the mask that the selector holds; 0 where the fd is not registered
        self.reader: TaskHandle[Any] | None = None  # the task that waits for readability
        self.writer: TaskHandle[Any] | None = None
        self.handles = 0  # how many handles use this record, and waits without one
        self.identity: Identity = None  # what tells an fd that came as a number from a later one of the same number
        self.always_ready = False  # regular files, and what else epoll cannot hold
        self.reading = self.writing = table is None  # the direction is owned
        self.budget = Budget() if table is None else table.budget

    @property
    def is_open(self) -> bool:
        """Whether the fd is still what this record was made for."""
        socket = self.socket()
        if socket is not None and socket.fileno() == self.fd:
            return True
        return self.identity is not None and is_same(identity_of(self.fd), self.identity)

    def __repr__(self) -> str:
        return f"<FdRecord fd={self.fd} armed={self.armed} reader={self.reader!r} writer={self.writer!r}>"


def _no_socket() -> None:
    """The socket of an fd that is known by its number only, or of none."""


#: Two records that are always dead, and so owned in both directions: the one test at the head of each operation of a
#: handle leads to its ``_claim``. The one is that of a handle that no loop knows yet, the other of one that is closed.
UNBOUND = FdRecord(-1, _no_socket, None)
CLOSED = FdRecord(-1, _no_socket, None)


class FdTable:
    """The fds of one event loop.

    Args:
        selector: Where they are registered, by number; it is asked for nothing but the five methods of the protocol.
        ready: The loop's list of ready tasks; who is woken is appended to it.
        budget: The loop's budget, for the operations that find it by their record.
        inbox: The way in for a handle that is dropped, or closed in another thread.
    """

    def __init__(
        self,
        selector: Selector,
        ready: list[TaskHandle[Any]],
        budget: Budget,
        inbox: Inbox,
    ) -> None:
        self.selector = selector
        self.budget = budget
        self.inbox = inbox
        self.registered = 0  # how many fds the selector holds, the waker not counted
        self._highest = -1  # the fd of the highest number that was held, as far as hold() has seen
        self._most = 0  # and how many there were at once
        self._promised: deque[FdRecord] = deque(maxlen=_MOST_PROMISED)  # are not in it, and count on a place
        self._ready = ready
        self._records: dict[int, FdRecord] = {}
        self._disowned: set[int] = set()  # the numbers of foreign keys that were logged
        self._waker: FdRecord | None = None
        self._drain_waker: Callable[[], object] = bool

    # --- records -----------------------------------------------------------------------------------------------------

    def attach(self, socket: Any) -> FdRecord:
        """The record of an open socket, made where there is none; one more handle uses it.

        A record of another socket whose fd had the same number is a thing of the past: that one was closed behind our
        back, and whoever waits for it is told.
        """
        fd = socket.fileno()
        if fd < 0:
            raise ClosedResourceError(f"the socket is closed: {socket!r}")
        record = self._records.get(fd)
        if record is not None and record.socket() is not socket and not record.is_open:
            self.retire(record, f"the socket was closed while it was in use, and its fd {fd} is now another one's")
            record = None
        if record is None:
            self._records[fd] = record = FdRecord(fd, _reference_to(socket), self)
        record.handles += 1
        return record

    def attach_fd(self, fileobj: FileObject) -> FdRecord:
        """The record of an fd that is waited for without a handle; one more wait uses it.

        Sockets that are open are known by their object, as :meth:`attach` has it. Of anything else there is only the
        number, which may be another file's by the next wait: so each looks at what is behind it, and the registration
        ends with the last wait, as nobody will tell when the fd is closed.
        """
        if hasattr(fileobj, "getsockname"):
            return self.attach(fileobj)
        fd = _number_of(fileobj)
        record = self._records.get(fd)
        if record is not None and not record.is_open:
            self.retire(record, f"fd {fd} was closed while it was waited for, and is now another file's")
            record = None
        if record is None:
            try:
                identity = identity_of(fd)
            except OverflowError:
                raise ValueError(f"no fd has so large a number: {fd}") from None
            if identity is None:
                raise _not_open(fd)
            self._records[fd] = record = FdRecord(fd, _no_socket, self)
            record.identity = identity
            record.always_ready = identity[0] in _ALWAYS_READY
        record.handles += 1
        return record

    def hold(self, handle: SocketHandle) -> None:
        """Take in a new handle, and see that the selector can hold its fd, before anybody waits for it.

        Selectors have limits by number, select(2), and by count; on Windows by count alone. What is within both of what
        was held before costs no call; anything else is registered, and left so, as most waits are for data. So are then
        the others that count on a place, or it would prove nothing.

        Raises:
            OSError, ValueError, KeyError: The selector cannot hold the fd. The handle is as it was.
        """
        record = self.attach(handle.socket)
        if (record.fd > self._highest and _NUMBERS_ARE_LIMITED) or len(self._records) > self._most:
            try:
                self._keep_promises()
                self._arm(record, EVENT_READ)
            except BaseException:
                self.detach(record)
                raise
            self._highest = max(self._highest, record.fd)
            self._most = max(self._most, self.registered)
        else:
            self._promised.append(record)
        handle._take_record(record)

    def _keep_promises(self) -> None:
        """Take in those that count on a place before one is given to a new fd.

        Raises:
            OSError, ValueError, KeyError: There is no room for them, let alone for a new one.
        """
        while self._promised:
            record = self._promised[-1]
            if record.table is self and not record.armed and record.is_open:
                self._arm(record, EVENT_READ)
            self._promised.pop()

    def find(self, socket: Any) -> FdRecord | None:
        """The record of an open socket, where there is one, whoever uses it."""
        record = self._records.get(socket.fileno())
        return record if record is not None and (record.socket() is socket or record.is_open) else None

    def detach(self, record: FdRecord) -> None:
        """A handle that was dropped unclosed, or a wait that has ended, does not use the record any more."""
        record.handles -= 1
        if not record.handles and record.table is self:
            self.retire(record, "the last handle on the socket was dropped")

    def retire(self, record: FdRecord, reason: str) -> None:
        """Forget an fd: take it out of the selector, and raise ClosedResourceError in whoever waits for it.

        To be called before the fd is closed, so that nothing of it is left when its number is used again.
        """
        record.table = None
        record.reading = record.writing = True
        if self._records.get(record.fd) is record:
            del self._records[record.fd]
        self._set_armed(record, 0)
        for task in (record.reader, record.writer):
            if task is not None:
                task._wake(self._ready, error=ClosedResourceError(reason))
        record.reader = record.writer = None

    def retire_idle(self) -> None:
        """Forget every fd that no task waits for; at the end of a run."""
        for record in list(self._records.values()):
            if record.reader is None and record.writer is None:
                self.retire(record, "the event loop has ended")

    @property
    def has_waiters(self) -> bool:
        """Whether any task waits for an fd."""
        return any(record.reader is not None or record.writer is not None for record in self._records.values())

    # --- waits: the loop calls these for the commands of the same names ----------------------------------------------

    def wait_readable(self, task: TaskHandle[Any], command: SocketCommand | FdCommand) -> None:
        """Suspend the task until the fd of the command is readable."""
        record = command.record
        if record is None or record.table is not self:
            record = self._adopt(command, EVENT_READ)
        if record.reader is not None:
            raise BusyResourceError(f"another task is waiting to read from fd {record.fd}; one task at a time may")
        if not record.armed & EVENT_READ and not self._arm(record, EVENT_READ):
            self._ready.append(task)
            return
        record.reader = task
        task._waiting = command

    def wait_writable(self, task: TaskHandle[Any], command: SocketCommand | FdCommand) -> None:
        """Suspend the task until the fd of the command is writable."""
        record = command.record
        if record is None or record.table is not self:
            record = self._adopt(command, EVENT_WRITE)
        if record.writer is not None:
            raise BusyResourceError(f"another task is waiting to write to fd {record.fd}; one task at a time may")
        if not record.armed & EVENT_WRITE and not self._arm(record, EVENT_WRITE):
            self._ready.append(task)
            return
        record.writer = task
        task._waiting = command

    def check(self, task: TaskHandle[Any], command: SocketCheckCommand) -> None:
        """Let the other tasks run, and see that the fd of the command is this loop's."""
        record = command.record
        if record is None or record.table is not self:
            self._adopt(command, command.directions)
        self._ready.append(task)

    def forget_reader(self, task: TaskHandle[Any], command: SocketCommand | FdCommand) -> bool:
        """A task that waited for readability is cancelled; False where it does not wait any more."""
        record = _record_of(command)
        waits = record.reader is task
        if waits:
            record.reader = None
        return waits

    def forget_writer(self, task: TaskHandle[Any], command: SocketCommand | FdCommand) -> bool:
        """A task that waited for writability is cancelled; False where it does not wait any more."""
        record = _record_of(command)
        waits = record.writer is task
        if waits:
            record.writer = None
            self._set_armed(record, record.armed & ~EVENT_WRITE)
        return waits

    def verify(self, command: FdCommand) -> None:
        """See that what was waited for is still what it was: poll and select report a closed fd as a ready one."""
        record = command.record
        if record is not None and not record.is_open:
            raise ClosedResourceError(f"it was closed while it was waited for: {command.fileobj!r}")

    def end_wait(self, command: FdCommand, direction: int) -> None:
        """A wait without a handle has ended, however it did: its direction is free, and nothing of it stays behind."""
        record, command.record = command.record, None
        if record is not None:
            if direction == EVENT_READ:
                record.reading = record.table is None
            else:
                record.writing = record.table is None
            self.detach(record)

    def _adopt(self, command: SocketCommand | FdCommand, directions: int) -> FdRecord:
        """The record of this loop for a command that brings none, or one that died, or another loop's."""
        if isinstance(command, FdCommand):
            return self._adopt_fd(command, directions)
        handle = command.handle
        old = command.record
        if old is not None and old.table is not None:
            if old.armed or old.reader is not None or old.writer is not None:
                raise BusyResourceError(
                    f"fd {old.fd} is armed in another event loop that is still alive; a socket belongs to one loop at "
                    "a time: close that loop, or give this one a handle on socket.dup()"
                )
            reading, writing = old.reading, old.writing
            old.table.retire(old, "the socket was taken over by another event loop")
        else:
            reading, writing = bool(directions & EVENT_READ), bool(directions & EVENT_WRITE)
        command.record = record = self.attach(handle.socket)
        handle._take_record(record)
        if old is not None:  # an operation of the handle, which goes on to own its directions
            record.reading, record.writing = reading, writing
        return record

    def _adopt_fd(self, command: FdCommand, direction: int) -> FdRecord:
        """The record for a wait without a handle, which owns its direction from now on."""
        record = self.attach_fd(command.fileobj)
        if record.reading if direction == EVENT_READ else record.writing:
            self.detach(record)
            doing = "reading from" if direction == EVENT_READ else "writing to"
            raise BusyResourceError(
                f"another task is {doing} fd {record.fd}, or waits to; one task at a time may: {command.fileobj!r}"
            )
        if direction == EVENT_READ:
            record.reading = True
        else:
            record.writing = True
        command.record = record
        return record

    # --- what the selector reports -----------------------------------------------------------------------------------

    def dispatch(self, events: Iterable[tuple[SelectorKey, int]]) -> None:
        """Make ready the tasks that waited for what the selector reports.

        Tasks are queued here, never run: one that closed an fd could otherwise meet an event of the same report.
        """
        ready = self._ready
        for key, mask in events:
            record = key[3]
            if record.__class__ is not FdRecord:
                self._disown(key)
                continue
            reader = record.reader
            if mask == EVENT_READ and reader is not None:  # the usual one
                record.reader = reader._waiting = None
                ready.append(reader)
                continue
            if mask & EVENT_READ:
                if reader is not None:
                    record.reader = reader._waiting = None
                    ready.append(reader)
                else:
                    self._stray(key, record, EVENT_READ)
            if mask & EVENT_WRITE:
                writer = record.writer
                if writer is not None:
                    record.writer = writer._waiting = None
                    ready.append(writer)
                    self._set_armed(record, record.armed & ~EVENT_WRITE)
                else:
                    self._stray(key, record, EVENT_WRITE)

    def _stray(self, key: SelectorKey, record: FdRecord, event: int) -> None:
        """Readiness that nobody waits for: disarm it, or it would be reported for ever."""
        if record is self._waker:
            self._drain_waker()
        elif record.table is not self or self._records.get(record.fd) is not record:
            self._disown(key)
        else:
            self._set_armed(record, record.armed & ~event)
            if not record.armed:
                self._promised.append(record)

    def _disown(self, key: SelectorKey) -> None:
        """A key that this loop did not register, or not any more."""
        fd = key.fd
        record = self._waker if self._waker is not None and self._waker.fd == fd else self._records.get(fd)
        if record is not None and record.armed:
            return  # an event that was in flight when the number was given to another: there is nothing to take out
        if fd not in self._disowned:
            self._disowned.add(fd)
            logger.error("%r reported a key that this event loop did not register: %r", self.selector, key)
        try:
            self.selector.unregister(fd)
        except (KeyError, ValueError, OSError):
            pass  # it does not know the key itself; there is nothing to take out

    # --- the selector ------------------------------------------------------------------------------------------------

    def _arm(self, record: FdRecord, event: int) -> bool:
        """Add an event to what the selector holds of an fd.

        Returns:
            False where the fd counts as always ready because the selector cannot hold it (regular files under epoll).

        Raises:
            OSError, ValueError, KeyError: The selector refused; nothing is registered, nobody waits in vain.
        """
        if record.always_ready:
            return False
        armed = record.armed
        try:
            if armed:
                self.selector.modify(record.fd, armed | event, record)
            else:
                self.selector.register(record.fd, event, record)
        except PermissionError as error:
            if error.errno != errno.EPERM or armed:
                self._unregistered(record)
                raise
            record.always_ready = True
            return False
        except BaseException:
            self._unregistered(record)
            raise
        if not armed:
            self.registered += 1
        record.armed = armed | event
        return True

    def _set_armed(self, record: FdRecord, mask: int) -> None:
        """Have the selector hold just this mask of an fd, which has no more in it than what it holds now."""
        armed = record.armed
        if mask == armed:
            return
        if mask:
            try:
                self.selector.modify(record.fd, mask, record)
            except (KeyError, ValueError, OSError):
                self._unregistered(record)  # closed behind our back
            else:
                record.armed = mask
        else:
            record.armed = 0
            self.registered -= 1
            try:
                self.selector.unregister(record.fd)
            except (KeyError, ValueError, OSError):
                pass  # closed behind our back, and a foreign selector noticed; it is out, which is what was asked for

    def _unregistered(self, record: FdRecord) -> None:
        """The selector has dropped an fd. Who waits for it runs, and learns why from the system."""
        if record.armed:
            record.armed = 0
            self.registered -= 1
        for task in (record.reader, record.writer):
            if task is not None:
                task._wake(self._ready)
        record.reader = record.writer = None

    # --- fds that are no more ----------------------------------------------------------------------------------------

    def audit(self) -> None:
        """Tell the waiters of every socket that was closed behind our back.

        epoll and kqueue drop a closed fd without a word, so that nothing would ever wake them.
        """
        for record in list(self._records.values()):
            if (record.reader is not None or record.writer is not None) and not record.is_open:
                what = f"fd {record.fd}" if record.identity is not None else f"the socket of fd {record.fd}"
                self.retire(record, f"{what} was closed while it was waited for, by other means than its handle")

    def drop_dead(self) -> bool:
        """Take out the fds that are not open any more; for a selector that refuses to wait because of one.

        Returns:
            Whether there was any.
        """
        dead = [record for record in self._records.values() if record.armed and not _is_open(record)]
        for record in dead:
            self._set_armed(record, 0)
            self._unregistered(record)
        return bool(dead)

    # --- the loop's own fd -------------------------------------------------------------------------------------------

    def add_waker(self, fd: int, drain: Callable[[], object]) -> None:
        """Register the fd that ends a wait; ``drain`` is called when it is readable."""
        self._waker = FdRecord(fd, _no_socket, self)
        self._drain_waker = drain
        self.selector.register(fd, EVENT_READ, self._waker)
        self._waker.armed = EVENT_READ

    def remove_waker(self) -> None:
        """Take the waker's fd out again; harmless where there is none."""
        waker, self._waker = self._waker, None
        if waker is not None:
            try:
                self.selector.unregister(waker.fd)
            except (KeyError, ValueError, OSError):
                pass  # the selector was closed or emptied by somebody else


def _record_of(command: SocketCommand | FdCommand) -> FdRecord:
    """The record of a command that a task waits in."""
    return cast(FdRecord, command.record)


def _reference_to(socket: Any) -> Callable[[], Any]:
    """A weak reference, or a strong one for a socket-like object that allows no other."""
    try:
        return weakref.ref(socket)
    except TypeError:
        return lambda: socket


def _number_of(fileobj: FileObject) -> int:
    """The fd that an argument is, or has."""
    if isinstance(fileobj, int):
        if fileobj < 0:
            raise ValueError(f"an fd is not negative: {fileobj}")
        return fileobj
    try:
        fd = fileobj.fileno()
    except AttributeError:
        raise TypeError(f"an fd is needed, or an object with a fileno() method, not {fileobj!r}") from None
    except ValueError as error:
        if isinstance(error, OSError):
            raise  # io.UnsupportedOperation: a file in memory has no fd
        raise ClosedResourceError(f"the file is closed: {fileobj!r}") from None
    if not isinstance(fd, int):
        raise TypeError(f"fileno() of {fileobj!r} gave {fd!r}, which is no fd")
    if fd < 0:
        raise ClosedResourceError(f"the file is closed: {fileobj!r}")
    return fd


#: Whether the number of an fd tells how many there are. On Windows it is a handle, of any value.
_NUMBERS_ARE_LIMITED = os.name != "nt"

if os.name == "nt":
    from socket import AF_INET

    # Only sockets can be waited for, and only Winsock knows what a number stands for.
    def identity_of(fd: int) -> Identity:
        """What an fd stands for: family, type, port. Of one that is neither bound nor connected, the port, and for
        Winsock the family, is not known; of what is no open socket, nothing is."""
        make = current_world().socket
        identity: Identity
        try:
            sock = make(fileno=fd)
        except OSError as error:
            if error.errno != errno.EINVAL:
                return None
            sock = make(AF_INET, fileno=fd)  # of one that is not bound yet, Winsock tells no family
            identity = None, sock.type, None
        else:
            # Not the host, which changes when a socket that is bound to all of them connects.
            identity = sock.family, sock.type, sock.getsockname()[1] or None
        sock.detach()
        return identity

    def _not_open(fd: int) -> Exception:
        return ValueError(f"{fd} is no open socket, and on Windows nothing else can be waited for")
else:

    def identity_of(fd: int) -> Identity:
        """What an fd stands for: kind of file, device, inode; None where it is not open."""
        try:
            status = os.fstat(fd)
        except OSError:
            return None
        return stat.S_IFMT(status.st_mode), status.st_dev, status.st_ino

    def _not_open(fd: int) -> Exception:
        return ClosedResourceError(f"fd {fd} is not open")


def is_same(one: Identity, other: Identity) -> bool:
    """Whether two identities are of one file, as far as can be told: what either of them lacks decides nothing."""
    if one is None or other is None:
        return one is other
    return all(mine == theirs or None in (mine, theirs) for mine, theirs in zip(one, other, strict=True))


def _is_open(record: FdRecord) -> bool:
    """Whether the fd of a record is open, as far as can be told: Windows has no call that looks a socket up."""
    if not record.is_open:
        return False
    if os.name != "nt":
        try:
            os.fstat(record.fd)
        except OSError:
            return False
    return True
