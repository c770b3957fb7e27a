"""Where a case works: a selector, files to register whose state is known, and the questions that it asks."""

from __future__ import annotations

import math
import os
import select
import socket
import struct
import sys
import threading
import time
import unittest
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cached_property
from queue import Empty, SimpleQueue
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from tempfile import TemporaryFile
from typing import IO, Any, Final, NoReturn, Self, TypeVar

from ...core.event_loop.backend import FileObject, Selector
from ...core.event_loop.registrations import descriptor_of
from ...core.event_loop.selector_rules import ProtocolViolation
from .case import NEEDS

__all__ = [
    "BOTH",
    "PATIENCE",
    "Bench",
    "FakeFile",
    "Pair",
    "Pipe",
    "Recorded",
    "drain",
    "fill",
    "lowest_descriptor",
    "open_descriptors",
    "reset",
    "room_for_descriptors",
]

BOTH: Final = EVENT_READ | EVENT_WRITE

#: Seconds after which what has to happen in another thread or on the network will not happen any more.
PATIENCE: Final = 5.0

#: How often in a row the protocol lets a selector report what is not ready, or end a wait before its time.
_EXCUSED: Final = 2

#: Less than what takes no time may take, in seconds: two ticks of the clock that Windows waits by, 15.6 ms each.
_AT_ONCE: Final = 0.032

#: What the clock can tell apart, in seconds.
_TICK: Final = time.get_clock_info("monotonic").resolution

T = TypeVar("T")

Pair = tuple[socket.socket, socket.socket]


class FakeFile:
    """A file object that is no socket, equal to each of its kind, whose descriptor can be taken away."""

    def __init__(self, fd: object) -> None:
        self.fd = fd

    def fileno(self) -> Any:
        return self.fd

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FakeFile)

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return f"<file object with fileno() = {self.fd!r}>"


class Pipe:
    """Both ends of a pipe, each closed at most once."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self._open = {self.reader, self.writer}

    def fill(self) -> None:
        """Write until it takes no more."""
        os.set_blocking(self.writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(self.writer, bytes(1 << 12))

    def close_reader(self) -> None:
        self._close(self.reader)

    def close_writer(self) -> None:
        self._close(self.writer)

    def close(self) -> None:
        self.close_reader()
        self.close_writer()

    def _close(self, fd: int) -> None:
        if fd in self._open:
            self._open.remove(fd)
            os.close(fd)


class Recorded:
    """A selector, and a record of what was registered with it, which its reports are held against.

    Args:
        inner: The selector, which gets every call.
    """

    def __init__(self, inner: Selector) -> None:
        self.inner: Any = inner
        self._registered: dict[int, tuple[list[object], int, object]] = {}

    def register(self, fileobj: Any, events: Any, *data: Any) -> Any:
        key = self.inner.register(fileobj, events, *data)
        self._registered[self._fd_of(fileobj)] = [fileobj], events, data[0] if data else None
        return key

    def modify(self, fileobj: Any, events: Any, *data: Any) -> Any:
        fd = self._fd_of(fileobj)
        try:
            key = self.inner.modify(fileobj, events, *data)
        except OSError:
            self._registered.pop(fd, None)
            raise
        fileobjs, *_ = self._registered.get(fd, ([], 0, None))
        # Either may be in the key from now on; the standard library's selectors are not of one mind here.
        self._registered[fd] = [*fileobjs, fileobj], events, data[0] if data else None
        return key

    def unregister(self, fileobj: Any) -> Any:
        fd = self._fd_of(fileobj)
        key = self.inner.unregister(fileobj)
        self._registered.pop(fd, None)
        return key

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def registered_instead_of(self, key: SelectorKey) -> str:
        """What is registered under the number of a key where that is another key, in words; else nothing."""
        if key.fd not in self._registered:  # what may be reported, each case knows itself
            return ""
        fileobjs, events, data = self._registered[key.fd]
        is_right = key.events == events and key.data is data and any(key.fileobj is fileobj for fileobj in fileobjs)
        return "" if is_right else f"{fileobjs[0]!r} for {events} with the data {data!r}"

    def _fd_of(self, fileobj: Any) -> int:
        fd = descriptor_of(fileobj)
        if fd is not None:
            return fd
        return next((fd for fd, (objs, *_) in self._registered.items() if any(obj is fileobj for obj in objs)), -1)


class Bench:
    """What a case is given. All that it opens is closed at its end.

    Args:
        rule: The rule that is broken where an answer is not the one that was wanted.
        make: Makes a selector.
        strict: Whether a selector may do nothing that the protocol merely allows: report what is not ready, or end a
            wait before its time, once in a while.
    """

    def __init__(self, rule: str, make: Callable[[], Selector], *, strict: bool = False) -> None:
        self._rule = rule
        self._make = make
        self._excused = 0 if strict else _EXCUSED
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    # ------------------------------------------------------------------------------------------------ what there is

    @cached_property
    def selector(self) -> Any:
        """The selector, of any type as it is to be called with what is no good, too."""
        return self.make_selector()

    def make_selector(self) -> Any:
        selector: Any = Recorded(self._make())
        self._opened.callback(_close_quietly, selector)
        return selector

    def pair(self) -> Pair:
        """Two sockets that are connected, and do not block."""
        pair = socket.socketpair()
        for sock in pair:
            self._opened.enter_context(sock)
            sock.setblocking(False)
        return pair

    def tcp_pair(self) -> Pair:
        """The same, by TCP."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)  # of a fixed size: full soon, and for good
            ours = self._opened.enter_context(socket.create_connection(server.getsockname()))
            peer = self._opened.enter_context(server.accept()[0])
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        ours.setblocking(False)
        peer.setblocking(False)
        return ours, peer

    def pipe(self) -> Pipe:
        pipe = Pipe()
        self._opened.callback(pipe.close)
        return pipe

    def file(self) -> IO[bytes]:
        """A regular file."""
        return self._opened.enter_context(TemporaryFile())

    def dup(self, sock: socket.socket) -> int:
        """Another descriptor of a socket, which is closed at the end if it is still open then."""
        fd = os.dup(sock.fileno())
        self._opened.callback(_close_fd, fd)
        return fd

    def keep(self, context: AbstractContextManager[T]) -> T:
        """Leave a context at the end, and return what it gives."""
        return self._opened.enter_context(context)

    def skip_without(self, needs: tuple[str, ...]) -> None:
        """End the case where something is missing that it takes."""
        for need in needs:
            if not NEEDS[need].is_met(self.selector.inner):
                self.skip(NEEDS[need].reason)

    def skip(self, reason: str) -> NoReturn:
        """End the case, of which nothing can be said here."""
        raise unittest.SkipTest(reason)

    # ------------------------------------------------------------------------------------------------- what is asked

    # What fails a case is a call of `broken`, or of a function whose name begins with `require_` or `_require_`, here
    # and in the files of the cases. The kit's own tests find them by that, and show each of them to fail.

    def broken(self, seen: str, *, rule: str = "", note: str = "") -> NoReturn:
        """End the case: the selector breaks a rule, by what was seen.

        Args:
            seen: What was seen.
            rule: The rule that is broken; where it is empty, that of the case.
            note: What else may help whoever looks for the reason.
        """
        raise _violation(rule or self._rule, seen, note)

    def require_equal(self, seen: object, wanted: object, what: str) -> None:
        """Require that something is what it should be; ``what`` names it."""
        if seen != wanted:
            self.broken(f"{what} is {seen!r}, and not {wanted!r}")

    def require_refused(
        self, errors: type[Exception] | tuple[type[Exception], ...], call: Callable[..., object], *args: object
    ) -> None:
        """Require that a call raises an error of this kind, or of one of these."""
        wanted = " or ".join(error.__name__ for error in (errors if isinstance(errors, tuple) else (errors,)))
        try:
            returned = call(*args)
        except ProtocolViolation:  # of a decorator that checks; it knows better
            raise
        except errors:
            return
        except Exception as other:
            self.broken(f"{_call_in_words(call, args)} raised {other!r}, and not {wanted}")
        self.broken(f"{_call_in_words(call, args)} returned {returned!r}, and did not raise {wanted}")

    def require_accepted(self, call: Callable[..., T], *args: object) -> T:
        """Require that a call raises no error, and return what it returns."""
        try:
            return call(*args)
        except ProtocolViolation:  # as above
            raise
        except Exception as error:
            self.broken(f"{_call_in_words(call, args)} raised {error!r}")

    def require_unknown(self, fd: int) -> None:
        """Require that an fd is not registered."""
        self.require_refused(KeyError, self.selector.unregister, fd)

    def ready(self, timeout: float | None = 0) -> dict[int, int]:
        """What one call of select reports: ``{fd: events}``, the reports of one fd together."""
        result = self.selector.select(timeout)
        if not isinstance(result, list):
            self.broken(f"select({timeout!r}) returned {result!r}", rule="result")
        together: dict[int, int] = {}
        for report in result:
            match report:
                case (SelectorKey() as key, int() as events):
                    pass
                case _:
                    self.broken(f"select({timeout!r}) returned {result!r}", rule="result")
            if not events or events & ~key.events:
                self.broken(f"select({timeout!r}) reported {events} for {key}", rule="reported-events")
            if registered := self.selector.registered_instead_of(key):
                self.broken(f"select({timeout!r}) reported {key}, and registered is {registered}", rule="reported-key")
            if together.get(key.fd, 0) & events:
                self.broken(f"select({timeout!r}) returned {result!r}", rule="reported-twice")
            together[key.fd] = together.get(key.fd, 0) | events
        return together

    def require_reported(self, wanted: dict[int, int], timeout: float | None = 0) -> None:
        """Require that a call of select reports this; what is ready by the first, and nothing else before long."""
        may_wait = timeout is None or timeout > 0
        found: dict[int, int] = {}
        for _ in range(self._excused + 1):
            found = self.ready(timeout)
            if found == wanted:
                return
            is_early = not found and may_wait
            if not is_early and any(events & ~found.get(fd, 0) for fd, events in wanted.items()):
                break
        self.broken(f"select({timeout!r}) reported {_in_words(found)}, and ready is {_in_words(wanted)}")

    def require_reported_data(self, wanted: object) -> None:
        """Require that the one key that select reports has these data."""
        found: list[object] = []
        for _ in range(self._excused + 1):
            found = [key.data for key, _ in self.selector.select(0)]
            is_wanted = [data is wanted for data in found]
            if is_wanted == [True]:
                return
            if True not in is_wanted:
                break
        self.broken(f"select(0) reported keys with the data {found}, and registered is {wanted!r}")

    def require_wait(self, seconds: float, times: int = 10) -> None:
        """Require that waits with nothing ready last as long as they should.

        Each is asked for several times: on a busy machine one that is too short may happen to last long enough.
        """
        excused = self._excused
        for _ in range(times):
            started = time.monotonic()
            found = self.ready(seconds)
            waited = time.monotonic() - started
            if not found and waited >= seconds - _TICK:
                continue
            if not excused:
                self.broken(
                    f"select({seconds!r}) reported {_in_words(found)} after {waited:.6f} s, and nothing was ready"
                )
            excused -= 1

    def require_long_waits(self, timeouts: Iterable[float | None], seconds: float) -> None:
        """Require that waits with nothing ready last for some seconds, or their time, but for those that are excused.

        Each is that of another selector, and all are at the same time: one after the other they would take the sum.
        """
        ended: SimpleQueue[tuple[float | None, str]] = SimpleQueue()

        def wait(selector: Selector, timeout: float | None) -> None:
            started = time.monotonic()
            try:
                outcome = f"returned {selector.select(timeout)!r}"
            except Exception as error:
                outcome = f"raised {error!r}"
            else:
                if timeout is not None and time.monotonic() - started >= timeout - _TICK:
                    return
            ended.put((timeout, outcome))

        peers, threads = [], []
        for timeout in (timeout for timeout in timeouts for _ in range(self._excused + 1)):
            (ours, peer), selector = self.pair(), self.make_selector()
            selector.register(ours, EVENT_READ)
            peers.append(peer)
            threads.append(threading.Thread(target=wait, args=(selector, timeout), daemon=True))
            threads[-1].start()
        try:
            counts: Counter[float | None] = Counter()
            deadline = time.monotonic() + seconds
            while (rest := deadline - time.monotonic()) > 0:
                try:
                    timeout, outcome = ended.get(timeout=rest)
                except Empty:
                    break
                counts[timeout] += 1
                if counts[timeout] > self._excused:
                    self.broken(f"select({timeout!r}) {outcome} while nothing was ready, time and again")
        finally:
            for peer in peers:
                peer.send(b"x")
            for thread in threads:
                thread.join(PATIENCE)

    def require_no_wait(self, timeout: float | None, wanted: dict[int, int]) -> None:
        """Require that a call of select reports this at once: the quickest of several, as a busy machine takes time."""
        shortest = math.inf
        for _ in range(10):
            started = time.monotonic()
            self.require_reported(wanted, timeout)
            shortest = min(shortest, time.monotonic() - started)
            if shortest < _AT_ONCE:
                return
        self.broken(f"select({timeout!r}) took {shortest:.3f} s at least, in 10 times")

    # ------------------------------------------------------------------------------------------- what happens besides

    def until_ready(self, fileobj: FileObject, events: int = EVENT_READ) -> None:
        """Wait until the system, when it is asked directly, says that a file is ready: a peer may take a moment."""
        readers, writers = ([fileobj] if events & event else [] for event in (EVENT_READ, EVENT_WRITE))
        # The writers in the exceptional set, too: there Winsock's select() reports a connect that was refused.
        if not any(select.select(readers, writers, writers, PATIENCE)):
            raise TimeoutError(f"the system did not make {fileobj!r} ready within {PATIENCE:.0f} s")


def _violation(rule: str, seen: str, note: str) -> ProtocolViolation:
    """The error to raise. Raised from a variable, it would be kept by its own traceback, and the files by it."""
    violation = ProtocolViolation(rule, seen)
    if note:
        violation.add_note(note)
    return violation


def _in_words(ready: dict[int, int]) -> str:
    """What is ready, for people."""
    words = {EVENT_READ: "READ", EVENT_WRITE: "WRITE", BOTH: "READ|WRITE"}
    return ", ".join(f"fd {fd} {words[events]}" for fd, events in ready.items()) or "nothing"


def _call_in_words(call: Callable[..., object], args: tuple[object, ...]) -> str:
    return f"{getattr(call, '__name__', call)}({', '.join(map(repr, args))})"


def _close_quietly(selector: Selector) -> None:
    """What a close raises is the matter of the cases that are about it."""
    with suppress(Exception):
        selector.close()


def _close_fd(fd: int) -> None:
    with suppress(OSError):
        os.close(fd)


def fill(sock: socket.socket) -> None:
    """Send until the socket takes no more, and what is on its way has arrived and made no room."""
    while True:
        with suppress(BlockingIOError):
            while True:
                sock.send(bytes(1 << 16))
        if not select.select([], [sock], [], 0.005)[1]:
            return


def drain(sock: socket.socket) -> None:
    """Receive until there is no more."""
    with suppress(BlockingIOError):
        while sock.recv(1 << 16):
            pass


def reset(sock: socket.socket) -> None:
    """Close so that the peer gets a reset, and no end of file: SO_LINGER of 0 seconds, socket(7)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if os.name == "nt" else "ii", 1, 0))
    sock.close()


@contextmanager
def room_for_descriptors(bench: Bench, count: int) -> Iterator[None]:
    """Let this process have as many files open at least, or skip the case."""
    if sys.platform == "win32":  # type checkers know by this that there is a resource module below
        bench.skip("Windows has no such limit")
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        bench.skip(f"RLIMIT_NOFILE allows {hard} descriptors, and {count} are needed")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def lowest_descriptor() -> int:
    """The number that the next file gets."""
    with socket.socket() as sock:
        return sock.fileno()


def open_descriptors(limit: int) -> int:
    """How many of the descriptors below a limit are open."""
    found = 0
    for fd in range(limit):
        with suppress(OSError):
            os.fstat(fd)
            found += 1
    return found
