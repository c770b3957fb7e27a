"""What is reported as ready, and what is not: level-triggered, within the interest, all of it at once."""

import os
import selectors
import signal
import socket
import threading
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

import pytest

from tests.backends.conftest import MakePair, Pair, Pipe, drain, fill, posix, ready_fds, reset

BOTH = EVENT_READ | EVENT_WRITE


def test_readable_only_while_there_is_data(selector: Any, pair: Pair) -> None:
    ours, peer = pair
    selector.register(ours, EVENT_READ)
    assert selector.select(0) == []
    peer.send(b"two")
    for _ in range(3):  # level-triggered: until it is drained
        assert ready_fds(selector.select(0)) == {ours.fileno(): EVENT_READ}
    ours.recv(1)
    assert ready_fds(selector.select(0)) == {ours.fileno(): EVENT_READ}
    drain(ours)
    assert selector.select(0) == []


def test_writable_only_while_there_is_room(selector: Any, pair: Pair) -> None:
    ours, peer = pair
    selector.register(ours, EVENT_WRITE)
    assert ready_fds(selector.select(0)) == {ours.fileno(): EVENT_WRITE}
    fill(ours)
    assert selector.select(0) == []
    drain(peer)
    assert ready_fds(selector.select(0)) == {ours.fileno(): EVENT_WRITE}


def test_both_directions_are_seen_in_one_call(selector: Any, pair: Pair) -> None:
    ours, peer = pair
    selector.register(ours, BOTH)
    peer.send(b"x")
    assert ready_fds(selector.select(0)) == {ours.fileno(): BOTH}


def test_only_the_direction_that_is_ready_is_reported(selector: Any, pair: Pair) -> None:
    ours, peer = pair
    selector.register(ours, BOTH)
    assert ready_fds(selector.select(0)) == {ours.fileno(): EVENT_WRITE}
    fill(ours)
    peer.send(b"x")
    assert ready_fds(selector.select(0)) == {ours.fileno(): EVENT_READ}


def test_only_the_direction_that_is_asked_for_is_reported(selector: Any, pair: Pair) -> None:
    ours, peer = pair
    peer.send(b"x")
    selector.register(ours, EVENT_WRITE)
    assert ready_fds(selector.select(0)) == {ours.fileno(): EVENT_WRITE}
    selector.modify(ours, EVENT_READ)
    assert ready_fds(selector.select(0)) == {ours.fileno(): EVENT_READ}


def test_a_changed_interest_holds_at_once(selector: Any, pair: Pair) -> None:
    ours, peer = pair
    peer.send(b"x")
    fd = ours.fileno()
    selector.register(ours, EVENT_READ)
    for events in (EVENT_WRITE, BOTH, EVENT_READ, BOTH, EVENT_WRITE, EVENT_READ):
        selector.modify(ours, events)
        assert ready_fds(selector.select(0)) == {fd: events}


def test_what_was_removed_is_not_reported(selector: Any, make_pair: MakePair) -> None:
    pairs = [make_pair() for _ in range(3)]
    for ours, peer in pairs:
        selector.register(ours, EVENT_READ)
        peer.send(b"x")
    selector.unregister(pairs[1][0])
    assert ready_fds(selector.select(0)) == {pairs[0][0].fileno(): EVENT_READ, pairs[2][0].fileno(): EVENT_READ}


def test_a_closed_peer_makes_readable(selector: Any, pair: Pair) -> None:
    ours, peer = pair
    selector.register(ours, EVENT_READ)
    peer.close()
    assert ready_fds(selector.select(5)) == {ours.fileno(): EVENT_READ}
    assert ours.recv(1) == b""
    assert ready_fds(selector.select(0)) == {ours.fileno(): EVENT_READ}


def test_the_data_before_an_end_of_file_can_be_read(selector: Any, tcp_pair: Pair) -> None:
    ours, peer = tcp_pair
    selector.register(ours, EVENT_READ)
    peer.send(b"last words")
    peer.close()
    assert ready_fds(selector.select(5)) == {ours.fileno(): EVENT_READ}
    assert ours.recv(100) == b"last words"
    assert ready_fds(selector.select(5)) == {ours.fileno(): EVENT_READ}
    assert ours.recv(100) == b""


def test_a_half_closed_peer_is_no_reason_to_write(selector: Any, tcp_pair: Pair) -> None:
    ours, peer = tcp_pair
    fill(ours)
    selector.register(ours, BOTH)
    peer.shutdown(socket.SHUT_WR)
    assert ready_fds(selector.select(5)) == {ours.fileno(): EVENT_READ}


@pytest.mark.parametrize("events", [EVENT_READ, EVENT_WRITE, BOTH])
def test_a_reset_is_reported_as_the_registered_interest(selector: Any, tcp_pair: Pair, events: int) -> None:
    ours, peer = tcp_pair
    fill(ours)
    selector.register(ours, events)
    reset(peer)
    seen = 0
    while seen != events:  # not necessarily in the same call
        ready = ready_fds(selector.select(5))
        assert set(ready) == {ours.fileno()}
        seen |= ready[ours.fileno()]


@posix
@pytest.mark.parametrize("events", [EVENT_READ, EVENT_WRITE, BOTH])
def test_a_hang_up_is_reported_as_the_registered_interest(selector: Any, pair: Pair, events: int) -> None:
    ours, peer = pair
    fill(ours)
    selector.register(ours, events)
    peer.close()
    assert ready_fds(selector.select(5)) == {ours.fileno(): events}


@posix
def test_a_pipe_without_writer_is_readable(selector: Any, pipe: Pipe) -> None:
    selector.register(pipe.reader, EVENT_READ)
    assert selector.select(0) == []
    pipe.close_writer()
    assert ready_fds(selector.select(5)) == {pipe.reader: EVENT_READ}


@posix
@pytest.mark.parametrize("events", [EVENT_READ, EVENT_WRITE, BOTH])
def test_a_pipe_that_loses_its_reader_is_reported(selector: Any, pipe: Pipe, events: int) -> None:
    selector.register(pipe.writer, events)
    pipe.close_reader()
    assert ready_fds(selector.select(5)) == {pipe.writer: events}


@posix
@pytest.mark.parametrize("events", [EVENT_WRITE, BOTH])
def test_a_pipe_without_reader_can_be_registered_and_is_reported(selector: Any, pipe: Pipe, events: int) -> None:
    pipe.close_reader()
    selector.register(pipe.writer, events)
    for _ in range(2):
        assert ready_fds(selector.select(None)) == {pipe.writer: events}
    selector.modify(pipe.writer, EVENT_WRITE, "data")
    assert [key.data for key, _ in selector.select(None)] == ["data"]
    selector.unregister(pipe.writer)
    assert selector.select(0) == []


def test_a_refused_connect_is_writable(selector: Any) -> None:
    with socket.socket() as closed, socket.socket() as client:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can have the port
        client.setblocking(False)
        client.connect_ex(closed.getsockname())
        selector.register(client, EVENT_WRITE)
        assert ready_fds(selector.select(5)) == {client.fileno(): EVENT_WRITE}
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


def test_a_listening_socket_is_readable_while_connections_wait(selector: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        selector.register(server, EVENT_READ)
        assert selector.select(0) == []
        with socket.create_connection(server.getsockname()):
            assert ready_fds(selector.select(5)) == {server.fileno(): EVENT_READ}
            server.accept()[0].close()
            assert selector.select(0) == []


def test_datagrams_make_readable(selector: Any) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as ours, socket.socket(type=socket.SOCK_DGRAM) as peer:
        ours.bind(("127.0.0.1", 0))
        selector.register(ours, EVENT_READ)
        peer.sendto(b"", ours.getsockname())
        assert ready_fds(selector.select(5)) == {ours.fileno(): EVENT_READ}


@posix
@pytest.mark.only("epoll", "poll", "select")  # kqueue on a terminal: fails on macOS before 10.7
def test_a_terminal_is_readable(selector: Any) -> None:
    master, terminal = os.openpty()
    try:
        selector.register(master, EVENT_READ)
        os.write(terminal, b"typed")
        assert ready_fds(selector.select(5)) == {master: EVENT_READ}
    finally:
        os.close(master)
        os.close(terminal)


def test_all_that_is_ready_comes_in_one_call(selector: Any, make_pair: MakePair) -> None:
    expected: dict[int, int] = {}
    for _ in range(100):
        ours, peer = make_pair()
        peer.send(b"x")
        selector.register(ours, BOTH)
        selector.register(peer, EVENT_WRITE)
        expected |= {ours.fileno(): BOTH, peer.fileno(): EVENT_WRITE}
    assert ready_fds(selector.select(0)) == expected


def test_an_event_in_another_thread_ends_a_wait_without_limit(selector: Any, pair: Pair) -> None:
    ours, peer = pair
    selector.register(ours, EVENT_READ)
    thread = threading.Timer(0.01, peer.send, [b"x"])
    thread.start()
    try:
        assert ready_fds(selector.select()) == {ours.fileno(): EVENT_READ}
    finally:
        thread.join()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
class TestSignals:
    class Interrupted(Exception):
        pass

    def test_a_handler_that_raises_ends_the_wait(self, selector: Any, pair: Pair) -> None:
        def handler(*_: object) -> None:
            raise self.Interrupted

        selector.register(pair[0], EVENT_READ)
        before = signal.signal(signal.SIGALRM, handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            with pytest.raises(self.Interrupted):
                selector.select(30)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        pair[1].send(b"x")
        assert ready_fds(selector.select(0)) == {pair[0].fileno(): EVENT_READ}

    def test_a_handler_that_returns_does_not(self, selector: Any, pair: Pair) -> None:
        ours, peer = pair
        selector.register(ours, EVENT_READ)
        calls: list[None] = []

        def handler(*_: object) -> None:
            calls.append(None)
            if len(calls) == 3:
                peer.send(b"x")

        before = signal.signal(signal.SIGALRM, handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
            assert ready_fds(selector.select(30)) == {ours.fileno(): EVENT_READ}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert len(calls) >= 3


def test_the_contract_s_events_are_those_of_the_standard_library(selector: Any, pair: Pair) -> None:
    selector.register(pair[0], selectors.EVENT_WRITE)
    [(key, events)] = selector.select(0)
    assert type(key) is selectors.SelectorKey
    assert events == selectors.EVENT_WRITE
