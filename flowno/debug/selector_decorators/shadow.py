"""``shadow(first, second)``: two selectors on the same descriptors, and where they disagree."""

import logging
from collections.abc import Callable, Iterable
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any, Final, TypeAlias

from flowno.core.event_loop.backend import FileObject, Selector, display_name, world_of
from flowno.core.event_loop.fd_table import Identity, identity_of, is_same
from flowno.core.event_loop.registrations import descriptor_of

from .base import SelectorDecorator

__all__ = ["ShadowSelector"]

logger: Final = logging.getLogger("flowno.selector")

#: How often both are asked again before a difference counts as one. Readiness may come, or be consumed by another
#: thread or process, between the two questions.
_AGAIN: Final = 3

#: Seconds after which a wait of the first is interrupted to ask the second: what the first has lost, the first would
#: never return with.
_LONGEST_WAIT: Final = 1.0

#: An event of an fd, and whether the first selector reports it and the second does not, or the other way round.
_Difference: TypeAlias = tuple[int, int, bool]

_REFUSALS: Final = (KeyError, ValueError, OSError)


class ShadowSelector(SelectorDecorator):
    """Registers everything with two selectors, and logs where they disagree; the program gets the answers of the first.

    Right after each answer of the first, and once in a second while it waits, the second is asked without waiting. What
    only one of them reports is asked of both again, three times; what remains is a warning of the logger
    ``flowno.selector``, once until they agree again. So is a descriptor that only one of them accepts. What the first
    refuses is not registered with the second, and what the second refuses is not compared. Nor is a descriptor that was
    closed while it was registered, of which each system call thinks in its own way.

    Args:
        first: The selector that the program uses.
        second: The one that it is compared with.

    Attributes:
        second: The second selector.
    """

    word = "shadow"
    facts = "uses the first selector, and warns where the second disagrees"

    def __init__(self, first: Selector, second: Selector, /) -> None:
        super().__init__(first)
        self.second = second
        self.name = f"{self.word}({display_name(first)},{display_name(second)})"
        self._compared: dict[int, Identity] = {}  # by the fds that both hold, what they stood for
        self._known: set[_Difference] = set()
        self._is_closed = False

    def register(self, fileobj: FileObject, events: int, data: Any = None) -> SelectorKey:
        try:
            key = self.inner.register(fileobj, events, data)
        except _REFUSALS as error:
            if not self._is_closed and _refusal(self.second.register, fileobj, events, data) is None:
                _refusal(self.second.unregister, fileobj)
                self._report_refusal(f"register({fileobj!r}, {events!r})", error, None)
            raise
        if not self._is_closed:
            self._forget(key.fd)
            refusal = _refusal(self.second.register, fileobj, events, data)
            if refusal is None:
                self._compared[key.fd] = identity_of(key.fd)
            else:
                self._report_refusal(f"register({fileobj!r}, {events!r})", None, refusal)
        return key

    def modify(self, fileobj: FileObject, events: int, data: Any = None) -> SelectorKey:
        try:
            key = self.inner.modify(fileobj, events, data)
        except _REFUSALS as error:
            fd = descriptor_of(fileobj)
            if fd in self._compared:
                refusal = _refusal(self.second.modify, fileobj, events, data)
                if refusal is None:
                    self._report_refusal(f"modify({fileobj!r}, {events!r})", error, None)
                if refusal is None or isinstance(error, OSError):  # out of step, or the first has dropped it
                    self._forget(fd)
                    _refusal(self.second.unregister, fileobj)
            raise
        if key.fd in self._compared:
            refusal = _refusal(self.second.modify, fileobj, events, data)
            if refusal is not None:
                self._forget(key.fd)
                self._report_refusal(f"modify({fileobj!r}, {events!r})", None, refusal)
        return key

    def unregister(self, fileobj: FileObject) -> SelectorKey:
        key = self.inner.unregister(fileobj)
        if key.fd in self._compared:
            self._forget(key.fd)
            refusal = _refusal(self.second.unregister, fileobj)
            if refusal is not None:
                self._report_refusal(f"unregister({fileobj!r})", None, refusal)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        clock = world_of(self.inner).clock
        start = clock()
        left = timeout
        while left is None or left > _LONGEST_WAIT:
            ready = self.inner.select(_LONGEST_WAIT)
            self._compare(ready)
            if ready:
                return ready
            if timeout is not None:
                left = timeout - (clock() - start)
        ready = self.inner.select(left)
        self._compare(ready)
        return ready

    def close(self) -> None:
        self._is_closed = True
        self._compared.clear()
        try:
            self.inner.close()
        finally:
            self.second.close()

    def __getattr__(self, name: str) -> Any:
        if name != "after_fork":
            return super().__getattr__(name)
        first, second = self.inner.after_fork, self.second.after_fork  # type: ignore[attr-defined]  # of both, or none

        def after_fork() -> None:
            first()
            second()

        return after_fork

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.inner!r} and {self.second!r}>"

    # --- the comparison ----------------------------------------------------------------------------------------------

    def _compare(self, ready: list[tuple[SelectorKey, int]]) -> None:
        """Report what the second selector does not agree with."""
        if self._is_closed:
            return
        differences = self._differences(ready)
        fresh = differences - self._known
        for _ in range(_AGAIN):
            if not fresh:
                break
            again = self._again()
            differences &= again
            fresh &= again
        self._known = differences
        for difference in sorted(fresh):
            self._report(*difference)

    def _again(self) -> set[_Difference]:
        try:
            return self._differences(self.inner.select(0))
        except _REFUSALS:
            return set()  # the program has its answer already, and this error comes with the next

    def _differences(self, ready: Iterable[tuple[SelectorKey, int]]) -> set[_Difference]:
        """What just one of them reports, where the first has reported this; the second is asked now."""
        first = self._events(ready)
        try:
            second = self._events(self.second.select(0))
        except InterruptedError:  # EINTR, which some leave to their caller: no answer
            return set()
        except _REFUSALS as error:
            self._report_refusal("select(0)", None, error)
            return set()
        differences = {(*event, True) for event in first - second} | {(*event, False) for event in second - first}
        return {difference for difference in differences if self._is_open(difference[0])}

    def _is_open(self, fd: int) -> bool:
        """Whether an fd still stands for the file that was registered, as far as can be told."""
        return is_same(identity_of(fd), self._compared[fd])

    def _events(self, ready: Iterable[tuple[SelectorKey, int]]) -> set[tuple[int, int]]:
        return {
            (key.fd, event)
            for key, events in ready
            for event in (EVENT_READ, EVENT_WRITE)
            if events & event and key.fd in self._compared
        }

    def _forget(self, fd: int | None) -> None:
        """An fd is registered anew, or not any more."""
        self._compared = {other: identity for other, identity in self._compared.items() if other != fd}
        self._known = {difference for difference in self._known if difference[0] != fd}

    def _report(self, fd: int, event: int, by_first: bool) -> None:
        names = display_name(self.inner), display_name(self.second)
        logger.warning(
            "%s: fd %d is ready for %s by %s, and not by %s, each time that both were asked",
            self.name,
            fd,
            "reading" if event == EVENT_READ else "writing",
            *(names if by_first else reversed(names)),
        )

    def _report_refusal(self, call: str, first: Exception | None, second: Exception | None) -> None:
        logger.warning(
            "%s: of %s %s says %s, and %s says %s; the fd is not compared",
            self.name,
            call,
            display_name(self.inner),
            "yes" if first is None else repr(first),
            display_name(self.second),
            "yes" if second is None else repr(second),
        )


def _refusal(method: Callable[..., object], *arguments: Any) -> Exception | None:
    """Call a method of the second selector, whose errors are not the program's."""
    try:
        method(*arguments)
    except _REFUSALS as error:
        return error
    return None
