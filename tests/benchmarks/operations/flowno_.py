"""The operations of a scheduler in flowno. ``loop`` is the selector."""

from collections.abc import Callable

from flowno import AsyncQueue, Event, Lock, TaskGroup, sleep, sleep_forever, spawn, timeout
from flowno import run as run_flowno
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
    return run_flowno(cpu_seconds(operation, count), loop or None)


async def spawn_join(count: int) -> None:
    for _ in range(count):
        task = await spawn(nothing())
        await task.join()


async def switch(count: int) -> None:
    async with TaskGroup() as group:
        for share in shares(count, SWITCHERS):
            await group.spawn(give_way(share))


async def queue(count: int) -> None:
    there: AsyncQueue[int] = AsyncQueue()
    back: AsyncQueue[int] = AsyncQueue()
    async with TaskGroup() as group:
        await group.spawn(return_items(count, there, back))
        for item in range(count):
            await there.put(item)
            await back.get()


async def lock(count: int) -> None:
    contended = Lock()
    async with TaskGroup() as group:
        for share in shares(count, CONTENDERS):
            await group.spawn(contend(share, contended))


async def sleeps(count: int) -> None:
    async with TaskGroup() as group:
        for number, share in enumerate(shares(count, SLEEPERS)):
            await group.spawn(sleep_often(share, seconds_to_sleep(number)))


async def time_limits(count: int) -> None:
    for _ in range(count):
        with timeout(LONG):
            await nothing()


async def time_limited_switches(count: int) -> None:
    for _ in range(count):
        with timeout(LONG):
            await give_way(1)


async def spawn_cancel(count: int) -> None:
    for _ in range(count):
        task = await spawn(wait_forever())
        await task.cancel()


async def hold_tasks(count: int, look: Callable[[], None]) -> None:
    look()
    event = Event()
    tasks = [await spawn(wait_for(event)) for _ in range(count)]
    look()
    event.set()
    for task in tasks:
        await task.join()


async def nothing() -> None:
    pass


async def give_way(count: int) -> None:
    for _ in range(count):
        await sleep(0)


async def return_items(count: int, there: AsyncQueue[int], back: AsyncQueue[int]) -> None:
    for _ in range(count):
        await back.put(await there.get())


async def contend(count: int, contended: Lock) -> None:
    for _ in range(count):
        async with contended:
            await sleep(0)


async def sleep_often(count: int, seconds: float) -> None:
    for _ in range(count):
        await sleep(seconds)


async def wait_forever() -> None:
    await sleep_forever()


async def wait_for(event: Event) -> None:
    await event.wait()
