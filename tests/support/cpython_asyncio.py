"""CPython's own tests of asyncio, with all their event loops on one selector.

``python -m tests.support.cpython_asyncio CHOICE NAME...`` runs modules of ``test.test_asyncio`` (``test_streams``), or
classes and tests in them, and prints as JSON what became of each test. CHOICE is as in ``FLOWNO_SELECTOR``, or
``stdlib:EpollSelector`` for a class of the standard library.
"""

import json
import os
import re
import selectors
import signal
import sys
import tempfile
import traceback
import unittest
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flowno.core.event_loop.backend import open_selector

__all__ = ["MODULES", "PACKAGE", "SHARE", "Outcomes", "failed_in"]

PACKAGE = "test.test_asyncio"

#: What runs event loops that wait. Those of ``test_selector_events`` and ``test_runners`` do not: they have a mock of a
#: selector, or are mocks themselves.
MODULES = (
    "test_base_events", "test_buffered_proto", "test_context", "test_events", "test_sendfile", "test_server",
    "test_sock_lowlevel", "test_ssl", "test_sslproto", "test_streams", "test_subprocess",
    "test_taskgroups", "test_tasks", "test_threads", "test_timeouts", "test_unix_events", "test_waitfor",
)  # fmt: skip

#: What takes little time, and does not depend on how much of it a busy machine takes.
SHARE = (
    "test_buffered_proto", "test_sendfile", "test_server", "test_sock_lowlevel", "test_streams", "test_unix_events",
)  # fmt: skip

#: ``{id: (what became of it, why)}``, the first being one of passed, failed, skipped.
Outcomes = dict[str, tuple[str, str]]

#: Classes that are others once more, on another selector or on a loop that has none (Windows).
_COPIES = ("EPoll", "Poll", "Kqueue", "Proactor")

_CLASSES = ("DefaultSelector", "DevpollSelector", "EpollSelector", "KqueueSelector", "PollSelector", "SelectSelector")


def failed_in(outcomes: Outcomes) -> dict[str, str]:
    """What failed, by names that this program takes, and why; where a set-up failed, by the name of what it was for."""
    return {
        re.sub(r"^\w+ \((.*)\)$", r"\1", name).removeprefix(f"{PACKAGE}."): why
        for name, (outcome, why) in outcomes.items()
        if outcome == "failed"
    }


class _Result(unittest.TestResult):
    """Notes what becomes of each test; of those that fail in several ways, the first."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: Outcomes = {}

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        self.outcomes.setdefault(test.id(), ("passed", ""))

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        self.outcomes.setdefault(test.id(), ("failed", "".join(traceback.format_exception(*err))))

    addFailure = addError

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:
            self.addError(test, err)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self.outcomes.setdefault(test.id(), ("skipped", reason))

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self.outcomes.setdefault(test.id(), ("failed", "it was expected to fail"))


def _tests_of(suite: Iterable[Any]) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from _tests_of(test)
        elif not type(test).__name__.startswith(_COPIES):
            yield test


def _factory(choice: str) -> Callable[[], Any]:
    kind, _, name = choice.partition(":")
    if kind == "stdlib":
        factory: Callable[[], Any] = getattr(selectors, name)  # as it is now: its name is taken below
        return factory
    return lambda: open_selector(choice).selector


def _main(choice: str, *names: str) -> dict[str, Any]:
    from test import support  # type: ignore[import-not-found]

    support.use_resources = frozenset({"cpu", "walltime"})  # nothing of the internet
    signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup(1) ignores it, and some of the tests send it
    make = _factory(choice)
    made = 0

    def counted() -> Any:
        nonlocal made
        made += 1
        return make()

    for name in _CLASSES:
        if hasattr(selectors, name):
            setattr(selectors, name, counted)
    result = _Result()
    unused = []
    for name in names:
        before = made
        suite = unittest.defaultTestLoader.loadTestsFromName(f"{PACKAGE}.{name}")
        unittest.TestSuite(_tests_of([suite])).run(result)
        if made == before:
            unused.append(name)
    return {"outcomes": result.outcomes, "unused": unused}


if __name__ == "__main__":
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # some of the tests write where they are
        report = _main(*sys.argv[1:])
        os.chdir(here)
    print(f"\n{json.dumps(report)}")
