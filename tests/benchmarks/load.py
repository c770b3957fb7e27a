"""Starts one server of the network cases, keeps it busy for a while, and says what that has cost it.

The client is made to be cheaper than any server, as else the server would sleep between two messages, which costs
more than some of what is measured. It goes around its connections by blocking calls, receives the answer of one and
sends it the next message at once: two system calls a message, where a server has at least these and its share of a
wait. The server finds all the connections readable that were sent to while it was busy with the others. With one
connection nothing helps: each waits for the other. ``server_cpu / seconds`` shows how busy the server was kept.

On the last line of the output is a JSON object: ``count`` operations took ``seconds``, the processor time of the server
was ``server_cpu``, ``server_system`` of it in the kernel, and that of this process ``client_cpu``, in seconds.
"""

import argparse
import json
import os
import selectors
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

if sys.platform != "win32":
    import resource

ROOT = Path(__file__).parents[2]

#: A message that is longer can fill the buffers of both directions while both ends send.
LONGEST_BLOCKING = 65536
#: How long is enough to have everything warm, in seconds.
WARM_UP = 0.1


class ServerFailed(Exception):
    """The server ended, or answered something else than it should have."""


class Server:
    """A server in a process of its own. Leaving the context ends it.

    Args:
        module: A module of servers/.
        function: One of its functions.
        loop: Its event loop or selector; "" is the default.
        certificate: For TLS, the file of its certificate and the key.
        core: The processor that it runs on; None is any.
    """

    def __init__(
        self, module: str, function: str, loop: str = "", certificate: str | None = None, core: int | None = None
    ) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.servers", module, function, "--loop", loop]
        if certificate is not None:
            command += ["--certificate", certificate]
        if core is not None:
            command += ["--core", str(core)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )
        self.address = ("127.0.0.1", int(self._read()["port"]))

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def usage(self) -> dict[str, float]:
        """What it has used until now, in seconds: the processor time, that in the kernel, and the time."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, float]:
        line = self._process.stdout.readline()
        if not line:
            raise ServerFailed(f"the server ended with exit status {self._process.wait()}")
        words: dict[str, float] = json.loads(line)
        return words


class Measurement:
    """What a server and its client have used between two moments. Begins at once.

    Args:
        server: The server.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._client_cpu = time.process_time()
        self._begun = server.usage()

    def end(self, count: float) -> dict[str, float]:
        """The figures, where so many operations were done."""
        used = {name: value - self._begun[name] for name, value in self._server.usage().items()}
        return {
            "count": count,
            "seconds": used["time"],
            "server_cpu": used["cpu"],
            "server_system": used["system"],
            "client_cpu": time.process_time() - self._client_cpu,
        }


# ------------------------------------------------------------------------------------------------- messages and answers


def exchange(server: Server, options: argparse.Namespace) -> dict[str, float]:
    """Messages that are answered by themselves, on many connections that stay open."""
    message = _message(options.size, options.batch)
    context = _client_context(options.certificate) if options.certificate else None
    with ExitStack() as stack:
        idle = [stack.enter_context(_connect(server, context)) for _ in range(options.idle)]
        busy = [stack.enter_context(_connect(server, context)) for _ in range(options.connections)]
        for connection in idle + busy:
            _check_echo(connection, message)
        if len(message) > LONGEST_BLOCKING:
            go_around: Callable[[float], int] = _Overlapping(busy, message).go_around
        else:
            go_around = partial(_go_around, [(_receiver(one, len(message)), one.send) for one in busy], message)
        go_around(min(WARM_UP, options.seconds))
        measurement = Measurement(server)
        count = go_around(options.seconds)
        return measurement.end(count * options.batch)


def _message(size: int, lines: int) -> bytes:
    return (bytes(48 + index % 75 for index in range(size - 1)) + b"\n") * lines


def _check_echo(connection: socket.socket, message: bytes) -> None:
    """One message, and the answer to it. After that the server has accepted the connection, and waits."""
    position = 0
    answer = bytearray()
    while len(answer) < len(message):
        if position < len(message):
            position += connection.send(message[position : position + LONGEST_BLOCKING])
        while len(answer) < position:
            data = connection.recv(position - len(answer))
            if not data:
                raise ServerFailed("the server closed a connection instead of answering")
            answer += data
    if answer != message:
        raise ServerFailed("the server sent something else than the message that it got")


def _receiver(connection: socket.socket, size: int) -> Callable[[], int]:
    """A function that receives so many bytes, for those who look at none of them."""
    buffer = bytearray(size)
    if isinstance(connection, ssl.SSLSocket):
        return partial(_receive_records, connection, buffer)
    return partial(connection.recv_into, buffer, size, socket.MSG_WAITALL)


def _receive_records(connection: ssl.SSLSocket, buffer: bytearray) -> int:
    received = connection.recv_into(buffer)
    while received < len(buffer):
        more = connection.recv_into(memoryview(buffer)[received:])
        if not more:
            break
        received += more
    return received


def _go_around(
    connections: Sequence[tuple[Callable[[], int], Callable[[bytes], int]]], message: bytes, seconds: float
) -> int:
    """Send a message to each, and then, around and around, receive its answer and send the next."""
    size = len(message)
    clock = time.perf_counter
    for _, send in connections:
        send(message)
    rounds = 1
    end = clock() + seconds
    while clock() < end:
        for receive, send in connections:
            if receive() != size:
                raise ServerFailed("the server closed a connection that was in use")
            send(message)
        rounds += 1
    for receive, _ in connections:
        if receive() != size:
            raise ServerFailed("the server closed a connection that was in use")
    return rounds * len(connections)


class _Overlapping:
    """The same for messages that do not fit into the buffers of the system: sends while it receives.

    Args:
        connections: The sockets.
        message: What each of them sends again and again.
    """

    def __init__(self, connections: Sequence[socket.socket], message: bytes) -> None:
        self._connections = connections
        self._message = memoryview(message)
        self._buffer = bytearray(262144)

    def go_around(self, seconds: float) -> int:
        end = time.perf_counter() + seconds
        count = 0
        unsent = dict.fromkeys(self._connections, self._message)
        missing = dict.fromkeys(self._connections, len(self._message))
        with selectors.DefaultSelector() as selector:
            for connection in self._connections:
                connection.setblocking(False)
                selector.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE)
            while missing:
                for key, mask in selector.select():
                    ready: Any = key.fileobj
                    if mask & selectors.EVENT_WRITE:
                        unsent[ready] = unsent[ready][ready.send(unsent[ready]) :]
                        if not unsent[ready]:
                            selector.modify(ready, selectors.EVENT_READ)
                    if mask & selectors.EVENT_READ:
                        received = ready.recv_into(self._buffer, min(missing[ready], len(self._buffer)))
                        if not received:
                            raise ServerFailed("the server closed a connection that was in use")
                        missing[ready] -= received
                        if missing[ready]:
                            continue
                        count += 1
                        if time.perf_counter() < end:
                            missing[ready] = len(self._message)
                            unsent[ready] = self._message
                            selector.modify(ready, selectors.EVENT_READ | selectors.EVENT_WRITE)
                        else:
                            del missing[ready]
                            selector.unregister(ready)
        return count


# ----------------------------------------------------------------------------------------------------- the other cases


def churn(server: Server, options: argparse.Namespace) -> dict[str, float]:
    """Connections that are made, answer one message, and are closed by the server."""
    message = _message(options.size, 1)
    _churn(server, message, options.connections, min(WARM_UP, options.seconds))
    measurement = Measurement(server)
    return measurement.end(_churn(server, message, options.connections, options.seconds))


def _churn(server: Server, message: bytes, connections: int, seconds: float) -> int:
    """So many at a time, for so long; as :func:`_go_around`."""
    # One byte more than there will be: the call comes back at the end of the stream, behind the answer.
    buffer = bytearray(len(message) + 1)
    end = time.perf_counter() + seconds
    count = 0
    waiting = [_ask(server, message) for _ in range(connections)]
    is_over = False
    while not is_over:
        is_over = time.perf_counter() >= end
        for index, connection in enumerate(waiting):
            if connection.recv_into(buffer, len(buffer), socket.MSG_WAITALL) != len(message):
                raise ServerFailed("the server sent something else than the message that it got")
            connection.close()
            if not is_over:
                waiting[index] = _ask(server, message)
        count += connections
    return count


def _ask(server: Server, message: bytes) -> socket.socket:
    connection = socket.socket()
    connection.connect(server.address)
    connection.send(message)
    return connection


def sink(server: Server, options: argparse.Namespace) -> dict[str, float]:
    """Bytes in one direction. The server closes a connection when it has received the end of the stream."""
    message = _message(options.size, 1)
    _pour(server, message, options.connections, min(WARM_UP, options.seconds))
    measurement = Measurement(server)
    return measurement.end(_pour(server, message, options.connections, options.seconds))


def _pour(server: Server, message: bytes, connections: int, seconds: float) -> int:
    rounds = 0
    with ExitStack() as stack:
        sockets = [stack.enter_context(_connect(server, None)) for _ in range(connections)]
        end = time.perf_counter() + seconds
        while not rounds or time.perf_counter() < end:
            for connection in sockets:
                connection.sendall(message)
            rounds += 1
        for connection in sockets:
            connection.shutdown(socket.SHUT_WR)
        for connection in sockets:
            if connection.recv(1):
                raise ServerFailed("the server answered where it was to receive only")
    return rounds * connections


# ------------------------------------------------------------------------------------------------------------- the rest


@contextmanager
def _connect(server: Server, context: ssl.SSLContext | None) -> Iterator[socket.socket]:
    with socket.create_connection(server.address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is None:
            yield connection
        else:
            with context.wrap_socket(connection, server_hostname="localhost") as encrypted:
                yield encrypted


def _client_context(certificate: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate)


def environment() -> dict[str, str]:
    """Of the processes that are started here: they find flowno and its backends, whatever was installed."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")])}


def allow_open_files() -> None:
    """Have this process, and those that it starts, open as many files as they may."""
    if sys.platform != "win32":
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


#: What the client does for each function of a server.
CLIENTS: dict[str, Callable[[Server, argparse.Namespace], dict[str, float]]] = {
    "echo": exchange,
    "lines": exchange,
    "tls_echo": exchange,
    "churn": churn,
    "sink": sink,
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.load", description=__doc__)
    parser.add_argument("module", help="a module of servers/")
    parser.add_argument("function", choices=CLIENTS)
    parser.add_argument("--loop", default="", help="the event loop or the selector of the server")
    parser.add_argument("--size", type=int, default=1024, help="bytes in a message, or in a line")
    parser.add_argument("--batch", type=int, default=1, help="how many lines are sent together")
    parser.add_argument("--connections", type=int, default=10)
    parser.add_argument("--idle", type=int, default=0, help="connections beside them that are left alone")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--certificate", help="a PEM file with the key and the certificate, for TLS")
    parser.add_argument("--cores", help="the processors of the server and of the client, as in 1,0")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One measurement, as the options of :func:`parse` describe it."""
    server_core = None
    if options.cores:
        server_core, own_core = (int(core) for core in options.cores.split(","))
        os.sched_setaffinity(0, {own_core})
    with Server(options.module, options.function, options.loop, options.certificate, server_core) as server:
        return CLIENTS[options.function](server, options)


if __name__ == "__main__":
    allow_open_files()
    try:
        print(json.dumps(measure(parse())))
    except ServerFailed as failure:
        sys.exit(str(failure))
