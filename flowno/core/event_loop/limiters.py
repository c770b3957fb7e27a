"""Tokens of which each borrower has one at most.

As fair as all that tasks wait in, see :mod:`~flowno.core.event_loop.synchronization`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator, Hashable
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from .commands import Command, LimiterAcquireCommand
from .errors import BusyResourceError, NotOwnerError, WouldBlockError
from .operations import coroutine
from .running import here, required_event_loop
from .synchronization import check_at_hand, running_task, take_first
from .tasks import DONE, LEFT, completed

if TYPE_CHECKING:
    from typing import Self

    from .tasks import Done, TaskHandle

__all__ = ["CapacityLimiter", "CapacityLimiterStatistics"]


class CapacityLimiterStatistics(NamedTuple):
    """What :meth:`CapacityLimiter.statistics` returns.

    Attributes:
        borrowed_tokens: How many tokens are borrowed.
        total_tokens: How many may be borrowed at a time.
        borrowers: Who has a token, in no particular order.
        tasks_waiting: How many tasks wait for one.
    """

    borrowed_tokens: int
    total_tokens: float
    borrowers: list[Hashable]
    tasks_waiting: int


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

        Setting it raises:
            TypeError: It is no int, nor infinite.
            ValueError: It is less than 1.
            EventLoopError: The tasks that wait are those of a loop that runs in another thread.
        """
        return self._total_tokens

    @total_tokens.setter
    def total_tokens(self, total_tokens: float) -> None:
        checked = _checked_tokens(total_tokens)
        self._check_at_hand("a change of CapacityLimiter.total_tokens")
        self._total_tokens = checked
        self._hand_over(None)

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
            EventLoopError: This was awaited outside of a task.

        Cancellation: the wait ends, and nothing is borrowed.
        """
        yield from self.acquire_on_behalf_of(running_task("CapacityLimiter.acquire()"))  # pyright: ignore[reportGeneralTypeIssues]

    def acquire_nowait(self) -> None:
        """Borrow a token for the running task, without waiting.

        Raises:
            WouldBlockError: There is none.
            BusyResourceError: The task has one already.
            EventLoopError: This was called outside of a task.
        """
        self.acquire_on_behalf_of_nowait(running_task("CapacityLimiter.acquire_nowait()"))

    def release(self) -> Done:
        """Give back the token of the running task: to the one that has waited longest, or to nobody. Acts at once.

        Returns:
            Something that may be awaited, and need not be.

        Raises:
            NotOwnerError: The task has none.
            EventLoopError: This was called outside of a task.
        """
        return self.release_on_behalf_of(running_task("CapacityLimiter.release()"))

    @coroutine
    def acquire_on_behalf_of(self, borrower: Hashable) -> Generator[Command, Any, None]:
        """As :meth:`acquire`, for a borrower of any kind.

        Args:
            borrower: Who is to have the token: any object that can be in a set.

        Raises:
            TypeError: ``borrower`` cannot be in a set; and as :meth:`acquire`.
        """
        budget = (here.loop or required_event_loop("CapacityLimiter.acquire_on_behalf_of()")).budget
        if borrower in self._borrowers:
            yield from completed(budget)
            try:
                raise self._has_one_already(borrower)
            finally:
                del borrower  # the traceback would tie it to the task that fails with it, where it is that
        if self._has_token and budget.left > 0:
            budget.left -= 1
            self._lend_to(borrower)
        else:
            yield LimiterAcquireCommand(self, borrower)

    def acquire_on_behalf_of_nowait(self, borrower: Hashable) -> None:
        """As :meth:`acquire_nowait`, for a borrower of any kind.

        Raises:
            TypeError: ``borrower`` cannot be in a set; and as :meth:`acquire_nowait`.
        """
        if borrower in self._borrowers:
            raise self._has_one_already(borrower)
        if not self._has_token:
            raise WouldBlockError(f"{self!r} has no token for {borrower!r}; wait for one with acquire()")
        self._lend_to(borrower)

    def release_on_behalf_of(self, borrower: Hashable) -> Done:
        """As :meth:`release`, for a borrower of any kind.

        Raises:
            NotOwnerError: ``borrower`` has no token.
            EventLoopError: The tasks that wait are those of a loop that runs in another thread.
        """
        if borrower not in self._borrowers:
            try:
                raise NotOwnerError(f"{borrower!r} cannot give back a token of {self!r}: it has none")
            finally:
                del borrower  # as above
        self._check_at_hand("CapacityLimiter.release_on_behalf_of()")
        self._give_back(borrower)
        return DONE

    def statistics(self) -> CapacityLimiterStatistics:
        """Who has the tokens and who waits for one, for debugging."""
        borrowers = list(self._borrowers)
        return CapacityLimiterStatistics(len(borrowers), self._total_tokens, borrowers, len(self.waiters))

    @property
    def _has_token(self) -> bool:
        """Whether a token can be borrowed without waiting. Who waits comes first: nobody does while there is one."""
        return len(self._borrowers) < self._total_tokens

    def _lend_to(self, borrower: Hashable) -> None:
        """Give a token to a borrower that has none; for the loop. There must be one."""
        self._borrowers.add(borrower)

    def _check_at_hand(self, operation: str) -> None:
        if self.waiters:
            check_at_hand(self.waiters, operation)

    def _give_back(self, borrower: Hashable) -> None:
        """Take back a token. Who waits for it is served by its own loop, where a thread of another one had it."""
        self._borrowers.discard(borrower)
        first = next(iter(self.waiters), None)
        if first is not None:
            first.event_loop.inbox.act(self._hand_over, None)

    def _hand_over(self, _: None) -> None:
        """Give the tokens that there are to those who have waited longest; they are lent before these run again."""
        while self.waiters and self._has_token:
            task = take_first(self.waiters)
            command = task._waiting
            if isinstance(command, LimiterAcquireCommand):
                if command.borrower in self._borrowers:  # two tasks have waited for a token for the same borrower
                    task.event_loop.resume_with_error(task, self._has_one_already(command.borrower))
                else:
                    self._lend_to(command.borrower)
                    task.event_loop.resume(task)

    def _has_one_already(self, borrower: Hashable) -> BusyResourceError:
        return BusyResourceError(f"{borrower!r} has a token of {self!r} already; a borrower has one at most")

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    def __aexit__(self, kind: object, error: object, tb: object) -> Awaitable[None]:
        # A coroutine that is closed outside of its loop gives nothing back: it is not known there whose the token is.
        loop = here.loop
        if error is None or (loop is not None and loop.running_task in self._borrowers):
            self.release()
        return LEFT

    def __repr__(self) -> str:
        return f"<CapacityLimiter {len(self._borrowers)} of {self._total_tokens} borrowed, {len(self.waiters)} waiting>"


def _checked_tokens(total_tokens: float) -> float:
    if not isinstance(total_tokens, int) and total_tokens != inf:
        raise TypeError(f"total_tokens must be an int or math.inf, not {total_tokens!r}")
    if total_tokens < 1:
        raise ValueError(f"total_tokens must be at least 1, and is {total_tokens!r}")
    return total_tokens
