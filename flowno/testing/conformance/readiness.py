"""What is reported as ready, and what is not: level-triggered, within the interest, all of it at once."""

import errno
import os
import socket
from selectors import EVENT_READ, EVENT_WRITE

from .bench import BOTH, PATIENCE, Bench, drain, fill, reset, room_for_descriptors
from .case import Group

READINESS = Group("readiness")
case = READINESS.case

#: More than the 256 or 512 events that a careless call of epoll or kqueue has room for; select(2) takes as many.
_SEVERAL_HUNDRED = 600


# ---------------------------------------------------------------------------------------------------- data and room


@case("result")
def a_result_is_a_list_of_pairs(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.require_reported({})
    bench.selector.register(ours, EVENT_WRITE)
    bench.require_reported({ours.fileno(): EVENT_WRITE})


@case("level")
def data_makes_readable_until_all_of_it_is_read(bench: Bench) -> None:
    ours, peer = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    peer.send(b"two")
    bench.until_ready(ours)
    for _ in range(3):
        bench.require_reported({ours.fileno(): EVENT_READ})
    ours.recv(1)
    bench.require_reported({ours.fileno(): EVENT_READ})


@case("not-ready")
def without_data_nothing_is_readable(bench: Bench) -> None:
    ours, peer = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    bench.require_reported({})
    peer.send(b"x")
    bench.until_ready(ours)
    bench.require_reported({ours.fileno(): EVENT_READ})
    drain(ours)
    bench.require_reported({})


@case("readiness")
def data_from_before_the_registration_is_reported(bench: Bench) -> None:
    ours, peer = bench.pair()
    peer.send(b"x")
    bench.until_ready(ours)
    bench.selector.register(ours, EVENT_READ)
    bench.require_reported({ours.fileno(): EVENT_READ})


@case("level")
def room_makes_writable_as_long_as_there_is_any(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_WRITE)
    for _ in range(3):
        bench.require_reported({ours.fileno(): EVENT_WRITE})
    ours.send(b"x")
    bench.require_reported({ours.fileno(): EVENT_WRITE})


@case("not-ready")
def a_full_buffer_is_not_writable(bench: Bench) -> None:
    ours, _ = bench.pair()
    fill(ours)
    bench.selector.register(ours, EVENT_WRITE)
    bench.require_reported({})


@case("readiness")
def room_in_a_buffer_that_was_full_is_reported(bench: Bench) -> None:
    ours, peer = bench.pair()
    fill(ours)
    bench.selector.register(ours, EVENT_WRITE)
    bench.require_reported({})
    drain(peer)
    bench.until_ready(ours, EVENT_WRITE)
    bench.require_reported({ours.fileno(): EVENT_WRITE})


# ------------------------------------------------------------------------------------------------------- both at once


@case("all-at-once")
def both_directions_come_in_one_result(bench: Bench) -> None:
    ours, peer = bench.pair()
    bench.selector.register(ours, BOTH)
    peer.send(b"x")
    bench.until_ready(ours)
    bench.require_reported({ours.fileno(): BOTH})


@case("not-ready")
def only_the_direction_that_is_ready_is_reported(bench: Bench) -> None:
    ours, peer = bench.pair()
    bench.selector.register(ours, BOTH)
    bench.require_reported({ours.fileno(): EVENT_WRITE})
    fill(ours)
    peer.send(b"x")
    bench.until_ready(ours)
    bench.require_reported({ours.fileno(): EVENT_READ})


@case("reported-events")
def only_the_direction_that_was_asked_for_is_reported(bench: Bench) -> None:
    ours, peer = bench.pair()
    peer.send(b"x")
    bench.until_ready(ours)
    bench.selector.register(ours, EVENT_WRITE)
    bench.require_reported({ours.fileno(): EVENT_WRITE})
    bench.selector.modify(ours, EVENT_READ)
    bench.require_reported({ours.fileno(): EVENT_READ})


@case("reported-twice")
def no_event_is_reported_twice_in_one_result(bench: Bench) -> None:
    ours, peer = bench.pair()
    peer.send(b"xx")
    bench.until_ready(ours)
    bench.selector.register(ours, BOTH)
    for _ in range(2):
        bench.require_reported({ours.fileno(): BOTH})


@case("all-at-once", "posix")
def several_hundred_that_are_ready_come_in_one_result(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.keep(room_for_descriptors(bench, _SEVERAL_HUNDRED + 200))
    expected: dict[int, int] = {}
    for _ in range(_SEVERAL_HUNDRED):
        fd = bench.dup(ours)
        try:
            bench.selector.register(fd, EVENT_WRITE)
        except ValueError as error:
            bench.skip(f"the selector holds no fd {fd}: {error}")
        expected[fd] = EVENT_WRITE
    bench.require_reported(expected)


@case("all-at-once")
def all_that_is_ready_comes_in_one_result(bench: Bench) -> None:
    expected: dict[int, int] = {}
    for _ in range(100):
        ours, peer = bench.pair()
        peer.send(b"x")
        bench.until_ready(ours)
        bench.selector.register(ours, BOTH)
        bench.selector.register(peer, EVENT_WRITE)
        expected |= {ours.fileno(): BOTH, peer.fileno(): EVENT_WRITE}
    bench.require_reported(expected)


# ---------------------------------------------------------------------------------------------------- changes of mind


@case("readiness")
def a_changed_interest_holds_at_once(bench: Bench) -> None:
    ours, peer = bench.pair()
    peer.send(b"x")
    bench.until_ready(ours)
    bench.selector.register(ours, EVENT_READ)
    for events in (EVENT_WRITE, BOTH, EVENT_READ, BOTH, EVENT_WRITE, EVENT_READ):
        bench.selector.modify(ours, events)
        bench.require_reported({ours.fileno(): events})


@case("readiness")
def an_interest_can_be_changed_and_changed_back_without_a_wait(bench: Bench) -> None:
    ours, peer = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    bench.selector.modify(ours, EVENT_WRITE)
    bench.selector.modify(ours, EVENT_READ)
    peer.send(b"x")
    bench.until_ready(ours)
    bench.require_reported({ours.fileno(): EVENT_READ})


@case("readiness")
def new_data_alone_changes_no_interest(bench: Bench) -> None:
    ours, peer = bench.pair()
    bench.selector.register(ours, BOTH, "old")
    bench.selector.modify(ours, BOTH, "new")
    peer.send(b"x")
    bench.until_ready(ours)
    bench.require_reported({ours.fileno(): BOTH})


@case("reported-key")
def what_was_unregistered_is_not_reported(bench: Bench) -> None:
    pairs = [bench.pair() for _ in range(3)]
    for ours, peer in pairs:
        bench.selector.register(ours, EVENT_READ)
        peer.send(b"x")
        bench.until_ready(ours)
    bench.selector.unregister(pairs[1][0])
    bench.require_reported({pairs[0][0].fileno(): EVENT_READ, pairs[2][0].fileno(): EVENT_READ})


# -------------------------------------------------------------------------------------------------- ends and errors


@case("hang-up")
def a_closed_peer_makes_readable_for_ever(bench: Bench) -> None:
    ours, peer = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    peer.close()
    bench.until_ready(ours)
    bench.require_reported({ours.fileno(): EVENT_READ})
    ours.recv(1)
    bench.require_reported({ours.fileno(): EVENT_READ})


@case("level")
def what_was_sent_before_an_end_of_file_is_read_before_it(bench: Bench) -> None:
    ours, peer = bench.tcp_pair()
    bench.selector.register(ours, EVENT_READ)
    peer.send(b"last words")
    peer.close()
    for _ in range(2):  # the words, and the end
        bench.until_ready(ours)
        bench.require_reported({ours.fileno(): EVENT_READ})
        ours.recv(100)


@case("not-ready")
def a_half_closed_peer_is_no_reason_to_write(bench: Bench) -> None:
    ours, peer = bench.tcp_pair()
    bench.selector.register(ours, BOTH)
    peer.shutdown(socket.SHUT_WR)
    bench.until_ready(ours)
    fill(ours)  # only now: what came from the peer may have acknowledged data, and made room by that
    bench.require_reported({ours.fileno(): EVENT_READ})


@case("hang-up")
def a_reset_is_reported_as_the_registered_events(bench: Bench) -> None:
    for events in (EVENT_READ, EVENT_WRITE, BOTH):
        ours, peer = bench.tcp_pair()
        fill(ours)
        bench.selector.register(ours, events)
        reset(peer)
        bench.until_ready(ours)
        found = 0
        for _ in range(3):  # one direction may learn of it before the other
            found |= bench.ready(PATIENCE if found != events else 0).get(ours.fileno(), 0)
        bench.require_equal(found, events, "the events that were reported after a reset")
        bench.selector.unregister(ours)


@case("hang-up", "posix")
def a_hangup_is_reported_as_the_registered_events(bench: Bench) -> None:
    for events in (EVENT_READ, EVENT_WRITE, BOTH):
        ours, peer = bench.pair()
        fill(ours)
        bench.selector.register(ours, events)
        peer.close()
        bench.until_ready(ours)
        bench.require_reported({ours.fileno(): events})
        bench.selector.unregister(ours)


@case("hang-up", "posix")
def a_pipe_that_loses_its_writer_is_readable(bench: Bench) -> None:
    pipe = bench.pipe()
    bench.selector.register(pipe.reader, EVENT_READ)
    bench.require_reported({})
    pipe.close_writer()
    bench.require_reported({pipe.reader: EVENT_READ})


@case("hang-up", "posix")
def a_pipe_that_loses_its_reader_is_reported_as_the_registered_events(bench: Bench) -> None:
    for events in (EVENT_READ, EVENT_WRITE, BOTH):
        pipe = bench.pipe()
        bench.selector.register(pipe.writer, events)
        pipe.close_reader()
        bench.require_reported({pipe.writer: events})
        bench.selector.unregister(pipe.writer)


@case("hang-up", "posix")
def a_full_pipe_that_loses_its_reader_is_reported_as_the_registered_events(bench: Bench) -> None:
    for events in (EVENT_WRITE, BOTH):
        pipe = bench.pipe()
        pipe.fill()
        bench.selector.register(pipe.writer, events)
        bench.require_reported({})
        pipe.close_reader()  # an error without room: nothing but the error says that it is of interest to a writer
        bench.require_reported({pipe.writer: events}, PATIENCE)
        bench.selector.unregister(pipe.writer)


@case("hang-up", "posix")
def a_pipe_without_a_reader_can_be_registered_and_is_reported(bench: Bench) -> None:
    for events in (EVENT_WRITE, BOTH):
        pipe = bench.pipe()
        pipe.close_reader()
        bench.selector.register(pipe.writer, events)
        for _ in range(2):
            bench.require_reported({pipe.writer: events}, None)
        bench.selector.modify(pipe.writer, EVENT_WRITE, "data")
        bench.require_reported_data("data")
        bench.selector.unregister(pipe.writer)
        bench.require_reported({})


@case("hang-up")
def a_connection_that_is_refused_makes_writable(bench: Bench) -> None:
    closed = bench.keep(socket.socket())
    closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can have the port
    client = bench.keep(socket.socket())
    client.setblocking(False)
    client.connect_ex(closed.getsockname())
    bench.selector.register(client, EVENT_WRITE)
    bench.until_ready(client, EVENT_WRITE)
    bench.require_reported({client.fileno(): EVENT_WRITE})
    error = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    bench.require_equal(error, errno.ECONNREFUSED, "the error that is left for whoever has connected")


# --------------------------------------------------------------------------------------------- other kinds of sockets


@case("readiness")
def a_listening_socket_is_readable_while_connections_wait(bench: Bench) -> None:
    server = bench.keep(socket.create_server(("127.0.0.1", 0)))
    server.setblocking(False)
    bench.selector.register(server, EVENT_READ)
    bench.require_reported({})
    bench.keep(socket.create_connection(server.getsockname()))
    bench.until_ready(server)
    bench.require_reported({server.fileno(): EVENT_READ})
    server.accept()[0].close()
    bench.require_reported({})


@case("readiness")
def a_connection_that_is_made_makes_writable(bench: Bench) -> None:
    server = bench.keep(socket.create_server(("127.0.0.1", 0)))
    client = bench.keep(socket.socket())
    client.setblocking(False)
    client.connect_ex(server.getsockname())
    bench.selector.register(client, EVENT_WRITE)
    bench.until_ready(client, EVENT_WRITE)
    bench.require_reported({client.fileno(): EVENT_WRITE})


@case("readiness")
def an_empty_datagram_makes_readable(bench: Bench) -> None:
    ours, peer = (bench.keep(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(2))
    ours.bind(("127.0.0.1", 0))
    bench.selector.register(ours, EVENT_READ)
    peer.sendto(b"", ours.getsockname())
    bench.until_ready(ours)
    bench.require_reported({ours.fileno(): EVENT_READ})


@case("readiness", "posix")
def what_is_typed_at_a_terminal_makes_readable(bench: Bench) -> None:
    ours, terminal = os.openpty()
    try:
        bench.selector.register(ours, EVENT_READ)
        os.write(terminal, b"typed")
        bench.until_ready(ours)
        bench.require_reported({ours: EVENT_READ})
    finally:
        os.close(ours)
        os.close(terminal)
