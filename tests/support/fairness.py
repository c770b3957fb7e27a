"""Whether a task that never has to wait lets the others have their turn."""

import itertools
from collections.abc import Awaitable, Callable

from flowno import sleep, spawn

__all__ = ["check_it_gives_way"]


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
