"""``dns_exchange.py``: both ends against each other, against dnspython's own, and against datagrams that are wrong."""

import importlib.util
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.query
import dns.rcode
import pytest

from tests.examples.programs import EXAMPLES, PATIENCE, Program, run, started

pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture
def server() -> Iterator[Program]:
    with program() as server:
        yield server
        assert server.stop() == "Stopped\n"
        assert server.errors() == ""


@contextmanager
def program() -> Iterator[Program]:
    # The action comes before the options.
    with started("dns_exchange", "serve") as server:
        yield server


def ask(server: Program, *question: str) -> list[str]:
    result = run("dns_exchange", "ask", "--host", server.host, "--port", str(server.port), *question)
    assert result.stderr == ""
    return result.stdout.splitlines()


def query(server: Program, message: dns.message.Message) -> dns.message.Message:
    """What dnspython gets."""
    return dns.query.udp(message, server.host, timeout=PATIENCE, port=server.port)


def test_the_pair_talks_to_each_other(server: Program) -> None:
    flags, *records = ask(server, "www.example.test")
    assert flags == "NOERROR QR AA RD"
    assert sorted(records) == ["www.example.test. 300 IN A 192.0.2.1", "www.example.test. 300 IN A 192.0.2.2"]
    assert ask(server, "ftp.example.test", "AAAA") == [
        "NOERROR QR AA RD",
        "ftp.example.test. 300 IN CNAME www.example.test.",
        "www.example.test. 300 IN AAAA 2001:db8::1",
    ]
    assert ask(server, "nothing.example.test") == ["NXDOMAIN QR AA RD"]


def test_dnspython_understands_the_server(server: Program) -> None:
    answers = {
        ("www.example.test.", "A"): (dns.rcode.NOERROR, 1, 0),
        ("www.example.test.", "MX"): (dns.rcode.NOERROR, 0, 1),
        ("www.example.test.", "ANY"): (dns.rcode.NOERROR, 0, 1),
        ("nothing.example.test.", "A"): (dns.rcode.NXDOMAIN, 0, 1),
        ("example.org.", "A"): (dns.rcode.REFUSED, 0, 0),
    }
    for (name, kind), (rcode, answer, authority) in answers.items():
        response = query(server, dns.message.make_query(name, kind))
        assert (response.rcode(), len(response.answer), len(response.authority)) == (rcode, answer, authority), name
    update = dns.message.make_query("www.example.test.", "A")
    update.set_opcode(dns.opcode.STATUS)
    assert query(server, update).rcode() == dns.rcode.NOTIMP


def test_what_does_not_fit_is_cut_off_and_that_is_said(server: Program) -> None:
    plain = query(server, dns.message.make_query("large.example.test.", "TXT"))
    assert plain.flags & dns.flags.TC
    assert len(plain.to_wire()) <= 512
    extended = query(server, dns.message.make_query("large.example.test.", "TXT", use_edns=0, payload=4096))
    assert not extended.flags & dns.flags.TC
    assert len(extended.answer) == 1


def test_datagrams_that_are_wrong_disturb_nobody(server: Program) -> None:
    good = dns.message.make_query("www.example.test.", "A", use_edns=0).to_wire()
    random_ = random.Random(1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(server.address)
        for ignored in (b"", b"short", good[:2] + b"\x80" + good[3:]):  # nothing, no header, an answer: no answer
            sock.send(ignored)
        sock.send(good[:-5])
        response = dns.message.from_wire(sock.recv(65535))
        assert (response.id, response.rcode()) == (int.from_bytes(good[:2], "big"), dns.rcode.FORMERR)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:  # which is gone when the answers come
        for _ in range(300):
            wire = bytearray(good)
            for _ in range(random_.randrange(1, 5)):
                wire[random_.randrange(len(wire))] = random_.randrange(256)
            sock.sendto(wire, server.address)
    assert ask(server, "ns.example.test")[1:] == ["ns.example.test. 300 IN A 127.0.0.1"]


def example() -> Any:
    spec = importlib.util.spec_from_file_location("dns_exchange", EXAMPLES / "dns_exchange.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_bytes_make_the_server_fail() -> None:
    answer_to: Callable[[bytes], bytes | None] = example().answer_to
    queries = [
        dns.message.make_query(name, kind, use_edns=edns).to_wire()
        for name, kind, edns in (("www.example.test.", "A", 0), ("ftp.example.test.", "AAAA", -1))
    ]
    random_ = random.Random(2)
    for _ in range(2000):
        wire = bytearray(random_.choice(queries))
        for _ in range(random_.randrange(1, 5)):
            wire[random_.randrange(len(wire))] = random_.randrange(256)
        answer = answer_to(bytes(wire[: random_.choice((len(wire), random_.randrange(len(wire))))]))
        assert answer is None or len(answer) >= 12


@contextmanager
def answering(*answers: Callable[[bytes], list[bytes]]) -> Iterator[int]:
    """A server that sends to each question what the next of these functions says; yields its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(PATIENCE)

        def serve() -> None:
            for answer in answers:
                wire, client = sock.recvfrom(65535)
                for datagram in answer(wire):
                    sock.sendto(datagram, client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            thread.join()


def right(wire: bytes) -> list[bytes]:
    return [dns.message.make_response(dns.message.from_wire(wire)).to_wire()]


def wrong(wire: bytes) -> list[bytes]:
    """What a client must not take for its answer: junk, another id, another question; and then what it must."""
    query = dns.message.from_wire(wire)
    forged = dns.message.make_response(query)
    forged.set_rcode(dns.rcode.NXDOMAIN)
    forged.id ^= 1
    other = dns.message.make_response(dns.message.make_query("other.test.", "A", id=query.id))
    other.set_rcode(dns.rcode.NXDOMAIN)
    return [b"junk", forged.to_wire(), other.to_wire(), *right(wire)]


def lost(wire: bytes) -> list[bytes]:
    return []


def test_the_client_asks_again_and_takes_only_what_answers_its_question() -> None:
    with answering(lost, wrong) as port:
        result = run("dns_exchange", "ask", "--port", str(port), "--seconds", "0.1", "name.test")
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith("NOERROR QR")


def test_the_client_gives_up_and_says_so() -> None:
    with answering(lost, lost, lost) as port:
        result = run("dns_exchange", "ask", "--port", str(port), "--seconds", "0.05", "name.test")
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr == f"TimeoutError: 127.0.0.1 port {port} has not answered 3 questions\n"


def test_the_client_says_what_is_wrong_with_a_question(free_port: int) -> None:
    for question in (["a..b"], ["name.test", "NONSENSE"]):
        result = run("dns_exchange", "ask", "--port", str(free_port), *question)
        assert (result.returncode, result.stdout) == (1, "")
        assert "Traceback" not in result.stderr
