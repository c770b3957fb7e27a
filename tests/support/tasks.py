"""Tasks to run against: one that gives a value, one that fails, and how long a wait is that never ends."""

from flowno import sleep

__all__ = ["FOREVER", "fail", "value"]

FOREVER = float("inf")


async def value(result: object, turns: int = 0) -> object:
    """Return this, after so many turns of the loop."""
    for _ in range(turns):
        await sleep(0)
    return result


async def fail(error: BaseException, turns: int = 0) -> None:
    """Raise this, after so many turns of the loop."""
    for _ in range(turns):
        await sleep(0)
    raise error
