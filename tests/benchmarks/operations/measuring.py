"""What the programs of all frameworks have in common: how much they do, and how it is measured."""

import gc
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeAlias

__all__ = [
    "CONTENDERS",
    "LONG",
    "SLEEPERS",
    "SWITCHERS",
    "Operation",
    "cpu_seconds",
    "seconds_to_sleep",
    "shares",
    "warm_up",
]

Operation: TypeAlias = Callable[[int], Awaitable[None]]
"""Does something so many times."""

#: How many tasks give way to each other, want the same lock, sleep at the same time.
SWITCHERS = 10
CONTENDERS = 10
SLEEPERS = 100

#: Seconds: a time limit that is not reached.
LONG = 60.0


def shares(count: int, tasks: int) -> Iterator[int]:
    """How often each of so many tasks does it, so that all of them do it ``count`` times."""
    return (count // tasks + (number < count % tasks) for number in range(tasks))


def seconds_to_sleep(number: int) -> float:
    """For how long the sleeper of this number sleeps each time: whole milliseconds, as uvloop's timers have them."""
    return (1 + number % 10) / 1000


def warm_up(count: int) -> int:
    """How often something is done before it is measured, so that the interpreter has specialized its code."""
    return count // 10 + 1


async def cpu_seconds(operation: Operation, count: int) -> float:
    """The CPU time that an operation takes, in user and kernel mode; what it waits does not count."""
    await operation(warm_up(count))
    gc.collect()
    begun = time.process_time()
    await operation(count)
    return time.process_time() - begun
