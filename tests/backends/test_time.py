"""What a timeout becomes on its way to the system call: no less, and no millisecond more than its clock needs.

How long the waits last is a matter of the conformance kit, which test_conformance.py runs on each backend.
"""

import math
from selectors import EVENT_READ
from typing import Any

import pytest

from flowno_backends import EpollSelector, PollSelector, SelectSelector

HUGE = [1e6 + 0.5, 2_147_483.0, 2_147_483.648, 1e7, 1e10, 1e20, 1e300, math.inf]


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
