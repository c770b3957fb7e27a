"""Who is registered: what register, modify, unregister and close answer."""

import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any

from .bench import BOTH, PATIENCE, Bench, FakeFile, drain, lowest_descriptor, open_descriptors
from .case import Group

BOOKKEEPING = Group("bookkeeping")
case = BOOKKEEPING.case


class _Number(int):
    """A descriptor of a kind of its own."""


@contextmanager
def _in_place_of_zero(sock: socket.socket) -> Iterator[None]:
    """Have a socket as standard input, and then again what was there."""
    try:
        before = os.dup(0)
    except OSError:  # nothing
        before = -1
    os.dup2(sock.fileno(), 0)
    try:
        yield
    finally:
        if before >= 0:
            os.dup2(before, 0)
            os.close(before)
        else:
            os.close(0)


# --------------------------------------------------------------------------------------------------------------- keys


@case("key")
def register_returns_the_key_of_the_registration(bench: Bench) -> None:
    ours, _ = bench.pair()
    key = bench.selector.register(ours, BOTH, "data")
    bench.require_equal(type(key), SelectorKey, "the type of what register returned")
    bench.require_equal(key, SelectorKey(ours, ours.fileno(), BOTH, "data"), "what register returned")


@case("key")
def modify_returns_the_new_key(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_READ, "old")
    key = bench.selector.modify(ours, EVENT_WRITE, "new")
    bench.require_equal(key, SelectorKey(ours, ours.fileno(), EVENT_WRITE, "new"), "what modify returned")


@case("key")
def unregister_returns_the_last_key(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_READ, "old")
    bench.selector.modify(ours, EVENT_WRITE, "new")
    key = bench.selector.unregister(ours)
    bench.require_equal(key, SelectorKey(ours, ours.fileno(), EVENT_WRITE, "new"), "what unregister returned")


@case("reported-key")
def new_data_comes_with_the_next_report(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_WRITE, "old")
    bench.require_reported_data("old")
    news: tuple[Any, ...] = ("new", [], 0, "newer", None, "")
    for data in news:
        for events in (EVENT_WRITE, BOTH):
            bench.selector.modify(ours, events, data)
            bench.require_reported_data(data)


@case("reported-key")
def a_modify_without_data_takes_them_away(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_WRITE, "old")
    bench.selector.modify(ours, EVENT_WRITE)
    bench.require_reported_data(None)


@case("reported-key")
def a_report_has_the_very_key_of_the_registration(bench: Bench) -> None:
    (ours, peer), (one, other) = bench.pair(), (object(), [object()])
    bench.selector.register(ours, EVENT_WRITE, one)
    bench.selector.register(FakeFile(peer.fileno()), BOTH, other)
    bench.require_reported({ours.fileno(): EVENT_WRITE, peer.fileno(): EVENT_WRITE})


@case("reported-key")
def what_was_registered_before_is_not_reported_for_what_is_now(bench: Bench) -> None:
    ours, other = bench.pair()
    bench.selector.register(other, EVENT_READ)
    for data in range(3):
        bench.selector.register(ours, EVENT_WRITE, data)
        bench.require_reported_data(data)
        bench.selector.unregister(ours)
    bench.require_reported({})


@case("reported-key")
def an_old_result_is_not_returned_again(bench: Bench) -> None:
    (ours, peer), (idle, _) = bench.pair(), bench.pair()

    def modify(data: int) -> None:
        bench.selector.modify(ours, EVENT_READ, data)

    def register_again(data: int) -> None:
        bench.selector.unregister(ours)
        bench.selector.register(ours, EVENT_READ, data)

    def unregister(_: int) -> None:
        bench.selector.unregister(ours)

    bench.selector.register(idle, EVENT_READ, "idle")
    bench.selector.register(ours, EVENT_READ, 0)
    for data, change in enumerate((modify, register_again, unregister)):
        peer.send(b"x")
        bench.until_ready(ours)
        bench.require_reported({ours.fileno(): EVENT_READ})
        drain(ours)
        change(data + 1)
        for timeout in (0, 0.001):  # what is registered may be reported though it is not ready, what was may not
            found = [key.data for key, _ in bench.selector.select(timeout)]
            if data in found:
                bench.broken(f"select({timeout}) reported the data {found}, and the registration with {data} had ended")


# ----------------------------------------------------------------------------------------------------------- refusals


@case("mask")
def register_refuses_events_that_are_no_mask(bench: Bench) -> None:
    ours, _ = bench.pair()
    for events in (0, 4, 5, -1, 999_999):
        bench.require_refused(ValueError, bench.selector.register, ours, events)
        bench.require_unknown(ours.fileno())


@case("mask")
def modify_refuses_events_that_are_no_mask(bench: Bench) -> None:
    for events in (0, 4, 5, -1, 999_999):
        ours, _ = bench.pair()
        bench.selector.register(ours, EVENT_READ)
        bench.require_refused(ValueError, bench.selector.modify, ours, events)


@case("mask")
def a_modify_that_is_refused_changes_nothing(bench: Bench) -> None:
    ours, _ = bench.pair()
    key = bench.selector.register(ours, EVENT_WRITE, "data")
    for events in (0, 4, 5, -1):
        bench.require_refused(ValueError, bench.selector.modify, ours, events, "new")
        bench.require_reported({ours.fileno(): EVENT_WRITE})
    bench.require_equal(bench.selector.unregister(ours), key, "what a refused modify has left")


@case("descriptor")
def register_refuses_a_number_that_is_too_large_for_a_descriptor(bench: Bench) -> None:
    for number in (2**31, 2**32, 2**63, 2**64):
        for fileobj in (number, FakeFile(number)):
            bench.require_refused(ValueError, bench.selector.register, fileobj, EVENT_READ)


@case("descriptor")
def register_refuses_a_negative_descriptor(bench: Bench) -> None:
    closed, _ = bench.pair()
    closed.close()
    for fileobj in (-1, -10, FakeFile(-1), closed):
        bench.require_refused(ValueError, bench.selector.register, fileobj, EVENT_READ)


@case("descriptor")
def register_refuses_an_object_without_a_descriptor(bench: Bench) -> None:
    for fileobj in ("text", None, FakeFile("text"), FakeFile(None)):
        bench.require_refused(ValueError, bench.selector.register, fileobj, EVENT_READ)


@case("registered")
def register_refuses_what_is_registered(bench: Bench) -> None:
    ours, _ = bench.pair()
    key = bench.selector.register(ours, EVENT_READ, "first")
    bench.require_refused(KeyError, bench.selector.register, ours, EVENT_WRITE)
    bench.require_equal(bench.selector.unregister(ours), key, "what a refused register has left")


@case("registered")
def register_refuses_the_number_of_what_is_registered(bench: Bench) -> None:
    ours, _ = bench.pair()
    key = bench.selector.register(ours, EVENT_READ, "first")
    for lookalike in (ours.fileno(), FakeFile(ours.fileno())):
        bench.require_refused(KeyError, bench.selector.register, lookalike, EVENT_READ)
    bench.require_equal(bench.selector.unregister(ours), key, "what a refused register has left")


@case("unknown")
def modify_refuses_the_unknown(bench: Bench) -> None:
    ours, other = bench.pair()
    bench.selector.register(other, EVENT_READ)
    for fileobj in (ours, ours.fileno(), 999_999):
        bench.require_refused(KeyError, bench.selector.modify, fileobj, EVENT_READ)


@case("unknown")
def unregister_refuses_the_unknown(bench: Bench) -> None:
    ours, other = bench.pair()
    bench.selector.register(other, EVENT_READ)
    for fileobj in (ours, ours.fileno(), 999_999):
        bench.require_refused(KeyError, bench.selector.unregister, fileobj)


@case("unknown")
def what_was_unregistered_is_unknown(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    bench.selector.unregister(ours)
    bench.require_refused(KeyError, bench.selector.unregister, ours)
    bench.require_refused(KeyError, bench.selector.modify, ours, EVENT_READ)


# ------------------------------------------------------------------------------------------- what must not be refused


@case("false-alarm")
def what_was_unregistered_can_be_registered_again(bench: Bench) -> None:
    ours, _ = bench.pair()
    for _ in range(3):
        bench.require_accepted(bench.selector.register, ours, EVENT_WRITE)
        bench.require_reported({ours.fileno(): EVENT_WRITE})
        bench.selector.unregister(ours)


@case("false-alarm")
def number_and_object_are_one_registration(bench: Bench) -> None:
    ours, _ = bench.pair()
    fd = ours.fileno()
    bench.selector.register(ours, EVENT_READ)
    bench.require_accepted(bench.selector.modify, fd, EVENT_WRITE)
    bench.require_accepted(bench.selector.unregister, FakeFile(fd))
    bench.require_unknown(fd)


@case("false-alarm")
def a_number_of_another_type_is_that_number(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.require_accepted(bench.selector.register, _Number(ours.fileno()), EVENT_WRITE)
    bench.require_reported({ours.fileno(): EVENT_WRITE})
    bench.require_accepted(bench.selector.unregister, ours.fileno())


@case("false-alarm", "posix")
def zero_is_a_number_like_any_other(bench: Bench) -> None:
    ours, _ = bench.pair()
    with _in_place_of_zero(ours):
        bench.require_accepted(bench.selector.register, 0, EVENT_WRITE, "data")
        bench.require_reported({0: EVENT_WRITE})
        bench.selector.modify(0, EVENT_READ, "data")
        bench.require_reported({})
        bench.selector.unregister(0)


@case("false-alarm", "posix")
def two_descriptors_of_one_file_are_two_registrations(bench: Bench) -> None:
    ours, peer = bench.pair()
    peer.send(b"x")
    bench.until_ready(ours)
    one, other = bench.dup(ours), bench.dup(ours)
    bench.selector.register(one, EVENT_READ, "one")
    bench.require_accepted(bench.selector.register, other, EVENT_WRITE, "other")
    bench.require_reported({one: EVENT_READ, other: EVENT_WRITE})
    bench.selector.unregister(one)
    bench.require_reported({other: EVENT_WRITE})


@case("failed-register")
def a_register_that_fails_leaves_the_others_as_they_are(bench: Bench) -> None:
    socks = [sock for _ in range(4) for sock in bench.pair()]
    for sock in socks:
        bench.selector.register(sock, EVENT_WRITE, object())
    closed, _ = bench.pair()
    fd = closed.fileno()
    closed.close()
    for arguments in ((fd, EVENT_READ), (closed, EVENT_READ), (socks[0], EVENT_READ), (fd, 0)):
        try:
            bench.selector.register(*arguments)
        except (OSError, ValueError, KeyError):
            pass
        else:  # another case is about that
            bench.selector.unregister(fd)
        bench.require_reported({sock.fileno(): EVENT_WRITE for sock in socks})


@case("failed-register", "posix")
def a_closed_descriptor_cannot_be_registered_and_leaves_no_trace(bench: Bench) -> None:
    ours, _ = bench.pair()
    fd = bench.dup(ours)
    os.close(fd)
    bench.require_refused((OSError, ValueError), bench.selector.register, fd, EVENT_WRITE)
    bench.require_unknown(fd)
    os.dup2(ours.fileno(), fd)
    bench.selector.register(fd, EVENT_WRITE)
    bench.require_reported({fd: EVENT_WRITE})


@case("failed-modify", "posix")
def a_modify_that_fails_unregisters(bench: Bench) -> None:
    ours, _ = bench.pair()
    fd = bench.dup(ours)
    bench.selector.register(fd, EVENT_READ)
    os.close(fd)
    try:
        bench.selector.modify(fd, EVENT_WRITE)
    except OSError:  # epoll and kqueue notice
        bench.require_unknown(fd)
    else:  # poll and select cannot know
        bench.selector.unregister(fd)


# ---------------------------------------------------------------------------------------------------- several, and none


@case("reported-key")
def calls_in_any_order_leave_each_registration_with_what_is_its_own(bench: Bench) -> None:
    ends = [bench.pair() for _ in range(6)]
    for ours, peer in ends:
        peer.send(b"x")
        bench.until_ready(ours)
    socks = [ours for ours, _ in ends]
    registered: dict[int, int] = {}
    chance = random.Random(4)  # the same order each time
    for data in range(200):
        sock, events = chance.choice(socks), chance.choice((EVENT_READ, EVENT_WRITE, BOTH))
        if sock.fileno() not in registered:
            bench.selector.register(sock, events, data)
        elif chance.random() < 0.5:
            bench.selector.modify(sock, events, data)
        else:
            bench.selector.unregister(sock)
            events = 0
        registered[sock.fileno()] = events
        registered = {fd: events for fd, events in registered.items() if events}
        bench.require_reported(registered)


@case("independence")
def two_selectors_do_not_know_of_each_other(bench: Bench) -> None:
    ours, _ = bench.pair()
    one, other = bench.selector, bench.make_selector()
    one.register(ours, EVENT_WRITE, "one")
    other.register(ours, EVENT_WRITE, "other")
    bench.require_equal(one.unregister(ours).data, "one", "the data of the first selector's registration")
    bench.require_equal(
        [key.data for key, _ in other.select(0)], ["other"], "the data of what the second selector reported"
    )


@case("independence")
def a_selector_works_in_a_thread_that_has_not_made_it(bench: Bench) -> None:
    selector, (ours, _) = bench.selector, bench.pair()
    answers: list[Any] = []

    def use_it() -> None:
        try:
            selector.register(ours, EVENT_WRITE, "data")
            answers.append([key.data for key, _ in selector.select(0)])
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=use_it, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    bench.require_equal(answers, [["data"]], "the data of what was reported in that thread")


@case("close")
def closing_twice_does_nothing(bench: Bench) -> None:
    bench.selector.close()
    bench.require_accepted(bench.selector.close)


@case("close")
def closing_leaves_the_registered_files_open(bench: Bench) -> None:
    ours, peer = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    bench.selector.close()
    try:
        peer.send(b"x")
        bench.until_ready(ours)
        ours.recv(1)
    except OSError as error:
        bench.broken(f"after close() using the registered socket raised {error!r}")


@case("close", "posix")
def closing_does_not_mind_a_closed_descriptor(bench: Bench) -> None:
    (ours, _), (other, _) = bench.pair(), bench.pair()
    bench.selector.register(ours, EVENT_READ)
    bench.selector.register(other.fileno(), EVENT_READ)
    ours.close()
    other.close()
    bench.require_accepted(bench.selector.close)


@case("close", "posix")
def opening_and_closing_leaks_no_descriptor(bench: Bench) -> None:
    ours, _ = bench.pair()
    before = lowest_descriptor()
    for _ in range(25):
        selector = bench.make_selector()
        selector.register(ours, EVENT_READ)
        selector.close()
    bench.require_equal(lowest_descriptor(), before, "the lowest free fd after 25 selectors were opened and closed")


@case("leak", "posix")
def registering_and_waiting_leaks_no_descriptor(bench: Bench) -> None:
    ours, _ = bench.pair()

    def use_it() -> None:
        bench.selector.register(ours, EVENT_READ)
        bench.selector.select(0)
        bench.selector.modify(ours, EVENT_WRITE)
        bench.selector.select(0.0001)
        bench.selector.unregister(ours)
        bench.selector.select(0)

    use_it()  # what is opened at the first use, and kept, is no leak
    limit = lowest_descriptor() + 1000  # a leak takes the lowest numbers that are free: 25 rounds do not leak as many
    before = open_descriptors(limit)
    for _ in range(25):
        use_it()
    left_open = open_descriptors(limit) - before
    if left_open > 0:  # less than 0: the garbage collector has closed what is of others
        bench.broken(f"25 rounds of register, modify, unregister and select have left {left_open} descriptors open")


@case("close", "with", "get_key")
def leaving_a_with_block_closes(bench: Bench) -> None:
    ours, _ = bench.pair()
    with bench.selector.inner as selector:
        bench.require_equal(selector, bench.selector.inner, "what the with statement gave")
        selector.register(ours, EVENT_READ)
    bench.require_refused(RuntimeError, selector.get_key, ours)


@case("close", "fileno")
def the_descriptor_of_a_selector_is_not_inherited(bench: Bench) -> None:
    if os.get_inheritable(bench.selector.fileno()):
        bench.broken(f"fd {bench.selector.fileno()} of the selector goes on to every program that is started")


# ------------------------------------------------------------------- what the standard library's have besides the five


@case("mapping", "get_map")
def the_map_is_live(bench: Bench) -> None:
    ours, other = bench.pair()
    mapping = bench.selector.get_map()
    key = bench.selector.register(ours, EVENT_READ)
    bench.require_equal(list(mapping), [ours.fileno()], "list(get_map())")
    bench.require_equal(
        [ours in mapping, ours.fileno() in mapping, other in mapping], [True, True, False], "`in` get_map()"
    )
    bench.require_equal([mapping[ours], *mapping.values()], [key, key], "what get_map() holds")
    bench.selector.unregister(ours)
    bench.require_equal((len(mapping), mapping.get(ours)), (0, None), "get_map() after unregister")


@case("mapping", "get_map")
def the_map_is_read_only(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    mapping = bench.selector.get_map()
    for method in ("__delitem__", "__setitem__"):
        if hasattr(mapping, method):
            bench.broken(f"get_map() has {method}: {type(mapping)!r}")


@case("mapping", "get_key")
def number_and_object_have_one_key(bench: Bench) -> None:
    ours, other = bench.pair()
    key = bench.selector.register(ours, EVENT_READ, "data")
    for fileobj in (ours, ours.fileno(), FakeFile(ours.fileno())):
        bench.require_equal(bench.selector.get_key(fileobj), key, f"get_key({fileobj!r})")
    key = bench.selector.modify(ours, EVENT_WRITE, "new")
    bench.require_equal(bench.selector.get_key(ours), key, "get_key() after modify")
    for fileobj in (other, 999_999):
        bench.require_refused(KeyError, bench.selector.get_key, fileobj)


@case("mapping", "get_key", "get_map")
def nothing_is_known_after_close(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    mapping = bench.selector.get_map()
    bench.selector.close()
    bench.require_refused(RuntimeError, bench.selector.get_key, ours)
    bench.require_equal((mapping.get(ours), len(mapping)), (None, 0), "what a map of before holds after close()")
