"""CPython's own tests of its selectors, on subclasses of ours.

Under a name of their own, because ``test_modify_unregister`` patches the standard library's class by ``__name__``.
"""

import unittest
from typing import Any

import pytest

try:
    from test import test_selectors as cpython  # type: ignore[import-not-found]
except ImportError as error:  # many distributions leave the package out
    pytest.skip(f"CPython's test package is not installed: {error}", allow_module_level=True)

from tests.backends.conftest import CASES

SUITES = {
    "epoll": cpython.EpollSelectorTestCase,
    "kqueue": cpython.KqueueSelectorTestCase,
    "poll": cpython.PollSelectorTestCase,
    "select": cpython.SelectSelectorTestCase,
}


def _names(suite: type[unittest.TestCase]) -> list[str]:
    return [*unittest.defaultTestLoader.getTestCaseNames(suite)]


@pytest.mark.parametrize(
    ("ours", "name"),
    [
        pytest.param(case, name, id=f"{case.id}-{name.removeprefix('test_')}")
        for case in CASES
        if case.is_ours
        for name in _names(SUITES[case.call])
    ],
)
def test_cpython(ours: Any, name: str) -> None:
    suite: Any = SUITES[ours.call]

    class Subclass(ours.make):  # type: ignore[misc]
        pass

    class Suite(suite):  # type: ignore[misc]
        SELECTOR = Subclass
        __unittest_skip__ = False  # of the kqueue tests, where the standard library has no KqueueSelector

    result = unittest.TestResult()
    Suite(name).run(result)
    for _, problem in [*result.errors, *result.failures]:
        pytest.fail(problem, pytrace=False)
    for _, reason in result.skipped:
        pytest.skip(f"CPython's test skips itself: {reason or 'it patches the standard library by class name'}")
    assert result.testsRun == 1
