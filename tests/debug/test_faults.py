"""Faults that are made on purpose: who asks for them, that they are true, and the same with the same seed."""

import array
import errno
import logging
import os
import re
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE, SelectSelector
from typing import Any

import pytest

import flowno
from flowno import EventLoop, SocketHandle, TaskGroup, current_event_loop, sleep, spawn, wait_readable, wait_writable
from flowno.core.event_loop.exchange import layers
from flowno.debug.faults import KINDS, Faults
from flowno.debug.selector_decorators import CheckSelector, FaultySelector
from flowno.testing import faults, faults_of
from tests.conftest import ROOT, RunPython
from tests.support import wine
from tests.support.counting_selector import CountingSelector
from tests.support.loopback import READS, WRITES, Operation, fill, listening, pair, receive, tcp_pair
from tests.support.tls import tls_pair

HARMLESS = {name: kind.rate for name, kind in KINDS.items() if kind.is_harmless}
POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no such call")
WITH_RESET = pytest.mark.skipif(os.name == "nt", reason="reset cannot be made on Windows")


def run_under(made: Faults, program: Awaitable[Any]) -> Any:
    with made:
        return flowno.run(program)


def test_the_page_about_faults_has_a_row_for_each_kind() -> None:
    page = (ROOT / "docs" / "faults.rst").read_text(encoding="utf-8")
    rows = re.findall(r"\* - ``(\w+)``\n +- (yes|no)\n +- ([\d.]+)\n +- (.*)\n", page)
    assert rows == [
        (name, "yes" if kind.is_harmless else "no", f"{kind.rate:g}", kind.what) for name, kind in KINDS.items()
    ]


# ---------------------------------------------------------------------------------------------------------- who asks


def test_a_seed_alone_makes_the_harmless_kinds_at_their_usual_rates() -> None:
    assert faults(7).rates == HARMLESS


def test_kinds_that_are_named_are_the_only_ones() -> None:
    assert faults(7, short=0.2, enobufs=0.01, late=0).rates == {"short": 0.2, "enobufs": 0.01}


def test_harmless_stands_for_the_harmless_kinds_that_are_not_named() -> None:
    assert faults(7, harmless=0.3, short=0.2, enobufs=1).rates == {
        **dict.fromkeys(HARMLESS, 0.3),
        "short": 0.2,
        "enobufs": 1.0,
    }


def test_the_variable_is_read_when_a_loop_is_made(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWNO_FAULTS", " seed=7, short=0.2 ")
    with EventLoop() as loop:
        made = faults_of(loop)
        assert made is not None
        assert (made.seed, made.rates) == (7, {"short": 0.2})
        assert isinstance(loop.selector, FaultySelector)
        assert repr(loop).startswith("<EventLoop faulty(")
    monkeypatch.delenv("FLOWNO_FAULTS")
    with EventLoop() as loop:
        assert faults_of(loop) is None


NAMES = ", ".join([*KINDS, "harmless"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("seed=7,shrt=0.2", f"no fault is named 'shrt' (did you mean short?); faults: {NAMES}"),
        ("seed=7,shrt=x", f"no fault is named 'shrt' (did you mean short?); faults: {NAMES}"),
        ("seed=7,short", "'short' has no value; it is written as FLOWNO_FAULTS=seed=7,short=0.2"),
        ("7", "'7' has no value; it is written as FLOWNO_FAULTS=seed=7,short=0.2"),
        ("seed=7.5", "the seed is a whole number, or random, not '7.5'"),
        ("seed=7,short=often", "short is a number from 0 to 1, not 'often'"),
        ("seed=7,short=1.5", "short must be from 0 to 1, not 1.5"),
        ("seed=7,short=nan", "short must be from 0 to 1, not nan"),
        ("seed=7,short=0.1,short=0.2", "short is there twice"),
    ],
)
def test_a_value_that_cannot_be_meant_is_an_error_that_says_what_can(
    value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWNO_FAULTS", value)
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # what it says is compared whole
        EventLoop()
    assert str(caught.value) == f"FLOWNO_FAULTS={value}: {message}"


@pytest.mark.parametrize(
    ("rates", "kind", "message"),
    [
        ({"shrt": 1}, ValueError, r"^faults\(\): no fault is named 'shrt' \(did you mean short\?\); faults: short, "),
        ({"short": -1}, ValueError, r"^faults\(\): short must be from 0 to 1, not -1$"),
        ({"short": "1"}, TypeError, r"^faults\(\): short must be a number from 0 to 1, not '1'$"),
        ({"seed": "7"}, TypeError, r"^faults\(\): seed must be an int or None, not '7'$"),
    ],
)
def test_a_wrong_argument_of_faults_is_refused(rates: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        faults(**rates)


@pytest.mark.skipif(os.name != "nt", reason="on other systems it is made")
def test_on_windows_no_reset_can_be_made() -> None:
    with pytest.raises(ValueError, match="reset cannot be made on Windows"):
        faults(7, reset=0.1)


def test_a_seed_that_is_picked_is_logged_and_is_that_of_all_loops(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FLOWNO_FAULTS", "seed=random,late=0.125")
    with EventLoop() as one, EventLoop() as other:
        made = faults_of(one)
        assert made is not None
        assert faults_of(other) is made
    assert caplog.messages == [f"faults are made that FLOWNO_FAULTS=seed={made.seed},late=0.125 makes again"]
    assert caplog.records[0].levelno == logging.WARNING


def test_the_block_beats_the_variable_and_the_inner_block_the_outer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWNO_FAULTS", "seed=1")
    with faults(2) as outer:
        with faults(3) as inner, EventLoop() as loop:
            assert faults_of(loop) is inner
        with EventLoop() as loop:
            assert faults_of(loop) is outer


def test_a_loop_keeps_the_faults_of_the_block_that_it_was_made_in() -> None:
    async def root() -> bytes:
        with pair() as (one, other):
            await one.sendAll(b"four")
            return await other.recv(4)

    with faults(7, byte=1):
        loop = EventLoop()
    with loop:
        assert loop.run_until_complete(root(), join=True) == b"f"


def test_an_error_that_leaves_the_block_says_how_to_repeat_it() -> None:
    async def root() -> None:
        with listening() as listener:
            await listener.accept()

    with pytest.raises(OSError) as caught:  # noqa: PT011  # its number is looked at
        run_under(faults(7, emfile=1), root())
    assert caught.value.errno == errno.EMFILE
    assert caught.value.__notes__ == ["faults were made (emfile 1); FLOWNO_FAULTS=seed=7,emfile=1 makes them again"]


def test_what_is_made_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def root() -> None:
        with pair() as (one, other):
            await one.sendAll(b"ab")
            assert await other.recv(9) == b"a"
            loop = current_event_loop()
            assert loop is not None
            assert faults_of(loop) is made

    made = faults(7, byte=1)
    with caplog.at_level(logging.DEBUG, "flowno.faults"):
        run_under(made, root())
    assert made.injected == {"byte": 2}
    assert [message for message in caplog.messages if message.startswith(("byte", "seed"))] == [
        "byte at sending by socket 1",
        "byte at receiving by socket 2",
        "seed=7,byte=1: byte 2",
    ]


@pytest.mark.parametrize("option", ["-E", "-I"])
def test_it_is_honoured_where_the_environment_is_not_trusted_as_it_loads_no_code_and_opens_no_path(
    option: str, run_python: RunPython
) -> None:
    program = """if True:
        import sys
        sys.path[:] = {path!r}
        import flowno
        with flowno.EventLoop() as loop:
            print(loop)
    """
    result = run_python(
        program.format(path=sys.path),
        options=["-W", "error", option],
        env={"FLOWNO_FAULTS": "seed=7", "FLOWNO_SELECTOR": "select"},
    )
    assert (result.stdout, result.stderr) == ("<EventLoop faulty(select) idle>\n", "")


# ------------------------------------------------------------------------------------------------ free when nobody asks


def test_nothing_is_left_when_the_last_loop_with_faults_is_closed() -> None:
    before = {name: vars(SocketHandle)[name] for name in ("_read_by", "_sendfile", "_take_record")}

    async def root() -> None:
        assert vars(SocketHandle)["_take_record"] is not before["_take_record"]

    with pair() as (one, other):
        with faults(7, byte=1), EventLoop() as loop, EventLoop():
            loop.run_until_complete(root(), join=True)
        assert {name: vars(SocketHandle)[name] for name in before} == before
        assert not [name for _, name in layers if name in before]
        one.socket.send(b"ab")
        assert other.socket.recv(2) == b"ab"


def test_a_socket_has_no_faults_in_a_loop_without_any() -> None:
    async def exchange(one: SocketHandle, other: SocketHandle) -> bytes:
        await one.sendAll(b"ab")
        return await other.recv(2)

    with pair() as (one, other):
        assert run_under(faults(7, byte=1), exchange(one, other)) == b"a"
        with faults(7, byte=1), EventLoop():  # another loop has some meanwhile
            pass
        assert other.socket.recv(1) == b"b"
        assert flowno.run(exchange(one, other)) == b"ab"


def test_a_selector_that_was_passed_in_can_be_passed_in_again() -> None:
    with SelectSelector() as selector, faults(7):
        for _ in range(2):
            loop = EventLoop(selector)
            loop.run_until_complete(sleep(0), join=True)
            loop.close()
        assert not selector.get_map()


def test_a_socket_stays_what_it_was_to_its_program() -> None:
    class Own(socket.socket):
        """With an attribute."""

    async def root() -> None:
        one, other = socket.socketpair()
        other = Own(fileno=other.detach())
        other.name = "own"  # type: ignore[attr-defined]
        shown = repr(other), repr(one)
        with SocketHandle(one) as sender, SocketHandle(other) as receiver:
            await sender.sendAll(b"ab")
            assert await receiver.recv(2) == b"a"
            assert receiver.socket is other
            assert isinstance(other, Own)
            assert other.name == "own"  # type: ignore[attr-defined]
            assert (repr(other), repr(one)) == shown

    run_under(faults(7, byte=1), root())


# ----------------------------------------------------------------------------------------------- every socket has them


async def over(one: SocketHandle, other: SocketHandle) -> bytes:
    """What comes of four bytes in the first receive, where each send and receive is of one byte."""
    await one.sendAll(b"four")
    return await other.recv(4)


async def made_by_flowno() -> bytes:
    one, other = flowno.socketpair()
    with one, other:
        return await over(one, other)


async def made_by_the_program() -> bytes:
    with pair() as (one, other):
        return await over(one, other)


async def accepted() -> bytes:
    with listening() as listener, flowno.socket() as client:
        await flowno.connect(client, listener.getsockname())
        connection, _ = await listener.accept()
        with connection:
            return await over(client, connection)


async def served() -> bytes:
    async def handler(stream: flowno.Stream) -> None:
        while data := await stream.read(4):
            got.append(data)

    got: list[bytes] = []
    async with (
        await flowno.serve_tcp(handler, "127.0.0.1", 0) as server,
        await flowno.open_connection(*server.addresses[0]) as stream,
    ):
        await stream.write(b"four")
        while not got:
            await sleep(0)
    return got[0]


async def duplicated() -> bytes:
    with pair() as (one, other), other.dup() as again:
        return await over(one, again)


@pytest.mark.parametrize("program", [made_by_flowno, made_by_the_program, accepted, served, duplicated])
def test_every_socket_of_a_handle_has_faults(backend: str, program: Callable[[], Awaitable[bytes]]) -> None:
    assert flowno.run(program()) == b"four"
    assert run_under(faults(7, byte=1), program()) == b"f"


def test_a_socket_whose_handle_is_older_than_the_loop_has_faults(backend: str) -> None:
    with pair() as (one, other):
        assert run_under(faults(7, byte=1), over(one, other)) == b"f"


def test_tls_goes_through_them(backend: str, server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    async def root() -> None:
        with tls_pair(server_context, client_context) as (one, other):
            async with TaskGroup() as group:
                await group.spawn(one.sendAll(bytes(5000)))
                assert await receive(other, 5000) == bytes(5000)

    made = faults(7, short=0.5, byte=0.1, eagain=0.5)
    run_under(made, root())
    assert set(made.injected) == {"short", "byte", "eagain"}


# ------------------------------------------------------------------------------------------------------- they are true


def test_a_short_receive_leaves_the_rest_and_a_short_send_does_not_send_it(backend: str) -> None:
    async def root() -> None:
        with pair() as (one, other):
            sent = await one.send(b"0123456789")
            assert 0 < sent < 10
            await sleep(0)
            assert len(other.socket.recv(100, socket.MSG_PEEK)) < 10
            await one.sendAll(b"0123456789"[sent:])
            data = await other.recv(100)
            assert 0 < len(data) < 10
            assert data + await receive(other, 10 - len(data)) == b"0123456789"

    made = faults(7, short=1)
    run_under(made, root())
    assert made.injected["short"] > 4


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("recv", (4,)),
        ("recv_into", (bytearray(4),)),
        ("recvfrom", (4,)),
        ("recvfrom_into", (bytearray(4),)),
        pytest.param("recvmsg", (4,), marks=POSIX),
        pytest.param("recvmsg_into", ([bytearray(2), bytearray(2)],), marks=POSIX),
    ],
)
def test_every_way_to_receive_gives_less_than_there_is_and_leaves_the_rest(
    operation: str, arguments: tuple[Any, ...]
) -> None:
    async def root() -> None:
        sender, receiver = socket.socketpair()
        with sender, SocketHandle(receiver) as handle:
            sender.sendall(b"four")
            received = await getattr(handle, operation)(*arguments)
            first = received[0] if isinstance(received, tuple) else received
            assert first in (1, b"f")
            assert await handle.recv(1) == b"o"

    made = faults(7, byte=1)
    run_under(made, root())
    assert made.injected == {"byte": 1}


def test_what_cannot_be_shorter_is_no_fault() -> None:
    async def root() -> None:
        with pair() as (one, other):
            await one.sendAll(b"x")
            assert await other.recv(100) == b"x"
            one.shutdown(socket.SHUT_WR)
            assert await other.recv(100) == b""

    made = faults(7, short=1)
    run_under(made, root())
    assert not made.injected


def test_a_datagram_is_never_cut(backend: str) -> None:
    async def root() -> None:
        with flowno.socket(type=socket.SOCK_DGRAM) as one, flowno.socket(type=socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", 0))
            for _ in range(10):
                assert await one.sendto(b"0123456789", other.getsockname()) == 10
                assert (await other.recvfrom(100))[0] == b"0123456789"

    made = faults(7, short=1, byte=1, eagain=0.5)
    run_under(made, root())
    assert set(made.injected) == {"eagain"}


def test_eagain_is_followed_by_readiness_however_often_it_comes(backend: str) -> None:
    async def root() -> None:
        with pair() as (one, other):
            for _ in range(10):
                await one.sendAll(b"x")
                assert await other.recv(1) == b"x"

    made = faults(7, eagain=1)
    run_under(made, root())
    assert 20 <= made.injected["eagain"] <= 80


@POSIX
def test_descriptors_come_with_the_first_byte_of_what_is_cut() -> None:
    async def root() -> None:
        one, other = flowno.socketpair()
        with one, other:
            assert await one.sendmsg([b"", b"01"]) == 1
            await other.recv(1)
            await one.send_fds([b"01234", b"", b"56789"], [one.fileno()])
            data, fds, _, _ = await other.recv_fds(100, 1)
            assert data == b"0"
            assert len(fds) == 1
            os.close(fds[0])
            await one.send(b"12")
            buffers = bytearray(2), bytearray(2)
            assert (await other.recvmsg_into(buffers))[0] == 1
            assert buffers[0] == b"1\0"

    run_under(faults(7, byte=1), root())


@POSIX
def test_a_file_is_sent_in_pieces(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(array.array("I", range(5000)).tobytes())

    async def root() -> None:
        with pair() as (one, other), open(path, "rb") as file:
            sending = await spawn(one.sendfile(file))
            assert await receive(other, 20_000) == path.read_bytes()
            assert await sending.join() == 20_000

    made = faults(7, short=0.9, eagain=0.5)
    run_under(made, root())
    assert made.injected["short"]


@pytest.mark.skipif(not hasattr(os, "sendfile"), reason="this system sends files as other data")
def test_the_system_sends_a_file_byte_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"four")

    async def root() -> None:
        receiver, sender = socket.socketpair()
        with receiver, SocketHandle(sender) as handle, open(path, "rb") as file:
            assert await handle.sendfile(file, 0, 4) == 4
            assert receiver.recv(9) == b"four"

    made = faults(7, byte=1)
    run_under(made, root())
    assert made.injected == {"byte": 3}  # the last one cannot be less


@WITH_RESET
@pytest.mark.parametrize(
    ("make", "operations"),
    [(tcp_pair, [WRITES["sendAll"]]), (tcp_pair, [READS["recv"]]), (pair, [WRITES["sendAll"], READS["recv"]])],
    ids=["TCP, sending", "TCP, receiving", "Unix"],
)
def test_a_reset_is_one_for_both_ends_and_in_both_directions(
    backend: str, make: Callable[[], Any], operations: list[Operation]
) -> None:
    """A Unix socket says EPIPE to who sends, and ECONNRESET then to who receives; TCP says it to whoever is first."""

    async def root() -> None:
        with make() as (one, other):
            other.socket.send(b"to be lost")
            for operation in operations:
                with pytest.raises(ConnectionError):
                    await operation(one)
            assert one.fileno() >= 0
            assert await one.recv(9) == b""  # the error is told once, and then there is the end
            with pytest.raises(BrokenPipeError):
                await one.send(b"data")
            await wait_readable(other.socket)
            with pytest.raises(ConnectionResetError):
                other.socket.recv(9)

    made = faults(7, reset=1)
    run_under(made, root())
    assert made.injected == {"reset": 1}


@WITH_RESET
def test_a_reset_wakes_who_waits_in_the_other_direction(backend: str) -> None:
    async def root() -> None:
        with tcp_pair() as (one, other):
            reading = await spawn(wait_readable(one))
            with pytest.raises(ConnectionResetError):
                await one.send(b"data")
            await reading.join()
        with tcp_pair() as (one, other):
            fill(other)
            writing = await spawn(wait_writable(other))
            with pytest.raises(ConnectionResetError):
                await other.recv(9)
            await writing.join()

    run_under(faults(7, reset=1), root())


async def connect_and_receive(client: SocketHandle, listener: SocketHandle) -> bytes:
    await flowno.connect(client, listener.getsockname())
    return await client.recv(1)


@wine.takes_a_reset_for_an_end
def test_an_aborted_connection_is_passed_over_and_its_peer_sees_that_it_is_gone(backend: str) -> None:
    async def root() -> None:
        with listening() as listener:
            accepting = await spawn(listener.accept())
            for _ in range(3):
                with flowno.socket() as client, pytest.raises(ConnectionError):
                    await connect_and_receive(client, listener)
            assert not accepting.done()
            accepting.cancel()

    made = faults(7, aborted=1)
    run_under(made, root())
    assert made.injected["aborted"] == 3


@pytest.mark.parametrize(
    ("kind", "code"), [("emfile", errno.EMFILE), ("enfile", errno.ENFILE), ("enobufs", errno.ENOBUFS)]
)
def test_a_connection_for_which_there_is_no_room_stays_for_the_next_accept(backend: str, kind: str, code: int) -> None:
    async def root() -> None:
        with listening() as listener, flowno.socket() as client:
            await flowno.connect(client, listener.getsockname())
            with pytest.raises(OSError) as caught:  # noqa: PT011  # its number is looked at
                await listener.accept()
            assert caught.value.errno == code
            made.rates.clear()
            connection, address = await listener.accept()
            with connection:
                assert address == client.getsockname()

    made = faults(7, **{kind: 1})
    run_under(made, root())


def test_no_memory_for_buffers_sends_nothing() -> None:
    async def root() -> None:
        with pair() as (one, other):
            with pytest.raises(OSError) as caught:  # noqa: PT011  # its number is looked at
                await one.sendAll(b"data")
            assert caught.value.errno == errno.ENOBUFS
            with pytest.raises(BlockingIOError):
                other.socket.recv(1)

    run_under(faults(7, enobufs=1), root())


@pytest.mark.skipif(not hasattr(errno, "EINPROGRESS") or os.name == "nt", reason="no such errno there")
def test_a_connect_that_is_interrupted_goes_on(backend: str) -> None:
    async def root() -> None:
        with listening() as listener, flowno.socket() as client:
            await flowno.connect(client, listener.getsockname())
            connection, _ = await listener.accept()
            connection.close()

    made = faults(7, eintr=1)
    run_under(made, root())
    assert made.injected["eintr"]


# ---------------------------------------------------------------------------------------------------------- selectors


def selector_under(seed: int, **rates: float) -> tuple[CountingSelector, FaultySelector]:
    inner = CountingSelector()
    return inner, FaultySelector(inner, faults=faults(seed, **rates))


@pytest.mark.parametrize("seed", range(5))
def test_the_decorated_selector_keeps_the_rules_of_the_protocol(backend: str, seed: int) -> None:
    inner, faulty = selector_under(seed, harmless=0.7)
    one, other = socket.socketpair()
    with one, other, CheckSelector(faulty) as selector:
        selector.register(one, EVENT_READ)
        one.send(b"x")
        selector.register(other, EVENT_READ | EVENT_WRITE)
        for number in range(300):
            if number % 7 == 0:
                selector.modify(one, EVENT_READ | EVENT_WRITE * (number % 2))
            try:
                selector.select((0, 0.0001, None)[number % 3])
            except InterruptedError:
                pass
        selector.unregister(one)
        selector.unregister(other)
    assert set(faulty.faults.injected) == {"late", "split", "reordered", "spurious", "early", "eintr"}
    assert inner.masks == {}


def test_what_is_late_comes_with_one_of_the_next_three_reports() -> None:
    _, faulty = selector_under(7, late=1)
    one, other = socket.socketpair()
    with one, other, faulty as selector:
        key = selector.register(one, EVENT_WRITE)
        reports = [selector.select(0) for _ in range(100)]
        assert all(report in ([], [(key, EVENT_WRITE)]) for report in reports)
        assert [] not in [[*reports[at], *reports[at + 1], *reports[at + 2], *reports[at + 3]] for at in range(90)]
        assert [] in reports


def test_a_wait_reports_what_is_late_where_nothing_else_comes() -> None:
    inner, faulty = selector_under(7, late=1)
    one, other = socket.socketpair()
    with one, other, faulty as selector:
        key = selector.register(one, EVENT_WRITE)
        for _ in range(20):
            assert selector.select(None) == [(key, EVENT_WRITE)]
        assert inner.calls["select"] > 20


def test_both_directions_are_reported_though_one_after_the_other() -> None:
    _, faulty = selector_under(7, split=1)
    one, other = socket.socketpair()
    with one, other, faulty as selector:
        other.send(b"x")
        key = selector.register(one, EVENT_READ | EVENT_WRITE)
        first, second = selector.select(0), selector.select(0)
        assert first in ([(key, EVENT_READ)], [(key, EVENT_WRITE)])
        assert second == [(key, EVENT_READ | EVENT_WRITE)]


def test_a_false_alarm_is_for_what_is_registered_and_for_nothing_else() -> None:
    _, faulty = selector_under(7, spurious=1)
    one, other = socket.socketpair()
    with one, other, faulty as selector:
        assert selector.select(0) == []
        key = selector.register(one, EVENT_READ)
        assert selector.select(None) == [(key, EVENT_READ)]
        selector.unregister(one)
        assert selector.select(0) == []


@pytest.mark.parametrize("kind", ["early", "eintr"])
def test_at_most_two_waits_in_a_row_end_before_their_time(kind: str) -> None:
    inner, faulty = selector_under(7, **{kind: 1})
    with faulty as selector:
        for _ in range(4):
            for _ in range(2):
                try:
                    assert selector.select(0.001) == []
                except InterruptedError:
                    pass
                assert 0.001 not in inner.timeouts
            assert selector.select(0.001) == []
            assert inner.timeouts[-1] == 0.001
            inner.timeouts.clear()
    assert faulty.faults.injected == {kind: 8}


def test_by_its_name_alone_the_decorator_makes_the_harmless_faults_of_seed_0(monkeypatch: pytest.MonkeyPatch) -> None:
    with EventLoop("faulty(select)") as loop:
        assert isinstance(loop.selector, FaultySelector)
        assert (loop.selector.faults.seed, loop.selector.faults.rates) == (0, HARMLESS)
        assert faults_of(loop) is None  # its sockets have none
    monkeypatch.setenv("FLOWNO_FAULTS", "seed=5")
    with EventLoop("faulty(select)") as loop:
        assert isinstance(loop.selector, FaultySelector)
        assert loop.selector.faults is faults_of(loop)
        assert loop.selector.inner.name == "select"  # type: ignore[attr-defined]  # and not twice


def test_a_wait_without_a_handle_has_the_faults_of_the_selector(backend: str) -> None:
    async def root() -> None:
        one, other = socket.socketpair()
        with one, other:
            one.setblocking(False)
            waiting = await spawn(wait_readable(one))
            for _ in range(200):
                await sleep(0)
            assert waiting.done()
            with pytest.raises(BlockingIOError):
                one.recv(1)

    run_under(faults(7, spurious=0.5), root())


# --------------------------------------------------------------------------------------------------- the same each time


#: A seed decides how many of the bytes that are there are received. By TCP, when they are there is up to the system.
in_the_same_pieces = pytest.mark.skipif(
    not hasattr(socket, "AF_UNIX"), reason="a socketpair is TCP here, whose bytes arrive in other pieces each time"
)


def sizes(seed: int, noise: int = 0) -> list[int]:
    """In which pieces a message comes; ``noise``: how many others use sockets meanwhile."""

    async def disturb(one: SocketHandle, other: SocketHandle) -> None:
        for _ in range(50):
            await one.sendAll(b"ab")
            await receive(other, 2)
            await sleep(0)

    async def root() -> list[int]:
        with pair() as (one, other):
            pieces: list[int] = []
            await one.sendAll(b"")
            await (await spawn(other.recv(1))).cancel()  # these two are the first of the loop
            async with TaskGroup() as group:
                others = [flowno.socketpair() for _ in range(noise)]
                for ends in others:
                    await group.spawn(disturb(*ends))
                for number in range(1, 51):
                    await one.sendAll(bytes(100))
                    while sum(pieces) < 100 * number:
                        pieces.append(len(await other.recv(100)))
                        await sleep(0)
            for ends in others:
                for end in ends:
                    end.close()
            return pieces

    pieces: list[int] = run_under(faults(seed, short=0.5, byte=0.1), root())
    return pieces


@in_the_same_pieces
def test_the_same_seed_makes_the_same_faults_and_another_seed_makes_others(backend: str) -> None:
    assert sizes(7) == sizes(7)
    assert len({tuple(sizes(seed)) for seed in range(5)}) == 5


@in_the_same_pieces
def test_what_others_do_does_not_shift_the_faults_of_a_socket(backend: str) -> None:
    assert sizes(7) == sizes(7, noise=3)


def test_connections_have_faults_by_the_order_in_which_they_were_accepted() -> None:
    async def root() -> list[str]:
        with listening() as listener:
            for _ in range(2):
                with flowno.socket() as client:
                    await flowno.connect(client, listener.getsockname())
                    connection, _ = await listener.accept()
                    with connection:
                        await over(client, connection)
        return []

    made = faults(7, byte=1)
    places: list[str] = []
    made.record = lambda kind, where: places.append(where)  # type: ignore[method-assign]
    run_under(made, root())
    assert [place for place in places if "receiving" in place] == [
        "receiving by connection 1 of socket 2",
        "receiving by connection 2 of socket 2",
    ]


@in_the_same_pieces
def test_a_seed_makes_the_same_in_every_process(run_python: RunPython) -> None:
    program = """if True:
        import flowno
        from flowno.testing import faults_of
        async def main():
            one, other = flowno.socketpair()
            with one, other:
                for _ in range(20):
                    await one.sendAll(bytes(100))
                    left = 100
                    while left:
                        size = len(await other.recv(left))
                        print(size, end=" ")
                        left -= size
        flowno.run(main())
    """
    outputs = {
        run_python(program, env={"FLOWNO_FAULTS": "seed=7,short=0.4", "PYTHONHASHSEED": str(number)}).stdout
        for number in range(2)
    }
    assert len(outputs) == 1
    assert outputs != {"100 " * 20}


def test_ssl_is_not_loaded_for_them(run_python: RunPython) -> None:
    program = "import flowno, sys; flowno.run(flowno.sleep(0)); print('ssl' in sys.modules)"
    result = run_python(program, env={"FLOWNO_FAULTS": "seed=7"})
    assert (result.stdout, result.stderr) == ("False\n", "")
