"""What an event loop does at one moment, as data: its tasks and what they wait for, registrations, timers, counters.

A snapshot is taken from any thread, also while the loop is stuck in a step, and by a signal handler in the middle of
one. It only reads. The loop's own tables are copied in one operation each, so none is seen half-changed; between two of
them a loop that runs in another thread may go on, and what has ended by then is left out.
"""

from __future__ import annotations

import os
import threading
from itertools import takewhile
from operator import attrgetter
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

from .scopes import group_of
from .timers import DEADLINE, FIRE
from .words import address_of, holder_of, timer_in_words, wait_in_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

    from .event_loop import EventLoop
    from .fd_table import FdRecord
    from .tasks import TaskHandle

__all__ = [
    "CountersSnapshot",
    "FrameSnapshot",
    "LoopSnapshot",
    "RegistrationSnapshot",
    "TaskSnapshot",
    "TimerSnapshot",
    "is_own",
    "take_snapshot",
]

T = TypeVar("T")

TaskState: TypeAlias = Literal["running", "ready", "waiting"]

#: How often a table is copied anew that has changed meanwhile.
_TRIES = 10


class FrameSnapshot(NamedTuple):
    """One place in an await stack.

    Attributes:
        file: The path of the source file.
        line: The line in it; 0 where Python does not tell.
        function: The qualified name of the function.
        is_own: Whether it is in flowno or its backends, and not in the program.
    """

    file: str
    line: int
    function: str
    is_own: bool


class TaskSnapshot(NamedTuple):
    """One task that has not ended.

    Attributes:
        id: A number that no other living task of the process has.
        name: What it is called.
        state: ``"running"`` while it makes a step, ``"ready"`` where its next one is due, else ``"waiting"``.
        waits_for: What it waits for, to be read after "waits for"; None where it does not.
        command: The class of the command that it waits in; None where it does not.
        holder: The ``id`` of the one task that could let it go on: which it joins, or whose lock it waits for.
        parent: The ``id`` of the task that it belongs to: the one whose block of a group it was started in, else the
            first that joins it. None where there is neither.
        is_cancelled: Whether a cancellation is due at its next wait, or is being handled.
        stack: Where it is, the outermost frame first.
    """

    id: int
    name: str
    state: TaskState
    waits_for: str | None
    command: str | None
    holder: int | None
    parent: int | None
    is_cancelled: bool
    stack: tuple[FrameSnapshot, ...]


class RegistrationSnapshot(NamedTuple):
    """One file descriptor that the loop knows.

    Attributes:
        fd: Its number.
        armed: What the selector reports of it: of ``"read"`` and ``"write"``, none, one or both.
        reader: The ``id`` of the task that waits to read, or None.
        writer: The ``id`` of the task that waits to write, or None.
        name: The address of the socket; empty where there is none.
        peer: That of its peer; empty where there is none.
    """

    fd: int
    armed: tuple[str, ...]
    reader: int | None
    writer: int | None
    name: str
    peer: str


class TimerSnapshot(NamedTuple):
    """One deadline.

    Attributes:
        seconds_left: Until it is due; negative where it is overdue.
        purpose: What happens then.
        task: The ``id`` of the task that it is for, or None.
    """

    seconds_left: float
    purpose: str
    task: int | None


class CountersSnapshot(NamedTuple):
    """How much there is of everything, also where a snapshot was limited.

    Attributes:
        tasks: Tasks that have not ended.
        ready: Those whose next step is due.
        waiting: Those that wait.
        fds: File descriptors that the selector holds.
        timers: Deadlines to come.
        calls: Calls of other threads and signal handlers that the loop has not made yet.
        threads: Functions that run in worker threads.
        selector_waits: How often the loop has asked its selector, since it was made.
    """

    tasks: int
    ready: int
    waiting: int
    fds: int
    timers: int
    calls: int
    threads: int
    selector_waits: int


class LoopSnapshot(NamedTuple):
    """What :meth:`~flowno.EventLoop.snapshot` returns.

    Attributes:
        loop: The loop, as its ``repr()`` has it.
        selector: The name of its backend.
        thread: The name of the thread that runs it; None while it does not run.
        is_asleep: Whether it waits for its selector.
        time: When this was, in seconds of the loop's clock.
        tasks: Those that have not ended, the oldest first.
        registrations: The file descriptors, in the order of their numbers.
        timers: The deadlines, in the order in which they come.
        counters: How much there is of everything.
    """

    loop: str
    selector: str
    thread: str | None
    is_asleep: bool
    time: float
    tasks: tuple[TaskSnapshot, ...]
    registrations: tuple[RegistrationSnapshot, ...]
    timers: tuple[TimerSnapshot, ...]
    counters: CountersSnapshot


def take_snapshot(loop: EventLoop, limit: int | None = None) -> LoopSnapshot:
    """What an event loop does now; see :meth:`EventLoop.snapshot`.

    Args:
        loop: The loop.
        limit: How many tasks, registrations and timers to take down at most, those that come first; None for all.
    """
    living = _copied(loop.living_tasks)
    records = sorted(_copied(lambda: list(loop.fds._records.values())), key=lambda record: record.fd)
    timers = sorted((list(timer) for timer in loop.timers.heap.copy() if timer[FIRE] is not None), key=lambda t: t[:2])
    running = loop.running_task
    now = loop.clock()
    thread = loop.inbox.thread_id
    states = list(_taken(_state_of, living, running))
    return LoopSnapshot(
        loop=repr(loop),
        selector=loop._selector_name,
        thread=None if thread is None else _name_of_thread(thread),
        is_asleep=loop.inbox.sleeping,
        time=now,
        tasks=tuple(_taken(_task, living[:limit], running)),
        registrations=tuple(_taken(_registration, records[:limit])),
        timers=tuple(_taken(_timer, timers[:limit], now)),
        counters=CountersSnapshot(
            tasks=len(living),
            ready=states.count("ready"),
            waiting=states.count("waiting"),
            fds=loop.fds.registered,
            timers=len(timers),
            calls=len(loop.inbox.items),
            threads=len(loop.threads._jobs),
            selector_waits=loop._waits,
        ),
    )


def _copied(copy: Callable[[], list[T]]) -> list[T]:
    """A copy of a table that another thread may change; empty where that goes on and on."""
    for _ in range(_TRIES):
        try:
            return copy()
        except RuntimeError:
            continue  # "changed size during iteration"
    return []


def _taken(take: Callable[..., T | None], things: Iterable[Any], *args: Any) -> Iterator[T]:
    """Each thing as data, without those that have gone meanwhile."""
    for thing in things:
        try:
            taken = take(thing, *args)
        except Exception:
            continue  # it ended while it was looked at, in another thread
        if taken is not None:
            yield taken


def _tried(function: Callable[[Any], T], thing: Any, otherwise: T) -> T:
    """What a function says of a thing that may be of the program's making, and then may raise anything."""
    try:
        return function(thing)
    except Exception:
        return otherwise


def _task(task: TaskHandle[Any], running: TaskHandle[Any] | None) -> TaskSnapshot | None:
    command, state = task._waiting, _state_of(task, running)
    holder, parent = holder_of(task), _parent_of(task)
    taken = TaskSnapshot(
        id=id(task),
        name=_tried(attrgetter("name"), task, type(task.raw_task).__name__),
        state=state,
        waits_for=wait_in_words(task) if state == "waiting" else None,
        command=type(command).__name__ if command is not None and state == "waiting" else None,
        holder=None if holder is None else id(holder),
        parent=None if parent is None else id(parent),
        is_cancelled=task._cancel_pending or (task._delivered is not None and task._delivered() is not None),
        stack=_tried(_stack_of, task, ()),
    )
    return None if task.done() else taken


def _state_of(task: TaskHandle[Any], running: TaskHandle[Any] | None) -> TaskState:
    if task._waiting is not None:
        return "waiting"
    raw_task = task.raw_task
    # The loop remembers which task it has run last, also where it is between two steps.
    if task is running and getattr(raw_task, "cr_running", getattr(raw_task, "gi_running", True)):
        return "running"
    return "ready"


def _parent_of(task: TaskHandle[Any]) -> TaskHandle[Any] | None:
    """The task that a task belongs to.

    Who has spawned it is not known: to keep that would cost each spawn 4 %. But who waits for it is what is asked for.
    """
    group = group_of(task)
    if group is not None:
        return group._task
    joiners = task._joiners
    return next(iter(joiners), None) if joiners else None


def _stack_of(task: TaskHandle[Any]) -> tuple[FrameSnapshot, ...]:
    # By no name of this frame, which may be among them: it would be kept by itself.
    return tuple(
        FrameSnapshot(frame.f_code.co_filename, frame.f_lineno or 0, frame.f_code.co_qualname, is_own(frame))
        for frame in takewhile(_is_the_tasks, task._frames())
    )


#: By the module and not by the file: the two may be installed in different folders.
_OWN_PACKAGES = frozenset({"flowno", "flowno_backends"})


def is_own(frame: FrameType) -> bool:
    """Whether a frame is in flowno or its backends, and not in the program."""
    module = frame.f_globals.get("__name__")
    return isinstance(module, str) and module.partition(".")[0] in _OWN_PACKAGES


#: The files of those who ask for snapshots.
_LOOP_FILE = os.path.join(os.path.dirname(__file__), "event_loop.py")
_REPORTS = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(__file__))), "debug", "")


def _is_the_tasks(frame: FrameType) -> bool:
    """Whether a frame is what the task does, and not where somebody asks for a snapshot."""
    file = frame.f_code.co_filename
    if file == _LOOP_FILE:
        return frame.f_code.co_name != "snapshot"
    return file != __file__ and not file.startswith(_REPORTS)


def _registration(record: FdRecord) -> RegistrationSnapshot:
    socket, reader, writer = record.socket(), record.reader, record.writer
    return RegistrationSnapshot(
        fd=record.fd,
        armed=tuple(word for event, word in ((EVENT_READ, "read"), (EVENT_WRITE, "write")) if record.armed & event),
        reader=None if reader is None else id(reader),
        writer=None if writer is None else id(writer),
        name=address_of(socket, "getsockname"),
        peer=address_of(socket, "getpeername"),
    )


def _timer(timer: list[Any], now: float) -> TimerSnapshot:
    purpose, task = timer_in_words(timer)
    return TimerSnapshot(timer[DEADLINE] - now, purpose, None if task is None else id(task))


def _name_of_thread(number: int) -> str:
    main = threading.main_thread()
    if number == main.ident:
        return main.name  # without the lock of enumerate(), in which a signal may have found the main thread
    return next((thread.name for thread in threading.enumerate() if thread.ident == number), str(number))
