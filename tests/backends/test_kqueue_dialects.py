"""The kqueue backend keeps the contract on every platform that has kqueue, each of which has its own ways.

They are those of the table in backends/flowno_backends/kqueue.py, as tests/support/fake_kqueue.py plays them.
"""

import errno
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

import pytest

from flowno_backends import KqueueSelector, PollSelector
from flowno_backends.base import LONGEST
from tests.backends.conftest import MakePair, Pair, Pipe, chosen, ready_fds

if sys.platform != "linux":
    pytest.skip(
        "the dialects stand on Linux's poll; elsewhere there is a real kqueue, or no poll", allow_module_level=True
    )
if "kqueue" not in chosen():
    pytest.skip("FLOWNO_SELECTOR asks for another backend", allow_module_level=True)

from tests.backends.test_agreement import try_programs
from tests.support.fake_kqueue import DIALECTS, ENOTCAPABLE, FakeKqueue, FakeKqueueSelector

BOTH = EVENT_READ | EVENT_WRITE
OTHERS = [platform for platform in DIALECTS if platform != "freebsd"]


@pytest.fixture(params=DIALECTS)
def module(request: pytest.FixtureRequest) -> FakeKqueue:
    return FakeKqueue(request.param)


@pytest.fixture
def selector(module: FakeKqueue) -> Iterator[KqueueSelector]:
    with FakeKqueueSelector(module) as selector:
        yield selector


def refusal(call: Any) -> int | None:
    with pytest.raises(OSError) as raised:  # noqa: PT011 - the caller looks at the errno
        call()
    return raised.value.errno


class TestPipeWithoutReader:
    """Difference 1: an error, another error, or an event; the answer of the backend is the same."""

    @pytest.fixture(autouse=True)
    def dead(self, pipe: Pipe) -> None:
        pipe.close_reader()

    def test_it_can_be_registered_and_is_ready_for_writing(self, selector: KqueueSelector, pipe: Pipe) -> None:
        selector.register(pipe.writer, EVENT_WRITE)
        for _ in range(2):
            assert ready_fds(selector.select(None)) == {pipe.writer: EVENT_WRITE}
        selector.unregister(pipe.writer)
        assert selector.select(0) == []

    def test_a_modify_makes_it_ready_for_writing(self, selector: KqueueSelector, pipe: Pipe) -> None:
        selector.register(pipe.writer, EVENT_READ)
        selector.modify(pipe.writer, EVENT_WRITE)
        assert ready_fds(selector.select(None)) == {pipe.writer: EVENT_WRITE}

    def test_the_others_are_served(self, selector: KqueueSelector, pipe: Pipe, pair: Pair) -> None:
        selector.register(pipe.writer, EVENT_WRITE)
        selector.register(pair[0], EVENT_READ)
        pair[1].send(b"x")
        assert ready_fds(selector.select(None)) == {pipe.writer: EVENT_WRITE, pair[0].fileno(): EVENT_READ}

    def test_its_number_may_be_another_file_afterwards(self, selector: KqueueSelector, pipe: Pipe, pair: Pair) -> None:
        selector.register(pipe.writer, EVENT_WRITE)
        selector.unregister(pipe.writer)
        os.dup2(pair[0].fileno(), pipe.writer)
        selector.register(pipe.writer, EVENT_READ)
        assert selector.select(0) == []

    def test_a_closed_descriptor_is_not_taken_for_it(self, selector: KqueueSelector, pipe: Pipe) -> None:
        """NetBSD says EBADF of both."""
        pipe.close_writer()
        for events in (EVENT_READ, EVENT_WRITE, BOTH):
            assert refusal(lambda events=events: selector.register(pipe.writer, events)) == errno.EBADF
        assert not selector.get_map()
        assert selector.select(0) == []

    def test_a_descriptor_that_was_closed_while_it_was_registered_is_not_taken_for_it(
        self, selector: KqueueSelector, pipe: Pipe
    ) -> None:
        """A modify asks anew, and is refused: what is closed is not ready for ever."""
        selector.register(pipe.writer, EVENT_READ)
        pipe.close_writer()
        assert refusal(lambda: selector.modify(pipe.writer, EVENT_WRITE)) == errno.EBADF
        assert selector.select(0) == []


class TestPipeThatLosesItsReader:
    """Differences 2 and 8: told once, or never, or as long as it lasts."""

    def test_who_waits_for_writing_is_told_each_time(self, selector: KqueueSelector, pipe: Pipe) -> None:
        selector.register(pipe.writer, EVENT_WRITE)
        assert ready_fds(selector.select(0)) == {pipe.writer: EVENT_WRITE}
        pipe.close_reader()
        for _ in range(3):
            assert ready_fds(selector.select(None)) == {pipe.writer: EVENT_WRITE}
        selector.unregister(pipe.writer)
        assert selector.select(0) == []
        selector.register(pipe.writer, EVENT_WRITE)
        assert ready_fds(selector.select(None)) == {pipe.writer: EVENT_WRITE}

    def test_a_changed_interest_holds_as_before(self, selector: KqueueSelector, pipe: Pipe) -> None:
        selector.register(pipe.writer, BOTH)
        pipe.close_reader()
        for _ in range(2):
            assert ready_fds(selector.select(None))[pipe.writer] & EVENT_WRITE
        selector.modify(pipe.writer, EVENT_READ)
        assert not ready_fds(selector.select(0)).get(pipe.writer, 0) & EVENT_WRITE
        selector.modify(pipe.writer, EVENT_WRITE)
        for _ in range(2):
            assert ready_fds(selector.select(None)) == {pipe.writer: EVENT_WRITE}

    @pytest.mark.parametrize("module", [FakeKqueue(platform) for platform in OTHERS], ids=OTHERS)
    def test_who_waits_for_reading_is_told(self, selector: KqueueSelector, pipe: Pipe) -> None:
        selector.register(pipe.writer, EVENT_READ)
        pipe.close_reader()
        assert ready_fds(selector.select(None)) == {pipe.writer: EVENT_READ}

    @pytest.mark.parametrize("module", [FakeKqueue("freebsd")], ids=["freebsd"])
    def test_who_waits_for_reading_on_freebsd_must_wait_for_writing(self, selector: KqueueSelector, pipe: Pipe) -> None:
        """Difference 2: ``pipe_kqfilter`` takes the filter, and 'also don't ever generate an event'."""
        selector.register(pipe.writer, EVENT_READ)
        pipe.close_reader()
        assert selector.select(0) == []
        selector.modify(pipe.writer, BOTH)
        assert ready_fds(selector.select(None)) == {pipe.writer: EVENT_WRITE}


class TestDevices:
    """Difference 3."""

    @pytest.mark.parametrize("platform", ["freebsd", "macos"])
    def test_one_that_is_refused_is_refused_as_a_file_is(self, platform: str) -> None:
        with FakeKqueueSelector(FakeKqueue(platform)) as selector, open(os.devnull, "rb") as device:
            assert refusal(lambda: selector.register(device, EVENT_READ)) == errno.EPERM
            assert not selector.get_map()
            assert selector.select(0) == []

    def test_a_terminal_can_be_watched(self, selector: KqueueSelector) -> None:
        master, terminal = os.openpty()
        try:
            selector.register(terminal, EVENT_READ)
            os.write(master, b"typed\n")
            assert ready_fds(selector.select(5)) == {terminal: EVENT_READ}
        finally:
            os.close(master)
            os.close(terminal)


class TestTime:
    """Difference 4."""

    @pytest.mark.parametrize("timeout", [None, 1e7, 1e9, 1e300, float("inf"), LONGEST])
    def test_no_timeout_is_refused(self, selector: KqueueSelector, pair: Pair, timeout: float | None) -> None:
        selector.register(pair[0], EVENT_WRITE)
        assert ready_fds(selector.select(timeout)) == {pair[0].fileno(): EVENT_WRITE}

    def test_macos_refuses_more_than_three_years(self) -> None:
        """What the test above would find without the backend's limit."""
        queue = FakeKqueue("macos").kqueue()
        assert refusal(lambda: queue.control(None, 1, 1e8 + 1)) == errno.EINVAL
        queue.close()


class TestLimitedDescriptors:
    """Difference 5: FreeBSD's Capsicum, where a descriptor without CAP_EVENT cannot be watched."""

    @pytest.fixture
    def module(self) -> FakeKqueue:
        return FakeKqueue("freebsd")

    @pytest.mark.parametrize("events", [EVENT_READ, EVENT_WRITE, BOTH])
    def test_registering_one_is_an_error_that_leaves_no_trace(
        self, selector: KqueueSelector, module: FakeKqueue, pair: Pair, events: int
    ) -> None:
        module.not_capable.add(pair[0].fileno())
        assert refusal(lambda: selector.register(pair[0], events)) == ENOTCAPABLE
        assert not selector.get_map()
        module.not_capable.clear()
        selector.register(pair[0], EVENT_WRITE)
        assert ready_fds(selector.select(0)) == {pair[0].fileno(): EVENT_WRITE}

    def test_one_that_was_limited_afterwards_can_be_unregistered(
        self, selector: KqueueSelector, module: FakeKqueue, make_pair: MakePair
    ) -> None:
        (limited, _), (good, _) = make_pair(), make_pair()
        selector.register(limited, EVENT_WRITE)
        selector.register(good, EVENT_WRITE)
        module.not_capable.add(limited.fileno())
        selector.unregister(limited)
        for _ in range(2):
            assert ready_fds(selector.select(0)) == {good.fileno(): EVENT_WRITE}
        selector.unregister(good)
        started = time.monotonic()
        assert selector.select(0.002) == []
        assert time.monotonic() - started >= 0.002

    def test_where_no_new_queue_can_be_had_the_old_one_serves_on(
        self, selector: KqueueSelector, module: FakeKqueue, make_pair: MakePair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (limited, _), (good, _) = make_pair(), make_pair()
        reader, writer = os.pipe()
        os.close(reader)
        selector.register(writer, EVENT_WRITE)  # ready for ever, fact d
        selector.register(limited, EVENT_WRITE)
        selector.register(good, EVENT_WRITE)
        module.not_capable.add(limited.fileno())
        selector.unregister(limited)

        def no_more() -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with monkeypatch.context() as patch:
            patch.setattr(module, "kqueue", no_more)
            for _ in range(2):
                assert ready_fds(selector.select(0)) == {good.fileno(): EVENT_WRITE, writer: EVENT_WRITE}
        for _ in range(2):
            assert ready_fds(selector.select(0)) == {good.fileno(): EVENT_WRITE, writer: EVENT_WRITE}
        os.close(writer)


class TestFiles:
    """Fact h: refused everywhere, by the errno of epoll."""

    def test_a_file_is_refused_and_leaves_no_trace(self, selector: KqueueSelector) -> None:
        with tempfile.TemporaryFile() as file:
            for events in (EVENT_READ, EVENT_WRITE, BOTH):
                assert refusal(lambda events=events: selector.register(file, events)) == errno.EPERM
        assert not selector.get_map()

    def test_a_folder_is_refused(self, selector: KqueueSelector) -> None:
        fd = os.open(tempfile.gettempdir(), os.O_RDONLY)
        try:
            assert refusal(lambda: selector.register(fd, EVENT_READ)) == errno.EPERM
        finally:
            os.close(fd)


class TestQueueThatIsGivenARegisteredNumber:
    def test_it_does_not_fail_the_change_to_a_new_one(self, selector: KqueueSelector, make_pair: MakePair) -> None:
        """Fact i, in a forked child: the lowest free number is that of what was closed while it was registered."""
        (good, peer), (closed, _) = make_pair(), make_pair()
        selector.register(good, EVENT_READ)
        selector.register(closed.fileno(), EVENT_READ)
        fd = closed.fileno()
        selector._leave_to_parent()  # what a fork does in the child
        closed.close()
        taken = []
        while (lowest := os.dup(peer.fileno())) != fd:
            taken.append(lowest)
            assert lowest < fd
        os.close(fd)
        selector.after_fork()
        assert selector.fileno() == fd
        peer.send(b"x")
        assert ready_fds(selector.select(0)) == {good.fileno(): EVENT_READ}
        for number in taken:
            os.close(number)


def test_a_listening_socket_and_a_half_close_are_seen(selector: KqueueSelector) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        selector.register(server, EVENT_READ)
        with socket.create_connection(server.getsockname()) as client:
            assert ready_fds(selector.select(5)) == {server.fileno(): EVENT_READ}
            accepted, _ = server.accept()
            with accepted:
                selector.register(accepted, EVENT_READ)
                client.shutdown(socket.SHUT_WR)
                assert ready_fds(selector.select(5)) == {accepted.fileno(): EVENT_READ}


# On FreeBSD poll(2) and kqueue differ about the writing end of a pipe, and openbsd is what the fake plays elsewhere.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("platform", ["netbsd", "macos"])
def test_random_programs_have_the_answers_of_poll(platform: str) -> None:
    try_programs(
        15,
        (f"kqueue on {platform}", lambda: FakeKqueueSelector(FakeKqueue(platform)), KqueueSelector.capabilities),
        ("poll", PollSelector, PollSelector.capabilities),
    )
