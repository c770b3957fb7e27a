"""What ends a wait from outside: other threads, and signals."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from selectors import EVENT_READ
from typing import Any

from .bench import PATIENCE, Bench
from .case import Group

SIGNALS_AND_THREADS = Group("signals and threads")
case = SIGNALS_AND_THREADS.case


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
    waiting, over = threading.Event(), threading.Event()

    def handler(*_: object) -> None:
        if waiting.is_set():
            waiting.clear()
            raise _HandlerError

    with _handler(handler) as send:

        def send_until_it_is_over() -> None:
            while not over.wait(0.005):
                send()

        with _shortly(send_until_it_is_over):
            try:
                for _ in range(3):  # a signal may come between these two lines
                    waiting.set()
                    try:
                        found = bench.ready(60)
                    except _HandlerError:
                        continue
                    bench.broken(f"select(60) returned {found}, whatever the handler of a signal raised")
            finally:
                over.set()
    peer.send(b"x")
    bench.until_ready(ours)
    bench.require_reported({ours.fileno(): EVENT_READ})


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
