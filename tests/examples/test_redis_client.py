"""``redis_client.py``, against a real Redis that each test starts for itself."""

import importlib.util
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import flowno
from tests.examples.programs import EXAMPLES, PATIENCE, require, run

pytestmark = pytest.mark.usefixtures("backend")


@contextmanager
def redis_server(*args: str) -> Iterator[str]:
    """A Redis that keeps nothing; yields the folder that its socket is in. None of it is left at the end."""
    server = require("redis-server")
    with TemporaryDirectory() as folder, subprocess.Popen(  # a short path, as that of a Unix socket has to be
        [server, "--port", "0", "--unixsocket", f"{folder}/redis", "--bind", "127.0.0.1", "--dir", folder,
         "--save", "", "--appendonly", "no", "--daemonize", "no", "--logfile", "", *args],
        cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            output = ""
            while "eady to accept connections" not in output:
                line = process.stdout.readline()
                assert line, output
                output += line
            yield folder
        finally:
            process.kill()
            process.wait(PATIENCE)  # before its folder goes


@pytest.fixture
def unix_socket() -> Iterator[str]:
    with redis_server() as folder:
        yield f"{folder}/redis"


def example() -> Any:
    """The module, to use its class in a loop of the test's own."""
    spec = importlib.util.spec_from_file_location("redis_client", EXAMPLES / "redis_client.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COMMANDS = """SET greeting "Hello, world!"
GET greeting
GET nothing

INCR greeting
RPUSH list one two three
LRANGE list 0 -1
"""
REPLIES = """OK
Hello, world!
(nil)
(error) ERR value is not an integer or out of range
3
one
two
three
"""


def test_commands_get_their_replies_in_their_order(unix_socket: str) -> None:
    result = run("redis_client", "--unix", unix_socket, lines=COMMANDS)
    assert (result.returncode, result.stderr, result.stdout) == (0, "", REPLIES)


def test_by_tcp(free_port: int) -> None:
    with redis_server("--port", str(free_port)):
        result = run("redis_client", "--host", "127.0.0.1", "--port", str(free_port), lines=COMMANDS)
        assert (result.returncode, result.stderr, result.stdout) == (0, "", REPLIES)


def test_ten_thousand_commands_are_sent_without_waiting_for_replies(unix_socket: str) -> None:
    numbers = "".join(f"{number}\n" for number in range(1, 10_001))
    result = run("redis_client", "--unix", unix_socket, lines=10_000 * "INCR counter\n")
    assert (result.returncode, result.stderr, result.stdout) == (0, "", numbers)


def test_tasks_share_a_connection_and_a_cancelled_one_takes_nobodys_reply(unix_socket: str) -> None:
    module = example()

    async def main() -> None:
        async with module.Redis(await flowno.open_unix_connection(unix_socket)) as redis:
            echoes = [await flowno.spawn(redis.call("ECHO", number)) for number in range(100)]
            blocked = await flowno.spawn(redis.call("BLPOP", "nobody", 0.1))
            later = [await flowno.spawn(redis.call("ECHO", number)) for number in range(100, 200)]
            echoes[50].cancel()
            blocked.cancel()
            replies = [await task.join() for task in echoes[:50] + echoes[51:] + later]
            assert replies == [str(number).encode() for number in range(200) if number != 50]
            with pytest.raises(module.hiredis.ReplyError, match="unknown command"):
                await redis.call("NONSENSE")

    flowno.run(main())


def test_large_commands_of_several_tasks_are_not_mixed_up(unix_socket: str) -> None:
    module = example()
    values = [bytes([65 + number]) * (1 << 20) for number in range(8)]  # more than the socket takes at once

    async def main() -> list[bytes]:
        async with module.Redis(await flowno.open_unix_connection(unix_socket)) as redis:
            tasks = [await flowno.spawn(redis.call("ECHO", value)) for value in values]
            return [await task.join() for task in tasks]

    assert flowno.run(main()) == values


def test_whoever_waits_is_told_when_redis_ends(unix_socket: str) -> None:
    module = example()

    async def main() -> None:
        async with module.Redis(await flowno.open_unix_connection(unix_socket)) as redis:
            blocked = [await flowno.spawn(redis.call("BLPOP", "nobody", 0)) for _ in range(3)]
            async with module.Redis(await flowno.open_unix_connection(unix_socket)) as other:
                with pytest.raises(ConnectionError):
                    await other.call("SHUTDOWN", "NOSAVE", "NOW", "FORCE")
            for task in blocked:
                with pytest.raises(ConnectionError, match="Redis"):
                    await task.join()
            with pytest.raises(ConnectionError, match="Redis"):
                await redis.call("PING")

    flowno.run(main())


def test_what_is_no_redis_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            result = run("redis_client", "--host", "127.0.0.1", "--port", str(port), lines="PING\n")
        finally:
            thread.join()
    assert (result.returncode, result.stdout) == (1, "")
    assert "ConnectionError: the connection to Redis broke off: Protocol error" in result.stderr


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")
def test_a_path_that_leads_nowhere_or_is_too_long_is_an_error(tmp_path: Path) -> None:
    nowhere = run("redis_client", "--unix", str(tmp_path / "redis"), lines="PING\n")
    assert (nowhere.returncode, nowhere.stdout) == (1, "")
    assert "FileNotFoundError" in nowhere.stderr
    assert "Traceback" not in nowhere.stderr
    too_long = run("redis_client", "--unix", "/" + "x" * 200, lines="PING\n")
    assert (too_long.returncode, too_long.stdout) == (1, "")
    assert "too long" in too_long.stderr
    assert "Traceback" not in too_long.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of Windows are no files")
def test_the_lines_may_come_by_a_pipe(unix_socket: str) -> None:
    assert run("redis_client", "--unix", unix_socket, lines="PING" + os.linesep).stdout == "PONG\n"
