"""The selectors that the contract is tested on: the four of flowno, and the standard library's beside them.

A test that takes ``selector`` or ``make_selector`` runs on each. Where the standard library is known not to keep the
rule, the test says so, and why, with ``@pytest.mark.stdlib_differs(reason)``; ``only("...")`` names
the backends that have a rule of their own. With ``FLOWNO_SELECTOR`` set, only the cases of that backend run.
"""

import os
import select
import selectors
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from flowno.testing.conformance.bench import Pair, Pipe
from flowno_backends import EpollSelector, KqueueSelector, PollSelector, SelectSelector

SelectorFactory = Callable[[], Any]
MakePair = Callable[[], tuple[socket.socket, socket.socket]]

posix = pytest.mark.skipif(os.name != "posix", reason="on Windows only sockets are waited for")


@dataclass(frozen=True)
class Case:
    """A selector class under test, and the system call that it stands on."""

    id: str
    call: str
    make: SelectorFactory

    @property
    def is_ours(self) -> bool:
        return not self.id.startswith("stdlib")


def _kqueue() -> SelectorFactory | None:
    if hasattr(select, "kqueue"):
        return KqueueSelector
    if not hasattr(select, "poll"):
        return None  # the fake stands on poll
    from tests.support.fake_kqueue import FakeKqueueSelector

    return FakeKqueueSelector


#: What flowno ships, whether this machine has the system call or not: with a ``select`` module of the test's own.
CLASSES: dict[str, Any] = {
    "epoll": EpollSelector,
    "kqueue": KqueueSelector,
    "poll": PollSelector,
    "select": SelectSelector,
}


def chosen() -> set[str]:
    """The backends that ``FLOWNO_SELECTOR`` names, else all."""
    names = os.environ.get("FLOWNO_SELECTOR", "").lower()
    if "kqueueselector" in names:  # the fake, by its dotted name
        names = "kqueue"
    return {name.strip() for name in names.split(",")} & CLASSES.keys() or set(CLASSES)


def _backends() -> dict[str, SelectorFactory]:
    ours = {
        "epoll": EpollSelector if hasattr(select, "epoll") else None,
        "kqueue": _kqueue(),
        "poll": PollSelector if hasattr(select, "poll") else None,
        "select": SelectSelector,
    }
    return {call: make for call, make in ours.items() if make is not None}


#: What can be made here, by system call: of flowno, and of the standard library.
BACKENDS = _backends()
STDLIB: dict[str, SelectorFactory] = {
    call: getattr(selectors, f"{call.capitalize()}Selector")
    for call in CLASSES
    if hasattr(selectors, f"{call.capitalize()}Selector")
}


def _all_cases() -> list[Case]:
    cases = [Case(call, call, make) for call, make in BACKENDS.items()]
    cases += [Case(f"stdlib-{call}", call, make) for call, make in STDLIB.items()]
    return [case for case in cases if case.call in chosen()]


CASES = _all_cases()


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "stdlib_differs(reason): the standard library's selectors do not keep this rule",
        "only(*calls): the rule of these backends alone",
    ):
        config.addinivalue_line("markers", line)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    ours_alone = metafunc.definition.get_closest_marker("stdlib_differs")
    only = metafunc.definition.get_closest_marker("only")
    calls = chosen().intersection(only.args) if only else chosen()
    if "case" in metafunc.fixturenames:
        cases = [
            pytest.param(case, id=case.id) for case in CASES if (case.is_ours or not ours_alone) and case.call in calls
        ]
        of = " and ".join(only.args) if only else "selectors"
        nobody = pytest.param(
            None, id="none", marks=pytest.mark.skip(reason=f"a rule of {of}, of which none runs here")
        )
        metafunc.parametrize("case", cases or [nobody])
    if "backend_class" in metafunc.fixturenames:
        metafunc.parametrize("backend_class", [CLASSES[call] for call in CLASSES if call in calls])


@pytest.fixture
def make_selector(case: Case) -> Iterator[SelectorFactory]:
    """Makes selectors that are closed after the test."""
    with ExitStack() as stack:

        def make() -> Any:
            selector = case.make()
            stack.callback(selector.close)
            return selector

        yield make


@pytest.fixture
def selector(make_selector: SelectorFactory) -> Any:
    return make_selector()


@pytest.fixture
def make_pair() -> Iterator[MakePair]:
    """Makes connected, non-blocking socket pairs that are closed after the test."""
    with ExitStack() as stack:

        def make() -> Pair:
            pair = socket.socketpair()
            for sock in pair:
                sock.setblocking(False)
                stack.enter_context(sock)
            return pair

        yield make


@pytest.fixture
def pair(make_pair: MakePair) -> Pair:
    return make_pair()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    ends = Pipe()
    yield ends
    ends.close()


def ready_fds(ready: list[tuple[selectors.SelectorKey, int]]) -> dict[int, int]:
    """``{fd: events}``, the entries of one fd together; they must not overlap."""
    together: dict[int, int] = {}
    for key, events in ready:
        assert events, key
        assert not events & ~key.events, (key, events)
        assert not together.get(key.fd, 0) & events, ready
        together[key.fd] = together.get(key.fd, 0) | events
    return together
