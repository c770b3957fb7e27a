"""How often the kernel is asked: nothing that it knows already, and nothing twice."""

import os
import select
from collections import Counter
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

import pytest

from tests.backends.conftest import CLASSES, MakePair, Pair, ready_fds

BOTH = EVENT_READ | EVENT_WRITE


class Counting:
    """A module, or an object that it made, whose calls are counted by name."""

    def __init__(self, really: Any, counts: Counter[str]) -> None:
        self._really = really
        self._counts = counts

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._really, name)
        if not callable(value) or name in {"kevent", "close", "fileno"}:
            return value

        def call(*args: Any) -> Any:
            self._counts[name] += 1
            answer = value(*args)
            makes = name in {"epoll", "kqueue"} or (name == "poll" and not args)
            return Counting(answer, self._counts) if makes else answer

        return call


@pytest.fixture
def counted(case: Any) -> Any:
    """A selector and the counts of its calls, which begin at zero."""
    counts: Counter[str] = Counter()
    module: Any = select
    if case.call == "kqueue" and not hasattr(select, "kqueue"):
        from tests.support.fake_kqueue import FakeKqueue

        module = FakeKqueue()
    selector = CLASSES[case.call](select_module=Counting(module, counts))
    counts.clear()
    yield selector, counts
    selector.close()


pytestmark = pytest.mark.stdlib_differs("the standard library's selectors take no select module")


@pytest.mark.parametrize("events", [EVENT_READ, EVENT_WRITE, BOTH])
def test_one_call_to_register_and_at_most_one_to_unregister(counted: Any, pair: Pair, events: int) -> None:
    selector, counts = counted
    selector.register(pair[0].fileno(), events)
    assert counts.total() == 1
    selector.unregister(pair[0].fileno())
    assert counts.total() <= 2


def test_new_data_costs_no_call(counted: Any, pair: Pair) -> None:
    selector, counts = counted
    selector.register(pair[0], EVENT_WRITE, "old")
    counts.clear()
    selector.modify(pair[0], EVENT_WRITE, "new")
    assert counts.total() == 0
    assert [key.data for key, _ in selector.select(0)] == ["new"]


def test_a_new_interest_costs_one_call_at_most(counted: Any, pair: Pair) -> None:
    selector, counts = counted
    selector.register(pair[0], EVENT_READ)
    for events in (EVENT_WRITE, BOTH, EVENT_READ):
        counts.clear()
        selector.modify(pair[0], events)
        assert counts.total() <= 1


def test_one_call_to_wait(counted: Any, pair: Pair) -> None:
    selector, counts = counted
    selector.register(pair[0], BOTH)
    counts.clear()
    for _ in range(3):
        assert ready_fds(selector.select(0)) == {pair[0].fileno(): EVENT_WRITE}
    assert counts.total() == 3


def test_all_that_are_ready_come_with_one_call(counted: Any, make_pair: MakePair) -> None:
    selector, counts = counted
    pairs = [make_pair() for _ in range(80)]
    for ours, theirs in pairs:
        selector.register(ours, EVENT_READ)
        theirs.send(b"x")
    counts.clear()
    assert ready_fds(selector.select()) == {ours.fileno(): EVENT_READ for ours, _ in pairs}
    assert counts.total() == 1


@pytest.mark.only("epoll")
def test_a_number_that_was_in_doubt_costs_no_more_after_a_rebuild(counted: Any, make_pair: MakePair) -> None:
    selector, counts = counted
    new, (old, peer) = make_pair(), make_pair()
    fd = os.dup(old.fileno())
    selector.register(fd, EVENT_READ)
    os.dup2(new[0].fileno(), fd, inheritable=False)
    selector.modify(fd, BOTH)  # the old file is still in epoll, under the number of the new one
    new[0].send(b"x")
    peer.send(b"x")
    counts.clear()
    assert ready_fds(selector.select(0)) == {fd: EVENT_WRITE}
    assert counts["epoll"] == 1
    for _ in range(2):
        counts.clear()
        assert ready_fds(selector.select(0)) == {fd: EVENT_WRITE}
        assert counts == {"poll": 1}
    selector.unregister(fd)
    os.close(fd)


def test_a_fork_costs_a_child_that_uses_no_selector_nothing(counted: Any, pair: Pair) -> None:
    selector, counts = counted
    selector.register(pair[0], BOTH)
    counts.clear()
    if not hasattr(selector, "fileno"):
        selector.after_fork()
        assert counts.total() == 0
        return
    kernel = selector._kernel
    selector._leave_to_parent()  # what the hook does in the child
    assert counts.total() == 0
    assert not isinstance(selector._kernel, type(kernel))
    selector.after_fork()
    assert counts.total() == 2  # one object, one registration
