"""How long a wait lasts: never less than asked for, never a millisecond more than the clock of the backend needs."""

import math
import sys
import time
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

import pytest

from flowno_backends import EpollSelector, PollSelector, SelectSelector
from tests.backends.conftest import Pair

HUGE = [1e6 + 0.5, 2_147_483.0, 2_147_483.648, 1e7, 1e10, 1e20, 1e300, math.inf]


@pytest.mark.parametrize("timeout", [0, 0.0, -0.0, -1e-9, -1, -1e10, -math.inf])
def test_no_time_is_no_wait(selector: Any, pair: Pair, timeout: float) -> None:
    selector.register(pair[0], EVENT_READ)
    started = time.monotonic()
    assert selector.select(timeout) == []
    assert time.monotonic() - started < 1


SHORT = [1e-9, 1e-6, 0.0001, 0.001, 0.0015, 0.009, 0.0205]


@pytest.mark.parametrize("timeout", SHORT)
def test_a_wait_is_never_shorter_than_asked_for(selector: Any, pair: Pair, timeout: float) -> None:
    selector.register(pair[0], EVENT_READ)
    for _ in range(3):
        started = time.monotonic()
        assert selector.select(timeout) == []
        assert time.monotonic() - started >= timeout


@pytest.mark.stdlib_differs("on Windows the standard library raises WSAEINVAL with nothing registered")
@pytest.mark.parametrize("timeout", SHORT)
def test_nor_is_one_with_nothing_registered(selector: Any, timeout: float) -> None:
    started = time.monotonic()
    assert selector.select(timeout) == []
    assert time.monotonic() - started >= timeout


@pytest.mark.stdlib_differs("the standard library raises OverflowError, or is overtaken by a C int")
@pytest.mark.parametrize("timeout", HUGE)
def test_any_length_is_accepted(selector: Any, pair: Pair, timeout: float) -> None:
    selector.register(pair[0], EVENT_WRITE)
    assert len(selector.select(timeout)) == 1


@pytest.mark.stdlib_differs("with nothing registered or by OverflowError the standard library's differ from each other")
def test_nan_is_a_value_error(selector: Any, pair: Pair) -> None:
    selector.register(pair[0], EVENT_WRITE)
    with pytest.raises(ValueError, match="NaN"):
        selector.select(math.nan)
    selector.unregister(pair[0])
    with pytest.raises(ValueError, match="NaN"):
        selector.select(math.nan)


@pytest.mark.only("select", "kqueue")
@pytest.mark.skipif(sys.platform == "win32", reason="on Windows select waits for ticks of the system's timer")
def test_fractions_of_a_millisecond_are_kept(selector: Any, pair: Pair) -> None:
    selector.register(pair[0], EVENT_READ)
    durations = []
    for _ in range(20):
        started = time.monotonic()
        selector.select(0.0001)
        durations.append(time.monotonic() - started)
    assert min(durations) < 0.0009


class Clock:
    """A ``select`` module whose calls note the timeout that they are given and return at once, with nothing ready."""

    KQ_EV_ADD = KQ_EV_DELETE = KQ_EV_ERROR = 1
    EPOLLIN = POLLIN = KQ_FILTER_READ = 1
    EPOLLOUT = POLLOUT = KQ_FILTER_WRITE = 4

    def __init__(self) -> None:
        self.timeouts: list[Any] = []

    def epoll(self) -> "Clock":
        return self

    kqueue = epoll

    def kevent(self, *fields: int) -> None:
        pass

    def close(self) -> None:
        pass

    def poll(self, timeout: Any = "construct", room: int = 0) -> Any:
        if timeout == "construct":
            return self
        self.timeouts.append(timeout)
        return []

    def register(self, fd: int, mask: int) -> None:
        pass

    def control(self, changes: Any, room: int, timeout: Any) -> list[Any]:
        self.timeouts.append(timeout)
        return []

    def select(self, readers: Any, writers: Any, exceptional: Any, timeout: Any) -> Any:
        self.timeouts.append(timeout)
        return [], [], []


def milliseconds(timeout: float, backend_class: type) -> int:
    """What selectmodule.c makes of a timeout in epoll (seconds) and poll (milliseconds): rounded up, in two steps."""
    unit = 1_000_000_000 if backend_class is EpollSelector else 1_000_000
    return -(-math.ceil(timeout * unit) // 1_000_000)


@pytest.mark.only("epoll", "poll")
class TestMilliseconds:
    def test_a_whole_number_of_them_is_not_rounded_up_further(self, backend_class: Any) -> None:
        clock = Clock()
        selector = backend_class(select_module=clock)
        wanted = [*range(1, 10_000), 86_400_000, 86_399_999]
        for number in wanted:
            selector.select(number / 1000)
        selector.close()
        assert [milliseconds(timeout, backend_class) for timeout in clock.timeouts] == wanted

    @pytest.mark.parametrize("timeout", [1e-12, 1e-9, 2e-9, 1e-6, 0.0001, 0.0009, 0.00100001, 0.0015, 1.9991])
    def test_a_fraction_is_rounded_up(self, backend_class: Any, timeout: float) -> None:
        clock = Clock()
        selector = backend_class(select_module=clock)
        selector.select(timeout)
        selector.close()
        assert milliseconds(clock.timeouts[0], backend_class) == math.ceil(timeout * 1000)

    @pytest.mark.parametrize("timeout", HUGE)
    def test_they_fit_a_c_int(self, backend_class: Any, timeout: float) -> None:
        clock = Clock()
        selector = backend_class(select_module=clock)
        selector.select(timeout)
        selector.close()
        assert 10**9 <= milliseconds(clock.timeouts[0], backend_class) <= 2**31 - 1


@pytest.mark.parametrize(
    ("timeout", "given"), [(None, None), (0, 0), (-1, 0), (-1e-12, 0), (-math.inf, 0), (math.inf, 2e6)]
)
def test_what_the_system_call_is_given(backend_class: Any, timeout: float | None, given: float | None) -> None:
    clock = Clock()
    selector = backend_class(select_module=clock)
    selector.register(0, EVENT_READ)
    clock.timeouts.clear()
    selector.select(timeout)
    selector.close()
    if given is not None and backend_class is PollSelector:
        given *= 1000
    assert clock.timeouts == [given]


@pytest.mark.only("select")
@pytest.mark.stdlib_differs("on Windows the standard library raises WSAEINVAL with nothing registered")
def test_select_with_nothing_registered_asks_nobody(case: Any) -> None:
    clock = Clock()
    selector: Any = SelectSelector(select_module=clock)
    assert selector.select(0.001) == []
    assert clock.timeouts == []
