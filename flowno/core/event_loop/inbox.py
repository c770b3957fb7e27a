"""What other threads and signal handlers hand to a loop, and the waker that ends the loop's wait.

A loop of the main thread lends its waker to Python while it runs, :func:`signal.set_wakeup_fd`. The handler of a signal
that comes just before the system call in which the loop waits, or on Windows during it, would run only after the wait.
"""

from __future__ import annotations

import os
import signal
import socket
from collections import deque
from threading import RLock, current_thread, get_ident, main_thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from .backend import World

__all__ = ["Inbox"]


class Inbox:
    """Calls for the loop's thread to make, in the order in which they came.

    No wake-up is lost: whoever posts appends first and then looks whether the loop sleeps; the loop says first that it
    sleeps and then looks whether there is something here.
    """

    __slots__ = ("_outer_wakeup_fd", "_reader", "_rest", "_writer", "items", "sleeping", "thread_id")

    def __init__(self) -> None:
        self.items: deque[tuple[Callable[[Any], object], Any]] = deque()
        self.sleeping = False
        self.thread_id: int | None = None  # of the thread that runs the loop; None while it does not run
        self._rest = RLock()  # held while somebody acts on the loop that rests; so it does not begin to run just then
        self._reader: socket.socket | None = None
        self._writer: socket.socket | None = None
        self._outer_wakeup_fd: int | None = None  # what Python had before it was lent ours; None while it is not

    @property
    def is_at_hand(self) -> bool:
        """Whether the caller may act on the loop itself: in its thread, while it does not sleep, or while it rests.

        Code that runs in the loop's thread while it sleeps is a signal handler; what it does must end the sleep.
        """
        return self.thread_id is None or (self.thread_id == get_ident() and not self.sleeping)

    def post(self, call: Callable[[Any], object], argument: Any) -> None:
        """Have the loop's thread call ``call(argument)`` before its next batch; from any thread or finalizer."""
        self.items.append((call, argument))
        if self.sleeping:  # also in the loop's own thread: a signal handler runs there, and the wait then goes on
            self.wake()

    @property
    def is_mine(self) -> bool:
        """Whether the caller is in the thread that runs the loop, which does not sleep."""
        return self.thread_id == get_ident() and not self.sleeping

    def act(self, call: Callable[[Any], object], argument: Any) -> None:
        """Call ``call(argument)`` now where the caller may act on the loop itself, else :meth:`post` it."""
        if self.is_mine:
            call(argument)
            return
        if self.thread_id is None:
            with self._rest:
                if self.thread_id is None:
                    call(argument)
                    return
        self.post(call, argument)

    def after_fork(self) -> None:
        """In the child of a fork: whoever acted on the loop, which rested, is not there any more."""
        self._rest = RLock()

    def begin(self) -> None:
        """The loop runs from now on, in this thread."""
        with self._rest:
            self.thread_id = get_ident()

    def withdraw(self, call: Callable[[Any], object], argument: Any) -> bool:
        """Take back what was posted; False where the call was made, or is about to be."""
        try:
            self.items.remove((call, argument))
        except ValueError:
            return False
        return True

    def run(self) -> None:
        """Make the calls that have been posted."""
        items = self.items
        for _ in range(len(items)):
            try:
                call, argument = items.popleft()
            except IndexError:
                break  # somebody has taken his back
            call(argument)

    # --- the waker: a socketpair, because a Windows select takes nothing else -----------------------------------------

    def open(self, world: World) -> int:
        """Make the waker.

        Returns:
            The fd whose readability ends the loop's wait.
        """
        reader, writer = world.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        self._reader, self._writer = reader, writer
        end: object = writer  # of a simulated world it may be no socket at all
        if isinstance(end, socket.socket) and current_thread() is main_thread():
            _Lent.fd = writer.fileno()
            self._outer_wakeup_fd = _lend(_Lent.fd)
        return reader.fileno()

    def wake(self) -> None:
        """End the loop's wait."""
        writer = self._writer
        if writer is not None:
            try:
                writer.send(b"\0")
            except BlockingIOError:
                pass  # full of wake-ups that the loop has not read yet
            except OSError:
                if self._writer is writer:  # else closed under our feet, with nobody left to be woken
                    raise

    def drain(self) -> None:
        """Take in the wake-ups that have come, so that the waker is not readable any more."""
        reader = self._reader
        try:
            while reader is not None and len(reader.recv(4096)) == 4096:
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Close the waker; what is posted from now on stays until it is opened again."""
        reader, writer = self._reader, self._writer
        self._reader = self._writer = None
        if self._outer_wakeup_fd is not None and writer is not None:
            _take_back(writer.fileno(), self._outer_wakeup_fd)
            self._outer_wakeup_fd = None
            _Lent.fd = -1
        for end in (reader, writer):
            if end is not None:
                end.close()


class _Lent:
    """The fd that Python has of the loop that runs in the main thread; -1 while none does."""

    fd = -1


def _lend(fd: int) -> int:
    """Have Python write to an fd whenever a signal comes; returns what it wrote to before, -1 for nowhere."""
    return signal.set_wakeup_fd(fd, warn_on_full_buffer=False)


def _take_back(fd: int, outer: int) -> None:
    """Undo that, unless somebody else has set another fd since."""
    current = signal.set_wakeup_fd(-1)
    try:
        _lend(outer if current == fd else current)
    except (OSError, ValueError):
        pass  # that one was closed meanwhile


def _forget_wakeup_fd() -> None:
    """In a forked child: what the parent's loop has lent would wake the parent. A loop that runs here lends its own."""
    if _Lent.fd >= 0:
        _take_back(_Lent.fd, -1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_wakeup_fd)
