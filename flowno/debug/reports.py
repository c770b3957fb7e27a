"""What every event loop of the process does, as text: printed when asked, or when a signal comes."""

from __future__ import annotations

import _thread
import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Final, TextIO

from flowno.core.event_loop.errors import EventLoopError
from flowno.core.event_loop.running import running_loops
from flowno.core.event_loop.signals import OwnHandler
from flowno.core.event_loop.snapshots import take_snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import FrameType, TracebackType
    from typing import Self

    from flowno.core.event_loop.snapshots import FrameSnapshot, LoopSnapshot, RegistrationSnapshot, TaskSnapshot

__all__ = [
    "SignalReporter",
    "head_of",
    "lines_of",
    "none_in",
    "place_of",
    "print_tasks",
    "printable",
    "report_on_signal",
    "rows_of",
    "take_all",
]

logger = logging.getLogger("flowno.debug")

#: How many tasks, registrations and timers a report shows at most, and how many children of a task that are alike.
MOST_TASKS: Final = 200
MOST_ENTRIES: Final = 20
MOST_ALIKE: Final = 3

#: Levels of the tree that are shown by indentation, and characters of a text.
DEEPEST: Final = 20
LONGEST: Final = 200

#: Seconds that a signal handler waits for the report that it prints.
LIMIT: Final = 5.0

#: Signals that mean nothing by themselves: where one is asked for, it does not end the process. Windows has none of
#: those, and so Ctrl-Break stands in for them.
_FREE: Final = frozenset(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2", "SIGBREAK") if hasattr(signal, name))


def print_tasks(file: TextIO | None = None) -> None:
    """Print what the event loops of this process do: the tree of their tasks, where each is and what it waits for.

    From any thread, also while a loop is stuck; for signals there is :func:`~flowno.debug.report_on_signal`. A task
    stands below the one whose block of a :class:`~flowno.TaskGroup` it was started in, else below the first that joins
    it. Of many that are alike a few are shown; the output does not grow with the number of tasks without limit.

    Args:
        file: Where to print it; None is standard output.

    Raises:
        Exception: What writing to ``file`` raises.

    Example:
        >>> from flowno import print_tasks, run, sleep, spawn
        >>> async def main():
        ...     task = await spawn(sleep(60), name="sleeper")
        ...     print_tasks()
        >>> run(main())  # doctest: +ELLIPSIS
        <EventLoop ... running> in MainThread, tasks: 2 (0 ready, 1 waiting), fds: 0, timers: 1
        - main is running
            at ...
        - sleeper waits for a timer, ... s left of 60 s
            at ...
        timers:
          ... s: wakes sleeper
    """
    file = sys.stdout if file is None else file
    if file is None:
        return  # Python was started without one
    encoding = getattr(file, "encoding", None) or "utf-8"
    file.write(_text_of(take_all()).encode(encoding, "backslashreplace").decode(encoding))


def take_all(limit: int | None = None) -> list[LoopSnapshot]:
    """Snapshots of the event loops that run in this process, that of this thread first; see :func:`take_snapshot`."""
    return [take_snapshot(loop, limit) for loop in running_loops()]


def head_of(snapshot: LoopSnapshot) -> str:
    """A loop in a line."""
    counters = snapshot.counters
    where = "not running" if snapshot.thread is None else f"in {snapshot.thread}"
    return printable(
        f"{snapshot.loop} {where}, tasks: {counters.tasks} ({counters.ready} ready, {counters.waiting} waiting), "
        f"fds: {counters.fds}, timers: {counters.timers}"
    )


def none_in(process: str) -> str:
    """What is said of a process in which there is no loop to show."""
    return f"no event loop runs in {process}"


def lines_of(snapshot: LoopSnapshot, *, whole: bool = True) -> Iterator[str]:
    """A snapshot as text.

    Args:
        snapshot: The snapshot.
        whole: Whether to show the tree, the registrations and the timers; else just the tasks, one after the other.
    """
    yield head_of(snapshot)
    if not whole:
        for task in snapshot.tasks[:MOST_TASKS]:
            yield from _lines_of_task(task, 0)
        if len(snapshot.tasks) > MOST_TASKS:
            yield f"... and {len(snapshot.tasks) - MOST_TASKS} more"
        return
    counters = snapshot.counters
    yield from _tree(snapshot)
    names = {task.id: task.name for task in snapshot.tasks}
    fds = [_line_of_fd(each, names) for each in snapshot.registrations]
    yield from _section("registrations", fds, len(fds))
    timers = [
        f"{left:.2f} s: {purpose}" if left >= 0 else f"overdue by {-left:.2f} s: {purpose}"
        for left, purpose, _ in snapshot.timers
    ]
    yield from _section("timers", timers, counters.timers)


def rows_of(snapshot: LoopSnapshot) -> Iterator[tuple[str, str, str, str]]:
    """A row for each task, in the order of the tree: its name, indented, its state, what it waits for, where it is."""
    children = _children_of(snapshot.tasks)
    to_show = [(task, 0) for task in reversed(children[None])]
    while to_show:
        task, depth = to_show.pop()
        name = f"{'  ' * depth}{printable(task.name)}"
        yield name, task.state, printable(task.waits_for or ""), printable(place_of(task))
        to_show += [(child, min(depth + 1, DEEPEST)) for child in reversed(children.get(task.id, ()))]


def _children_of(tasks: Iterable[TaskSnapshot]) -> dict[int | None, list[TaskSnapshot]]:
    """The tasks by the ``id`` of the one that they stand below; those at the top by None.

    Tasks that wait for each other in a ring are each other's parents: the first of them is at the top.
    """
    living = {task.id: task for task in tasks}
    ages = {task_id: age for age, task_id in enumerate(living)}
    at_top: set[int] = set()
    looked_at: set[int] = set()
    for task in living.values():
        way: list[int] = []
        above: TaskSnapshot | None = task
        while above is not None and above.id not in looked_at:
            looked_at.add(above.id)
            way.append(above.id)
            above = living.get(above.parent) if above.parent is not None else None
        if above is not None and above.id in way:
            at_top.add(min(way[way.index(above.id) :], key=ages.__getitem__))
    children: dict[int | None, list[TaskSnapshot]] = {None: []}
    for task in living.values():
        is_below = task.parent in living and task.id not in at_top
        children.setdefault(task.parent if is_below else None, []).append(task)
    return children


def place_of(task: TaskSnapshot) -> str:
    """Where a task is in the program: the innermost line that is none of flowno's own, else the outermost of all."""
    if not task.stack:
        return ""
    frame = next((each for each in reversed(task.stack) if not each.is_own), task.stack[0])
    return f"{frame.file}:{frame.line}"


def printable(text: str) -> str:
    """A text of the program's, such as a name, that cannot move the cursor nor begin a line, and has an end."""
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}..."
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _tree(snapshot: LoopSnapshot) -> Iterator[str]:
    children = _children_of(snapshot.tasks)
    shown = 0
    to_show: list[tuple[TaskSnapshot | str, int]] = [(each, 0) for each in reversed(_few(children[None], children))]
    while to_show:  # not by recursion: chains of tasks may be longer than Python allows
        task, depth = to_show.pop()
        if isinstance(task, str):
            yield f"{'  ' * depth}- {task}"
            continue
        if shown == MOST_TASKS:
            yield f"... and more; {shown} of {snapshot.counters.tasks} tasks were shown"
            return
        shown += 1
        yield from _lines_of_task(task, depth)
        below = _few(children.get(task.id, []), children)
        to_show += [(each, min(depth + 1, DEEPEST)) for each in reversed(below)]


def _line_of_fd(registration: RegistrationSnapshot, names: dict[int, str]) -> str:
    fd, armed, reader, writer, name, peer = registration
    addresses = f"{name and f' {name}'}{peer and f' -> {peer}'}"
    reads = "" if reader is None else f", {names.get(reader, 'a task')} waits to read"
    writes = "" if writer is None else f", {names.get(writer, 'a task')} waits to write"
    return f"fd {fd}{addresses}, armed: {' and '.join(armed) or 'nothing'}{reads}{writes}"


def _few(tasks: Sequence[TaskSnapshot], children: dict[int | None, list[TaskSnapshot]]) -> list[TaskSnapshot | str]:
    """The tasks, and a line for those that are like some before them: of the same name, at the same place."""
    alike: dict[tuple[str, tuple[FrameSnapshot, ...]], int] = {}
    few: list[TaskSnapshot | str] = []
    for task in tasks:
        if task.id not in children:
            kind = task.name, task.stack
            alike[kind] = alike.get(kind, 0) + 1
            if alike[kind] > MOST_ALIKE:
                continue
        few.append(task)
    few += [
        f"and {number - MOST_ALIKE} more {printable(name)} at the same place"
        for (name, _), number in alike.items()
        if number > MOST_ALIKE
    ]
    return few


def _lines_of_task(task: TaskSnapshot, depth: int) -> Iterator[str]:
    margin = "  " * depth
    does = f"waits for {task.waits_for}" if task.waits_for is not None else f"is {task.state}"
    yield f"{margin}- {printable(task.name)} {printable(does)}{', cancelled' if task.is_cancelled else ''}"
    for frame in _ends_of(task.stack):
        if frame is None:
            yield f"{margin}    ..."
        else:
            yield f"{margin}    at {printable(frame.file)}:{frame.line} in {printable(frame.function)}"


def _ends_of(stack: Sequence[FrameSnapshot]) -> Sequence[FrameSnapshot | None]:
    """A stack, with None for the middle where it is very long."""
    if len(stack) <= 2 * MOST_ENTRIES:
        return stack
    return [*stack[:MOST_ENTRIES], None, *stack[-MOST_ENTRIES:]]


def _section(title: str, lines: Sequence[str], total: int) -> Iterator[str]:
    if lines:
        yield f"{title}:"
        yield from (f"  {printable(line)}" for line in lines[:MOST_ENTRIES])
        if total > MOST_ENTRIES:
            yield f"  ... and {total - min(len(lines), MOST_ENTRIES)} more"


def _text_of(snapshots: Sequence[LoopSnapshot]) -> str:
    if not snapshots:
        return f"{none_in('this process')}\n"
    return "".join(f"{line}\n" for snapshot in snapshots for line in lines_of(snapshot))


# ---------------------------------------------------------------------------------------------------------- by a signal


def report_on_signal(number: int, file: TextIO | None = None) -> SignalReporter:
    """Print what :func:`print_tasks` does whenever a signal comes: a context manager, for the main thread.

    What the signal does otherwise it still does, after the report: the handler that the program has set is called, and
    a signal that ends the process, such as SIGTERM, ends it. Only SIGUSR1 and SIGUSR2, and on Windows SIGBREAK, which
    is Ctrl-Break, do nothing else, though they would end it as well where nobody asks for them. On leaving, the handler
    is put back.

    The report comes while a loop runs, waits, or is stuck in a step, in whatever thread; but not while the main thread
    is in a function written in C that does not look for signals. There :func:`faulthandler.register` still tells where
    the threads are, and the monitor what the tasks do.

    Args:
        number: The signal, such as ``signal.SIGUSR1``; on Windows ``signal.SIGBREAK``.
        file: Where to print it; None is standard error. What has an fd is written to past its buffer. That it takes
            nothing, as where it is closed, is logged to ``flowno.debug`` once.

    Raises:
        TypeError: ``number`` is no number.
        ValueError: There is no such signal; or it is SIGINT, with which event loops do something already.

    Entering it raises:
        EventLoopError: That is not in the main thread, or it was entered before.
        OSError: The system lets nobody handle this one (SIGKILL, SIGSTOP).
    """
    if not isinstance(number, int):
        raise TypeError(f"a signal is a number, such as signal.SIGUSR1, and not {number!r}")
    if number not in signal.valid_signals():
        raise ValueError(f"this system has no signal {number!r}")
    if number == signal.SIGINT:
        raise ValueError("SIGINT would not end a run in order any more; choose another signal, such as SIGUSR1")
    return SignalReporter(int(number), file)


class SignalReporter(OwnHandler):
    """What :func:`report_on_signal` gives."""

    def __init__(self, number: int, file: TextIO | None) -> None:
        self._number = number
        self._file = file
        self._previous: signal._HANDLER = None
        self._was_entered = False
        self._is_open = False
        self._has_failed = False

    def __enter__(self) -> Self:
        if self._was_entered:
            raise EventLoopError("a report_on_signal() was entered already; make another one")
        if threading.current_thread() is not threading.main_thread():
            raise EventLoopError("report_on_signal() cannot be entered here: signals come to the main thread only")
        self._previous = signal.getsignal(self._number)
        try:
            signal.signal(self._number, self._arrived)
        except OSError as error:
            name = signal.Signals(self._number).name
            raise OSError(error.errno, f"{name} cannot be handled: {error.strerror}") from None
        self._was_entered = self._is_open = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._is_open = False  # where somebody else has set a handler that calls this one, it goes on being called
        if signal.getsignal(self._number) == self._arrived:
            previous = self._previous
            # Those that were entered before this one and left before it, too.
            while isinstance(reporter := getattr(previous, "__self__", None), SignalReporter) and not reporter._is_open:
                previous = reporter._previous
            # None is one that was not set by Python, which cannot put it back either.
            signal.signal(self._number, signal.SIG_DFL if previous is None else previous)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self._is_open:
            self._report()
        previous = self._previous
        if callable(previous):
            previous(number, frame)
        elif previous is not signal.SIG_IGN and number not in _FREE:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)  # mostly this is the end
            signal.signal(number, self._arrived)

    def _report(self) -> None:
        """Have another thread make the report, and print it.

        Handlers of other signals run in this thread meanwhile, SIGTERM for one. What they raise is to end this wait,
        and not to be taken for an error in the report. No threading.Thread, whose start() takes a lock of the module
        that this thread may have been interrupted in.
        """
        texts: list[str] = []
        made = _thread.allocate_lock()
        made.acquire()
        try:
            _thread.start_new_thread(_make, (texts, made))
        except RuntimeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise  # another handler has
            texts.append(f"there is no report: {error}\n")
        else:
            made.acquire(timeout=LIMIT)
        text = texts[0] if texts else f"there is no report: it was not ready in {LIMIT:g} s\n"
        file = sys.stderr if self._file is None else self._file
        try:
            _write(file, text)
        except Exception as error:  # of the file's making: the program that was interrupted has nothing to do with it
            if not self._has_failed:
                self._has_failed = True
                logger.error("the report on signal %d cannot be written to %r: %s", self._number, file, error)


def _make(texts: list[str], made: _thread.LockType) -> None:
    try:
        texts.append(_text_of(take_all()))
    finally:
        made.release()


def _write(file: TextIO | None, text: str) -> None:
    """Write past the buffer, in whose lock the signal may have come; as much as the file takes."""
    if file is None:
        return  # Python was started without one
    try:
        fd = file.fileno()
    except (AttributeError, OSError, ValueError):
        file.write(text)  # it is in memory
        return
    data = text.encode("utf-8", "backslashreplace")
    while data:
        try:
            data = data[os.write(fd, data) :]
        except OSError:
            return  # nobody reads it, or it does not block and is full
