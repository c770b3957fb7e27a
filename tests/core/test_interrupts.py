"""Ctrl-C: the first cancels the root, and everything is cleaned up; a second raises KeyboardInterrupt at once."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import flowno
from flowno import (
    CancelScope,
    Event,
    EventLoop,
    Lock,
    TaskCancelled,
    TaskGroup,
    exit,
    run_in_thread,
    sleep,
    spawn,
    timeout,
)
from tests.conftest import RunPython
from tests.support.loopback import full_backlog, pair
from tests.support.tasks import FOREVER, value

pytestmark = pytest.mark.usefixtures("backend", "default_handler")


@pytest.fixture
def default_handler() -> Iterator[None]:
    """SIGINT has Python's own handler; a runner of tests may have set another one."""
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, outer)


def press() -> None:
    signal.raise_signal(signal.SIGINT)


async def press_soon() -> None:
    await sleep(0)
    press()


# ------------------------------------------------------------------------------------------------------------ the first


@pytest.mark.parametrize("wait", ["sleep", "socket", "lock", "group", "time limit", "join", "nothing"])
def test_the_first_cancels_the_root_where_it_waits_and_runs_its_clean_up(wait: str) -> None:
    log: list[str] = []

    async def waits() -> None:
        if wait == "sleep":
            await sleep(FOREVER)
        elif wait == "socket":
            with pair() as (one, _):
                await one.recv(1)
        elif wait == "lock":
            lock = Lock()
            async with lock:
                await (await spawn(lock.acquire())).join()
        elif wait == "group":
            async with TaskGroup() as group:
                await group.spawn(sleep(FOREVER))
        elif wait == "time limit":
            async with timeout(1000):
                await Event().wait()
        elif wait == "join":
            await (await spawn(sleep(FOREVER))).join()
        else:
            while True:
                await sleep(0)

    async def root() -> None:
        await spawn(press_soon())
        try:
            await waits()
        finally:
            await sleep(0.001)
            log.append("root")

    with pytest.raises(KeyboardInterrupt):
        flowno.run(root())
    assert log == ["root"]


@pytest.mark.parametrize("wait_for_spawned_tasks", [True, False])
@pytest.mark.parametrize("join", [True, False])
def test_the_other_tasks_are_cancelled_then_and_the_loop_can_be_used_again(
    join: bool, wait_for_spawned_tasks: bool, caplog: pytest.LogCaptureFixture
) -> None:
    log: list[str] = []

    async def child() -> None:
        try:
            await sleep(FOREVER)
        finally:
            await sleep(0)
            log.append("child")

    async def root() -> None:
        await spawn(child())
        await spawn(press_soon())
        try:
            await sleep(FOREVER)
        finally:
            log.append("root")

    with EventLoop() as loop:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(root(), join=join, wait_for_spawned_tasks=wait_for_spawned_tasks)
        assert log == ["root", "child"]
        assert not loop.has_living_tasks()
        assert loop.run_until_complete(value("again"), join=True) == "again"
    assert caplog.records == []


def test_it_comes_while_the_root_is_in_the_middle_of_a_step_and_arrives_at_its_next_wait() -> None:
    log: list[str] = []

    async def root() -> None:
        press()
        log.append("the step goes on")
        await sleep(FOREVER)
        log.append("never")

    with pytest.raises(KeyboardInterrupt):
        flowno.run(root())
    assert log == ["the step goes on"]


def test_it_comes_before_the_root_has_begun() -> None:
    log: list[str] = []

    async def root() -> None:
        log.append("runs to its first wait")
        await sleep(FOREVER)

    with EventLoop() as loop:
        loop.inbox.post(lambda _: press(), None)
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(root(), join=True)
    assert log == ["runs to its first wait"]


def test_a_root_that_deals_with_it_returns_its_value() -> None:
    async def root() -> str:
        await spawn(press_soon())
        try:
            await sleep(FOREVER)
        except TaskCancelled:
            await sleep(0)
            return "saved"
        return "never"

    assert flowno.run(root()) == "saved"


def test_a_clean_up_that_fails_is_the_context_of_the_interrupt(caplog: pytest.LogCaptureFixture) -> None:
    async def root() -> None:
        await spawn(press_soon())
        try:
            await sleep(FOREVER)
        finally:
            raise ValueError("of the clean-up")

    with pytest.raises(KeyboardInterrupt) as caught:
        flowno.run(root())
    assert isinstance(caught.value.__context__, ValueError)
    assert caplog.records == []


def test_the_interrupt_says_where_the_root_was() -> None:
    async def inner() -> None:
        await sleep(FOREVER)

    async def outer() -> None:
        await spawn(press_soon())
        await inner()

    with pytest.raises(KeyboardInterrupt) as caught:
        flowno.run(outer())
    (note,) = caught.value.__notes__
    assert "outer" in note.splitlines()[0]
    assert "in inner\n    await sleep(FOREVER)" in note


def test_once_the_root_has_ended_the_first_ends_the_run_at_once() -> None:
    log: list[str] = []

    async def child() -> None:
        try:
            await press_soon()
            await sleep(FOREVER)
        finally:
            await sleep(0)
            log.append("child")

    async def root() -> None:
        await spawn(child())

    with EventLoop() as loop, pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(root())
    assert log == ["child"]


def test_while_the_run_ends_already_the_first_cuts_the_clean_up_short(caplog: pytest.LogCaptureFixture) -> None:
    log: list[str] = []

    async def child() -> None:
        try:
            await sleep(FOREVER)
        finally:
            log.append("begun")
            press()
            log.append("never")

    async def root() -> None:
        await spawn(child())
        await exit("value")

    with EventLoop() as loop:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(root(), join=True)
        assert not loop.has_living_tasks()
    assert log == ["begun"]


def test_one_that_comes_too_late_to_tell_the_root_is_not_lost() -> None:
    async def root() -> str:
        press()
        return "value"

    with EventLoop() as loop, pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(root(), join=True, wait_for_spawned_tasks=False)
    with EventLoop() as loop, pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(root(), join=True)


def test_it_ends_the_wait_of_a_loop_that_sleeps() -> None:
    def press_from_outside() -> None:
        asleep.wait(20)
        if os.name == "nt":
            press()  # as the console does there, in a thread that it makes for it
        else:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    async def root() -> None:
        asleep.set()
        await sleep(1_000_000)

    asleep = threading.Event()
    thread = threading.Thread(target=press_from_outside)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        flowno.run(root())
    thread.join()


@pytest.mark.parametrize("last", ["a thread", "a shield", "an answer that is there"])
def test_a_root_that_has_no_wait_left_to_be_told_at_is_interrupted_all_the_same(last: str) -> None:
    log: list[str] = []

    async def root() -> None:
        press()
        if last == "a thread":
            await run_in_thread(log.append, "done")
        elif last == "a shield":
            with CancelScope(shield=True):
                await sleep(0)
                log.append("done")
        else:
            log.append("done")

    with pytest.raises(KeyboardInterrupt):
        flowno.run(root())
    assert log == ["done"] or last == "a thread"  # which a cancellation that comes before it has begun spares


# ----------------------------------------------------------------------------------------------------------- the second


def test_the_second_is_raised_at_once_wherever_the_program_is() -> None:
    log: list[str] = []

    async def root() -> None:
        press()
        try:
            press()
            log.append("never")
        except KeyboardInterrupt:
            log.append("in the middle of a step")
            raise

    with pytest.raises(KeyboardInterrupt):
        flowno.run(root())
    assert log == ["in the middle of a step"]


def test_the_second_ends_a_root_that_ignores_the_first() -> None:
    async def root() -> None:
        press()
        while True:
            try:
                await sleep(FOREVER)
            except TaskCancelled:
                await spawn(press_soon())

    with pytest.raises(KeyboardInterrupt):
        flowno.run(root())


def test_a_clean_up_that_never_ends_is_cut_short_by_the_second(caplog: pytest.LogCaptureFixture) -> None:
    async def root() -> None:
        press()
        try:
            await sleep(FOREVER)
        finally:
            await spawn(press_soon())
            await sleep(FOREVER)

    with pytest.raises(KeyboardInterrupt):
        flowno.run(root())


def test_the_second_does_not_wait_for_a_thread_nor_for_a_clean_up(caplog: pytest.LogCaptureFixture) -> None:
    begun, release = threading.Event(), threading.Event()
    log: list[str] = []

    def block() -> None:
        begun.set()
        release.wait(20)

    async def other() -> None:
        try:
            await sleep(FOREVER)
        finally:
            await sleep(FOREVER)
            log.append("never")

    async def presses() -> None:
        while not begun.is_set():
            await sleep(0)
        press()
        await sleep(0)
        press()

    async def root() -> None:
        await spawn(other())
        await spawn(presses())
        await run_in_thread(block)

    with EventLoop() as loop:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(root(), join=True)
        assert not release.is_set()
        assert not loop.has_living_tasks()
    release.set()
    assert log == []
    closed = [record.getMessage() for record in caplog.records]
    assert any("other" in message and "was closed where it stood" in message for message in closed)


# ------------------------------------------------------------------------------------------------ in a call that blocks


def press_twice_from_a_thread(
    log: list[str], is_blocking: threading.Event, was_interrupted: threading.Event
) -> threading.Thread:
    """Press when the main thread says that it is about to block, and again when the first has been taken note of."""
    loop = flowno.current_event_loop()
    assert loop is not None
    interrupts = loop._interrupts

    def presses() -> None:
        is_blocking.wait(20)
        send_until(lambda: interrupts._came)
        log.append("the first was noted")
        send_until(was_interrupted.is_set)

    thread = threading.Thread(target=presses)
    thread.start()
    return thread


def send_until(has_come: Callable[[], bool]) -> None:
    """SIGINT to the main thread, as the terminal sends it.

    One that comes between Python's last look and the system call that blocks does not end that: so it is sent again
    where nothing happens for long, and Python takes both for one.
    """
    while not has_come():
        send()
        deadline = time.monotonic() + 2
        while not has_come() and time.monotonic() < deadline:
            time.sleep(0.001)


def send() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


#: On Windows only a console can send one that ends a call of the main thread.
needs_pthread_kill = pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system has no pthread_kill")


@needs_pthread_kill
@pytest.mark.parametrize("call", ["time.sleep", "connect", "computation"])
def test_a_call_that_blocks_goes_on_at_the_first_and_the_second_ends_it(call: str) -> None:
    log: list[str] = []
    is_blocking, was_interrupted = threading.Event(), threading.Event()

    def block(address: Any) -> None:
        is_blocking.set()
        if call == "time.sleep":
            time.sleep(20)
        elif call == "connect":
            with flowno.socket() as handle:
                handle.connect(address)
        else:
            while time.monotonic() < deadline:
                pass

    async def root() -> None:
        thread = press_twice_from_a_thread(log, is_blocking, was_interrupted)
        try:
            block(address)
            log.append("never")
        except KeyboardInterrupt:
            was_interrupted.set()
            log.append("interrupted")
            raise
        finally:
            thread.join()

    deadline = time.monotonic() + 20
    with full_backlog() as address, EventLoop() as loop, pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(root(), join=True)
    assert log == ["the first was noted", "interrupted"]


@needs_pthread_kill
def test_the_first_arrives_when_the_call_that_blocks_has_returned_and_the_task_waits() -> None:
    log: list[str] = []

    async def root() -> None:
        timer = threading.Timer(0, send)
        timer.start()
        timer.join()  # a call that blocks
        log.append("it has returned")
        try:
            await sleep(FOREVER)
        except TaskCancelled:
            log.append("cancelled")
            raise

    with pytest.raises(KeyboardInterrupt):
        flowno.run(root())
    assert log == ["it has returned", "cancelled"]


@pytest.mark.parametrize("abandon", [False, True])
def test_the_first_waits_for_a_thread_unless_it_may_be_abandoned(abandon: bool) -> None:
    begun, release = threading.Event(), threading.Event()
    log: list[str] = []

    def block() -> str:
        begun.set()
        release.wait(20)
        return "value"

    async def presses() -> None:
        while not begun.is_set():
            await sleep(0)
        press()
        if not abandon:
            await sleep(0)
            await sleep(0)
            log.append("the root waits on")
            release.set()

    async def root() -> None:
        await spawn(presses())
        log.append(await run_in_thread(block, abandon_on_cancel=abandon))
        await sleep(0)
        log.append("never")

    with pytest.raises(KeyboardInterrupt):
        flowno.run(root())
    assert release.is_set() is not abandon
    release.set()
    assert log == ([] if abandon else ["the root waits on", "value"])


# ------------------------------------------------------------------------------------------------------------- handlers


def test_pythons_handler_is_back_after_each_run() -> None:
    seen: list[object] = []

    async def root() -> None:
        seen.append(signal.getsignal(signal.SIGINT))

    flowno.run(root())
    assert seen[0] is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with EventLoop() as loop, pytest.raises(ZeroDivisionError):
        loop.run_until_complete(exit(exception=ZeroDivisionError()))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def nothing(*_: object) -> None:
    pass


@pytest.mark.parametrize("handler", [nothing, signal.SIG_IGN, signal.SIG_DFL], ids=["function", "ignored", "default"])
def test_a_handler_of_the_program_is_left_alone(handler: Any) -> None:
    async def root() -> object:
        await sleep(0)
        return signal.getsignal(signal.SIGINT)

    signal.signal(signal.SIGINT, handler)
    try:
        assert flowno.run(root()) == handler
        assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_handler_that_the_program_sets_during_a_run_stays() -> None:
    async def root() -> None:
        signal.signal(signal.SIGINT, nothing)

    flowno.run(root())
    assert signal.getsignal(signal.SIGINT) is nothing
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_loop_in_another_thread_has_nothing_to_do_with_it() -> None:
    seen: list[object] = []

    async def root() -> None:
        seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=lambda: flowno.run(root()))
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


# ------------------------------------------------------------------------------------------------------- the wake-up fd


def wakeup_fd() -> int:
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    return fd


def test_python_is_lent_the_waker_for_each_run_and_gets_its_own_back() -> None:
    async def root() -> int:
        return wakeup_fd()

    outer = wakeup_fd()
    assert flowno.run(root()) not in (-1, outer)
    assert wakeup_fd() == outer
    with pair() as (one, _):
        before = signal.set_wakeup_fd(one.fileno())
        assert flowno.run(root()) != one.fileno()
        assert signal.set_wakeup_fd(before) == one.fileno()


def test_a_wakeup_fd_that_was_closed_meanwhile_is_not_put_back() -> None:
    with pair() as (one, _):
        before = signal.set_wakeup_fd(one.fileno())

        async def root() -> None:
            one.close()

        flowno.run(root())
    assert signal.set_wakeup_fd(before) == -1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_wake_its_parent(run_python: RunPython) -> None:
    result = run_python(
        """
import os, signal, sys
import flowno

async def main():
    pid = os.fork()
    if not pid:
        os._exit(0 if signal.set_wakeup_fd(-1) == -1 else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

sys.exit(flowno.run(main()))
""",
        options=("-W", "error", "-W", "ignore::DeprecationWarning"),
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_wakeup_fd_of_the_program_goes_along_with_a_fork(run_python: RunPython) -> None:
    result = run_python(
        """
import os, signal, socket, sys
import flowno

flowno.run(flowno.sleep(0))
one, other = socket.socketpair()
with one, other:
    one.setblocking(False)
    signal.set_wakeup_fd(one.fileno())
    pid = os.fork()
    if not pid:
        os._exit(0 if signal.set_wakeup_fd(-1) == one.fileno() else 1)
    signal.set_wakeup_fd(-1)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    )
    assert (result.returncode, result.stderr) == (0, "")


# ------------------------------------------------------------------------------------------------------------ a program


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT that one process could send to another")
def test_a_program_that_is_interrupted_ends_as_the_shell_expects(run_python: RunPython) -> None:
    result = run_python(
        """
import os, signal, flowno
async def main():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        await flowno.sleep_forever()
    finally:
        print("cleaned up", flush=True)
flowno.run(main())
"""
    )
    assert result.returncode == -signal.SIGINT
    assert result.stdout == "cleaned up\n"
    assert "KeyboardInterrupt\n" in result.stderr
    assert "was cancelled by this where it was:\n" in result.stderr
    assert "in main\n" in result.stderr


@pytest.mark.parametrize("which", ["the first", "the second"])
def test_one_that_comes_at_any_moment_of_a_run_leaves_nothing_half_way(which: str, run_python: RunPython) -> None:
    """Also as the loop is entered and left: at each call and return within flowno, run after run of one loop."""
    result = run_python(
        f"is_second = {which == 'the second'}"
        """
import os, signal, sys
import flowno
from flowno import EventLoop, sleep, spawn

async def child(handle):
    with handle:
        await handle.recv(1)

async def main():
    one, other = flowno.socketpair()
    with other:
        if is_second:
            signal.raise_signal(signal.SIGINT)
        try:
            await spawn(child(one))
            await sleep(0.0001)
        finally:
            await other.sendAll(b"x")
    return "value"

class Interrupter:
    def __init__(self, moment):
        self.left = moment

    def __call__(self, frame, event, argument):
        if "flowno" in frame.f_code.co_filename and event in ("call", "return", "c_return"):
            self.left -= 1
            if not self.left:
                signal.getsignal(signal.SIGINT)(signal.SIGINT, frame)  # as if it came in that frame, and not in this

def state():
    return (
        flowno.current_event_loop(), len(os.listdir("/dev/fd")) if os.name == "posix" else "unknown",
        signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(-1),
    )

def came(loop, moment):
    interrupter = Interrupter(moment)
    coroutine = main()
    try:
        sys.setprofile(interrupter)
        loop.run_until_complete(coroutine, join=True)
    except KeyboardInterrupt:
        pass
    else:
        assert interrupter.left > 0 and not is_second, moment
    finally:
        sys.setprofile(None)
        coroutine.close()
    return interrupter.left <= 0

EventLoop().close()  # opens what the environment asks for
before = state()
with EventLoop() as loop:
    inside = state()
    moment = 1
    while came(loop, moment):
        left = loop.inbox.thread_id, loop.has_living_tasks(), loop.fds.registered, len(loop.selector.get_map())
        assert left == (None, False, 0, 0), (moment, left)
        assert loop.run_until_complete(sleep(0), join=True) == 0.0
        assert state() == inside, (moment, state())
        moment += 1
assert state() == before, state()
print(moment)
""",
        options=(),  # what a finalizer says that it comes into is of no interest here
        timeout=50,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 100


def test_after_two_of_them_the_next_run_is_not_interrupted(caplog: pytest.LogCaptureFixture) -> None:
    async def root() -> None:
        press()
        try:
            await sleep(FOREVER)
        finally:
            press()

    with EventLoop() as loop:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(root(), join=True)
        assert loop.run_until_complete(value("again"), join=True) == "again"
