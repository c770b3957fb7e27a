"""``trace(selector)``: every call and its result in the log, and nothing where the log is off."""

import logging
import re
import socket
from collections.abc import Iterator
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any

import pytest

import flowno
from flowno import EventLoop, sleep
from flowno.debug.selector_decorators import TraceSelector
from flowno_backends import SelectSelector
from tests.conftest import RunPython
from tests.core.test_foreign_selectors import exercise
from tests.support.virtual_time import VirtualTimeSelector

NAME = "flowno.selector"


@pytest.fixture(autouse=True)
def fresh_logger() -> Iterator[None]:
    """The logger as a program finds it, and afterwards as it was."""
    logger = logging.getLogger(NAME)
    before = logger.level, logger.handlers[:], logger.propagate
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
    yield
    logger.setLevel(before[0])
    logger.handlers[:] = before[1]
    logger.propagate = before[2]


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


class Unprintable:
    printed = 0

    def __repr__(self) -> str:
        self.printed += 1
        return "<data>"


# ------------------------------------------------------------------------------------------------------ what is logged


def test_every_call_is_logged_with_its_result(
    ends: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    fd = ends[0].fileno()
    selector: Any
    with TraceSelector(SelectSelector()) as selector:
        assert selector.register(fd, EVENT_READ, Unprintable()).fd == fd
        assert selector.select(0) == []
        key = selector.modify(fd, EVENT_READ | EVENT_WRITE, None)
        assert selector.select(0.5) == [(key, EVENT_WRITE)]
        assert selector.unregister(fd) == key
    assert [re.sub(r"after \d+\.\d{6} s", "after some time", line) for line in caplog.messages] == [
        f"select: register({fd}, READ, <data>) -> fd {fd}",
        "select: select(0) -> nothing, after some time",
        f"select: modify({fd}, READ|WRITE, None) -> fd {fd}",
        f"select: select(0.5) -> fd {fd} WRITE, after some time",
        f"select: unregister({fd}) -> fd {fd}",
        "select: close() -> None",
    ]
    assert {(record.name, record.levelname) for record in caplog.records} == {(NAME, "DEBUG")}


def test_an_error_is_logged_and_raised_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    class Interrupted(SelectSelector):
        def select(self, timeout: float | None = None) -> Any:
            raise KeyboardInterrupt

    with TraceSelector(Interrupted()) as selector:
        with pytest.raises(KeyError):
            selector.unregister(0)
        with pytest.raises(ValueError, match="events"):
            selector.register(0, 9)
        with pytest.raises(KeyboardInterrupt):
            selector.select()
    assert caplog.messages[0].startswith("select: unregister(0) raised KeyError(")
    assert caplog.messages[1].startswith("select: register(0, 9, None) raised ValueError(")
    assert caplog.messages[2] == "select: select(None) raised KeyboardInterrupt()"


def test_what_breaks_the_protocol_is_logged_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(SelectSelector):
        def select(self, timeout: float | None = None) -> Any:
            return [3]

        def register(self, fileobj: Any, events: int, data: Any = None) -> Any:
            return None

    with TraceSelector(Broken()) as selector:
        selector.select(0)
        selector.register(0, EVENT_READ)
    assert caplog.messages[0].startswith("select: select(0) -> [3], after ")
    assert caplog.messages[1] == "select: register(0, READ, None) -> None"


def test_a_loop_is_traced_and_does_what_it_does_without(backend: str, caplog: pytest.LogCaptureFixture) -> None:
    assert flowno.run(exercise(), selector=f"trace({backend})") == "done"
    said = "\n".join(caplog.messages)
    for call in ("register", "unregister", "select", "close"):
        assert re.search(rf"^\S+: {call}\(", said, re.MULTILINE), call


def test_the_time_is_that_of_the_selectors_world(caplog: pytest.LogCaptureFixture) -> None:
    with VirtualTimeSelector() as virtual:
        caplog.clear()
        flowno.run(sleep(3600), selector=TraceSelector(virtual))
    assert any(line.endswith("-> nothing, after 3600.000000 s") for line in caplog.messages)


# ----------------------------------------------------------------------------------------------------- when it is off


@pytest.mark.parametrize("turn_off", [lambda logger: logger.setLevel(logging.INFO), None], ids=["level", "disable"])
def test_where_the_logger_is_off_nothing_is_formatted(
    turn_off: Any, ends: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    if turn_off is None:
        logging.disable(logging.DEBUG)
    else:
        turn_off(logging.getLogger(NAME))
    data = Unprintable()
    try:
        selector: Any
        with TraceSelector(SelectSelector()) as selector:
            selector.register(ends[0], EVENT_WRITE, data)
            assert [key.data for key, _ in selector.select(1)] == [data]
            selector.modify(ends[0], EVENT_READ, data)
            selector.unregister(ends[0])
    finally:
        logging.disable(logging.NOTSET)
    assert data.printed == 0
    assert caplog.messages == []


def test_to_import_or_make_one_changes_nothing_of_logging() -> None:
    TraceSelector(SelectSelector()).close()
    logger = logging.getLogger(NAME)
    assert (logger.handlers, logger.level) == ([], logging.NOTSET)


def test_with_the_last_one_that_is_closed_the_logger_is_as_it_was() -> None:
    logger = logging.getLogger(NAME)
    one, other = TraceSelector(SelectSelector()), TraceSelector(SelectSelector())
    one.select(0)
    other.select(0)
    one.close()
    assert (len(logger.handlers), logger.level) == (1, logging.DEBUG)
    other.close()
    other.close()
    assert (logger.handlers, logger.level) == ([], logging.NOTSET)


def test_a_level_that_the_program_has_set_meanwhile_stays() -> None:
    logger = logging.getLogger(NAME)
    with TraceSelector(SelectSelector()) as selector:
        selector.select(0)
        logger.setLevel(logging.ERROR)
    assert (logger.handlers, logger.level) == ([], logging.ERROR)


# ----------------------------------------------------------------------------------------------------- where it is seen

PROGRAM = """
import logging, sys
from flowno import EventLoop, sleep
{before}
with EventLoop() as loop:
    {between}
    loop.run_until_complete(sleep(0))
    loop.run_until_complete(sleep(0))
"""
LINE = r"\d\d:\d\d:\d\d\.\d{3} DEBUG flowno\.selector: select: (?:register|unregister|select|close)\(.*"


def traced(run_python: RunPython, before: str = "", between: str = "pass") -> list[str]:
    """What a traced program that configures logging in such a way writes to standard error."""
    result = run_python(PROGRAM.format(before=before, between=between), env={"FLOWNO_SELECTOR": "trace(select)"})
    assert result.returncode == 0, result.stderr
    return result.stderr.splitlines()


def test_a_program_that_configures_nothing_sees_the_trace_on_standard_error(run_python: RunPython) -> None:
    lines = traced(run_python)
    assert len(lines) == 5  # the waker, twice in and out, and the end
    assert all(re.fullmatch(LINE, line) for line in lines)


@pytest.mark.parametrize(
    ("before", "between"),
    [
        ("logging.basicConfig(format='mine: %(message)s')", "pass"),
        ("", "logging.basicConfig(format='mine: %(message)s')"),
    ],
    ids=["before the loop", "after it"],
)
def test_a_program_that_configures_logging_has_the_trace_there_and_only_there(
    run_python: RunPython, before: str, between: str
) -> None:
    lines = traced(run_python, before, between)
    assert len(lines) == 5
    assert all(line.startswith("mine: select: ") for line in lines)


def test_a_handler_of_the_logger_itself_is_enough(run_python: RunPython) -> None:
    assert traced(run_python, f"logging.getLogger('{NAME}').addHandler(logging.NullHandler())") == []


def test_a_level_of_the_program_turns_it_off(run_python: RunPython) -> None:
    assert traced(run_python, f"logging.getLogger('{NAME}').setLevel('WARNING')") == []


def test_a_program_without_standard_error_runs(run_python: RunPython) -> None:
    assert traced(run_python, "sys.stderr = None") == []


def test_the_list_of_backends_writes_no_trace(run_python: RunPython) -> None:
    result = run_python(
        "from flowno.cli import main; raise SystemExit(main(['selectors']))", env={"FLOWNO_SELECTOR": "trace(select)"}
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(r"^trace\(select\) +yes +yes ", result.stdout, re.MULTILINE)


# -------------------------------------------------------------------------------- what a selector has besides the five


class FullOfExtras(SelectSelector):
    def fileno(self) -> int:
        return 77


def test_optional_members_are_those_of_the_selector_inside() -> None:
    class Bare:
        register = modify = unregister = select = close = bool

    inner = FullOfExtras()
    with TraceSelector(inner) as selector:
        assert selector.fileno() == 77
        assert selector.after_fork == inner.after_fork
        assert selector.get_map() is inner.get_map()
        assert selector.name == "trace(select)"
    bare: Any = TraceSelector(Bare())  # type: ignore[arg-type]
    for name in ("fileno", "after_fork", "world", "get_map"):
        assert not hasattr(bare, name)
    assert bare.name == f"trace({__name__}:{Bare.__qualname__})"


def test_a_decorator_of_ones_own_overrides_what_it_has_to_add_to(backend: str) -> None:
    from flowno.core.event_loop.backend import open_selector
    from flowno.debug.selector_decorators import SelectorDecorator

    class Counting(SelectorDecorator):
        word = "counting"
        waits = 0

        def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
            self.waits += 1
            return super().select(timeout)

    opened = open_selector(backend)
    with Counting(opened.selector) as selector, EventLoop(selector) as loop:
        assert repr(loop) == f"<EventLoop counting({selector.inner.name}) idle>"  # type: ignore[attr-defined]
        assert loop.run_until_complete(exercise(), join=True) == "done"
        assert selector.waits
        assert len(selector.get_map()) == 0
