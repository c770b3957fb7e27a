"""The queues: what is put is got once, in order, and nothing is lost on the way."""

from collections.abc import Callable
from typing import Any

import pytest

import flowno
from flowno import (
    AsyncLifoQueue,
    AsyncMapQueue,
    AsyncPriorityQueue,
    AsyncQueue,
    AsyncSetQueue,
    EventLoop,
    QueueClosedError,
    QueueEmptyError,
    QueueFullError,
    TaskCancelled,
    TaskHandle,
    move_on_after,
    sleep,
    spawn,
)

pytestmark = pytest.mark.usefixtures("backend")

PLAIN: list[type[Any]] = [AsyncQueue, AsyncLifoQueue, AsyncPriorityQueue, AsyncSetQueue]
each_queue = pytest.mark.parametrize("kind", PLAIN)


async def collect(queue: AsyncQueue[Any], into: list[Any]) -> None:
    async for item in queue:
        into.append(item)


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        (AsyncQueue, [3, 1, 2, 1]),
        (AsyncLifoQueue, [1, 2, 1, 3]),
        (AsyncPriorityQueue, [1, 1, 2, 3]),
        (AsyncSetQueue, [3, 1, 2]),
    ],
)
def test_items_come_out_in_the_order_of_the_queue(kind: type[Any], order: list[int]) -> None:
    async def main() -> list[int]:
        queue = kind()
        for item in (3, 1, 2, 1):
            await queue.put(item)
        assert list(queue.items) == order
        assert len(queue) == len(order)
        assert await queue.peek() == order[0]
        return [await queue.get() for _ in range(len(queue))]

    assert flowno.run(main()) == order


def test_a_priority_queue_gives_equal_items_in_the_order_in_which_they_were_put() -> None:
    async def main() -> list[float]:
        queue: AsyncPriorityQueue[float] = AsyncPriorityQueue()
        for item in (1, True, 1.0):
            queue.put_nowait(item)
        return [await queue.get() for _ in range(3)]

    assert [type(item) for item in flowno.run(main())] == [int, bool, float]


def test_a_map_queue_gathers_what_is_put_for_a_key() -> None:
    async def main() -> None:
        queue: AsyncMapQueue[str, str] = AsyncMapQueue(maxsize=2)
        for item in (("a", "1"), ("b", "2"), ("a", "3")):
            await queue.put(item)
        assert "a" in queue
        assert await queue.peek() == ("a", ["1", "3"])
        waiting = await spawn(queue.put(("c", "4")))
        await queue.put(("b", "5"))  # needs no room
        assert await queue.get() == ("a", ["1", "3"])
        await waiting.join()
        assert queue.items == [("b", ["2", "5"]), ("c", ["4"])]

    flowno.run(main())


def test_a_set_queue_holds_no_item_twice() -> None:
    async def main() -> None:
        queue: AsyncSetQueue[int] = AsyncSetQueue(maxsize=2)
        await queue.putAll([1, 2, 1])
        assert queue.items == [1, 2]
        assert 1 in queue
        assert 3 not in queue
        waiting = await spawn(queue.put(3))
        await queue.put(2)  # needs no room
        assert await queue.get() == 1
        await waiting.join()
        assert queue.items == [2, 3]
        with EventLoop() as other:
            assert queue.put_nowait(2, other) is False
        await queue.get()
        assert queue.put_nowait(4) is True

    flowno.run(main())


def test_who_waits_with_what_came_in_meanwhile_does_not_put_it_twice() -> None:
    async def main() -> None:
        queue: AsyncSetQueue[int] = AsyncSetQueue(maxsize=1)
        causes: AsyncMapQueue[str, int] = AsyncMapQueue(maxsize=1)
        await queue.put(0)
        await causes.put(("full", 0))
        putters = [await spawn(queue.put(1)) for _ in range(3)]
        putters += [await spawn(causes.put(("key", number))) for number in range(3)]
        cancelled = await spawn(causes.put(("key", 99)))
        await cancelled.cancel()
        assert (await queue.get(), queue.items) == (0, [1])
        assert await causes.get() == ("full", [0])
        seen: list[int] = []
        while causes.items:
            seen += (await causes.get())[1]
        assert seen == [0, 1, 2]
        while queue.items:
            assert queue.items == [1]
            await queue.get()
        for putter in putters:
            await putter.join()

    flowno.run(main())


@each_queue
def test_whoever_waits_for_an_item_is_served_in_turn(kind: type[Any]) -> None:
    async def main() -> None:
        queue = kind()
        getters: list[TaskHandle[int]] = [await spawn(queue.get()) for _ in range(3)]
        await sleep(0)
        for item in range(3):
            await queue.put(item)
            assert len(queue) == 0  # it is in the hands of a task already
        assert [await getter.join() for getter in getters] == [0, 1, 2]

    flowno.run(main())


@each_queue
def test_whoever_waits_for_room_is_served_in_turn_and_nobody_overtakes(kind: type[Any]) -> None:
    async def main() -> None:
        queue = kind(maxsize=1)
        await queue.put(0)
        putters = [await spawn(queue.put(item)) for item in (1, 2)]
        await sleep(0)
        with pytest.raises(QueueFullError, match="holds 1 items"):
            queue.put_nowait(3)
        assert [await queue.get() for _ in range(3)] == [0, 1, 2]
        for putter in putters:
            await putter.join()

    flowno.run(main())


@each_queue
def test_an_item_that_was_given_to_a_task_is_not_lost_where_it_is_cancelled(kind: type[Any]) -> None:
    async def main() -> None:
        queue = kind()
        first, second = await spawn(queue.get()), await spawn(queue.get())
        await sleep(0)
        await queue.put("item")
        first.cancel()
        assert await first.join() == "item"
        await second.cancel()
        await queue.put("next")
        assert await queue.get() == "next"

    flowno.run(main())


def test_the_causes_that_were_given_to_a_task_are_not_lost_where_it_is_cancelled() -> None:
    async def main() -> None:
        queue: AsyncMapQueue[str, str] = AsyncMapQueue()
        first, second = await spawn(queue.get()), await spawn(queue.get())
        await queue.put(("key", "one"))
        first.cancel()
        await queue.put(("key", "two"))
        assert await first.join() == ("key", ["one"])
        assert await second.join() == ("key", ["two"])

    flowno.run(main())


@pytest.mark.parametrize("item", [None, 0, "", (), False], ids=repr)
@pytest.mark.parametrize("kind", [AsyncQueue, AsyncLifoQueue, AsyncPriorityQueue, AsyncSetQueue])
def test_an_item_that_is_false_is_an_item_like_any_other(kind: type[Any], item: object) -> None:
    async def main() -> None:
        queue = kind(maxsize=1)
        getter, peeker = await spawn(queue.get()), await spawn(queue.peek())
        await queue.put(item)
        assert await getter.join() is item
        assert await peeker.join() is item
        await queue.put(item)
        assert await queue.peek() is item
        assert await queue.get() is item
        await queue.put(item)
        queue.close()
        assert [each async for each in queue] == [item]

    flowno.run(main())


@each_queue
def test_time_limits_around_get_lose_no_item(kind: type[Any]) -> None:
    """Whichever comes first, in every turn of the loop: an item is got, or it is still in the queue."""

    async def main() -> None:
        queue, got = kind(), []

        async def consume() -> None:
            while len(got) < 200:
                with move_on_after(0):
                    got.append(await queue.get())
                    await sleep(0)

        consumers = [await spawn(consume()) for _ in range(3)]
        for item in range(200):
            await queue.put(item)
            await sleep(0)
        while len(got) < 200:
            await sleep(0)
        for consumer in consumers:
            await consumer.cancel()
        assert sorted(got) == list(range(200))
        assert len(queue) == 0

    flowno.run(main())


@each_queue
def test_a_put_that_was_let_in_is_done_although_its_task_is_cancelled(kind: type[Any]) -> None:
    async def main() -> None:
        queue, log = kind(maxsize=1), []

        async def put() -> None:
            await queue.put(1)
            log.append("done")
            await sleep(0)
            log.append("never")

        await queue.put(0)
        putter = await spawn(put())
        assert await queue.get() == 0  # which lets the other one in
        putter.cancel()
        with pytest.raises(TaskCancelled):
            await putter.join()
        assert log == ["done"]
        assert await queue.get() == 1

    flowno.run(main())


@each_queue
def test_a_cancelled_put_puts_nothing(kind: type[Any]) -> None:
    async def main() -> None:
        queue = kind(maxsize=1)
        await queue.put(0)
        putter = await spawn(queue.put(1))
        await sleep(0)
        await putter.cancel()
        assert await queue.get() == 0
        assert len(queue) == 0

    flowno.run(main())


@each_queue
def test_closing_wakes_all_who_wait_and_what_is_there_can_still_be_got(kind: type[Any]) -> None:
    async def main() -> None:
        full, empty = kind(maxsize=1), kind()
        await full.put(0)
        waiting = [await spawn(operation) for operation in (full.put(1), empty.get(), empty.peek())]
        await sleep(0)
        await full.close()
        empty.close()
        assert full.is_closed()
        assert full.closed
        for task, operation in zip(waiting, ("put", "get", "peek"), strict=True):
            with pytest.raises(QueueClosedError, match=f"while {operation}"):
                await task.join()
        assert await full.peek() == 0
        assert await full.get() == 0
        for _ in range(100):
            for operation in (full.get, full.peek, lambda: full.put(2)):
                with pytest.raises(QueueClosedError):
                    await operation()
        with pytest.raises(QueueClosedError):
            full.put_nowait(1)
        with pytest.raises(QueueClosedError):
            full.get_nowait()

    flowno.run(main())


def test_an_iteration_ends_when_the_queue_is_closed_and_empty() -> None:
    async def main() -> list[int]:
        queue: AsyncQueue[int] = AsyncQueue()
        got: list[int] = []
        task = await spawn(collect(queue, got))
        for item in range(3):
            await queue.put(item)
        queue.close()
        await task.join()
        return got

    assert flowno.run(main()) == [0, 1, 2]


def test_until_empty_takes_what_is_there_and_closes_the_queue() -> None:
    async def main() -> None:
        queue: AsyncQueue[int] = AsyncQueue()
        for item in range(3):
            queue.put_nowait(item)
        assert [item async for item in queue.until_empty()] == [0, 1, 2]
        assert queue.is_closed()

    flowno.run(main())


def test_get_nowait_and_put_nowait_do_not_wait() -> None:
    queue: AsyncQueue[int] = AsyncQueue(maxsize=1)
    with pytest.raises(QueueEmptyError):
        queue.get_nowait()
    queue.put_nowait(1)
    with pytest.raises(QueueFullError):
        queue.put_nowait(2)
    assert queue.get_nowait() == 1


def test_join_waits_until_all_that_was_put_is_done() -> None:
    async def main() -> None:
        queue: AsyncQueue[int] = AsyncQueue()
        await queue.join()
        for item in range(3):
            queue.put_nowait(item)
        joiner = await spawn(queue.join())
        for _ in range(3):
            assert not joiner.is_finished
            await queue.get()
            queue.task_done()
            await sleep(0)
        await joiner.join()
        with pytest.raises(ValueError, match="more often"):
            queue.task_done()

    flowno.run(main())


@each_queue
@pytest.mark.parametrize("maxsize", [0, -1])
def test_a_queue_holds_at_least_one_item(kind: type[Any], maxsize: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        kind(maxsize=maxsize)


@pytest.mark.parametrize(
    "operation",
    [lambda queue: queue.put(1), lambda queue: queue.get(), lambda queue: queue.peek()],
    ids=["put", "get", "peek"],
)
def test_what_need_not_wait_starves_nobody(operation: Callable[[AsyncQueue[int]], Any]) -> None:
    async def main() -> None:
        queue: AsyncQueue[int] = AsyncQueue()
        for item in range(1000):
            queue.put_nowait(item)
        done = 0

        async def repeat() -> None:
            nonlocal done
            for _ in range(900):
                await operation(queue)
                done += 1

        task = await spawn(repeat())
        assert done <= 65
        await task.join()

    flowno.run(main())


def test_many_producers_and_consumers_lose_nothing() -> None:
    async def main() -> list[int]:
        queue: AsyncQueue[int] = AsyncQueue(maxsize=3)
        got: list[int] = []

        async def produce(start: int) -> None:
            for item in range(start, start + 100):
                await queue.put(item)

        consumers = [await spawn(collect(queue, got)) for _ in range(4)]
        producers = [await spawn(produce(100 * number)) for number in range(5)]
        for producer in producers:
            await producer.join()
        queue.close()
        for consumer in consumers:
            await consumer.join()
        return sorted(got)

    assert flowno.run(main()) == list(range(500))
