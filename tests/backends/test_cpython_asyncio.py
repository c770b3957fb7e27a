"""CPython's own tests of asyncio on our backends: what they say there is what they say on the standard library's.

Each runs in a process of its own, as the tests change much that is global. One that fails is run again, alone, and
counts where it goes on to fail and does not on the standard library's selector for the same system call. A test that
skips itself is printed with its reason, which ``-rP`` shows.
"""

import importlib.util
import json
import os
import selectors
from collections import Counter
from collections.abc import Iterable
from selectors import SelectorKey
from typing import Any

import pytest

from flowno_backends import SelectSelector
from tests.backends.conftest import Case
from tests.conftest import RunPython
from tests.support import cpython_asyncio
from tests.support.cpython_asyncio import MODULES, PACKAGE, SHARE, Outcomes, failed_in

pytestmark = [
    pytest.mark.stdlib_differs("it is what ours are compared with"),
    pytest.mark.skipif(
        os.name != "posix", reason="on Windows most of these tests are about asyncio's ProactorEventLoop"
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("test") is None or importlib.util.find_spec(PACKAGE) is None,
        reason="CPython's test package is not installed",
    ),
]

#: How often a test has to fail, alone but for the first time: some of them cannot stand a busy machine.
ATTEMPTS = 3


def ours(case: Case) -> str:
    factory: Any = case.make
    return f"{factory.__module__}:{factory.__name__}"


def theirs(case: Case) -> str:
    """The selector of the standard library on the same system call; on another one where this machine has not that."""
    name = f"{case.call.capitalize()}Selector"
    return f"stdlib:{name if hasattr(selectors, name) else 'DefaultSelector'}"


def outcomes_of(run_python: RunPython, choice: str, names: Iterable[str]) -> Outcomes:
    program = f"import runpy; runpy.run_module({cpython_asyncio.__name__!r}, run_name='__main__', alter_sys=True)"
    env = {name: None for name in os.environ if name.startswith(("FLOWNO_", "PYTHONASYNCIO", "PYTHONDEVMODE"))}
    result = run_python(program, choice, *names, options=["-W", "default"], env=env, timeout=1200)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    outcomes: Outcomes = {name: (outcome, why) for name, (outcome, why) in report["outcomes"].items()}
    assert outcomes
    assert report["unused"] == [], "these have made no event loop on this selector"
    return outcomes


def differences(run_python: RunPython, ours: str, theirs: str, outcomes: Outcomes) -> dict[str, str]:
    """The tests that fail on our selector, and not on the standard library's, with what they say."""
    failed = failed_in(outcomes)
    for _ in range(ATTEMPTS - 1):
        if failed:
            failed = failed_in(outcomes_of(run_python, ours, failed))
    if failed:
        common = failed_in(outcomes_of(run_python, theirs, failed))
        print(f"fail on the standard library's selector, too: {', '.join(common) or 'none'}")
        failed = {name: why for name, why in failed.items() if name not in common}
    return failed


def show(outcomes: Outcomes) -> None:
    print(dict(Counter(outcome for outcome, _ in outcomes.values())))
    for name, (outcome, why) in outcomes.items():
        if outcome == "skipped":
            print(f"{name} skips itself: {why}")


@pytest.mark.timeout(300)
def test_a_share_of_cpythons_tests_passes(case: Case, run_python: RunPython) -> None:
    outcomes = outcomes_of(run_python, ours(case), SHARE)
    show(outcomes)
    assert differences(run_python, ours(case), theirs(case), outcomes) == {}


@pytest.mark.long
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("module", MODULES)
def test_all_of_cpythons_tests_pass(case: Case, run_python: RunPython, module: str) -> None:
    outcomes, expected = (outcomes_of(run_python, choice, [module]) for choice in (ours(case), theirs(case)))
    show(outcomes)
    assert differences(run_python, ours(case), theirs(case), outcomes) == {}
    skipped, skipped_there = (
        {name: why for name, (outcome, why) in each.items() if outcome == "skipped"} for each in (outcomes, expected)
    )
    assert skipped == skipped_there
    assert outcomes.keys() == expected.keys()


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("decorated", ["check({0})", "shadow({0},{0})"])
def test_a_share_of_cpythons_tests_passes_within_decorators(case: Case, run_python: RunPython, decorated: str) -> None:
    choice = decorated.format(ours(case))
    outcomes = outcomes_of(run_python, choice, SHARE)
    assert differences(run_python, choice, theirs(case), outcomes) == {}


class WithoutData(SelectSelector):
    """Forgets what goes with a registration: the callbacks of asyncio."""

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        return super().register(fileobj, events)


def test_a_selector_with_a_fault_is_found_out(run_python: RunPython, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ATTEMPTS", 1)
    choice, name = f"{__name__}:WithoutData", "test_sock_lowlevel.SelectEventLoopTests.test_sock_accept"
    outcomes = outcomes_of(run_python, choice, [name])
    assert list(differences(run_python, choice, "stdlib:SelectSelector", outcomes)) == [name]
