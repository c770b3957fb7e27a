"""Descriptors that are closed, reused, duplicated, too large, or no good: one bad one harms nobody else."""

import errno
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

import pytest

from tests.backends.conftest import MakePair, Pair, drain, ready_fds

resource = pytest.importorskip("resource", reason="on Windows only sockets are waited for, and closed as such")
BOTH = EVENT_READ | EVENT_WRITE


def returns_early(selector: Any) -> bool:
    """Whether a wait with nothing ready ends before its time."""
    started = time.monotonic()
    assert selector.select(0.002) == []
    return time.monotonic() - started < 0.002


class TestClosedBeforeItWasUnregistered:
    @pytest.mark.parametrize("by_number", [True, False])
    def test_it_can_be_unregistered(self, selector: Any, pair: Pair, by_number: bool) -> None:
        fileobj = pair[0].fileno() if by_number else pair[0]
        key = selector.register(fileobj, EVENT_READ)
        pair[0].close()
        assert selector.unregister(fileobj) == key
        assert selector.select(0) == []

    @pytest.mark.stdlib_differs("select of the standard library raises EBADF for all, epoll waits for ever")
    @pytest.mark.only("poll", "select")
    @pytest.mark.parametrize("events", [EVENT_READ, EVENT_WRITE, BOTH])
    def test_it_is_reported_as_the_registered_interest(self, selector: Any, make_pair: MakePair, events: int) -> None:
        assert "sees_closed" in selector.capabilities
        bad, _bad_peer = make_pair()
        good, peer = make_pair()
        bad_fd = bad.fileno()
        selector.register(bad_fd, events)
        selector.register(good, EVENT_READ)
        bad.close()
        assert ready_fds(selector.select(None)) == {bad_fd: events}
        peer.send(b"x")
        assert ready_fds(selector.select(None)) == {bad_fd: events, good.fileno(): EVENT_READ}
        selector.unregister(bad_fd)
        assert ready_fds(selector.select(0)) == {good.fileno(): EVENT_READ}

    @pytest.mark.stdlib_differs("select of the standard library raises EBADF for all")
    @pytest.mark.only("epoll", "kqueue")
    def test_the_kernel_forgets_it_and_the_others_are_served(self, selector: Any, make_pair: MakePair) -> None:
        assert "sees_closed" not in selector.capabilities
        bad, _ = make_pair()
        good, peer = make_pair()
        selector.register(bad.fileno(), BOTH)
        selector.register(good, EVENT_READ)
        bad.close()
        assert selector.select(0) == []
        peer.send(b"x")
        assert ready_fds(selector.select(0)) == {good.fileno(): EVENT_READ}

    @pytest.mark.stdlib_differs("select of the standard library raises EBADF for all")
    def test_many_of_them_do_not_hide_the_others(self, selector: Any, make_pair: MakePair) -> None:
        pairs = [make_pair() for _ in range(20)]
        for ours, _ in pairs:
            selector.register(ours, EVENT_READ)
        for ours, peer in pairs:
            peer.send(b"x")
            if ours.fileno() % 2:
                ours.close()
        alive = {ours.fileno() for ours, _ in pairs if ours.fileno() >= 0}
        assert alive <= set(ready_fds(selector.select(0)))


class TestNumberThatWasReused:
    def test_it_can_be_unregistered(self, selector: Any, make_pair: MakePair) -> None:
        old, other = make_pair()[0], make_pair()[0]
        fd = os.dup(old.fileno())
        selector.register(fd, EVENT_READ)
        os.dup2(other.fileno(), fd)
        selector.unregister(fd)
        os.close(fd)
        assert selector.select(0) == []

    @pytest.mark.stdlib_differs("epoll of the standard library says FileNotFoundError")
    def test_a_new_interest_is_that_of_the_new_file(self, selector: Any, make_pair: MakePair) -> None:
        old, (new, peer) = make_pair()[0], make_pair()
        fd = os.dup(old.fileno())
        selector.register(fd, EVENT_READ)
        os.dup2(new.fileno(), fd)
        selector.modify(fd, EVENT_WRITE)
        assert ready_fds(selector.select(0)) == {fd: EVENT_WRITE}
        selector.modify(fd, EVENT_READ)
        assert selector.select(0) == []
        peer.send(b"x")
        assert ready_fds(selector.select(0)) == {fd: EVENT_READ}
        selector.unregister(fd)
        os.close(fd)

    def test_it_can_be_registered_after_the_old_one_was_unregistered(self, selector: Any, make_pair: MakePair) -> None:
        for _ in range(5):
            ours, peer = make_pair()
            fd = ours.fileno()
            selector.register(fd, EVENT_READ)
            peer.send(b"x")
            assert ready_fds(selector.select(0)) == {fd: EVENT_READ}
            ours.close()
            selector.unregister(fd)


class TestDuplicateThatOutlivesItsClose:
    """epoll goes on reporting what a duplicate keeps open, under a number that nobody has registered any more."""

    @pytest.fixture
    def new(self, make_pair: MakePair) -> Pair:
        """Made first, so that its descriptors are not the number in question."""
        return make_pair()

    @pytest.fixture
    def stale(self, selector: Any, new: Pair, make_pair: MakePair) -> tuple[int, Pair]:
        """A number that was registered and closed while a duplicate lives, and the duplicate with its peer."""
        ours, peer = make_pair()
        fd = os.dup(ours.fileno())
        selector.register(fd, EVENT_READ)
        os.close(fd)
        selector.unregister(fd)
        return fd, (ours, peer)

    @pytest.mark.stdlib_differs("epoll of the standard library spins")
    def test_it_does_not_spin(self, selector: Any, stale: tuple[int, Pair]) -> None:
        stale[1][1].send(b"x")
        assert selector.select(0) == []
        assert not returns_early(selector)

    @pytest.mark.stdlib_differs("epoll of the standard library spins")
    def test_the_others_are_served(self, selector: Any, stale: tuple[int, Pair], make_pair: MakePair) -> None:
        pairs = [make_pair() for _ in range(10)]
        for ours, peer in pairs:
            selector.register(ours, EVENT_READ)
            peer.send(b"x")
        stale[1][1].send(b"x")
        for _ in range(2):
            assert ready_fds(selector.select(0)) == {ours.fileno(): EVENT_READ for ours, _ in pairs}
        for ours, _ in pairs:
            drain(ours)
        assert not returns_early(selector)

    @pytest.mark.stdlib_differs("epoll of the standard library reports the old file under the new one's number")
    def test_a_new_file_of_that_number_is_not_taken_for_it(
        self, selector: Any, stale: tuple[int, Pair], new: Pair
    ) -> None:
        fd, (_, old_peer) = stale
        os.dup2(new[0].fileno(), fd, inheritable=False)
        selector.register(fd, EVENT_READ)
        old_peer.send(b"x")
        assert selector.select(0) == []
        assert not returns_early(selector)
        new[1].send(b"x")
        assert ready_fds(selector.select(0)) == {fd: EVENT_READ}
        selector.unregister(fd)
        os.close(fd)

    @pytest.mark.stdlib_differs("epoll of the standard library reports both under one number")
    def test_both_ready_at_once_are_one_event(self, selector: Any, stale: tuple[int, Pair], new: Pair) -> None:
        fd, (_, old_peer) = stale
        os.dup2(new[0].fileno(), fd, inheritable=False)
        selector.register(fd, EVENT_READ)
        old_peer.send(b"x")
        new[1].send(b"x")
        for _ in range(2):
            assert [(key.fd, events) for key, events in selector.select(0)] == [(fd, EVENT_READ)]
        drain(new[0])
        assert selector.select(0) == []
        assert not returns_early(selector)
        selector.unregister(fd)
        os.close(fd)

    @pytest.mark.stdlib_differs("epoll of the standard library says FileNotFoundError")
    def test_a_modified_registration_is_not_taken_for_it(self, selector: Any, make_pair: MakePair) -> None:
        (old, old_peer), (new, new_peer) = make_pair(), make_pair()
        fd = os.dup(old.fileno())
        selector.register(fd, EVENT_READ)
        os.dup2(new.fileno(), fd)
        selector.modify(fd, BOTH)
        selector.modify(fd, EVENT_READ)
        old_peer.send(b"x")
        assert selector.select(0) == []
        assert not returns_early(selector)
        new_peer.send(b"x")
        assert ready_fds(selector.select(0)) == {fd: EVENT_READ}
        selector.unregister(fd)
        os.close(fd)

    def test_the_same_file_under_the_same_number_can_be_registered_again(
        self, selector: Any, stale: tuple[int, Pair]
    ) -> None:
        fd, (ours, peer) = stale
        os.dup2(ours.fileno(), fd)
        try:
            selector.register(fd, EVENT_READ)
        except FileExistsError:
            assert not hasattr(selector, "capabilities")  # epoll of the standard library
        else:
            peer.send(b"x")
            assert ready_fds(selector.select(0)) == {fd: EVENT_READ}
        finally:
            os.close(fd)


class TestRegularFile:
    @pytest.mark.only("epoll")
    def test_epoll_refuses_it_and_leaves_no_trace(self, selector: Any) -> None:
        with tempfile.TemporaryFile() as file:
            with pytest.raises(PermissionError) as raised:
                selector.register(file, EVENT_READ)
            assert raised.value.errno == errno.EPERM
            assert not selector.get_map()
            with pytest.raises(KeyError):
                selector.unregister(file)
        assert selector.select(0) == []

    @pytest.mark.only("poll", "select")
    def test_it_is_always_ready(self, selector: Any) -> None:
        with tempfile.TemporaryFile() as file:
            selector.register(file, BOTH)
            assert ready_fds(selector.select(0)) == {file.fileno(): BOTH}

    @pytest.mark.stdlib_differs("it has no capabilities")
    def test_the_capabilities_say_which(self, case: Any, selector: Any) -> None:
        assert ("files" in selector.capabilities) == (case.call in {"poll", "select"})


@pytest.fixture
def large_fd(pair: Pair) -> Iterator[int]:
    """A descriptor of the first pair beyond FD_SETSIZE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip(f"RLIMIT_NOFILE allows {hard} descriptors, and 2048 are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    fd = 2000
    os.dup2(pair[0].fileno(), fd, inheritable=False)
    yield fd
    os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class TestLargeNumber:
    @pytest.mark.only("select")
    @pytest.mark.stdlib_differs("the standard library takes it, and every wait raises ValueError from then on")
    def test_select_refuses_it_with_the_limit_and_the_way_out(self, selector: Any, pair: Pair, large_fd: int) -> None:
        with pytest.raises(ValueError, match=r"2000.*FD_SETSIZE.*1024.*use epoll, kqueue or poll"):
            selector.register(large_fd, EVENT_WRITE)
        assert not selector.get_map()
        selector.register(pair[1], EVENT_WRITE)
        assert ready_fds(selector.select(0)) == {pair[1].fileno(): EVENT_WRITE}
        assert "any_fd" not in selector.capabilities

    @pytest.mark.only("epoll", "kqueue", "poll")
    def test_the_others_hold_it(self, selector: Any, large_fd: int) -> None:
        selector.register(large_fd, EVENT_WRITE)
        assert ready_fds(selector.select(0)) == {large_fd: EVENT_WRITE}
        selector.unregister(large_fd)


@pytest.mark.only("epoll", "kqueue", "poll")
def test_two_thousand_descriptors(selector: Any, make_pair: MakePair) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2500:
        pytest.skip(f"RLIMIT_NOFILE allows {hard} descriptors, and 2500 are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2500), hard))
    try:
        pairs = [make_pair() for _ in range(1000)]
        expected: dict[int, int] = {}
        for ours, peer in pairs:
            peer.send(b"x")
            selector.register(ours, BOTH)
            selector.register(peer, EVENT_WRITE)
            expected |= {ours.fileno(): BOTH, peer.fileno(): EVENT_WRITE}
        assert ready_fds(selector.select(None)) == expected
        for ours, peer in pairs:
            selector.unregister(ours)
            selector.unregister(peer)
            ours.close()
            peer.close()
        assert selector.select(0) == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_opening_and_closing_leaks_nothing(case: Any, pair: Pair) -> None:
    def lowest() -> int:
        with socket.socket() as sock:
            return sock.fileno()

    before = lowest()
    for _ in range(1000):
        selector = case.make()
        selector.register(pair[0], EVENT_READ)
        selector.close()
    assert lowest() == before
