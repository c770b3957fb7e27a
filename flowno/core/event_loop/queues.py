"""Queues between the tasks of one event loop.

An item goes from hand to hand: whoever waits for one is given it at the moment at which it is put, in the order in
which they came, and has it even where its task is cancelled before it runs again. So nothing is lost or overtakes.

What a queue cannot keep, such as an item that cannot be hashed or compared, is an error of whoever puts it, and leaves
no trace. Other threads and signal handlers leave queues alone, and start a task that puts or gets.
"""

from __future__ import annotations

from bisect import bisect_right, insort_right
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterable, Sized
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from .commands import Command, EventWaitCommand, QueueGetCommand, QueuePeekCommand, QueuePutCommand
from .errors import QueueClosedError, QueueEmptyError, QueueFullError
from .operations import coroutine
from .running import here, required_event_loop
from .synchronization import Event, check_at_hand, check_count, take_first
from .tasks import DONE, completed

if TYPE_CHECKING:
    from typing import Self

    from .event_loop import EventLoop
    from .tasks import Done, TaskHandle

__all__ = [
    "AsyncLifoQueue",
    "AsyncMapQueue",
    "AsyncPriorityQueue",
    "AsyncQueue",
    "AsyncSetQueue",
    "QueueClosedError",
    "QueueEmptyError",
    "QueueFullError",
]

T = TypeVar("T")
K = TypeVar("K")
C = TypeVar("C")
Put = TypeVar("Put")
Got = TypeVar("Got")


class BaseQueue(Generic[Put, Got]):
    """What every queue does; a subclass says how items are kept.

    Args:
        maxsize: How many items it holds at most; None sets no limit.
        kept: What the items are kept in; true where there is one.

    Raises:
        TypeError: ``maxsize`` is no number of items.
        ValueError: ``maxsize`` is less than 1.
    """

    def __init__(self, maxsize: int | None, kept: Sized) -> None:
        if maxsize is not None:
            check_count("maxsize", maxsize, 1)
        self._maxsize = maxsize
        self._kept = kept
        # Whoever waits for an item, or looks for one, found the queue empty; whoever waits for room found it full.
        self.getters: dict[TaskHandle[Any], None] = {}
        self.peekers: dict[TaskHandle[Any], None] = {}
        self.putters: dict[TaskHandle[Any], None] = {}
        self._closed = False
        self._unfinished = 0
        self._all_done: Event | None = None  # where somebody waits for that

    # --- how items are kept ------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many items are in the queue."""
        raise NotImplementedError

    def _add_or_join(self, item: Put) -> bool | None:
        """Keep an item; true where it has joined one that is there already. What raises has changed nothing."""
        raise NotImplementedError

    def _pass(self, item: Put) -> Any:
        """What comes out when an item goes through an empty queue. Raises what :meth:`_add_or_join` does."""
        return item

    def _first(self) -> Got:
        """The item that is next, which stays; for the loop, too."""
        raise NotImplementedError

    def _remove(self) -> Got:
        """Take the next item out."""
        raise NotImplementedError

    def _joins(self, item: Put) -> bool:
        """Whether an item needs no room, as it comes to one that is there already."""
        return False

    # --- for users ---------------------------------------------------------------------------------------------------

    @property
    def maxsize(self) -> int | None:
        """How many items the queue holds at most, or None."""
        return self._maxsize

    def is_closed(self) -> bool:
        """Whether the queue takes no more items."""
        return self._closed

    @property
    def closed(self) -> bool:
        """Whether the queue takes no more items."""
        return self._closed

    @coroutine
    def put(self, item: Put) -> Generator[Command, Any, None]:
        """Put an item into the queue; waits while it is full.

        Raises:
            QueueClosedError: The queue is closed, or was closed meanwhile. The item is not in it.
            TypeError: The queue cannot keep such an item. It is not in it.
            EventLoopError: This was awaited outside of an event loop.

        Cancellation: the item is not in the queue. Where it was let in already this returns, and the cancellation comes
        at the next wait.
        """
        budget = (here.loop or required_event_loop("put()")).budget
        if budget.left > 0 and not self._closed:
            budget.left -= 1
            if self._maxsize is None or self._has_room(item):
                self._take_in(item)
                return
        yield QueuePutCommand(self, item)

    @coroutine
    def get(self) -> Generator[Command, Any, Got]:
        """Take the next item out of the queue; waits while it is empty.

        Raises:
            QueueClosedError: The queue is closed, or was closed meanwhile, and is empty.
            EventLoopError: This was awaited outside of an event loop.

        Cancellation: no item is taken. One that was given to the task already is returned, and the cancellation comes
        at the next wait.
        """
        loop = here.loop or required_event_loop("get()")
        if self._kept and loop.budget.left > 0:
            loop.budget.left -= 1
            return self._give_out() if self.putters else self._remove()
        item: Got = yield QueueGetCommand(self)
        return item

    @coroutine
    def peek(self) -> Generator[Command, Any, Got]:
        """The next item, which stays in the queue; waits while it is empty.

        After a wait it is the item that ended the wait, which another task may have taken out by then.

        Raises:
            QueueClosedError: The queue is closed, or was closed meanwhile, and is empty.
            EventLoopError: This was awaited outside of an event loop.

        Cancellation: the wait ends.
        """
        budget = (here.loop or required_event_loop("peek()")).budget
        if self._kept and budget.left > 0:
            budget.left -= 1
            return self._first()
        item: Got = yield QueuePeekCommand(self)
        return item

    def get_nowait(self) -> Got:
        """Take the next item out of the queue, without waiting.

        Raises:
            QueueEmptyError: There is none.
            QueueClosedError: There is none, and there will be none.
        """
        if self._kept:
            return self._give_out()
        self._check_open("get_nowait()")
        raise QueueEmptyError("get_nowait() on an empty queue")

    def _put_nowait(self, item: Put) -> bool:
        self._check_open("put_nowait()")
        if not self._has_room(item):
            raise QueueFullError(f"put_nowait() on a queue that holds {len(self)} items, which is its maxsize")
        return self._take_in(item)

    def close(self) -> Done:
        """Take no more items. Acts at once, and only once.

        Who waits to put gets QueueClosedError, and the item is not in the queue; who waits to get gets it, too. What
        is in the queue can still be got.

        Returns:
            Something that may be awaited, and need not be.

        Raises:
            EventLoopError: The tasks that wait are those of a loop that runs in another thread.
        """
        waiting = ((self.putters, "put"), (self.getters, "get"), (self.peekers, "peek"))
        for waiters, _ in waiting:
            if waiters:
                check_at_hand(waiters, "close()")
        self._closed = True
        for waiters, operation in waiting:
            while waiters:
                task = take_first(waiters)
                task.event_loop.resume_with_error(
                    task, QueueClosedError(f"the queue was closed while {operation}() waited")
                )
        return DONE

    def task_done(self) -> None:
        """One item that was taken out has been dealt with; for :meth:`join`.

        What came to an item that was in the queue already does not count: each ``get()`` is one item.

        Raises:
            ValueError: This was called more often than items were put.
            EventLoopError: The tasks that join are those of a loop that runs in another thread.
        """
        if not self._unfinished:
            raise ValueError("task_done() was called more often than items were put")
        if self._unfinished == 1 and self._all_done is not None:
            self._all_done.set()
            self._all_done = None
        self._unfinished -= 1

    @coroutine
    def join(self) -> Generator[Command, Any, None]:
        """Wait until every item that was put has been taken out and dealt with, by :meth:`task_done`.

        Cancellation: the wait ends.
        """
        if self._unfinished:
            self._all_done = self._all_done or Event()
            yield EventWaitCommand(self._all_done)
        else:
            yield from completed((here.loop or required_event_loop("join()")).budget)

    async def until_empty(self) -> AsyncIterator[Got]:
        """Step through the items that are in the queue, taking them out; then close it.

        Items that are put meanwhile are among them. Where the steps end before the queue is empty, it stays open.
        """
        await DONE  # of an empty queue it would never give way
        while self._kept:
            yield await self.get()
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Got:
        """The next item; the iteration ends when the queue is closed and empty."""
        try:
            return await self.get()
        except QueueClosedError:
            raise StopAsyncIteration from None

    def __repr__(self) -> str:
        closed = ", closed" if self._closed else ""
        return f"<{type(self).__name__} with {len(self)} items{closed}>"

    # --- for the loop ------------------------------------------------------------------------------------------------

    def _check_open(self, operation: str) -> None:
        """Refuse to put into a closed queue, or to wait for its next item."""
        if self._closed:
            empty = "" if operation.startswith("put") else " and empty"
            raise QueueClosedError(f"{operation} on a queue that is closed{empty}")

    def _has_room(self, item: Put) -> bool:
        """Whether an item can be put without waiting; those who wait already come first."""
        return self._maxsize is None or (len(self) < self._maxsize and not self.putters) or self._joins(item)

    def _take_in(self, item: Put) -> bool:
        """Keep an item, or give it to whoever waits for one; False where it has joined one that is there."""
        if self.peekers:
            check_at_hand(self.peekers, "put()")
        for task in self.getters:  # the one that has waited longest; quicker than take_first(), which is a call
            loop = task.event_loop
            if loop is not here.loop:
                check_at_hand(self.getters, "put()")
            passed = self._pass(item)
            if self.peekers:
                self._show(item)
            del self.getters[task]
            loop.resume(task, passed)
            break
        else:
            if self._add_or_join(item):
                return False
            if self.peekers:
                self._show(item)
        self._unfinished += 1
        return True

    def _show(self, item: Put) -> None:
        """Answer those who wait to see an item."""
        while self.peekers:
            task = take_first(self.peekers)
            task.event_loop.resume(task, self._pass(item))

    def _give_out(self) -> Got:
        """Take the next item out, and let in who waits with another."""
        if self.putters:
            check_at_hand(self.putters, "get()")
            item = self._remove()
            self._let_in()
            return item
        return self._remove()

    def _let_in(self) -> None:
        """Put the items of those who wait for room, as far as there is room."""
        while self.putters and self._maxsize is not None and len(self) < self._maxsize:
            self._put_for(next(iter(self.putters)))

    def _put_for(self, task: TaskHandle[Any]) -> None:
        """Put the item of a task that waits for room; what goes wrong is for that task."""
        item = waiting_item(task)
        del self.putters[task]
        try:
            self._take_in(item)
        except Exception as error:
            task.event_loop.resume_with_error(task, error.with_traceback(None))
        else:
            task.event_loop.resume(task)


def waiting_item(task: TaskHandle[Any]) -> Any:
    """What a task that waits for room wants to put."""
    return cast(QueuePutCommand, task._waiting).item


class _GatheringQueue(BaseQueue[Put, Got]):
    """A queue in which an item comes to one that is there already."""

    def _joins(self, item: Put) -> bool:
        raise NotImplementedError

    def _let_in(self) -> None:
        super()._let_in()
        for task in list(self.putters):  # what they wait with may need no room any more
            if self._joins(waiting_item(task)):
                self._put_for(task)


class AsyncQueue(BaseQueue[T, T]):
    """First in, first out.

    Args:
        maxsize: How many items it holds at most; None sets no limit.

    Example:
        >>> from flowno import AsyncQueue, run, spawn
        >>> async def produce(queue):
        ...     for number in range(3):
        ...         await queue.put(number)
        ...     queue.close()
        >>> async def main():
        ...     queue = AsyncQueue(maxsize=1)
        ...     await spawn(produce(queue))
        ...     return [number async for number in queue]
        >>> run(main())
        [0, 1, 2]
    """

    def __init__(self, maxsize: int | None = None) -> None:
        self._items: deque[T] = deque()
        super().__init__(maxsize, self._items)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def items(self) -> list[T]:
        """What is in the queue, the next one first."""
        return list(self._items)

    def put_nowait(self, item: T) -> None:
        """Put an item into the queue, without waiting.

        Raises:
            QueueFullError: There is no room.
            QueueClosedError: The queue is closed.
        """
        self._put_nowait(item)

    def _add_or_join(self, item: T) -> None:
        self._items.append(item)

    def _first(self) -> T:
        return self._items[0]

    def _remove(self) -> T:
        return self._items.popleft()


class AsyncLifoQueue(AsyncQueue[T]):
    """Last in, first out.

    Example:
        >>> from flowno import AsyncLifoQueue, run
        >>> async def main():
        ...     queue = AsyncLifoQueue()
        ...     for number in range(3):
        ...         await queue.put(number)
        ...     return await queue.get()
        >>> run(main())
        2
    """

    @property
    def items(self) -> list[T]:
        """What is in the queue, the next one first."""
        return list(reversed(self._items))

    def _first(self) -> T:
        return self._items[-1]

    def _remove(self) -> T:
        return self._items.pop()


class AsyncPriorityQueue(BaseQueue[T, T]):
    """The smallest first; of equal ones the one that was put first.

    Items are compared by ``<`` as they are, each as it is put, with its neighbours in the order among others. Tuples of
    a priority and a load compare their loads where the priorities are equal; where those cannot be compared, put a
    number in between.

    Example:
        >>> from flowno import AsyncPriorityQueue, run
        >>> async def main():
        ...     queue = AsyncPriorityQueue()
        ...     for item in ((2, "later"), (1, "first")):
        ...         await queue.put(item)
        ...     return await queue.get()
        >>> run(main())
        (1, 'first')
    """

    def __init__(self, maxsize: int | None = None) -> None:
        # Sorted, in runs of limited length, of which none is empty. A heap would be less code, but it compares also
        # when it gives an item out, and then loses it where that raises; and it moves items before a put has made its
        # last comparison. One sorted list would do up to some ten thousand items.
        self._runs: list[list[Any]] = []
        self._length = 0
        super().__init__(maxsize, self._runs)

    def __len__(self) -> int:
        return self._length

    @property
    def items(self) -> list[T]:
        """What is in the queue, the next one first."""
        return list(chain.from_iterable(self._runs))

    def put_nowait(self, item: T) -> None:
        """Put an item into the queue, without waiting.

        Raises:
            QueueFullError: There is no room.
            QueueClosedError: The queue is closed.
            TypeError: The item cannot be compared with those in the queue. It is not in it.
        """
        self._put_nowait(item)

    def _add_or_join(self, item: T) -> None:
        runs = self._runs
        key: Any = item  # whether it can be compared is seen when it is
        if runs:
            index = bisect_right(runs, key, hi=len(runs) - 1, key=_last)
            run = runs[index]
            insort_right(run, key)
            if len(run) > LONGEST_RUN:
                runs.insert(index + 1, run[LONGEST_RUN // 2 :])
                del run[LONGEST_RUN // 2 :]
        else:
            runs.append([key])
        self._length += 1

    def _first(self) -> T:
        item: T = self._runs[0][0]
        return item

    def _remove(self) -> T:
        run = self._runs[0]
        item: T = run.pop(0)
        if not run:
            del self._runs[0]
        self._length -= 1
        return item


#: Items of a priority queue that stand in one list. Longer ones cost more to insert into, more of them to step over.
LONGEST_RUN = 1024


def _last(run: list[Any]) -> Any:
    return run[-1]


class AsyncSetQueue(_GatheringQueue[T, T]):
    """First in, first out, and no item twice: one that is in the queue already is not put again.

    Items are told apart as the keys of a dict are, and must be hashable.

    Example:
        >>> from flowno import AsyncSetQueue, run
        >>> async def main():
        ...     queue = AsyncSetQueue()
        ...     await queue.putAll(["a", "b", "a"])
        ...     return queue.items
        >>> run(main())
        ['a', 'b']
    """

    def __init__(self, maxsize: int | None = None) -> None:
        self._items: dict[T, None] = {}
        super().__init__(maxsize, self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, item: object) -> bool:
        return item in self._items

    @property
    def items(self) -> list[T]:
        """What is in the queue, the next one first."""
        return list(self._items)

    def put_nowait(self, item: T, loop: EventLoop | None = None) -> bool:
        """Put an item into the queue, without waiting.

        Args:
            item: The item.
            loop: Not needed; here for programs that pass it.

        Returns:
            Whether it was put; False where it is in the queue already.

        Raises:
            QueueFullError: There is no room.
            QueueClosedError: The queue is closed.
            TypeError: The item cannot be hashed. It is not in the queue.
        """
        return self._put_nowait(item)

    async def putAll(self, items: Iterable[T]) -> None:
        """Put several items, one after the other, each as :meth:`put` does. Those before an error are in the queue."""
        for item in items:
            await self.put(item)

    def _joins(self, item: T) -> bool:
        return item in self._items

    def _pass(self, item: T) -> T:
        hash(item)
        return item

    def _add_or_join(self, item: T) -> bool:
        if item in self._items:
            return True
        self._items[item] = None
        return False

    def _first(self) -> T:
        return next(iter(self._items))

    def _remove(self) -> T:
        item = next(iter(self._items))
        del self._items[item]
        return item


class AsyncMapQueue(_GatheringQueue[tuple[K, C], tuple[K, list[C]]]):
    """First in, first out by key: what is put for a key that is in the queue already is gathered there.

    ``put((key, cause))``, and ``get()`` gives ``(key, [cause, ...])``. Keys must be hashable.

    Example:
        >>> from flowno import AsyncMapQueue, run
        >>> async def main():
        ...     queue = AsyncMapQueue()
        ...     for item in (("a.txt", "saved"), ("b.txt", "saved"), ("a.txt", "renamed")):
        ...         await queue.put(item)
        ...     return await queue.get()
        >>> run(main())
        ('a.txt', ['saved', 'renamed'])
    """

    def __init__(self, maxsize: int | None = None) -> None:
        self._causes: dict[K, list[C]] = {}
        super().__init__(maxsize, self._causes)

    def __len__(self) -> int:
        return len(self._causes)

    def __contains__(self, key: object) -> bool:
        return key in self._causes

    @property
    def items(self) -> list[tuple[K, list[C]]]:
        """What is in the queue, the next one first."""
        return [(key, list(causes)) for key, causes in self._causes.items()]

    def put_nowait(self, item: tuple[K, C]) -> bool:
        """Put a key and a cause into the queue, without waiting.

        Returns:
            Whether the key was put; False where it is in the queue already, and the cause came to it.

        Raises:
            QueueFullError: There is no room.
            QueueClosedError: The queue is closed.
            TypeError: The key cannot be hashed. It is not in the queue.
        """
        return self._put_nowait(item)

    def _joins(self, item: tuple[K, C]) -> bool:
        key, _ = item
        return key in self._causes

    def _pass(self, item: tuple[K, C]) -> tuple[K, list[C]]:
        key, cause = item
        hash(key)
        return key, [cause]

    def _add_or_join(self, item: tuple[K, C]) -> bool:
        key, cause = item
        if key in self._causes:
            self._causes[key].append(cause)
            return True
        self._causes[key] = [cause]
        return False

    def _first(self) -> tuple[K, list[C]]:
        key, causes = next(iter(self._causes.items()))
        return key, list(causes)

    def _remove(self) -> tuple[K, list[C]]:
        key = next(iter(self._causes))
        return key, self._causes.pop(key)
