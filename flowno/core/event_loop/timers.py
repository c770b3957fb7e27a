"""The heap of deadlines."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ARGUMENT", "DEADLINE", "FIRE", "Timer", "Timers", "checked_seconds", "is_over"]

#: Cancelled timers are swept out once there are this many of them and they outnumber the others: it bounds memory, and
#: the cost of a sweep is shared by the cancellations that made it due.
_SWEEP_FROM = 1000

#: One deadline, as :meth:`Timers.add` makes it: when it comes, a number that breaks ties, what to call, and with what.
#: What to call is None once it has fired or was cancelled. A list, as it stands in the heap by itself then.
Timer: TypeAlias = "list[Any]"

#: Where that is in a timer. This room and the loop write the numbers: a name of a module costs a look-up each time.
DEADLINE, FIRE, ARGUMENT = 0, 2, 3


class Timers:
    """Deadlines in the order in which they come; equal ones fire in the order in which they were set.

    Cancelling costs no heap operation: the entry stays until its time or the next sweep, unless it is the last.
    """

    __slots__ = ("_cancelled", "_sequence", "heap", "now")

    def __init__(self) -> None:
        self.heap: list[Timer] = []  # this list for good: the loop looks into it
        self.now = 0.0  # when fire_due was called last, so that what it calls need not ask again
        self._sequence = 0  # breaks ties, so that what is called is never compared
        self._cancelled = 0

    def __len__(self) -> int:
        return len(self.heap) - self._cancelled

    def add(self, deadline: float, fire: Callable[[Any], object], argument: Any) -> Timer:
        """Call ``fire(argument)`` once the loop's clock has reached ``deadline`` (seconds)."""
        self._sequence = sequence = self._sequence + 1
        timer = [deadline, sequence, fire, argument]
        heappush(self.heap, timer)
        return timer

    def cancel(self, timer: Timer) -> bool:
        """Take back a timer; False where it has fired already, or was cancelled."""
        if timer[2] is None:
            return False
        timer[2] = timer[3] = None
        heap = self.heap
        if heap[-1] is timer:  # as one often is whose time is far, and which is not needed for long
            heap.pop()
            return True
        self._cancelled += 1
        if self._cancelled > _SWEEP_FROM and self._cancelled * 2 > len(heap):
            heap[:] = [entry for entry in heap if entry[2] is not None]
            heapify(heap)
            self._cancelled = 0
        return True

    def next_deadline(self) -> float | None:
        """When the next timer is due, or None where there is none."""
        heap = self.heap
        while heap and heap[0][2] is None:
            heappop(heap)
            self._cancelled -= 1
        return heap[0][0] if heap else None

    def fire_due(self, now: float) -> None:
        """Fire every timer whose deadline is ``now`` or earlier."""
        self.now = now
        heap = self.heap
        while heap and heap[0][0] <= now:
            timer = heappop(heap)
            fire, argument = timer[2], timer[3]
            if fire is None:
                self._cancelled -= 1
            else:
                timer[2] = timer[3] = None
                fire(argument)


def is_over(timer: Timer) -> bool:
    """Whether a timer has fired or was cancelled."""
    return timer[FIRE] is None


def checked_seconds(value: float, argument: str) -> float:
    """An argument that is a time or a number of seconds, as a float; an int that is beyond any float is infinite.

    Raises:
        TypeError: It is no number.
        ValueError: It is NaN, which would be before, after and at the time of every other timer.
    """
    if value.__class__ is float and value == value:  # the usual one; the rest is for any number
        return value
    if not isinstance(value, (int, float)):
        raise TypeError(f"{argument} must be a number, not {value!r}")
    if value != value:
        raise ValueError(f"{argument} must be a number, not NaN")
    try:
        return float(value)
    except OverflowError:
        return inf if value > 0 else -inf
