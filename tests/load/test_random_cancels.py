"""Random programs, cancelled at random: whatever happens, nothing is left and nothing is lost.

A program is made of its seed: the same seed does the same on the same backend, since time is virtual and no thread is
in it. To run one again: ``FLOWNO_TEST_SEED=SEED pytest tests/load/test_random_cancels.py``.
"""

import random
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from flowno import (
    AsyncQueue,
    CancelScope,
    Condition,
    EventLoop,
    FlownoError,
    Lock,
    Semaphore,
    SocketHandle,
    TaskCancelled,
    TaskGroup,
    TaskHandle,
    current_task,
    move_on_after,
    sleep,
    spawn,
)
from tests.load.seeds import is_chosen, seed_of_this_run, told_by_a_failure
from tests.support.loopback import pair
from tests.support.remains import remains
from tests.support.virtual_time import VirtualTimeSelector

pytestmark = pytest.mark.usefixtures("backend")

#: How many tasks a program has at any time, and how often something in it is cancelled.
TASKS = 12
CANCELS = 100

#: How deep acts are inside of others, at most.
DEPTH = 4

#: How many milliseconds of virtual time the tasks have to end, once all of them are cancelled again in each.
LAST_TURNS = 200

#: How many programs run in one loop, so that what one leaves meets the next.
PROGRAMS_IN_A_LOOP = 5


class Program:
    """Tasks that wait for sockets, locks, permits, conditions, items, each other and the time.

    Args:
        loop: Where it is to run.
        seed: What it does.

    Attributes:
        cancels: How often something was cancelled: a scope, or a task by the command that it waited in.
    """

    def __init__(self, loop: EventLoop, seed: int) -> None:
        self.cancels: Counter[str] = Counter()
        self._loop = loop
        self._random = random.Random(seed)
        self._tasks: list[TaskHandle[object]] = []
        self._scopes: list[CancelScope] = []
        self._locks = [Lock(), Lock()]
        self._condition = Condition()
        self._permits = Semaphore(2)
        self._queue: AsyncQueue[int] = AsyncQueue(2)
        self._items = 0  # that were put, less those that were got
        self._bytes = [0, 0]  # that were sent by each end, less those that the other has received
        self._acts: list[Callable[[int], Awaitable[object]]] = [
            self._receive, self._send, self._put, self._get, self._sleep, self._wait, self._notify, self._join,
            self._lock, self._permit, self._limit, self._shield, self._group, self._spawn, self._cancel,
        ]  # fmt: skip

    async def run(self) -> None:
        """Run it, cancel at random, and look at what is left."""
        loop = self._loop
        before = remains()
        with pair(4096) as self._ends:
            self._replace_ended()
            while self.cancels.total() < CANCELS:
                for _ in range(self._random.randrange(4)):
                    await sleep(self._random.choice([0, 0, 0.01]))
                self._cancel_something()
                self._replace_ended()
            mine = loop.running_task
            for _ in range(LAST_TURNS):
                others = [task for task in loop.tasks if task is not mine]
                for task in others:
                    task.cancel()
                if not others:
                    break
                await sleep(0.001)
            self._drain()
        assert list(loop.tasks) == [mine]
        assert [task for task in self._tasks if task.is_error] == []
        assert not any(lock.is_locked() for lock in (*self._locks, self._condition.lock))
        assert self._permits.value == 2
        assert len(self._queue) == self._items
        assert self._bytes == [0, 0]
        assert self._scopes == []
        assert remains() == before

    def _cancel_something(self) -> None:
        living = [task for task in self._tasks if not task.done()]
        if self._scopes and (not living or self._random.random() < 0.4):
            self.cancels["CancelScope"] += 1
            self._random.choice(self._scopes).cancel()
        elif living:
            task = self._random.choice(living)
            self.cancels[type(task.waiting_for).__name__] += 1
            task.cancel()

    def _replace_ended(self) -> None:
        """Have as many tasks as at the beginning, and forget those that have ended as they should."""
        self._tasks = [task for task in self._tasks if task.is_error or not task.done()]
        while len(self._tasks) < TASKS:
            self._tasks.append(self._loop.create_task(self._act_on(0)))

    def _drain(self) -> None:
        """Take what is still on its way, to the end."""
        for end in self._ends:
            end.socket.shutdown(socket.SHUT_WR)
        for number, end in enumerate(self._ends):
            end.socket.settimeout(10)
            while data := end.socket.recv(65536):
                self._bytes[1 - number] -= len(data)

    # --- what a task does --------------------------------------------------------------------------------------------

    async def _act_on(self, depth: int) -> None:
        """Some acts, one after the other; at the top, for ever."""
        for _ in range(self._random.randrange(1, 4) if depth else 1_000_000):
            try:
                await self._random.choice(self._acts)(depth)
            except (FlownoError, OSError):
                pass  # another task uses the same, or this one has it already
            await sleep(0)

    async def _inside(self, depth: int) -> None:
        if depth < DEPTH:
            await self._act_on(depth + 1)
        else:
            await sleep(self._random.random())

    async def _receive(self, depth: int) -> None:
        number = self._random.randrange(2)
        data = await self._ends[number].recv(self._random.randrange(1, 5000))
        self._bytes[1 - number] -= len(data)

    async def _send(self, depth: int) -> None:
        number = self._random.randrange(2)
        end: SocketHandle = self._ends[number]
        size = self._random.randrange(1, 30_000)
        try:
            await end.sendAll(bytes(size))
        except TaskCancelled:
            self._bytes[number] += end.bytes_sent
            raise
        self._bytes[number] += size

    async def _put(self, depth: int) -> None:
        await self._queue.put(depth)
        self._items += 1

    async def _get(self, depth: int) -> None:
        await self._queue.get()
        self._items -= 1

    async def _sleep(self, depth: int) -> None:
        await sleep(self._random.choice([0, 0.01, 1]))

    async def _wait(self, depth: int) -> None:
        async with self._condition:
            await self._condition.wait()

    async def _notify(self, depth: int) -> None:
        async with self._condition:
            self._condition.notify(self._random.randrange(1, 3))

    async def _join(self, depth: int) -> None:
        try:
            await self._random.choice(self._tasks).join()
        except TaskCancelled as cancelled:
            if cancelled.by.raw_task is current_task():
                raise

    async def _lock(self, depth: int) -> None:
        async with self._random.choice(self._locks):
            await self._inside(depth)

    async def _permit(self, depth: int) -> None:
        async with self._permits:
            await self._inside(depth)

    async def _limit(self, depth: int) -> None:
        with move_on_after(self._random.choice([0, 0.01, 1, None])) as scope:
            await self._in_scope(scope, self._inside(depth))

    async def _shield(self, depth: int) -> None:
        with CancelScope(shield=True) as scope:
            await self._in_scope(scope, sleep(self._random.choice([0, 0.01])))

    async def _in_scope(self, scope: CancelScope, act: Awaitable[object]) -> None:
        self._scopes.append(scope)
        try:
            await act
        finally:
            self._scopes.remove(scope)

    async def _group(self, depth: int) -> None:
        async with TaskGroup() as group:
            for _ in range(self._random.randrange(3)):
                self._tasks.append(await group.spawn(self._inside(depth)))

    async def _spawn(self, depth: int) -> None:
        if len(self._tasks) < 3 * TASKS:
            self._tasks.append(await spawn(self._inside(depth)))

    async def _cancel(self, depth: int) -> None:
        self._cancel_something()


@pytest.mark.parametrize("cancels", [5000, pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_whatever_is_cancelled_at_random_nothing_is_left_and_nothing_is_lost(backend: str, cancels: int) -> None:
    first = seed = seed_of_this_run()
    done: Counter[str] = Counter()
    began = time.perf_counter()
    while done.total() < (1 if is_chosen() else cancels):
        with VirtualTimeSelector() as selector, EventLoop(selector) as loop:
            for _ in range(1 if is_chosen() else PROGRAMS_IN_A_LOOP):
                program = Program(loop, seed)
                with told_by_a_failure(seed):
                    loop.run_until_complete(program.run(), join=True)
                assert loop.fds.registered == 0
                done.update(program.cancels)
                seed += 1
    print(
        f"{backend}: {done.total()} cancels in {seed - first} programs from seed {first}, "
        f"{time.perf_counter() - began:.1f} s: {', '.join(f'{number} {what}' for what, number in done.most_common())}"
    )
