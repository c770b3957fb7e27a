"""The choice among the backends of this machine, and what an isolated Python leaves of it."""

import selectors
import sys

import pytest

from flowno.core.event_loop.backend import BUILT_IN, available_selectors, default_selector_name, open_selector
from flowno.core.event_loop.errors import SelectorUnavailableError
from tests.conftest import RunPython


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWNO_SELECTOR", raising=False)


def test_the_built_in_backends_are_these_in_this_order() -> None:
    assert list(BUILT_IN) == ["epoll", "kqueue", "poll", "select"]


def test_select_is_usable_everywhere_and_automatic_choice_takes_the_first_usable() -> None:
    rows = [row for row in available_selectors() if row.name in BUILT_IN]
    usable = [row.name for row in rows if row.usable]
    assert "select" in usable
    assert [row.name for row in rows if row.default] == usable[:1] == [default_selector_name()]
    assert all(row.facts for row in rows)


@pytest.mark.skipif(sys.platform != "linux", reason="the message names the platform")
def test_the_message_for_kqueue_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWNO_SELECTOR", "kqueue")
    with pytest.raises(SelectorUnavailableError) as caught:
        open_selector()
    assert str(caught.value) == (
        "FLOWNO_SELECTOR=kqueue: select.kqueue does not exist on linux; usable here: epoll, poll, select"
    )
    with pytest.raises(SelectorUnavailableError, match=r"^EventLoop\(selector='kqueue'\): select\.kqueue does not"):
        open_selector("kqueue")


@pytest.mark.parametrize("name", ["Default", "Select", "Poll", "Epoll", "Devpoll", "Kqueue"])
def test_every_selector_of_the_standard_library_is_a_backend(name: str) -> None:
    if not hasattr(selectors, f"{name}Selector"):
        pytest.skip(f"the standard library has no selectors.{name}Selector on {sys.platform}")
    opened = open_selector(f"selectors:{name}Selector")
    opened.selector.close()
    assert opened.name == f"selectors:{name}Selector"


PRINT_CHOICE = """
import sys
sys.path[:0] = {path!r}
from flowno.core.event_loop.backend import open_selector
opened = open_selector()
opened.selector.close()
print(opened.name)
"""


@pytest.mark.parametrize("option", ["-E", "-I"])
@pytest.mark.parametrize(
    ("variable", "ignored", "chosen"),
    [
        ("select", None, "select"),
        ("selectors:SelectSelector", "selectors:SelectSelector", "auto"),
        ("selectors:PollSelector, SELECT", "selectors:PollSelector", "select"),
    ],
)
def test_an_isolated_python_honours_built_in_names_alone(
    run_python: RunPython, option: str, variable: str, ignored: str | None, chosen: str
) -> None:
    program = PRINT_CHOICE.format(path=sys.path)
    result = run_python(program, options=[option], env={"FLOWNO_SELECTOR": variable})
    assert result.stdout.strip() == (default_selector_name() if chosen == "auto" else chosen), result.stderr
    if ignored:
        assert f"RuntimeWarning: FLOWNO_SELECTOR={variable}: ignored {ignored}:" in result.stderr
    else:
        assert result.stderr == ""


def test_an_isolated_python_still_refuses_a_name_that_is_unknown(run_python: RunPython) -> None:
    result = run_python(PRINT_CHOICE.format(path=sys.path), options=["-I"], env={"FLOWNO_SELECTOR": "xyz,select"})
    assert "FLOWNO_SELECTOR=xyz,select: no selector is named 'xyz'" in result.stderr
    assert result.returncode == 1


def test_the_warning_comes_once_however_many_loops_are_made(run_python: RunPython) -> None:
    program = (
        PRINT_CHOICE.format(path=sys.path) + "open_selector().selector.close()\nopen_selector().selector.close()\n"
    )
    result = run_python(program, options=["-I"], env={"FLOWNO_SELECTOR": "selectors:SelectSelector"})
    assert result.stderr.count("RuntimeWarning") == 1, result.stderr
    assert result.returncode == 0
