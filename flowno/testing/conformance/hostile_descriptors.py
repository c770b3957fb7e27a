"""Descriptors that are closed, reused, duplicated, too large, or no good: one bad one harms no other."""

import os
import socket
from selectors import EVENT_READ, EVENT_WRITE

from .bench import BOTH, Bench, FakeFile, Pair, drain, room_for_descriptors
from .case import Group

HOSTILE_DESCRIPTORS = Group("hostile descriptors")
case = HOSTILE_DESCRIPTORS.case

#: A descriptor beyond FD_SETSIZE, and how many may be open for the cases that need many.
_LARGE = 2000
_MANY = 2500


# -------------------------------------------------------------------------------- closed before it was unregistered


@case("unregister", "posix")
def a_closed_descriptor_is_unregistered_by_number(bench: Bench) -> None:
    ours, _ = bench.pair()
    fd = ours.fileno()
    key = bench.selector.register(fd, EVENT_READ, "data")
    ours.close()
    unregistered = _require_unregistered(bench, fd)
    bench.require_equal(unregistered, key, "what unregister returned")
    bench.require_reported({})


@case("unregister")
def a_closed_object_is_unregistered_by_identity(bench: Bench) -> None:
    # Equal and with the same hash, so that only identity tells one from the other.
    files = [FakeFile(sock.fileno()) for sock in bench.pair()]
    keys = [bench.selector.register(file, EVENT_READ) for file in files]
    for file in files:
        file.fd = -1
    for file, key in reversed(list(zip(files, keys, strict=True))):
        found = bench.require_accepted(bench.selector.unregister, file).fileobj
        bench.require_equal(found is key.fileobj, True, "whether unregister has found the object it was given")


@case("unregister")
def a_closed_object_whose_fileno_raises_is_unregistered(bench: Bench) -> None:
    ours, _ = bench.pair()
    file = ours.makefile("rb", buffering=0)  # as Python's files do
    key = bench.selector.register(file, EVENT_READ, "data")
    file.close()
    unregistered = bench.require_accepted(bench.selector.unregister, file)
    bench.require_equal(unregistered, key, "what unregister returned")


@case("unregister")
def an_equal_object_is_not_taken_for_the_registered_one(bench: Bench) -> None:
    numbers = [sock.fileno() for sock in bench.pair()]
    stranger = FakeFile(-1)  # equal to all others, and without a number that could tell it from them
    for is_open in (True, False):
        for turn in (1, -1):  # whether it is the first or the last of them that would be found
            files = [FakeFile(number) for number in numbers]
            for file in files:
                bench.selector.register(file, EVENT_READ)
            if not is_open:
                for file in files:
                    file.fd = -1
            for call, *events in ((bench.selector.modify, EVENT_READ), (bench.selector.unregister,)):
                # A ValueError by those who ask for the number first.
                bench.require_refused((KeyError, ValueError), call, stranger, *events)
            for file in files[::turn]:
                found = bench.selector.unregister(file).fileobj
                bench.require_equal(found is file, True, "whether unregister has found the object it was given")


@case("select-raises", "posix")
def a_closed_descriptor_does_not_make_select_raise(bench: Bench) -> None:
    (bad, _), (good, peer) = bench.pair(), bench.pair()
    bench.selector.register(bad.fileno(), BOTH)
    bench.selector.register(good, EVENT_READ)
    bad.close()
    peer.send(b"x")
    try:
        found = bench.ready()
    except (OSError, ValueError) as error:
        bench.broken(f"select(0) with a closed fd among the registered raised {error!r}")
    bench.require_equal(found.get(good.fileno()), EVENT_READ, "what was reported for the other descriptor")


@case("readiness", "posix")
def many_closed_descriptors_do_not_hide_the_others(bench: Bench) -> None:
    pairs = [bench.pair() for _ in range(20)]
    for ours, peer in pairs:
        bench.selector.register(ours, EVENT_READ)
        peer.send(b"x")
    for ours, _ in pairs[::2]:
        ours.close()
    found = bench.ready()
    alive = {ours.fileno(): EVENT_READ for ours, _ in pairs[1::2]}
    bench.require_equal({fd: found.get(fd) for fd in alive}, alive, "what was reported for those that are open")


@case("early", "posix")
def a_closed_descriptor_does_not_make_a_wait_return_with_nothing(bench: Bench) -> None:
    for events in (EVENT_READ, EVENT_WRITE, BOTH):
        bad, _ = bench.pair()
        fd = bad.fileno()
        bench.selector.register(fd, events)
        bad.close()
        if not bench.ready(0.002):
            bench.require_wait(0.002)
        bench.selector.unregister(fd)


@case("claims", "posix", "sees_closed")
def a_closed_descriptor_is_reported_as_the_registered_events(bench: Bench) -> None:
    for events in (EVENT_READ, EVENT_WRITE, BOTH):
        (bad, _), (good, peer) = bench.pair(), bench.pair()
        fd = bad.fileno()
        bench.selector.register(fd, events)
        bench.selector.register(good, EVENT_READ)
        bad.close()
        bench.require_reported({fd: events}, None)
        peer.send(b"x")
        bench.require_reported({fd: events, good.fileno(): EVENT_READ}, None)
        bench.selector.unregister(fd)
        bench.require_reported({good.fileno(): EVENT_READ})
        bench.selector.unregister(good)


# --------------------------------------------------------------------------------------------------- a number again


@case("unregister", "posix")
def a_number_that_is_another_file_by_now_is_unregistered(bench: Bench) -> None:
    (old, _), (other, _) = bench.pair(), bench.pair()
    fd = bench.dup(old)
    bench.selector.register(fd, EVENT_READ)
    os.dup2(other.fileno(), fd)
    _require_unregistered(bench, fd)
    bench.require_reported({})


@case("reuse", "posix")
def a_number_that_was_unregistered_late_belongs_to_the_new_file(bench: Bench) -> None:
    old, (new, peer) = bench.pair()[0], bench.pair()
    fd = bench.dup(old)
    bench.selector.register(fd, EVENT_READ)
    os.dup2(new.fileno(), fd)
    bench.selector.unregister(fd)
    bench.selector.register(fd, EVENT_READ)
    bench.require_reported({})
    peer.send(b"x")
    bench.require_reported({fd: EVENT_READ})


@case("reuse", "posix")
def a_changed_interest_in_a_reused_number_is_one_in_the_new_file(bench: Bench) -> None:
    old, (new, peer) = bench.pair()[0], bench.pair()
    fd = bench.dup(old)
    bench.selector.register(fd, EVENT_READ)
    os.dup2(new.fileno(), fd)
    bench.require_accepted(bench.selector.modify, fd, EVENT_WRITE)
    bench.require_reported({fd: EVENT_WRITE})
    bench.selector.modify(fd, EVENT_READ)
    bench.require_reported({})
    peer.send(b"x")
    bench.require_reported({fd: EVENT_READ})
    bench.selector.unregister(fd)


@case("reuse", "posix")
def a_number_can_be_used_again_and_again(bench: Bench) -> None:
    for _ in range(5):
        ours, peer = socket.socketpair()
        with ours, peer:
            fd = ours.fileno()
            bench.selector.register(fd, EVENT_READ)
            peer.send(b"x")
            bench.require_reported({fd: EVENT_READ})
            ours.close()
            bench.selector.unregister(fd)


# ------------------------------------------------------------------------------- a duplicate that outlives its close


def _stale(bench: Bench) -> tuple[int, Pair]:
    """A number that was closed and unregistered while a duplicate lives, and the duplicate with its peer.

    The kernel's epoll goes on reporting it, and has no way to be told otherwise, epoll(7) "Questions and answers" 6.
    """
    ours, peer = bench.pair()
    fd = bench.dup(ours)
    bench.selector.register(fd, EVENT_READ)
    os.close(fd)
    bench.selector.unregister(fd)
    return fd, (ours, peer)


@case("duplicate", "posix")
def a_duplicate_that_lives_on_does_not_make_select_spin(bench: Bench) -> None:
    _, (_, peer) = _stale(bench)
    peer.send(b"x")
    bench.require_reported({})
    bench.require_wait(0.002)


@case("duplicate", "posix")
def a_duplicate_that_lives_on_does_not_hide_the_others(bench: Bench) -> None:
    pairs = [bench.pair() for _ in range(10)]
    _, (_, stale_peer) = _stale(bench)
    for ours, peer in pairs:
        bench.selector.register(ours, EVENT_READ)
        peer.send(b"x")
    stale_peer.send(b"x")
    for _ in range(2):
        bench.require_reported({ours.fileno(): EVENT_READ for ours, _ in pairs})
    for ours, _ in pairs:
        drain(ours)
    bench.require_wait(0.002)


@case("duplicate", "posix")
def a_new_file_is_not_taken_for_the_duplicate_of_an_old_one(bench: Bench) -> None:
    new, peer = bench.pair()
    fd, (_, old_peer) = _stale(bench)
    os.dup2(new.fileno(), fd)
    bench.selector.register(fd, EVENT_READ)
    old_peer.send(b"x")
    bench.require_reported({})
    bench.require_wait(0.002)
    peer.send(b"x")
    bench.require_reported({fd: EVENT_READ})


@case("duplicate", "posix")
def a_new_file_and_the_duplicate_of_an_old_one_are_one_report(bench: Bench) -> None:
    new, peer = bench.pair()
    fd, (_, old_peer) = _stale(bench)
    os.dup2(new.fileno(), fd)
    bench.selector.register(fd, EVENT_READ)
    old_peer.send(b"x")
    peer.send(b"x")
    for _ in range(2):
        found = bench.selector.select(0)
        bench.require_equal([(key.fd, events) for key, events in found], [(fd, EVENT_READ)], "what was reported")
    drain(new)
    bench.require_reported({})
    bench.require_wait(0.002)


@case("duplicate", "posix")
def a_modified_registration_is_not_taken_for_the_duplicate_of_an_old_file(bench: Bench) -> None:
    (old, old_peer), (new, peer) = bench.pair(), bench.pair()
    fd = bench.dup(old)
    bench.selector.register(fd, EVENT_READ)
    os.dup2(new.fileno(), fd)
    bench.require_accepted(bench.selector.modify, fd, BOTH)
    bench.selector.modify(fd, EVENT_READ)
    old_peer.send(b"x")
    bench.require_reported({})
    bench.require_wait(0.002)
    peer.send(b"x")
    bench.require_reported({fd: EVENT_READ})


@case("duplicate", "posix")
def the_same_file_under_the_same_number_can_be_registered_again(bench: Bench) -> None:
    fd, (ours, peer) = _stale(bench)
    os.dup2(ours.fileno(), fd)
    bench.require_accepted(bench.selector.register, fd, EVENT_READ)
    peer.send(b"x")
    bench.require_reported({fd: EVENT_READ})


# ------------------------------------------------------------------------------------------- what cannot be held


@case("refusal", "posix")
def a_regular_file_is_always_ready_or_refused_at_once(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_WRITE)
    file = bench.file()
    expected = {ours.fileno(): EVENT_WRITE}
    try:
        bench.selector.register(file, BOTH)
    except (OSError, ValueError):
        bench.require_unknown(file.fileno())
    else:
        expected[file.fileno()] = BOTH
    bench.require_reported(expected)


@case("claims", "posix", "files")
def a_selector_that_claims_files_takes_them(bench: Bench) -> None:
    file = bench.file()
    for events in (EVENT_READ, EVENT_WRITE, BOTH):
        bench.require_accepted(bench.selector.register, file, events)
        bench.require_reported({file.fileno(): events})
        bench.selector.unregister(file)


@case("refusal", "posix")
def a_large_number_is_held_or_refused_at_once(bench: Bench) -> None:
    ours, other = bench.pair()
    fd = _large(bench, ours)
    bench.selector.register(other, EVENT_WRITE)
    expected = {other.fileno(): EVENT_WRITE}
    try:
        bench.selector.register(fd, EVENT_WRITE)
    except ValueError:
        bench.require_unknown(fd)
    except Exception as error:
        bench.broken(f"register({fd}, EVENT_WRITE) raised {error!r}, and not ValueError")
    else:
        expected[fd] = EVENT_WRITE
    try:
        bench.require_reported(expected)
    except (OSError, ValueError) as error:
        bench.broken(f"register({fd}, EVENT_WRITE) took what select(0) refuses: {error!r}")


@case("claims", "posix", "any_fd")
def a_selector_that_claims_any_number_holds_a_large_one(bench: Bench) -> None:
    ours, _ = bench.pair()
    fd = _large(bench, ours)
    bench.require_accepted(bench.selector.register, fd, EVENT_WRITE)
    bench.require_reported({fd: EVENT_WRITE})
    bench.selector.unregister(fd)


@case("claims", "posix", "any_fd")
def a_selector_that_claims_any_number_holds_two_thousand(bench: Bench) -> None:
    bench.keep(room_for_descriptors(bench, _MANY))
    pairs = [bench.pair() for _ in range(1000)]
    expected: dict[int, int] = {}
    for ours, peer in pairs:
        peer.send(b"x")
        for sock, events in ((ours, BOTH), (peer, EVENT_WRITE)):
            bench.require_accepted(bench.selector.register, sock, events)
            expected[sock.fileno()] = events
    bench.require_reported(expected, None)
    for sock in (sock for pair in pairs for sock in pair):
        bench.selector.unregister(sock)
        sock.close()
    bench.require_reported({})


def _require_unregistered(bench: Bench, fd: int) -> object:
    """Require that what is closed, or another file by now, can be unregistered, and return what that returned."""
    key: object = bench.require_accepted(bench.selector.unregister, fd)
    bench.require_unknown(fd)
    return key


def _large(bench: Bench, sock: socket.socket) -> int:
    """A descriptor of a socket beyond FD_SETSIZE."""
    bench.keep(room_for_descriptors(bench, _MANY))
    os.dup2(sock.fileno(), _LARGE, inheritable=False)
    bench.keep(socket.socket(fileno=_LARGE))
    return _LARGE
