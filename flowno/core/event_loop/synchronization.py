"""What tasks of one event loop use to wait for each other.

Everything here is fair: tasks are served in the order in which they came. What a task is given is its own from the
moment at which it is given, not from when the task runs again; so nothing is given twice, and nothing is lost where the
task is cancelled in between: it has what it was given, and is cancelled at its next wait.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator, Hashable
from math import inf
from types import coroutine
from typing import TYPE_CHECKING, Any

from .commands import (
    Command,
    ConditionWaitCommand,
    EventWaitCommand,
    LimiterAcquireCommand,
    LockAcquireCommand,
    SemaphoreAcquireCommand,
    ShieldedLockAcquireCommand,
)
from .errors import BrokenResourceError, BusyResourceError, NotOwnerError, WouldBlockError
from .running import here, required_event_loop
from .tasks import DONE, GIVE_WAY

if TYPE_CHECKING:
    from typing import Self

    from .tasks import Budget, Done, TaskHandle

__all__ = ["CapacityLimiter", "Condition", "CountdownLatch", "Event", "Lock", "Semaphore"]


def completed(budget: Budget) -> Generator[Command, Any, None]:
    """The end of an operation that did not have to wait; after many of them the other tasks have their turn."""
    if budget.left > 0:
        budget.left -= 1
    else:
        yield GIVE_WAY


def take_first(waiters: dict[TaskHandle[Any], None]) -> TaskHandle[Any]:
    """Take out the task that has waited longest."""
    task = next(iter(waiters))
    del waiters[task]
    return task


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

        Returns:
            Something that may be awaited, and need not be.
        """
        self._is_set = True
        waiters = self.waiters
        while waiters:
            task = take_first(waiters)
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

    def __repr__(self) -> str:
        return f"<Event {'set' if self._is_set else 'not set'}, {len(self.waiters)} waiting>"


class Lock:
    """Belongs to one task at a time; the others wait for it in turn. An asynchronous context manager.

    Example:
        >>> from flowno import Lock, run
        >>> async def main():
        ...     lock = Lock()
        ...     async with lock:
        ...         print(lock.is_locked())
        >>> run(main())
        True
    """

    __slots__ = ("__weakref__", "owner", "waiters")

    def __init__(self) -> None:
        self.owner: TaskHandle[Any] | None = None
        self.waiters: dict[TaskHandle[Any], None] = {}

    def is_locked(self) -> bool:
        """Whether any task has it."""
        return self.owner is not None

    @coroutine
    def acquire(self) -> Generator[Command, Any, None]:
        """Wait until the lock is this task's.

        Raises:
            BusyResourceError: It is this task's already; waiting for itself it would wait for ever.
            BrokenResourceError: The task that had it ended without releasing it.
            EventLoopError: This was awaited outside of an event loop.

        Cancellation: the wait ends, and the task does not have the lock.
        """
        loop = here.loop or required_event_loop("Lock.acquire()")
        task = loop.running_task
        if self.owner is None and loop.budget.left > 0 and task is not None:
            loop.budget.left -= 1
            self.give_to(task)
            return
        if self.owner is task:
            yield from completed(loop.budget)
            raise BusyResourceError(f"{task!r} cannot acquire a lock that it has already")
        yield LockAcquireCommand(self)

    def release(self) -> Done:
        """Give the lock to the task that has waited longest, or to nobody. Acts at once.

        Returns:
            Something that may be awaited, and need not be.

        Raises:
            NotOwnerError: This task does not have it.
        """
        owner = self._require_ownership("release")
        locks = owner._locks
        if locks is not None:
            del locks[self]
        self.owner = None
        if self.waiters:
            task = take_first(self.waiters)
            self.give_to(task)
            task.event_loop.resume(task)
        return DONE

    def give_to(self, task: TaskHandle[Any]) -> None:
        """Make a task the owner; for the loop, and for what is built on locks. The lock must be free."""
        self.owner = task
        if task._locks is None:
            task._locks = {self: None}
        else:
            task._locks[self] = None

    def break_(self) -> None:
        """The owner has ended without releasing the lock: what it guards is in no known state. The loop calls this."""
        owner, self.owner = self.owner, None
        while self.waiters:
            task = take_first(self.waiters)
            task._wake(
                task.event_loop.ready,
                error=BrokenResourceError(f"{owner!r} ended without releasing the lock that this task waited for"),
            )

    def _require_ownership(self, what: str) -> TaskHandle[Any]:
        task = required_event_loop(f"{type(self).__name__}.{what}()").running_task
        if task is None or self.owner is not task:
            has = "nobody has it" if self.owner is None else f"{self.owner!r} has it"
            raise NotOwnerError(f"{task!r} cannot {what} a lock that it does not have; {has}")
        return task

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    def __aexit__(self, kind: object, error: object, tb: object) -> Awaitable[None]:
        return self.release()

    def __repr__(self) -> str:
        return f"<Lock of {self.owner!r}, {len(self.waiters)} waiting>"


class Condition:
    """A lock, and a way to wait until another task has changed what it guards. An asynchronous context manager.

    Args:
        lock: The lock; a new one where none is given.

    Attributes:
        lock: The lock. It must be this task's to wait and to notify.

    Example:
        >>> from flowno import Condition, run, spawn
        >>> async def consumer(condition, items):
        ...     async with condition:
        ...         while not items:
        ...             await condition.wait()
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
        self.lock = Lock() if lock is None else lock
        self.waiters: dict[TaskHandle[Any], None] = {}

    @coroutine
    def wait(self) -> Generator[Command, Any, None]:
        """Release the lock, wait until another task notifies this one, and acquire the lock again.

        Raises:
            NotOwnerError: The lock is not this task's.
            BrokenResourceError: A task ended without releasing the lock.

        Cancellation: the wait ends, but not before the lock is this task's again. A task that was notified already
        returns, and is cancelled at its next wait; so no notification is lost.
        """
        lock = self.lock
        lock._require_ownership("wait with")
        lock.release()
        try:
            yield ConditionWaitCommand(self)
        except BrokenResourceError:
            raise
        except GeneratorExit:  # closed without its consent: there is nobody to give the lock to
            raise
        except BaseException:
            yield ShieldedLockAcquireCommand(lock)
            raise

    def notify(self, n: int = 1) -> Done:
        """Let tasks go on that wait, as soon as the lock is released. Acts at once.

        Args:
            n: How many of them; those that have waited longest.

        Returns:
            Something that may be awaited, and need not be.

        Raises:
            NotOwnerError: The lock is not this task's.
        """
        self.lock._require_ownership("notify with")
        for _ in range(min(n, len(self.waiters))):
            task = take_first(self.waiters)
            task._waiting = ShieldedLockAcquireCommand(self.lock)
            self.lock.waiters[task] = None
        return DONE

    def notify_all(self) -> Done:
        """As :meth:`notify`, for every task that waits."""
        return self.notify(len(self.waiters))

    async def __aenter__(self) -> Self:
        await self.lock.acquire()
        return self

    def __aexit__(self, kind: object, error: object, tb: object) -> Awaitable[None]:
        return self.lock.release()

    def __repr__(self) -> str:
        return f"<Condition with {self.lock!r}, {len(self.waiters)} waiting>"


class Semaphore:
    """A number of permits; a task waits while there is none. An asynchronous context manager.

    Any task may release, also one that has not acquired.

    Args:
        value: How many permits there are at first.
        max_value: How many there may be at most; None sets no limit.

    Raises:
        ValueError: ``value`` is negative, or above ``max_value``.
    """

    __slots__ = ("__weakref__", "_max_value", "value", "waiters")

    def __init__(self, value: int = 1, *, max_value: int | None = None) -> None:
        if value < 0:
            raise ValueError(f"value must not be negative, and is {value!r}")
        if max_value is not None and value > max_value:
            raise ValueError(f"value is {value!r}, and must not be above max_value, {max_value!r}")
        self.value = value
        self._max_value = max_value
        self.waiters: dict[TaskHandle[Any], None] = {}

    @coroutine
    def acquire(self) -> Generator[Command, Any, None]:
        """Wait for a permit, and take it.

        Raises:
            EventLoopError: This was awaited outside of an event loop.

        Cancellation: the wait ends, and no permit is taken.
        """
        budget = (here.loop or required_event_loop("Semaphore.acquire()")).budget
        if self.value > 0 and budget.left > 0:
            budget.left -= 1
            self.value -= 1
        else:
            yield SemaphoreAcquireCommand(self)

    def release(self) -> Done:
        """Give a permit to the task that has waited longest, or put it back. Acts at once.

        Returns:
            Something that may be awaited, and need not be.

        Raises:
            ValueError: There would be more than ``max_value``.
        """
        if self.waiters:
            task = take_first(self.waiters)
            task.event_loop.resume(task)
        elif self._max_value is not None and self.value >= self._max_value:
            raise ValueError(f"{self!r} was released more often than acquired")
        else:
            self.value += 1
        return DONE

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    def __aexit__(self, kind: object, error: object, tb: object) -> Awaitable[None]:
        return self.release()

    def __repr__(self) -> str:
        return f"<Semaphore {self.value} free, {len(self.waiters)} waiting>"


class CapacityLimiter:
    """A number of tokens, of which each borrower has at most one; who finds none waits for one in turn.

    Unlike a :class:`Semaphore` it knows who has its tokens, so that none is given back twice or by somebody else, and
    how many there are can be changed at any time. An asynchronous context manager, in which the running task borrows.

    A token stays borrowed until it is given back, also where the task that has borrowed it ends: what it stands for
    may well go on, as a thread does. A limiter serves the tasks of one event loop.

    Args:
        total_tokens: How many may be borrowed at a time: an int from 1 on, or ``math.inf``.

    Raises:
        TypeError: ``total_tokens`` is no int, nor infinite.
        ValueError: ``total_tokens`` is less than 1.

    Example:
        >>> from flowno import CapacityLimiter, run
        >>> async def main():
        ...     limiter = CapacityLimiter(2)
        ...     async with limiter:
        ...         print(limiter.borrowed_tokens, limiter.available_tokens)
        >>> run(main())
        1 1
    """

    __slots__ = ("__weakref__", "_borrowers", "_total_tokens", "waiters")

    def __init__(self, total_tokens: float) -> None:
        self._total_tokens = _checked_tokens(total_tokens)
        self._borrowers: set[Hashable] = set()
        self.waiters: dict[TaskHandle[Any], None] = {}

    @property
    def total_tokens(self) -> float:
        """How many tokens may be borrowed at a time; may be changed at any time.

        More tokens are handed to those who wait, at once. Fewer take none away from who has one.
        """
        return self._total_tokens

    @total_tokens.setter
    def total_tokens(self, total_tokens: float) -> None:
        self._total_tokens = _checked_tokens(total_tokens)
        self._hand_over()

    @property
    def borrowed_tokens(self) -> int:
        """How many tokens are borrowed."""
        return len(self._borrowers)

    @property
    def available_tokens(self) -> float:
        """How many tokens there are to borrow; below 0 where ``total_tokens`` was made less than are borrowed."""
        return self._total_tokens - len(self._borrowers)

    @coroutine
    def acquire(self) -> Generator[Command, Any, None]:
        """Borrow a token for the running task; waits while there is none.

        Raises:
            BusyResourceError: The task has one already; waiting for itself it could wait for ever.
            EventLoopError: This was awaited outside of an event loop.

        Cancellation: the wait ends, and nothing is borrowed.
        """
        yield from self.acquire_on_behalf_of(self._running_task("acquire()"))

    def acquire_nowait(self) -> None:
        """Borrow a token for the running task, without waiting.

        Raises:
            WouldBlockError: There is none.
            BusyResourceError: The task has one already.
            EventLoopError: This was called outside of an event loop.
        """
        self.acquire_on_behalf_of_nowait(self._running_task("acquire_nowait()"))

    def release(self) -> Done:
        """Give back the token of the running task: to the one that has waited longest, or to nobody. Acts at once.

        Returns:
            Something that may be awaited, and need not be.

        Raises:
            NotOwnerError: The task has none.
            EventLoopError: This was called outside of an event loop.
        """
        return self.release_on_behalf_of(self._running_task("release()"))

    @coroutine
    def acquire_on_behalf_of(self, borrower: Hashable) -> Generator[Command, Any, None]:
        """As :meth:`acquire`, for a borrower of any kind.

        Args:
            borrower: Who is to have the token: any object that can be in a set.

        Raises:
            TypeError: ``borrower`` cannot be in a set.
            As :meth:`acquire`.
        """
        budget = (here.loop or required_event_loop("CapacityLimiter.acquire_on_behalf_of()")).budget
        if borrower in self._borrowers:
            yield from completed(budget)
            raise self._has_one_already(borrower)
        if self.has_token and budget.left > 0:
            budget.left -= 1
            self.lend_to(borrower)
        else:
            yield LimiterAcquireCommand(self, borrower)

    def acquire_on_behalf_of_nowait(self, borrower: Hashable) -> None:
        """As :meth:`acquire_nowait`, for a borrower of any kind.

        Raises:
            TypeError: ``borrower`` cannot be in a set.
            As :meth:`acquire_nowait`.
        """
        if borrower in self._borrowers:
            raise self._has_one_already(borrower)
        if not self.has_token:
            raise WouldBlockError(f"{self!r} has no token for {borrower!r}; wait for one with acquire()")
        self.lend_to(borrower)

    def release_on_behalf_of(self, borrower: Hashable) -> Done:
        """As :meth:`release`, for a borrower of any kind.

        Raises:
            NotOwnerError: ``borrower`` has no token.
        """
        if borrower not in self._borrowers:
            raise NotOwnerError(f"{borrower!r} cannot give back a token of {self!r}: it has none")
        self._borrowers.discard(borrower)
        self._hand_over()
        return DONE

    @property
    def has_token(self) -> bool:
        """Whether a token can be borrowed without waiting. Who waits comes first: nobody does while there is one."""
        return len(self._borrowers) < self._total_tokens

    def lend_to(self, borrower: Hashable) -> None:
        """Give a token to a borrower that has none; for the loop. There must be one."""
        self._borrowers.add(borrower)

    def _hand_over(self) -> None:
        """Give the tokens that there are to those who have waited longest; they are lent before these run again."""
        while self.waiters and self.has_token:
            task = take_first(self.waiters)
            command = task._waiting
            if isinstance(command, LimiterAcquireCommand):
                if command.borrower in self._borrowers:  # two tasks have waited for a token for the same borrower
                    task.event_loop.fail(task, self._has_one_already(command.borrower))
                else:
                    self.lend_to(command.borrower)
                    task.event_loop.resume(task)

    def _has_one_already(self, borrower: Hashable) -> BusyResourceError:
        return BusyResourceError(f"{borrower!r} has a token of {self!r} already; a borrower has one at most")

    def _running_task(self, operation: str) -> Hashable:
        return required_event_loop(f"CapacityLimiter.{operation}").running_task

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    def __aexit__(self, kind: object, error: object, tb: object) -> Awaitable[None]:
        return self.release()

    def __repr__(self) -> str:
        return f"<CapacityLimiter {len(self._borrowers)} of {self._total_tokens} borrowed, {len(self.waiters)} waiting>"


def _checked_tokens(total_tokens: float) -> float:
    if not isinstance(total_tokens, int) and total_tokens != inf:
        raise TypeError(f"total_tokens must be an int or math.inf, not {total_tokens!r}")
    if total_tokens < 1:
        raise ValueError(f"total_tokens must be at least 1, and is {total_tokens!r}")
    return total_tokens


class CountdownLatch:
    """Lets tasks wait until something has happened a number of times.

    Args:
        count: How many times.

    Raises:
        ValueError: ``count`` is negative.
    """

    __slots__ = ("__weakref__", "_event", "count")

    def __init__(self, count: int) -> None:
        if count < 0:
            raise ValueError(f"count must not be negative, and is {count!r}")
        self.count = count
        self._event = Event()
        if not count:
            self._event.set()

    def wait(self) -> Awaitable[None]:
        """Wait until the count is zero; returns at once where it is.

        Cancellation: the wait ends, and the count is not affected.
        """
        return self._event.wait()

    def count_down(self) -> Done:
        """It has happened once more. Acts at once; below zero there is nothing to count.

        Returns:
            Something that may be awaited, and need not be.
        """
        if self.count > 0:
            self.count -= 1
            if not self.count:
                self._event.set()
        return DONE

    def __repr__(self) -> str:
        return f"<CountdownLatch at {self.count}, {len(self._event.waiters)} waiting>"
