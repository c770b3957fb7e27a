"""``check(selector)``: whether a selector keeps the rules of the protocol, looked at with each call."""

import errno
import math
import time
from collections.abc import Callable
from selectors import SelectorKey
from typing import Any, Final, NoReturn

from flowno.core.event_loop.backend import FileObject, Selector, display_name, world_of
from flowno.core.event_loop.registrations import MASKS, Registrations, descriptor_of
from flowno.core.event_loop.selector_rules import CALL_RULES, ProtocolViolation

from .base import SelectorDecorator

__all__ = ["CheckSelector", "ProtocolViolation"]

#: How many returns in a row with nothing to report, before its time, are no violation yet. An epoll object may be woken
#: by an entry that it cannot report, as the fd is another file by now; it is rid of that entry then.
_EXCUSED: Final = 2

#: Seconds by which a wait may seem too short: what the clock can tell apart, and the rounding of a sum.
_TOLERANCE: Final = time.get_clock_info("monotonic").resolution + 1e-6

#: What a selector gets from the system for an fd that is closed, here and on Windows.
_DEAD_FD: Final = frozenset({errno.EBADF, errno.ENOTSOCK})


class CheckSelector(SelectorDecorator):
    """Verifies each call: what the selector inside raises and returns, against what it was asked so far.

    A violation is raised at the call, and ends the task or the run: from then on nothing that the loop believes of the
    selector is certain. Where a failed call must leave nothing behind, the selector is asked to unregister the fd,
    which must be a KeyError. A wait that ends too early is repeated for the time that is left, and is a violation when
    that is too short again and again. An error of a signal handler that interrupts a call passes unchanged.

    Args:
        inner: The selector.

    Example:
        >>> import selectors
        >>> class Eager(selectors.SelectSelector):
        ...     def select(self, timeout=None):
        ...         return []
        >>> with CheckSelector(Eager()) as selector:
        ...     selector.select(0.5)
        Traceback (most recent call last):
        flowno.core.event_loop.selector_rules.ProtocolViolation: ...:Eager breaks the rule "early": select does not ...
    """

    word = "check"
    facts = "raises ProtocolViolation where the selector breaks a rule of the protocol"

    def __init__(self, inner: Selector, /) -> None:
        super().__init__(inner)
        get_map = getattr(inner, "get_map", None)
        self._keys = Registrations(inner, () if get_map is None else get_map().values())
        self._changes = 0
        self._is_closed = False

    def register(self, fileobj: FileObject, events: int, data: Any = None) -> SelectorKey:
        def call() -> str:
            return f"register({fileobj!r}, {events!r}, {data!r})"

        fd = descriptor_of(fileobj)
        refusal: tuple[str, type[Exception]] | None = None
        if events not in MASKS:
            refusal = "mask", ValueError
        elif fd is None:
            refusal = "descriptor", ValueError
        elif fd in self._keys:
            refusal = "registered", KeyError
        try:
            key = self._keys.register(fileobj, events, data)
        except (KeyError, ValueError, OSError) as error:
            if self._is_closed:
                raise
            if refusal is not None:
                self._require(refusal, error, call)
            elif isinstance(error, KeyError):
                self._violation("false-alarm", call, error)
            if fd not in self._keys and fd is not None:
                self._require_absent(fd, "failed-register", call, error)
            raise
        if self._is_closed:
            return key
        if refusal is not None:
            self._violation(refusal[0], call, key)
        self._require_key(key, (fileobj,), fd, events, data, call)
        self._changes += 1
        return key

    def modify(self, fileobj: FileObject, events: int, data: Any = None) -> SelectorKey:
        def call() -> str:
            return f"modify({fileobj!r}, {events!r}, {data!r})"

        old = self._keys.get(fileobj)
        refusal: tuple[str, type[Exception]] | None = None
        if old is None:
            refusal = "unknown", KeyError
        elif events not in MASKS:
            refusal = "mask", ValueError
        self._changes += 1
        try:
            key = self._keys.modify(fileobj, events, data)
        except (KeyError, ValueError, OSError) as error:
            if self._is_closed:
                raise
            if old is None:
                if events in MASKS or not isinstance(error, ValueError):  # either may be looked at first
                    self._require(("unknown", KeyError), error, call)
            elif refusal is not None:
                self._require(refusal, error, call)
            elif isinstance(error, KeyError):
                self._violation("false-alarm", call, error)
            else:
                self._require_absent(old.fd, "failed-modify", call, error)
            raise
        if self._is_closed:
            return key
        if refusal is not None or old is None:
            self._violation("unknown" if old is None else "mask", call, key)
        self._require_key(key, (fileobj, old.fileobj), old.fd, events, data, call)
        return key

    def unregister(self, fileobj: FileObject) -> SelectorKey:
        def call() -> str:
            return f"unregister({fileobj!r})"

        old = self._keys.get(fileobj)
        self._changes += 1
        try:
            key = self._keys.unregister(fileobj)
        except (KeyError, ValueError, OSError) as error:
            if self._is_closed:
                raise
            if old is not None:
                self._violation("false-alarm" if isinstance(error, KeyError) else "unregister", call, error)
            if descriptor_of(fileobj) is not None or not isinstance(error, ValueError):
                self._require(("unknown", KeyError), error, call)
            raise
        if self._is_closed:
            return key
        if old is None:
            self._violation("unknown", call, key)
        self._require_key(key, (old.fileobj,), old.fd, old.events, old.data, call)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        def call() -> str:
            return f"select({timeout!r})"

        if self._is_closed:
            return self.inner.select(timeout)
        clock = world_of(self.inner).clock
        start = clock()
        left = timeout
        excused = 0
        while True:
            before = self._changes
            ready = self._ask(left, call)
            unchanged = self._changes == before  # a signal handler may close handles
            self._require_result(ready, call, are_current=unchanged)
            waited = clock() - start
            if ready or not unchanged or (timeout is not None and waited >= timeout - _TOLERANCE):
                return ready
            if excused == _EXCUSED:
                self._violation("early", call, ready, f"after {waited:.6f} s, and {_EXCUSED} times before")
            excused += 1
            left = None if timeout is None else timeout - waited

    def close(self) -> None:
        self._is_closed = True
        self._keys.clear()
        self.inner.close()

    def _ask(self, timeout: float | None, call: Callable[[], str]) -> list[tuple[SelectorKey, int]]:
        is_nan = timeout is not None and math.isnan(timeout)
        try:
            ready = self.inner.select(timeout)
        except (OSError, OverflowError, ValueError) as error:
            if is_nan:
                self._require(("nan", ValueError), error, call)
            elif not isinstance(error, OSError) or error.errno in _DEAD_FD:
                self._violation("select-raises", call, error)
            raise
        if is_nan:
            self._violation("nan", call, ready)
        return ready

    def _require_result(self, ready: Any, call: Callable[[], str], *, are_current: bool) -> None:
        if not isinstance(ready, list):
            self._violation("result", call, ready)
        seen: dict[int, int] = {}
        for report in ready:
            match report:
                case (SelectorKey() as key, int() as events):
                    pass
                case _:
                    self._violation("result", call, ready)
            if are_current and not _are_one(key, self._keys.get(key.fd)):
                registered = f"; registered is {self._keys.get(key.fd)!r}"
                self._violation("reported-key", call, ready, f"of which {key!r} is none of them{registered}")
            if not events or events & ~key.events:
                self._violation("reported-events", call, ready, f"of which fd {key.fd} is registered for {key.events}")
            if events & seen.get(key.fd, 0):
                self._violation("reported-twice", call, ready)
            seen[key.fd] = seen.get(key.fd, 0) | events

    def _require_key(
        self,
        key: Any,
        fileobjs: tuple[FileObject, ...],
        fd: int | None,
        events: int,
        data: Any,
        call: Callable[[], str],
    ) -> None:
        if not (
            isinstance(key, SelectorKey)
            and any(key.fileobj is fileobj or key.fileobj == fileobj for fileobj in fileobjs)
            and (key.fd, key.events) == (fd, events)
            and key.data is data
        ):
            self._violation("key", call, key)

    def _require(self, refusal: tuple[str, type[Exception]], error: Exception, call: Callable[[], str]) -> None:
        rule, wanted = refusal
        if not isinstance(error, wanted):
            self._violation(rule, call, error)

    def _require_absent(self, fd: int, rule: str, call: Callable[[], str], error: Exception) -> None:
        try:
            self.inner.unregister(fd)
        except (KeyError, ValueError, OSError):
            return
        self._violation(rule, call, error, f"and unregister({fd}) finds it registered")

    def _violation(self, rule: str, call: Callable[[], str], outcome: Any, remark: str = "") -> NoReturn:
        did = f"raised {outcome!r}" if isinstance(outcome, BaseException) else f"returned {outcome!r}"
        raise ProtocolViolation(
            rule,
            f'{display_name(self.inner)} breaks the rule "{rule}": {CALL_RULES[rule]}. '
            f"{call()} {did}{', ' if remark else ''}{remark}",
        )


def _are_one(key: SelectorKey, registered: SelectorKey | None) -> bool:
    """Whether a reported key is that of a registration."""
    return key is registered or (
        registered is not None
        and key.data is registered.data
        and (key.fd, key.events) == (registered.fd, registered.events)
        and (key.fileobj is registered.fileobj or key.fileobj == registered.fileobj)
    )
