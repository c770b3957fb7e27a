"""What ends a wait from outside: other threads, and signals."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any, Final

from .bench import PATIENCE, Bench, drain, fill
from .case import Group

SIGNALS_AND_THREADS = Group("signals and threads")
case = SIGNALS_AND_THREADS.case

#: Seconds within which a wait is over that has a reason to end: less than who looks now and then would sleep.
_SOON: Final = 0.2


class _HandlerError(Exception):
    """What the handler of a case raises."""


@contextmanager
def _handler(handler: Callable[..., object]) -> Iterator[Callable[[], None]]:
    """Have a handler for a signal, and give what sends it to this thread."""
    before: Any = signal.signal(signal.SIGUSR1, handler)
    try:
        yield partial(signal.pthread_kill, threading.get_ident(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


@contextmanager
def _shortly(*calls: Callable[[], object]) -> Iterator[None]:
    """In another thread, make these calls one after the other while the block is waiting."""

    def make_them() -> None:
        with suppress(OSError):  # a case that has failed has closed its files
            for call in calls:
                time.sleep(0.01)  # for the wait to begin; where it has not, the case still proves its sentence
                call()

    thread = threading.Thread(target=make_them, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE)


@case("wake")
def another_thread_ends_a_wait_without_limit(bench: Bench) -> None:
    ours, peer = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    with _shortly(lambda: peer.send(b"x")):
        bench.require_reported({ours.fileno(): EVENT_READ}, None)


@case("wake")
def another_thread_ends_a_long_wait(bench: Bench) -> None:
    ours, peer = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    with _shortly(lambda: peer.send(b"x")):
        bench.require_reported({ours.fileno(): EVENT_READ}, 86_400)


@case("wake")
def what_becomes_readable_ends_a_wait_at_once(bench: Bench) -> None:
    ours, peer = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    _require_woken_at_once(bench, {ours.fileno(): EVENT_READ}, lambda: drain(ours), lambda: peer.send(b"x"))


@case("wake")
def what_becomes_writable_ends_a_wait_at_once(bench: Bench) -> None:
    ours, peer = bench.pair()
    bench.selector.register(ours, EVENT_WRITE)
    _require_woken_at_once(bench, {ours.fileno(): EVENT_WRITE}, lambda: fill(ours), lambda: drain(peer))


def _require_woken_at_once(
    bench: Bench, wanted: dict[int, int], use_up: Callable[[], object], make_ready: Callable[[], object]
) -> None:
    """Require that a wait which another thread ends does not go on for long: the quickest of several.

    A selector that looks now and then, and sleeps in between, begins with a look; it sleeps when the other comes.
    """
    shortest = math.inf
    for _ in range(5):
        use_up()
        made_ready: list[float] = []

        def make_it(times: list[float] = made_ready) -> None:
            times.append(time.monotonic())
            make_ready()

        with _shortly(make_it):
            bench.require_reported(wanted, 60)
            ended = time.monotonic()
        shortest = min(shortest, ended - made_ready[0])
        if shortest < _SOON:
            return
    bench.broken(f"select(60) went on for {shortest:.3f} s at least, in 5 times, when something had become ready")


@case("wake")
def none_of_a_thousand_wakeups_is_lost(bench: Bench) -> None:
    ours, peer = bench.pair()
    peer.setblocking(True)
    bench.selector.register(ours, EVENT_READ)

    def send_all() -> None:
        for _ in range(1000):
            peer.send(b"x")

    missing = 1000
    with _shortly(send_all), ours:  # closed before the thread is waited for, which may be sending
        while missing:
            if not bench.ready(PATIENCE):
                bench.broken(f"select({PATIENCE}) reported nothing, and {missing} bytes of another thread had not come")
            missing -= len(ours.recv(7))


@case("signals", "signals")
def an_error_of_a_signal_handler_ends_the_wait(bench: Bench) -> None:
    ours, peer = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    _require_ended_by_handler(bench, 60, _HandlerError)
    peer.send(b"x")
    bench.until_ready(ours)
    bench.require_reported({ours.fileno(): EVENT_READ})


@case("signals", "signals")
def an_interrupt_of_the_keyboard_ends_the_wait(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    _require_ended_by_handler(bench, 60, KeyboardInterrupt)


@case("early", "signals")
def a_wait_without_limit_with_nothing_registered_is_ended_by_a_signal_handler_alone(bench: Bench) -> None:
    _require_ended_by_handler(bench, None, _HandlerError)


@case("early", "signals")
def a_signal_handler_that_returns_does_not_end_the_wait(bench: Bench) -> None:
    ours, peer = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    calls: list[None] = []

    def handler(*_: object) -> None:
        calls.append(None)
        if len(calls) == 3:
            peer.send(b"x")

    with _handler(handler) as send:

        def send_until_it_has_run() -> None:
            while len(calls) < 3:
                send()
                time.sleep(0.005)

        with _shortly(send_until_it_has_run):
            bench.require_reported({ours.fileno(): EVENT_READ}, 60)


@case("late", "signals")
def a_signal_does_not_begin_a_wait_anew(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    shortest = math.inf
    with _handler(lambda *_: None) as send:
        for _ in range(3):
            with _again_and_again(send, 0.8):
                started = time.monotonic()
                bench.ready(0.1)
                shortest = min(shortest, time.monotonic() - started)
            if shortest < 0.6:
                return
    bench.broken(f"select(0.1) took {shortest:.3f} s at least, in 3 times, while signals came for 0.8 s")


@contextmanager
def _again_and_again(call: Callable[[], object], seconds: float) -> Iterator[None]:
    """In another thread, make a call every few milliseconds, until the block has ended or for some seconds."""
    over = threading.Event()
    deadline = time.monotonic() + seconds

    def make_it() -> None:
        while not over.wait(0.005) and time.monotonic() < deadline:
            call()

    with _shortly(make_it):
        try:
            yield
        finally:
            over.set()


def _require_ended_by_handler(bench: Bench, timeout: float | None, error: type[BaseException]) -> None:
    """Require that waits with nothing ready last until a signal comes whose handler raises an error, and raise it."""
    is_armed = False

    def handler(*_: object) -> None:
        nonlocal is_armed
        if is_armed:
            is_armed = False
            raise error

    with _handler(handler) as send, _again_and_again(send, PATIENCE):
        for _ in range(3):  # a signal may come between these two lines
            try:
                is_armed = True
                found = bench.ready(timeout)
            except error:
                continue
            finally:
                is_armed = False
            bench.broken(f"select({timeout!r}) returned {found}, whatever the handler of a signal raised")
