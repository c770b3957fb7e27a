"""How long one client waits for its answers while others keep the server's event loop busy.

    python -m tests.benchmarks.latency SERVER COUNT [--busy CONNECTIONS]

asks an echo server COUNT times by one connection, one request after another, and prints
``{"p50": seconds, "p99": seconds, "p99.9": seconds, "count": COUNT, "busy": CONNECTIONS}``. The server has a processor
for itself where there are two; the busy clients are a process, and this, which asks and measures, is another.
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

from .clients import SIZE, connect, receive
from .echoes import SERVERS

__all__ = ["latencies", "percentile"]

BUSY = 100


def latencies(server: str, count: int, busy: int = BUSY) -> list[float]:
    """The seconds that each of so many requests took, in ascending order."""
    processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    with running("tests.benchmarks.echoes", server) as echo:
        pin(echo.pid, processors[:1])
        port = int(read_line(echo))
        with running("tests.benchmarks.clients", str(port), "busy", str(busy)) as clients:
            pin(clients.pid, processors[1:])
            pin(0, processors[1:])
            try:
                read_line(clients)
                with connect(port) as client:
                    ask(client, 1 + count // 10)
                    return sorted(ask(client, count))
            finally:
                pin(0, processors)


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
    """Have a process, 0 is this one, run on these processors only; on any where the system cannot, or there are none."""
    if processors and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(pid, processors)


def read_line(process: subprocess.Popen[str]) -> str:
    """What a program says next.

    Raises:
        RuntimeError: It has ended; what was wrong it has printed.
    """
    assert process.stdout is not None
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
    parser.add_argument("server", choices=SERVERS)
    parser.add_argument("count", type=int)
    parser.add_argument("--busy", type=int, default=BUSY, metavar="CONNECTIONS")
    options = parser.parse_args()
    seconds = latencies(options.server, options.count, options.busy)
    figures = {f"p{percent:g}": percentile(seconds, percent) for percent in (50, 99, 99.9)}
    print(json.dumps({**figures, "count": options.count, "busy": options.busy}))


if __name__ == "__main__":
    main()
