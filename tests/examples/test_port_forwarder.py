"""``port_forwarder.py``: what one side sends, the other one gets, up to the end of each direction."""

import http.server
import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Queue

import pytest

from tests.examples.programs import PATIENCE, Program, require, started
from tests.support.loopback import resets_at_close

pytestmark = pytest.mark.usefixtures("backend")


@contextmanager
def serving(serve: Callable[[socket.socket], None], connections: int = 1) -> Iterator[Program]:
    """A forwarder to a server that serves so many connections, one after the other, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)

        def run() -> None:
            for _ in range(connections):
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(PATIENCE)
                    serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            with forwarder(listener.getsockname()[1]) as program:
                yield program
        finally:
            thread.join()


@contextmanager
def forwarder(port: int) -> Iterator[Program]:
    with started("port_forwarder", "--to-host", "127.0.0.1", "--to-port", str(port)) as program:
        yield program
        assert program.stop() == "Stopped\n"


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


def test_the_end_of_one_direction_is_not_the_end_of_the_other() -> None:
    def serve(connection: socket.socket) -> None:
        question = read_all(connection)  # to its end, and only then is there an answer
        connection.sendall(b"the answer to " + question)

    with serving(serve) as program:
        with socket.create_connection(program.address, PATIENCE) as sock:
            sock.sendall(b"the question")
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b"the answer to the question"
        assert program.errors() == ""


def test_the_server_may_end_its_direction_first() -> None:
    received: Queue[bytes] = Queue()

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"that was all from me")
        connection.shutdown(socket.SHUT_WR)
        received.put(read_all(connection))

    with serving(serve) as program:
        with socket.create_connection(program.address, PATIENCE) as sock:
            assert read_all(sock) == b"that was all from me"
            sock.sendall(b"still here")
        assert received.get(timeout=PATIENCE) == b"still here"


def test_both_directions_carry_at_once() -> None:
    upwards, downwards = os.urandom(8 << 20), os.urandom(8 << 20)
    received: Queue[bytes] = Queue()

    def exchange(sock: socket.socket, data: bytes) -> bytes:
        def send() -> None:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            return read_all(sock)
        finally:
            sender.join()

    with serving(lambda connection: received.put(exchange(connection, downwards))) as program:
        with socket.create_connection(program.address, PATIENCE) as sock:
            assert exchange(sock, upwards) == downwards
        assert received.get(timeout=PATIENCE) == upwards


def test_what_breaks_on_one_side_ends_on_the_other_and_nothing_else_does() -> None:
    ends: Queue[bytes] = Queue()

    def serve(connection: socket.socket) -> None:
        connection.sendall(connection.recv(5, socket.MSG_WAITALL))
        try:
            ends.put(read_all(connection))
        except ConnectionError:
            ends.put(b"broken")

    with serving(serve, connections=2) as program:
        with socket.create_connection(program.address, PATIENCE) as sock:
            sock.sendall(b"hello")
            assert sock.recv(5, socket.MSG_WAITALL) == b"hello"
            resets_at_close(sock)
        assert ends.get(timeout=PATIENCE) in (b"", b"broken")
        with socket.create_connection(program.address, PATIENCE) as sock:
            sock.sendall(b"hello, and more")
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b"hello"
        assert ends.get(timeout=PATIENCE) == b", and more"
        assert program.errors() == ""


def test_where_nobody_listens_the_client_is_told_by_the_end(free_port: int) -> None:
    with forwarder(free_port) as program:
        for _ in range(2):
            with socket.create_connection(program.address, PATIENCE) as sock:
                assert sock.recv(100) == b""
        assert len(re.findall(r"cannot forward: \[(Errno|WinError) ", program.errors())) == 2
        assert "Traceback" not in program.errors()


def test_curl_gets_through(tmp_path: os.PathLike[str]) -> None:
    content = os.urandom(100_000)
    with open(os.path.join(tmp_path, "file"), "wb") as file:
        file.write(content)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=os.fspath(tmp_path))  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:
            pass

    curl = require("curl")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            with forwarder(server.server_address[1]) as program:
                url = f"http://{program.host}:{program.port}/file"
                result = subprocess.run([curl, "--silent", url], capture_output=True, timeout=PATIENCE, check=True)
                assert result.stdout == content
        finally:
            server.shutdown()
            thread.join()
