"""The queues: what is put is got once, in order, and nothing is lost on the way."""

import copy
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator
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
    WouldBlockError,
    move_on_after,
    sleep,
    spawn,
)
from tests.support.fairness import check_it_gives_way
from tests.support.schedules import Model, direct, on_every_seed, see_out, turns

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
        assert full.items == [0]  # and not what somebody waited to put
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


@each_queue
def test_an_iteration_that_waits_ends_when_the_queue_is_closed(kind: type[Any]) -> None:
    async def main() -> None:
        queue, got = kind(), []
        tasks = [await spawn(collect(queue, got)) for _ in range(2)]
        queue.close()
        queue.close()
        for task in tasks:
            await task.join()
        assert got == []

    flowno.run(main())


@each_queue
def test_falsy_items_are_items(kind: type[Any]) -> None:
    async def main() -> None:
        queue = kind()
        for falsy in (None, 0, "", ()):
            getter, peeker = await spawn(queue.get()), await spawn(queue.peek())
            queue.put_nowait(falsy)
            assert await getter.join() is await peeker.join() is falsy
            await queue.put(falsy)
            assert await queue.peek() is falsy
            assert queue.get_nowait() is falsy

    flowno.run(main())


@each_queue
def test_who_peeks_gets_the_item_that_ended_the_wait_and_takes_nothing(kind: type[Any]) -> None:
    async def main() -> None:
        queue = kind()
        peekers = [await spawn(queue.peek()) for _ in range(3)]
        await peekers[1].cancel()
        queue.put_nowait("item")
        assert [await peekers[number].join() for number in (0, 2)] == ["item", "item"]
        assert list(queue.items) == ["item"]

    flowno.run(main())


@each_queue
def test_a_put_that_was_let_in_is_not_undone_where_its_task_is_cancelled(kind: type[Any]) -> None:
    async def main() -> None:
        queue = kind(maxsize=1)
        queue.put_nowait(0)
        putter = await spawn(queue.put(1))
        assert queue.get_nowait() == 0
        putter.cancel()
        assert await putter.join() is None
        assert list(queue.items) == [1]

    flowno.run(main())


@each_queue
def test_the_size_of_a_queue_is_read_and_not_set(kind: type[Any]) -> None:
    assert kind(maxsize=3).maxsize == 3
    assert kind().maxsize is None
    with pytest.raises(AttributeError):
        kind().maxsize = 3
    with pytest.raises(TypeError, match="maxsize must be an int"):
        kind(maxsize=2.5)


# --- what a queue cannot keep ----------------------------------------------------------------------------------------


class Incomparable:
    def __repr__(self) -> str:
        return "incomparable"


def test_an_item_that_cannot_be_compared_is_an_error_of_its_put_and_leaves_no_trace() -> None:
    async def main() -> None:
        queue: AsyncPriorityQueue[Any] = AsyncPriorityQueue()
        for item in (5, 3, 4, 1, 2):
            queue.put_nowait(item)
        for _ in range(100):
            with pytest.raises(TypeError, match="not supported"):
                await queue.put(Incomparable())
        with pytest.raises(TypeError, match="not supported"):
            queue.put_nowait("text")
        assert queue.items == [1, 2, 3, 4, 5]
        for item in range(1, 6):
            assert await queue.get() == item
            queue.task_done()
        await queue.join()

    flowno.run(main())


@pytest.mark.parametrize("count", [2, 3, 10, 3000])
def test_loads_of_equal_priority_that_cannot_be_compared_are_refused_whatever_else_is_there(count: int) -> None:
    """A heap would find out when they are to be got, and lose an item."""
    numbers = list(range(count))
    random.Random(1).shuffle(numbers)
    queue: AsyncPriorityQueue[Any] = AsyncPriorityQueue()
    for number in numbers:
        queue.put_nowait((number, Incomparable()))
    for number in (0, count // 2, count - 1):
        with pytest.raises(TypeError, match="not supported"):
            queue.put_nowait((number, Incomparable()))
    assert [queue.get_nowait()[0] for _ in range(count)] == list(range(count))


@pytest.mark.parametrize("count", [1, 100, 5000])
def test_a_priority_queue_of_any_length_sorts_and_keeps_the_order_of_equal_items(count: int) -> None:
    class Item:
        def __init__(self, priority: int, number: int) -> None:
            self.key = priority, number

        def __lt__(self, other: "Item") -> bool:
            return self.key[0] < other.key[0]

    rng = random.Random(count)
    queue: AsyncPriorityQueue[Item] = AsyncPriorityQueue()
    expected = []
    for number in range(count):
        item = Item(rng.randrange(20), number)
        queue.put_nowait(item)
        expected.append(item)
        if rng.random() < 0.2:
            first = min(expected, key=lambda item: item.key)
            expected.remove(first)
            assert queue.get_nowait() is first
    assert queue.items == sorted(expected, key=lambda item: item.key)
    assert [queue.get_nowait() for _ in range(len(queue))] == sorted(expected, key=lambda item: item.key)
    assert len(queue) == 0


def test_who_waits_for_room_with_an_item_that_cannot_be_compared_gets_the_error_and_not_who_makes_room() -> None:
    async def main() -> None:
        queue: AsyncPriorityQueue[Any] = AsyncPriorityQueue(maxsize=2)
        queue.put_nowait(1)
        queue.put_nowait(2)
        refused, put = await spawn(queue.put("text")), await spawn(queue.put(3))
        assert await queue.get() == 1
        with pytest.raises(TypeError, match="not supported"):
            await refused.join()
        await put.join()
        assert queue.items == [2, 3]

    flowno.run(main())


@pytest.mark.parametrize("full", [False, True], ids=["room", "full"])
def test_an_item_that_cannot_be_hashed_is_an_error_of_its_put_and_leaves_no_trace(full: bool) -> None:
    async def main() -> None:
        set_queue: AsyncSetQueue[Any] = AsyncSetQueue(maxsize=1 if full else None)
        map_queue: AsyncMapQueue[Any, Any] = AsyncMapQueue(maxsize=1 if full else None)
        set_queue.put_nowait(1)
        map_queue.put_nowait((1, "cause"))
        for _ in range(100):
            with pytest.raises(TypeError, match="unhashable"):
                await set_queue.put([])
            with pytest.raises(TypeError, match="unhashable"):
                await map_queue.put(([], "cause"))
        with pytest.raises(TypeError, match="unhashable"):
            set_queue.put_nowait([])
        for wrong in (5, (1, 2, 3)):
            with pytest.raises((TypeError, ValueError), match="unpack"):
                await map_queue.put(wrong)  # type: ignore[arg-type]
        assert set_queue.items == [1]
        assert map_queue.items == [(1, ["cause"])]
        assert not set_queue.putters
        assert not map_queue.putters

    flowno.run(main())


# --- items that come to others ---------------------------------------------------------------------------------------


def test_an_item_that_comes_while_others_wait_to_put_the_same_is_put_once() -> None:
    async def main() -> None:
        queue: AsyncSetQueue[int] = AsyncSetQueue(maxsize=1)
        queue.put_nowait(1)
        putters = [await spawn(queue.put(item)) for item in (2, 3, 2)]
        assert queue.get_nowait() == 1
        await putters[0].join()
        await putters[2].join()  # it needs no room any more
        assert not putters[1].is_finished
        assert queue.get_nowait() == 2
        await putters[1].join()
        assert queue.items == [3]

    flowno.run(main())


def test_a_cause_that_waits_goes_to_its_key_as_soon_as_that_is_in_the_queue() -> None:
    async def main() -> None:
        queue: AsyncMapQueue[str, int] = AsyncMapQueue(maxsize=1)
        assert queue.put_nowait(("a", 1)) is True
        assert queue.put_nowait(("a", 2)) is False
        putters = [await spawn(queue.put(item)) for item in (("b", 3), ("c", 4), ("b", 5))]
        with pytest.raises(QueueFullError):
            queue.put_nowait(("b", 6))
        assert queue.get_nowait() == ("a", [1, 2])
        await putters[2].join()
        assert queue.items == [("b", [3, 5])]
        await putters[1].cancel()
        assert await queue.get() == ("b", [3, 5])
        assert len(queue) == 0

    flowno.run(main())


@pytest.mark.parametrize("how", ["cancelled", "closed"])
def test_a_put_that_ends_without_its_item_in_a_map_queue_swallows_no_later_cause(how: str) -> None:
    async def main() -> None:
        queue: AsyncMapQueue[str, int] = AsyncMapQueue(maxsize=1)
        await queue.put(("a", 1))
        putter = await spawn(queue.put(("b", 2)))
        if how == "cancelled":
            await putter.cancel()
        else:
            queue.close()
            with pytest.raises(QueueClosedError):
                await putter.join()
        assert queue.items == [("a", [1])]
        assert "b" not in queue
        await queue.get()
        if how == "cancelled":
            await queue.put(("b", 3))
            assert await queue.get() == ("b", [3])

    flowno.run(main())


@pytest.mark.parametrize(
    ("kind", "items"), [(AsyncSetQueue, [1, 2, 1]), (AsyncMapQueue, [(1, "a"), (2, "b"), (1, "c")])]
)
def test_what_came_to_another_item_is_done_with_that(kind: type[Any], items: list[Any]) -> None:
    async def main() -> None:
        queue = kind()
        for item in items:
            await queue.put(item)
        for _ in range(2):
            await queue.get()
            joiner = await spawn(queue.join())
            assert not joiner.is_finished
            queue.task_done()
        await joiner.join()

    flowno.run(main())


def test_what_a_map_queue_shows_can_be_changed_without_changing_the_queue() -> None:
    async def main() -> None:
        queue: AsyncMapQueue[str, int] = AsyncMapQueue()
        peekers = [await spawn(queue.peek()) for _ in range(2)]
        queue.put_nowait(("a", 1))
        for _, causes in [await peeker.join() for peeker in peekers] + [await queue.peek(), queue.items[0]]:
            causes.clear()
        assert await queue.get() == ("a", [1])

    flowno.run(main())


def test_until_empty_takes_what_is_there_and_closes_the_queue() -> None:
    async def main() -> None:
        queue: AsyncQueue[int] = AsyncQueue()
        for item in range(3):
            queue.put_nowait(item)
        assert [item async for item in queue.until_empty()] == [0, 1, 2]
        assert queue.is_closed()

    flowno.run(main())


def test_until_empty_includes_what_waits_for_room_and_what_is_put_meanwhile() -> None:
    async def main() -> None:
        queue: AsyncQueue[int] = AsyncQueue(maxsize=1)
        queue.put_nowait(0)
        putter = await spawn(queue.put(1))
        got = []
        async for item in queue.until_empty():
            got.append(item)
            if item == 1:
                queue.put_nowait(2)
        await putter.join()
        assert got == [0, 1, 2]

    flowno.run(main())


def test_until_empty_that_is_left_early_leaves_the_queue_open() -> None:
    async def main() -> None:
        queue: AsyncQueue[int] = AsyncQueue()
        for item in range(3):
            queue.put_nowait(item)
        items = queue.until_empty()
        assert await anext(items) == 0
        await items.aclose()  # type: ignore[attr-defined]
        assert not queue.closed
        assert queue.items == [1, 2]

    flowno.run(main())


def test_get_nowait_and_put_nowait_do_not_wait() -> None:
    queue: AsyncQueue[int] = AsyncQueue(maxsize=1)
    with pytest.raises(QueueEmptyError):
        queue.get_nowait()
    queue.put_nowait(1)
    with pytest.raises(QueueFullError):
        queue.put_nowait(2)
    assert queue.get_nowait() == 1


def test_an_empty_and_a_full_queue_are_errors_of_what_would_block_like_a_lock_that_another_has() -> None:
    queue: AsyncQueue[int] = AsyncQueue(maxsize=1)
    with pytest.raises(WouldBlockError) as empty:
        queue.get_nowait()
    queue.put_nowait(1)
    with pytest.raises(WouldBlockError) as full:
        queue.put_nowait(2)
    assert (type(empty.value), type(full.value)) == (QueueEmptyError, QueueFullError)
    assert isinstance(empty.value, LookupError)


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


@pytest.mark.parametrize("what", ["put", "get", "peek", "join", "close", "iteration"])
def test_no_operation_that_completes_at_once_starves_the_others(what: str) -> None:
    async def main() -> None:
        queue, closed, empty = AsyncQueue[int](), AsyncQueue[int](), AsyncQueue[int]()
        for item in range(10_000):
            queue.put_nowait(item)
        closed.close()
        operations: dict[str, Callable[[], Awaitable[object]]] = {
            "put": lambda: queue.put(1),
            "get": queue.get,
            "peek": queue.peek,
            "join": empty.join,
            "close": closed.close,
            "iteration": lambda: anext(queue),
        }
        await check_it_gives_way(operations[what])

    flowno.run(main())


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("put", QueueClosedError),
        ("get", QueueClosedError),
        ("peek", QueueClosedError),
        ("iteration", StopAsyncIteration),
    ],
)
def test_no_operation_on_a_closed_queue_starves_the_others(what: str, error: type[Exception]) -> None:
    async def main() -> None:
        queue: AsyncQueue[int] = AsyncQueue()
        queue.close()
        operations: dict[str, Callable[[], Awaitable[object]]] = {
            "put": lambda: queue.put(1),
            "get": queue.get,
            "peek": queue.peek,
            "iteration": lambda: anext(queue),
        }

        async def refused() -> None:
            with pytest.raises(error):
                await operations[what]()

        await check_it_gives_way(refused)

    flowno.run(main())


@pytest.mark.parametrize("full", [False, True], ids=["room", "full"])
@pytest.mark.parametrize("what", ["cannot be hashed", "is there already"])
def test_no_put_of_what_needs_no_room_starves_the_others(what: str, full: bool) -> None:
    async def main() -> None:
        items: AsyncSetQueue[Any] = AsyncSetQueue(maxsize=1 if full else None)
        items.put_nowait(1)

        async def put() -> None:
            if what == "is there already":
                await items.put(1)
            else:
                with pytest.raises(TypeError):
                    await items.put([])

        await check_it_gives_way(put)

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


# --- any schedule ----------------------------------------------------------------------------------------------------

CLOSED = "closed"


class Keeps:
    """How a model keeps the items of one kind of queue."""

    def __init__(self, kind: type[Any]) -> None:
        self.kind = kind
        self.items: list[Any] = []

    def joins(self, item: Any) -> bool:
        if self.kind is AsyncMapQueue:
            return any(key == item[0] for key, _ in self.items)
        return self.kind is AsyncSetQueue and item in self.items

    def add(self, item: Any) -> None:
        if self.kind is AsyncMapQueue:
            for key, causes in self.items:
                if key == item[0]:
                    causes.append(item[1])
                    return
            self.items.append((item[0], [item[1]]))
        elif self.kind is AsyncLifoQueue:
            self.items.insert(0, item)
        elif not self.joins(item):
            self.items.append(item)
            if self.kind is AsyncPriorityQueue:
                self.items.sort()

    def first(self) -> Any:
        return copy.deepcopy(self.items[0])


class Exchange(Model):
    """Who waits at a queue, what is in it, and what those who do not wait any more have got."""

    def __init__(self, kind: type[Any], maxsize: int | None) -> None:
        super().__init__()
        self.maxsize = maxsize
        self.kept = Keeps(kind)
        self.closed = False
        self.getters: list[int] = []
        self.peekers: list[int] = []
        self.putters: list[int] = []
        self.wants_to_put: dict[int, Any] = {}
        self.got: dict[int, Any] = {}

    def queues(self) -> Iterator[list[int]]:
        yield from (self.getters, self.peekers, self.putters)

    def has_room(self) -> bool:
        return self.maxsize is None or len(self.kept.items) < self.maxsize

    def add(self, item: Any) -> None:
        before = len(self.kept.items)
        self.kept.add(item)
        if len(self.kept.items) > before:
            self.got.update((peeker, self.kept.first()) for peeker in self.peekers)
            self.peekers.clear()
            if self.getters:
                self.got[self.getters.pop(0)] = self.kept.items.pop(0)

    def let_in(self, putter: int) -> None:
        self.putters.remove(putter)
        self.got[putter] = None
        self.add(self.wants_to_put[putter])

    def take(self) -> Any:
        item = self.kept.items.pop(0)
        while self.putters and self.has_room():
            self.let_in(self.putters[0])
        for putter in list(self.putters):
            if self.kept.joins(self.wants_to_put[putter]):
                self.let_in(putter)
        return item

    def put(self, number: int, item: Any) -> None:
        if self.closed:
            self.refuse(number)
        elif self.has_room() or self.kept.joins(item):
            self.got[number] = None
            self.add(item)
        else:
            self.wants_to_put[number] = item
            self.wait(self.putters, number)

    def get(self, number: int, peek: bool) -> None:
        if self.kept.items:
            self.got[number] = self.kept.first() if peek else self.take()
        elif self.closed:
            self.refuse(number)
        else:
            self.wait(self.peekers if peek else self.getters, number)

    def refuse(self, number: int) -> None:
        if number not in self.cancelled:
            self.got[number] = CLOSED

    def close(self) -> None:
        self.closed = True
        for queue in self.queues():
            self.got.update((number, CLOSED) for number in queue)
            queue.clear()


@pytest.mark.parametrize("maxsize", [1, 3, None])
@pytest.mark.parametrize("kind", [*PLAIN, AsyncMapQueue])
def test_every_item_is_in_one_pair_of_hands_whatever_happens(kind: type[Any], maxsize: int | None) -> None:
    async def play(rng: random.Random) -> None:
        model, queue = Exchange(kind, maxsize), kind(maxsize)
        serial = itertools.count()

        def some_item() -> Any:
            if kind is AsyncMapQueue:
                return rng.randrange(4), next(serial)
            return rng.randrange(4) if kind is AsyncSetQueue else (rng.randrange(4), next(serial))

        async def put_or_get(number: int, what: float) -> Any:
            if what < 0.4:
                item = some_item()
                model.put(number, item)
                return await queue.put(item)
            model.get(number, peek=what < 0.5)
            return await (queue.peek() if what < 0.5 else queue.get())

        def try_to(number: int, what: float) -> None:
            try:
                if what < 0.9:
                    item = some_item()
                    model.put(number, item)
                    queue.put_nowait(item)
                    got = None
                else:
                    model.get(number, peek=False)
                    got = queue.get_nowait()
            except (QueueFullError, QueueEmptyError, QueueClosedError) as error:
                if isinstance(error, QueueClosedError):
                    assert model.closed
                    model.got.pop(number, None)
                else:
                    assert number not in model.got
                    for waiting in model.queues():
                        if number in waiting:
                            waiting.remove(number)
            else:
                assert model.got.pop(number) == got

        async def work(number: int) -> None:
            for _ in range(rng.randrange(1, 6)):
                await turns(rng)
                what = rng.random()
                if what >= 0.8:
                    try_to(number, what)
                    continue
                try:
                    got = await put_or_get(number, what)
                except QueueClosedError:
                    got = CLOSED
                except TaskCancelled:
                    assert number not in model.got, "a cancelled wait has lost what it was given"
                    raise
                assert model.got.pop(number) == got

        def compare() -> None:
            assert list(queue.items) == model.kept.items
            assert [len(queue.getters), len(queue.peekers), len(queue.putters)] == [
                len(waiting) for waiting in model.queues()
            ]

        def interfere() -> None:
            if rng.random() < 0.02:
                model.close()
                queue.close()

        tasks = await direct(rng, model, work, compare, interfere)
        model.close()
        queue.close()
        await see_out(model, tasks)
        compare()
        assert not model.got

    on_every_seed(play)
