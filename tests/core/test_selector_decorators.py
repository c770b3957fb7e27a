"""Decorators of selectors: how they are written, what they come from, and what is said where they are written wrong."""

import errno
import gc
import selectors
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowno import EventLoop, EventLoopError, current_event_loop
from flowno.core.event_loop import backend
from flowno.core.event_loop.backend import (
    DECORATORS,
    Selector,
    SelectorDecoratorInfo,
    available_selector_decorators,
    available_selectors,
    default_selector_name,
    open_selector,
)
from flowno.core.event_loop.errors import SelectorUnavailableError, UnknownSelectorError
from flowno.core.event_loop.selector_names import terms_of
from flowno.debug.selector_decorators import CheckSelector, TraceSelector
from tests.conftest import RunPython

# A machine of the tests' own: two backends and one that cannot be had, and decorators of one, two and any number.


class Plain(selectors.SelectSelector):
    open = 0

    def __init__(self) -> None:
        Plain.open += 1
        super().__init__()

    def close(self) -> None:
        Plain.open -= 1
        super().close()


class Other(Plain):
    """Another one."""


def lacking() -> Selector:
    raise OSError(errno.ENOSYS, "select.lacking does not exist on testos")


class Wrap(Plain):
    """Around one."""

    def __init__(self, *inner: Any) -> None:
        super().__init__()
        self.inner = inner


class Around(Wrap):
    """Around one; keeps it."""

    def __init__(self, inner: Any, /) -> None:
        super().__init__(inner)


class Pair(Wrap):
    def __init__(self, first: Any, second: Any, /) -> None:
        super().__init__(first, second)


def refusing(inner: Any) -> Selector:
    raise OSError(errno.EPERM, "not around this")


def useless(inner: Any) -> object:
    return "useless"


HERE = __name__
NO_FACTORY = "text"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWNO_SELECTOR", raising=False)
    plain = {"lacking": "lacking", "plain": "Plain", "other": "Other"}
    decorators = {"around": "Around", "pair": "Pair", "any": "Wrap", "refusing": "refusing", "useless": "useless"}
    monkeypatch.setattr(backend, "BUILT_IN", {name: f"{HERE}:{factory}" for name, factory in plain.items()})
    monkeypatch.setattr(backend, "DECORATORS", {name: f"{HERE}:{factory}" for name, factory in decorators.items()})


def nested(selector: Any) -> str:
    """What was made, by its classes."""
    inner = ",".join(nested(one) for one in getattr(selector, "inner", ()))
    return f"{type(selector).__name__}({inner})" if inner else type(selector).__name__


def close(selector: Any) -> None:
    for inner in getattr(selector, "inner", ()):
        close(inner)
    selector.close()


# -------------------------------------------------------------------------------------------------- how it is written


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", []),
        (" , ,", []),
        ("plain", ["plain"]),
        (" plain ,other,", ["plain", "other"]),
        ("two words", ["two words"]),
        ("around(plain)", ["around(plain)"]),
        (" around ( plain ) ", ["around(plain)"]),
        ("a(b(c(d)))", ["a(b(c(d)))"]),
        ("a(b,c),d(e(f),g),h", ["a(b,c)", "d(e(f),g)", "h"]),
        ("package.module:factory\t(\nplain)", ["package.module:factory(plain)"]),
    ],
)
def test_a_text_is_read_as_names_and_what_is_around_them(text: str, terms: list[str]) -> None:
    assert [str(term) for term in terms_of(text)] == terms


@pytest.mark.parametrize(
    ("choice", "made", "name"),
    [
        ("around(plain)", "Around(Plain)", "around(plain)"),
        ("AROUND( Plain )", "Around(Plain)", "around(plain)"),
        ("around(around(other))", "Around(Around(Other))", "around(around(other))"),
        ("pair(plain, other)", "Pair(Plain,Other)", "pair(plain,other)"),
        ("any(plain,other,plain)", "Wrap(Plain,Other,Plain)", "any(plain,other,plain)"),
        ("around(auto)", "Around(Plain)", "around(plain)"),
        ("pair(auto,other)", "Pair(Plain,Other)", "pair(plain,other)"),
        ("around(lacking),pair(plain,lacking),around(other),plain", "Around(Other)", "around(other)"),
        ("lacking,around(lacking),plain", "Plain", "plain"),
        (["around(lacking)", "pair(plain,other)"], "Pair(Plain,Other)", "pair(plain,other)"),
        ("around(selectors:SelectSelector)", "Around(SelectSelector)", "around(selectors:SelectSelector)"),
        (f"{HERE}:Pair(plain,other)", "Pair(Plain,Other)", f"{HERE}:Pair(plain,other)"),
        (f"around({HERE}:Around({HERE}:Other))", "Around(Around(Other))", f"around({HERE}:Around({HERE}:Other))"),
        ("refusing(plain),plain", "Plain", "plain"),
    ],
)
@pytest.mark.parametrize("by_variable", [False, True], ids=["argument", "variable"])
def test_a_decorator_stands_wherever_a_name_can(
    choice: str | list[str], made: str, name: str, by_variable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_variable:
        monkeypatch.setenv("FLOWNO_SELECTOR", choice if isinstance(choice, str) else ",".join(choice))
        opened = open_selector()
    else:
        opened = open_selector(choice)
    close(opened.selector)
    assert (nested(opened.selector), opened.name, opened.owned) == (made, name, True)


@pytest.mark.not_under_faults(reason="it looks at the selector of the loop")
def test_a_loop_says_what_is_around_its_selector() -> None:
    with EventLoop("around(plain)") as loop:
        assert repr(loop) == "<EventLoop around(plain) idle>"
        close(loop.selector.inner[0])  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------- what is written wrong

USABLE = "; usable here: plain, other"
KNOWN = "; decorators: around, pair, any, refusing, useless"


@pytest.mark.parametrize(
    ("text", "message", "mark"),
    [
        ("aruond(plain)", f"no decorator of selectors is named 'aruond' (did you mean around?){KNOWN}", "aruond"),
        ("plain,pair(xyz(plain),plain)", f"no decorator of selectors is named 'xyz'{KNOWN}", "xyz"),
        ("around(plian)", f"no selector is named 'plian' (did you mean plain?){USABLE}", "plian"),
        ("pair(plain,  nothing )", f"no selector is named 'nothing'{USABLE}", "nothing"),
        (
            "plain(other)",
            f"no decorator of selectors is named 'plain', as plain is a selector, and takes no others{KNOWN}",
            "plain",
        ),
        (
            "package.Decorator(plain)",
            (
                "no decorator of selectors is named 'package.Decorator' (one of your own is written "
                f"package.module:factory(selector)){KNOWN}"
            ),
            "package.Decorator",
        ),
        (
            "around(pair)",
            (
                "no selector is named 'pair', but a decorator of selectors: write pair(auto), or another selector "
                f"between the parentheses{USABLE}"
            ),
            "pair",
        ),
        ("around(plain,other)", "around takes 1 selector, not 2", "around"),
        ("around(pair(plain))", "pair takes 2 selectors, not 1", "pair"),
        ("plain,around(plain,plain)", "around takes 1 selector, not 2", "around"),
        (f"{HERE}:Pair(plain)", f"{HERE}:Pair takes 2 selectors, not 1", f"{HERE}:Pair"),
        ("around(no_such:thing)", f"there is no module 'no_such'{USABLE}", "no_such:thing"),
        ("around(a:b:c)", f"'a:b:c' is not of the form package.module:factory{USABLE}", "a:b:c"),
        (
            f"{HERE}:Arond(plain)",
            f"module '{HERE}' has no 'Arond' (did you mean Around?){USABLE}",
            f"{HERE}:Arond",
        ),
        ("around(plain", "the parenthesis is not closed", "("),
        ("around(pair(plain,", "the parenthesis is not closed", "(@2"),
        ("around(pair(plain,other)", "the parenthesis is not closed", "(@1"),
        ("around(plain))", "there is no parenthesis to be closed", ")@2"),
        ("plain)", "there is no parenthesis to be closed", ")"),
        ("(plain)", "the name of a decorator is missing before the parenthesis", "("),
        ("around((plain))", "the name of a decorator is missing before the parenthesis", "(@2"),
        ("around()", "the name of a selector is missing", ")"),
        ("pair(plain,)", "the name of a selector is missing", ")"),
        ("pair(,plain)", "the name of a selector is missing", ","),
        ("around(plain)other", "a comma is missing", "other"),
        ("pair(around(plain) other)", "a comma is missing", "other"),
    ],
)
def test_what_is_wrong_is_said_with_where_it_stands(text: str, message: str, mark: str) -> None:
    with pytest.raises(UnknownSelectorError) as caught:
        open_selector(text)
    said, shown, marks = str(caught.value).split("\n")
    assert said == f"EventLoop(selector={text!r}): {message}"
    assert shown == f"  {text}"
    word, _, which = mark.partition("@")
    start = -1
    for _ in range(int(which or 1)):
        start = text.index(word, start + 1)
    assert marks == f"  {' ' * start}{'^' * len(word)}"


def test_where_it_stands_in_a_list_is_shown_for_its_item(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownSelectorError, match=r"\n  around\(x\)\n         \^$"):
        open_selector(["plain", "around(x)"])
    monkeypatch.setenv("FLOWNO_SELECTOR", "plain,\taround(x)")
    with pytest.raises(UnknownSelectorError, match=r"^FLOWNO_SELECTOR=(?s:.*)\n  plain, around\(x\)\n {16}\^$"):
        open_selector()


@pytest.mark.parametrize("text", ["around(plain", "around(xyz)", "xyz(plain)", "pair(plain)"])
def test_a_variable_that_cannot_be_meant_leaves_no_default_and_crashes_no_list(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWNO_SELECTOR", text)
    assert [row.name for row in available_selectors() if row.default] == []
    assert default_selector_name().startswith("none (FLOWNO_SELECTOR=")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("around(lacking)", "select.lacking does not exist on testos"),
        ("refusing(plain)", "not around this"),
        ("pair(plain,lacking),around(lacking)", r"pair\(plain,lacking\): select.lacking .*; around\(lacking\): select"),
    ],
)
def test_what_cannot_be_had_says_who_asked_and_why_not_and_keeps_nothing_open(
    choice: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plain, "open", 0)
    with pytest.raises(SelectorUnavailableError, match=rf"^EventLoop\(selector='.*'\): {message}.*{USABLE}$"):
        open_selector(choice)
    assert Plain.open == 0


def test_what_was_refused_leaves_nothing_to_the_collector() -> None:
    gc.collect()
    open_selector("around(lacking),pair(plain,lacking),refusing(other),plain").selector.close()
    assert gc.collect() == 0


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("useless(plain)", r"useless\(plain\) made 'useless', which is no selector: it has no register, modify"),
        (f"{HERE}:NO_FACTORY(plain)", rf"{HERE}:NO_FACTORY\(plain\) is no factory but 'text'"),
        ("around(json:dumps)", "dumps"),
    ],
)
def test_a_decorator_that_is_none_is_a_type_error(choice: str, message: str) -> None:
    with pytest.raises((TypeError, SelectorUnavailableError), match=message):
        open_selector(choice)


# ------------------------------------------------------------------------------------------------------- what there is


def test_each_decorator_has_a_row() -> None:
    rows = {row.name: row for row in available_selector_decorators()}
    assert rows["around"] == SelectorDecoratorInfo("around", 1, f"{HERE}:Around", True, None, "Around one; keeps it.")
    assert {name: row.takes for name, row in rows.items()} == {
        "around": 1,
        "pair": 2,
        "any": 1,
        "refusing": 1,
        "useless": 1,
    }


def test_a_decorated_choice_of_the_variable_is_a_row_and_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plain, "__del__", Plain.close, raising=False)
    monkeypatch.setenv("FLOWNO_SELECTOR", "around(lacking),Around(plain)")
    lacks, works = available_selectors()[-2:]
    assert (lacks.name, lacks.usable, lacks.default) == ("around(lacking)", False, False)
    assert lacks.reason == "select.lacking does not exist on testos"
    assert works == backend.SelectorInfo("around(plain)", f"{HERE}:Around", True, None, True, "Around one; keeps it.")
    assert default_selector_name() == "around(plain)"


def test_the_built_in_ones_are_these_and_each_says_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "DECORATORS", DECORATORS)
    rows = available_selector_decorators()
    assert [(row.name, row.takes) for row in rows] == [("check", 1), ("faulty", 1), ("shadow", 2), ("trace", 1)]
    assert all(row.usable and row.facts for row in rows)


# ------------------------------------------------------------------------------------------------------ from elsewhere

MODULE = '''
import selectors

class Ring(selectors.SelectSelector):
    """A ring."""

class Shield(selectors.SelectSelector):
    """Protects."""
    def __init__(self, inner):
        super().__init__()
        self.inner = [inner]

number = 3
'''

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution on ``sys.path`` that offers decorators."""
    (tmp_path / "decorators_of_the_tests.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    def install(*entry_points: str) -> None:
        folder = tmp_path / "tests_shield-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: tests_shield\nVersion: 1.0\n")
        lines = "".join(f"{line} = decorators_of_the_tests:Shield\n" for line in entry_points)
        (folder / "entry_points.txt").write_text(
            f"[flowno.selectors]\nring = decorators_of_the_tests:Ring\n[flowno.selector_decorators]\n{lines}"
        )

    yield install
    sys.modules.pop("decorators_of_the_tests", None)


def test_a_plug_in_is_a_decorator_by_its_name(install: Install) -> None:
    install("Shield")
    opened = open_selector("around(SHIELD(ring))")
    close(opened.selector)
    assert (nested(opened.selector), opened.name) == ("Around(Shield(Ring))", "around(Shield(ring))")
    row = available_selector_decorators()[-1]
    source = "decorators_of_the_tests:Shield (tests_shield 1.0)"
    assert row == SelectorDecoratorInfo("Shield", 1, source, True, None, "Protects.")


def test_a_plug_in_takes_as_many_selectors_as_its_factory(install: Install) -> None:
    install("shield")
    with pytest.raises(
        UnknownSelectorError, match=r"shield takes 1 selector, not 2\n  shield\(plain,plain\)\n  \^{6}$"
    ):
        open_selector("shield(plain,plain)")


def test_close_matches_include_plug_ins(install: Install) -> None:
    install("shield")
    with pytest.raises(
        UnknownSelectorError, match=r"'sheild' \(did you mean shield\?\); decorators: around, .*, shield"
    ):
        open_selector("sheild(plain)")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("around", "the name is taken by flowno itself"),
        ("auto", "the name is taken by flowno itself"),
        ("a(b", "a name cannot hold a comma, a colon or a parenthesis"),
        ("a)", "a name cannot hold a comma, a colon or a parenthesis"),
    ],
)
def test_a_plug_in_whose_name_cannot_be_asked_for_says_so(install: Install, name: str, reason: str) -> None:
    install(name)
    row = available_selector_decorators()[-1]
    assert (row.name, row.usable, row.takes, row.reason) == (name, False, None, reason)


def test_a_plug_in_that_fails_is_a_row_with_its_reason_and_falls_through_in_a_list(
    install: Install, tmp_path: Path
) -> None:
    install("shield")
    (tmp_path / "decorators_of_the_tests.py").write_text("raise ZeroDivisionError('on import')\n")
    assert available_selector_decorators()[-1].reason == "ZeroDivisionError: on import"
    opened = open_selector("shield(plain),other")
    opened.selector.close()
    assert opened.name == "other"


def test_what_is_no_factory_is_a_row_that_says_so(install: Install, tmp_path: Path) -> None:
    install("shield")
    (tmp_path / "decorators_of_the_tests.py").write_text("Shield = 3\n")
    row = available_selector_decorators()[-1]
    assert (row.usable, row.takes, row.reason) == (False, None, "it is no factory but 3")


# --------------------------------------------------------------------------- an environment that is not to be trusted

PROGRAM = """
import sys
sys.path[:0] = {path!r}
from flowno.core.event_loop.backend import open_selector
opened = open_selector()
opened.selector.close()
print(opened.name, "decorators_of_the_tests" in sys.modules)
"""


@pytest.mark.parametrize("option", ["-E", "-I"])
@pytest.mark.parametrize(
    ("variable", "ignored", "chosen"),
    [
        ("check(select)", None, "check(select)"),
        ("check(shadow(select, select))", None, "check(shadow(select,select))"),
        ("Shield(select),select", "Shield(select)", "select"),
        ("check(shadow(select,ring)),select", "check(shadow(select,ring))", "select"),
        ("check(selectors:SelectSelector),select", "check(selectors:SelectSelector)", "select"),
        ("some.module:factory(select), select", "some.module:factory(select)", "select"),
    ],
)
def test_an_isolated_python_ignores_what_would_load_foreign_code_however_deep_it_stands(
    install: Install, run_python: RunPython, option: str, variable: str, ignored: str | None, chosen: str
) -> None:
    install("shield")
    result = run_python(PROGRAM.format(path=sys.path), options=[option], env={"FLOWNO_SELECTOR": variable})
    assert result.stdout.split() == [chosen, "False"], result.stderr
    if ignored:
        assert f"RuntimeWarning: FLOWNO_SELECTOR={variable}: ignored {ignored}:" in result.stderr
    else:
        assert result.stderr == ""


def test_the_selector_of_a_loop_is_decorated_before_the_loop_waits_by_it() -> None:
    async def root() -> None:
        loop = current_event_loop()
        with pytest.raises(EventLoopError, match="decorate that before the first run"):
            loop.decorate_selector(TraceSelector(loop.selector))

    with EventLoop(selectors.SelectSelector) as loop:
        decorator = CheckSelector(loop.selector)
        loop.decorate_selector(decorator)
        loop.run_until_complete(root(), join=True)
        assert loop.selector is decorator
