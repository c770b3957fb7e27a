"""Signals as values: what a receiver gives, what becomes of what it does not take, and that handlers are put back."""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import flowno
from flowno import (
    ClosedResourceError,
    Event,
    EventLoop,
    EventLoopError,
    current_event_loop,
    open_signal_receiver,
    sleep,
    spawn,
)
from tests.conftest import RunPython

pytestmark = [
    pytest.mark.usefixtures("backend", "own_handlers"),
    pytest.mark.skipif(os.name != "posix", reason="this platform has neither SIGUSR1 nor SIGUSR2"),
]

if os.name == "posix":
    from signal import SIGUSR1, SIGUSR2

caught: list[int] = []


def catch(number: int, _: object) -> None:
    caught.append(number)


@pytest.fixture
def own_handlers() -> Iterator[None]:
    """SIGUSR1 and SIGUSR2 have a handler that notes them, and have it again after the test."""
    before = [(number, signal.signal(number, catch)) for number in (SIGUSR1, SIGUSR2)]
    caught.clear()
    yield
    for number, handler in before:
        assert signal.getsignal(number) is catch
        signal.signal(number, handler)


def test_a_receiver_gives_each_signal_and_its_handler_is_put_back() -> None:
    async def root() -> list[int]:
        received = []
        with open_signal_receiver(SIGUSR1, SIGUSR2) as signals:
            for number in (SIGUSR2, SIGUSR1):
                signal.raise_signal(number)
                received.append(await anext(signals))
        signal.raise_signal(SIGUSR1)
        return received

    assert flowno.run(root()) == [SIGUSR2, SIGUSR1]
    assert caught == [SIGUSR1]


def test_signals_that_have_come_are_given_in_their_order_and_each_once() -> None:
    async def root() -> None:
        with open_signal_receiver(SIGUSR1, SIGUSR2) as signals:
            for number in (SIGUSR2, SIGUSR1, SIGUSR2):
                signal.raise_signal(number)
            assert [await anext(signals), await anext(signals)] == [SIGUSR2, SIGUSR1]
            waiting = await spawn(take(signals))
            await sleep(0)
            assert not waiting.done()
            signal.raise_signal(SIGUSR1)
            assert await waiting.join() == SIGUSR1

    flowno.run(root())


async def take(signals: Any) -> int:
    number: int = await anext(signals)
    return number


def test_a_signal_ends_the_wait_of_a_loop_that_sleeps() -> None:
    asleep = threading.Event()

    def send() -> None:
        asleep.wait(20)
        signal.pthread_kill(threading.main_thread().ident or 0, SIGUSR1)

    async def root() -> int:
        with open_signal_receiver(SIGUSR1) as signals:
            asleep.set()
            async for number in signals:
                return number
        return 0

    thread = threading.Thread(target=send)
    thread.start()
    assert flowno.run(root()) == SIGUSR1
    thread.join()


def test_every_receiver_of_a_signal_gets_it() -> None:
    async def listen(number: int, ready: Event) -> int:
        with open_signal_receiver(number) as signals:
            ready.set()
            return await take(signals)

    async def root() -> None:
        one, other = Event(), Event()
        tasks = [await spawn(listen(SIGUSR1, one)), await spawn(listen(SIGUSR1, other))]
        signal.raise_signal(SIGUSR1)
        assert [await task.join() for task in tasks] == [SIGUSR1, SIGUSR1]

    flowno.run(root())


@pytest.mark.parametrize("first", [0, 1])
def test_receivers_can_be_left_in_any_order(first: int) -> None:
    async def root() -> None:
        receivers = [open_signal_receiver(SIGUSR1), open_signal_receiver(SIGUSR1)]
        for receiver in receivers:
            receiver.__enter__()
        receivers[first].__exit__(None, None, None)
        signal.raise_signal(SIGUSR1)
        assert await take(receivers[1 - first]) == SIGUSR1
        assert signal.getsignal(SIGUSR1) is not catch
        receivers[1 - first].__exit__(None, None, None)
        assert signal.getsignal(SIGUSR1) is catch

    flowno.run(root())


def test_what_has_come_and_was_not_taken_is_raised_again_when_the_handler_is_back() -> None:
    async def root() -> None:
        with open_signal_receiver(SIGUSR1, SIGUSR2) as signals:
            signal.raise_signal(SIGUSR1)
            signal.raise_signal(SIGUSR2)
            assert await take(signals) == SIGUSR1
        assert caught == [SIGUSR2]

    flowno.run(root())


def test_a_wait_that_is_cancelled_takes_no_signal() -> None:
    async def root() -> None:
        with open_signal_receiver(SIGUSR1) as signals:
            waiting = await spawn(take(signals))
            await waiting.cancel()
            signal.raise_signal(SIGUSR1)
            assert await take(signals) == SIGUSR1
            waiting = await spawn(take(signals))
            signal.raise_signal(SIGUSR1)
            await waiting.cancel()  # in the batch in which the signal is given out, or just before
            assert waiting.is_finished or await take(signals) == SIGUSR1

    flowno.run(root())


def test_signals_without_end_let_the_other_tasks_run() -> None:
    stop = Event()

    async def other() -> None:
        await sleep(0)
        stop.set()

    async def root() -> int:
        count = 0
        with open_signal_receiver(SIGUSR1) as signals:
            await spawn(other())
            while not stop.is_set():
                signal.raise_signal(SIGUSR1)
                await take(signals)
                count += 1
        return count

    assert flowno.run(root()) <= 200


def test_a_run_that_waits_for_a_signal_is_no_deadlock_and_an_open_receiver_is_no_way_out_of_one(
    run_python: RunPython,
) -> None:
    result = run_python(
        """
import os, signal
from flowno import DeadlockError, Event, open_signal_receiver, run

async def waits_for_a_signal():
    with open_signal_receiver(signal.SIGUSR1) as signals:
        pid = os.fork()
        if not pid:
            os.kill(os.getppid(), signal.SIGUSR1)
            os._exit(0)
        print(signal.Signals(await anext(signals)).name)
        os.waitpid(pid, 0)

async def waits_for_nobody():
    with open_signal_receiver(signal.SIGUSR1):
        await Event().wait()

run(waits_for_a_signal())
try:
    run(waits_for_nobody())
except DeadlockError as error:
    print(error)
"""
    )
    assert result.stderr == ""
    received, deadlock = result.stdout.splitlines()[0], result.stdout.splitlines()[1:]
    assert received == "SIGUSR1"
    assert "waits_for_nobody" in "".join(deadlock)


def test_the_end_of_a_run_closes_what_is_open() -> None:
    async def child() -> None:
        with open_signal_receiver(SIGUSR1) as signals:
            await take(signals)

    async def root() -> None:
        await spawn(child())
        assert signal.getsignal(SIGUSR1) is not catch

    flowno.run(root())
    assert signal.getsignal(SIGUSR1) is catch


def test_a_handler_that_the_program_sets_meanwhile_stays() -> None:
    def other(*_: object) -> None: ...

    async def root() -> None:
        with open_signal_receiver(SIGUSR1):
            signal.signal(SIGUSR1, other)
        assert signal.signal(SIGUSR1, catch) is other

    flowno.run(root())


def test_ctrl_c_can_be_received_too() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    async def root() -> int:
        with open_signal_receiver(signal.SIGINT) as signals:
            signal.raise_signal(signal.SIGINT)
            return await take(signals)

    try:
        assert flowno.run(root()) == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


# ------------------------------------------------------------------------------------------------------------ bad input


def test_what_is_no_signal_is_an_error_at_the_call() -> None:
    wrong: Any = "SIGTERM"
    with pytest.raises(TypeError, match="needs the signals to receive"):
        open_signal_receiver()
    with pytest.raises(TypeError, match="a signal is a number"):
        open_signal_receiver(wrong)
    for number in (0, -1, 10_000):
        with pytest.raises(ValueError, match="no signal"):
            open_signal_receiver(SIGUSR1, number)


@pytest.mark.parametrize("number", ["SIGKILL", "SIGSTOP"])
def test_what_nobody_may_handle_is_an_error_that_changes_nothing(number: str) -> None:
    async def root() -> None:
        receiver = open_signal_receiver(SIGUSR1, getattr(signal, number))
        with pytest.raises(OSError, match=f"{number} cannot be received"):
            receiver.__enter__()
        assert signal.getsignal(SIGUSR1) is catch

    flowno.run(root())


def test_leaving_it_is_an_error_of_those_who_still_wait_in_it() -> None:
    async def root() -> None:
        with open_signal_receiver(SIGUSR1) as signals:
            waiters = [await spawn(take(signals)) for _ in range(2)]
        for waiter in waiters:
            with pytest.raises(ClosedResourceError, match="SIGUSR1> was left"):
                await waiter.join()

    flowno.run(root())


def test_a_signal_that_comes_just_before_it_is_left_is_for_the_one_who_waits() -> None:
    async def root() -> None:
        with open_signal_receiver(SIGUSR1) as signals:
            waiter = await spawn(take(signals))
            signal.raise_signal(SIGUSR1)
        assert await waiter.join() == SIGUSR1
        assert caught == []

    flowno.run(root())


def test_it_is_entered_once_in_a_task_of_the_main_thread() -> None:
    with pytest.raises(EventLoopError, match="outside of an event loop"):
        open_signal_receiver(SIGUSR1).__enter__()

    async def root() -> None:
        receiver = open_signal_receiver(SIGUSR1)
        with pytest.raises(EventLoopError, match="inside of its with block"):
            await take(receiver)
        with receiver, pytest.raises(EventLoopError, match="entered already"):
            receiver.__enter__()
        with pytest.raises(EventLoopError, match="inside of its with block"):
            await take(receiver)

    flowno.run(root())
    problems: list[BaseException] = []

    async def elsewhere() -> None:
        try:
            open_signal_receiver(SIGUSR1).__enter__()
        except EventLoopError as error:
            problems.append(error)

    thread = threading.Thread(target=lambda: flowno.run(elsewhere()))
    thread.start()
    thread.join()
    assert "main thread only" in str(problems[0])


def test_it_says_what_it_receives() -> None:
    assert repr(open_signal_receiver(SIGUSR1, SIGUSR2)) == "<SignalReceiver of SIGUSR1, SIGUSR2>"

    async def root() -> None:
        with open_signal_receiver(SIGUSR1) as signals:
            waiting = await spawn(take(signals))
            assert repr(waiting.waiting_for) == "SignalWaitCommand(<SignalReceiver of SIGUSR1>)"
            await waiting.cancel()

    flowno.run(root())
    with EventLoop() as loop:
        assert current_event_loop() is None
        assert not loop.signals.has_waiters
