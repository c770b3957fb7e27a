"""Who asks for a loop to be watched, and what is loaded then: nothing where nobody asks."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import flowno
from flowno import EventLoop
from flowno.core.event_loop.environment import VARIABLES
from flowno.debug import ATTACHMENTS, Attachment
from tests.conftest import RunPython

pytestmark = pytest.mark.usefixtures("no_variables")


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[EventLoop, str]]]:
    """What the function was called with that now stands in the table for each variable."""
    calls: list[tuple[EventLoop, str]] = []
    module: Any = ModuleType("tests.debug.attachment")
    module.attach = lambda loop, value: calls.append((loop, value))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for variable in VARIABLES:
        function = f"{module.__name__}:attach"
        monkeypatch.setitem(ATTACHMENTS, variable, Attachment(function, opens_a_path=variable != "FLOWNO_DEBUG"))
    yield calls
    calls.clear()


def test_a_loop_that_nobody_watches_has_nothing_of_it(attached: list[tuple[EventLoop, str]]) -> None:
    with EventLoop() as loop:
        assert attached == []
        assert loop.step_wrappers == []
        assert loop.close_callbacks == []


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_variable_is_read_when_a_loop_is_made(
    variable: str, attached: list[tuple[EventLoop, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "somewhere")
    with EventLoop() as loop:
        assert attached == [(loop, "somewhere")]


@pytest.mark.parametrize("value", ["", " ", "0", "false", "No", " OFF "])
@pytest.mark.parametrize("variable", VARIABLES)
def test_an_empty_variable_and_one_that_says_no_ask_for_nothing(
    variable: str, value: str, attached: list[tuple[EventLoop, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with EventLoop():
        assert attached == []


@pytest.mark.parametrize(
    ("debug", "variable", "expected"),
    [(True, "", ["1"]), (True, "2", ["1"]), (False, "1", []), (None, "2", ["2"]), (None, "", [])],
)
def test_the_argument_beats_the_variable(
    debug: bool | None,
    variable: str,
    expected: list[str],
    attached: list[tuple[EventLoop, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLOWNO_DEBUG", variable)
    with EventLoop(debug=debug):
        assert [value for _, value in attached] == expected


def test_a_program_that_must_not_trust_its_environment_opens_no_path_and_says_so_once(
    attached: list[tuple[EventLoop, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flowno.debug, "environment_is_trusted", lambda: False)
    monkeypatch.setenv("FLOWNO_TRACE", "trace.json")
    monkeypatch.setenv("FLOWNO_DEBUG", "1")
    with pytest.warns(RuntimeWarning, match="^FLOWNO_TRACE=trace.json was ignored: under python -E") as caught:
        EventLoop().close()
    assert len(caught) == 1
    assert [value for _, value in attached] == ["1"]


def test_a_loop_whose_watcher_fails_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    loops: list[EventLoop] = []

    def fail(loop: EventLoop, values: object) -> None:
        loops.append(loop)
        raise OSError("there is no room")

    monkeypatch.setattr(flowno.debug, "attach", fail)
    with pytest.raises(OSError, match="there is no room"):
        EventLoop(debug=True)
    assert repr(loops.pop()).endswith("closed>")


def test_what_is_to_be_called_when_a_loop_is_closed_is_called_once() -> None:
    log: list[str] = []
    loop = EventLoop()
    loop.close_callbacks.append(lambda: log.append("closed"))
    loop.close()
    loop.close()
    assert log == ["closed"]


def test_what_is_to_be_called_when_a_loop_is_closed_is_called_when_it_is_dropped() -> None:
    log: list[str] = []
    loop = EventLoop()
    loop.close_callbacks.append(lambda: log.append("dropped"))
    del loop
    assert log == ["dropped"]


def test_a_close_callback_that_fails_is_logged_and_keeps_nothing_open(caplog: pytest.LogCaptureFixture) -> None:
    log: list[str] = []

    def fail() -> None:
        raise RuntimeError("no")

    loop = EventLoop()
    loop.close_callbacks += (lambda: log.append("the other"), fail)
    loop.close()
    assert log == ["the other"]
    assert "fail" in caplog.text
    assert "RuntimeError: no" in caplog.text


@pytest.mark.parametrize("variable", VARIABLES)
def test_nothing_of_debug_is_loaded_where_nobody_asks(variable: str, run_python: RunPython) -> None:
    program = "import flowno, sys; flowno.run(flowno.sleep(0)); print('flowno.debug' in sys.modules)"
    environment: dict[str, str | None] = dict.fromkeys(VARIABLES)
    assert run_python(program, env=environment).stdout == "False\n"
    result = run_python(program, env={**environment, "FLOWNO_DEBUG": "1"})
    assert result.stdout == "True\n", result.stderr
