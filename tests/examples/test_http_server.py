"""``http_server.py``, asked by curl, by wrk, by the standard library, and by sockets that do not keep the rules."""

import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest

from tests.examples.conftest import Certificates
from tests.examples.programs import PATIENCE, Program, require, started
from tests.support.loopback import resets_at_close

pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture
def server() -> Iterator[Program]:
    """The server; at the end it has complained of nothing."""
    with started("http_server") as program:
        yield program
        assert program.stop() == "Stopped\n"
        assert program.errors() == ""


@contextmanager
def connected(server: Program) -> Iterator[socket.socket]:
    with socket.create_connection(server.address, PATIENCE) as sock:
        yield sock


def exchange(server: Program, data: bytes) -> bytes:
    """What comes back for these bytes, all of which the server takes, until it ends the connection."""
    with connected(server) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(65536), b""))


def becomes_refused(server: Program) -> bool:
    """Whether the server stops listening."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            socket.create_connection(server.address, PATIENCE).close()
        except OSError:
            return True
    return False


def head_of(answer: bytes) -> str:
    return answer.partition(b"\r\n\r\n")[0].decode("latin-1")


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"^HTTP/1\.1 (\d+) ", answers, re.MULTILINE)]


# ----------------------------------------------------------------------------------------------------------------- curl


def curl(*args: str, data: bytes = b"") -> bytes:
    result = subprocess.run(
        [require("curl"), "--silent", "--show-error", "--max-time", str(PATIENCE), *args],
        input=data, capture_output=True, timeout=2 * PATIENCE, check=True,
    )  # fmt: skip
    assert result.stderr == b""
    return result.stdout


def test_curl_gets_what_it_asks_for_over_one_connection(server: Program) -> None:
    url = server.url
    report = ["--write-out", '{"status": %{http_code}, "connects": %{num_connects}}\n']
    body = os.urandom(1 << 20)
    chunked = ["--header", "Transfer-Encoding: chunked", "--header", "Expect: 100-continue"]
    output = curl(
        url + "/", *report,
        "--next", "--head", *report, "--silent", url + "/count",
        "--next", *report, "--silent", url + "/count",
        "--next", *report, "--silent", url + "/nothing",
        "--next", *report, "--silent", "--request", "DELETE", url + "/",
        "--next", *report, "--silent", "--data-binary", "12345", *chunked, url + "/echo",
    ).decode()  # fmt: skip
    assert output.startswith("Hello, world!\n")
    assert "".join(f"{number}\n" for number in range(1, 11)) in output
    assert "12345" in output
    reports = [json.loads(line) for line in re.findall(r"\{.*\}", output)]
    assert [report["status"] for report in reports] == [200, 200, 200, 404, 405, 200]
    assert [report["connects"] for report in reports] == [1, 0, 0, 0, 0, 0]
    assert curl("--data-binary", "@-", url + "/echo", data=body) == body


def test_curl_is_told_before_it_sends_that_a_body_is_too_large(server: Program) -> None:
    report = ["--output", os.devnull, "--write-out", "%{http_code} %{size_upload}"]
    body = bytes(3 << 20)
    wait = ["--header", "Expect: 100-continue", "--expect100-timeout", str(PATIENCE)]
    assert curl("--data-binary", "@-", *wait, *report, server.url + "/echo", data=body) == b"413 0"
    assert curl("--data-binary", "@-", *wait, *report, server.url + "/nothing", data=body[:99]) == b"404 0"


def test_curl_speaks_https(certificates: Certificates) -> None:
    with started("http_server", "--certificate", certificates.server) as server:
        trust = ["--cacert", certificates.authority]
        assert server.url.startswith("https://")
        assert curl(*trust, server.url + "/") == b"Hello, world!\n"
        body = os.urandom(300_000)
        assert curl(*trust, "--data-binary", "@-", server.url + "/echo", data=body) == body
        assert statuses(exchange(server, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")) == []  # plain text to a TLS port
        assert curl(*trust, server.url + "/") == b"Hello, world!\n"
        assert server.stop() == "Stopped\n"
        assert server.errors() == ""


# ----------------------------------------------------------------------------------------------------------------- load


def test_wrk_gets_nothing_but_answers(server: Program) -> None:
    result = subprocess.run(
        [require("wrk"), "--threads", "1", "--connections", "30", "--duration", "1s", server.url + "/"],
        capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    assert "Socket errors" not in result.stdout
    assert "Non-2xx" not in result.stdout
    requests = re.search(r"(\d+) requests in", result.stdout)
    assert requests is not None, result.stdout
    assert int(requests[1]) > 30


def test_many_clients_of_the_standard_library_get_their_own_answers(server: Program) -> None:
    def ask(client: int) -> None:
        with closing(http.client.HTTPConnection(*server.address, timeout=PATIENCE)) as connection:
            for number in range(10):
                body = f"{client} {number} ".encode() * (number * 500)
                connection.request("POST", "/echo", body if number % 2 else iter([body[:9], body[9:]]))
                with connection.getresponse() as response:
                    assert (response.status, response.read()) == (200, body)

    with ThreadPoolExecutor(20) as executor:
        list(executor.map(ask, range(20)))


def test_one_client_that_stalls_holds_up_nobody(server: Program) -> None:
    with connected(server) as silent, connected(server) as deaf:
        silent.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345")
        body = bytes(1 << 20)
        post = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        deaf.settimeout(0.2)
        with pytest.raises(TimeoutError):  # it reads no answer, so there comes a time when it can send no more
            deaf.sendall(50 * post)
        with urllib.request.urlopen(server.url + "/", timeout=PATIENCE) as response:
            assert response.read() == b"Hello, world!\n"


# ------------------------------------------------------------------------------------------------------------ the rules


def test_requests_that_are_sent_ahead_are_answered_in_their_order(server: Program) -> None:
    requests = [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /count HTTP/1.1\r\nHost: a\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nfirst\n",
        b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nwrong",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nsecond\n\r\n0\r\n\r\n",
        b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",  # nobody listens to this one any more
    ]
    answers = exchange(server, b"".join(requests))
    assert statuses(answers) == [200, 200, 200, 200, 405, 200, 404, 400, 200]
    assert answers.index(b"Hello") < answers.index(b"10\n") < answers.index(b"first") < answers.index(b"second")


def test_a_request_may_come_byte_by_byte(server: Program) -> None:
    with connected(server) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nConnection: close\r\n\r\nslow":
            sock.sendall(bytes([byte]))
        assert b"".join(iter(lambda: sock.recv(65536), b"")).endswith(b"\r\n\r\nslow")


def test_head_has_the_headers_of_get_and_no_body(server: Program) -> None:
    get = exchange(server, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    head = exchange(server, b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert get.endswith(b"\r\n\r\nHello, world!\n")
    assert head.endswith(b"\r\n\r\n")
    assert [line for line in head_of(head).split("\r\n") if not line.startswith("Date")] == [
        line for line in head_of(get).split("\r\n") if not line.startswith("Date")
    ]


def test_an_older_client_gets_a_body_that_the_end_of_the_connection_ends(server: Program) -> None:
    answer = exchange(server, b"GET /count HTTP/1.0\r\n\r\n")
    assert statuses(answer) == [200]
    assert "chunked" not in head_of(answer)
    assert answer.endswith(b"\r\n\r\n" + b"".join(b"%d\n" % number for number in range(1, 11)))


def test_405_says_what_is_allowed(server: Program) -> None:
    assert "Allow: GET, HEAD" in head_of(exchange(server, b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n"))
    assert "Allow: POST" in head_of(exchange(server, b"HEAD /echo HTTP/1.1\r\nHost: a\r\n\r\n"))


def test_100_comes_once_and_only_where_the_body_is_wanted(server: Program) -> None:
    expecting = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    with connected(server) as sock:
        sock.sendall(expecting % b"/echo")
        assert statuses(sock.recv(65536)) == [100]
        sock.sendall(b"12345")
        assert b"12345" in sock.recv(65536)
    assert statuses(exchange(server, expecting % b"/nothing")) == [404]


BROKEN = {
    "no Host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "nonsense": (400, b"complete nonsense\r\n\r\n"),
    "TLS to a plain port": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)),
    "a negative length": (400, b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n"),
    "a body that is too short": (400, b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nshort"),
    "a broken chunk": (400, b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "an unknown coding": (501, b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n"),
    "a body that is too long": (413, b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1048577\r\n\r\n"),
    "chunks that are too many": (
        413,
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        + (b"10000\r\n" + bytes(0x10000) + b"\r\n") * 17
        + b"0\r\n\r\n",
    ),
    "a header that is too long": (431, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 50_000 + b"\r\n\r\n"),
    "10 MB without a newline": (431, b"a" * (10 << 20)),
}


def test_what_breaks_the_rules_gets_an_answer_that_says_so(server: Program) -> None:
    for what, (status, request) in BROKEN.items():
        answer = exchange(server, request)
        assert statuses(answer) == [status], what
        assert "Connection: close" in head_of(answer), what


def test_a_client_that_breaks_off_is_no_error(server: Program) -> None:
    for request in (b"", b"GET / HT", b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n12", b"\r\n"):
        with connected(server) as sock:
            sock.sendall(request)
            resets_at_close(sock)
    assert statuses(exchange(server, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")) == [200]


def test_a_bug_is_a_500_and_a_traceback_in_the_log() -> None:
    with started("http_server") as server:
        query = b"GET /inverse?of=%b HTTP/1.1\r\nHost: a\r\n\r\n"
        assert statuses(exchange(server, query % b"0" + query % b"4" + query % b"four")) == [500, 200, 500]
        assert server.stop() == "Stopped\n"
        assert "no answer to GET /inverse" in server.errors()
        assert "ZeroDivisionError" in server.errors()


# --------------------------------------------------------------------------------------------------- limits and the end


def test_time_limits() -> None:
    with started("http_server", "--idle-seconds", "0.2", "--request-seconds", "0.3") as server:
        with connected(server) as idle:
            assert idle.recv(100) == b""
        with connected(server) as idle:
            idle.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            answers = b"".join(iter(lambda: idle.recv(65536), b""))
            assert statuses(answers) == [200]
        for unfinished in (b"GET / HTTP/1.1\r\nHo", b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n12"):
            with connected(server) as slow:
                slow.sendall(unfinished)
                assert statuses(b"".join(iter(lambda: slow.recv(65536), b""))) == [408]
        assert server.stop() == "Stopped\n"
        assert server.errors() == ""


@pytest.mark.skipif(os.name != "posix", reason="Windows has no way to send Ctrl-C to one process")
def test_ctrl_c_lets_requests_finish_and_closes_idle_connections(server: Program) -> None:
    with connected(server) as idle, connected(server) as busy:
        idle.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert statuses(idle.recv(65536)) == [200]
        busy.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert statuses(busy.recv(65536)) == [100]
        server.interrupt()
        assert idle.recv(100) == b""  # closed at once: it had nothing to finish
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(server.address, PATIENCE)
        busy.sendall(b"12345")
        answer = b"".join(iter(lambda: busy.recv(65536), b""))
        assert statuses(answer) == [200]
        assert answer.endswith(b"12345")
        assert "Connection: close" in head_of(answer)
    assert server.end() == "Stopped\n"


@pytest.mark.skipif(os.name != "posix", reason="Windows has no way to send Ctrl-C to one process")
def test_ctrl_c_twice_does_not_wait() -> None:
    with started("http_server") as server, connected(server) as busy:
        busy.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert statuses(busy.recv(65536)) == [100]
        server.interrupt()
        assert becomes_refused(server)
        server.interrupt()
        assert server.end() == "Stopped at once\n"


def test_https_to_a_client_that_does_not_trust_it_is_no_error(certificates: Certificates) -> None:
    with started("http_server", "--certificate", certificates.server) as server:
        context = ssl.create_default_context()
        with connected(server) as sock, pytest.raises(ssl.SSLCertVerificationError):
            context.wrap_socket(sock, server_hostname="localhost")
        assert server.stop() == "Stopped\n"
        assert server.errors() == ""
