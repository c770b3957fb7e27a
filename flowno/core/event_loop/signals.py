"""Signals: as something that a task iterates over, and what Ctrl-C does to a run.

Python runs a signal handler in the main thread, between two of its instructions, wherever that is just then. So a
handler here does nothing but note the signal and call into the loop's inbox; and it is only in the main thread that
handlers can be set, :func:`signal.signal`. How a signal ends the wait of a loop is told beside the inbox.
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

from .commands import Command, SignalWaitCommand
from .errors import ClosedResourceError, EventLoopError
from .operations import coroutine
from .running import calling_out, required_event_loop
from .synchronization import take_first
from .tasks import CANCELLED, FAILED, GIVE_WAY

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from traceback import StackSummary
    from types import FrameType, TracebackType
    from typing import Self

    from .event_loop import EventLoop
    from .inbox import Inbox
    from .tasks import TaskHandle

__all__ = ["Interrupts", "OwnHandler", "SignalReceiver", "Signals", "is_ours", "open_signal_receiver"]

#: The rooms whose records would be left half-way by an exception that comes from nowhere. It is welcome in the program
#: that they call, by the functions that are marked for that, running.calls_the_program.
_BOOKKEEPING = frozenset(
    f"{__package__}.{room}"
    for room in (
        "deadlock", "ending", "event_loop", "fd_table", "inbox", "queueing", "signals", "tasks", "threads", "timers",
    )
)  # fmt: skip

#: Where those live who watch: they keep records, too, and are between the loop and the program that it calls.
_WATCHERS = "flowno.debug."


def open_signal_receiver(*signals: int) -> SignalReceiver:
    """Receive signals as values: a context manager that gives an asynchronous iterator over the numbers of signals.

    From entering until leaving it, the signals have no other effect in this process. Where several receivers are open
    for one signal, each gets it. Signals of one kind that come faster than they are taken are one, as the system has
    it. On leaving the last receiver of a signal, its handler is put back; one that has come and was not taken is raised
    again then, so that it is not lost.

    Args:
        signals: Their numbers, such as ``signal.SIGTERM``.

    Raises:
        TypeError: There are none, or one is no number.
        ValueError: There is no such signal.

    Iterating raises:
        ClosedResourceError: It was left while this task waited.
        EventLoopError: It is not open, or this is another loop.

    Entering it raises:
        EventLoopError: That is not in the main thread, or not in a task, or it was entered before.
        OSError: The system lets nobody handle this one (SIGKILL, SIGSTOP).

    Cancellation: the wait ends; a signal that has come stays for the next one who waits.

    Example:
        >>> import signal
        >>> from flowno import open_signal_receiver, run
        >>> async def main():
        ...     with open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        ...         signal.raise_signal(signal.SIGTERM)
        ...         async for number in received:
        ...             return signal.Signals(number).name
        >>> run(main())
        'SIGTERM'
    """
    if not signals:
        raise TypeError("open_signal_receiver() needs the signals to receive, such as signal.SIGTERM")
    known = signal.valid_signals()
    for number in signals:
        if not isinstance(number, int):
            raise TypeError(f"a signal is a number, such as signal.SIGTERM, and not {number!r}")
        if number not in known:
            raise ValueError(f"this system has no signal {number!r}")
    return SignalReceiver(tuple(dict.fromkeys(map(int, signals))))


class SignalReceiver:
    """What :func:`open_signal_receiver` gives.

    Attributes:
        numbers: The signals that it receives.
    """

    def __init__(self, numbers: tuple[int, ...]) -> None:
        self.numbers = numbers
        self.waiters: dict[TaskHandle[Any], None] = {}
        self._pending: dict[int, None] = {}  # what has come and nobody has taken, in the order in which it came
        self._loop: EventLoop | None = None
        self._is_open = False

    def __enter__(self) -> Self:
        if self._loop is not None:
            raise EventLoopError(f"{self!r} was entered already; open another one")
        loop = required_event_loop("open_signal_receiver()")
        loop.signals.add(self)
        self._loop = loop
        self._is_open = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._loop is not None and self._is_open:
            self._is_open = False
            self.serve()  # what came just now is for those who wait; nothing more will
            while self.waiters:
                task = take_first(self.waiters)
                task.event_loop.resume_with_error(task, ClosedResourceError(f"{self!r} was left while a task waited"))
            self._loop.signals.remove(self, self._pending)

    def __aiter__(self) -> Self:
        return self

    @coroutine
    def __anext__(self) -> Generator[Command, Any, int]:
        loop = required_event_loop("a signal receiver")
        if loop is not self._loop or not self._is_open:
            raise EventLoopError(f"{self!r} is not open here; iterate over it inside of its with block")
        while self._pending:
            if loop.budget.left > 0:
                loop.budget.left -= 1
                return self._take()
            yield GIVE_WAY
        number: int = yield SignalWaitCommand(self)
        return number

    def _take(self) -> int:
        number = next(iter(self._pending))
        del self._pending[number]
        return number

    def note(self, number: int) -> None:
        """A signal has come; its handler calls this, wherever the main thread is."""
        self._pending[number] = None

    def serve(self) -> None:
        """Give what has come to the tasks that wait."""
        while self._pending and self.waiters:
            task = take_first(self.waiters)
            task.event_loop.resume(task, self._take())

    def __repr__(self) -> str:
        return f"<SignalReceiver of {', '.join(map(_name_of, self.numbers))}>"


class OwnHandler:
    """Has a method that is a signal handler of flowno's own, by which a program cannot call into its loops."""

    __slots__ = ()


class Signals(OwnHandler):
    """The signals that the tasks of one event loop receive, and the handlers whose place that has taken.

    Args:
        inbox: The loop's.
    """

    __slots__ = ("_inbox", "_previous", "_receivers")

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._receivers: dict[int, list[SignalReceiver]] = {}
        self._previous: dict[int, Any] = {}

    @property
    def has_waiters(self) -> bool:
        """Whether any task waits for a signal."""
        return any(receiver.waiters for receivers in self._receivers.values() for receiver in receivers)

    def add(self, receiver: SignalReceiver) -> None:
        """Let a receiver have its signals.

        Raises:
            EventLoopError: This is not the main thread.
            OSError: The system lets nobody handle one of them. Nothing has changed.
        """
        if threading.current_thread() is not threading.main_thread():
            raise EventLoopError(f"{receiver!r} cannot be entered here: signals come to the main thread only")
        added: list[int] = []
        for number in receiver.numbers:
            if number not in self._receivers:
                try:
                    self._previous[number] = signal.signal(number, self._arrived)
                except OSError as error:
                    self._take_out(receiver, added)
                    raise OSError(error.errno, f"{_name_of(number)} cannot be received: {error.strerror}") from None
                self._receivers[number] = []
            self._receivers[number].append(receiver)
            added.append(number)

    def remove(self, receiver: SignalReceiver, pending: Iterable[int]) -> None:
        """Let a receiver have no more signals; those that it leaves, and nobody else has, are raised again."""
        freed = self._take_out(receiver, receiver.numbers)
        for number in list(pending):
            if number in freed:
                signal.raise_signal(number)

    def _take_out(self, receiver: SignalReceiver, numbers: Iterable[int]) -> list[int]:
        """Forget a receiver.

        Returns:
            The signals that nobody receives any more, whose handlers are back in their place.
        """
        freed = []
        for number in numbers:
            receivers = self._receivers[number]
            receivers.remove(receiver)
            if not receivers:
                del self._receivers[number]
                previous = self._previous.pop(number)
                if signal.getsignal(number) == self._arrived:  # else somebody has set another one since
                    # None is one that was not set by Python, which cannot put it back either.
                    signal.signal(number, signal.SIG_DFL if previous is None else previous)
                freed.append(number)
        return freed

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        for receiver in self._receivers.get(number, ()):
            receiver.note(number)
        self._inbox.post(self._serve, number)

    def _serve(self, number: int) -> None:
        for receiver in list(self._receivers.get(number, ())):
            receiver.serve()


class Interrupts(OwnHandler):
    """What Ctrl-C does to one run of an event loop: the first cancels the root, a second raises KeyboardInterrupt.

    That is for runs in the main thread, where SIGINT has the handler that Python gives it. A program that has set
    another one has it its way. What comes while the loop is being entered or left is noted, and raised when that is
    done; what comes while the loop keeps its records, or in a finalizer, is raised with the loop's next look into its
    inbox: else they would be left half-way, or nobody would hear of it. Where one is owed already and the next comes,
    nothing is waited for any more.

    Args:
        loop: The loop.
        root: The task that is cancelled, None where there is none.
        goes_on: Whether the run does not end with the root.

    Attributes:
        root: The task; None as well once the run is over.
        is_listening: Whether the loop is neither being entered nor left.
        was_repeated: Whether nobody wants to wait any more.
    """

    __slots__ = (
        "_came",
        "_goes_on",
        "_is_due",
        "_is_installed",
        "_is_owed",
        "_loop",
        "_was_told",
        "_where",
        "is_listening",
        "root",
        "was_repeated",
    )

    def __init__(self, loop: EventLoop, root: TaskHandle[Any] | None, goes_on: bool) -> None:
        self._loop = loop
        self.root = root
        self._goes_on = goes_on
        self.is_listening = False
        self.was_repeated = False
        self._came = False  # the first
        self._was_told = False  # the root
        self._is_due = False  # KeyboardInterrupt, as the root has ended because of it
        self._is_owed = False  # KeyboardInterrupt, which came at no good moment
        self._where: StackSummary | None = None  # the root was, when it was told
        self._is_installed = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self._is_installed:
            signal.signal(signal.SIGINT, self._arrived)

    def listen(self) -> None:
        """To be called when the loop has been entered.

        Raises:
            KeyboardInterrupt: One has come since, and there is no root to tell.
        """
        self.is_listening = True
        if self._came:
            if self.root is None:
                self._was_told = True
                raise KeyboardInterrupt
            self._loop.inbox.post(self._tell, self.root)

    def check(self) -> None:
        """To be called when the run has ended.

        Raises:
            KeyboardInterrupt: It did because of one.
        """
        if self._is_due:
            raise self._interrupt()

    def remove(self) -> None:
        """Put Python's handler back. To be called when the run is over and nothing is left of it.

        Raises:
            KeyboardInterrupt: One came, and it was too late to tell the root, or to raise it during the run.
        """
        if self._is_installed:
            if signal.getsignal(signal.SIGINT) == self._arrived:  # else the program has set another one meanwhile
                signal.signal(signal.SIGINT, signal.default_int_handler)
            root, self.root = self.root, None
            for call, argument in ((self._tell, root), (self._pay, None)):  # what was not called yet, never need be
                self._loop.inbox.withdraw(call, argument)
            if self._is_owed or (self._came and not self._was_told):
                raise KeyboardInterrupt

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self._is_due_now(frame):
            del self, frame  # the traceback has this frame, and a task may end with the error
            raise KeyboardInterrupt

    def _is_due_now(self, frame: FrameType | None) -> bool:
        """Take note of Ctrl-C; whether KeyboardInterrupt is to be raised where it came, in this frame."""
        if not self.is_listening:
            self._came = True
            return False
        root = self.root
        if self._came or root is None or root.done() or self._loop.is_ending:
            self.was_repeated = self._came
            if self._is_owed or not _is_no_moment(frame):
                self._is_owed = False
                return True
            self._is_owed = True
            self._loop.inbox.post(self._pay, None)
            return False
        self._came = True
        self._loop.inbox.post(self._tell, root)
        return False

    def _pay(self, _: None) -> None:
        if self._is_owed and self.is_listening:
            self._is_owed = False
            raise KeyboardInterrupt

    def _tell(self, root: TaskHandle[Any]) -> None:
        self._was_told = True
        if self._loop.is_ending or self.root is None:
            return  # it is cancelled anyway; or its run is over, and has raised this
        if root.done():
            raise KeyboardInterrupt
        self._where = root.get_stack()
        root._add_callback(self._root_ended)
        self._loop.cancel_now(root)

    def _root_ended(self, root: TaskHandle[Any]) -> None:
        # A root that returns a value has dealt with it; unless it has not been told: there was no wait any more.
        self._is_due = root._state in (CANCELLED, FAILED) or root._cancel_requested
        if self._is_due and self._goes_on:
            self._loop.inbox.post(self._end_run, None)

    def _end_run(self, _: None) -> None:
        if not self._loop.is_ending and self.root is not None:  # else its run is over
            raise self._interrupt()

    def _interrupt(self) -> KeyboardInterrupt:
        """The exception, which says where the root was and what its clean-up has raised."""
        interrupt = KeyboardInterrupt()
        root = self.root
        if root is not None and self._where is not None:
            where = "".join(self._where.format())
            interrupt.add_note(f"{root!r} was cancelled by this where it was:\n{where}".rstrip())
            if root._state == FAILED:
                interrupt.__context__ = root.exception()
        return interrupt


def _is_no_moment(frame: FrameType | None) -> bool:
    """Whether a signal has come while the loop keeps its records, or in a finalizer, out of which nothing is raised."""
    innermost = frame
    while frame is not None:
        code, module = frame.f_code, frame.f_globals.get("__name__", "")
        # Whether it is in what the loop, or a watcher, has called.
        is_elsewhere = frame is not innermost and code in calling_out
        if module in _BOOKKEEPING:
            return not is_elsewhere
        if code.co_name == "__del__" or (module.startswith(_WATCHERS) and not is_elsewhere):
            return True
        frame = frame.f_back
    return False


def is_ours(handler: object) -> bool:
    """Whether a signal handler is one of these, or Python's own for Ctrl-C: none by which a program could call in."""
    return handler is signal.default_int_handler or isinstance(getattr(handler, "__self__", None), OwnHandler)


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return str(number)
