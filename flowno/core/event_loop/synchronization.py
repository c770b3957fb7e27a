"""What tasks of one event loop use to wait for each other."""

from __future__ import annotations

from collections.abc import Generator
from types import coroutine
from typing import TYPE_CHECKING, Any

from .commands import Command, EventWaitCommand
from .running import required_event_loop
from .tasks import DONE, GIVE_WAY

if TYPE_CHECKING:
    from .tasks import Done, TaskHandle

__all__ = ["Event"]


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
        self.waiters: dict[TaskHandle[Any], None] = {}  # the tasks that wait, in the order in which they came

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
            task = next(iter(waiters))
            del waiters[task]
            task.event_loop.resume(task)
        return DONE

    @coroutine
    def wait(self) -> Generator[Command, Any, None]:
        """Wait until it has happened; returns at once where it has.

        Raises:
            EventLoopError: This was awaited outside of an event loop.

        Cancellation: the wait ends, and the event is not affected.
        """
        budget = required_event_loop("Event.wait()").budget
        if not self._is_set:
            yield EventWaitCommand(self)
        elif budget.left > 0:
            budget.left -= 1
        else:
            yield GIVE_WAY

    def __repr__(self) -> str:
        return f"<Event {'set' if self._is_set else 'not set'}, {len(self.waiters)} waiting>"
