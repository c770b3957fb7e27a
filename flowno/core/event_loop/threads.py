"""Calls that block, made in a thread of their own so that the loop goes on."""

from __future__ import annotations

from threading import Thread
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable

    from .commands import ThreadCommand
    from .inbox import Inbox
    from .tasks import TaskHandle

__all__ = ["WORKERS", "ThreadJob"]


#: The threads that are ours: they post the outcome of their call, and nothing else.
WORKERS: WeakSet[Thread] = WeakSet()


class ThreadJob:
    """One call of a :class:`ThreadCommand` in a worker thread.

    Args:
        task: The task that waits for it.
        command: What to call.
        inbox: Where the thread says that it is done.
        done: Called with this job by the loop's thread, after the call has returned or raised.
    """

    __slots__ = ("_command", "_done", "_inbox", "_thread", "error", "task", "value")

    def __init__(
        self, task: TaskHandle[Any], command: ThreadCommand, inbox: Inbox, done: Callable[[ThreadJob], object]
    ) -> None:
        self.task = task
        self.value: Any = None
        self.error: BaseException | None = None
        self._command = command
        self._inbox = inbox
        self._done = done
        # A daemon: a resolver that hangs does not keep the process from ending.
        self._thread = Thread(target=self._work, name=f"flowno worker: {command.function!r}", daemon=True)
        WORKERS.add(self._thread)
        self._thread.start()

    def _work(self) -> None:
        try:
            self.value = self._command.function(*self._command.args)
        except BaseException as error:
            self.error = error
        self._inbox.post(self._finish, None)

    def _finish(self, _: None) -> None:
        self._thread.join()  # it has posted this as its last act
        self._done(self)
