"""Selectors that do not keep their promises, each in its own way.

They stand on flowno's ``SelectSelector``, as that works everywhere, and on another only where that one cannot be broken
in this way. What the conformance kit says of each is in :mod:`tests.support.breakers`.
"""

import copy
import math
import mmap
import os
import select
import selectors
import signal
import socket
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any, ClassVar, Final, NoReturn

from flowno_backends import PollSelector, SelectSelector
from flowno_backends.base import CAPABILITIES, BackendSelector

BOTH = EVENT_READ | EVENT_WRITE

#: Longer than a call may take that does not wait.
TOO_LONG = 0.1

Ready = list[tuple[SelectorKey, int]]


def is_closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


def is_regular(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)


def is_large(fd: int) -> bool:
    """Whether it is one that select(2) does not take."""
    return fd >= 1024


def is_zero(fd: int) -> bool:
    return fd == 0


def inode_of(fd: int) -> int:
    return os.fstat(fd).st_ino


def close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def answering(
    method: str, wrong: Callable[[Any], Any], *, since: int = 1, until: float = math.inf, base: Any = SelectSelector
) -> Any:
    """A class of selectors of which one method returns something else.

    Args:
        method: Its name.
        wrong: Makes what it returns of what it should.
        since: The first of its calls that does so.
        until: The last of them. The others return what they should.
        base: The class that is broken by this.
    """

    def answer(self: Any, *args: Any) -> Any:
        self.calls += 1
        right = getattr(base, method)(self, *args)
        return wrong(right) if since <= self.calls <= until else right

    return type(base)(f"{base.__name__}_{method}_{wrong.__name__}", (base,), {"calls": 0, method: answer})


def refusing(error: Exception, refused: Callable[[int], bool], base: Any = SelectSelector) -> Any:
    """A class of selectors that register what they refuse.

    Args:
        error: What they refuse it by.
        refused: Whether a descriptor is refused.
        base: The class that is broken by this.
    """

    def fail(key: SelectorKey) -> SelectorKey:
        if refused(key.fd):
            raise error
        return key

    return answering("register", fail, base=base)


def nothing(_: Ready) -> Ready:
    return []


def descriptors(ready: Ready) -> list[tuple[int, int]]:
    return [(key.fd, events) for key, events in ready]


def for_all_events(ready: Ready) -> Ready:
    return [(key, BOTH) for key, _ in ready]


def twice(ready: Ready) -> Ready:
    return ready * 2


def a_few(ready: Ready) -> Ready:
    return ready[:64]


def without_data(key: SelectorKey) -> SelectorKey:
    return key._replace(data=None)


def keys_without_data(ready: Ready) -> Ready:
    return [(without_data(key), events) for key, events in ready]


def keys_of_numbers(ready: Ready) -> Ready:
    return [(key._replace(fileobj=key.fd), events) for key, events in ready]


def keys_of_all_events(ready: Ready) -> Ready:
    return [(key._replace(events=BOTH), events) for key, events in ready]


def keys_with_copies(ready: Ready) -> Ready:
    return [(key._replace(data=copy.copy(key.data)), events) for key, events in ready]


def out_of_order(_: object) -> NoReturn:
    raise RuntimeError("out of order")


# -------------------------------------------------------------------------------------------------------- bookkeeping


class ReturnsNoKey(SelectSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> Any:
        super().register(fileobj, events, data)


class ReturnsTheOldKey(SelectSelector):
    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        old = self.get_key(fileobj)
        super().modify(fileobj, events, data)
        return old


class ReturnsTheFirstKey(SelectSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        self.first = super().register(fileobj, events, data)
        return self.first

    def unregister(self, fileobj: Any) -> SelectorKey:
        super().unregister(fileobj)
        return self.first


class ReportsTheFirstKey(SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, SelectorKey] = {}

    def select(self, timeout: float | None = None) -> Ready:
        return [(self.seen.setdefault(key.fd, key), events) for key, events in super().select(timeout)]


class ReturnsTheOldResult(SelectSelector):
    """Where nothing is ready, what was reported before is returned once more."""

    def __init__(self) -> None:
        super().__init__()
        self.old: Ready = []

    def select(self, timeout: float | None = None) -> Ready:
        ready = super().select(timeout)
        if ready:
            self.old = ready
            return ready
        ready, self.old = self.old, []
        return ready


class KeepsTheData(SelectSelector):
    """Has the old data where there are no new ones."""

    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        return super().modify(fileobj, events, self.get_key(fileobj).data if data is None else data)


class KeepsWhatIsTrue(SelectSelector):
    """The same, by way of ``or``."""

    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        return super().modify(fileobj, events, data or self.get_key(fileobj).data)


class TakesAnyMask(SelectSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        return super().register(fileobj, events & BOTH or EVENT_READ, data)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        return super().modify(fileobj, events & BOTH or EVENT_READ, data)


class TakesNonsense(SelectSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        try:
            return super().register(fileobj, events, data)
        except ValueError:
            return SelectorKey(fileobj, -1, events, data)


class RegistersTwice(SelectSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        if fileobj in self.get_map():
            return super().modify(fileobj, events, data)
        return super().register(fileobj, events, data)


class ForgivesRegister(SelectSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        if fileobj in self.get_map():
            return self.get_key(fileobj)
        return super().register(fileobj, events, data)


class RegistersWhatItRefuses(SelectSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        try:
            return super().register(fileobj, events, data)
        except KeyError:
            self.modify(fileobj, events, data)
            raise
        except ValueError:
            super().register(fileobj, EVENT_READ, data)
            raise


class UnregistersWhatItRefuses(SelectSelector):
    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        try:
            return super().modify(fileobj, events, data)
        except ValueError:
            self.unregister(fileobj)
            raise


class ModifiesTheUnknown(SelectSelector):
    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        if fileobj not in self.get_map():
            return super().register(fileobj, events, data)
        return super().modify(fileobj, events, data)


class ForgivesUnregister(SelectSelector):
    def unregister(self, fileobj: Any) -> Any:
        return super().unregister(fileobj) if fileobj in self.get_map() else None


class RegistersOnce(SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.known: set[Any] = set()

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        if fileobj in self.known:
            raise KeyError(fileobj)
        self.known.add(fileobj)
        return super().register(fileobj, events, data)


class ModifiesByObject(SelectSelector):
    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        if self.get_key(fileobj).fileobj is not fileobj:
            raise KeyError(fileobj)
        return super().modify(fileobj, events, data)


class UnregistersByObject(SelectSelector):
    def unregister(self, fileobj: Any) -> SelectorKey:
        if self.get_key(fileobj).fileobj is not fileobj:
            raise KeyError(fileobj)
        return super().unregister(fileobj)


class UnregistersNothing(SelectSelector):
    def unregister(self, fileobj: Any) -> SelectorKey:
        return self.get_key(fileobj)


class TakesOneOfAFile(SelectSelector):
    """Takes two descriptors of one file for one."""

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        key = super().register(fileobj, events, data)
        if [inode_of(fd) for fd in self.get_map()].count(inode_of(key.fd)) > 1:
            self.unregister(key.fd)
            raise KeyError(fileobj)
        return key


class ForgetsOneAfterAnError(SelectSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        try:
            return super().register(fileobj, events, data)
        except OSError:
            self.unregister(next(iter(self.get_map())))
            raise


class MovesTheLast(SelectSelector):
    """Keeps its descriptors in a row, moves the last to where one is removed, and looks for it where it was."""

    def __init__(self) -> None:
        super().__init__()
        self.row: list[int] = []
        self.places: dict[int, int] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        key = super().register(fileobj, events, data)
        self.places[key.fd] = len(self.row)
        self.row.append(key.fd)
        return key

    def unregister(self, fileobj: Any) -> SelectorKey:
        key = super().unregister(fileobj)
        place, last = self.places.pop(key.fd), self.row.pop()
        if place < len(self.row):
            self.row[place] = last
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        place = self.places[self.get_key(fileobj).fd]
        return super().modify(self.row[place] if place < len(self.row) else fileobj, events, data)


class TakesPlainNumbers(SelectSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        if isinstance(fileobj, int) and type(fileobj) is not int:
            raise KeyError(fileobj)
        return super().register(fileobj, events, data)


class AsksNobody(SelectSelector):
    def _check(self, fd: int) -> None:
        pass


class KeepsWhatFailed(SelectSelector):
    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        os.fstat(self.get_key(fileobj).fd)
        return super().modify(fileobj, events, data)


class UnregistersForAll(SelectSelector):
    instances: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()

    def __init__(self) -> None:
        super().__init__()
        self.instances.add(self)

    def unregister(self, fileobj: Any) -> SelectorKey:
        key = self.get_key(fileobj)
        for selector in self.instances:
            if fileobj in selector.get_map():
                SelectSelector.unregister(selector, fileobj)
        return key


class RemembersForAll(SelectSelector):
    """Returns what was registered last, with whichever of them."""

    last: ClassVar[Any] = None

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        key = RemembersForAll.last = super().register(fileobj, events, data)
        return key

    def unregister(self, fileobj: Any) -> SelectorKey:
        super().unregister(fileobj)
        return self.last


class BelongsToItsThread(SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        if self.thread != threading.get_ident():
            raise RuntimeError("used in another thread than the one that has made it")
        return super().register(fileobj, events, data)


class ClosesOnce(SelectSelector):
    has_been_closed = False

    def close(self) -> None:
        if self.has_been_closed:
            raise RuntimeError("closed already")
        self.has_been_closed = True
        super().close()


class ClosesOneByOne(SelectSelector):
    def close(self) -> None:
        for fd in self.get_map():
            os.fstat(fd)
        super().close()


class ClosesTheFiles(SelectSelector):
    def close(self) -> None:
        for key in list(self.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        super().close()


class LeaksADescriptor(SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.own = os.open(os.devnull, os.O_RDONLY)
        weakref.finalize(self, os.close, self.own)


class LeaksWithEachSelect(SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.own: list[int] = []
        weakref.finalize(self, close_all, self.own)

    def select(self, timeout: float | None = None) -> Ready:
        self.own.append(os.open(os.devnull, os.O_RDONLY))
        return super().select(timeout)


class GivesItsDescriptorToAll(LeaksADescriptor):
    def fileno(self) -> int:
        os.set_inheritable(self.own, True)
        return self.own


class NeverCloses(SelectSelector):
    def close(self) -> None:
        pass


class EntersNothing(SelectSelector):
    def __enter__(self) -> Any:
        return None


class RemembersTheFirstKey(SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, SelectorKey] = {}

    def get_key(self, fileobj: Any) -> SelectorKey:
        key = super().get_key(fileobj)
        return self.seen.setdefault(key.fd, key)


class HasNoEnd(SelectSelector):
    """Does not say that it is closed."""

    def get_key(self, fileobj: Any) -> SelectorKey:
        return self.get_map()[fileobj]


class KnowsNone(SelectSelector):
    def get_key(self, fileobj: Any) -> Any:
        return self.get_map().get(fileobj)


class HasADict(SelectSelector):
    def get_map(self) -> Any:
        return {key.fd: key for key in super().get_map().values()}


class View(Mapping[Any, SelectorKey]):
    """A live view of a map, to be wrong in one way."""

    def __init__(self, keys: Mapping[Any, SelectorKey]) -> None:
        self.inner = keys

    def __getitem__(self, fileobj: Any) -> SelectorKey:
        return self.inner[fileobj]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.inner)

    def __len__(self) -> int:
        return len(self.inner)


class OfObjects(View):
    def __iter__(self) -> Iterator[Any]:
        return (key.fileobj for key in self.inner.values())


class OfNumbers(View):
    def __contains__(self, fileobj: object) -> bool:
        return isinstance(fileobj, int) and fileobj in self.inner


class OfOtherEvents(View):
    def __getitem__(self, fileobj: Any) -> SelectorKey:
        return super().__getitem__(fileobj)._replace(events=BOTH)


class OfAllThereWas(View):
    """Keeps what it has seen."""

    def __init__(self, keys: Mapping[Any, SelectorKey]) -> None:
        super().__init__(keys)
        self.seen = set(keys)

    def __iter__(self) -> Iterator[Any]:
        self.seen |= set(self.inner)
        return iter(self.seen)

    def __len__(self) -> int:
        return sum(1 for _ in self)


# ---------------------------------------------------------------------------------------------------------- readiness


class IsEdgeTriggered(SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.before: Ready = []

    def select(self, timeout: float | None = None) -> Ready:
        before, self.before = self.before, super().select(timeout)
        return [report for report in self.before if report not in before]


class ReportsAll(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return [(key, key.events) for key in self.get_map().values()]


class CriesWolf(SelectSelector):
    """Reports all until something is ready indeed."""

    has_seen_one = False

    def select(self, timeout: float | None = None) -> Ready:
        ready = super().select(timeout)
        self.has_seen_one |= bool(ready)
        return ready if self.has_seen_one else [(key, key.events) for key in self.get_map().values()]


class NeverForgets(SelectSelector):
    """Reports what has ever been ready, as long as it is registered for it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, int] = {}

    def select(self, timeout: float | None = None) -> Ready:
        for key, events in super().select(timeout):
            self.seen[key.fd] = self.seen.get(key.fd, 0) | events
        return [(key, events) for key in self.get_map().values() if (events := key.events & self.seen.get(key.fd, 0))]


class WaitsForNews(SelectSelector):
    """Reports what has become ready since it was registered."""

    def __init__(self) -> None:
        super().__init__()
        self.old: set[int] = set()

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        key = super().register(fileobj, events, data)
        self.old |= {ready.fd for ready, _ in super().select(0)}
        return key

    def select(self, timeout: float | None = None) -> Ready:
        return [report for report in super().select(timeout) if report[0].fd not in self.old]


class GivesUp(SelectSelector):
    """Looks once, and never again at what was not ready then."""

    def __init__(self) -> None:
        super().__init__()
        self.given_up: set[int] = set()

    def select(self, timeout: float | None = None) -> Ready:
        ready = [report for report in super().select(0) if report[0].fd not in self.given_up]
        self.given_up |= set(self.get_map()) - {key.fd for key, _ in ready}
        return ready


class ReportsOneDirection(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return list({key.fd: (key, events) for key, events in super().select(timeout)}.values())


class KeepsTheFirstInterest(SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.interest: dict[int, int] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        key = super().register(fileobj, events, data)
        self.interest[key.fd] = events
        return key

    def select(self, timeout: float | None = None) -> Ready:
        return [report for report in super().select(timeout) if report[1] & self.interest[report[0].fd]]


class ChangesItsMindOnce(KeepsTheFirstInterest):
    """Takes one modify between two waits."""

    def __init__(self) -> None:
        super().__init__()
        self.changed: set[int] = set()

    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        key = super().modify(fileobj, events, data)
        if key.fd not in self.changed:
            self.interest[key.fd] = events
        self.changed.add(key.fd)
        return key

    def select(self, timeout: float | None = None) -> Ready:
        self.changed.clear()
        return super().select(timeout)


class ForgetsWithNewData(SelectSelector):
    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        old = self.get_key(fileobj)
        if events == old.events:
            self._change(old.fd, events, EVENT_WRITE)
        return super().modify(fileobj, events, data)


class _Ghosts(BackendSelector):
    """Reports what was unregistered."""

    def __init__(self) -> None:
        super().__init__()
        self.ghosts: dict[int, SelectorKey] = {}

    def unregister(self, fileobj: Any) -> SelectorKey:
        key = super().unregister(fileobj)
        self.ghosts[key.fd] = key
        return key

    def select(self, timeout: float | None = None) -> Ready:
        ghosts = [(key, key.events) for key in self.ghosts.values() if key.fd not in self.get_map()]
        return super().select(0 if ghosts else timeout) + ghosts  # type: ignore[safe-super]


class ReportsGhosts(_Ghosts, SelectSelector):
    pass


class ReportsGhostsOfMany(_Ghosts, PollSelector):
    pass


class IgnoresHangUps(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return [report for report in super().select(timeout) if not self.has_hung_up(report[0].fd)]

    def has_hung_up(self, fd: int) -> bool:
        poll = select.poll()
        poll.register(fd, 0)
        return any(mask & (select.POLLHUP | select.POLLERR) for _, mask in poll.poll(0))


class IsNoErrorForWriters(SelectSelector):
    """Reports an error, a hang-up and a closed fd to readers only."""

    def select(self, timeout: float | None = None) -> Ready:
        poll = select.poll()
        for fd in self.get_map():
            poll.register(fd, 0)
        super().select(timeout)
        bad = {fd for fd, _ in poll.poll(0)}
        return [(key, events) for key, events in super().select(0) if key.fd not in bad or events == EVENT_READ]


class EatsTheError(SelectSelector):
    """Asks the sockets that it reports for their error, which is theirs no more then."""

    def select(self, timeout: float | None = None) -> Ready:
        ready = super().select(timeout)
        for key, _ in ready:
            key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # type: ignore[union-attr]
        return ready


class NeverWrites(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return [report for report in super().select(timeout) if report[1] != EVENT_WRITE]


class NeverReads(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return [report for report in super().select(timeout) if report[1] != EVENT_READ]


# --------------------------------------------------------------------------------------------- time, threads, signals


class TakesNoTimeForSome(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        if timeout is not None and timeout < 0:
            time.sleep(TOO_LONG)
        return super().select(timeout)


class WaitsFirst(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        time.sleep(TOO_LONG if timeout is None else min(timeout, TOO_LONG))
        return super().select(timeout)


class IsImpatient(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return super().select(0)


class WaitsNoLongerThanThis(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return super().select(0.1 if timeout is None else min(timeout, 0.1))


class Oversleeps(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        if timeout:
            time.sleep(0.05)
        return super().select(timeout)


class CountsMilliseconds(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return super().select(timeout and math.ceil(timeout * 1000) / 1000)


class CountsInAnInt(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        if timeout and timeout * 1000 >= 2**31:
            raise OverflowError("timeout is too large")
        return super().select(timeout)


class TakesNaN(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return super().select(0 if timeout is not None and math.isnan(timeout) else timeout)


class OverflowsAtNaN(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        if timeout is not None and math.isnan(timeout):
            raise OverflowError("timestamp out of range")
        return super().select(timeout)


class TakesTimeForNothing(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return super().select(0.05 if timeout == 0 else timeout)


class WaitsWholeSeconds(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return super().select(math.ceil(timeout) if timeout and 0.05 < timeout < 1 else timeout)


class WaitsNoFractions(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return super().select(math.floor(timeout) if timeout and 1 < timeout < math.inf else timeout)


class WaitsForNothingAtInfinity(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return super().select(0 if timeout == math.inf else timeout)


class WrapsAround(SelectSelector):
    """Counts milliseconds in 31 bits."""

    def select(self, timeout: float | None = None) -> Ready:
        if timeout and 2**31 <= timeout * 1000 < math.inf:
            timeout = (int(timeout * 1000) & 0x7FFF_FFFF) / 1000
        return super().select(timeout)


class NeedsATimeForNothing(SelectSelector):
    """Sleeps where nothing is registered, which takes a number of seconds."""

    def select(self, timeout: float | None = None) -> Ready:
        if timeout is None and not self.get_map():
            raise TypeError("'NoneType' object cannot be interpreted as an integer")
        return super().select(timeout)


class NeverWaitsForNothing(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return super().select(timeout) if self.get_map() else []


class LooksNowAndThen(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        while not (ready := super().select(0)):
            time.sleep(0.5)
        return ready


class RestartsItsWait(SelectSelector):
    """Waits for all of its time again where a signal has come."""

    def select(self, timeout: float | None = None) -> Ready:
        came, comes = socket.socketpair()
        with came, comes:
            came.setblocking(False)
            comes.setblocking(False)
            before = signal.set_wakeup_fd(comes.fileno())
            try:
                while not (ready := super().select(timeout)):
                    came.recv(1 << 10)
            except BlockingIOError:
                pass
            finally:
                signal.set_wakeup_fd(before)
        return ready


class SwallowsInterrupts(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        try:
            return super().select(timeout)
        except KeyboardInterrupt:
            return []


class SwallowsErrors(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        try:
            return super().select(timeout)
        except Exception:
            return []


# --------------------------------------------------------------------------------------------------------------- fork


class ForgetsInAChild(SelectSelector):
    def after_fork(self) -> None:
        for fd in list(self.get_map()):
            self.unregister(fd)


class SharesWithItsChildren(SelectSelector):
    """As if parent and child had one object in the kernel: a change of one makes nonsense of what the other knows."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = mmap.mmap(-1, 1)
        self.known = 0

    def changed(self) -> None:
        self.known = self.shared[0] = (self.shared[0] + 1) % 256

    def _change(self, fd: int, old: int, new: int) -> None:
        self.changed()
        super()._change(fd, old, new)

    def close(self) -> None:
        self.changed()
        super().close()

    def select(self, timeout: float | None = None) -> Ready:
        ready = super().select(timeout)
        if self.shared[0] == self.known:
            return ready
        return [] if ready else [(key, key.events) for key in self.get_map().values()]


class SharesItsEnd(SharesWithItsChildren):
    """The same, and only a close is a change."""

    def _change(self, fd: int, old: int, new: int) -> None:
        SelectSelector._change(self, fd, old, new)


class WorksInItsChildren(SelectSelector):
    """Reports nothing in the process that has made it."""

    def __init__(self) -> None:
        super().__init__()
        self.process = os.getpid()

    def select(self, timeout: float | None = None) -> Ready:
        return [] if os.getpid() == self.process else super().select(timeout)


class ClosesAtHome(SelectSelector):
    """Can be closed only in the process that has made it."""

    def __init__(self) -> None:
        super().__init__()
        self.process = os.getpid()

    def close(self) -> None:
        if os.getpid() != self.process:
            raise RuntimeError("closed in another process than the one that has made it")
        super().close()


# ------------------------------------------------------------------------------------------------ hostile descriptors


class UnregistersTheOpen(SelectSelector):
    def unregister(self, fileobj: Any) -> SelectorKey:
        os.fstat(self.get_key(fileobj).fd)
        return super().unregister(fileobj)


class LooksForNumbers(SelectSelector):
    def unregister(self, fileobj: Any) -> SelectorKey:
        return super().unregister(fileobj if isinstance(fileobj, int) else fileobj.fileno())


class FindsWhatIsEqual(SelectSelector):
    """Goes by equality where there is no number to go by."""

    def unregister(self, fileobj: Any) -> SelectorKey:
        if fileobj not in self.get_map():
            fileobj = next((key.fd for key in self.get_map().values() if key.fileobj == fileobj), fileobj)
        return super().unregister(fileobj)


class TakesEqualForIdentical(SelectSelector):
    """Finds the first that is equal to what it was given."""

    def unregister(self, fileobj: Any) -> SelectorKey:
        equal = (key.fd for key in self.get_map().values() if key.fileobj == fileobj)
        return super().unregister(next(equal) if fileobj in self.get_map() else fileobj)


class SpinsOnTheClosed(SelectSelector):
    """Returns at once where one is closed, and does not say which."""

    def select(self, timeout: float | None = None) -> Ready:
        return [] if any(map(is_closed, self.get_map())) else super().select(timeout)


class KnowsTheFirstFile(SelectSelector):
    """Goes by what had the number first."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[int, int] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        key = super().register(fileobj, events, data)
        self.files.setdefault(key.fd, inode_of(key.fd))
        return key

    def select(self, timeout: float | None = None) -> Ready:
        return [report for report in super().select(timeout) if inode_of(report[0].fd) == self.files[report[0].fd]]


class UnregistersTheSameFile(KnowsTheFirstFile):
    def unregister(self, fileobj: Any) -> SelectorKey:
        fd = self.get_key(fileobj).fd
        if inode_of(fd) != self.files[fd]:
            raise FileNotFoundError(2, "No such file or directory")  # as epoll_ctl says it
        return super().unregister(fileobj)


class SeesOnlyTheClosed(SelectSelector):
    """Reports the closed alone, where there are any."""

    def select(self, timeout: float | None = None) -> Ready:
        ready = super().select(timeout)
        return [report for report in ready if is_closed(report[0].fd)] or ready


class TakesFilesAndForgetsThem(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return [report for report in super().select(timeout) if not is_regular(report[0].fd)]


class TakesLargeOnesAndForgetsThem(PollSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return [report for report in super().select(timeout) if not is_large(report[0].fd)]


class ClaimsTooMuch(SelectSelector):
    capabilities: ClassVar[frozenset[Any]] = frozenset(CAPABILITIES)


class ClaimsFiles(SelectSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        if is_regular(fileobj.fileno()):
            raise PermissionError(1, "Operation not permitted")  # as epoll_ctl says it
        return super().register(fileobj, events, data)


#: The standard library's, of which epoll spins on an entry that it cannot remove; None where there is no epoll.
StandardEpoll: Final[Callable[[], Any] | None] = getattr(selectors, "EpollSelector", None)
StandardSelect: Final = selectors.SelectSelector
