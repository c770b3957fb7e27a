"""The clients of an echo server, in a process of their own.

    python -m tests.benchmarks.clients PORT idle
    python -m tests.benchmarks.clients PORT busy COUNT

``idle`` reads numbers from its input, a line each, opens so many more connections, has one message echoed by each, and
prints how many there are. ``busy`` keeps that many connections busy, each with one request at a time, and prints a line
once they are. Both go on until their input ends.
"""

import argparse
import os
import selectors
import socket
import sys
import threading

__all__ = ["SIZE", "connect", "end_with_input", "receive"]

#: Bytes of a request, and of its answer.
SIZE = 1024


def connect(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def receive(client: socket.socket, size: int) -> None:
    """Receive so many bytes from a blocking socket.

    Raises:
        EOFError: The server has ended the connection.
    """
    while size:
        data = client.recv(size)
        if not data:
            raise EOFError("the server has ended the connection")
        size -= len(data)


def idle(port: int) -> None:
    message = bytes(64)
    clients: list[socket.socket] = []
    for line in sys.stdin:
        for _ in range(int(line)):
            client = connect(port)
            client.sendall(message)
            receive(client, len(message))
            clients.append(client)
        print(len(clients), flush=True)


def busy(port: int, count: int) -> None:
    request = bytes(SIZE)
    end_with_input()
    with selectors.DefaultSelector() as selector:
        missing: dict[socket.socket, int] = {}
        for _ in range(count):
            client = connect(port)
            selector.register(client, selectors.EVENT_READ)
            missing[client] = SIZE
        for client in missing:
            client.sendall(request)
        print(count, flush=True)
        while True:
            for key, _ in selector.select():
                client = key.fileobj
                data = client.recv(SIZE)
                if not data:
                    raise EOFError("the server has ended the connection")
                missing[client] -= len(data)
                if not missing[client]:
                    missing[client] = SIZE
                    client.send(request)


def end_with_input() -> None:
    """End this process when its input ends, so that it does not outlive the one that has started it."""

    def wait_for_end() -> None:
        while sys.stdin.buffer.read(1):
            pass
        os._exit(0)

    threading.Thread(target=wait_for_end, daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.clients", description=__doc__)
    parser.add_argument("port", type=int)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("idle")
    kinds.add_parser("busy").add_argument("count", type=int)
    options = parser.parse_args()
    if options.kind == "idle":
        idle(options.port)
    else:
        busy(options.port, options.count)


if __name__ == "__main__":
    main()
