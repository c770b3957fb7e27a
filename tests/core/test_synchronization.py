"""Events, locks, conditions, semaphores, latches, barriers: fair, and nothing is lost where a task is cancelled."""

import gc
import itertools
import logging
import random
import signal
import threading
import types
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import pytest

import flowno
from flowno import (
    AsyncQueue,
    Barrier,
    BrokenBarrierError,
    BrokenResourceError,
    BusyResourceError,
    CapacityLimiter,
    Condition,
    CountdownLatch,
    Event,
    EventLoop,
    EventLoopError,
    Lock,
    NotOwnerError,
    Semaphore,
    TaskCancelled,
    TaskHandle,
    WouldBlockError,
    current_event_loop,
    current_task,
    sleep,
    spawn,
)
from flowno.core.event_loop.commands import (
    BarrierWaitCommand,
    Command,
    ConditionNotifyCommand,
    ConditionWaitCommand,
    EventSetCommand,
    EventWaitCommand,
    LockAcquireCommand,
    LockReleaseCommand,
    QueueGetCommand,
    QueuePeekCommand,
    QueuePutCommand,
    SemaphoreAcquireCommand,
)
from tests.support.fairness import check_it_gives_way
from tests.support.schedules import Model, direct, on_every_seed, see_out, turns
from tests.support.tasks import FOREVER

pytestmark = pytest.mark.usefixtures("backend")


@types.coroutine
def ask(command: Command) -> Any:
    """Yield a command by hand."""
    return (yield command)


async def hold(lock: Lock, release: Event) -> None:
    async with lock:
        await release.wait()


# --- Event -----------------------------------------------------------------------------------------------------------


def test_an_event_wakes_every_waiter_in_the_order_in_which_they_came() -> None:
    async def main() -> list[int]:
        event, woken = Event(), []

        async def wait(number: int) -> None:
            await event.wait()
            woken.append(number)

        tasks = [await spawn(wait(number)) for number in range(5)]
        assert not event.is_set()
        await tasks[2].cancel()
        event.set()
        assert event.is_set()
        for task in tasks[:2] + tasks[3:]:
            await task.join()
        await event.wait()
        return woken

    assert flowno.run(main()) == [0, 1, 3, 4]


def test_set_may_be_awaited_and_be_repeated() -> None:
    async def main() -> None:
        event = Event()
        await event.set()
        await event.set()
        await event.wait()

    flowno.run(main())


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no setitimer")
def test_an_event_that_a_signal_handler_sets_ends_the_wait_of_the_loop() -> None:
    async def main() -> None:
        event = Event()
        before = signal.signal(signal.SIGALRM, lambda *_: event.set())
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            await event.wait()
        finally:
            signal.signal(signal.SIGALRM, before)

    flowno.run(main())


def test_an_event_that_is_set_between_the_look_and_the_wait_is_not_missed() -> None:
    """As a signal handler may do it."""

    async def main() -> None:
        event = Event()
        waiting = event.wait()
        command = waiting.send(None)  # it has looked
        event.set()
        await ask(command)
        assert not event.waiters
        with pytest.raises(StopIteration):
            waiting.send(None)

    flowno.run(main())


def test_an_event_tells_who_waits() -> None:
    async def main() -> None:
        event = Event()
        tasks = [await spawn(event.wait()) for _ in range(3)]
        assert event.statistics().tasks_waiting == 3
        event.set()
        assert event.statistics().tasks_waiting == 0
        for task in tasks:
            await task.join()

    flowno.run(main())


# --- Lock ------------------------------------------------------------------------------------------------------------


def test_a_lock_is_handed_from_one_to_the_next_in_the_order_in_which_they_came() -> None:
    async def main() -> list[int]:
        lock, order = Lock(), []

        async def work(number: int) -> None:
            async with lock:
                order.append(number)
                await sleep(0)
                assert lock.is_locked()

        tasks = [await spawn(work(number)) for number in range(5)]
        for task in tasks:
            await task.join()
        assert not lock.is_locked()
        return order

    assert flowno.run(main()) == list(range(5))


def test_a_lock_that_is_handed_over_cannot_be_taken_in_between() -> None:
    async def main() -> list[str]:
        lock, order = Lock(), []

        async def waiter() -> None:
            async with lock:
                order.append("waiter")

        await lock.acquire()
        task = await spawn(waiter())
        lock.release()
        async with lock:
            order.append("main")
        await task.join()
        return order

    assert flowno.run(main()) == ["waiter", "main"]


def test_a_task_that_is_cancelled_while_it_waits_for_a_lock_leaves_the_queue() -> None:
    async def main() -> None:
        lock, release = Lock(), Event()
        holder = await spawn(hold(lock, release))
        first, second = await spawn(lock.acquire()), await spawn(hold(lock, release))
        await first.cancel()
        release.set()
        await holder.join()
        await second.join()
        assert not lock.is_locked()

    flowno.run(main())


def test_a_task_that_is_cancelled_just_after_it_was_given_the_lock_has_it_until_it_releases_it() -> None:
    async def main() -> None:
        lock, release, seen = Lock(), Event(), []

        async def waiter() -> None:
            async with lock:
                seen.append("has it")
                await sleep(FOREVER)

        holder = await spawn(hold(lock, release))
        task = await spawn(waiter())
        await sleep(0)
        release.set()
        await holder.join()
        assert await task.cancel() is None
        assert seen == ["has it"]
        assert not lock.is_locked()

    flowno.run(main())


@pytest.mark.parametrize("primitive", [Lock, Semaphore])
def test_whoever_waits_behind_a_task_that_is_cancelled_as_it_is_its_turn_comes_next(
    primitive: type[Lock] | type[Semaphore],
) -> None:
    """The one that is cancelled was given the lock and has not run yet; its block ends at its next wait."""

    async def main() -> list[str]:
        guard, log = primitive(), []

        async def work(name: str) -> None:
            async with guard:
                log.append(name)
                await sleep(0)
                log.append(f"{name} goes on")

        async with guard:
            first, second, third = [await spawn(work(name)) for name in ("first", "second", "third")]
        first.cancel()  # it was given the lock a moment ago
        second.cancel()  # it waits still
        await third.join()
        for task in (first, second):
            with pytest.raises(TaskCancelled):
                await task.join()
        async with guard:
            return log

    assert flowno.run(main()) == ["first", "third", "third goes on"]


def test_who_does_not_have_a_lock_cannot_release_it_and_who_has_it_cannot_acquire_it() -> None:
    async def main() -> None:
        lock, release = Lock(), Event()
        with pytest.raises(NotOwnerError, match="nobody has it"):
            lock.release()
        holder = await spawn(hold(lock, release))
        await sleep(0)
        with pytest.raises(NotOwnerError, match="hold alive"):
            lock.release()
        release.set()
        await holder.join()
        async with lock:
            for _ in range(100):  # and failing again and again keeps nobody else from running
                with pytest.raises(BusyResourceError, match="has already"):
                    await lock.acquire()

    flowno.run(main())


async def take_and_go(lock: Lock, release: Event) -> None:
    await lock.acquire()
    await release.wait()


def test_a_lock_whose_owner_has_ended_is_broken_for_those_who_wait_and_those_who_come() -> None:
    async def main() -> None:
        lock, release = Lock(), Event()
        owner = await spawn(take_and_go(lock, release))
        waiters = [await spawn(lock.acquire()) for _ in range(3)]
        await sleep(0)
        release.set()
        for waiter in waiters:
            with pytest.raises(BrokenResourceError, match=r"take_and_go finished> ended without releasing"):
                await waiter.join()
        await owner.join()
        assert lock.is_locked()
        assert lock.statistics() == flowno.LockStatistics(locked=True, owner=None, tasks_waiting=0)
        with pytest.raises(BrokenResourceError, match="go on with a new lock"):
            await lock.acquire()
        with pytest.raises(BrokenResourceError):
            lock.acquire_nowait()
        with pytest.raises(NotOwnerError):
            lock.release()
        assert "broken by <TaskHandle take_and_go finished>" in repr(lock)

    flowno.run(main())


@pytest.mark.parametrize("how", ["cancelled", "failed"])
def test_a_lock_breaks_however_its_owner_ends(how: str) -> None:
    async def main() -> None:
        lock = Lock()

        async def take() -> None:
            await lock.acquire()
            if how == "failed":
                raise ValueError("failed")
            await sleep(FOREVER)

        owner = await spawn(take())
        if how == "failed":
            with pytest.raises(ValueError, match="failed"):
                await owner.join()
        else:
            await owner.cancel()
        with pytest.raises(BrokenResourceError, match=f"take {how}"):
            await lock.acquire()

    flowno.run(main())


def test_a_task_that_was_given_the_lock_and_ends_at_once_breaks_it_for_the_next() -> None:
    async def main() -> None:
        lock, release = Lock(), Event()
        holder = await spawn(hold(lock, release))
        first, second = await spawn(lock.acquire()), await spawn(lock.acquire())
        await sleep(0)
        release.set()
        await holder.join()
        await first.join()
        with pytest.raises(BrokenResourceError):
            await second.join()

    flowno.run(main())


def test_acquire_nowait_takes_a_free_lock_and_no_other() -> None:
    async def main() -> None:
        lock, release = Lock(), Event()
        holder = await spawn(hold(lock, release))
        with pytest.raises(WouldBlockError, match="hold alive"):
            lock.acquire_nowait()
        release.set()
        await holder.join()
        lock.acquire_nowait()
        assert lock.owner is current_event_loop().running_task  # type: ignore[union-attr]
        with pytest.raises(BusyResourceError):
            lock.acquire_nowait()
        lock.release()

    flowno.run(main())
    with pytest.raises(EventLoopError, match=r"acquire_nowait\(\) was called outside of a task"):
        Lock().acquire_nowait()


def test_acquire_nowait_does_not_overtake_those_who_wait() -> None:
    async def main() -> None:
        lock, release = Lock(), Event()
        await lock.acquire()
        waiter = await spawn(hold(lock, release))
        lock.release()
        with pytest.raises(WouldBlockError):
            lock.acquire_nowait()
        release.set()
        await waiter.join()

    flowno.run(main())


def test_a_lock_tells_who_has_it_and_who_waits() -> None:
    async def main() -> None:
        lock, release = Lock(), Event()
        assert lock.statistics() == flowno.LockStatistics(locked=False, owner=None, tasks_waiting=0)
        holder = await spawn(hold(lock, release))
        waiter = await spawn(hold(lock, release))
        assert lock.statistics() == flowno.LockStatistics(locked=True, owner=holder, tasks_waiting=1)
        release.set()
        await waiter.join()

    flowno.run(main())


async def in_a_lock() -> None:
    async with Lock():
        await sleep(FOREVER)


async def in_a_condition() -> None:
    async with Condition() as condition:
        await condition.wait()


async def in_a_limiter() -> None:
    async with CapacityLimiter(1):
        await sleep(FOREVER)


@pytest.mark.not_watched(reason="a dropped loop whose tasks are watched goes when the garbage collector comes")
@pytest.mark.parametrize("work", [in_a_lock, in_a_condition, in_a_limiter])
def test_a_loop_that_is_dropped_with_its_tasks_in_the_middle_says_nothing(
    caplog: pytest.LogCaptureFixture, work: Callable[[], Coroutine[Any, Any, None]]
) -> None:

    async def main() -> None:
        await spawn(work())

    loop = EventLoop()
    loop.run_until_complete(main(), wait_for_spawned_tasks=False)
    with caplog.at_level(logging.WARNING, logger="flowno"):
        del loop
        gc.collect()  # the lock knows its owner, which knows the coroutine, which knows the lock
    assert not caplog.records


@pytest.mark.parametrize("awaited", [False, True])
def test_a_task_that_is_closed_where_it_stands_releases_its_locks_itself(
    caplog: pytest.LogCaptureFixture, awaited: bool
) -> None:
    lock, handled = Lock(), []

    async def stubborn() -> None:
        await lock.acquire()
        try:
            while True:
                try:
                    await Event().wait()
                except TaskCancelled as error:
                    handled.append(error)  # to have it is to be still at work on it
        finally:
            released = lock.release()
            if awaited:
                await released

    async def main() -> None:
        await spawn(stubborn())

    flowno.run(main())
    assert [record.getMessage().partition("> ")[2] for record in caplog.records] == [
        "has swallowed its cancellation 3 times; it is closed"
    ]
    assert not lock.is_locked()


@pytest.mark.not_watched(reason="a dropped loop whose tasks are watched goes when the garbage collector comes")
def test_what_a_task_does_while_its_dropped_loop_closes_it_it_does_as_itself() -> None:
    seen = []

    async def work() -> None:
        try:
            await Event().wait()
        finally:
            seen.append(getattr(current_task(), "__name__", None))

    async def main() -> None:
        await spawn(work())

    loop = EventLoop()
    loop.run_until_complete(main(), wait_for_spawned_tasks=False)
    del loop
    gc.collect()  # a loop and its living tasks know each other
    assert seen == ["work"]
    assert current_event_loop() is None


# --- Condition -------------------------------------------------------------------------------------------------------


async def waiting(condition: Condition, log: list[Any], name: object, has_lock: bool = True) -> None:
    async with condition:
        try:
            await condition.wait()
            log.append(name)
        finally:
            running = current_event_loop()
            assert running is not None
            assert (condition.lock.owner is running.running_task) is has_lock


def test_notify_wakes_as_many_as_it_says_and_those_that_came_first() -> None:
    async def main() -> list[int]:
        condition, log = Condition(), []
        tasks = [await spawn(waiting(condition, log, number)) for number in range(6)]
        await sleep(0)
        for n, total in ((1, 1), (2, 3), (0, 3), (10, 6)):
            async with condition:
                condition.notify(n)
            for task in tasks[:total]:
                await task.join()
            assert len(log) == total
        return log

    assert flowno.run(main()) == list(range(6))


def test_notify_all_wakes_everyone() -> None:
    async def main() -> None:
        condition, log = Condition(), []
        tasks = [await spawn(waiting(condition, log, number)) for number in range(4)]
        await sleep(0)
        async with condition:
            await condition.notify_all()
            assert log == []  # the lock is still ours
        for task in tasks:
            await task.join()
        assert log == list(range(4))

    flowno.run(main())


def test_a_cancelled_wait_has_the_lock_again_before_it_raises() -> None:
    async def main() -> None:
        condition, log, release = Condition(), [], Event()
        task = await spawn(waiting(condition, log, "never"))
        await sleep(0)
        holder = await spawn(hold(condition.lock, release))
        await sleep(0)
        cancellation = task.cancel()
        for _ in range(10):
            await sleep(0)
        assert not task.is_cancelled  # it waits for the lock
        task.cancel()
        release.set()
        assert await cancellation is None
        await holder.join()
        assert log == []
        assert not condition.lock.is_locked()

    flowno.run(main())


def test_a_notification_is_not_lost_where_the_task_that_got_it_is_cancelled() -> None:
    async def main() -> None:
        condition, log = Condition(), []
        first = await spawn(waiting(condition, log, "first"))
        second = await spawn(waiting(condition, log, "second"))
        await sleep(0)
        async with condition:
            condition.notify()
            first.cancel()
        assert await first.join() is None  # it was notified, and came to no other wait
        assert log == ["first"]
        async with condition:
            condition.notify()
        await second.join()

    flowno.run(main())


def test_a_condition_needs_its_lock() -> None:
    async def main() -> None:
        condition = Condition(lock := Lock())
        assert condition.lock is lock
        for operation in (condition.notify, condition.notify_all):
            with pytest.raises(NotOwnerError):
                operation()
        with pytest.raises(NotOwnerError):
            await condition.wait()
        with pytest.raises(NotOwnerError):
            await condition.wait_for(lambda: True)
        async with condition:
            with pytest.raises(ValueError, match="n must not be negative"):
                condition.notify(-1)
            with pytest.raises(TypeError, match="n must be an int"):
                condition.notify(1.5)  # type: ignore[arg-type]

    flowno.run(main())
    with pytest.raises(TypeError, match="must be a flowno.Lock"):
        Condition(5)  # type: ignore[arg-type]


def test_wait_for_looks_again_each_time_it_is_notified() -> None:
    async def main() -> list[int]:
        condition, value, seen = Condition(), 0, []

        def look() -> int | None:
            assert condition.lock._is_mine()
            seen.append(value)
            return value if value > 2 else None

        async def wait() -> int | None:
            async with condition:
                return await condition.wait_for(look)

        task = await spawn(wait())
        for value in range(1, 5):  # noqa: B007 - look() sees it
            async with condition:
                condition.notify()
            await sleep(0)
        assert await task.join() == 3
        async with condition:
            assert await condition.wait_for(lambda: "at once") == "at once"
        return seen

    assert flowno.run(main()) == [0, 1, 2, 3]


def test_an_error_of_the_predicate_leaves_the_lock_with_its_task() -> None:
    async def main() -> None:
        condition = Condition()
        async with condition:
            with pytest.raises(ZeroDivisionError):
                await condition.wait_for(lambda: 1 / 0)
            assert condition.lock.is_locked()
        assert not condition.lock.is_locked()

    flowno.run(main())


def test_where_the_lock_breaks_those_who_wait_for_a_condition_are_told_too() -> None:
    """Nobody could ever notify them: that takes the lock."""

    async def main() -> None:
        lock, release = Lock(), Event()
        conditions = Condition(lock), Condition(lock)
        log: list[Any] = []
        tasks = [await spawn(waiting(condition, log, None, has_lock=False)) for condition in conditions]

        async def notify_and_go() -> None:
            await lock.acquire()
            conditions[0].notify()
            await release.wait()

        tasks.append(await spawn(waiting(conditions[1], log, None, has_lock=False)))
        await spawn(notify_and_go())
        release.set()
        for task in tasks:
            with pytest.raises(BrokenResourceError, match="notify_and_go finished"):
                await task.join()
        assert log == []
        assert [condition.statistics().tasks_waiting for condition in conditions] == [0, 0]

    flowno.run(main())


def test_those_who_wait_for_conditions_of_a_broken_lock_are_told_in_the_order_of_the_conditions() -> None:
    async def main() -> None:
        lock, told = Lock(), []
        conditions = [Condition(lock) for _ in range(20)]

        async def wait(number: int) -> None:
            async with conditions[number]:
                try:
                    await conditions[number].wait()
                finally:
                    told.append(number)

        waiters = [await spawn(wait(number)) for number in reversed(range(20))]
        await (await spawn(lock.acquire())).join()
        for waiter in waiters:
            with pytest.raises(BrokenResourceError):
                await waiter.join()
        assert told == list(range(20))

    flowno.run(main())


def test_a_cancellation_is_not_replaced_by_the_error_of_a_broken_lock() -> None:
    async def main() -> None:
        condition, release = Condition(), Event()
        task = await spawn(waiting(condition, [], None, has_lock=False))
        owner = await spawn(take_and_go(condition.lock, release))
        task.cancel()
        await sleep(0)  # it waits for the lock
        release.set()
        await owner.join()
        assert await task.cancel() is None
        assert task.is_cancelled

    flowno.run(main())


def test_a_condition_tells_who_waits_and_the_state_of_its_lock() -> None:
    async def main() -> None:
        condition = Condition()
        task = await spawn(waiting(condition, [], None))
        statistics = condition.statistics()
        assert statistics.tasks_waiting == 1
        assert statistics.lock_statistics == condition.lock.statistics()
        async with condition:
            condition.notify()
            assert condition.statistics().tasks_waiting == 0
            assert condition.statistics().lock_statistics.tasks_waiting == 1
        await task.join()

    flowno.run(main())


def test_a_lock_does_not_keep_its_conditions() -> None:
    import weakref

    lock = Lock()
    condition = weakref.ref(Condition(lock))
    assert condition() is None


# --- Semaphore and CountdownLatch ------------------------------------------------------------------------------------


def test_a_semaphore_lets_as_many_in_as_it_has_permits() -> None:
    async def main() -> int:
        semaphore, inside, most = Semaphore(3), 0, 0

        async def work() -> None:
            nonlocal inside, most
            async with semaphore:
                inside += 1
                most = max(most, inside)
                for _ in range(20):
                    await sleep(0)
                inside -= 1

        tasks = [await spawn(work()) for _ in range(10)]
        for task in tasks:
            await task.join()
        assert semaphore.value == 3
        return most

    assert flowno.run(main()) == 3


def test_a_permit_is_not_lost_where_the_task_that_got_it_is_cancelled() -> None:
    async def main() -> None:
        semaphore = Semaphore(1)
        await semaphore.acquire()

        async def work() -> None:
            async with semaphore:
                await sleep(FOREVER)

        waits, gets = await spawn(work()), await spawn(work())
        await sleep(0)
        await waits.cancel()
        semaphore.release()
        await gets.cancel()
        assert semaphore.value == 1
        assert not semaphore.waiters

    flowno.run(main())


def test_a_permit_that_is_handed_over_cannot_be_taken_in_between() -> None:
    """Else there would be two in, from when it was released to when the task runs that it was given to."""

    async def main() -> list[str]:
        semaphore, log = Semaphore(1), []

        async def work(name: str) -> None:
            async with semaphore:
                log.append(name)

        await semaphore.acquire()
        waiter = await spawn(work("waiter"))
        semaphore.release()
        assert semaphore.value == 0
        async with semaphore:
            log.append("main")
        await waiter.join()
        assert semaphore.value == 1
        return log

    assert flowno.run(main()) == ["waiter", "main"]


def test_a_semaphore_keeps_its_limits() -> None:
    for values in ({"value": -1}, {"value": 3, "max_value": 2}):
        with pytest.raises(ValueError, match="must not be"):
            Semaphore(**values)
    for values in ({"value": 1.5}, {"max_value": 2.5}):
        with pytest.raises(TypeError, match="must be an int"):
            Semaphore(**values)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="more often than acquired"):
        Semaphore(2, max_value=2).release()
    with pytest.raises(AttributeError):
        Semaphore(2).value = 3  # type: ignore[misc]


def test_acquire_nowait_takes_a_permit_that_is_there() -> None:
    async def main() -> None:
        semaphore = Semaphore(1, max_value=1)
        semaphore.acquire_nowait()
        with pytest.raises(WouldBlockError, match="0 free"):
            semaphore.acquire_nowait()
        waiter = await spawn(semaphore.acquire())
        assert semaphore.statistics().tasks_waiting == 1
        semaphore.release()
        with pytest.raises(WouldBlockError):  # it belongs to the one who waited
            semaphore.acquire_nowait()
        await waiter.join()
        semaphore.release()
        assert (semaphore.value, semaphore.max_value) == (1, 1)

    flowno.run(main())


def test_a_latch_opens_when_it_was_counted_down() -> None:
    async def main() -> None:
        latch = CountdownLatch(3)
        task = await spawn(latch.wait())
        for count in (2, 1):
            await latch.count_down()
            await sleep(0)
            assert latch.count == count
            assert not task.is_finished
        latch.count_down()
        await task.join()
        latch.count_down()
        assert latch.count == 0
        await CountdownLatch(0).wait()

    flowno.run(main())
    with pytest.raises(ValueError, match="must not be negative"):
        CountdownLatch(-1)


# --- Barrier ---------------------------------------------------------------------------------------------------------


def test_a_barrier_lets_its_parties_through_together_and_numbers_them() -> None:
    async def main() -> None:
        barrier, passed = Barrier(3), []

        async def work(name: str) -> None:
            async with barrier as index:
                passed.append((name, index))

        tasks = [await spawn(work(name)) for name in "ab"]
        assert (barrier.n_waiting, barrier.parties, barrier.broken) == (2, 3, False)
        assert barrier.statistics() == flowno.BarrierStatistics(tasks_waiting=2, parties=3, broken=False)
        assert passed == []
        tasks.append(await spawn(work("c")))
        assert barrier.n_waiting == 0
        for task in tasks:
            await task.join()
        assert sorted(passed) == [("a", 0), ("b", 1), ("c", 2)]

    flowno.run(main())


def test_a_barrier_serves_one_round_after_the_other_and_nobody_is_a_round_ahead() -> None:
    async def main() -> None:
        barrier, rounds = Barrier(3), [0, 0, 0]

        async def work(number: int) -> None:
            for turn in range(20):
                rounds[number] = turn
                await barrier.wait()
                assert min(rounds) >= turn
                for _ in range(number):
                    await sleep(0)

        for task in [await spawn(work(number)) for number in range(3)]:
            await task.join()

    flowno.run(main())


def test_who_comes_before_those_of_the_last_round_have_run_waits_for_the_next() -> None:
    async def main() -> None:
        barrier = Barrier(2)
        first = await spawn(barrier.wait())
        assert await barrier.wait() == 1
        assert not first.is_finished  # it was let through, and has not run
        second = await spawn(barrier.wait())
        assert barrier.n_waiting == 1
        assert await first.join() == 0
        assert not second.is_finished
        assert await barrier.wait() == 1
        assert await second.join() == 0

    flowno.run(main())


def test_a_task_that_is_cancelled_leaves_the_barrier_and_strands_nobody() -> None:
    async def main() -> None:
        barrier = Barrier(3)
        leaves, stays = await spawn(barrier.wait()), await spawn(barrier.wait())
        await leaves.cancel()
        assert barrier.n_waiting == 1
        other = await spawn(barrier.wait())
        assert barrier.n_waiting == 2
        assert await barrier.wait() == 2
        assert [await task.join() for task in (stays, other)] == [0, 1]

    flowno.run(main())


def test_a_task_that_is_cancelled_just_after_it_was_let_through_has_its_number() -> None:
    async def main() -> None:
        barrier = Barrier(2)
        task = await spawn(barrier.wait())
        await barrier.wait()
        task.cancel()
        assert await task.join() == 0
        assert barrier.n_waiting == 0

    flowno.run(main())


def test_abort_breaks_a_barrier_until_it_is_reset() -> None:
    async def main() -> None:
        barrier = Barrier(3)
        tasks = [await spawn(barrier.wait()) for _ in range(2)]
        await barrier.abort()
        for task in tasks:
            with pytest.raises(BrokenBarrierError, match=r"abort\(\) was called while"):
                await task.join()
        assert barrier.broken
        assert "broken" in repr(barrier)
        with pytest.raises(BrokenBarrierError, match="reset"):
            await barrier.wait()
        await barrier.reset()
        assert not barrier.broken
        tasks = [await spawn(barrier.wait()) for _ in range(3)]
        assert [await task.join() for task in tasks] == [0, 1, 2]

    flowno.run(main())


def test_reset_empties_a_barrier_and_does_not_touch_those_who_were_let_through() -> None:
    async def main() -> None:
        barrier = Barrier(2)
        through = await spawn(barrier.wait())
        await barrier.wait()
        waits = await spawn(barrier.wait())
        barrier.reset()
        assert (barrier.n_waiting, barrier.broken) == (0, False)
        assert await through.join() == 0
        with pytest.raises(BrokenResourceError, match=r"reset\(\) was called while"):
            await waits.join()

    flowno.run(main())


def test_a_barrier_is_for_one_task_at_least() -> None:
    for parties in (0, -1):
        with pytest.raises(ValueError, match="parties must be at least 1"):
            Barrier(parties)
    with pytest.raises(TypeError, match="parties must be an int"):
        Barrier(2.0)  # type: ignore[arg-type]

    async def main() -> None:
        assert await Barrier(1).wait() == 0

    flowno.run(main())


# --- for all of them -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what",
    ["event", "event.set", "lock", "semaphore", "semaphore.release", "latch", "latch.count_down", "barrier"],
)
def test_no_operation_that_completes_at_once_starves_the_others(what: str) -> None:
    async def main() -> None:
        event, lock, semaphore, latch, barrier = Event(), Lock(), Semaphore(10**9), CountdownLatch(0), Barrier(1)
        event.set()

        async def lock_and_unlock() -> None:
            async with lock:
                pass

        operations: dict[str, Callable[[], Awaitable[object]]] = {
            "event": event.wait,
            "event.set": event.set,
            "lock": lock_and_unlock,
            "semaphore": semaphore.acquire,
            "semaphore.release": semaphore.release,
            "latch": latch.wait,
            "latch.count_down": latch.count_down,
            "barrier": barrier.wait,
        }
        await check_it_gives_way(operations[what])

    flowno.run(main())


@pytest.mark.parametrize("what", ["wait_for", "notify_all"])
def test_no_operation_of_a_condition_that_completes_at_once_starves_the_others(what: str) -> None:
    async def main() -> None:
        condition = Condition()

        async def operate() -> None:
            if not condition.lock.is_locked():  # the first time; then it is the task's
                await condition.lock.acquire()
            await (condition.notify_all() if what == "notify_all" else condition.wait_for(lambda: True))

        await check_it_gives_way(operate)

    flowno.run(main())


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("lock that is mine", BusyResourceError),
        ("broken lock", BrokenResourceError),
        ("condition without its lock", NotOwnerError),
        ("broken barrier", BrokenBarrierError),
    ],
)
def test_no_operation_that_is_refused_starves_the_others(what: str, error: type[Exception]) -> None:
    async def main() -> None:
        lock, broken_lock, condition, broken_barrier = Lock(), Lock(), Condition(), Barrier(1)
        await (await spawn(broken_lock.acquire())).join()
        broken_barrier.abort()
        operations: dict[str, Callable[[], Awaitable[object]]] = {
            "lock that is mine": lock.acquire,
            "broken lock": broken_lock.acquire,
            "condition without its lock": condition.wait,
            "broken barrier": broken_barrier.wait,
        }

        async def refused() -> None:
            if not lock.is_locked():  # the first time
                await lock.acquire()
            with pytest.raises(error):
                await operations[what]()

        await check_it_gives_way(refused)

    flowno.run(main())


def test_to_await_what_has_acted_is_not_where_a_cancellation_arrives() -> None:
    async def main() -> None:
        event, done = Event(), 0

        async def repeat() -> str:
            nonlocal done
            for _ in range(200):
                await event.set()
                done += 1
            return "to the end"

        task = await spawn(repeat())
        assert done < 200
        assert await task.cancel() == "to the end"

    flowno.run(main())


def test_commands_that_are_yielded_by_hand_do_the_same() -> None:
    async def main() -> None:
        event, lock, condition, log = Event(), Lock(), Condition(), []
        await ask(EventSetCommand(event))
        assert event.is_set()
        await ask(EventWaitCommand(event))
        await ask(LockAcquireCommand(lock))
        assert lock.is_locked()
        with pytest.raises(BusyResourceError):
            await ask(LockAcquireCommand(lock))
        await ask(LockReleaseCommand(lock))
        assert not lock.is_locked()
        tasks: list[TaskHandle[None]] = [await spawn(waiting(condition, log, number)) for number in range(3)]
        await sleep(0)
        async with condition:
            await ask(ConditionNotifyCommand(condition))
        await tasks[0].join()
        assert log == [0]
        async with condition:
            await ask(ConditionNotifyCommand(condition, all=True))
        for task in tasks:
            await task.join()
        with pytest.raises(NotOwnerError):
            await ask(ConditionWaitCommand(condition))

        async def wait_by_hand() -> None:
            async with condition:
                await ask(ConditionWaitCommand(condition))
                assert condition.lock.owner is task

        task = await spawn(wait_by_hand())
        async with condition:  # it has released the lock
            condition.notify()
        await task.join()

        semaphore, barrier = Semaphore(1), Barrier(1)
        await ask(SemaphoreAcquireCommand(semaphore))
        assert semaphore.value == 0
        assert await ask(BarrierWaitCommand(barrier)) == 0
        barrier.abort()
        with pytest.raises(BrokenBarrierError):
            await ask(BarrierWaitCommand(barrier))

        queue: AsyncQueue[int] = AsyncQueue()
        await ask(QueuePutCommand(queue, 1))
        assert await ask(QueuePeekCommand(queue)) == 1
        assert await ask(QueueGetCommand(queue)) == 1
        queue.close()
        for command in (QueuePutCommand(queue, 1), QueuePeekCommand(queue), QueueGetCommand(queue)):
            with pytest.raises(flowno.QueueClosedError):
                await ask(command)

    flowno.run(main())


# --- one event loop --------------------------------------------------------------------------------------------------


class OtherLoop:
    """An event loop in a thread of its own, with a task that waits for something, until it is told to end."""

    def __init__(self, *operations: Callable[[], Any]) -> None:
        self._operations = operations
        self._waiting = threading.Event()
        self._thread = threading.Thread(target=flowno.run, args=(self._main(),))

    async def _main(self) -> None:
        loop = current_event_loop()
        assert loop is not None
        self._loop, self._end = loop, Event()
        for operation in self._operations:
            await spawn(operation())
        self._waiting.set()
        await self._end.wait()

    async def _set_end(self) -> None:
        self._end.set()

    def __enter__(self) -> None:
        self._thread.start()
        self._waiting.wait()

    def __exit__(self, *_: object) -> None:
        self._loop.create_task(self._set_end())
        self._thread.join()


def test_waking_a_task_of_a_loop_in_another_thread_is_an_error_that_changes_nothing() -> None:
    event, latch, semaphore, barrier = Event(), CountdownLatch(1), Semaphore(0), Barrier(2)
    queue: AsyncQueue[int] = AsyncQueue()
    full: AsyncQueue[int] = AsyncQueue(maxsize=1)
    full.put_nowait(1)
    limiter = CapacityLimiter(1)
    limiter.acquire_on_behalf_of_nowait("x")

    def change_limit() -> None:
        limiter.total_tokens = 2

    waits = (event.wait, latch.wait, semaphore.acquire, barrier.wait, queue.get, queue.peek, lambda: full.put(2))
    with OtherLoop(*waits, limiter.acquire):
        for operation in (
            event.set,
            latch.count_down,
            semaphore.release,
            barrier.abort,
            barrier.reset,
            lambda: queue.put_nowait(1),
            queue.close,
            full.get_nowait,
            full.close,
            lambda: limiter.release_on_behalf_of("x"),
            change_limit,
        ):
            with pytest.raises(EventLoopError, match=r"from another thread.*loop\.create_task"):
                operation()
        assert (event.is_set(), latch.count, semaphore.value) == (False, 1, 0)
        assert (barrier.n_waiting, barrier.broken) == (1, False)
        assert (limiter.total_tokens, limiter.borrowed_tokens, len(limiter.waiters)) == (1, 1, 1)
        assert (queue.closed, len(queue), full.closed, full.items) == (False, 0, False, [1])


def test_tasks_of_two_loops_cannot_wait_for_the_same() -> None:
    event, lock, semaphore, queue = Event(), Lock(), Semaphore(0), AsyncQueue[int]()

    async def main() -> None:
        for operation in (event.wait, semaphore.acquire, queue.get):
            with pytest.raises(EventLoopError, match="belongs to one event loop"):
                await operation()
        with pytest.raises(EventLoopError, match="cannot acquire a lock that .* has, in <EventLoop"):
            await lock.acquire()
        with pytest.raises(EventLoopError):
            lock.acquire_nowait()

    async def hold_it() -> None:
        async with lock:
            await sleep(FOREVER)

    with OtherLoop(event.wait, semaphore.acquire, queue.get, hold_it):
        flowno.run(main())


def test_a_loop_that_rests_between_two_runs_may_be_prepared_from_outside() -> None:
    event, queue, got = Event(), AsyncQueue[int](), []

    async def wait() -> None:
        got.append(await queue.get())
        await event.wait()
        got.append("event")

    async def nothing() -> None:
        pass

    async def start() -> None:
        await spawn(wait())

    with EventLoop() as loop:
        loop.run_until_complete(start(), wait_for_spawned_tasks=False)
        queue.put_nowait(1)
        event.set()
        loop.run_until_complete(nothing())
    assert got == [1, "event"]


# --- any schedule ----------------------------------------------------------------------------------------------------


class Permits(Model):
    """A number of permits: a semaphore, and with one of them a lock."""

    def __init__(self, permits: int) -> None:
        super().__init__()
        self.free, self.permits = permits, permits
        self.waiting: list[int] = []
        self.granted: set[int] = set()  # and have not run since
        self.holding: set[int] = set()

    def queues(self) -> Iterator[list[int]]:
        yield self.waiting

    def acquire(self, number: int) -> None:
        if self.free:
            self.free -= 1
            self.granted.add(number)
        else:
            self.wait(self.waiting, number)

    def release(self) -> None:
        if self.waiting:
            self.granted.add(self.waiting.pop(0))
        else:
            self.free += 1

    def check(self) -> None:
        assert self.free + len(self.granted) + len(self.holding) == self.permits


@pytest.mark.parametrize(("kind", "permits"), [("lock", 1), ("semaphore", 1), ("semaphore", 3)])
def test_permits_are_conserved_and_given_in_turn_whatever_happens(kind: str, permits: int) -> None:
    async def play(rng: random.Random) -> None:
        model = Permits(permits)
        thing: Lock | Semaphore = Lock() if kind == "lock" else Semaphore(permits, max_value=permits)

        async def work(number: int) -> None:
            for _ in range(rng.randrange(1, 5)):
                await turns(rng)
                if rng.random() < 0.2:
                    if model.free:
                        thing.acquire_nowait()
                        model.free -= 1
                    else:
                        with pytest.raises(WouldBlockError):
                            thing.acquire_nowait()
                        continue
                else:
                    model.acquire(number)
                    try:
                        await thing.acquire()
                    except TaskCancelled:
                        assert number not in model.granted, "a cancelled wait has lost a permit"
                        raise
                    model.granted.remove(number)
                model.holding.add(number)
                model.check()
                try:
                    await turns(rng)
                finally:
                    model.holding.remove(number)
                    model.release()
                    thing.release()
                    model.check()

        def compare() -> None:
            model.check()
            assert thing.statistics().tasks_waiting == len(model.waiting)
            if isinstance(thing, Semaphore):
                assert thing.value == model.free
            else:
                assert thing.is_locked() is not bool(model.free)

        await see_out(model, await direct(rng, model, work, compare))
        compare()
        assert model.free == permits

    on_every_seed(play)


class Notifications(Model):
    """Who waits for a condition, and who was notified; and who has its lock."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[int] = []
        self.notified: set[int] = set()
        self.inside: set[int] = set()

    def queues(self) -> Iterator[list[int]]:
        yield self.waiting

    def notify(self, n: int) -> None:
        self.notified.update(self.waiting[:n])
        del self.waiting[:n]


def test_no_notification_is_lost_and_the_lock_excludes_whatever_happens() -> None:
    async def play(rng: random.Random) -> None:
        model, condition = Notifications(), Condition()

        def enter(number: int) -> None:
            assert condition.lock._is_mine()
            assert not model.inside
            model.inside.add(number)

        async def work(number: int) -> None:
            for _ in range(rng.randrange(1, 4)):
                await turns(rng)
                async with condition:
                    enter(number)
                    try:
                        await turns(rng, 1)
                        if rng.random() < 0.6:
                            model.inside.remove(number)
                            model.wait(model.waiting, number)
                            try:
                                await condition.wait()
                            except TaskCancelled:
                                assert number not in model.notified, "a cancelled wait has lost a notification"
                                raise
                            finally:
                                enter(number)
                            model.notified.remove(number)
                        else:
                            n = rng.randrange(4)
                            model.notify(n)
                            condition.notify(n)
                    finally:
                        model.inside.discard(number)

        def compare() -> None:
            assert condition.statistics().tasks_waiting == len(model.waiting)

        tasks = await direct(rng, model, work, compare)
        while not all(task.is_finished or task.is_cancelled or task.is_error for task in tasks.values()):
            async with condition:
                model.notify(len(model.waiting))
                condition.notify_all()
                compare()
        await see_out(model, tasks)
        assert not condition.lock.is_locked()

    on_every_seed(play)


class Rounds(Model):
    """Who waits at a barrier, who was let through with which number, and who was turned away."""

    def __init__(self, parties: int) -> None:
        super().__init__()
        self.parties, self.broken = parties, False
        self.waiting: list[int] = []
        self.through: dict[int, int] = {}
        self.turned_away: set[int] = set()

    def queues(self) -> Iterator[list[int]]:
        yield self.waiting

    def come(self, number: int) -> None:
        if not self.broken and len(self.waiting) + 1 == self.parties:
            self.through.update((number, index) for index, number in enumerate([*self.waiting, number]))
            self.waiting.clear()
        elif not self.broken:
            self.wait(self.waiting, number)
        elif number not in self.cancelled:
            self.turned_away.add(number)

    def turn_away(self, broken: bool) -> None:
        self.broken = broken
        self.turned_away.update(self.waiting)
        self.waiting.clear()


@pytest.mark.parametrize("parties", [1, 2, 4])
def test_a_barrier_strands_nobody_and_lets_nobody_through_too_early_whatever_happens(parties: int) -> None:
    async def play(rng: random.Random) -> None:
        model, barrier = Rounds(parties), Barrier(parties)

        async def work(number: int) -> None:
            for _ in range(rng.randrange(1, 6)):
                await turns(rng)
                model.come(number)
                try:
                    index = await barrier.wait()
                except BrokenBarrierError:
                    model.turned_away.remove(number)
                except TaskCancelled:
                    assert number not in model.through
                    assert number not in model.turned_away
                    raise
                else:
                    assert model.through.pop(number) == index

        def compare() -> None:
            assert barrier.statistics() == flowno.BarrierStatistics(len(model.waiting), parties, model.broken)

        def interfere() -> None:
            what = rng.random()
            if what < 0.1:
                model.turn_away(broken=True)
                barrier.abort()
            elif what < 0.3:
                model.turn_away(broken=False)
                barrier.reset()

        tasks = await direct(rng, model, work, compare, interfere)
        model.turn_away(broken=True)
        barrier.abort()
        await see_out(model, tasks)
        assert not model.through
        assert not model.turned_away

    on_every_seed(play)


class Happening(Model):
    """Who waits for something to happen a number of times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.waiting: list[int] = []
        self.woken: list[int] = []

    def queues(self) -> Iterator[list[int]]:
        yield self.waiting

    def happen(self) -> None:
        self.times = max(self.times - 1, 0)
        if not self.times:
            self.woken += self.waiting
            self.waiting.clear()


@pytest.mark.parametrize("kind", ["event", "latch"])
def test_whatever_happens_all_who_wait_are_woken_in_order_and_nobody_before(kind: str) -> None:
    async def play(rng: random.Random) -> None:
        model = Happening(1 if kind == "event" else rng.randrange(6))
        event, latch = Event(), CountdownLatch(model.times)

        async def work(number: int) -> None:
            await turns(rng)
            if must_wait := model.times > 0:
                model.wait(model.waiting, number)
            try:
                await (event if kind == "event" else latch).wait()
            except TaskCancelled:
                assert number not in model.woken
                raise
            if must_wait:
                assert model.woken.pop(0) == number

        def compare() -> None:
            if kind == "event":
                assert event.is_set() is not bool(model.times)
                assert event.statistics().tasks_waiting == len(model.waiting)
            else:
                assert latch.count == model.times

        def happen() -> None:
            model.happen()
            event.set() if kind == "event" else latch.count_down()

        tasks = await direct(rng, model, work, compare, lambda: rng.random() < 0.15 and happen())
        while model.times:
            happen()
        await see_out(model, tasks)
        assert not model.woken

    on_every_seed(play)


def test_a_run_that_ends_leaves_no_waiter_behind() -> None:
    event, lock, condition = Event(), Lock(), Condition()
    ended = []

    async def wait(operation: Callable[[], Any]) -> None:
        try:
            await operation()
        except TaskCancelled:
            ended.append(operation)
            raise

    async def main() -> None:
        await lock.acquire()
        await spawn(wait(event.wait))
        await spawn(wait(lock.acquire))
        await spawn(waiting(condition, [], None))
        await sleep(0)

    flowno.run(main())
    assert not event.waiters
    assert not lock.waiters
    assert not condition.waiters
    assert not condition.lock.is_locked()


def test_a_long_chain_of_wake_ups_does_not_recurse() -> None:
    """Each task wakes the next: by an event that it sets, and by the lock that it releases."""
    number = 5000

    async def main() -> int:
        lock, passed = Lock(), 0

        async def link(mine: Event, following: Event) -> None:
            nonlocal passed
            async with lock:
                passed += 1
            await mine.wait()
            following.set()

        events = [Event() for _ in range(number + 1)]
        async with lock:
            tasks = [await spawn(link(*two)) for two in itertools.pairwise(events)]
            events[0].set()
        for task in tasks:
            await task.join()
        assert events[-1].is_set()
        return passed

    assert flowno.run(main()) == number
