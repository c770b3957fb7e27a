"""cancel_everywhere: what a program leaves behind when it is cancelled is found, and a careful one is left in peace."""

import os
import pickle
import re
import signal
import socket as system_socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from flowno import (
    AsyncQueue,
    Barrier,
    CancelScope,
    Event,
    FlownoError,
    Lock,
    Semaphore,
    TaskCancelled,
    TaskGroup,
    current_default_thread_limiter,
    current_event_loop,
    open_process,
    open_signal_receiver,
    run_in_thread,
    sleep,
    socketpair,
    spawn,
)
from flowno.core.event_loop.threads import OwnThread
from flowno.testing import CancellationLeak, cancel_everywhere
from tests.conftest import RunPython
from tests.support.counting_selector import CountingSelector
from tests.support.tasks import FOREVER

sockets_are_fds = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows gives sockets other numbers than files, and does not say which are open"
)

pytestmark = pytest.mark.usefixtures("backend")

Program = Callable[[], Coroutine[Any, Any, object]]

#: Seconds for a program on a machine that runs everything at once.
PATIENT = 30.0


def leak_of(program: Program, **options: Any) -> CancellationLeak:
    with pytest.raises(CancellationLeak) as caught:
        cancel_everywhere(program, **options)
    return caught.value


# ----------------------------------------------------------------------------------------------------- careful programs


async def without_a_wait() -> None:
    pass


async def with_sockets_and_tasks() -> None:
    one, other = socketpair()
    with one, other:
        async with TaskGroup() as group:
            await group.spawn(other.sendAll(b"hello"))
            assert await one.recv(100) == b"hello"


async def with_a_clean_up() -> None:
    lock = Lock()
    await lock.acquire()
    try:
        await sleep(0)
        await sleep(0.001)
    finally:
        with CancelScope(shield=True):
            await sleep(0)
            lock.release()


async def with_a_thread_that_nobody_waits_for() -> None:
    """It has its token to its end, which may come later than that of the program."""
    may_end = threading.Event()
    try:
        async with TaskGroup() as group:
            await group.spawn(run_in_thread(may_end.wait, abandon_on_cancel=True))
            await sleep(0)
            may_end.set()
    finally:
        threading.Timer(0.001, may_end.set).start()


async def that_cancels_a_part_of_its_own() -> None:
    with CancelScope() as scope:
        scope.cancel()
        await sleep(FOREVER)
    await sleep(0.0001)


@pytest.mark.parametrize(
    ("program", "suspensions"),
    [
        (that_cancels_a_part_of_its_own, 2),
        (without_a_wait, 0),
        (with_sockets_and_tasks, 1),
        (with_a_clean_up, 3),
        (with_a_thread_that_nobody_waits_for, 3),
    ],
)
def test_a_careful_program_is_cancelled_at_each_of_its_suspensions(program: Program, suspensions: int) -> None:
    assert cancel_everywhere(program) == suspensions


def test_each_wait_is_cancelled_before_it_has_its_answer_and_with_the_answer_in_its_hands() -> None:
    seen = set()

    async def program() -> None:
        loop = current_event_loop()
        assert loop is not None
        for number in (1, 2):
            try:
                await sleep(0.0001)
            except TaskCancelled as error:
                seen.add((number, "by a scope" if error.scope else "by cancel()"))
                raise
            assert loop.running_task is not None
            if loop.running_task._cancel_pending:
                seen.add((number, "answered, and cancelled at the next wait"))

    cancel_everywhere(program)
    ways = ("by a scope", "by cancel()", "answered, and cancelled at the next wait")
    assert seen == {(number, way) for number in (1, 2) for way in ways}


# ---------------------------------------------------------------------------------------------------- careless programs

KEPT: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_kept() -> Any:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
    for thing in KEPT:
        thing.close()
    KEPT.clear()


async def that_does_not_close_a_socket() -> None:
    one, other = socketpair()
    await sleep(0)
    one.close()
    other.close()


async def that_keeps_a_socket_open() -> None:
    ends = system_socket.socketpair()
    KEPT.extend(ends)
    await sleep(0)
    for end in ends:
        KEPT.remove(end)
        end.close()


async def that_closes_what_is_not_its_own() -> None:
    one, other = system_socket.socketpair()
    with one, other:
        try:
            await sleep(0)
        except TaskCancelled:
            os.close(KEPT[0].fileno())
            raise


async def that_does_not_release_a_lock() -> None:
    lock = Lock()
    await lock.acquire()
    await sleep(0)
    lock.release()


async def with_a_task_that_does_not_release_a_lock() -> None:
    lock = Lock()
    async with TaskGroup() as group:
        await group.spawn(that_does_not_release_a_lock())
        async with lock:
            await sleep(0)


async def that_leaves_a_task() -> None:
    task = await spawn(sleep(0.001))
    await task.join()


async def that_swallows_its_cancellation() -> str:
    try:
        await sleep(0)
    except TaskCancelled:
        pass
    return "done"


async def that_swallows_its_cancellation_and_waits() -> None:
    try:
        await sleep(0)
    except TaskCancelled:
        await sleep(FOREVER)


async def that_fails_when_it_cleans_up() -> None:
    try:
        await sleep(0)
    except TaskCancelled:
        raise ValueError("half done") from None


async def that_leaves_a_timer() -> None:
    loop = current_event_loop()
    assert loop is not None
    timer = loop.interrupt_after(60, ValueError("late"))
    await sleep(0)
    loop.cancel_timer(timer)


async def that_does_not_give_back_a_token() -> None:
    limiter = current_default_thread_limiter()
    await limiter.acquire_on_behalf_of("somebody")
    await sleep(0)
    limiter.release_on_behalf_of("somebody")


async def that_drops_a_process() -> None:
    process = await open_process([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)
    await sleep(0)
    await process.aclose()


async def that_goes_on_receiving_a_signal() -> None:
    receiver = open_signal_receiver(signal.SIGTERM)
    receiver.__enter__()
    await sleep(0)
    receiver.__exit__(None, None, None)


async def that_leaves_a_handler() -> None:
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    await sleep(0)
    signal.signal(signal.SIGTERM, handler)


async def that_waits_when_it_cleans_up() -> None:
    one, other = socketpair()
    try:
        await sleep(0)
    finally:
        await sleep(0)
        one.close()
        other.close()


async def whose_task_does_not_close_a_socket() -> None:
    """Harmless as long as the task is told to end, and not cancelled, too, as it is at the end of a run."""

    async def work() -> None:
        one, other = socketpair()
        await to_end.wait()
        one.close()
        other.close()

    to_end = Event()
    await spawn(work())
    try:
        await sleep(0)
    finally:
        to_end.set()


@pytest.mark.not_in_debug_mode(reason="of a handle that is dropped, more is said")
@pytest.mark.parametrize(
    ("program", "problem"),
    [
        (that_does_not_close_a_socket, r"dropped, and not closed: unclosed <socket\.socket fd=\d+"),
        pytest.param(that_keeps_a_socket_open, r"fd \d+ is still open: a socket", marks=sockets_are_fds),
        (that_does_not_release_a_lock, r"<TaskHandle that_does_not_release_a_lock cancelled> ended with a lock"),
        (with_a_task_that_does_not_release_a_lock, r"<TaskHandle that_does_not_release_a_lock cancelled> ended with a"),
        (that_leaves_a_task, r"<TaskHandle sleep alive> has not ended; it waits in SleepCommand\(0\.001\)"),
        (that_swallows_its_cancellation, r"it swallowed the cancellation, and went on"),
        (that_swallows_its_cancellation_and_waits, r"it had not ended after 0\.1 s"),
        (that_fails_when_it_cleans_up, r"it ended with ValueError\('half done'\)"),
        (that_leaves_a_timer, r"timers that were not taken back: 1"),
        (
            that_does_not_give_back_a_token,
            r"'somebody' has not given back its token of <CapacityLimiter 1 of 40",
        ),
        (that_drops_a_process, r"dropped, and not closed: subprocess \d+ is still running"),
        (that_goes_on_receiving_a_signal, r"signals that are still received: <SignalReceiver of SIGTERM>"),
        (that_leaves_a_handler, r"the handler of <Signals\.SIGTERM: 15> is <Handlers\.SIG_IGN: 1>, and was <Handlers"),
        (that_waits_when_it_cleans_up, r"dropped, and not closed"),
        (whose_task_does_not_close_a_socket, r"dropped, and not closed"),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of what the program uncancelled leaves, which has no task left
def test_what_is_left_behind_is_found(program: Program, problem: str) -> None:
    # Only one of them is to run out of its time; to start a process takes longer than that on a busy machine.
    leak = leak_of(program, timeout=0.1 if program is that_swallows_its_cancellation_and_waits else PATIENT)
    assert any(re.match(problem, each) for each in leak.problems), leak.problems


@pytest.mark.not_watched(reason="it closes an fd that may be one of the monitor's")
@sockets_are_fds
def test_a_closed_fd_of_another_is_found() -> None:
    one, other = system_socket.socketpair()
    with other:
        KEPT.append(one)
        leak = leak_of(that_closes_what_is_not_its_own)
        fd = one.detach()
        assert leak.problems == [f"fd {fd} was open before, and is not: a socket"]


def test_a_task_that_cannot_be_cancelled_itself_is_found_at_the_end_of_the_run() -> None:
    assert "by the end of the run" in leak_of(whose_task_does_not_close_a_socket).way


class Late:
    """A thread of flowno's own that opens a file when it is told to, and closes it when it is told to."""

    def __init__(self) -> None:
        self.may_open, self.is_open, self.may_close = threading.Event(), threading.Event(), threading.Event()
        self.thread = OwnThread(target=self.work)
        self.thread.start()

    def work(self) -> None:
        self.may_open.wait()
        with open(os.devnull, "rb"):
            self.is_open.set()
            self.may_close.wait()


def test_a_file_that_a_thread_of_an_earlier_run_closes_is_not_taken_for_another_s() -> None:
    threads: list[Late] = []

    async def program() -> None:
        while threads:
            late = threads.pop()
            late.may_close.set()
            late.thread.join()
        try:
            await sleep(0)
        except TaskCancelled:
            threads.append(Late())
            raise

    def check() -> None:
        for late in threads:
            late.may_open.set()
            late.is_open.wait()

    assert cancel_everywhere(program, check=check) == 1


@pytest.mark.parametrize(
    ("by_scope", "way"),
    [
        (True, "by a cancelled scope around it, before it waited"),
        (False, "by cancel(), while it waited, and again at its next wait"),
    ],
)
def test_a_clean_up_that_waits_is_cancelled_there(by_scope: bool, way: str) -> None:
    items = ["an item"]

    async def program() -> None:
        item = items.pop()
        try:
            await sleep(0.0001)
        except TaskCancelled as error:
            if (error.scope is not None) is by_scope:
                await sleep(0)
            items.append(item)
            raise
        items.append(item)

    def check() -> None:
        assert items

    assert leak_of(program, check=check).way == way


def test_a_scope_is_cancelled_when_whoever_has_woken_the_task_is_done_waking() -> None:
    """In between no program can: of several that are woken together, none finds another still in the queue."""
    passed = []

    async def come(barrier: Barrier) -> None:
        passed.append(await barrier.wait())

    async def program() -> None:
        passed.clear()
        barrier = Barrier(3)
        async with TaskGroup() as group:
            for _ in range(2):
                group.create_task(come(barrier))  # they come after this one
            await come(barrier)

    def check() -> None:
        assert len(passed) in (0, 3)

    cancel_everywhere(program, check=check)


def test_an_item_that_is_lost_is_found_by_the_check() -> None:
    handled: list[int] = []
    queue: AsyncQueue[int] = AsyncQueue()

    async def program() -> None:
        handled.clear()
        queue.put_nowait(1)
        item = await queue.get()
        await sleep(0)
        handled.append(item)

    def check() -> None:
        assert handled == [1] or queue.items == [1]

    leak = leak_of(program, check=check)
    assert leak.suspension == 1
    assert "the check failed" in leak.problems[0]
    assert isinstance(leak.__cause__, AssertionError)


def test_what_only_the_next_run_meets_is_found_by_running_it_again() -> None:
    semaphore = Semaphore(1)

    async def program() -> None:
        await semaphore.acquire()
        await sleep(0)
        semaphore.release()

    (problem, *_) = leak_of(program, timeout=0.1).problems
    assert problem == "it was run again in the same loop: it had not ended after 0.1 s"


def test_a_cancellation_of_another_task_that_the_program_raises_is_an_error_of_the_program() -> None:
    async def program() -> None:
        task = await spawn(sleep(FOREVER))
        try:
            await sleep(0)
        except TaskCancelled:
            await task.cancel()
            await task.join()
        task.cancel()

    assert "it ended with TaskCancelled" in leak_of(program).problems[0]


# --------------------------------------------------------------------------------------------------------- what it says


def test_the_error_says_where_how_and_what() -> None:
    leak = leak_of(that_does_not_release_a_lock)
    assert isinstance(leak, AssertionError)
    assert isinstance(leak, FlownoError)
    assert (leak.suspension, leak.command, leak.way) == (1, "GiveWayCommand()", "by cancel(), before it waited")
    first, *rest = str(leak).splitlines()
    assert first == "the program was cancelled at suspension 1, GiveWayCommand(), by cancel(), before it waited:"
    assert rest == [f"  {problem}" for problem in leak.problems]


def test_the_error_of_the_program_is_the_cause() -> None:
    assert isinstance(leak_of(that_fails_when_it_cleans_up).__cause__, ValueError)


def test_the_error_can_be_pickled() -> None:
    leak = leak_of(that_does_not_release_a_lock)
    copy = pickle.loads(pickle.dumps(leak))
    assert (str(copy), copy.suspension, copy.problems) == (str(leak), leak.suspension, leak.problems)


def test_a_program_that_fails_by_itself_raises_its_own_error() -> None:
    async def program() -> None:
        await sleep(0)
        raise ValueError("by itself")

    with pytest.raises(ValueError, match="by itself"):
        cancel_everywhere(program)


def test_more_suspensions_than_the_limit_are_an_error() -> None:
    async def program() -> None:
        for _ in range(4):
            await sleep(0)

    assert cancel_everywhere(program, limit=4) == 4
    with pytest.raises(ValueError, match="more than 3 suspensions"):
        cancel_everywhere(program, limit=3)


def test_the_check_is_made_after_each_run() -> None:
    runs: list[str] = []

    async def program() -> None:
        runs.append("run")
        await sleep(0)

    cancel_everywhere(program, check=lambda: runs.append("check"))
    assert runs[0] == "run"  # the first one shows that the program works
    assert runs[1:] == ["run", "check"] * (len(runs) // 2)


def test_the_loops_are_made_with_the_selector_that_was_asked_for() -> None:
    with CountingSelector() as selector:
        cancel_everywhere(with_sockets_and_tasks, selector=selector)
        assert selector.calls["register"] > 20
        assert selector.masks == {}


def test_the_helpers_need_no_test_framework(run_python: RunPython) -> None:
    result = run_python("import flowno.testing, sys; print(sorted({'pytest', 'unittest'} & set(sys.modules)))")
    assert (result.stdout.strip(), result.stderr) == ("[]", "")
