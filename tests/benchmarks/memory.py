"""How much memory an idle connection takes, or a task that waits.

    python -m tests.benchmarks.memory SERVER [--loop LOOP] idle COUNT
    python -m tests.benchmarks.memory FRAMEWORK [--loop LOOP] task COUNT

print ``{"bytes": ..., "traced": ..., "count": COUNT}``. ``bytes`` is by how much an item makes the process larger
(resident memory), ``traced`` what Python's allocators have given out for it (:mod:`tracemalloc`), measured on as many
again. Memory of the kernel is in neither, and C code may allocate what tracemalloc does not see.

A connection is one of the echo server of a module of ``servers``: accepted from a client in another process, used for
one message, and now waiting for the next. A task waits for an event that all of them wait for.
"""

import argparse
import gc
import importlib
import json
import os
import socket
import subprocess
import sys
import threading
import traceback
import tracemalloc
from collections.abc import Callable

from tests.benchmarks.operations import FRAMEWORKS

__all__ = ["resident_memory"]

#: Items that are there before any is counted, so that what is made once is not a part of the figures.
FIRST_ITEMS = 50


def resident_memory() -> int:
    """The bytes of this process that are in memory; elsewhere than on Linux, the most that have been so far."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except FileNotFoundError:
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def traced_memory() -> int:
    """The bytes that Python has allocated since tracemalloc was started, and not freed."""
    return tracemalloc.get_traced_memory()[0]


def collected(memory: Callable[[], int]) -> int:
    """As much memory as there is without garbage."""
    gc.collect()
    return memory()


# ----------------------------------------------------------------------------------------------------- idle connections


def measure_connections(server: str, loop: str, count: int) -> None:
    """Serve in this thread for ever; another one has the clients connect, prints the figures and ends the process."""
    module = importlib.import_module(f"tests.benchmarks.servers.{server}")
    allow_open_files(2 * count + 2 * FIRST_ITEMS)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        threading.Thread(target=print_and_exit, args=(lambda: connection_figures(port, count),)).start()
        module.serve(listener, module.echo, None, loop)


def connection_figures(port: int, count: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.clients", str(port), "idle"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as clients:

        def connect(number: int) -> None:
            print(number, file=clients.stdin, flush=True)
            if not clients.stdout.readline():
                raise RuntimeError(f"the clients ended with {clients.wait()}")

        connect(FIRST_ITEMS)
        before = collected(resident_memory)
        connect(count)
        resident = collected(resident_memory) - before
        tracemalloc.start()
        before = collected(traced_memory)
        connect(count)
        traced = collected(traced_memory) - before
        return {"bytes": resident / count, "traced": traced / count, "count": count}


def print_and_exit(figures: Callable[[], dict[str, float]]) -> None:
    """End the process from a thread: the servers of most frameworks have no other end than a signal."""
    try:
        print(json.dumps(figures()), flush=True)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def allow_open_files(number: int) -> None:
    """Have this process, and those that it starts, open so many files, as far as the system lets it."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < number + 100:
            wanted = number + 100 if hard == resource.RLIM_INFINITY else min(number + 100, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


# ---------------------------------------------------------------------------------------------------------------- tasks


def measure_tasks(framework: str, loop: str, count: int) -> None:
    """Print the figures of a framework's tasks."""
    module = importlib.import_module(f"tests.benchmarks.operations.{FRAMEWORKS[framework]}")

    def growth(memory: Callable[[], int]) -> float:
        seen: list[int] = []
        module.run(lambda number: module.hold_tasks(number, lambda: seen.append(collected(memory))), count, loop)
        return (seen[-1] - seen[0]) / count

    resident = growth(resident_memory)
    tracemalloc.start()
    print(json.dumps({"bytes": resident, "traced": growth(traced_memory), "count": count}))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.memory", description=__doc__)
    parser.add_argument("subject", help="for idle, a module of servers; for task, a framework of operations")
    parser.add_argument("--loop", default="", help="the event loop, or the selector, of the framework")
    parser.add_argument("kind", choices=("idle", "task"))
    parser.add_argument("count", type=int)
    options = parser.parse_args()
    measure = measure_connections if options.kind == "idle" else measure_tasks
    measure(options.subject, options.loop, options.count)


if __name__ == "__main__":
    main()
