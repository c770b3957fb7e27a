"""The conformance kit itself: it finds what is broken, it leaves alone what is not, and its pages say what it does."""

import ast
import os
import re
import selectors
import signal
import sys
import time
import traceback
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowno.debug.selector_decorators import CheckSelector
from flowno.testing import conformance
from flowno.testing.conformance import (
    CASES,
    NEEDS,
    RULES,
    Case,
    Outcome,
    ProtocolViolation,
    bench,
    outcome_of,
    prove,
    signals_and_threads,
    timing,
)
from flowno_backends import SelectSelector
from tests.conftest import ROOT, RunPython
from tests.support.breakers import BREAKERS, MORE, Breaker
from tests.support.broken_selectors import TakesNonsense

PAGE = ROOT / "docs" / "conformance.rst"
BY_NAME = {case.name: case for case in CASES}
#: Seconds for a case on a machine that runs everything at once.
PATIENT = 30.0

#: A file and a line of it.
Place = tuple[str, int]

posix = pytest.mark.skipif(os.name != "posix", reason="the broken selectors ask poll(2) and fstat(2)")


# ----------------------------------------------------------------------------------------------------- the list itself


def test_every_case_has_a_name_of_its_own() -> None:
    assert len(BY_NAME) == len(CASES)


def test_every_case_is_in_the_file_of_its_group() -> None:
    files = {case.name: case.prove.__module__.rpartition(".")[2] for case in CASES}
    assert files == {case.name: case.group.replace(" ", "_") for case in CASES}


def test_every_rule_has_a_case_that_proves_it() -> None:
    # That every call comes to its end, the others prove on the way.
    assert {case.rule for case in CASES} | {"end"} == set(RULES)


def test_every_need_is_that_of_a_case() -> None:
    assert {need for case in CASES for need in case.needs} == set(NEEDS)


# ----------------------------------------------------------------------------------------------- each of its assertions


def outermost_functions(parent: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef]:
    for node in parent.body:
        if isinstance(node, ast.ClassDef):
            yield from outermost_functions(node)
        elif isinstance(node, ast.FunctionDef):
            yield node


def is_assertion(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name == "broken" or name.startswith(("require_", "_require_"))
    return False


def functions_that_assert() -> Iterator[tuple[str, list[Place]]]:
    """The name of each such function of the kit, and the places of its assertions in the order of its source."""
    for path in Path(conformance.__file__).parent.glob("*.py"):
        for function in outermost_functions(ast.parse(path.read_text(encoding="utf-8"))):
            lines = sorted(node.lineno for node in ast.walk(function) if is_assertion(node))
            if lines:
                yield function.name, [(str(path), line) for line in lines]


def way_of(violation: ProtocolViolation) -> set[Place]:
    """The file and the line of each call that led to it, in a forked child, too."""
    here = {(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(violation.__traceback__)}
    notes = "".join(getattr(violation, "__notes__", ()))
    return here | {(path, int(line)) for path, line in re.findall(r'File "(.+)", line (\d+)', notes)}


FUNCTIONS = list(functions_that_assert())
ASSERTIONS = dict(FUNCTIONS)


def test_every_function_that_asserts_has_a_name_of_its_own() -> None:
    assert sorted(ASSERTIONS) == sorted(name for name, _ in FUNCTIONS)


def test_every_assertion_has_a_line_of_its_own() -> None:
    places = [place for _, places in FUNCTIONS for place in places]
    assert sorted(set(places)) == sorted(places)


def test_every_case_asserts_something() -> None:
    assert set(BY_NAME) <= set(ASSERTIONS)


def test_every_assertion_has_a_selector_that_makes_it_fail() -> None:
    assert {name: len(breakers) for name, breakers in BREAKERS.items()} == {
        name: len(places) for name, places in ASSERTIONS.items()
    }


def failure_of(case: Case, breaker: Breaker) -> tuple[str, set[Place]]:
    """The rule that a selector is said to break, and the way to where that was found."""
    try:
        prove(case, breaker)
    except ProtocolViolation as violation:
        return violation.rule, way_of(violation)
    except unittest.SkipTest as skipped:
        pytest.fail(f"{case.name} was skipped: {skipped}")
    pytest.fail(f"{case.name} has passed")


@posix
@pytest.mark.parametrize(
    ("function", "number"), [(function, number) for function in BREAKERS for number in range(len(BREAKERS[function]))]
)
def test_an_assertion_fails_where_its_rule_is_broken(function: str, number: int) -> None:
    place, entry = ASSERTIONS[function][number], BREAKERS[function][number]
    name, breaker = entry if isinstance(entry, tuple) else (function, entry)
    if breaker is None:
        pytest.skip("no epoll here")
    rule, way = failure_of(BY_NAME[name], breaker)
    assert rule == BY_NAME[name].rule
    assert place in way, f"{name} failed elsewhere: {way}"


@posix
@pytest.mark.parametrize(
    ("name", "breaker"), [pytest.param(*entry, id=f"{n}-{entry[0]}") for n, entry in enumerate(MORE)]
)
def test_a_case_finds_more_than_one_way_to_break_its_rule(name: str, breaker: Breaker) -> None:
    assert failure_of(BY_NAME[name], breaker)[0] == BY_NAME[name].rule


# ------------------------------------------------------------------------------------------------ the others' selectors


def failures(factory: Callable[[], Any]) -> list[Outcome]:
    outcomes = [outcome_of(case, factory, limit=PATIENT) for case in CASES]
    return [outcome for outcome in outcomes if outcome.result == "failed"]


def documented_failures(name: str) -> set[str]:
    """The cases that a selector of the standard library fails, as the page says."""
    rows = re.findall(r"^   \* - (.+)\n     - (``.+``)\n     - (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows
    assert {case for case, *_ in rows} <= {case.sentence for case in CASES}
    return {case.replace(" ", "_") for case, selectors_, _ in rows if f"``{name}``" in selectors_}


@pytest.mark.skipif(sys.platform != "linux", reason="the page says what fails on Linux")
@pytest.mark.parametrize("name", ["EpollSelector", "PollSelector", "SelectSelector"])
def test_the_standard_library_fails_what_the_page_says_and_nothing_else(name: str) -> None:
    found = failures(getattr(selectors, name))
    assert {outcome.case for outcome in found} == documented_failures(name), found


def test_a_third_partys_five_methods_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs" / "examples")
    from minimal_backend import MinimalSelector  # type: ignore[import-not-found]

    outcomes = [outcome_of(case, MinimalSelector, limit=PATIENT) for case in CASES]
    assert [outcome for outcome in outcomes if outcome.result == "failed"] == []
    skipped = {outcome.case for outcome in outcomes if outcome.result == "skipped"}
    optional = {case.name for case in CASES if set(case.needs) - {"posix", "signals"}}
    assert skipped >= optional
    assert os.name != "posix" or skipped == optional


def test_the_page_says_how_much_of_time_no_case_can_see() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert f"is watched for {timing._LONG:g} seconds" in page
    assert f"may last {timing._COARSE * 1000:g} ms longer" in page
    assert f"or {timing._FINE * 1000:g} ms where" in page
    assert f"is given {signals_and_threads._SOON:g} seconds" in page
    assert f"what takes no time {bench._AT_ONCE * 1000:g} ms" in page


# ----------------------------------------------------------------------------------------- what a selector may do to it


class Unhelpful(SelectSelector):
    """Keeps the protocol, and no more than that: each second call reports what is not ready, too, or does not wait."""

    calls = 0

    def select(self, timeout: float | None = None) -> Any:
        self.calls += 1
        if not self.calls % 2:
            return super().select(timeout)
        return [] if timeout else [(key, key.events) for key in self.get_map().values()]


@pytest.mark.parametrize("name", ["without_data_nothing_is_readable", "a_wait_is_never_shorter_than_asked_for"])
def test_what_the_protocol_allows_is_excused_unless_it_is_forbidden(name: str) -> None:
    case = BY_NAME[name]
    prove(case, Unhelpful)
    with pytest.raises(ProtocolViolation) as raised:
        prove(case, Unhelpful, strict=True)
    assert raised.value.rule == case.rule


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="without an alarm nothing ends it here")
def test_a_case_that_hangs_is_ended_and_names_the_line() -> None:
    class Spins(SelectSelector):
        def select(self, timeout: float | None = None) -> Any:
            while True:
                try:
                    time.sleep(0.01)
                except Exception:
                    pass

    outcome = outcome_of(BY_NAME["a_result_is_a_list_of_pairs"], Spins, limit=1)
    assert (outcome.result, outcome.rule) == ("failed", "end")
    assert outcome.reason == "`bench.require_reported({})` did not come to its end within 1 s"


def test_an_error_that_no_rule_foresees_names_the_line_and_the_rule_of_the_case() -> None:
    class Fails(SelectSelector):
        def unregister(self, fileobj: Any) -> Any:
            raise RuntimeError("out of order")

    outcome = outcome_of(BY_NAME["unregister_returns_the_last_key"], Fails)
    assert outcome[2:] == (
        "failed",
        "key",
        "`key = bench.selector.unregister(ours)` raised RuntimeError('out of order')",
    )


@pytest.mark.parametrize("name", ["a_result_is_a_list_of_pairs", "nan_is_refused", "closing_twice_does_nothing"])
def test_the_message_of_a_failure_is_of_a_size_that_can_be_read(name: str) -> None:
    class IsVerbose(SelectSelector):
        def select(self, timeout: float | None = None) -> Any:
            return ["start", *range(10_000), "end"]

        def close(self) -> None:
            raise RuntimeError("start", *range(10_000), "end")

    outcome = outcome_of(BY_NAME[name], IsVerbose)
    assert (outcome.result, outcome.rule) == ("failed", BY_NAME[name].rule)
    assert len(outcome.reason) < 1100
    assert "start" in outcome.reason
    assert "end" in outcome.reason
    assert re.search(r" \.\.\. \([\d,]+ characters\) \.\.\. ", outcome.reason)


def test_a_decorator_that_checks_is_believed() -> None:
    case = BY_NAME["register_refuses_a_negative_descriptor"]
    outcome = outcome_of(case, lambda: CheckSelector(TakesNonsense()))
    assert (outcome.result, outcome.rule) == ("failed", "descriptor")
    assert 'breaks the rule "descriptor"' in outcome.reason


def test_a_selector_that_cannot_be_made_fails() -> None:
    def refuse() -> Any:
        raise OSError("no more of them")

    outcome = outcome_of(BY_NAME["closing_twice_does_nothing"], refuse)
    assert (outcome.result, outcome.reason) == ("failed", "`bench.selector.close()` raised OSError('no more of them')")


SELECTORS = """
import os, signal, time
from flowno_backends import SelectSelector

class Crashes(SelectSelector):
    def select(self, timeout=None):
        if timeout != timeout:
            os._exit(3)
        return super().select(timeout)

class LeavesAChild(SelectSelector):
    def select(self, timeout=None):
        if timeout != timeout:
            if os.fork():
                os._exit(3)
            os.closerange(0, 3)  # the test waits for the end of these
            signal.alarm(10)
            signal.pause()
        return super().select(timeout)

class Hangs(SelectSelector):
    def select(self, timeout=None):
        while timeout != timeout:
            try:
                time.sleep(1)
            except BaseException:
                pass
        return super().select(timeout)

class TakesNaN(SelectSelector):
    def select(self, timeout=None):
        return super().select(0 if timeout != timeout else timeout)

class AlwaysHangs(SelectSelector):
    def __init__(self):
        time.sleep(3600)
"""

#: With small numbers, so that it does not take long.
ISOLATED = """
import sys
from flowno.testing.conformance import CASES, isolation
isolation._GRACE, isolation._IN_ALL = 0.5, 3
by_name = {case.name: case for case in CASES}
cases = [by_name[name] for name in sys.argv[3:]]
for outcome in isolation.check_selector(sys.argv[1], cases, limit=float(sys.argv[2])):
    print(outcome.case, outcome.result, outcome.rule, outcome.reason, sep="|")
"""

#: The rules of a few quick cases: what comes before, at and after those that these selectors do not survive.
FEW = ("key", "nan", "refusal")


@pytest.fixture
def run_with_selectors(run_python: RunPython, tmp_path: Any) -> Callable[..., Any]:
    (tmp_path / "their_selectors.py").write_text(SELECTORS, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "backends")])
    env = {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # they take most of its time
    return lambda *args: run_python(*args, env=env, timeout=60)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Crashes", "the interpreter ended with exit code 3"),
        pytest.param(
            "LeavesAChild",
            "the interpreter ended with exit code 3",
            marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
        ),
        ("Hangs", "it did not come to its end within 2.5 s, and could not be interrupted"),
    ],
)
def test_a_case_that_takes_its_process_along_fails_alone(
    run_with_selectors: Callable[..., Any], name: str, reason: str
) -> None:
    names = [case.name for case in CASES if case.rule in FEW]
    result = run_with_selectors(ISOLATED, f"their_selectors:{name}", "2", *names)
    assert (result.returncode, result.stderr) == (0, "")
    rows = [line.split("|") for line in result.stdout.splitlines()]
    assert [case for case, *_ in rows] == names
    assert [row for row in rows if row[1] == "failed"] == [
        ["nan_is_refused", "failed", "end", reason],
        ["nan_is_refused_with_nothing_registered", "failed", "end", reason],
    ]


def test_a_selector_that_always_hangs_is_given_up(run_with_selectors: Callable[..., Any]) -> None:
    names = [case.name for case in CASES[:6]]
    result = run_with_selectors(ISOLATED, "their_selectors:AlwaysHangs", "0.2", *names)
    assert (result.returncode, result.stderr) == (0, "")
    rows = [line.split("|") for line in result.stdout.splitlines()]
    assert [row[:3] for row in rows[:3]] == [[name, "failed", "end"] for name in names[:3]]
    reason = "not tried: 3 in a row have hung"
    assert rows[3:] == [[name, "skipped", BY_NAME[name].rule, reason] for name in names[3:]]


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("Hangs", ["skipped", "nan", "not tried: 3 in all have hung"]),
        ("Crashes", ["failed", "end", "the interpreter ended with exit code 3"]),
    ],
)
def test_a_selector_that_hangs_time_and_again_is_given_up_and_one_that_crashes_is_not(
    run_with_selectors: Callable[..., Any], name: str, last: list[str]
) -> None:
    bad, good = "nan_is_refused", "register_returns_the_key_of_the_registration"
    names = [bad, bad, good, bad, bad]
    result = run_with_selectors(ISOLATED, f"their_selectors:{name}", "2", *names)
    assert (result.returncode, result.stderr) == (0, "")
    rows = [line.split("|") for line in result.stdout.splitlines()]
    assert [row[1] for row in rows[:-1]] == ["failed" if name == bad else "passed" for name in names[:-1]]
    assert rows[-1] == [bad, *last]


#: Without ``if __name__ == "__main__":``, which multiprocessing needs: the process fails while it starts.
UNGUARDED = """
import sys
from flowno.cli import main
from flowno.testing.conformance.isolation import check_selector
if sys.argv[1] == "check":
    sys.exit(main())
list(check_selector("select"))
"""


def test_a_process_that_does_not_start_is_no_fault_of_the_selector(run_python: RunPython, tmp_path: Any) -> None:
    program = tmp_path / "unguarded.py"
    program.write_text(UNGUARDED, encoding="utf-8")
    run_it = f"import runpy; runpy.run_path({str(program)!r}, run_name='__main__')"
    message = "the process that runs the cases did not start: the interpreter ended with exit code 1"
    called = run_python(run_it, "call")
    assert called.stderr.splitlines()[-1] == f"RuntimeError: {message}"
    by_command = run_python(run_it, "check", "select")
    assert by_command.returncode == 1
    assert by_command.stderr.splitlines()[-1] == f"flowno check: {message}"
    assert "breaks the rule" not in called.stderr + by_command.stderr


# ------------------------------------------------------------------------------------------------------ in test suites


SUITE = """
import unittest
from flowno.testing import SelectorConformance
import their_selectors

class TestGood(SelectorConformance{base}):
    factory = their_selectors.SelectSelector

class TestBad(SelectorConformance{base}):
    def make_selector(self):
        return their_selectors.TakesNaN()
"""


def test_a_class_that_does_not_say_what_it_tests_is_mistaken_and_not_its_selector() -> None:
    class TestNothing(conformance.SelectorConformance):
        pass

    class TestSomething(conformance.SelectorConformance):
        def make_selector(self) -> Any:
            return SelectSelector()

    with pytest.raises(TypeError, match=r"TestNothing does not say what it tests: it needs a factory, as in `factory"):
        TestNothing().test_register_refuses_what_is_registered()  # type: ignore[attr-defined]
    TestSomething().test_register_refuses_what_is_registered()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("tool", "base"), [("pytest", ""), ("unittest", ", unittest.TestCase")])
def test_a_class_of_somebody_elses_suite_has_every_case(
    run_with_selectors: Callable[..., Any], tmp_path: Any, tool: str, base: str
) -> None:
    (tmp_path / "test_theirs.py").write_text(SUITE.format(base=base), encoding="utf-8")
    program = f"import os, sys, runpy; os.chdir({str(tmp_path)!r}); runpy.run_module({tool!r}, run_name='__main__')"
    options = ["-p", "no:cacheprovider", "-k", "nan_is", "test_theirs.py"] if tool == "pytest" else ["-k", "nan_is"]
    result = run_with_selectors(program, *options)
    assert result.returncode == 1
    output = result.stdout + result.stderr
    failed = re.findall(r"^(?:FAILED|FAIL:|ERROR:) .*test_(nan_is_\w+)", output, re.MULTILINE)
    assert sorted(failed) == ["nan_is_refused", "nan_is_refused_with_nothing_registered"]
    assert "did not raise ValueError" in output
    assert ("2 failed, 2 passed" if tool == "pytest" else "Ran 4 tests") in output
