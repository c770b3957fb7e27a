"""How long one client waits for its answers while others keep the server's event loop busy.

    python -m tests.benchmarks.latency SERVER [--loop LOOP] [--busy CONNECTIONS] COUNT

asks the echo server of a module of ``servers`` COUNT times by one connection, one request after another, and prints
``{"p50": seconds, "p99": seconds, "p99.9": seconds, "utilisation": ..., "count": COUNT, "busy": CONNECTIONS}``. The
server has a processor for itself where there are two; the busy clients are one process, and this, which asks and
measures, another. The utilisation is that of the server: where it is below 1, it was idle in between.
"""

import argparse
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.benchmarks.clients import SIZE, Clients, ask, connect
from tests.benchmarks.load import Server

__all__ = ["measure", "percentile"]

BUSY = 100

PERCENT = (50, 99, 99.9)


def measure(module: str, loop: str, count: int, busy: int) -> dict[str, float]:
    """Ask a server so often beside so many busy clients."""
    with (
        cores() as server_core,
        Clients("busy", str(busy)) as clients,
        Server(module, "echo", loop, core=server_core) as server,  # ends first, so that it sees no broken connections
        connect(server.address[1]) as client,
    ):
        clients.tell(server.address[1])
        clients.wait()
        ask_often(client, 1 + count // 10)
        before = server.usage()
        seconds = sorted(ask_often(client, count))
        after = server.usage()
        figures = {f"p{percent:g}": percentile(seconds, percent) for percent in PERCENT}
        utilisation = (after["cpu"] - before["cpu"]) / (after["time"] - before["time"])
        return {**figures, "utilisation": utilisation, "count": count, "busy": busy}


def ask_often(client: socket.socket, count: int) -> list[float]:
    """Ask so often; the seconds that each answer took."""
    request = bytes(SIZE)
    seconds = []
    for _ in range(count):
        begun = time.perf_counter()
        ask(client, request)
        seconds.append(time.perf_counter() - begun)
    return seconds


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The least of some numbers that so many percent of them do not exceed."""
    rank = -int(-percent * len(ascending) // 100)  # rounded up
    return ascending[max(rank, 1) - 1]


@contextmanager
def cores() -> Iterator[int | None]:
    """The processor for the server; this process, and those that it starts meanwhile, have the others.

    None where there is only one, or the system has no such call.
    """
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if len(own) < 2:
        yield None
        return
    first, *others = sorted(own)
    os.sched_setaffinity(0, others)
    try:
        yield first
    finally:
        os.sched_setaffinity(0, own)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.latency", description=__doc__)
    parser.add_argument("server", help="a module of servers")
    parser.add_argument("--loop", default="", help="the event loop, or the selector, of the server")
    parser.add_argument("--busy", type=int, default=BUSY, metavar="CONNECTIONS")
    parser.add_argument("count", type=int)
    options = parser.parse_args()
    print(json.dumps(measure(options.server, options.loop, options.count, options.busy)))


if __name__ == "__main__":
    main()
