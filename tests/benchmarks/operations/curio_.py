"""The operations of a scheduler in curio, which has one loop."""

from collections.abc import Callable

import curio

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
    if loop:
        raise ValueError(f"curio has one loop, and no {loop!r}")
    return curio.run(cpu_seconds, operation, count)


async def spawn_join(count: int) -> None:
    for _ in range(count):
        task = await curio.spawn(nothing)
        await task.join()


async def switch(count: int) -> None:
    async with curio.TaskGroup() as group:
        for share in shares(count, SWITCHERS):
            await group.spawn(give_way, share)


async def queue(count: int) -> None:
    there = curio.Queue()
    back = curio.Queue()
    async with curio.TaskGroup() as group:
        await group.spawn(return_items, count, there, back)
        for item in range(count):
            await there.put(item)
            await back.get()


async def lock(count: int) -> None:
    contended = curio.Lock()
    async with curio.TaskGroup() as group:
        for share in shares(count, CONTENDERS):
            await group.spawn(contend, share, contended)


async def sleeps(count: int) -> None:
    async with curio.TaskGroup() as group:
        for number, share in enumerate(shares(count, SLEEPERS)):
            await group.spawn(sleep_often, share, seconds_to_sleep(number))


async def time_limits(count: int) -> None:
    for _ in range(count):
        async with curio.timeout_after(LONG):
            await nothing()


async def time_limited_switches(count: int) -> None:
    for _ in range(count):
        async with curio.timeout_after(LONG):
            await give_way(1)


async def spawn_cancel(count: int) -> None:
    for _ in range(count):
        task = await curio.spawn(wait_forever)
        await curio.sleep(0)
        await task.cancel()


async def hold_tasks(count: int, look: Callable[[], None]) -> None:
    look()
    event = curio.Event()
    tasks = [await curio.spawn(wait_for, event) for _ in range(count)]
    await curio.sleep(0)
    look()
    await event.set()
    for task in tasks:
        await task.join()


async def nothing() -> None:
    pass


async def give_way(count: int) -> None:
    for _ in range(count):
        await curio.sleep(0)


async def return_items(count: int, there: curio.Queue, back: curio.Queue) -> None:
    for _ in range(count):
        await back.put(await there.get())


async def contend(count: int, contended: curio.Lock) -> None:
    for _ in range(count):
        async with contended:
            await curio.sleep(0)


async def sleep_often(count: int, seconds: float) -> None:
    for _ in range(count):
        await curio.sleep(seconds)


async def wait_forever() -> None:
    await curio.Event().wait()


async def wait_for(event: curio.Event) -> None:
    await event.wait()
