"""What each operation costs, counted instead of timed: ``python -m tests.benchmarks.instructions [--update]``.

Two numbers for each: the bytecode instructions that are executed in flowno's own modules, and the calls that these make
to anything else, to functions of Python and of its standard library; instructions alone would not show a system call
more. They are the same in each run and on each machine, so a test can hold them: ``test_instructions.py`` compares them
with those in ``instructions.json``, which ``--update`` writes for the Python that runs it.

They are no times: of two instructions one may be an addition and the other a call. An operation is to be compared with
itself only.

Each operation is run some times and then some more times, as a whole program; the difference is what it costs, without
what it takes to begin and to end. Clocks stand still or are virtual, and peers act when the loop waits, so nothing
depends on how fast the machine is. Python does not tell of classes in C that are called (``memoryview(data)``); these
are in neither number.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from socket import socket, socketpair
from ssl import SSLContext
from types import FrameType
from typing import Any, NamedTuple

import trustme

import flowno
from flowno import AsyncQueue, Event, EventLoop, Lock, SocketHandle, TaskGroup, sleep, sleep_forever, spawn, timeout
from flowno_backends import EpollSelector, PollSelector, SelectSelector
from tests.support.peers import (
    Caller,
    Client,
    TLSClient,
    answer_by_handle,
    answer_by_tls,
    answer_lines,
    before_each_wait,
)
from tests.support.tls import client_context_of, server_context_of
from tests.support.virtual_time import VirtualTimeSelector

__all__ = ["COMMAND", "PYTHON", "Cost", "differences", "measure_apart", "read"]

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_suffix(".json")
COMMAND = "python -m tests.benchmarks.instructions"

#: The entry of this Python in the file. Each minor version has bytecode of its own.
PYTHON = "{}.{}".format(*sys.version_info)

#: How much of a number may come or go unnoticed: the compilers of one minor version differ by an instruction at times.
TOLERANCE = 0.02

#: How often an operation is done, and how often then. What is due once in 64 times, as when a task has used up its
#: budget, is in the difference as often as it is due.
FEW, MANY = 64, 192

KIBIBYTE = bytes(1024)
LINE = b"x" * 99 + b"\n"


class Cost(NamedTuple):
    """What an operation costs."""

    instructions: float
    calls: float


# ------------------------------------------------------------------------------------------------------- the operations

#: A program that does something so many times.
Program = Callable[[int], None]


def among_tasks(body: Callable[[int], Coroutine[Any, Any, object]]) -> Program:
    """Tasks in a loop whose clock stands still."""

    def program(count: int) -> None:
        with before_each_wait(EpollSelector, []) as selector, EventLoop(selector) as loop:
            loop.run_until_complete(body(count), join=True)

    return program


async def nothing() -> None:
    """The shortest task."""


async def spawn_and_join(count: int) -> None:
    for _ in range(count):
        await (await spawn(nothing())).join()


async def spawn_and_cancel(count: int) -> None:
    for _ in range(count):
        await (await spawn(sleep_forever())).cancel()


async def group_of_one(count: int) -> None:
    for _ in range(count):
        async with TaskGroup() as group:
            await group.spawn(nothing())


async def switch(count: int) -> None:
    for _ in range(count):
        await sleep(0)


async def queue_round_trip(count: int) -> None:
    there: AsyncQueue[int] = AsyncQueue()
    back: AsyncQueue[int] = AsyncQueue()

    async def answer() -> None:
        for _ in range(count):
            await back.put(await there.get())

    await spawn(answer())
    for number in range(count):
        await there.put(number)
        await back.get()


async def free_lock(count: int) -> None:
    lock = Lock()
    for _ in range(count):
        async with lock:
            pass


async def contended_lock(count: int) -> None:
    lock = Lock()

    async def contend() -> None:
        for _ in range(count // 4):
            async with lock:
                await sleep(0)

    for _ in range(4):
        await spawn(contend())


async def time_limit(count: int) -> None:
    for _ in range(count):
        async with timeout(1):
            pass


async def time_limit_for_a_wait(count: int) -> None:
    for _ in range(count):
        async with timeout(1):
            await sleep(0)


def sleeps(count: int) -> None:
    async def body() -> None:
        for _ in range(count):
            await sleep(0.001)

    with VirtualTimeSelector() as selector, EventLoop(selector) as loop:
        loop.run_until_complete(body(), join=True)


async def send_at_once(count: int) -> None:
    ours, theirs = socketpair()
    with theirs, SocketHandle(ours) as handle:
        for _ in range(count):
            await handle.sendAll(KIBIBYTE)
            theirs.recv(1024)


async def receive_at_once(count: int) -> None:
    ours, theirs = socketpair()
    with theirs, SocketHandle(ours) as handle:
        for _ in range(count):
            theirs.send(KIBIBYTE)
            await handle.recv(1024)  # it fills the buffer, so the next one tries before it waits


def exchange(
    count: int,
    *,
    backend: Callable[[], Any] = EpollSelector,
    connections: int = 1,
    question: bytes = KIBIBYTE,
    serve: Callable[[socket], Coroutine[Any, Any, None]] = answer_by_handle,
    ask: Callable[[socket, bytes, int], Client] = Client,
) -> None:
    """Questions and answers over some connections, which are all ready at once; the server's half is counted."""
    pairs = [socketpair() for _ in range(connections)]
    clients = [ask(theirs, question, count // connections) for _, theirs in pairs]

    async def body() -> None:
        for ours, _ in pairs:
            await spawn(serve(ours))

    with before_each_wait(backend, clients) as selector, EventLoop(selector) as loop:
        loop.run_until_complete(body(), join=True)


@cache
def tls_contexts() -> tuple[SSLContext, SSLContext]:
    """The server's and the client's."""
    authority = trustme.CA()
    return server_context_of(authority), client_context_of(authority)


async def serve_tls(sock: socket) -> None:
    await answer_by_tls(sock, tls_contexts()[0])


def ask_tls(sock: socket, question: bytes, rounds: int) -> Client:
    return TLSClient(sock, question, rounds, tls_contexts()[1])


def exchange_by_kqueue(count: int) -> None:
    from tests.support.fake_kqueue import FakeKqueueSelector  # stands on what Windows lacks

    exchange(count, backend=FakeKqueueSelector)


def accept(count: int) -> None:
    async def body(listener: SocketHandle) -> None:
        for _ in range(count):
            handle, _ = await listener.accept()
            handle.close()

    with flowno.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(count)
        with (
            Caller(listener.getsockname(), b"", count) as caller,
            before_each_wait(EpollSelector, [caller]) as selector,
            EventLoop(selector) as loop,
        ):
            loop.run_until_complete(body(listener), join=True)


def serve_tcp(count: int) -> None:
    callers: list[Client | Caller] = []
    served = 0

    async def body(stack: ExitStack) -> None:
        all_served = Event()

        async def answer(stream: flowno.Stream) -> None:
            nonlocal served
            await stream.write(await stream.readline())
            served += 1
            if served == count:
                all_served.set()

        async with await flowno.serve_tcp(answer, "127.0.0.1", 0) as server:
            callers.append(stack.enter_context(Caller(server.addresses[0], LINE, count)))
            await all_served.wait()

    with ExitStack() as stack, before_each_wait(EpollSelector, callers) as selector, EventLoop(selector) as loop:
        loop.run_until_complete(body(stack), join=True)


#: By the names that they have in the file.
OPERATIONS: dict[str, Program] = {
    "spawn and join": among_tasks(spawn_and_join),
    "spawn and cancel": among_tasks(spawn_and_cancel),
    "TaskGroup with one task": among_tasks(group_of_one),
    "switch": among_tasks(switch),
    "queue round trip": among_tasks(queue_round_trip),
    "lock, free": among_tasks(free_lock),
    "lock, contended": among_tasks(contended_lock),
    "sleep": sleeps,
    "timeout": among_tasks(time_limit),
    "timeout around a switch": among_tasks(time_limit_for_a_wait),
    "sendAll that need not wait": among_tasks(send_at_once),
    "recv that need not wait": among_tasks(receive_at_once),
    "echo by epoll": exchange,
    "echo by kqueue": exchange_by_kqueue,
    "echo by poll": partial(exchange, backend=PollSelector),
    "echo by select": partial(exchange, backend=SelectSelector),
    "echo by epoll, 16 ready at once": partial(exchange, connections=16),
    "echo of lines": partial(exchange, question=LINE, serve=answer_lines),
    "echo by TLS": partial(exchange, serve=serve_tls, ask=ask_tls),
    "accept and close": accept,
    "connection of serve_tcp, one line": serve_tcp,
}

# ------------------------------------------------------------------------------------------------------------- counting


def measure(program: Program) -> Cost:
    """What one more time costs."""
    # What is done only once: imports, tables that are filled at first sight. And counted, since from Python 3.12 on an
    # instruction is told once the function that it is in has been called while f_trace_opcodes was set.
    count(program, MANY)
    few, many = count(program, FEW), count(program, MANY)
    return Cost(*(round((more - less) / (MANY - FEW), 2) for less, more in zip(few, many, strict=True)))


def count(program: Program, times: int) -> tuple[int, int]:
    """The instructions in flowno's modules, and the calls from these to others, of a whole program."""
    instructions = calls = 0

    def on_call(frame: FrameType, event: str, argument: object) -> Any:
        if not is_ours(frame):
            return None
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        return on_instruction

    def on_instruction(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal instructions
        instructions += event == "opcode"
        return on_instruction

    def on_calls(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        if event == "c_call":
            calls += is_ours(frame)
        elif event == "call" and frame.f_back is not None:  # or a generator goes on
            calls += is_ours(frame.f_back) and not is_ours(frame)

    sys.setprofile(on_calls)
    sys.settrace(on_call)
    try:
        program(times)
    finally:
        sys.settrace(None)
        sys.setprofile(None)
    return instructions, calls


def is_ours(frame: FrameType) -> bool:
    """Whether this is code of flowno's, also where it was made at run time, as of a dataclass."""
    return frame.f_globals.get("__name__", "").partition(".")[0] in ("flowno", "flowno_backends")


def measure_apart() -> dict[str, Cost]:
    """What every operation costs, found out in a Python of its own, which nothing here has any influence on.

    Tracing, coverage, development mode, optimisation and settings of flowno stay behind.
    """
    ours = ("PYTHON", "FLOWNO_", "COV_", "COVERAGE_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")]), "PYTHONHASHSEED": "0"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.instructions", "--measure"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
    )
    return {name: Cost(*numbers) for name, numbers in json.loads(result.stdout).items()}


# ------------------------------------------------------------------------------------------------------------- the file


def read() -> dict[str, dict[str, Cost]]:
    """What is kept, by the minor version of Python and the name of the operation."""
    entries = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    return {
        python: {name: Cost(*(entry[unit][name] for unit in Cost._fields)) for name in entry[Cost._fields[0]]}
        for python, entry in entries.items()
    }


def write(python: str, costs: Mapping[str, Cost]) -> None:
    """Keep this for a minor version of Python; the others stay. Each number has a line, so that a diff is readable."""
    kept = {**read(), python: costs}
    entries = {
        python: {unit: {name: getattr(cost, unit) for name, cost in kept[python].items()} for unit in Cost._fields}
        for python in sorted(kept)
    }
    FILE.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def differences(kept: Mapping[str, Cost], counted: Mapping[str, Cost]) -> list[str]:
    """A line for each number that has changed by more than the tolerance, and for each operation that came or went."""
    lines = []
    for name in {**kept, **counted}:
        if name not in counted:
            lines.append(f"{name}: is kept, and is no operation any more")
        elif name not in kept:
            lines.append(f"{name}: is not kept so far")
        else:
            for unit, old, new in zip(Cost._fields, kept[name], counted[name], strict=True):
                if abs(new - old) > TOLERANCE * old:
                    change = f"{new / old - 1:+.1%}" if old else "new"
                    lines.append(f"{name}: {new:g} {unit}, {old:g} are kept ({change})")
    return lines


# ----------------------------------------------------------------------------------------------------- the command line


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description="What each operation costs, counted instead of timed.")
    parser.add_argument("--update", action="store_true", help=f"keep the numbers of this Python, {PYTHON}")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # what measure_apart() runs
    options = parser.parse_args()
    if options.measure:
        gc.disable()  # a collection would run at another time each time
        print(json.dumps({name: measure(program) for name, program in OPERATIONS.items()}))
        return
    counted = measure_apart()
    width = max(map(len, counted))
    print(f"{f'CPython {PYTHON}':{width}} {'instructions':>14} {'calls':>8}")
    for name, cost in counted.items():
        print(f"{name:{width}} {cost.instructions:14g} {cost.calls:8g}")
    for line in differences(read().get(PYTHON, {}), counted):
        print(line)
    if options.update:
        write(PYTHON, counted)
        print(f"kept in {FILE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
