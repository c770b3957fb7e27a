"""Event, Lock, Condition, Semaphore and CountdownLatch: fair, and nothing is lost where a task is cancelled."""

import itertools
import signal
from collections.abc import Callable
from typing import Any

import pytest

import flowno
from flowno import (
    BrokenResourceError,
    BusyResourceError,
    Condition,
    CountdownLatch,
    Event,
    Lock,
    NotOwnerError,
    Semaphore,
    TaskCancelled,
    TaskHandle,
    current_event_loop,
    sleep,
    spawn,
)
from flowno.core.event_loop.commands import (
    ConditionNotifyCommand,
    EventSetCommand,
    LockAcquireCommand,
    LockReleaseCommand,
)

pytestmark = pytest.mark.usefixtures("backend")

FOREVER = float("inf")


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


def test_the_waiters_of_a_lock_whose_owner_ends_get_an_error_at_that_moment_and_the_lock_is_free() -> None:
    async def main() -> None:
        lock, release = Lock(), Event()

        async def take_and_go() -> None:
            await lock.acquire()
            await release.wait()

        owner = await spawn(take_and_go())
        waiters = [await spawn(lock.acquire()) for _ in range(3)]
        await sleep(0)
        release.set()
        for waiter in waiters:
            with pytest.raises(BrokenResourceError, match=r"take_and_go finished> ended without releasing"):
                await waiter.join()
        await owner.join()
        async with lock:
            pass

    flowno.run(main())


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


# --- Condition -------------------------------------------------------------------------------------------------------


async def waiting(condition: Condition, log: list[Any], name: object) -> None:
    async with condition:
        try:
            await condition.wait()
            log.append(name)
        finally:
            running = current_event_loop()
            assert running is not None
            assert condition.lock.owner is running.running_task


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

    flowno.run(main())


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
    with pytest.raises(ValueError, match="more often than acquired"):
        Semaphore(2, max_value=2).release()


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


# --- for all of them -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operation",
    [
        lambda event, lock, semaphore: event.wait(),
        lambda event, lock, semaphore: semaphore.acquire(),
    ],
    ids=["event", "semaphore"],
)
def test_what_need_not_wait_starves_nobody(operation: Callable[[Event, Lock, Semaphore], Any]) -> None:
    async def main() -> None:
        event, lock, semaphore = Event(), Lock(), Semaphore(1_000_000)
        event.set()

        async def repeat() -> None:
            while True:
                await operation(event, lock, semaphore)

        task = await spawn(repeat())
        await sleep(0)
        await task.cancel()

    flowno.run(main())


def test_an_uncontended_lock_starves_nobody() -> None:
    async def main() -> None:
        lock = Lock()

        async def repeat() -> None:
            while True:
                async with lock:
                    pass

        task = await spawn(repeat())
        await sleep(0)
        await task.cancel()
        assert not lock.is_locked()

    flowno.run(main())


def test_commands_that_are_yielded_by_hand_do_the_same() -> None:
    import types

    @types.coroutine
    def ask(command: Any) -> Any:
        return (yield command)

    async def main() -> None:
        event, lock, condition, log = Event(), Lock(), Condition(), []
        await ask(EventSetCommand(event))
        assert event.is_set()
        await ask(LockAcquireCommand(lock))
        assert lock.is_locked()
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

    flowno.run(main())


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
