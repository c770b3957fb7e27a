"""Entries of epoll that have outlived the close of their number, and cannot be removed: fact b of the backend.

They are reported at once, at each wait, and must cost nobody anything: not the place of what is ready, not the time of
who waits, and not the processor where there is no descriptor for another epoll object.
"""

import errno
import os
import select
import sys
import threading
import time
from collections.abc import Iterator
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

import pytest

from flowno_backends import EpollSelector
from tests.backends.conftest import MakePair, ready_fds
from tests.support.limits import open_files

if sys.platform != "linux":
    pytest.skip("epoll is Linux's", allow_module_level=True)

pytestmark = [
    pytest.mark.only("epoll"),
    pytest.mark.usefixtures("case"),
    pytest.mark.stdlib_differs("the standard library's EpollSelector has no way to be rid of them"),
]


class Module:
    """The module ``select``, which can be out of descriptors for another epoll object, and notes the waits."""

    def __init__(self) -> None:
        self.is_out_of_descriptors = False
        #: The timeouts of the waits so far, and the seconds that each takes at least, whatever is ready.
        self.waits: list[float] = []
        self.slowness = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(select, name)

    def epoll(self) -> Any:
        if self.is_out_of_descriptors:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return Epoll(self)


class Epoll:
    def __init__(self, module: Module) -> None:
        self._module = module
        self._really = select.epoll()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._really, name)

    def poll(self, timeout: float, room: int) -> Any:
        self._module.waits.append(timeout)
        time.sleep(self._module.slowness)
        return self._really.poll(timeout, room)


@pytest.fixture
def module() -> Module:
    return Module()


@pytest.fixture
def selector(module: Module) -> Iterator[EpollSelector]:
    with open_files(1024), EpollSelector(select_module=module) as selector:
        yield selector


@pytest.fixture
def numbers() -> Iterator[list[int]]:
    """Descriptors that are closed at the end."""
    held: list[int] = []
    yield held
    for fd in held:
        os.close(fd)


def add_strays(selector: EpollSelector, make_pair: MakePair, count: int) -> None:
    """Register, close and unregister so many that are ready and whose file stays open."""
    for _ in range(count):
        ours, theirs = make_pair()
        theirs.send(b"x")
        fd = os.dup(ours.fileno())
        selector.register(fd, EVENT_READ)
        os.close(fd)
        selector.unregister(fd)


def add_live(selector: EpollSelector, make_pair: MakePair, count: int) -> dict[int, int]:
    """Register so many that are ready; the answer of a select."""
    fds = {}
    for _ in range(count):
        ours, theirs = make_pair()
        theirs.send(b"x")
        selector.register(ours, EVENT_READ)
        fds[ours.fileno()] = EVENT_READ
    return fds


def lasts(selector: EpollSelector, seconds: float) -> bool:
    """Whether a wait in which nothing happens lasts as long as was asked for."""
    started = time.monotonic()
    assert selector.select(seconds) == []
    return time.monotonic() - started >= seconds * 0.99


@pytest.mark.parametrize("is_out", [False, True], ids=["", "no-descriptor-free"])
@pytest.mark.parametrize("timeout", [0, 60, None])
@pytest.mark.parametrize(
    ("live", "strays"), [(1, 63), (1, 64), (1, 200), (54, 11), (63, 1), (63, 2), (64, 1), (64, 64), (65, 63), (128, 20)]
)
def test_all_that_are_ready_come_in_one_call_however_many_strays_there_are(
    selector: EpollSelector,
    module: Module,
    make_pair: MakePair,
    numbers: list[int],
    live: int,
    strays: int,
    timeout: float | None,
    is_out: bool,
) -> None:
    for _ in range(strays):  # so that each stray has a number of its own, which nothing live has
        add_strays(selector, make_pair, 1)
        numbers.append(os.open(os.devnull, os.O_RDONLY))
    expected = add_live(selector, make_pair, live)
    module.is_out_of_descriptors = is_out
    for _ in range(2):
        assert ready_fds(selector.select(timeout)) == expected


def test_strays_under_the_numbers_of_what_is_ready_hide_none_of_it(
    selector: EpollSelector, make_pair: MakePair, numbers: list[int]
) -> None:
    for _ in range(64):
        add_strays(selector, make_pair, 2)
        ours, theirs = make_pair()
        theirs.send(b"x")
        numbers.append(os.dup(ours.fileno()))  # the number that the strays had
        selector.register(numbers[-1], EVENT_READ)
    for _ in range(2):
        assert ready_fds(selector.select(0)) == dict.fromkeys(numbers, EVENT_READ)


@pytest.mark.parametrize("strays", [1, 64, 150])
def test_a_wait_is_not_ended_by_strays(selector: EpollSelector, make_pair: MakePair, strays: int) -> None:
    add_strays(selector, make_pair, strays)
    assert lasts(selector, 0.05)
    assert lasts(selector, 0.001)


def test_one_that_is_in_doubt_in_an_answer_that_is_full_costs_no_new_object(
    selector: EpollSelector, make_pair: MakePair, numbers: list[int]
) -> None:
    expected = add_live(selector, make_pair, 63)
    before = selector.fileno()
    closed, _ = make_pair()
    fd = closed.fileno()
    selector.register(fd, EVENT_READ)
    closed.close()
    selector.unregister(fd)
    live, peer = make_pair()
    peer.send(b"x")
    if live.fileno() != fd:
        numbers.append(os.dup2(live.fileno(), fd, inheritable=False))
    selector.register(fd, EVENT_READ)
    assert ready_fds(selector.select(0)) == expected | {fd: EVENT_READ}
    assert selector.fileno() == before


def test_a_wait_that_has_met_a_stray_goes_on_for_what_is_left_of_it(
    selector: EpollSelector, module: Module, make_pair: MakePair
) -> None:
    add_strays(selector, make_pair, 1)
    module.slowness = 0.01
    assert selector.select(0.05) == []
    first, second = module.waits
    assert second <= first - module.slowness


def test_a_look_that_has_met_a_stray_does_not_look_again(
    selector: EpollSelector, module: Module, make_pair: MakePair
) -> None:
    add_strays(selector, make_pair, 1)
    assert selector.select(0) == []
    assert module.waits == [0]


def test_a_wait_is_not_ended_by_a_stray_of_a_registered_number(
    selector: EpollSelector, make_pair: MakePair, numbers: list[int]
) -> None:
    add_strays(selector, make_pair, 1)
    numbers.append(os.dup(make_pair()[0].fileno()))
    selector.register(numbers[0], EVENT_READ)
    assert lasts(selector, 0.05)


@pytest.mark.parametrize("is_out", [False, True], ids=["", "no-descriptor-free"])
@pytest.mark.parametrize("timeout", [60, None])
def test_a_wait_that_has_met_a_stray_is_ended_by_what_becomes_ready(
    selector: EpollSelector, module: Module, make_pair: MakePair, timeout: float | None, is_out: bool
) -> None:
    add_strays(selector, make_pair, 1)
    ours, theirs = make_pair()
    selector.register(ours, EVENT_READ)
    module.is_out_of_descriptors = is_out
    peer = threading.Timer(0.02, theirs.send, [b"x"])
    peer.start()
    try:
        assert ready_fds(selector.select(timeout)) == {ours.fileno(): EVENT_READ}
    finally:
        peer.join()


class TestWithoutADescriptorForANewObject:
    @pytest.mark.parametrize("strays", [1, 64])
    def test_a_wait_lasts_and_does_not_spin(
        self, selector: EpollSelector, module: Module, make_pair: MakePair, strays: int
    ) -> None:
        add_strays(selector, make_pair, strays)
        selector.register(make_pair()[0], EVENT_READ)
        module.is_out_of_descriptors = True
        worked = time.thread_time()
        for _ in range(2):
            assert lasts(selector, 0.1)
        assert time.thread_time() - worked < 0.1

    def test_a_closed_descriptor_is_missed_as_by_epoll(
        self, selector: EpollSelector, module: Module, make_pair: MakePair
    ) -> None:
        add_strays(selector, make_pair, 1)
        closed, _ = make_pair()
        selector.register(closed, EVENT_READ)
        closed.close()
        module.is_out_of_descriptors = True
        assert lasts(selector, 0.02)

    def test_registrations_come_change_and_go(
        self, selector: EpollSelector, module: Module, make_pair: MakePair
    ) -> None:
        add_strays(selector, make_pair, 1)
        module.is_out_of_descriptors = True
        ours, theirs = make_pair()
        selector.register(ours, EVENT_READ)
        assert selector.select(0) == []
        theirs.send(b"x")
        assert ready_fds(selector.select(0)) == {ours.fileno(): EVENT_READ}
        selector.modify(ours, EVENT_WRITE)
        assert ready_fds(selector.select(0)) == {ours.fileno(): EVENT_WRITE}
        selector.unregister(ours)
        assert selector.select(0) == []

    def test_the_first_wait_that_finds_one_is_rid_of_the_strays(
        self, selector: EpollSelector, module: Module, make_pair: MakePair
    ) -> None:
        add_strays(selector, make_pair, 1)
        module.is_out_of_descriptors = True
        before = selector.fileno()
        assert selector.select(0) == []
        assert selector.fileno() == before
        module.is_out_of_descriptors = False
        assert lasts(selector, 0.02)
        assert selector.fileno() != before
        module.waits.clear()
        assert lasts(selector, 0.02)
        assert len(module.waits) == 1
