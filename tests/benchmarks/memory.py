"""How much memory an idle connection takes, or a task that waits.

    python -m tests.benchmarks.memory SERVER [--loop LOOP] idle COUNT
    python -m tests.benchmarks.memory FRAMEWORK [--loop LOOP] task COUNT

print ``{"bytes": ..., "traced": ..., "count": COUNT}``. ``bytes`` is by how much an item makes the process larger
(resident memory), ``traced`` what Python's allocators have given out for it (:mod:`tracemalloc`), measured on as many
others. Memory of the kernel is in neither, and C code may allocate what tracemalloc does not see. Not on Windows.

A connection is one of the echo server of a module of ``servers``: accepted from a client in another process, used for
one message, and now waiting for the next. There are three times as many as are counted, the first of them for nothing.
A task waits for an event that all of them wait for.
"""

import argparse
import gc
import importlib
import json
import os
import socket
import sys
import threading
import traceback
import tracemalloc
from collections.abc import Callable

from tests.benchmarks.clients import Clients
from tests.benchmarks.load import allow_open_files
from tests.benchmarks.operations import FRAMEWORKS

if sys.platform != "win32":
    import resource

__all__ = ["resident_memory"]


def resident_memory() -> int:
    """The bytes of this process that are in memory; elsewhere than on Linux, the most that have been so far.

    Raises:
        NotImplementedError: On Windows.
    """
    if sys.platform == "win32":
        raise NotImplementedError("the standard library does not tell how much memory a process of Windows has")
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except FileNotFoundError:
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


def measure_connections(module: str, loop: str, count: int) -> None:
    """Serve in this thread for ever; another one has the clients connect, prints the figures and ends the process."""
    server = importlib.import_module(f"tests.benchmarks.servers.{module}")
    allow_open_files()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        listener.setblocking(False)
        threading.Thread(target=print_and_exit, args=(listener.getsockname()[1], count)).start()
        server.serve(listener, server.echo, None, loop)


def print_and_exit(port: int, count: int) -> None:
    """End the process from a thread: most frameworks have servers that only a signal ends. So do the clients, then."""
    try:
        print(json.dumps(connection_figures(Clients("idle"), port, count)), flush=True)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def connection_figures(clients: Clients, port: int, count: int) -> dict[str, float]:
    def connect(number: int) -> None:
        clients.tell(number)
        clients.wait()

    clients.tell(port)
    connect(count)  # these take what memory was freed before, and what is made once is made for them
    before = collected(resident_memory)
    connect(count)
    resident = collected(resident_memory) - before
    tracemalloc.start()
    before = collected(traced_memory)
    connect(count)
    traced = collected(traced_memory) - before
    return {"bytes": resident / count, "traced": traced / count, "count": count}


# ---------------------------------------------------------------------------------------------------------------- tasks


def measure_tasks(framework: str, loop: str, count: int) -> None:
    """Print the figures. A run holds a few tasks first, whose memory is then a part of what the others take."""
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
