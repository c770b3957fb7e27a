"""What tasks of one event loop use to wait for each other.

Everything here is fair: tasks are served in the order in which they came. What a task is given is its own from the
moment at which it is given, not from when the task runs again; so nothing is given twice, and nothing is lost where the
task is cancelled in between: it has what it was given, and is cancelled at its next wait.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from .commands import (
    Command,
    ConditionWaitCommand,
    EventWaitCommand,
    LockAcquireCommand,
    SemaphoreAcquireCommand,
    ShieldedLockAcquireCommand,
)
from .errors import (
    BrokenResourceError,
    BusyResourceError,
    EventLoopError,
    NotOwnerError,
    WouldBlockError,
)
from .operations import coroutine
from .running import here, required_event_loop
from .tasks import DONE, LEFT, completed

if TYPE_CHECKING:
    from typing import Self

    from .tasks import Done, TaskHandle

__all__ = [
    "Condition",
    "ConditionStatistics",
    "CountdownLatch",
    "Event",
    "EventStatistics",
    "Lock",
    "LockStatistics",
    "Semaphore",
    "SemaphoreStatistics",
]

T = TypeVar("T")


def take_first(waiters: dict[TaskHandle[Any], None]) -> TaskHandle[Any]:
    """Take out the task that has waited longest."""
    task = next(iter(waiters))
    del waiters[task]
    return task


def check_at_hand(waiters: dict[TaskHandle[Any], None], operation: str) -> None:
    """Refuse to wake tasks from another thread than the one that runs them; before anything has changed.

    Their loop would not look, or would look while its list of ready tasks changes.
    """
    loop = next(iter(waiters)).event_loop
    if loop is not here.loop and not loop.inbox.is_at_hand:
        raise EventLoopError(
            f"{operation} came from outside of {loop!r}, which runs the tasks that wait; from another thread, have "
            "a task of that loop do it: loop.create_task(coroutine)"
        )


def check_count(name: str, value: int, least: int) -> None:
    """Refuse an argument that is no number of things, or too small a one."""
    if not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must {f'be at least {least}' if least else 'not be negative'}, and is {value!r}")


def running_task(operation: str) -> TaskHandle[Any]:
    """The task that runs in this thread; what acts for the task that calls it needs one."""
    loop = here.loop
    task = None if loop is None else loop.running_task
    if task is None:
        raise EventLoopError(f"{operation} was called outside of a task, and acts for the task that calls it")
    return task


class EventStatistics(NamedTuple):
    """What :meth:`Event.statistics` returns.

    Attributes:
        tasks_waiting: How many tasks wait for it.
    """

    tasks_waiting: int


class Event:
    """Something that happens once, and that any number of tasks can wait for.

    Example:
        >>> from flowno import Event, run, spawn
        >>> async def waiter(event):
        ...     await event.wait()
        ...     print("it has happened")
        >>> async def main():
        ...     event = Event()
        ...     task = await spawn(waiter(event))
        ...     event.set()
        ...     await task.join()
        >>> run(main())
        it has happened
    """

    __slots__ = ("__weakref__", "_is_set", "waiters")

    def __init__(self) -> None:
        self._is_set = False
        self.waiters: dict[TaskHandle[Any], None] = {}

    def is_set(self) -> bool:
        """Whether it has happened."""
        return self._is_set

    def set(self) -> Done:
        """Let it happen: every task that waits goes on, in the order in which they came. Acts at once, and only once.

        Of all that is here, this may be called by a signal handler, too.

        Returns:
            Something that may be awaited, and need not be.

        Raises:
            EventLoopError: The tasks that wait are those of a loop that runs in another thread.
        """
        waiters = self.waiters
        if waiters:
            check_at_hand(waiters, "Event.set()")
        self._is_set = True
        for task in list(waiters):
            if waiters.pop(task, self) is None:  # else a signal handler that ran meanwhile has woken it
                task.event_loop.resume(task)
        return DONE

    @coroutine
    def wait(self) -> Generator[Command, Any, None]:
        """Wait until it has happened; returns at once where it has.

        Raises:
            EventLoopError: This was awaited outside of an event loop.

        Cancellation: the wait ends, and the event is not affected.
        """
        budget = (here.loop or required_event_loop("Event.wait()")).budget
        if self._is_set:
            yield from completed(budget)
        else:
            yield EventWaitCommand(self)

    def statistics(self) -> EventStatistics:
        """Who waits, for debugging."""
        return EventStatistics(len(self.waiters))

    def __repr__(self) -> str:
        return f"<Event {'set' if self._is_set else 'not set'}, {len(self.waiters)} waiting>"


class LockStatistics(NamedTuple):
    """What :meth:`Lock.statistics` returns.

    Attributes:
        locked: Whether it cannot be acquired at once.
        owner: The task that has it, or None.
        tasks_waiting: How many tasks wait for it.
    """

    locked: bool
    owner: TaskHandle[Any] | None
    tasks_waiting: int


class Lock:
    """Belongs to one task at a time; the others wait for it in turn. An asynchronous context manager.

    A task that ends with a lock in its hands leaves what the lock guards half-done. The lock is broken then: those who
    wait for it, and those who come later, get :class:`~flowno.BrokenResourceError`.

    Example:
        >>> from flowno import Lock, run
        >>> async def main():
        ...     lock = Lock()
        ...     async with lock:
        ...         print(lock.is_locked())
        >>> run(main())
        True
    """

    __slots__ = ("__weakref__", "_broken_by", "_conditions", "owner", "waiters")

    def __init__(self) -> None:
        self.owner: TaskHandle[Any] | None = None
        self.waiters: dict[TaskHandle[Any], None] = {}
        # Those whose lock this is, in the order in which they were made: who waits there is told in this order.
        self._conditions: WeakKeyDictionary[Condition, None] | None = None
        self._broken_by: str | None = None

    def is_locked(self) -> bool:
        """Whether a task has it, or has ended with it."""
        return self.owner is not None or self._broken_by is not None

    @coroutine
    def acquire(self) -> Generator[Command, Any, None]:
        """Wait until the lock is this task's.

        Raises:
            BusyResourceError: It is this task's already; waiting for itself it would wait for ever.
            BrokenResourceError: The task that had it ended without releasing it.
            EventLoopError: This was awaited outside of an event loop, or a task of another loop has it.

        Cancellation: the wait ends, and the task does not have the lock. Where it was given the lock already it has
        it, and is cancelled at its next wait.
        """
        loop = here.loop or required_event_loop("Lock.acquire()")
        task = loop.running_task
        if self.owner is None and self._broken_by is None and loop.budget.left > 0 and task is not None:
            loop.budget.left -= 1
            self._give_to(task)
        else:
            del task  # see _require_ownership()
            yield LockAcquireCommand(self)

    def acquire_nowait(self) -> None:
        """Take the lock without waiting for it.

        Raises:
            WouldBlockError: Another task has it.
            BusyResourceError: It is this task's already.
            BrokenResourceError: The task that had it ended without releasing it.
            EventLoopError: This was called outside of a task, or a task of another loop has the lock.
        """
        task = running_task("Lock.acquire_nowait()")
        try:
            if not self._try_give_to(task):
                raise WouldBlockError(f"acquire_nowait() on a lock that {self.owner!r} has")
        finally:
            del task  # see _require_ownership()

    def release(self) -> Done:
        """Give the lock to the task that has waited longest, or to nobody. Acts at once.

        Returns:
            Something that may be awaited, and need not be.

        Raises:
            NotOwnerError: This task does not have it.
            EventLoopError: This was called outside of a task.
        """
        loop, owner = here.loop, self.owner
        if loop is None or owner is None or owner is not loop.running_task:
            owner = self._require_ownership("Lock.release()")
        if owner._locks is not None:
            del owner._locks[self]
        self.owner = None
        for task in self.waiters:  # the one that has waited longest; quicker than take_first(), which is a call
            del self.waiters[task]
            self._give_to(task)
            task.event_loop.resume(task)
            break
        return DONE

    def statistics(self) -> LockStatistics:
        """Who has the lock and who waits for it, for debugging."""
        return LockStatistics(self.is_locked(), self.owner, len(self.waiters))

    # --- for the loop, and for what is built on locks -----------------------------------------------------------------

    def _give_to(self, task: TaskHandle[Any]) -> None:
        """Make a task the owner. The lock must be free."""
        self.owner = task
        if task._locks is None:
            task._locks = {self: None}
        else:
            task._locks[self] = None

    def _try_give_to(self, task: TaskHandle[Any]) -> bool:
        """Make a task the owner, if the lock is free; False where it may wait for that. Raises as :meth:`acquire`."""
        owner = self.owner
        try:
            if owner is None:
                if self._broken_by is not None:
                    raise self._broken()
                self._give_to(task)
                return True
            if owner is task:
                raise BusyResourceError(f"{task!r} cannot acquire a lock that it has already")
            if owner.event_loop is not task.event_loop:
                raise EventLoopError(f"{task!r} cannot acquire a lock that {owner!r} has, in {owner.event_loop!r}")
            return False
        finally:
            del task, owner  # see _require_ownership()

    def _break(self) -> None:
        """The owner has ended without releasing the lock. Who waits for a condition has lost, too, who could notify."""
        self._broken_by = repr(self.owner)
        self.owner = None
        for waiters in (self.waiters, *(condition.waiters for condition in self._conditions or ())):
            while waiters:
                task = take_first(waiters)
                task._wake(task.event_loop.ready, error=self._broken())

    def _broken(self) -> BrokenResourceError:
        return BrokenResourceError(
            f"{self._broken_by} ended without releasing the lock, so what the lock guards is in no known state; go on "
            "with a new lock"
        )

    def _is_mine(self) -> bool:
        """Whether the task that runs has it."""
        loop = here.loop
        return loop is not None and self.owner is not None and self.owner is loop.running_task

    def _require_ownership(self, operation: str) -> TaskHandle[Any]:
        """The task that runs, which must have the lock."""
        task = running_task(operation)
        try:
            if self.owner is not task:
                has = "nobody has it" if self.owner is None else f"{self.owner!r} has it"
                raise NotOwnerError(f"{operation} needs a lock that {task!r} does not have; {has}")
            return task
        finally:
            del task  # the traceback of an error would tie it to the task that fails with it, and to what that holds

    @coroutine
    def __aenter__(self) -> Generator[Command, Any, Self]:
        # As acquire(), in a frame of its own: one layer less for each wait.
        loop = here.loop or required_event_loop("async with Lock()")
        task = loop.running_task
        if self.owner is None and self._broken_by is None and loop.budget.left > 0 and task is not None:
            loop.budget.left -= 1
            self._give_to(task)
        else:
            del task  # see _require_ownership()
            yield LockAcquireCommand(self)
        return self

    def __aexit__(self, kind: object, error: object, tb: object) -> Awaitable[None]:
        # Condition.wait() leaves without the lock where that broke, or where its coroutine is closed. What is on its
        # way then says more than that there is nothing to release.
        if error is None or self._is_mine():
            self.release()
        return LEFT

    def __repr__(self) -> str:
        if self._broken_by is not None:
            return f"<Lock broken by {self._broken_by}>"
        return f"<Lock of {self.owner!r}, {len(self.waiters)} waiting>"


class ConditionStatistics(NamedTuple):
    """What :meth:`Condition.statistics` returns.

    Attributes:
        tasks_waiting: How many tasks wait to be notified.
        lock_statistics: What :meth:`Lock.statistics` says of its lock.
    """

    tasks_waiting: int
    lock_statistics: LockStatistics


class Condition:
    """A lock, and a way to wait until another task has changed what it guards. An asynchronous context manager.

    Args:
        lock: The lock; a new one where none is given. Several conditions may share one.

    Raises:
        TypeError: ``lock`` is no lock.

    Attributes:
        lock: The lock. It must be this task's to wait and to notify.

    Example:
        >>> from flowno import Condition, run, spawn
        >>> async def consumer(condition, items):
        ...     async with condition:
        ...         await condition.wait_for(lambda: items)
        ...         print(items.pop())
        >>> async def main():
        ...     condition, items = Condition(), []
        ...     task = await spawn(consumer(condition, items))
        ...     async with condition:
        ...         items.append("an item")
        ...         condition.notify()
        ...     await task.join()
        >>> run(main())
        an item
    """

    __slots__ = ("__weakref__", "lock", "waiters")

    def __init__(self, lock: Lock | None = None) -> None:
        if lock is None:
            lock = Lock()
        elif not isinstance(lock, Lock):
            raise TypeError(f"lock must be a flowno.Lock or None, not {lock!r}")
        if lock._conditions is None:
            lock._conditions = WeakKeyDictionary()
        lock._conditions[self] = None
        self.lock = lock
        self.waiters: dict[TaskHandle[Any], None] = {}

    @coroutine
    def wait(self) -> Generator[Command, Any, None]:
        """Release the lock, wait until another task notifies this one, and acquire the lock again.

        Raises:
            NotOwnerError: The lock is not this task's.
            BrokenResourceError: A task ended without releasing the lock; so this one does not have it, either.
            EventLoopError: This was awaited outside of an event loop.

        Cancellation: the wait ends, but not before the lock is this task's again. A task that was notified already
        returns, and is cancelled at its next wait; so no notification is lost.
        """
        lock = self.lock
        loop = here.loop or required_event_loop("Condition.wait()")
        try:
            task = lock._require_ownership("Condition.wait()")
        except NotOwnerError:
            yield from completed(loop.budget)
            raise
        try:
            yield ConditionWaitCommand(self)
        except GeneratorExit:  # closed without its consent: there is nobody to give the lock to
            raise
        except BaseException:
            if lock.owner is not task and lock._broken_by is None:
                try:
                    yield ShieldedLockAcquireCommand(lock)
                except BrokenResourceError:
                    pass  # what is on its way goes first, a cancellation for one
            raise
        finally:
            del task  # see Lock._require_ownership()

    @coroutine
    def wait_for(self, predicate: Callable[[], T]) -> Generator[Command, Any, T]:
        """Wait until something holds: look, and as long as it does not hold, :meth:`wait` and look again.

        Args:
            predicate: Called without arguments, always with the lock in the hands of this task. What it returns is
                judged by its truth.

        Returns:
            What ``predicate`` returned in the end.

        Raises:
            NotOwnerError: The lock is not this task's.
            BrokenResourceError: A task ended without releasing the lock.
            Exception: What ``predicate`` raises; the lock is this task's.

        Cancellation: as :meth:`wait`.
        """
        budget = (here.loop or required_event_loop("Condition.wait_for()")).budget
        try:
            self.lock._require_ownership("Condition.wait_for()")
            result = predicate()
        except BaseException:
            yield from completed(budget)
            raise
        if result:
            yield from completed(budget)
        while not result:
            yield from self.wait()  # pyright: ignore[reportGeneralTypeIssues]
            result = predicate()
        return result

    def notify(self, n: int = 1) -> Done:
        """Let tasks go on that wait, as soon as the lock is released. Acts at once.

        Args:
            n: How many of them; those that have waited longest.

        Returns:
            Something that may be awaited, and need not be.

        Raises:
            NotOwnerError: The lock is not this task's.
            EventLoopError: This was called outside of a task, or the tasks that wait are those of another loop.
            ValueError: ``n`` is negative.
        """
        self.lock._require_ownership("Condition.notify()")
        check_count("n", n, 0)
        if self.waiters:
            check_at_hand(self.waiters, "Condition.notify()")
        for _ in range(min(n, len(self.waiters))):
            task = take_first(self.waiters)
            task._waiting = ShieldedLockAcquireCommand(self.lock)
            self.lock.waiters[task] = None
        return DONE

    def notify_all(self) -> Done:
        """As :meth:`notify`, for every task that waits."""
        return self.notify(len(self.waiters))

    def statistics(self) -> ConditionStatistics:
        """Who waits, and the state of the lock, for debugging."""
        return ConditionStatistics(len(self.waiters), self.lock.statistics())

    async def __aenter__(self) -> Self:
        await self.lock.acquire()
        return self

    def __aexit__(self, kind: object, error: object, tb: object) -> Awaitable[None]:
        return self.lock.__aexit__(kind, error, tb)

    def __repr__(self) -> str:
        return f"<Condition with {self.lock!r}, {len(self.waiters)} waiting>"


class SemaphoreStatistics(NamedTuple):
    """What :meth:`Semaphore.statistics` returns.

    Attributes:
        tasks_waiting: How many tasks wait for a permit.
    """

    tasks_waiting: int


class Semaphore:
    """A number of permits; a task waits while there is none. An asynchronous context manager.

    Any task may release, also one that has not acquired.

    Args:
        value: How many permits there are at first.
        max_value: How many there may be at most; None sets no limit.

    Raises:
        TypeError: One of them is no number of permits.
        ValueError: ``value`` is negative, or above ``max_value``.

    Example:
        >>> from flowno import Semaphore, run
        >>> async def main():
        ...     semaphore = Semaphore(3)
        ...     async with semaphore:
        ...         print(semaphore.value)
        >>> run(main())
        2
    """

    __slots__ = ("__weakref__", "_max_value", "_value", "waiters")

    def __init__(self, value: int = 1, *, max_value: int | None = None) -> None:
        check_count("value", value, 0)
        if max_value is not None:
            check_count("max_value", max_value, 0)
            if value > max_value:
                raise ValueError(f"value is {value!r}, and must not be above max_value, {max_value!r}")
        self._value = value
        self._max_value = max_value
        self.waiters: dict[TaskHandle[Any], None] = {}

    @property
    def value(self) -> int:
        """How many permits there are to be taken."""
        return self._value

    @property
    def max_value(self) -> int | None:
        """How many there may be at most, or None."""
        return self._max_value

    @coroutine
    def acquire(self) -> Generator[Command, Any, None]:
        """Wait for a permit, and take it.

        Raises:
            EventLoopError: This was awaited outside of an event loop.

        Cancellation: the wait ends, and no permit is taken. A task that was given one already has it, and is cancelled
        at its next wait.
        """
        budget = (here.loop or required_event_loop("Semaphore.acquire()")).budget
        if self._value > 0 and budget.left > 0:
            budget.left -= 1
            self._value -= 1
        else:
            yield SemaphoreAcquireCommand(self)

    def acquire_nowait(self) -> None:
        """Take a permit without waiting for it.

        Raises:
            WouldBlockError: There is none.
        """
        if not self._try_take():
            raise WouldBlockError(f"acquire_nowait() on {self!r}")

    def _try_take(self) -> bool:
        """Take a permit, if there is one; for the loop, too."""
        if self._value > 0:
            self._value -= 1
            return True
        return False

    def release(self) -> Done:
        """Give a permit to the task that has waited longest, or put it back. Acts at once.

        Returns:
            Something that may be awaited, and need not be.

        Raises:
            ValueError: There would be more than ``max_value``.
            EventLoopError: The tasks that wait are those of a loop that runs in another thread.
        """
        if self.waiters:
            check_at_hand(self.waiters, "Semaphore.release()")
            task = take_first(self.waiters)
            task.event_loop.resume(task)
        elif self._max_value is not None and self._value >= self._max_value:
            raise ValueError(f"{self!r} was released more often than acquired")
        else:
            self._value += 1
        return DONE

    def statistics(self) -> SemaphoreStatistics:
        """Who waits, for debugging."""
        return SemaphoreStatistics(len(self.waiters))

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    def __aexit__(self, kind: object, error: object, tb: object) -> Awaitable[None]:
        self.release()
        return LEFT

    def __repr__(self) -> str:
        return f"<Semaphore {self._value} free, {len(self.waiters)} waiting>"


class CountdownLatch:
    """Lets tasks wait until something has happened a number of times.

    Args:
        count: How many times.

    Raises:
        TypeError: ``count`` is no number of times.
        ValueError: ``count`` is negative.

    Example:
        >>> from flowno import CountdownLatch, run, spawn
        >>> async def work(latch):
        ...     latch.count_down()
        >>> async def main():
        ...     latch = CountdownLatch(3)
        ...     for _ in range(3):
        ...         await spawn(work(latch))
        ...     await latch.wait()
        ...     return latch.count
        >>> run(main())
        0
    """

    __slots__ = ("__weakref__", "_count", "_event")

    def __init__(self, count: int) -> None:
        check_count("count", count, 0)
        self._count = count
        self._event = Event()
        if not count:
            self._event.set()

    @property
    def count(self) -> int:
        """How many times it has still to happen."""
        return self._count

    def wait(self) -> Awaitable[None]:
        """Wait until the count is zero; returns at once where it is.

        Raises:
            EventLoopError: This was awaited outside of an event loop.

        Cancellation: the wait ends, and the count is not affected.
        """
        return self._event.wait()

    def count_down(self) -> Done:
        """It has happened once more. Acts at once; below zero there is nothing to count.

        Returns:
            Something that may be awaited, and need not be.

        Raises:
            EventLoopError: The tasks that wait are those of a loop that runs in another thread.
        """
        if self._count == 1:
            self._event.set()
        if self._count > 0:
            self._count -= 1
        return DONE

    def __repr__(self) -> str:
        return f"<CountdownLatch at {self._count}, {len(self._event.waiters)} waiting>"
