"""Backends that other distributions bring, by the entry-point group ``flowno.selectors``."""

import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

from flowno.core.event_loop.backend import available_selectors, default_selector_name, open_selector
from flowno.core.event_loop.errors import SelectorUnavailableError, UnknownSelectorError
from tests.conftest import RunPython

MODULE = '''
import errno, selectors

class Ring(selectors.SelectSelector):
    """A ring; it has no limits."""

def absent():
    raise OSError(errno.ENOSYS, "this kernel has no rings")

number = 3
'''

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution on ``sys.path``: its name, and the lines of its entry points in our group."""
    monkeypatch.delenv("FLOWNO_SELECTOR", raising=False)
    (tmp_path / "plugin_of_the_tests.py").write_text(MODULE)
    (tmp_path / "plugin_that_breaks.py").write_text("raise ZeroDivisionError('on import')\n")
    monkeypatch.syspath_prepend(tmp_path)

    def install(name: str, *entry_points: str) -> None:
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text("[flowno.selectors]\n" + "".join(f"{line}\n" for line in entry_points))

    yield install
    for module in ("plugin_of_the_tests", "plugin_that_breaks"):
        sys.modules.pop(module, None)


def reasons() -> dict[str, str | None]:
    return {row.name: row.reason for row in available_selectors()}


@pytest.mark.parametrize("name", ["ring", "RING", " Ring "])
def test_a_plug_in_is_chosen_by_its_name(install: Install, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    install("tests_ring", "Ring = plugin_of_the_tests:Ring")
    monkeypatch.setenv("FLOWNO_SELECTOR", name)
    opened = open_selector()
    opened.selector.close()
    assert (opened.name, opened.owned) == ("Ring", True)
    assert default_selector_name() == "Ring"


def test_a_plug_in_has_a_row_that_says_where_it_comes_from(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("tests_ring", "ring = plugin_of_the_tests:Ring")
    monkeypatch.setenv("FLOWNO_SELECTOR", "ring")
    row = available_selectors()[-1]
    assert row.name == "ring"
    assert row.source == "plugin_of_the_tests:Ring (tests_ring 1.0)"
    assert (row.usable, row.reason, row.default) == (True, None, True)
    assert row.facts == "A ring; it has no limits."


def test_automatic_choice_takes_no_plug_in(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("tests_ring", "ring = plugin_of_the_tests:Ring")
    monkeypatch.setattr("flowno.core.event_loop.backend.BUILT_IN", {})
    with pytest.raises(SelectorUnavailableError, match=r"^EventLoop\(\): .*; usable here: ring$"):
        open_selector()


@pytest.mark.parametrize(
    ("entry_point", "reason"),
    [
        ("bad = plugin_of_the_tests:absent", "this kernel has no rings"),
        ("bad = plugin_that_breaks:Ring", "ZeroDivisionError: on import"),
        ("bad = no_such_plugin:Ring", "ModuleNotFoundError: No module named 'no_such_plugin'"),
        ("bad = plugin_of_the_tests:Rong", "AttributeError: module 'plugin_of_the_tests' has no attribute 'Rong'"),
        ("bad = plugin_of_the_tests:number", "TypeError: bad is no factory but 3"),
    ],
)
def test_a_plug_in_that_fails_is_a_row_with_its_reason_and_an_error_when_asked_for(
    install: Install, entry_point: str, reason: str
) -> None:
    install("tests_bad", entry_point)
    assert reasons()["bad"] == reason
    with pytest.raises((SelectorUnavailableError, TypeError)) as caught:
        open_selector("bad")
    assert reason.removeprefix("TypeError: ") in str(caught.value)


def test_a_plug_in_that_fails_falls_through_in_a_list(install: Install) -> None:
    install("tests_bad", "bad = plugin_that_breaks:Ring", "ring = plugin_of_the_tests:Ring")
    opened = open_selector(["bad", "ring"])
    opened.selector.close()
    assert opened.name == "ring"


@pytest.mark.parametrize("name", ["epoll", "Select", "AUTO"])
def test_a_plug_in_cannot_take_a_built_in_name(install: Install, name: str) -> None:
    install("tests_thief", f"{name} = plugin_of_the_tests:Ring")
    row = available_selectors()[-1]
    assert (row.name, row.usable, row.default) == (name, False, False)
    assert row.reason == "the name is taken by flowno itself"
    opened = open_selector([name, "select"])
    opened.selector.close()
    assert type(opened.selector).__name__ != "Ring"


def test_of_two_plug_ins_with_one_name_the_first_on_the_path_wins(install: Install) -> None:
    install("tests_one", "ring = plugin_of_the_tests:Ring", "RING = plugin_of_the_tests:absent")
    row = available_selectors()[-1]
    assert (row.name, row.reason) == ("RING", "the name is taken by tests_one 1.0")


@pytest.mark.parametrize("name", ["a,b", "a:b"])
def test_a_plug_in_whose_name_cannot_be_written_says_so(install: Install, name: str) -> None:
    install("tests_odd", f"{name} = plugin_of_the_tests:Ring")
    row = available_selectors()[-1]
    if sys.version_info >= (3, 12) or "," in name:
        assert row.reason == "a name cannot hold a comma, a colon or a parenthesis"
    assert not row.usable


def test_a_distribution_that_is_found_twice_counts_once(install: Install, tmp_path: Path) -> None:
    install("tests_ring", "ring = plugin_of_the_tests:Ring")
    (tmp_path / "tests_ring-1.0.dist-info").rename(tmp_path / "tests_ring-0.9.dist-info")
    install("tests_ring", "ring = plugin_of_the_tests:Ring")
    assert [row.name for row in available_selectors()].count("ring") == 1


def test_broken_metadata_of_one_distribution_spoils_no_others(install: Install) -> None:
    install("tests_broken", "this line is no entry point")
    install("tests_ring", "ring = plugin_of_the_tests:Ring")
    assert str(reasons()["tests_broken 1.0"]).startswith("its entry points cannot be read: ")
    open_selector("ring").selector.close()


def test_close_matches_include_plug_ins_and_what_is_usable_here_does_too(install: Install) -> None:
    install("tests_ring", "ring = plugin_of_the_tests:Ring", "bad = plugin_that_breaks:Ring")
    with pytest.raises(UnknownSelectorError, match=r"\(did you mean ring\?\); usable here: .*select, ring$"):
        open_selector("rign")


def test_built_in_names_do_not_look_at_the_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def distributions() -> None:
        raise AssertionError("the installed packages were scanned")

    monkeypatch.setattr(metadata, "distributions", distributions)
    for choice in ("select", "auto", "kqueue,select", "selectors:SelectSelector"):
        open_selector(choice).selector.close()
    monkeypatch.setenv("FLOWNO_SELECTOR", "")
    open_selector().selector.close()


PROGRAM = """
import sys
sys.path[:0] = {path!r}
from flowno.core.event_loop.backend import open_selector
for _ in range(2):
    opened = open_selector()
    opened.selector.close()
    print(opened.name, "plugin_of_the_tests" in sys.modules)
"""


def test_an_isolated_python_ignores_the_name_of_a_plug_in(install: Install, run_python: RunPython) -> None:
    install("tests_ring", "ring = plugin_of_the_tests:Ring")
    result = run_python(PROGRAM.format(path=sys.path), options=["-I"], env={"FLOWNO_SELECTOR": "Ring,select"})
    assert result.stdout.splitlines() == ["select False"] * 2, result.stderr
    assert result.stderr.count("RuntimeWarning: FLOWNO_SELECTOR=Ring,select: ignored Ring:") == 1
