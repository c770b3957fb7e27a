"""``shadow(first, second)``: the program gets the answers of the first, and the log the differences."""

import errno
import logging
import math
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any

import pytest

import flowno
from flowno import EventLoop
from flowno.core.event_loop.backend import FileObject, SystemWorld, open_selector
from flowno.debug.selector_decorators import SelectorDecorator, ShadowSelector
from flowno_backends import EpollSelector, PollSelector, SelectSelector
from tests.core.test_foreign_selectors import FiveMethods, exercise
from tests.support.unhelpful_selector import unhelpful

Ends = tuple[socket.socket, socket.socket]
Ready = list[tuple[SelectorKey, int]]


@pytest.fixture
def ends() -> Iterator[Ends]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Any:
    """What shadow has logged so far."""

    def messages() -> list[str]:
        assert {(record.name, record.levelno) for record in caplog.records} <= {("flowno.selector", logging.WARNING)}
        return caplog.messages

    return messages


class Deaf(SelectorDecorator):
    """Loses readiness to read."""

    word = "deaf"

    def select(self, timeout: float | None = None) -> Ready:
        return [(key, events) for key, events in super().select(timeout) if events != EVENT_READ]


class Refusing(SelectorDecorator):
    """Refuses what is in ``refused``, whatever is asked."""

    word = "refusing"

    def __init__(self, inner: Any, /, *refused: str) -> None:
        super().__init__(inner)
        self.refused = set(refused)

    def register(self, fileobj: FileObject, events: int, data: Any = None) -> SelectorKey:
        if "register" in self.refused:
            raise OSError(errno.ENOSPC, "full")
        return super().register(fileobj, events, data)

    def modify(self, fileobj: FileObject, events: int, data: Any = None) -> SelectorKey:
        if "modify" in self.refused:
            super().unregister(fileobj)
            raise OSError(errno.ENOSPC, "full")
        return super().modify(fileobj, events, data)

    def unregister(self, fileobj: FileObject) -> SelectorKey:
        key = super().unregister(fileobj)
        if "unregister" in self.refused:
            raise OSError(errno.ENOENT, "gone")
        return key

    def select(self, timeout: float | None = None) -> Ready:
        if "select" in self.refused:
            raise OSError(errno.EBADF, "bad")
        return super().select(timeout)


# ------------------------------------------------------------------------------------------------- where both agree


def test_the_answers_are_those_of_the_first(ends: Ends, warnings: Any) -> None:
    one, other = ends
    with ShadowSelector(SelectSelector(), SelectSelector()) as selector:
        assert selector.name == "shadow(select,select)"
        key = selector.register(one, EVENT_READ, "data")
        assert (key.fileobj, key.fd, key.events, key.data) == (one, one.fileno(), EVENT_READ, "data")
        assert selector.select(0) == []
        other.send(b"x")
        assert selector.select() == selector.select(60) == selector.select(-1) == [(key, EVENT_READ)]
        changed = selector.modify(one, EVENT_WRITE, "new")
        assert selector.select(math.inf) == [(changed, EVENT_WRITE)]
        assert len(selector.get_map()) == len(selector.second.get_map()) == 1  # type: ignore[attr-defined]
        assert selector.unregister(one) == changed
        assert len(selector.second.get_map()) == 0  # type: ignore[attr-defined]
        for wrong in (lambda: selector.unregister(one), lambda: selector.modify(one, EVENT_READ)):
            with pytest.raises(KeyError):
                wrong()
        for timeout in (math.nan,):
            with pytest.raises(ValueError, match="NaN"):
                selector.select(timeout)
        for events in (0, 4):
            with pytest.raises(ValueError, match="events"):
                selector.register(one, events)
    assert warnings() == []


@pytest.mark.parametrize("timeout", [0, 0.0001, 0.0155])
def test_a_wait_lasts_as_long_as_that_of_the_first(ends: Ends, timeout: float) -> None:
    with ShadowSelector(SelectSelector(), SelectSelector()) as selector:
        selector.register(ends[0], EVENT_READ)
        start = time.monotonic()
        assert selector.select(timeout) == []
        assert time.monotonic() - start >= timeout


def test_a_loop_runs_on_two_backends_that_agree(backend: str, warnings: Any) -> None:
    assert flowno.run(exercise(), selector=f"shadow({backend},selectors:SelectSelector)") == "done"
    assert warnings() == []


def test_both_are_closed_with_the_loop(ends: Ends) -> None:
    made: list[FiveMethods] = []

    def factory() -> ShadowSelector:
        made.extend((FiveMethods(), FiveMethods()))
        return ShadowSelector(*made)

    flowno.run(flowno.sleep(0), selector=factory)
    assert [one.closed for one in made] == [True, True]


def test_after_the_end_it_is_the_first_that_answers(ends: Ends) -> None:
    with ShadowSelector(SelectSelector(), SelectSelector()) as selector:
        pass
    for late in (lambda: selector.select(0), lambda: selector.register(ends[0], EVENT_READ)):
        with pytest.raises(RuntimeError, match="closed"):
            late()


# --------------------------------------------------------------------------------------------- where they disagree


def test_what_the_second_loses_is_a_warning_and_the_program_gets_it(ends: Ends, warnings: Any) -> None:
    one, other = ends
    other.send(b"x")
    with ShadowSelector(SelectSelector(), Deaf(SelectSelector())) as selector:
        key = selector.register(one, EVENT_READ)
        for _ in range(3):
            assert selector.select(0) == [(key, EVENT_READ)]
    assert warnings() == [
        (
            f"shadow(select,deaf(select)): fd {key.fd} is ready for reading by select, and not by deaf(select), "
            "each time that both were asked"
        )
    ]


def test_what_the_first_loses_is_a_warning_and_stays_lost(ends: Ends, warnings: Any) -> None:
    one, other = ends
    other.send(b"x")
    with ShadowSelector(Deaf(SelectSelector()), SelectSelector()) as selector:
        key = selector.register(one, EVENT_READ)
        assert selector.select(0) == []
    assert warnings() == [
        (
            f"shadow(deaf(select),select): fd {key.fd} is ready for reading by select, and not by deaf(select), "
            "each time that both were asked"
        )
    ]


def test_it_is_noticed_while_the_first_waits_for_what_it_loses(ends: Ends, warnings: Any) -> None:
    class DeafInWorld(Deaf):
        """Its waits take no time, but that of its world."""

        def __init__(self, inner: Any) -> None:
            super().__init__(inner)
            self.world = Passing()

        def select(self, timeout: float | None = None) -> Ready:
            assert timeout is not None
            self.world.now += timeout
            return super().select(0)

    class Passing(SystemWorld):
        now = 0.0

        def clock(self) -> float:
            return self.now

    one, other = ends
    with ShadowSelector(DeafInWorld(SelectSelector()), SelectSelector()) as selector:
        selector.register(one, EVENT_READ)
        other.send(b"x")
        assert selector.select(10.25) == []
        assert selector.world.clock() == pytest.approx(10.25)
    assert len(warnings()) == 1


def test_it_is_said_again_when_it_comes_back(ends: Ends, warnings: Any) -> None:
    one, other = ends
    with ShadowSelector(SelectSelector(), Deaf(SelectSelector())) as selector:
        selector.register(one, EVENT_READ)
        for _ in range(2):
            other.send(b"x")
            selector.select(0)
            one.recv(1)
            selector.select(0)
        assert len(warnings()) == 2
        other.send(b"x")
        selector.select(0)
        selector.modify(one, EVENT_WRITE)
        selector.unregister(one)
        selector.register(one, EVENT_READ)
        selector.select(0)
        assert len(warnings()) == 4  # the fd is another one, for all that it knows


def test_a_difference_that_passes_is_none(ends: Ends, warnings: Any) -> None:
    class Late(SelectorDecorator):
        """Reports what has come since it was asked before."""

        before: Ready = []  # noqa: RUF012

        def select(self, timeout: float | None = None) -> Ready:
            ready, self.before = self.before, super().select(timeout)
            return ready

    one, other = ends
    with ShadowSelector(SelectSelector(), Late(SelectSelector())) as selector:
        key = selector.register(one, EVENT_READ)
        selector.select(0)
        other.send(b"x")
        assert selector.select(0) == [(key, EVENT_READ)]
        one.recv(1)
        assert selector.select(0) == []
    assert warnings() == []


def test_data_that_comes_between_the_two_questions_is_no_difference(warnings: Any) -> None:
    stop = threading.Event()
    one, other = socket.socketpair()
    one.setblocking(False)

    def send() -> None:
        while not stop.is_set():
            other.send(b"x")

    thread = threading.Thread(target=send)
    with one, other, ShadowSelector(SelectSelector(), SelectSelector()) as selector:
        selector.register(one, EVENT_READ)
        thread.start()
        try:
            for _ in range(300):
                selector.select(60)
                one.recv(1 << 20)
        finally:
            stop.set()
            while thread.is_alive():
                try:
                    one.recv(1 << 20)
                except BlockingIOError:
                    thread.join(0.01)
    assert warnings() == []


def test_a_second_that_is_no_more_than_honest_is_never_blamed(backend: str, warnings: Any) -> None:
    """A selector may report too much, report later, and be interrupted, as long as it does not do so each time."""
    honest, second = (open_selector(backend).selector for _ in range(2))
    with ShadowSelector(honest, unhelpful(second, seed=1)) as selector:
        one, other = socket.socketpair()
        with one, other:
            key = selector.register(one, EVENT_READ)
            for _ in range(5):
                assert selector.select(0) == []
            other.send(b"x")
            assert selector.select(0) == [(key, EVENT_READ)]
            selector.unregister(one)
    assert warnings() == []


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="epoll forgets what was closed, and poll does not")
@pytest.mark.parametrize("reused", [False, True], ids=["closed", "closed and reused"])
def test_what_was_closed_is_not_compared(ends: Ends, warnings: Any, reused: bool) -> None:
    one, other = socket.socketpair()
    fd = one.fileno()
    with other, ShadowSelector(EpollSelector(), PollSelector()) as selector:
        selector.register(fd, EVENT_READ)
        one.close()
        if reused:
            ends[1].send(b"x")
            os.dup2(ends[0].fileno(), fd)
        assert selector.select(0) == []
        selector.unregister(fd)
    if reused:
        os.close(fd)
    assert warnings() == []


# -------------------------------------------------------------------------------------------- where one of them refuses


def test_what_only_the_second_refuses_is_a_warning_and_not_compared(ends: Ends, warnings: Any) -> None:
    one, other = ends
    other.send(b"x")
    with ShadowSelector(SelectSelector(), Refusing(SelectSelector(), "register")) as selector:
        key = selector.register(one.fileno(), EVENT_READ)
        assert selector.select(0) == [(key, EVENT_READ)]
        selector.modify(one.fileno(), EVENT_WRITE)
        selector.unregister(one.fileno())
    assert warnings() == [
        (
            f"shadow(select,refusing(select)): of register({key.fd}, 1) select says yes, and refusing(select) says "
            "OSError(28, 'full'); the fd is not compared"
        )
    ]


def test_what_only_the_first_refuses_is_raised_and_not_registered_with_the_second(ends: Ends, warnings: Any) -> None:
    with ShadowSelector(Refusing(SelectSelector(), "register"), SelectSelector()) as selector:
        with pytest.raises(OSError, match="full"):
            selector.register(ends[0].fileno(), EVENT_WRITE)
        assert not selector.second.get_map()  # type: ignore[attr-defined]
    assert warnings() == [
        (
            f"shadow(refusing(select),select): of register({ends[0].fileno()}, 2) refusing(select) says "
            "OSError(28, 'full'), and select says yes; the fd is not compared"
        )
    ]


def test_what_both_refuse_is_no_difference(ends: Ends, warnings: Any) -> None:
    first, second = (Refusing(SelectSelector(), "register", "modify") for _ in range(2))
    with ShadowSelector(first, second) as selector:
        with pytest.raises(OSError, match="full"):
            selector.register(ends[0], EVENT_WRITE)
        first.refused.discard("register")
        second.refused.discard("register")
        selector.register(ends[0], EVENT_WRITE)
        with pytest.raises(OSError, match="full"):
            selector.modify(ends[0], EVENT_READ)
        selector.register(ends[0], EVENT_READ)
        assert len(selector.second.get_map()) == 1  # type: ignore[attr-defined]
    assert warnings() == []


@pytest.mark.parametrize("refuser", ["first", "second"])
def test_a_modify_that_one_refuses_is_a_warning(refuser: str, ends: Ends, warnings: Any) -> None:
    refusing, honest = Refusing(SelectSelector(), "modify"), SelectSelector()
    with ShadowSelector(*((refusing, honest) if refuser == "first" else (honest, refusing))) as selector:
        selector.register(ends[0], EVENT_READ)
        if refuser == "first":
            with pytest.raises(OSError, match="full"):
                selector.modify(ends[0], EVENT_WRITE)
            assert not honest.get_map()
        else:
            assert selector.modify(ends[0], EVENT_WRITE).events == EVENT_WRITE
            assert len(selector.select(0)) == 1
            selector.unregister(ends[0])
        assert len(warnings()) == 1


def test_errors_of_the_second_are_warnings_and_not_the_programs(ends: Ends, warnings: Any) -> None:
    with ShadowSelector(SelectSelector(), Refusing(SelectSelector(), "unregister", "select")) as selector:
        key = selector.register(ends[0], EVENT_WRITE)
        assert selector.select(0) == [(key, EVENT_WRITE)]
        assert selector.unregister(ends[0]) == key
    asked = [message.partition(": of ")[2].partition(" select says")[0] for message in warnings()]
    assert asked == ["select(0)", f"unregister({ends[0]!r})"]


# ----------------------------------------------------------------------------------------------- what is passed through


def test_optional_members_are_those_of_the_first() -> None:
    class Numbered(SelectSelector):
        world = SystemWorld()

        def fileno(self) -> int:
            return 77

    with ShadowSelector(Numbered(), SelectSelector()) as selector:
        assert selector.fileno() == 77
        assert selector.world is Numbered.world
        assert selector.get_map() is selector.inner.get_map()  # type: ignore[attr-defined]


def test_a_fork_is_told_to_both_and_one_that_cannot_be_told_is_said_to_lack_it() -> None:
    told: list[str] = []

    class Told(SelectSelector):
        def after_fork(self) -> None:
            told.append("told")

    with ShadowSelector(Told(), Told()) as selector:
        selector.after_fork()
        assert told == ["told", "told"]
    for both in ((Told(), FiveMethods()), (FiveMethods(), Told())):
        with ShadowSelector(*both) as selector:
            assert not hasattr(selector, "after_fork")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_loop_goes_on_in_a_forked_child(backend: str) -> None:
    with EventLoop(f"shadow({backend},{backend})") as loop:
        loop.run_until_complete(exercise())
        child = os.fork()
        if not child:
            code = 1
            try:
                code = 0 if loop.run_until_complete(exercise(), join=True) == "done" else 2
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert loop.run_until_complete(exercise(), join=True) == "done"
