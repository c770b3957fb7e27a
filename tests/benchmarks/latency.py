"""How long one client waits for its answers while others keep the server's event loop busy.

    python -m tests.benchmarks.latency SERVER [--loop LOOP] [--busy CONNECTIONS] COUNT

asks the echo server of a module of ``servers`` COUNT times by one connection, one request after another, and prints
``{"p50": seconds, "p99": seconds, "p99.9": seconds, "utilisation": of the server, "count": COUNT, "busy": NUMBER}``.
The server has a processor for itself where there are two; the busy clients are one process, and this, which asks and
measures, another. Where the utilisation is below 1, the server was faster than its clients, and idle in between.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.benchmarks.clients import SIZE, connect, receive

__all__ = ["measure", "percentile"]

BUSY = 100

PERCENT = (50, 99, 99.9)


def measure(server: str, loop: str, count: int, busy: int) -> dict[str, float]:
    """Ask a server so often beside so many busy clients."""
    processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    with running("tests.benchmarks.servers", server, "echo", "--loop", loop) as echo:
        pin(echo.pid, processors[:1])
        port = json.loads(answer(echo))["port"]
        with running("tests.benchmarks.clients", str(port), "busy", str(busy)) as clients:
            pin(clients.pid, processors[1:])
            pin(0, processors[1:])
            try:
                answer(clients)
                with connect(port) as client:
                    ask(client, 1 + count // 10)
                    begun = usage(echo)
                    seconds = sorted(ask(client, count))
                    ended = usage(echo)
            finally:
                pin(0, processors)
    figures = {f"p{percent:g}": percentile(seconds, percent) for percent in PERCENT}
    utilisation = (ended["cpu"] - begun["cpu"]) / (ended["time"] - begun["time"])
    return {**figures, "utilisation": utilisation, "count": count, "busy": busy}


def ask(client: socket.socket, count: int) -> list[float]:
    """Ask so often; the seconds that each answer took."""
    request = bytes(SIZE)
    seconds = []
    for _ in range(count):
        begun = time.perf_counter()
        client.sendall(request)
        receive(client, SIZE)
        seconds.append(time.perf_counter() - begun)
    return seconds


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The least of some numbers that so many percent of them do not exceed."""
    rank = -int(-percent * len(ascending) // 100)  # rounded up
    return ascending[max(rank, 1) - 1]


def pin(pid: int, processors: list[int]) -> None:
    """Have a process, 0 is this one, run on these processors only, where there are any and the system can."""
    if processors and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(pid, processors)


def usage(server: subprocess.Popen[str]) -> dict[str, float]:
    """The CPU seconds that a server has used so far, and when that was."""
    print(file=server.stdin, flush=True)
    figures: dict[str, float] = json.loads(answer(server))
    return figures


def answer(process: subprocess.Popen[str]) -> str:
    """What a program says next.

    Raises:
        RuntimeError: It has ended; what was wrong it has printed.
    """
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args!r} ended with {process.wait()}")
    return line


@contextmanager
def running(module: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """A program of this package, that runs until the block is left."""
    command = [sys.executable, "-m", module, *args]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.latency", description=__doc__)
    parser.add_argument("server", help="a module of servers")
    parser.add_argument("--loop", default="", help="the event loop, or the selector, of the framework")
    parser.add_argument("--busy", type=int, default=BUSY, metavar="CONNECTIONS")
    parser.add_argument("count", type=int)
    options = parser.parse_args()
    print(json.dumps(measure(options.server, options.loop, options.count, options.busy)))


if __name__ == "__main__":
    main()
