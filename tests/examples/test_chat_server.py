"""``chat_server.py``: everybody hears everybody, and whoever does not listen holds up nobody."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from typing import BinaryIO

import pytest

from tests.examples.programs import PATIENCE, Program, started

pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture
def server() -> Iterator[Program]:
    with started("chat_server") as program:
        yield program


class Member:
    """Somebody who has come into the room, and has read what is said to them at the door."""

    def __init__(self, server: Program, name: str, *, buffer: int | None = None) -> None:
        self._sock = socket.socket()
        self._sock.settimeout(PATIENCE)
        if buffer is not None:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self._sock.connect(server.address)
        self._file: BinaryIO = self._sock.makefile("rb")
        assert self.hear() == "What is your name?"
        self.say(name)
        self.present = self.hear()

    def hear(self) -> str:
        return self._file.readline().decode().removesuffix("\n")

    def say(self, *lines: str) -> None:
        self._sock.sendall("".join(f"{line}\n" for line in lines).encode())

    def __enter__(self) -> "Member":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._sock.close()


def test_everybody_hears_what_is_said_and_who_comes_and_goes(server: Program) -> None:
    with Member(server, "Ann") as ann:
        assert ann.present == "* nobody is here"
        with Member(server, "Bob") as bob:
            assert bob.present == "* Ann is here"
            assert ann.hear() == "* Bob has come"
            ann.say("Hello!", "How are you?")
            assert [bob.hear(), bob.hear()] == ["Ann: Hello!", "Ann: How are you?"]
            bob.say("F\xfcr dich: \x1b[31mrot\x07")
            assert ann.hear() == "Bob: F\xfcr dich: [31mrot"
            with Member(server, "Ann") as other:
                assert other.present == "Somebody has that name already."
                assert other.hear() == ""
        assert ann.hear() == "* Bob has left"
    assert server.readline() == "Ann has come\n"
    assert server.readline() == "Bob has come\n"
    assert server.readline() == "Bob has left\n"
    assert server.readline() == "Ann has left\n"
    assert server.stop() == "Stopped\n"
    assert server.errors() == ""


def test_whoever_does_not_read_is_sent_away_and_holds_up_nobody(server: Program) -> None:
    with Member(server, "Ann") as ann, Member(server, "Bob") as bob, Member(server, "Deaf", buffer=4096) as deaf:
        assert [ann.hear(), ann.hear(), bob.hear()] == ["* Bob has come", "* Deaf has come", "* Deaf has come"]
        heard = number = 0
        left = False
        while not left:  # as much as the buffers between the server and Deaf hold, and its queue
            ann.say(*(f"{number + more:0900}" for more in range(50)))
            number += 50
            assert number < 100_000, "nobody was sent away"
            while heard < number and not left:
                line = bob.hear()
                if line == "* Deaf has left":
                    left = True
                else:
                    assert line == f"Ann: {heard:0900}"
                    heard += 1
        while heard < number:
            assert bob.hear() == f"Ann: {heard:0900}"
            heard += 1
        assert ann.hear() == "* Deaf has left"
        assert deaf.present == "* Ann, Bob is here"
        output = [server.readline() for _ in range(4)]
        assert output[-1] == "Deaf is too slow\n"


def test_a_line_that_is_too_long_ends_the_connection_of_its_sender(server: Program) -> None:
    with Member(server, "Ann") as ann:
        with Member(server, "Bob") as bob:
            assert ann.hear() == "* Bob has come"
            try:
                bob.say("x" * (10 << 20))
            except OSError:
                pass  # the server has had enough
            assert ann.hear() == "* Bob has left"
        ann.say("I am still here")
        with Member(server, "Eve") as eve:
            assert eve.present == "* Ann is here"


def test_all_hear_the_same_in_the_same_order(server: Program) -> None:
    with ExitStack() as stack:
        members = [stack.enter_context(Member(server, f"member {number}")) for number in range(20)]
        for member in members:
            member.say("one", "two", "three")
        heard = [list(islice(filter(is_said, iter(member.hear, "")), 3 * 19)) for member in members]
    everything = {f"member {number}: {line}" for number in range(20) for line in ("one", "two", "three")}
    for number, lines in enumerate(heard):
        own = f"member {number}: "
        assert {*lines} == {line for line in everything if not line.startswith(own)}
        assert [line for line in lines if not line.startswith("member 0: ")] == [
            line for line in heard[0] if not line.startswith(own)
        ]


def is_said(line: str) -> bool:
    return not line.startswith("* ")
