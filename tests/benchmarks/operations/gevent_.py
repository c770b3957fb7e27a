"""The operations of a scheduler in gevent, whose tasks are greenlets, and whose functions are no coroutines."""

import gc
import time
from collections.abc import Callable

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore
from gevent.queue import SimpleQueue

from tests.benchmarks.operations.measuring import (
    CONTENDERS,
    LONG,
    SLEEPERS,
    SWITCHERS,
    seconds_to_sleep,
    shares,
    warm_up,
)


def run(operation: Callable[[int], None], count: int, loop: str) -> float:
    if loop:
        raise ValueError(f"gevent takes its loop from GEVENT_LOOP, not {loop!r}")
    operation(warm_up(count))
    gc.collect()
    begun = time.process_time()
    operation(count)
    return time.process_time() - begun


def spawn_join(count: int) -> None:
    for _ in range(count):
        task = gevent.spawn(nothing)
        task.join()


def switch(count: int) -> None:
    gevent.joinall([gevent.spawn(give_way, share) for share in shares(count, SWITCHERS)], raise_error=True)


def queue(count: int) -> None:
    there = SimpleQueue()
    back = SimpleQueue()
    task = gevent.spawn(return_items, count, there, back)
    for item in range(count):
        there.put(item)
        back.get()
    task.get()


def lock(count: int) -> None:
    contended = BoundedSemaphore()
    gevent.joinall([gevent.spawn(contend, share, contended) for share in shares(count, CONTENDERS)], raise_error=True)


def sleeps(count: int) -> None:
    gevent.joinall(
        [
            gevent.spawn(sleep_often, share, seconds_to_sleep(number))
            for number, share in enumerate(shares(count, SLEEPERS))
        ],
        raise_error=True,
    )


def time_limits(count: int) -> None:
    for _ in range(count):
        with gevent.Timeout(LONG):
            nothing()


def time_limited_switches(count: int) -> None:
    for _ in range(count):
        with gevent.Timeout(LONG):
            give_way(1)


def spawn_cancel(count: int) -> None:
    for _ in range(count):
        task = gevent.spawn(wait_forever)
        gevent.sleep(0)
        task.kill()


def hold_tasks(count: int, look: Callable[[], None]) -> None:
    look()
    event = Event()
    tasks = [gevent.spawn(wait_for, event) for _ in range(count)]
    gevent.sleep(0)
    look()
    event.set()
    gevent.joinall(tasks, raise_error=True)


def nothing() -> None:
    pass


def give_way(count: int) -> None:
    for _ in range(count):
        gevent.sleep(0)


def return_items(count: int, there: SimpleQueue, back: SimpleQueue) -> None:
    for _ in range(count):
        back.put(there.get())


def contend(count: int, contended: BoundedSemaphore) -> None:
    for _ in range(count):
        with contended:
            gevent.sleep(0)


def sleep_often(count: int, seconds: float) -> None:
    for _ in range(count):
        gevent.sleep(seconds)


def wait_forever() -> None:
    Event().wait()


def wait_for(event: Event) -> None:
    event.wait()
