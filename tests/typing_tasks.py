"""What type checkers make of flowno's tasks, and of what comes out of them. As in typing_stream, nothing is run."""

import signal
from typing import Any, assert_type

from flowno import (
    AsyncLifoQueue,
    AsyncPriorityQueue,
    AsyncQueue,
    Barrier,
    Condition,
    EventLoop,
    TaskGroup,
    TaskHandle,
    as_completed,
    from_thread,
    gather,
    move_on_after,
    open_signal_receiver,
    run,
    run_in_thread,
    sleep,
    sleep_until,
    spawn,
)


async def number() -> int:
    return 1


async def text() -> str:
    return ""


def length(data: bytes) -> int:
    return len(data)


async def repeated(data: bytes, times: int) -> bytes:
    return data * times


async def tasks() -> None:
    handle = await spawn(number())
    assert_type(handle, TaskHandle[int])
    assert_type(await handle.join(), int)
    assert_type(handle.result(), int)
    assert_type(handle.exception(), BaseException | None)
    assert_type(await handle.cancel(), int | None)
    assert_type(await spawn(sleep(0)), TaskHandle[float])
    async with TaskGroup() as group:
        assert_type(await group.spawn(text()), TaskHandle[str])
        assert_type(group.create_task(text()), TaskHandle[str])
    with move_on_after(1) as scope:
        assert_type(await sleep_until(1), float)
    assert_type(scope.cancelled_caught, bool)


async def several() -> None:
    assert_type(await gather(number()), tuple[int])
    assert_type(await gather(number(), text()), tuple[int, str])
    assert_type(await gather(number(), text(), number()), tuple[int, str, int])
    assert_type(await gather(*[number()]), tuple[int, ...])
    assert_type(await gather(number(), text(), return_exceptions=True), tuple[int | Exception, str | Exception])
    assert_type(await gather(*[number()], return_exceptions=True), tuple[int | Exception, ...])
    async for task in as_completed([await spawn(number())]):
        assert_type(task, TaskHandle[int])


def runs(loop: EventLoop) -> None:
    assert_type(run(number()), int)
    assert_type(loop.create_task(number()), TaskHandle[int])
    loop.run_until_complete(number())
    # With join, and without, exit() may give another value.
    assert_type(loop.run_until_complete(number(), join=True), int | Any)


async def threads() -> None:
    assert_type(await run_in_thread(length, b""), int)
    await run_in_thread(length, "")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def in_a_thread(loop: EventLoop) -> None:
    assert_type(from_thread.run(number), int)
    assert_type(from_thread.run(repeated, b"", 2, loop=loop), bytes)
    assert_type(from_thread.run(sleep, 0), float)
    assert_type(from_thread.run_sync(length, b""), int)


async def waiting(condition: Condition, barrier: Barrier, items: list[str]) -> None:
    assert_type(await condition.wait_for(lambda: items), list[str])
    assert_type(await barrier.wait(), int)
    async with barrier as index:
        assert_type(index, int)


async def queues(
    queue: AsyncQueue[int], lifo_queue: AsyncLifoQueue[str], priority_queue: AsyncPriorityQueue[float]
) -> None:
    assert_type(await queue.get(), int)
    assert_type(await queue.peek(), int)
    assert_type(queue.get_nowait(), int)
    assert_type(await lifo_queue.get(), str)
    assert_type(await priority_queue.get(), float)
    async for item in queue:
        assert_type(item, int)


async def signals() -> None:
    with open_signal_receiver(signal.SIGTERM) as received:
        async for signal_number in received:
            assert_type(signal_number, int)
