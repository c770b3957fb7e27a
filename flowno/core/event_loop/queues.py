"""Queues between the tasks of one event loop.

An item goes from hand to hand: whoever waits for one is given it at the moment at which it is put, in the order in
which they came, and has it even where its task is cancelled before it runs again. So nothing is lost or overtakes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Generator, Iterable
from heapq import heappop, heappush
from types import coroutine
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .commands import Command, QueueGetCommand, QueuePeekCommand, QueuePutCommand
from .errors import QueueClosedError, QueueEmptyError, QueueFullError
from .running import here, required_event_loop
from .synchronization import Event, completed, take_first
from .tasks import DONE

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


class _Queue(Generic[Put, Got]):
    """What every queue does; a subclass says how items are kept.

    Args:
        maxsize: How many items it holds at most; None sets no limit.

    Raises:
        ValueError: ``maxsize`` is less than 1.
    """

    def __init__(self, maxsize: int | None = None) -> None:
        if maxsize is not None and maxsize < 1:
            raise ValueError(f"maxsize must be None or at least 1, and is {maxsize!r}")
        self.maxsize = maxsize
        self.getters: dict[TaskHandle[Any], None] = {}
        self.peekers: dict[TaskHandle[Any], None] = {}
        self.putters: dict[TaskHandle[Any], None] = {}
        self._closed = False
        self._unfinished = 0
        self._all_done = Event()
        self._all_done.set()

    # --- how items are kept ------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many items are in the queue."""
        raise NotImplementedError

    def _add(self, item: Put) -> bool:
        """Keep an item; False where it came to one that is there already."""
        raise NotImplementedError

    def _next(self) -> Got:
        """The item that is next, which stays."""
        raise NotImplementedError

    def _remove(self) -> Got:
        """Take the next item out."""
        raise NotImplementedError

    def _joins(self, item: Put) -> bool:
        """Whether an item needs no room, as it comes to one that is there already."""
        return False

    # --- for users ---------------------------------------------------------------------------------------------------

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

        Cancellation: the item is not in the queue.
        """
        budget = (here.loop or required_event_loop("put()")).budget
        if self._closed:
            yield from completed(budget)
            raise QueueClosedError("put() on a closed queue")
        if budget.left > 0 and self.has_room(item):
            budget.left -= 1
            self.add(item)
        else:
            yield QueuePutCommand(self, item)

    @coroutine
    def get(self) -> Generator[Command, Any, Got]:
        """Take the next item out of the queue; waits while it is empty.

        Raises:
            QueueClosedError: The queue is closed, or was closed meanwhile, and is empty.

        Cancellation: no item is taken. One that was given to the task already is returned, and the cancellation comes
        at the next wait.
        """
        budget = (here.loop or required_event_loop("get()")).budget
        if budget.left > 0 and len(self):
            budget.left -= 1
            return self.take()
        if self._closed and not len(self):
            yield from completed(budget)
            raise QueueClosedError("get() on a queue that is closed and empty")
        item: Got = yield QueueGetCommand(self)
        return item

    @coroutine
    def peek(self) -> Generator[Command, Any, Got]:
        """The next item, which stays in the queue; waits while it is empty.

        Raises:
            QueueClosedError: The queue is closed, or was closed meanwhile, and is empty.

        Cancellation: the wait ends.
        """
        budget = (here.loop or required_event_loop("peek()")).budget
        if len(self):
            item = self._next()
            yield from completed(budget)
            return item
        if self._closed:
            yield from completed(budget)
            raise QueueClosedError("peek() on a queue that is closed and empty")
        item = yield QueuePeekCommand(self)
        return item

    def get_nowait(self) -> Got:
        """Take the next item out of the queue, without waiting.

        Raises:
            QueueEmptyError: There is none.
            QueueClosedError: There is none, and there will be none.
        """
        if len(self):
            return self.take()
        if self._closed:
            raise QueueClosedError("get_nowait() on a queue that is closed and empty")
        raise QueueEmptyError("get_nowait() on an empty queue")

    def _put_nowait(self, item: Put) -> bool:
        if self._closed:
            raise QueueClosedError("put_nowait() on a closed queue")
        if not self.has_room(item):
            raise QueueFullError(f"put_nowait() on a queue that holds {len(self)} items, which is its maxsize")
        return self.add(item)

    def close(self) -> Done:
        """Take no more items. Who waits to put gets QueueClosedError, and so does who waits to get. Acts at once.

        Returns:
            Something that may be awaited, and need not be.
        """
        self._closed = True
        for waiters, operation in ((self.putters, "put"), (self.getters, "get"), (self.peekers, "peek")):
            while waiters:
                task = take_first(waiters)
                task.event_loop.fail(task, QueueClosedError(f"the queue was closed while {operation}() waited"))
        return DONE

    def task_done(self) -> None:
        """One item that was taken out has been dealt with; for :meth:`join`.

        Raises:
            ValueError: This was called more often than items were put.
        """
        if not self._unfinished:
            raise ValueError("task_done() was called more often than items were put")
        self._unfinished -= 1
        if not self._unfinished:
            self._all_done.set()

    def join(self) -> Awaitable[None]:
        """Wait until every item that was put has been taken out and dealt with, by :meth:`task_done`."""
        return self._all_done.wait()

    async def until_empty(self) -> AsyncIterator[Got]:
        """Step through the items that are in the queue, taking them out; then close it.

        Raises:
            As :meth:`get`.
        """
        while len(self):
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

    def has_room(self, item: Put) -> bool:
        """Whether an item can be put without waiting; those who wait already come first."""
        return self.maxsize is None or (len(self) < self.maxsize and not self.putters) or self._joins(item)

    def add(self, item: Put) -> bool:
        """Keep an item, and give it to whoever waits for one; False where it came to one that is there already."""
        is_new = self._add(item)
        if is_new:
            if not self._unfinished:
                self._all_done = Event()
            self._unfinished += 1
            while self.peekers:
                task = take_first(self.peekers)
                task.event_loop.resume(task, self._next())
            if self.getters:
                task = take_first(self.getters)
                task.event_loop.resume(task, self.take())
        return is_new

    def take(self) -> Got:
        """Take the next item out, and let in who waits with another."""
        item = self._remove()
        while self.putters and self.maxsize is not None and len(self) < self.maxsize:
            task = take_first(self.putters)
            command = task._waiting
            task.event_loop.resume(task)
            if isinstance(command, QueuePutCommand):
                self.add(command.item)
        return item


class AsyncQueue(_Queue[T, T]):
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
        super().__init__(maxsize)
        self._items: deque[T] = deque()

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

    def _add(self, item: T) -> bool:
        self._items.append(item)
        return True

    def _next(self) -> T:
        return self._items[0]

    def _remove(self) -> T:
        return self._items.popleft()


class AsyncLifoQueue(AsyncQueue[T]):
    """Last in, first out."""

    @property
    def items(self) -> list[T]:
        """What is in the queue, the next one first."""
        return list(reversed(self._items))

    def _next(self) -> T:
        return self._items[-1]

    def _remove(self) -> T:
        return self._items.pop()


class AsyncPriorityQueue(_Queue[T, T]):
    """The smallest first; of equal ones the one that was put first."""

    def __init__(self, maxsize: int | None = None) -> None:
        super().__init__(maxsize)
        self._heap: list[tuple[T, int]] = []
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def items(self) -> list[T]:
        """What is in the queue, the next one first."""
        return [item for item, _ in sorted(self._heap)]

    def put_nowait(self, item: T) -> None:
        """Put an item into the queue, without waiting.

        Raises:
            QueueFullError: There is no room.
            QueueClosedError: The queue is closed.
        """
        self._put_nowait(item)

    def _add(self, item: T) -> bool:
        self._sequence += 1
        heappush(self._heap, (item, self._sequence))
        return True

    def _next(self) -> T:
        return self._heap[0][0]

    def _remove(self) -> T:
        return heappop(self._heap)[0]


class AsyncSetQueue(_Queue[T, T]):
    """First in, first out, and no item twice: one that is in the queue already is not put again."""

    def __init__(self, maxsize: int | None = None) -> None:
        super().__init__(maxsize)
        self._items: dict[T, None] = {}

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
        """
        return self._put_nowait(item)

    async def putAll(self, items: Iterable[T]) -> None:
        """Put several items, one after the other; as :meth:`put`."""
        for item in items:
            await self.put(item)

    def _joins(self, item: T) -> bool:
        return item in self._items

    def _add(self, item: T) -> bool:
        if item in self._items:
            return False
        self._items[item] = None
        return True

    def _next(self) -> T:
        return next(iter(self._items))

    def _remove(self) -> T:
        item = next(iter(self._items))
        del self._items[item]
        return item


class AsyncMapQueue(_Queue[tuple[K, C], tuple[K, list[C]]]):
    """First in, first out by key: what is put for a key that is in the queue already is gathered there.

    ``put((key, cause))``, and ``get()`` gives ``(key, [cause, ...])``.
    """

    def __init__(self, maxsize: int | None = None) -> None:
        super().__init__(maxsize)
        self._causes: dict[K, list[C]] = {}

    def __len__(self) -> int:
        return len(self._causes)

    def __contains__(self, key: object) -> bool:
        return key in self._causes

    @property
    def items(self) -> list[tuple[K, list[C]]]:
        """What is in the queue, the next one first."""
        return [(key, list(causes)) for key, causes in self._causes.items()]

    def _joins(self, item: tuple[K, C]) -> bool:
        return item[0] in self._causes

    def _add(self, item: tuple[K, C]) -> bool:
        key, cause = item
        if key in self._causes:
            self._causes[key].append(cause)
            return False
        self._causes[key] = [cause]
        return True

    def _next(self) -> tuple[K, list[C]]:
        key, causes = next(iter(self._causes.items()))
        return key, list(causes)

    def _remove(self) -> tuple[K, list[C]]:
        key = next(iter(self._causes))
        return key, self._causes.pop(key)
