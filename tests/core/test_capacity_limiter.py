"""CapacityLimiter: as many tokens as there are, one to a borrower, in turn, and none is lost or lent twice."""

from collections.abc import Callable
from math import inf, nan
from typing import Any

import pytest

import flowno
from flowno import (
    BusyResourceError,
    CapacityLimiter,
    EventLoopError,
    NotOwnerError,
    TaskCancelled,
    TaskHandle,
    WouldBlockError,
    sleep,
    spawn,
)
from tests.support.tasks import FOREVER

pytestmark = pytest.mark.usefixtures("backend")


def test_no_more_tokens_are_borrowed_than_there_are() -> None:
    most = 0

    async def work(limiter: CapacityLimiter) -> None:
        nonlocal most
        async with limiter:
            most = max(most, limiter.borrowed_tokens)
            for _ in range(3):
                await sleep(0)

    async def main() -> None:
        limiter = CapacityLimiter(3)
        for task in [await spawn(work(limiter)) for _ in range(10)]:
            await task.join()
        assert (limiter.borrowed_tokens, limiter.available_tokens) == (0, 3)

    flowno.run(main())
    assert most == 3


def test_tokens_are_handed_over_in_the_order_in_which_they_were_asked_for() -> None:
    async def main() -> list[int]:
        limiter, order = CapacityLimiter(1), []

        async def work(number: int) -> None:
            async with limiter:
                order.append(number)
                await sleep(0)

        for task in [await spawn(work(number)) for number in range(5)]:
            await task.join()
        return order

    assert flowno.run(main()) == [0, 1, 2, 3, 4]


def test_a_token_belongs_to_who_has_waited_from_the_moment_in_which_it_is_given_back() -> None:
    """Not only when its task runs again: nobody can borrow it in between, and it is counted once."""

    async def main() -> None:
        limiter = CapacityLimiter(1)
        await limiter.acquire()
        waiter = await spawn(limiter.acquire())
        limiter.release()
        assert limiter.borrowed_tokens == 1
        with pytest.raises(WouldBlockError):
            limiter.acquire_nowait()
        other = await spawn(limiter.acquire())
        assert waiter.is_finished
        assert not other.is_finished
        limiter.release_on_behalf_of(waiter)
        await other.join()
        assert limiter.borrowed_tokens == 1

    flowno.run(main())


def test_a_cancelled_waiter_leaves_the_queue_and_the_next_one_gets_the_token() -> None:
    async def main() -> None:
        limiter = CapacityLimiter(1)
        await limiter.acquire()
        first, second = await spawn(limiter.acquire()), await spawn(limiter.acquire())
        await first.cancel()
        limiter.release()
        await second.join()
        assert limiter.borrowed_tokens == 1

    flowno.run(main())


def test_a_task_that_is_cancelled_just_after_it_was_given_the_token_has_it_until_it_gives_it_back() -> None:
    async def work(limiter: CapacityLimiter, seen: list[str]) -> None:
        async with limiter:
            seen.append("has it")
            try:
                await sleep(FOREVER)
            except TaskCancelled:
                seen.append("cancelled")
                raise

    async def main() -> None:
        limiter = CapacityLimiter(1)
        seen: list[str] = []
        await limiter.acquire()
        waiter = await spawn(work(limiter, seen))
        limiter.release()
        await waiter.cancel()
        assert seen == ["has it", "cancelled"]
        assert limiter.borrowed_tokens == 0

    flowno.run(main())


def test_a_borrower_has_one_token_at_most() -> None:
    async def main() -> None:
        limiter = CapacityLimiter(5)
        async with limiter:
            with pytest.raises(BusyResourceError, match="has a token"):
                await limiter.acquire()
            with pytest.raises(BusyResourceError, match="has a token"):
                limiter.acquire_nowait()
            assert limiter.borrowed_tokens == 1

    flowno.run(main())


def test_two_tasks_that_wait_for_the_same_borrower_are_given_one_token() -> None:
    async def main() -> None:
        limiter = CapacityLimiter(1)
        await limiter.acquire()
        first = await spawn(limiter.acquire_on_behalf_of("x"))
        second = await spawn(limiter.acquire_on_behalf_of("x"))
        third = await spawn(limiter.acquire_on_behalf_of("y"))
        limiter.total_tokens = 3
        await first.join()
        with pytest.raises(BusyResourceError, match="'x' has a token"):
            await second.join()
        await third.join()
        assert limiter.borrowed_tokens == 3

    flowno.run(main())


def test_any_object_can_be_a_borrower_and_anybody_can_give_back_for_it() -> None:
    async def main() -> None:
        limiter = CapacityLimiter(2)
        await limiter.acquire_on_behalf_of("one")
        limiter.acquire_on_behalf_of_nowait(("another", 1))
        waiter = await spawn(limiter.acquire())
        assert not waiter.is_finished
        await limiter.release_on_behalf_of("one")
        await waiter.join()
        limiter.release_on_behalf_of(("another", 1))
        assert limiter.borrowed_tokens == 1
        with pytest.raises(TypeError, match="unhashable"):
            await limiter.acquire_on_behalf_of([])

    flowno.run(main())


def test_what_was_not_borrowed_cannot_be_given_back() -> None:
    async def main() -> None:
        limiter = CapacityLimiter(2)
        with pytest.raises(NotOwnerError, match="it has none"):
            limiter.release()
        limiter.acquire_on_behalf_of_nowait("one")
        with pytest.raises(NotOwnerError, match="'two' cannot give back"):
            limiter.release_on_behalf_of("two")
        assert limiter.borrowed_tokens == 1

    flowno.run(main())


def test_without_waiting_there_is_an_error_where_there_is_no_token() -> None:
    async def main() -> None:
        limiter = CapacityLimiter(1)
        limiter.acquire_nowait()
        with pytest.raises(WouldBlockError, match="no token for 'x'"):
            limiter.acquire_on_behalf_of_nowait("x")
        limiter.release()
        limiter.acquire_on_behalf_of_nowait("x")

    flowno.run(main())


def test_more_tokens_let_in_those_who_wait_and_fewer_take_none_away() -> None:
    async def hold(limiter: CapacityLimiter) -> None:
        async with limiter:
            await sleep(FOREVER)

    async def main() -> None:
        limiter = CapacityLimiter(1)
        tasks: list[TaskHandle[Any]] = [await spawn(hold(limiter)) for _ in range(5)]
        assert limiter.borrowed_tokens == 1
        limiter.total_tokens = 3
        assert limiter.borrowed_tokens == 3
        limiter.total_tokens = 1
        assert (limiter.total_tokens, limiter.borrowed_tokens, limiter.available_tokens) == (1, 3, -2)
        await tasks[0].cancel()
        await tasks[1].cancel()
        assert limiter.borrowed_tokens == 1
        await tasks[2].cancel()
        assert limiter.borrowed_tokens == 1  # the fourth has it
        limiter.total_tokens = inf
        assert (limiter.borrowed_tokens, limiter.available_tokens) == (2, inf)

    flowno.run(main())


@pytest.mark.parametrize(
    ("tokens", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (nan, TypeError), ("2", TypeError)]
)
def test_the_number_of_tokens_is_a_whole_one_from_1_on(tokens: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="total_tokens must be"):
        CapacityLimiter(tokens)
    limiter = CapacityLimiter(7)
    with pytest.raises(error, match="total_tokens must be"):
        limiter.total_tokens = tokens
    assert limiter.total_tokens == 7


def test_a_token_stays_borrowed_where_the_task_that_has_it_ends() -> None:
    async def main() -> None:
        limiter = CapacityLimiter(1)
        task = await spawn(limiter.acquire())
        await task.join()
        assert limiter.borrowed_tokens == 1
        limiter.release_on_behalf_of(task)
        assert limiter.borrowed_tokens == 0

    flowno.run(main())


def test_a_task_that_finds_a_token_each_time_gives_way_to_the_others() -> None:
    async def main() -> None:
        limiter = CapacityLimiter(1)
        ran = []

        async def other() -> None:
            await sleep(0)
            ran.append("other")

        await spawn(other())
        for _ in range(200):
            await limiter.acquire()
            limiter.release()
        assert ran == ["other"]

    flowno.run(main())


@pytest.mark.parametrize(
    "use", [CapacityLimiter.acquire_nowait, CapacityLimiter.release, lambda limiter: limiter.acquire().send(None)]
)
def test_the_running_task_is_found_in_a_task_only(use: Callable[[CapacityLimiter], object]) -> None:
    limiter, refused = CapacityLimiter(1), []

    def use_it() -> None:
        with pytest.raises(EventLoopError, match=r"CapacityLimiter\.\w+\(\) was called outside of a task"):
            use(limiter)
        refused.append(True)

    async def main() -> None:
        loop = flowno.current_event_loop()
        assert loop is not None
        loop.call_soon_threadsafe(use_it)  # in the loop, between two steps
        await sleep(0)

    use_it()
    flowno.run(main())
    assert len(refused) == 2
    assert limiter.borrowed_tokens == 0


def test_the_statistics_say_who_has_a_token_and_how_many_wait() -> None:
    async def main() -> None:
        limiter = CapacityLimiter(1)
        limiter.acquire_on_behalf_of_nowait("x")
        waiter = await spawn(limiter.acquire())
        assert limiter.statistics() == (1, 1, ["x"], 1)
        assert limiter.statistics()._fields == ("borrowed_tokens", "total_tokens", "borrowers", "tasks_waiting")
        limiter.release_on_behalf_of("x")
        assert limiter.statistics().borrowers == [waiter]
        assert limiter.statistics().tasks_waiting == 0

    flowno.run(main())


def test_the_repr_says_how_many_are_borrowed() -> None:
    limiter = CapacityLimiter(3)
    limiter.acquire_on_behalf_of_nowait("x")
    assert repr(limiter) == "<CapacityLimiter 1 of 3 borrowed, 0 waiting>"
