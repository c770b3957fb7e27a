"""``check(selector)``: a selector that breaks one rule is told which, and one that breaks none is left alone."""

import errno
import math
import re
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any, ClassVar, NamedTuple

import pytest

import flowno
from flowno import EventLoop
from flowno.core.event_loop.backend import SystemWorld, open_selector
from flowno.debug.selector_decorators import CALL_RULES, CheckSelector, ProtocolViolation
from flowno_backends import SelectSelector
from tests.conftest import ROOT
from tests.core.test_foreign_selectors import STANDARD, FiveMethods, exercise
from tests.support.broken_selectors import (
    BOTH,
    CountsInAnInt,
    ForgivesUnregister,
    IsImpatient,
    ModifiesTheUnknown,
    OverflowsAtNaN,
    RegistersTwice,
    ReportsGhosts,
    ReturnsNoKey,
    TakesAnyMask,
    TakesNaN,
    TakesNonsense,
    answering,
    descriptors,
    for_all_events,
    twice,
    without_data,
)
from tests.support.virtual_time import VirtualTimeSelector


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


# ------------------------------------------------------------------------------------- selectors that break one rule
# Those that the conformance kit is tested with, too, are in tests/support/broken_selectors.py.


class SaysTypeOfMask(SelectSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        if events > BOTH:
            raise KeyError(events)
        return super().register(fileobj, events, data)


class SystemRefusesNonsense(SelectSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        if fileobj == -1:
            raise OSError(errno.EBADF, "Bad file descriptor")
        return super().register(fileobj, events, data)


class ExistsAlready(SelectSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        if fileobj in self.get_map():
            raise FileExistsError(errno.EEXIST, "File exists")  # as epoll_ctl says it
        return super().register(fileobj, events, data)


class UnknownToTheSystem(SelectSelector):
    def unregister(self, fileobj: Any) -> SelectorKey:
        if fileobj not in self.get_map():
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return super().unregister(fileobj)


class KnowsItAlready(SelectSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        raise KeyError(fileobj)


class KnowsItNoMore(SelectSelector):
    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        raise KeyError(fileobj)


class FindsNothing(SelectSelector):
    def unregister(self, fileobj: Any) -> SelectorKey:
        raise KeyError(fileobj)


class ReturnsTheOldEvents(SelectSelector):
    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        old = self.get_key(fileobj)
        super().modify(fileobj, events, data)
        return old._replace(data=data)


class ReturnsAnotherKey(SelectSelector):
    def unregister(self, fileobj: Any) -> SelectorKey:
        return super().unregister(fileobj)._replace(fd=0)


class LeavesATrace(SelectSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        super().register(fileobj, events, data)
        raise OSError(errno.ENOSPC, "No space left on device")


class StaysAfterModify(SelectSelector):
    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")


class AsksTheSystemOfTheClosed(SelectSelector):
    def unregister(self, fileobj: Any) -> SelectorKey:
        key = super().unregister(fileobj)
        if isinstance(fileobj, socket.socket) and fileobj.fileno() < 0:
            raise OSError(errno.EBADF, "Bad file descriptor")
        return key


class WantsADescriptor(SelectSelector):
    def unregister(self, fileobj: Any) -> SelectorKey:
        if not isinstance(fileobj, int) and fileobj.fileno() < 0:
            raise ValueError("Invalid file descriptor: -1")
        return super().unregister(fileobj)


class FailsForOne(SelectSelector):
    def select(self, timeout: float | None = None) -> Any:
        raise OSError(errno.EBADF, "Bad file descriptor")


class RefusesLessThanNothing(SelectSelector):
    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout < 0:
            raise ValueError("timeout must be non-negative")
        return super().select(timeout)


class ReportsTheOldData(SelectSelector):
    old: SelectorKey

    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        self.old = self.get_key(fileobj)
        return super().modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> Any:
        return [(self.old, events) for _, events in super().select(timeout)]


class ReportsNothingOfIt(SelectSelector):
    def select(self, timeout: float | None = None) -> Any:
        return [(key, 0) for key, _ in super().select(timeout)]


class Minutes(SystemWorld):
    """A world whose time passes in waits alone."""

    now = 0.0

    def clock(self) -> float:
        return self.now


class RoundsDown(SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.world = Minutes()

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if timeout and not ready:
            self.world.now += int(timeout * 1000) / 1000
        return ready


def register(selector: Any, one: Any, other: Any) -> None:
    selector.register(one, EVENT_WRITE, "data")


def modify(selector: Any, one: Any, other: Any) -> None:
    selector.register(one, EVENT_READ, "data")
    selector.modify(one, EVENT_WRITE, "new data")


def select(selector: Any, one: Any, other: Any) -> None:
    selector.register(one, EVENT_WRITE, "data")
    selector.select(1)


def unregister(selector: Any, one: Any, other: Any) -> None:
    selector.register(one, EVENT_READ, "data")
    selector.unregister(one)
    selector.select(0)


def unregister_closed(selector: Any, one: Any, other: Any) -> None:
    selector.register(one, EVENT_READ, "data")
    one.close()
    selector.unregister(one)


def register_twice(selector: Any, one: Any, other: Any) -> None:
    selector.register(one, EVENT_READ)
    selector.register(one.fileno(), EVENT_READ)


class Broken(NamedTuple):
    rule: str
    selector: type[SelectSelector]
    provoke: Callable[[Any, Any, Any], object]


BROKEN = [
    Broken("mask", TakesAnyMask, lambda selector, one, _: selector.register(one, 4)),
    Broken("mask", TakesAnyMask, lambda selector, one, _: selector.register(one, 0)),
    Broken("mask", SaysTypeOfMask, lambda selector, one, _: selector.register(one, 7)),
    Broken(
        "mask",
        TakesAnyMask,
        lambda selector, one, _: (selector.register(one, EVENT_READ), selector.modify(one, 8)),
    ),
    Broken("descriptor", TakesNonsense, lambda selector, *_: selector.register("text", EVENT_READ)),
    Broken("descriptor", SystemRefusesNonsense, lambda selector, *_: selector.register(-1, EVENT_READ)),
    Broken("registered", RegistersTwice, register_twice),
    Broken("registered", ExistsAlready, register_twice),
    Broken("unknown", ModifiesTheUnknown, lambda selector, one, _: selector.modify(one, EVENT_READ)),
    Broken("unknown", ForgivesUnregister, lambda selector, one, _: selector.unregister(one)),
    Broken("unknown", UnknownToTheSystem, lambda selector, one, _: selector.unregister(one)),
    Broken("false-alarm", KnowsItAlready, register),
    Broken("false-alarm", KnowsItNoMore, modify),
    Broken("false-alarm", FindsNothing, unregister),
    Broken("key", ReturnsNoKey, register),
    Broken("key", answering("register", tuple), register),
    Broken("key", answering("modify", without_data), modify),
    Broken("key", ReturnsTheOldEvents, modify),
    Broken("key", ReturnsAnotherKey, unregister),
    Broken("failed-register", LeavesATrace, register),
    Broken("failed-modify", StaysAfterModify, modify),
    Broken("unregister", AsksTheSystemOfTheClosed, unregister_closed),
    Broken("unregister", WantsADescriptor, unregister_closed),
    Broken("nan", TakesNaN, lambda selector, *_: selector.select(math.nan)),
    Broken("nan", OverflowsAtNaN, lambda selector, *_: selector.select(math.nan)),
    Broken("select-raises", FailsForOne, lambda selector, *_: selector.select(0)),
    Broken("select-raises", CountsInAnInt, lambda selector, *_: selector.select(1e10)),
    Broken("select-raises", RefusesLessThanNothing, lambda selector, *_: selector.select(-1)),
    Broken("result", answering("select", dict), select),
    Broken("result", answering("select", descriptors), select),
    Broken("reported-key", ReportsGhosts, unregister),
    Broken("reported-key", ReportsTheOldData, lambda selector, *ends: (modify(selector, *ends), selector.select(1))),
    Broken("reported-events", answering("select", for_all_events), select),
    Broken("reported-events", ReportsNothingOfIt, select),
    Broken("reported-twice", answering("select", twice), select),
    Broken("early", IsImpatient, lambda selector, *_: selector.select(60)),
    Broken("early", IsImpatient, lambda selector, *_: selector.select(None)),
    Broken("early", RoundsDown, lambda selector, *_: selector.select(0.0205)),
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: f"{broken.rule}-{broken.selector.__name__}")
def test_a_broken_rule_is_named(broken: Broken, ends: tuple[socket.socket, socket.socket]) -> None:
    with CheckSelector(broken.selector()) as selector, pytest.raises(ProtocolViolation) as caught:
        broken.provoke(selector, *ends)
    assert caught.value.rule == broken.rule
    assert str(caught.value).startswith(f'select breaks the rule "{broken.rule}": {CALL_RULES[broken.rule]}. ')


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: f"{broken.rule}-{broken.selector.__name__}")
def test_what_breaks_it_keeps_all_others(broken: Broken, ends: tuple[socket.socket, socket.socket]) -> None:
    """The same use of a selector that keeps the rule is no violation: it was this rule that was provoked."""
    with CheckSelector(SelectSelector()) as selector:
        selector.register(ends[1], EVENT_WRITE)  # so that no wait lasts
        with suppress(KeyError, ValueError):  # what the rule asks for
            broken.provoke(selector, *ends)


def test_every_rule_has_a_selector_that_breaks_it() -> None:
    assert list(dict.fromkeys(broken.rule for broken in BROKEN)) == list(CALL_RULES)


def test_the_pages_have_every_rule() -> None:
    """One page has them as a list with others, and the page about decorators says from which to which it is."""
    rules, decorators = (
        (ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("conformance.rst", "selector_decorators.rst")
    )
    listed = re.findall(r"^   ([\w-]+): (.+)$", rules, re.MULTILINE)
    first, *_, last = CALL_RULES
    assert listed[: len(CALL_RULES)] == list(CALL_RULES.items())
    assert f"``{first}`` to ``{last}`` in :ref:`rules`" in decorators


def test_a_violation_says_what_was_asked_and_what_came() -> None:
    with CheckSelector(IsImpatient()) as selector, pytest.raises(ProtocolViolation) as caught:
        selector.select(60)
    assert "select(60) returned [], after 0." in str(caught.value)
    with CheckSelector(FailsForOne()) as selector, pytest.raises(ProtocolViolation) as caught:
        selector.select(0)
    assert str(caught.value).endswith("select(0) raised OSError(9, 'Bad file descriptor')")
    assert isinstance(caught.value.__context__, OSError)


def test_a_violation_is_an_error_of_flowno_that_no_handler_of_os_errors_swallows() -> None:
    assert issubclass(ProtocolViolation, flowno.FlownoError)
    assert not issubclass(ProtocolViolation, (OSError, ValueError, KeyError))


# --------------------------------------------------------------------------------------- selectors that break no rule


@pytest.mark.parametrize("timeout", [0, -1, 0.001, 0.0155])
def test_a_wait_lasts_as_long_as_without_it(backend: str, timeout: float) -> None:
    opened = open_selector(f"check({backend})")
    start = time.monotonic()
    assert opened.selector.select(timeout) == []
    assert timeout <= time.monotonic() - start < timeout + 5
    opened.selector.close()


def test_an_early_return_is_excused_once_and_waited_out() -> None:
    class Startled(VirtualTimeSelector):
        asked: ClassVar[list[float | None]] = []

        def select(self, timeout: float | None = None) -> Any:
            self.asked.append(timeout)
            return super().select(0 if len(self.asked) == 1 else timeout)

    with Startled() as startled, CheckSelector(startled) as selector:
        assert selector.select(0.02) == []
        assert Startled.asked == [0.02, 0.02]


def test_the_time_is_that_of_the_selectors_world() -> None:
    with VirtualTimeSelector() as virtual, CheckSelector(virtual) as selector:
        assert selector.select(3600) == []
        assert len(virtual.timeouts) == 1  # by its clock the hour has passed


def test_both_events_of_an_fd_may_come_apart(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].send(b"x")
    with CheckSelector(SelectSelector()) as selector:
        selector.register(ends[0], BOTH)
        assert sorted(events for _, events in selector.select(1)) == [EVENT_READ, EVENT_WRITE]


def test_refusals_are_passed_on_unchanged(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    with CheckSelector(SelectSelector()) as selector:
        for events in (0, 4, -1):
            with pytest.raises(ValueError, match="events"):
                selector.register(one, events)
        for nonsense in (-1, "text", None):
            with pytest.raises(ValueError, match="file"):
                selector.register(nonsense, EVENT_READ)  # type: ignore[arg-type]
        key = selector.register(one, EVENT_READ)
        with pytest.raises(KeyError):
            selector.register(one, EVENT_READ)
        with pytest.raises(ValueError, match="events"):
            selector.modify(one, 9)
        for method in (lambda: selector.modify(other, EVENT_READ), lambda: selector.unregister(other)):
            with pytest.raises(KeyError):
                method()
        with pytest.raises(ValueError, match="NaN"):
            selector.select(math.nan)
        assert selector.unregister(one) == key


def test_a_refusal_of_the_system_leaves_the_fd_to_be_registered_again(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    class Full(SelectSelector):
        full = True

        def _change(self, fd: int, old: int, new: int) -> None:
            if self.full and new:
                raise OSError(errno.ENOSPC, "No space left on device")
            super()._change(fd, old, new)

    with CheckSelector(Full()) as selector:
        with pytest.raises(OSError, match="No space"):
            selector.register(ends[0], EVENT_READ)
        selector.inner.full = False  # type: ignore[attr-defined]
        selector.register(ends[0], EVENT_READ)
        selector.inner.full = True  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="No space"):
            selector.modify(ends[0], EVENT_WRITE)
        with pytest.raises(KeyError):
            selector.unregister(ends[0])


def test_an_error_of_a_signal_handler_is_none_of_the_selector(ends: tuple[socket.socket, socket.socket]) -> None:
    class Interrupted(SelectSelector):
        armed: BaseException | None = None

        def _interrupt(self) -> None:
            error, self.armed = self.armed, None
            if error is not None:
                raise error

        def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
            key = super().register(fileobj, events, data)
            self._interrupt()
            return key

        def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
            self._interrupt()
            return super().modify(fileobj, events, data)

        def unregister(self, fileobj: Any) -> SelectorKey:
            self._interrupt()
            return super().unregister(fileobj)

        def select(self, timeout: float | None = None) -> Any:
            self._interrupt()
            return super().select(timeout)

    selector: Any
    with CheckSelector(Interrupted()) as selector:
        for before, method in (
            ((), lambda: selector.register(ends[0], EVENT_READ)),
            ((ends[0],), lambda: selector.modify(ends[0], EVENT_WRITE)),
            ((ends[0],), lambda: selector.unregister(ends[0])),
            ((), lambda: selector.select(0)),
        ):
            for sock in before:
                selector.register(sock, EVENT_READ)
            selector.inner.armed = KeyboardInterrupt()
            with pytest.raises(KeyboardInterrupt):
                method()
            selector.register(ends[0], EVENT_READ)  # both know that it is not registered
            selector.unregister(ends[0])


def test_what_was_registered_before_it_was_put_around_is_known(ends: tuple[socket.socket, socket.socket]) -> None:
    with SelectSelector() as inner:
        key = inner.register(ends[0], EVENT_WRITE)
        selector = CheckSelector(inner)
        assert selector.select(1) == [(key, EVENT_WRITE)]
        assert selector.unregister(ends[0]) == key


def test_a_closed_selector_is_not_checked_any_more(ends: tuple[socket.socket, socket.socket]) -> None:
    with CheckSelector(SelectSelector()) as selector:
        selector.register(ends[0], EVENT_READ)
    selector.close()
    with pytest.raises(RuntimeError, match="closed"):
        selector.select(0)
    with pytest.raises(RuntimeError, match="closed"):
        selector.register(ends[0], EVENT_READ)


@pytest.mark.parametrize("factory", [*STANDARD, FiveMethods], ids=lambda factory: factory.__name__)
def test_a_loop_finds_no_fault_with_the_selectors_of_others(factory: Callable[[], Any]) -> None:
    with CheckSelector(factory()) as selector:
        assert flowno.run(exercise(), selector=selector) == "done"


def test_a_loop_finds_no_fault_with_ours(backend: str) -> None:
    assert flowno.run(exercise(), selector=f"check({backend})") == "done"


def test_a_violation_ends_the_run_that_meets_it() -> None:
    selector = CheckSelector(answering("select", twice)())
    with selector, EventLoop(selector) as loop, pytest.raises(ProtocolViolation, match="reported-twice"):
        loop.run_until_complete(exercise(), join=True)


def test_the_standard_library_is_found_out() -> None:
    """select.select() fails for all where one was closed; flowno's own names it."""
    one, other = socket.socketpair()
    with other, CheckSelector(selectors.SelectSelector()) as selector:
        selector.register(one, EVENT_READ)
        one.close()
        with pytest.raises(ProtocolViolation, match="select-raises"):
            selector.select(0)
        selector.unregister(one)
