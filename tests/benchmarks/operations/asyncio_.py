"""The operations of a scheduler in asyncio. ``loop`` is "uvloop" or "", for asyncio's own event loop."""

import asyncio
from collections.abc import Callable

from tests.benchmarks.operations.measuring import (
    CONTENDERS,
    LONG,
    SLEEPERS,
    SWITCHERS,
    Operation,
    cpu_seconds,
    seconds_to_sleep,
    shares,
)


def run(operation: Operation, count: int, loop: str) -> float:
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    elif loop:
        raise ValueError(f"asyncio runs by its own loop or by uvloop, not by {loop!r}")
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(cpu_seconds(operation, count))


async def spawn_join(count: int) -> None:
    for _ in range(count):
        task = asyncio.create_task(nothing())
        await task


async def switch(count: int) -> None:
    async with asyncio.TaskGroup() as group:
        for share in shares(count, SWITCHERS):
            group.create_task(give_way(share))


async def queue(count: int) -> None:
    there: asyncio.Queue[int] = asyncio.Queue()
    back: asyncio.Queue[int] = asyncio.Queue()
    async with asyncio.TaskGroup() as group:
        group.create_task(return_items(count, there, back))
        for item in range(count):
            await there.put(item)
            await back.get()


async def lock(count: int) -> None:
    contended = asyncio.Lock()
    async with asyncio.TaskGroup() as group:
        for share in shares(count, CONTENDERS):
            group.create_task(contend(share, contended))


async def sleeps(count: int) -> None:
    async with asyncio.TaskGroup() as group:
        for number, share in enumerate(shares(count, SLEEPERS)):
            group.create_task(sleep_often(share, seconds_to_sleep(number)))


async def time_limits(count: int) -> None:
    for _ in range(count):
        async with asyncio.timeout(LONG):
            await nothing()


async def time_limited_switches(count: int) -> None:
    for _ in range(count):
        async with asyncio.timeout(LONG):
            await give_way(1)


async def spawn_cancel(count: int) -> None:
    for _ in range(count):
        task = asyncio.create_task(wait_forever())
        await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass


async def hold_tasks(count: int, look: Callable[[], None]) -> None:
    look()
    event = asyncio.Event()
    tasks = [asyncio.create_task(wait_for(event)) for _ in range(count)]
    await asyncio.sleep(0)
    look()
    event.set()
    for task in tasks:
        await task


async def nothing() -> None:
    pass


async def give_way(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def return_items(count: int, there: asyncio.Queue[int], back: asyncio.Queue[int]) -> None:
    for _ in range(count):
        await back.put(await there.get())


async def contend(count: int, contended: asyncio.Lock) -> None:
    for _ in range(count):
        async with contended:
            await asyncio.sleep(0)


async def sleep_often(count: int, seconds: float) -> None:
    for _ in range(count):
        await asyncio.sleep(seconds)


async def wait_forever() -> None:
    await asyncio.get_running_loop().create_future()


async def wait_for(event: asyncio.Event) -> None:
    await event.wait()
