"""What other threads hand to a loop, and the waker that ends the loop's wait."""

from __future__ import annotations

from collections import deque
from threading import get_ident
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from .backend import World

__all__ = ["Inbox"]


class Inbox:
    """Calls for the loop's thread to make, in the order in which they came.

    No wake-up is lost: whoever posts appends first and then looks whether the loop sleeps; the loop says first that it
    sleeps and then looks whether there is something here.
    """

    __slots__ = ("_reader", "_writer", "items", "sleeping", "thread_id")

    def __init__(self) -> None:
        self.items: deque[tuple[Callable[[Any], object], Any]] = deque()
        self.sleeping = False
        self.thread_id: int | None = None  # of the thread that runs the loop; None while it does not run
        self._reader: socket.socket | None = None
        self._writer: socket.socket | None = None

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

    def run(self) -> None:
        """Make the calls that have been posted."""
        items = self.items
        for _ in range(len(items)):
            call, argument = items.popleft()
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
        for end in (reader, writer):
            if end is not None:
                end.close()
