"""What is dropped is freed at once, by its last reference: nothing of a run is held in a cycle."""

import gc
import socket
import sys
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any

import pytest

import flowno
from flowno import (
    AsyncQueue,
    AsyncSetQueue,
    Barrier,
    CancelScope,
    CapacityLimiter,
    Condition,
    Event,
    EventLoop,
    Lock,
    Semaphore,
    SocketHandle,
    TaskCancelled,
    TaskGroup,
    exit,
    gather,
    getaddrinfo,
    move_on_after,
    run_in_thread,
    run_process,
    sleep,
    spawn,
    timeout,
    wait_readable,
)
from flowno.core.event_loop.scopes import TaskStatus
from flowno.core.event_loop.tasks import OPERATIONS_PER_STEP
from tests.support.garbage import no_collections
from tests.support.tasks import FOREVER

pytestmark = [
    pytest.mark.not_under_faults(reason="it counts on what the socket takes and gives at once"),
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(sys.implementation.name != "cpython", reason="this Python does not count references"),
]


@pytest.fixture(autouse=True)
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    with no_collections():
        yield


class Watch:
    """Weak references to what is to be gone."""

    def __init__(self) -> None:
        self._seen: list[weakref.ref[Any]] = []

    def __call__(self, thing: Any) -> Any:
        self._seen.append(weakref.ref(thing))
        return thing

    def alive(self) -> list[str]:
        return [repr(thing) for reference in self._seen if (thing := reference()) is not None]


async def use_sockets(watch: Watch) -> None:
    """A task with sockets in its hands, which it does not close: they close as they are freed."""
    one, other = (watch(SocketHandle(watch(end))) for end in socket.socketpair())
    await other.sendAll(b"x")
    assert await one.recv(9) == b"x"
    reader = watch(await spawn(one.recv(9)))
    await sleep(0)
    await other.sendAll(b"x")
    assert await reader.join() == b"x"


async def fails() -> None:
    await sleep(0)
    raise ValueError("of a child")


async def returns(watch: Watch) -> None:
    await use_sockets(watch)


async def raises(watch: Watch) -> None:
    await use_sockets(watch)
    raise ValueError("of root")


async def joins_an_error(watch: Watch) -> None:
    async def child() -> None:
        await use_sockets(watch)
        await sleep(0)
        raise ValueError("of a child")

    task = watch(await spawn(child()))
    try:
        await task.join()
    except ValueError:
        pass
    try:  # a second time, when it has ended
        await task.join()
    except ValueError:
        pass
    del task  # this very frame is in the traceback of the error that it has


async def raises_what_it_joined(watch: Watch) -> None:
    await watch(await spawn(fails())).join()


async def joins_a_cancellation(watch: Watch) -> None:
    task = watch(await spawn(sleep(FOREVER)))
    task.cancel()
    try:
        await task.join()
    except TaskCancelled:
        pass


async def fails_with_sockets(watch: Watch) -> None:
    one, other = (watch(SocketHandle(watch(end))) for end in socket.socketpair())
    reader = await spawn(one.recv(9))
    try:
        await one.recv(9)
    except flowno.BusyResourceError:
        pass
    one.close()
    try:
        await reader.join()
    except flowno.ClosedResourceError:
        pass
    del reader
    try:
        await other.accept()
    except OSError:
        pass


async def is_interrupted(watch: Watch) -> None:
    await use_sockets(watch)
    raise KeyboardInterrupt


async def has_a_child_that_is_interrupted(watch: Watch) -> None:
    watch(await spawn(use_sockets(watch)))
    watch(await spawn(is_interrupted(watch)))
    await sleep(FOREVER)


async def exits(watch: Watch) -> None:
    watch(await spawn(sleep(FOREVER)))
    await use_sockets(watch)
    await exit("value")


async def exits_with_an_error(watch: Watch) -> None:
    watch(await spawn(sleep(FOREVER)))
    await use_sockets(watch)
    await exit(exception=ValueError("of exit"))


async def gets_wrong_commands(watch: Watch) -> None:
    wrongs: list[Awaitable[object]] = [spawn(5), sleep(float("nan"))]  # type: ignore[arg-type]
    for wrong in wrongs:
        try:
            await wrong
        except (TypeError, ValueError):
            pass


async def runs_into_time_limits(watch: Watch) -> None:
    for _ in range(2):
        try:
            async with watch(timeout(0)):
                await use_sockets(watch)
                await watch(Event()).wait()
        except TimeoutError:
            pass
        with watch(move_on_after(0)), watch(CancelScope(shield=True)), watch(move_on_after(0)):
            await sleep(FOREVER)


async def has_a_group(watch: Watch) -> None:
    async with watch(TaskGroup()) as group:
        watch(await group.spawn(use_sockets(watch)))
        watch(group.create_task(sleep(0)))
        watch(await group.spawn(sleep(FOREVER))).cancel()


async def has_a_group_that_fails(watch: Watch) -> None:
    try:
        async with watch(TaskGroup()) as group:
            watch(await group.spawn(use_sockets(watch)))
            watch(await group.spawn(sleep(FOREVER)))
            watch(await group.spawn(fails()))
            await sleep(FOREVER)
    except ExceptionGroup:
        pass


async def has_a_group_that_is_cancelled(watch: Watch) -> None:
    with watch(move_on_after(0)):
        async with watch(TaskGroup()) as group:
            watch(await group.spawn(sleep(FOREVER)))
    task = watch(await spawn(has_a_group_that_waits(watch)))
    await sleep(0)
    await task.cancel()


async def has_a_group_that_waits(watch: Watch) -> None:
    async with watch(TaskGroup()) as group:
        watch(await group.spawn(sleep(FOREVER)))
        await sleep(FOREVER)


async def locks_and_waits(watch: Watch) -> None:
    condition, semaphore, event, queue = (watch(kind()) for kind in (Condition, Semaphore, Event, AsyncQueue))

    async def wait() -> None:
        async with condition:
            await condition.wait()
        async with semaphore:
            await event.wait()
        await queue.get()

    tasks = [watch(await spawn(wait())) for _ in range(3)]
    for _ in range(9):
        await sleep(0)
    async with condition:
        condition.notify(2)
    await tasks[2].cancel()
    await sleep(0)
    event.set()
    queue.put_nowait(watch(Watch()))
    queue.close()
    for task in tasks:
        try:
            await task.cancel()
        except flowno.QueueClosedError:
            pass
    del task, tasks  # this very frame is in the traceback of the error of one


async def leaves_generators(watch: Watch) -> None:
    async def count() -> AsyncGenerator[int, None]:
        try:
            for number in range(9):
                await sleep(0)
                yield number
        finally:
            await sleep(0)

    async for _ in watch(count()):
        break
    async for _ in watch(count()):
        pass


PROGRAMS: list[Any] = [
    returns,
    raises,
    joins_an_error,
    raises_what_it_joined,
    joins_a_cancellation,
    fails_with_sockets,
    is_interrupted,
    has_a_child_that_is_interrupted,
    exits,
    exits_with_an_error,
    gets_wrong_commands,
    runs_into_time_limits,
    has_a_group,
    has_a_group_that_fails,
    has_a_group_that_is_cancelled,
    locks_and_waits,
    leaves_generators,
]


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("how", ["kept", "closed"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_run_and_all_it_had_is_freed_with_the_last_reference(
    program: Callable[[Watch], Awaitable[None]], how: str
) -> None:
    watch = Watch()

    def run() -> None:
        loop = watch(EventLoop())
        try:
            loop.run_until_complete(program(watch), join=True, wait_for_spawned_tasks=False)
        except (ValueError, KeyboardInterrupt):
            pass
        if how == "closed":
            loop.close()
        else:
            assert not loop.has_living_tasks()

    run()
    assert watch.alive() == []


async def fails_by_itself(watch: Watch) -> None:
    await use_sockets(watch)
    raise ValueError("of a child")


async def fails_by_a_time_limit(watch: Watch) -> None:
    one, other = (watch(SocketHandle(watch(end))) for end in socket.socketpair())
    async with watch(timeout(0.001)) as scope:
        await one.recv(1)
    assert scope.cancelled_caught
    await other.recv(1)


async def fails_by_a_task_of_its_group(watch: Watch) -> None:
    one, other = (watch(SocketHandle(watch(end))) for end in socket.socketpair())
    async with watch(TaskGroup()) as group:
        task = watch(await group.spawn(fails()))
        await one.recv(1)
    await other.recv(1)
    await task.join()


async def fails_in_the_block_of_its_group(watch: Watch) -> None:
    async with watch(TaskGroup()) as group:
        watch(await group.spawn(use_sockets(watch)))
        raise ValueError("of the block")


async def fails_by_gather(watch: Watch) -> None:
    one, other = (watch(SocketHandle(watch(end))) for end in socket.socketpair())
    await gather(fails_by_itself(watch), one.recv(1), fails())
    await other.recv(1)


async def fails_by_a_task_that_does_not_get_ready(watch: Watch) -> None:
    async def child(*, task_status: TaskStatus[None]) -> None:
        watch(task_status)
        await use_sockets(watch)
        raise ValueError("of a child")

    async with watch(TaskGroup()) as group:
        await group.start(child)


async def is_cancelled_in_a_limited_clean_up(watch: Watch) -> None:
    one, other = (watch(SocketHandle(watch(end))) for end in socket.socketpair())
    with watch(move_on_after(0.001)):
        try:
            flowno.current_event_loop().running_task.cancel()  # type: ignore[union-attr]
            await one.recv(1)
        finally:
            await other.recv(1)


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize(
    "child",
    [
        fails_by_itself,
        fails_by_a_time_limit,
        fails_by_a_task_of_its_group,
        fails_in_the_block_of_its_group,
        fails_by_gather,
        fails_by_a_task_that_does_not_get_ready,
        is_cancelled_in_a_limited_clean_up,
    ],
)
def test_the_error_of_a_task_frees_what_the_task_had_when_it_is_dropped_though_the_loop_goes_on(child: Any) -> None:
    async def root() -> None:
        watch = Watch()
        task = watch(await spawn(child(watch)))
        try:
            await task.join()
        except (ValueError, TimeoutError, ExceptionGroup, TaskCancelled):
            pass
        del task
        await sleep(0)
        await sleep(0)
        assert watch.alive() == []

    flowno.run(root())


# ----------------------------------------------------------------------------------------------- what failing tasks had


def boom() -> None:
    raise ValueError("boom")


async def fails_at_once() -> None:
    boom()


async def sleeps_too_long() -> None:
    async with timeout(0.001):
        await sleep(3600)


async def fails_in_a_group() -> None:
    async with TaskGroup() as group:
        await group.spawn(fails_at_once())


async def joins_a_failure() -> None:
    await (await spawn(fails_at_once())).join()


async def joins_what_was_cancelled() -> None:
    task = await spawn(sleep(3600))
    task.cancel()
    await task.join()


async def fails_in_a_thread() -> None:
    await run_in_thread(boom)


async def is_not_the_owner() -> None:
    Lock().release()


async def acquires_twice() -> None:
    lock = Lock()
    async with lock:
        await lock.acquire()


async def acquires_twice_without_waiting() -> None:
    lock = Lock()
    async with lock:
        lock.acquire_nowait()


async def acquires_a_broken_lock() -> None:
    lock = Lock()
    await (await spawn(lock.acquire())).join()
    await lock.acquire()


async def waits_without_the_lock() -> None:
    await Condition().wait()


async def gives_back_what_it_has_not() -> None:
    CapacityLimiter(1).release()


async def borrows_twice() -> None:
    limiter = CapacityLimiter(1)
    async with limiter:
        await limiter.acquire()


async def gets_from_a_closed_queue() -> None:
    queue: AsyncQueue[int] = AsyncQueue()
    queue.close()
    await queue.get()


async def puts_what_no_set_takes() -> None:
    queue: AsyncSetQueue[Any] = AsyncSetQueue()
    for item in range(OPERATIONS_PER_STEP):
        await queue.put(item)
    await queue.put([])  # the loop finds out


async def waits_for_what_has_no_fd() -> None:
    await wait_readable(object())  # type: ignore[arg-type]


async def waits_at_a_broken_barrier() -> None:
    barrier = Barrier(2)
    barrier.abort()
    await barrier.wait()


async def receives_from_a_closed_handle() -> None:
    one, other = flowno.socketpair()
    with one, other:
        pass
    await one.recv(1)


async def looks_up_what_is_not() -> None:
    await getaddrinfo("", "no such service", flags=socket.AI_NUMERICSERV)


async def runs_a_program_that_fails() -> None:
    await run_process([sys.executable, "-I", "-S", "-c", "raise SystemExit(3)"])


async def cleans_up_in_vain() -> None:
    loop, task = flowno.current_event_loop(), flowno.current_task()
    assert loop is not None
    assert task is not None
    loop.cancel(task)
    try:
        await sleep(FOREVER)
    finally:
        raise ValueError("of the clean-up")


FAILURES = [
    cleans_up_in_vain,
    fails_at_once,
    sleeps_too_long,
    fails_in_a_group,
    joins_a_failure,
    joins_what_was_cancelled,
    fails_in_a_thread,
    is_not_the_owner,
    acquires_twice,
    acquires_twice_without_waiting,
    acquires_a_broken_lock,
    waits_without_the_lock,
    gives_back_what_it_has_not,
    borrows_twice,
    gets_from_a_closed_queue,
    puts_what_no_set_takes,
    waits_for_what_has_no_fd,
    waits_at_a_broken_barrier,
    receives_from_a_closed_handle,
    looks_up_what_is_not,
    runs_a_program_that_fails,
]


@pytest.mark.parametrize("failure", FAILURES)
def test_what_a_task_had_that_failed_goes_when_nobody_asks_for_the_task_any_more(
    failure: Callable[[], Awaitable[None]],
) -> None:
    """Such as its connection: the peer must see the end of it, and not only when a collector comes."""
    watch = Watch()

    async def handler() -> None:
        had = watch(Watch())
        await failure()
        del had

    async def root() -> None:
        task = await spawn(handler())
        ended = Event()
        task.add_done_callback(lambda _: ended.set())
        await ended.wait()
        assert isinstance(task.exception(), (Exception, TaskCancelled))
        del task
        await sleep(0)
        assert watch.alive() == []

    flowno.run(root())
