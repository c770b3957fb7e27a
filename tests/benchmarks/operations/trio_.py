"""The operations of a scheduler in trio, which has one loop.

Its tasks cannot be joined one by one; their nursery is left when they have ended.
"""

from collections.abc import Callable
from math import inf

import trio

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
        raise ValueError(f"trio has one loop, and no {loop!r}")
    return trio.run(cpu_seconds, operation, count)


async def spawn_join(count: int) -> None:
    for _ in range(count):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nothing)


async def switch(count: int) -> None:
    async with trio.open_nursery() as nursery:
        for share in shares(count, SWITCHERS):
            nursery.start_soon(give_way, share)


async def queue(count: int) -> None:
    there_in, there_out = trio.open_memory_channel[int](inf)
    back_in, back_out = trio.open_memory_channel[int](inf)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(return_items, count, there_out, back_in)
        for item in range(count):
            await there_in.send(item)
            await back_out.receive()


async def lock(count: int) -> None:
    contended = trio.Lock()
    async with trio.open_nursery() as nursery:
        for share in shares(count, CONTENDERS):
            nursery.start_soon(contend, share, contended)


async def sleeps(count: int) -> None:
    async with trio.open_nursery() as nursery:
        for number, share in enumerate(shares(count, SLEEPERS)):
            nursery.start_soon(sleep_often, share, seconds_to_sleep(number))


async def time_limits(count: int) -> None:
    for _ in range(count):
        with trio.fail_after(LONG):
            await nothing()


async def time_limited_switches(count: int) -> None:
    for _ in range(count):
        with trio.fail_after(LONG):
            await give_way(1)


async def spawn_cancel(count: int) -> None:
    for _ in range(count):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_forever)
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()


async def hold_tasks(count: int, look: Callable[[], None]) -> None:
    look()
    event = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(wait_for, event)
        await trio.lowlevel.checkpoint()
        look()
        event.set()


async def nothing() -> None:
    pass


async def give_way(count: int) -> None:
    for _ in range(count):
        await trio.lowlevel.checkpoint()


async def return_items(count: int, there: trio.MemoryReceiveChannel[int], back: trio.MemorySendChannel[int]) -> None:
    for _ in range(count):
        await back.send(await there.receive())


async def contend(count: int, contended: trio.Lock) -> None:
    for _ in range(count):
        async with contended:
            await trio.lowlevel.checkpoint()


async def sleep_often(count: int, seconds: float) -> None:
    for _ in range(count):
        await trio.sleep(seconds)


async def wait_forever() -> None:
    await trio.sleep_forever()


async def wait_for(event: trio.Event) -> None:
    await event.wait()
