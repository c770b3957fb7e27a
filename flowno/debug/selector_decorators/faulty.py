"""``faulty(selector)``: a selector that is a burden to its loop, which flowno's bears.

It is none for other loops: it breaks rules that a selector has to keep, which ``flowno check`` finds out.
"""

import errno
import os
from collections.abc import Callable
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any, Final

from flowno.core.event_loop.backend import FileObject, Selector
from flowno.core.event_loop.registrations import Registrations

from ..dice import Dice
from ..faults import Faults, faults_asked_for
from .base import SelectorDecorator

__all__ = ["FaultySelector"]

#: How many waits in a row end before their time. A selector that did so for ever would be no selector.
_MOST_EARLY: Final = 2


class FaultySelector(SelectorDecorator):
    """Is as unhelpful as what a flowno event loop must bear, by the seed and the rates of :doc:`/faults`.

    What is ready is reported late, split up and in any order; what is registered and not ready is reported, too; waits
    end before their time, or with InterruptedError, as those of Python did before :pep:`475`. No readiness is lost:
    what is withheld is reported by one of the next three reports, and a wait in which nothing else comes reports it.

    It is for the loops of flowno alone: that of asyncio believes a report that a connection is made, and ends with an
    error of ``select``.

    Args:
        inner: The selector.
        faults: What is made; None takes what :func:`~flowno.testing.faults` or ``FLOWNO_FAULTS`` says, and where
            neither says anything, the harmless faults of seed 0.

    Attributes:
        faults: What is made, with its counts.
    """

    word = "faulty"
    facts = "reports late, in disorder, too early and too much, as a system may"

    def __init__(self, inner: Selector, /, *, faults: Faults | None = None) -> None:
        super().__init__(inner)
        self.faults = faults_asked_for() if faults is None else faults
        self._dice = Dice(self.faults, "the selector")
        self._dice_by_fd: dict[int, Dice] = {}
        self._keys = Registrations(inner)  # what others have registered with the selector inside is left alone
        self._withheld: dict[tuple[int, int], int] = {}  # for how many more reports an event of an fd is
        self._early = 0

    def register(self, fileobj: FileObject, events: int, data: Any = None) -> SelectorKey:
        return self._keys.register(fileobj, events, data)

    def modify(self, fileobj: FileObject, events: int, data: Any = None) -> SelectorKey:
        return self._keys.modify(fileobj, events, data)

    def unregister(self, fileobj: FileObject) -> SelectorKey:
        return self._keys.unregister(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        dice = self._dice
        waits = timeout is None or timeout > 0
        if waits and self._early < _MOST_EARLY:
            if dice.inject("eintr"):
                self._early += 1
                raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
            if dice.inject("early"):
                self._early += 1
                return self._report(self.inner.select(0))
        if waits:
            self._early = 0
        false_alarm = dice.is_due("spurious") and self._false_alarm()
        events = self._report(self.inner.select(0 if false_alarm else timeout))
        while waits and not events and self._withheld and not false_alarm:
            events = self._report(self.inner.select(0))
        if false_alarm:
            self._add(events, *false_alarm)
        if len(events) > 1 and dice.inject("reordered"):
            dice.shuffle(events)
        return events

    def close(self) -> None:
        self._keys.clear()
        self._withheld.clear()
        self.inner.close()

    def reopen(self, fd: int, exchange: Callable[[], object]) -> None:
        """Call what puts another file in the place of an fd, which is registered as it was then."""
        key = self._keys.get(fd)
        if key is not None:
            self._keys.unregister(fd)
        try:
            exchange()
        finally:
            if key is not None:
                self._keys.register(key.fileobj, key.events, key.data)

    # --- what becomes of a report ------------------------------------------------------------------------------------

    def _report(self, ready: list[tuple[SelectorKey, int]]) -> list[tuple[SelectorKey, int]]:
        """What is reported of what is ready."""
        before, self._withheld = self._withheld, {}
        together: dict[int, tuple[SelectorKey, int]] = {}  # some tell of the two directions one by one
        for key, events in ready:
            together[key.fd] = key, events | together.get(key.fd, (key, 0))[1]
        report = [(key, self._reported(key, events, before)) for key, events in together.values()]
        return [(key, events) for key, events in report if events]

    def _reported(self, key: SelectorKey, events: int, before: dict[tuple[int, int], int]) -> int:
        fd = key.fd
        dice = self._dice_by_fd.get(fd)
        if dice is None:
            dice = self._dice_by_fd[fd] = Dice(self.faults, f"descriptor {len(self._dice_by_fd)}")
        both = (fd, EVENT_READ), (fd, EVENT_WRITE)
        if events == EVENT_READ | EVENT_WRITE and before.keys().isdisjoint(both) and dice.inject("split"):
            later = dice.one_of([EVENT_READ, EVENT_WRITE])
            self._withheld[fd, later] = 1
            return events & ~later
        for event in (EVENT_READ, EVENT_WRITE):
            if events & event:
                left = before.get((fd, event), 0) - 1
                if left < 0 and dice.inject("late"):
                    left = dice.delay()
                if left > 0:
                    self._withheld[fd, event] = left
                    events &= ~event
        return events

    def _false_alarm(self) -> tuple[SelectorKey, int] | None:
        """An event that somebody is interested in, ready or not."""
        if not self._keys:
            return None
        key = self._keys[self._dice.one_of([*self._keys])]
        event = self._dice.one_of([event for event in (EVENT_READ, EVENT_WRITE) if key.events & event])
        self._dice.record("spurious")
        return key, event

    def _add(self, events: list[tuple[SelectorKey, int]], key: SelectorKey, event: int) -> None:
        """Add an event to a report, in which no fd is twice."""
        for index, (other, mask) in enumerate(events):
            if other.fd == key.fd:
                events[index] = other, mask | event
                return
        events.append((key, event))
