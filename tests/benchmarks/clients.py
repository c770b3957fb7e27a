"""Clients of an echo server, in a process of their own, for those who measure something else meanwhile.

    python -m tests.benchmarks.clients idle
    python -m tests.benchmarks.clients busy COUNT

read the port of the server, a line, from their input. ``idle`` goes on to read numbers, opens so many more connections
for each, has one message echoed by each of them, and prints how many there are, until its input ends. ``busy`` keeps
that many connections busy, each with one request at a time, and prints their number once the first round is made, until
the server ends.
"""

import argparse
import itertools
import socket
import subprocess
import sys
from typing import Self

from tests.benchmarks.load import ROOT, allow_open_files

__all__ = ["SIZE", "Clients", "ask", "connect"]

#: Bytes of a request, and of its answer.
SIZE = 1024


class Clients:
    """The process of the clients, for the one that starts it. Leaving the context ends it.

    Args:
        kind: The arguments of its command line.
    """

    def __init__(self, *kind: str) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.clients", *kind]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def tell(self, number: int) -> None:
        """Give it a line of input."""
        print(number, file=self._process.stdin, flush=True)

    def wait(self) -> None:
        """Wait for a line of output.

        Raises:
            RuntimeError: It has ended; what was wrong it has printed.
        """
        if not self._process.stdout.readline():
            raise RuntimeError(f"the clients ended with exit status {self._process.wait()}")


def connect(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def ask(client: socket.socket, request: bytes) -> None:
    """Send a request, and receive its answer.

    Raises:
        EOFError: The server has ended the connection.
    """
    client.sendall(request)
    receive(client, len(request))


def receive(client: socket.socket, size: int) -> None:
    if len(client.recv(size, socket.MSG_WAITALL)) < size:
        raise EOFError("the server has ended the connection")


def idle(port: int) -> None:
    message = bytes(64)
    clients: list[socket.socket] = []
    for line in sys.stdin:
        for _ in range(int(line)):
            client = connect(port)
            clients.append(client)
            ask(client, message)
        print(len(clients), flush=True)


def busy(port: int, count: int) -> None:
    """Goes around the clients, as in ``load``: that is cheaper than to wait for all of them, and no server has less."""
    request = bytes(SIZE)
    clients = [connect(port) for _ in range(count)]
    for client in clients:
        client.sendall(request)
    try:
        for number in itertools.count():
            for client in clients:
                receive(client, SIZE)
                client.sendall(request)
            if number == 0:
                print(count, flush=True)
    except (EOFError, ConnectionError):
        pass  # the server has ended


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.clients", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("idle")
    kinds.add_parser("busy").add_argument("count", type=int)
    options = parser.parse_args()
    allow_open_files()
    line = sys.stdin.readline()
    if not line:
        return  # there is no server
    if options.kind == "idle":
        idle(int(line))
    else:
        busy(int(line), options.count)


if __name__ == "__main__":
    main()
