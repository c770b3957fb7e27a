"""Where a number of tasks wait for each other."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import TYPE_CHECKING, Any, NamedTuple

from .commands import BarrierWaitCommand, Command
from .errors import BrokenBarrierError
from .operations import coroutine
from .running import here, required_event_loop
from .synchronization import check_at_hand, check_count, take_first
from .tasks import DONE, LEFT

if TYPE_CHECKING:
    from .tasks import Done, TaskHandle

__all__ = ["Barrier", "BarrierStatistics"]


class BarrierStatistics(NamedTuple):
    """What :meth:`Barrier.statistics` returns.

    Attributes:
        tasks_waiting: How many tasks wait for the others.
        parties: How many there must be.
        broken: Whether it was aborted.
    """

    tasks_waiting: int
    parties: int
    broken: bool


class Barrier:
    """Where a number of tasks wait for each other: they go on together, as soon as the last has come.

    It serves one round after the other. A round is over at the moment at which its last task comes: the others have
    been let through by then, also where they have not run yet, and whoever comes next waits for the next round.

    ``async with barrier as index`` waits at its beginning, and does nothing at its end.

    Args:
        parties: How many tasks go on together.

    Raises:
        TypeError: ``parties`` is no number of tasks.
        ValueError: ``parties`` is less than 1.

    Example:
        >>> from flowno import Barrier, run, spawn
        >>> async def work(name, barrier, log):
        ...     log.append(f"{name} is ready")
        ...     async with barrier:
        ...         log.append(f"{name} goes on")
        >>> async def main():
        ...     barrier, log = Barrier(2), []
        ...     for task in [await spawn(work(name, barrier, log)) for name in "ab"]:
        ...         await task.join()
        ...     return log
        >>> run(main())
        ['a is ready', 'b is ready', 'b goes on', 'a goes on']
    """

    __slots__ = ("__weakref__", "_broken", "_parties", "waiters")

    def __init__(self, parties: int) -> None:
        check_count("parties", parties, 1)
        self._parties = parties
        self._broken = False
        self.waiters: dict[TaskHandle[Any], None] = {}

    @property
    def parties(self) -> int:
        """How many tasks go on together."""
        return self._parties

    @property
    def n_waiting(self) -> int:
        """How many tasks have come, and wait for the others."""
        return len(self.waiters)

    @property
    def broken(self) -> bool:
        """Whether it was aborted, and not reset since."""
        return self._broken

    @coroutine
    def wait(self) -> Generator[Command, Any, int]:
        """Wait until as many tasks have come as the barrier is for.

        Returns:
            A number from 0 to ``parties - 1`` that no other task of the round gets, in the order in which they came.

        Raises:
            BrokenBarrierError: The barrier was aborted, before or meanwhile, or reset meanwhile.
            EventLoopError: This was awaited outside of an event loop.

        Cancellation: the task leaves, as if it had not come, and the others go on waiting for one more. Where it will
        not come back, :meth:`abort` tells them. A task that was let through already has its number, and is cancelled at
        its next wait.
        """
        budget = (here.loop or required_event_loop("Barrier.wait()")).budget
        if budget.left > 0 and self._lacks_one:
            budget.left -= 1
            return self._let_through()
        index: int = yield BarrierWaitCommand(self)
        return index

    def reset(self) -> Done:
        """Empty the barrier, and make a broken one usable again. Who waits gets BrokenBarrierError. Acts at once.

        Returns:
            Something that may be awaited, and need not be.

        Raises:
            EventLoopError: The tasks that wait are those of a loop that runs in another thread.
        """
        self._turn_away("reset")
        self._broken = False
        return DONE

    def abort(self) -> Done:
        """Break the barrier: who waits, and who comes before :meth:`reset`, gets BrokenBarrierError. Acts at once.

        Returns:
            Something that may be awaited, and need not be.

        Raises:
            EventLoopError: The tasks that wait are those of a loop that runs in another thread.
        """
        self._turn_away("abort")
        self._broken = True
        return DONE

    def statistics(self) -> BarrierStatistics:
        """Who waits, for debugging."""
        return BarrierStatistics(len(self.waiters), self._parties, self._broken)

    def _turn_away(self, operation: str) -> None:
        waiters = self.waiters
        if waiters:
            check_at_hand(waiters, f"Barrier.{operation}()")
        while waiters:
            task = take_first(waiters)
            task.event_loop.resume_with_error(task, BrokenBarrierError(f"{operation}() was called while wait() waited"))

    # --- for the loop ------------------------------------------------------------------------------------------------

    @property
    def _lacks_one(self) -> bool:
        """Whether the next task that comes is the last of its round."""
        return len(self.waiters) + 1 == self._parties and not self._broken

    def _let_through(self) -> int:
        """The last task of a round has come: wake the others, each with its number.

        Returns:
            The number of the last.
        """
        waiters = self.waiters
        if waiters:
            check_at_hand(waiters, "Barrier.wait()")
        for index in range(len(waiters)):
            task = take_first(waiters)
            task.event_loop.resume(task, index)
        return self._parties - 1

    def _check_usable(self) -> None:
        """Refuse a task that comes to a broken barrier."""
        if self._broken:
            raise BrokenBarrierError("wait() at a barrier that was aborted; reset() makes it usable again")

    async def __aenter__(self) -> int:
        return await self.wait()

    def __aexit__(self, kind: object, error: object, tb: object) -> Awaitable[None]:
        return LEFT

    def __repr__(self) -> str:
        state = "broken" if self._broken else f"{len(self.waiters)} waiting"
        return f"<Barrier for {self._parties}, {state}>"
