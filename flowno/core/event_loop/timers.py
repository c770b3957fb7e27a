"""The heap of deadlines."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Timer", "Timers", "checked_seconds"]

#: Cancelled timers are swept out once there are this many of them and they outnumber the others: it bounds memory, and
#: the cost of a sweep is shared by the cancellations that made it due.
_SWEEP_FROM = 1000


class Timer:
    """One deadline: ``fire(argument)`` is called when it has come, unless it was cancelled before."""

    __slots__ = ("argument", "fire")

    def __init__(self, fire: Callable[[Any], object], argument: Any) -> None:
        self.fire: Callable[[Any], object] | None = fire
        self.argument = argument


class Timers:
    """Deadlines in the order in which they come; equal ones fire in the order in which they were set.

    Cancelling costs no heap operation: the entry stays until its time or the next sweep.
    """

    __slots__ = ("_cancelled", "_sequence", "heap", "now")

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Timer]] = []  # this list for good: the loop looks into it
        self.now = 0.0  # when fire_due was called last, so that what it calls need not ask again
        self._sequence = 0  # breaks ties, so that timers are never compared
        self._cancelled = 0

    def __len__(self) -> int:
        return len(self.heap) - self._cancelled

    def add(self, deadline: float, fire: Callable[[Any], object], argument: Any) -> Timer:
        """Call ``fire(argument)`` once the loop's clock has reached ``deadline`` (seconds)."""
        timer = Timer(fire, argument)
        self._sequence = sequence = self._sequence + 1
        heappush(self.heap, (deadline, sequence, timer))
        return timer

    def cancel(self, timer: Timer) -> None:
        """Take back a timer that has not fired; one that has is left alone."""
        if timer.fire is None:
            return
        timer.fire = timer.argument = None
        self._cancelled += 1
        if self._cancelled > _SWEEP_FROM and self._cancelled * 2 > len(self.heap):
            self.heap[:] = [entry for entry in self.heap if entry[2].fire is not None]
            heapify(self.heap)
            self._cancelled = 0

    def next_deadline(self) -> float | None:
        """When the next timer is due, or None where there is none."""
        heap = self.heap
        while heap and heap[0][2].fire is None:
            heappop(heap)
            self._cancelled -= 1
        return heap[0][0] if heap else None

    def fire_due(self, now: float) -> None:
        """Fire every timer whose deadline is ``now`` or earlier."""
        self.now = now
        heap = self.heap
        while heap and heap[0][0] <= now:
            timer = heappop(heap)[2]
            fire = timer.fire
            if fire is None:
                self._cancelled -= 1
            else:
                argument = timer.argument
                timer.fire = timer.argument = None
                fire(argument)


def checked_seconds(value: float, argument: str) -> float:
    """An argument that is a time or a number of seconds, as a float; an int that is beyond any float is infinite.

    Raises:
        TypeError: It is no number.
        ValueError: It is NaN, which would be before, after and at the time of every other timer.
    """
    if not isinstance(value, (int, float)):
        raise TypeError(f"{argument} must be a number, not {value!r}")
    if value != value:
        raise ValueError(f"{argument} must be a number, not NaN")
    try:
        return float(value)
    except OverflowError:
        return inf if value > 0 else -inf
