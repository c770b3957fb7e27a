"""Traces of event loops: which task runs when, from where to where, what it waits for, and who has woken it.

Chrome's format knows processes and threads, and shows a lane for each thread. Here an event loop takes the place of a
process, and its tasks those of threads. What is to be known of the format:

a) Slices are ``X`` (with a duration) or ``B`` and ``E``, and nest within their lane. Times are microseconds.
b) An arrow is ``s`` and ``f`` with one ``id``. ``s`` belongs to the slice that encloses its time on its lane, ``f`` too
   where it has ``"bp": "e"``; else it would belong to the next one.
c) ``C`` is a counter, one curve for each of its ``args``; ``M`` names a lane, or a process, and says where it stands.
d) Perfetto tells lanes apart by ``tid`` alone, whatever the ``pid``: so a number is given once in a file.

A program may have 100,000 tasks, and no viewer shows as many lanes. So a lane is given to one task after the other, at
first to those that run the same function; and tasks for which there is none share one, where their steps are seen but
not their waits: of tasks of one loop no two steps overlap, but waits do.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from contextlib import contextmanager
from functools import wraps
from itertools import count
from time import perf_counter_ns
from types import coroutine
from typing import TYPE_CHECKING, Any

from flowno.core.event_loop.commands import (
    Command,
    FdCommand,
    SignalWaitCommand,
    SleepCommand,
    SocketCommand,
    SocketConnectCommand,
    SpawnCommand,
    ThreadCommand,
)
from flowno.core.event_loop.environment import TRACE_VARIABLE
from flowno.core.event_loop.exchange import Exchange, Replacement
from flowno.core.event_loop.observers import entering, leaving
from flowno.core.event_loop.running import calls_the_program, current_event_loop, here
from flowno.core.event_loop.snapshots import is_own
from flowno.core.event_loop.sockets import SocketHandle
from flowno.core.event_loop.tasks import _frames_of, function_name
from flowno.core.event_loop.words import kind_of_wait

from . import path_in_process
from .trace_file import TraceFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from selectors import SelectorKey

    from flowno.core.event_loop.event_loop import EventLoop
    from flowno.core.event_loop.tasks import TaskHandle

__all__ = ["Tracer", "attach", "trace"]

#: How many lanes the tasks of a loop get.
LANES = 500

#: Characters of what a command says of itself: it may have an item of the program in it.
LONGEST_TEXT = 200

#: Waits that no other task ends, and that make no other task ready.
_BETWEEN_TASK_AND_SYSTEM = (FdCommand, SignalWaitCommand, SleepCommand, SocketCommand, ThreadCommand)

_IN, _OUT = 0, 1

logger = logging.getLogger("flowno.trace")


# ------------------------------------------------------------------------------------------------------------ for users


@contextmanager
def trace(path: str | os.PathLike[str]) -> Iterator[None]:
    """Write a trace of what event loops do while this is entered, to be opened in https://ui.perfetto.dev.

    That is the loop that runs in this thread, and every one that begins to run meanwhile, in any thread.

    Args:
        path: The file. One that is there already is replaced.

    Raises:
        OSError: It cannot be written, or another trace is being written there.

    Example:
        >>> import json, os, tempfile
        >>> from flowno import run, sleep
        >>> from flowno.debug import trace
        >>> async def main():
        ...     await sleep(0.001)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "trace.json")
        ...     with trace(path):
        ...         run(main())
        ...     with open(path) as file:
        ...         events = json.load(file)["traceEvents"]
        >>> [event["name"] for event in events if event.get("cat") == "wait"]
        ['sleeps']
    """
    tracer = Tracer(path)
    tracer.start()
    try:
        yield
    finally:
        tracer.stop()


def trace_process(path: str | os.PathLike[str]) -> None:
    """Trace every event loop of this process from now on to its end.

    Raises:
        OSError: The file cannot be written, or another trace is being written there.
    """
    tracer = Tracer(path)
    _paths.add(os.path.realpath(path))
    tracer.start()
    atexit.register(tracer.stop)


#: What ``FLOWNO_TRACE`` was when it was honoured, and in which process.
_asked_for: dict[str, int] = {}

#: Where this process, or one that it was forked from, is traced to its end.
_paths: set[str] = set()


def attach(loop: EventLoop, value: str) -> None:
    """Trace the process because ``FLOWNO_TRACE`` says so, from its first loop on.

    Args:
        loop: The new loop.
        value: The path, in which ``{pid}`` stands for the number of the process. A forked child has a trace only where
            it is in there: else it would write over its parent's. Where ``flowno trace`` writes there already, that
            is the trace that is asked for.
    """
    process = os.getpid()
    asked_by = _asked_for.get(value)
    if asked_by == process or (asked_by is not None and path_in_process(value) == value):
        return
    _asked_for[value] = process
    path = os.path.abspath(path_in_process(value))
    if os.path.realpath(path) in _paths:
        return
    try:
        trace_process(path)
    except OSError as error:
        logger.error("%s=%s: there will be no trace: %s", TRACE_VARIABLE, value, error)


#: Those whose locks the child of a fork has to renew.
_tracers: weakref.WeakSet[Tracer] = weakref.WeakSet()


class Tracer:
    """Traces the event loops of a process into one file.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.file = TraceFile(path)
        self.lock = threading.RLock()
        _tracers.add(self)
        self.numbers = count(1)  # for the loops and the lanes
        self.arrows = count(1)
        self.origin = perf_counter_ns()
        self.loops: dict[_LoopTrace, None] = {}

    def start(self) -> None:
        """Begin with the loop that runs in this thread, if one does."""
        entering.append(self._watch)
        leaving.append(self._rest)
        loop = current_event_loop()
        if loop is not None:
            self._watch(loop)

    def stop(self) -> None:
        """End it, and close the file. From any thread."""
        entering.remove(self._watch)
        leaving.remove(self._rest)
        for each in list(self.loops):
            each.stop()
        self.file.close()

    def _watch(self, loop: EventLoop) -> None:
        with self.lock:
            if self.file.is_writable and not any(each.loop() is loop for each in self.loops):
                _LoopTrace(self, loop)

    def _rest(self, loop: EventLoop) -> None:
        for each in list(self.loops):
            if each.loop() is loop:
                each.rest()


# --------------------------------------------------------------------------------------------------------------- a loop


class _Task:
    """What is known of a task between two of its steps."""

    __slots__ = ("arrow", "detail", "function", "lane", "since", "wait", "woken")

    def __init__(self, lane: int, function: str, since: int) -> None:
        self.lane = lane
        self.function = function  # whose lane it is
        self.since = since  # the end of its last step, or its birth, in nanoseconds
        self.wait: type[Command] | None = None  # None where it did not have to wait
        self.detail = ""  # the command that it waits in
        self.woken = 0  # when it was made ready
        self.arrow = 0  # the number of the arrow that leads to it from who has done that


class _Step:
    """A step that runs, or has just ended."""

    __slots__ = ("command", "end", "start", "task", "where")

    def __init__(self, task: TaskHandle[Any], start: int, where: tuple[str, str]) -> None:
        self.task = task
        self.start = start
        self.end = 0  # it runs
        self.where = where
        self.command: Command | None = None

    @property
    def could_wake(self) -> bool:
        """Whether its end, or what it asked of the loop, may have made others ready."""
        if self.command is None:
            return self.task.done()
        return not isinstance(self.command, _BETWEEN_TASK_AND_SYSTEM)


class _LoopTrace:
    """The part of a trace that one event loop has; ended by :meth:`stop`, and with its loop.

    A step is written when the next thing happens: only then it is known what the loop made of it, and whom it woke.
    """

    def __init__(self, tracer: Tracer, loop: EventLoop) -> None:
        self.loop = weakref.ref(loop)
        self._tracer = tracer
        self._file = tracer.file
        self._is_on = True
        self._last_time = 0
        self._process = self._lane = next(tracer.numbers)  # the lane of the same number is the main one: the selector's
        self._lanes = _Lanes(self)
        self._tasks: dict[TaskHandle[Any], _Task] = {}
        self._ready = loop.ready
        self._seen = len(loop.ready)  # how many of those were looked at
        self._made_ready: list[TaskHandle[Any]] = []  # by the last step
        self._step: _Step | None = None
        self._asked = 0  # when the selector has answered
        self._names: weakref.WeakKeyDictionary[SocketHandle, str] = weakref.WeakKeyDictionary()
        self.bytes = [0, 0]  # in and out
        self._bytes_told: list[int] = []

        thread = threading.current_thread().name
        self.name("process_name", self._lane, name=f"{loop._selector_name} event loop {self._process}, {thread}")
        self.name("process_labels", self._lane, labels=f"pid {os.getpid()}")
        self.name("process_sort_index", self._lane, sort_index=self._process)
        self._lanes.introduce(self._lane, f"selector: {loop._selector_name}")
        now = self._now()
        self._show_bytes(now)
        for task in loop.tasks:
            self._note_wait(task, self._begin(task, now))
        if loop.running_task is not None:
            self._step = _Step(loop.running_task, now, _place_of(loop.running_task))

        tracer.loops[self] = None
        loop.add_step_wrapper(self.run_step)
        loop.add_select_wrapper(self._select)
        loop.close_callbacks.append(self.stop)
        _watch_bytes(self)

    def rest(self) -> None:
        """The loop has run: its last task is kept no longer, nor those that were closed where they stood."""
        with self._tracer.lock:
            if self._is_on:
                self._settle()
                for task in [task for task in self._tasks if task.done()]:
                    self._break_off(task)
                self._file.flush()

    def stop(self) -> None:
        """Write what is going on as if it ended here, and watch no more."""
        with self._tracer.lock:
            if not self._is_on:
                return
            running = self._step.task if self._step is not None and not self._step.end else None
            self._settle()
            self._is_on = False
            if running is not None and running in self._tasks:
                self._end(running, self._tasks[running], self._now())
            for task in list(self._tasks):
                self._break_off(task)
            self._file.flush()
            self._tracer.loops.pop(self, None)
        _unwatch_bytes(self)
        loop = self.loop()
        if loop is not None:
            loop.inbox.act(self._let_go, loop)

    def _let_go(self, loop: EventLoop) -> None:
        loop.remove_step_wrapper(self.run_step)
        loop.remove_select_wrapper(self._select)
        if self.stop in loop.close_callbacks:
            loop.close_callbacks.remove(self.stop)

    # --- what the loop calls -----------------------------------------------------------------------------------------

    @calls_the_program
    def run_step(
        self, task: TaskHandle[Any], run: Callable[..., Any], method: Callable[[Any], Any], argument: Any
    ) -> Any:
        """Wraps the steps; see :meth:`EventLoop.add_step_wrapper`."""
        with self._tracer.lock:
            if self._is_on:
                self._begin_step(task, is_thrown=method is not task._send)
        command = None
        try:
            command = run(method, argument)
            return command
        finally:
            with self._tracer.lock:
                if self._is_on and self._step is not None:
                    self._step.end = self._now()
                    self._step.command = command
                    self._look()
            del self, task, run, method, argument, command  # the traceback of an error has this frame

    def _select(
        self, ask: Callable[[float | None], list[tuple[SelectorKey, int]]], timeout: float | None
    ) -> list[tuple[SelectorKey, int]]:
        """Wraps the questions to the selector; see :meth:`EventLoop.add_select_wrapper`."""
        with self._tracer.lock:
            if self._is_on:
                self._settle()
                if timeout is None or timeout > 0:
                    self._file.flush()
        start = self._now()
        events = None
        try:
            events = ask(timeout)
            return events
        finally:
            with self._tracer.lock:
                if self._is_on:
                    self._asked = self._now()
                    ready = None if events is None else len(events)
                    name = "polls" if timeout is not None and timeout <= 0 else "waits"
                    self._slice(self._lane, name, "selector", start, self._asked, {"timeout": timeout, "ready": ready})
            del self, ask, events

    # --- steps -------------------------------------------------------------------------------------------------------

    def _begin_step(self, task: TaskHandle[Any], is_thrown: bool) -> None:
        self._settle(None if is_thrown else task)
        known = self._tasks.get(task) or self._begin(task, self._now())
        if known.wait is not None and not known.woken and known.since < self._asked:
            self._wake(known, self._lane, self._asked)
        start = self._now()
        self._show_wait(known, start)
        self._step = _Step(task, start, _place_of(task))

    def _look(self) -> None:
        """Take in whom the last step, and what the loop did for it, have made ready."""
        number = len(self._ready)
        self._made_ready += self._ready[self._seen if number >= self._seen else 0 :]
        self._seen = number

    def _settle(self, upcoming: TaskHandle[Any] | None = None) -> None:
        """Write the last step, as what it has led to is there to be seen.

        Args:
            upcoming: Whose turn it is now. Whom the last task of a batch makes ready by its end, or by what it asks of
                the loop, is taken into the next batch before anybody could look.
        """
        self._look()
        made_ready, self._made_ready = self._made_ready, []
        step, self._step = self._step, None
        if step is None:
            return
        task = step.task
        known = self._tasks[task]
        end = step.end or self._now()
        place, full_place = step.where
        arguments = {"task": task.name, "at": full_place}
        if not task.done():
            arguments["until"] = _place_of(task)[0]
        self._slice(known.lane, place, "step", step.start, end, arguments)
        if known.arrow:  # it is in the lane that is shared, where there was nothing before for it to lead to
            self._arrow("f", known.lane, known.arrow, step.start)
            known.arrow = known.woken = 0
        if upcoming is not None and self._was_woken_by(step, upcoming):
            made_ready.append(upcoming)
        for each in made_ready:
            if each is not task and not each.done():
                self._wake(self._tasks.get(each) or self._begin(each, end), known.lane, end)
        if task.done():
            self._end(task, known, end)
        else:
            known.since = end
            self._note_wait(task, known)
        if self.bytes != self._bytes_told:
            self._show_bytes(end)

    def _was_woken_by(self, step: _Step, task: TaskHandle[Any]) -> bool:
        known = self._tasks.get(task)
        if known is None:
            return isinstance(step.command, SpawnCommand)
        if known.woken or known.wait is None or task is step.task:
            return False
        return step.could_wake and not issubclass(known.wait, _BETWEEN_TASK_AND_SYSTEM)

    # --- what is written ---------------------------------------------------------------------------------------------

    def _begin(self, task: TaskHandle[Any], at: int) -> _Task:
        function = function_name(task.raw_task)
        lane = self._lanes.take(function)
        self._tasks[task] = known = _Task(lane, function, at)
        if lane != self._lanes.shared:
            self._add("B", lane, at, name=task.name or function, cat="task", args={"function": function})
        return known

    def _end(self, task: TaskHandle[Any], known: _Task, at: int) -> None:
        del self._tasks[task]
        if known.lane != self._lanes.shared:
            self._add("E", known.lane, at, args={"outcome": _outcome_of(task)})
            self._lanes.give_back(known.lane, known.function)

    def _break_off(self, task: TaskHandle[Any]) -> None:
        """End the slice of a task that will not be seen to run any more."""
        known = self._tasks[task]
        now = self._now()
        self._show_wait(known, now)
        if known.arrow:  # in the lane that is shared, where nothing is open for it to lead to
            self._slice(known.lane, "is ready", "ready", now, self._now(), {"task": task.name})
            self._arrow("f", known.lane, known.arrow, now)
        self._end(task, known, now)

    def _note_wait(self, task: TaskHandle[Any], known: _Task) -> None:
        command = task._waiting
        known.wait = None if command is None else type(command)
        known.detail = "" if command is None else self._in_detail(command)

    def _in_detail(self, command: Command) -> str:
        handle = command._handle() if isinstance(command, SocketCommand) else None
        try:
            if handle is None or isinstance(command, SocketConnectCommand):
                return repr(command)[:LONGEST_TEXT]
            if handle not in self._names:
                self._names[handle] = repr(handle)  # which asks the system for two addresses
        except Exception:
            return type(command).__name__  # what it waits for is of the program's making
        return f"{type(command).__name__}({self._names[handle]})"

    def _wake(self, known: _Task, lane: int, at: int) -> None:
        """An arrow begins, in the slice that ends at this time."""
        if not known.woken:
            known.woken = at
            known.arrow = next(self._tracer.arrows)
            self._arrow("s", lane, known.arrow, at - 1)

    def _show_wait(self, known: _Task, now: int) -> None:
        """What was between the last step of a task and its next one, which begins now."""
        if known.lane == self._lanes.shared:
            return
        woken = known.woken or (known.since if known.wait is None else now)
        if known.wait is not None and woken > known.since:
            self._slice(known.lane, kind_of_wait(known.wait), "wait", known.since, woken, {"for": known.detail})
        if woken < now:
            self._slice(known.lane, "is ready", "ready", woken, now, {})
        if known.arrow:
            self._arrow("f", known.lane, known.arrow, woken)
        known.wait = None
        known.woken = known.arrow = 0

    def _show_bytes(self, at: int) -> None:
        self._bytes_told = [*self.bytes]
        received, sent = self._bytes_told
        self._add("C", self._lane, at, name="bytes", args={"in": received, "out": sent})

    def name(self, what: str, lane: int, **args: object) -> None:
        """Say what a lane is called, or the loop."""
        self._file.add({"ph": "M", "name": what, "pid": self._process, "tid": lane, "ts": 0, "args": args})

    def _slice(self, lane: int, name: str, category: str, start: int, end: int, args: dict[str, Any]) -> None:
        self._add("X", lane, start, name=name, cat=category, dur=(end - start) / 1000, args=args)

    def _arrow(self, phase: str, lane: int, number: int, at: int) -> None:
        binding = {"bp": "e"} if phase == "f" else {}
        self._add(phase, lane, at, name="wakes", cat="wake", id=number, **binding)

    def _add(self, phase: str, lane: int, at: int, **fields: Any) -> None:
        self._file.add({"ph": phase, "pid": self._process, "tid": lane, "ts": at / 1000, **fields})

    def _now(self) -> int:
        """Nanoseconds since the trace began; never the same twice, as no slice may be empty."""
        now = max(perf_counter_ns() - self._tracer.origin, self._last_time + 1)
        self._last_time = now
        return now

    def new_lane(self, name: str) -> int:
        """The number of a new lane."""
        lane = next(self._tracer.numbers)
        self._lanes.introduce(lane, name)
        return lane


class _Lanes:
    """The lanes of a loop: who gets which."""

    def __init__(self, loop: _LoopTrace) -> None:
        self.shared = 0  # 0 while it is not needed
        self._loop = loop
        self._made = 0
        self._free: dict[str, list[int]] = {}  # by the function whose task had it last

    def introduce(self, lane: int, name: str) -> None:
        """Name a lane; they stand in the order of their numbers."""
        self._loop.name("thread_name", lane, name=name)
        self._loop.name("thread_sort_index", lane, sort_index=lane)

    def take(self, function: str) -> int:
        """A lane for a task: one of its function that is free, a new one, another that is free, or the shared one."""
        free = self._free.get(function)
        if free:
            return free.pop()
        if self._made < LANES:
            self._made += 1
            return self._loop.new_lane(function)
        free = next(filter(None, self._free.values()), None)
        if free:
            lane = free.pop()
            self._loop.name("thread_name", lane, name="tasks of several functions")
            return lane
        if not self.shared:
            self.shared = self._loop.new_lane("further tasks, without their waits")
        return self.shared

    def give_back(self, lane: int, function: str) -> None:
        """Its task has ended."""
        self._free.setdefault(function, []).append(lane)


def _place_of(task: TaskHandle[Any]) -> tuple[str, str]:
    """Where a task is that does not run, in the innermost function but flowno's: in short, and with the path."""
    found = None
    for frame in _frames_of(task.raw_task):
        if found is None or not is_own(frame):
            found = frame
    if found is None:
        return function_name(task.raw_task), ""
    path, line = found.f_code.co_filename, found.f_lineno
    return f"{found.f_code.co_qualname} {os.path.basename(path)}:{line}", f"{path}:{line}"


def _outcome_of(task: TaskHandle[Any]) -> str:
    if not task.done():
        return "none yet"
    if task.is_error:
        return f"error: {type(task._result[0]).__name__}"
    return "cancelled" if task.is_cancelled else "returned"


# ---------------------------------------------------------------------------------------------------------------- bytes

#: Whose bytes are counted. The methods of handles are exchanged while there is anybody.
_counting: dict[_LoopTrace, None] = {}
_counting_lock = threading.RLock()


class _CountedSlot:
    """Where a handle keeps a function of its socket: what that receives or sends is counted.

    Args:
        slot: The slot itself.
        direction: Of the bytes.
    """

    def __init__(self, slot: Any, direction: int) -> None:
        self._slot = slot
        self._direction = direction

    def __get__(self, handle: SocketHandle | None, owner: type | None = None) -> Any:
        if handle is None:
            return self
        function = self._slot.__get__(handle, owner)

        def counted(*args: Any) -> Any:
            result = function(*args)
            _count(self._direction, result)
            return result

        return counted

    def __set__(self, handle: SocketHandle, value: object) -> None:
        self._slot.__set__(handle, value)


def _counted_into(method: Any) -> Any:
    """``recv_into``, whose result is counted."""

    @coroutine
    def counted(operation: Any) -> Any:
        received = yield from operation
        _count(_IN, received)
        return received

    def recv_into(self: SocketHandle, buffer: Any, nbytes: int = 0) -> Any:
        return counted(method(self, buffer, nbytes))  # called already, so that it is missed if nobody awaits this

    return recv_into


def _counted_by(method: Any, direction: int) -> Any:
    """A method of handles that operates by a function it is given, whose result is, or begins with, what is counted."""

    def operate(self: SocketHandle, function: Any, *args: Any, **kwargs: Any) -> Any:
        sock = getattr(function, "__self__", None)

        @wraps(function)
        def counted(*args: Any) -> Any:
            # By its name, as the socket may be of another class by now, with faults.
            result = function(*args) if sock is None else getattr(sock, function.__name__)(*args)
            _count(direction, result[0] if isinstance(result, tuple) else result)
            return result

        return method(self, counted, *args, **kwargs)

    return operate


def _count(direction: int, result: bytes | int) -> None:
    number = result if isinstance(result, int) else len(result)
    loop = here.loop
    for each in list(_counting):
        if each.loop() is loop:
            each.bytes[direction] += number


#: Where the bytes of all handles pass, also those of TLS, which are counted as the network sees them.
_COUNTED: dict[str, Callable[[Any], Any]] = {
    "_sock_recv": lambda slot: _CountedSlot(slot, _IN),
    "_sock_send": lambda slot: _CountedSlot(slot, _OUT),
    "recv_into": _counted_into,
    "_read_by": lambda method: _counted_by(method, _IN),
    "_write_by": lambda method: _counted_by(method, _OUT),
}


_byte_counts = Exchange(lambda: [Replacement(SocketHandle, name, watch) for name, watch in _COUNTED.items()])


def _watch_bytes(trace: _LoopTrace) -> None:
    with _counting_lock:
        _byte_counts.begin()
        _counting[trace] = None


def _unwatch_bytes(trace: _LoopTrace) -> None:
    with _counting_lock:
        del _counting[trace]
        _byte_counts.end()


# --------------------------------------------------------------------------------------------------------------- a fork


def _renew_locks() -> None:
    """In the child: whoever had one of them is not there any more."""
    global _counting_lock
    _counting_lock = threading.RLock()
    for tracer in _tracers:
        tracer.lock = threading.RLock()
        tracer.file.renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
