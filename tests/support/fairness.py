"""Whether a task that never has to wait lets the others have their turn, and a task to see it by."""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from flowno import sleep, spawn

__all__ = ["Turns", "another_task", "check_it_gives_way"]


async def check_it_gives_way(operation: Callable[[], Awaitable[object]]) -> None:
    """Repeat in a task what completes at once: 64 in a row, and then it is somebody else's turn."""
    done, stop = 0, False

    async def repeat() -> None:
        nonlocal done
        while not stop and done < 10_000:  # else nobody could say that it does not
            await operation()
            done += 1

    task = await spawn(repeat())
    seen = [done]
    for _ in range(4):
        await sleep(0)
        await sleep(0)
        seen.append(done)
    assert seen[0] <= 65  # one that waited its turn, and 64 in a row
    assert seen == sorted(set(seen)), "it makes progress"
    assert max(b - a for a, b in itertools.pairwise(seen)) <= 2 * 65
    stop = True
    await task.join()


class Turns:
    """How many turns of the loop a task has ``taken``."""

    def __init__(self) -> None:
        self.taken = 0


@asynccontextmanager
async def another_task() -> AsyncIterator[Turns]:
    """Has a task that is always ready run beside the block; gives how many turns it has had, the first at once."""
    turns = Turns()

    async def take_turns() -> None:
        while True:
            turns.taken += 1
            await sleep(0)

    task = await spawn(take_turns())
    try:
        yield turns
    finally:
        await task.cancel()
