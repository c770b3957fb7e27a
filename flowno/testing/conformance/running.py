"""How a case is run, in this process.

One that hangs is ended by an alarm where a signal can interrupt it: in the main thread of a POSIX system.
"""

from __future__ import annotations

import signal
import threading
import time
import traceback
import unittest
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal, NamedTuple, NoReturn

from ...core.event_loop.backend import Selector
from ...core.event_loop.selector_rules import ProtocolViolation
from .bench import Bench
from .case import Case
from .cases import CASES

__all__ = ["LIMIT", "Outcome", "outcome_of", "prove"]

#: Seconds that a case may take. Most take less than a thousandth of it.
LIMIT: Final = 10.0

#: Characters that the message of a failure may have, give or take a few: a result may be of any size.
_LONGEST: Final = 1000

#: The files that the cases are written in.
_FILES: Final = frozenset(case.prove.__code__.co_filename for case in CASES)


class Outcome(NamedTuple):
    """What came of a case.

    Attributes:
        case: The name of the case.
        group: The group that it belongs to.
        result: ``"passed"``, ``"failed"`` or ``"skipped"``.
        rule: The rule that is proved by it; where it failed, the one that was broken.
        reason: What was seen where it failed, what is missing where it was skipped, else empty.
    """

    case: str
    group: str
    result: Literal["passed", "failed", "skipped"]
    rule: str
    reason: str


class _Expired(BaseException):
    """The time of a case is over. Not an Exception: a selector that catches those is not to catch this one."""


def prove(case: Case, make: Callable[[], Selector], *, limit: float = LIMIT, strict: bool = False) -> None:
    """Run a case here.

    Args:
        case: One of :data:`CASES`.
        make: Makes a selector.
        limit: Seconds that it may take.
        strict: Whether a selector may do nothing that the protocol merely allows.

    Raises:
        ProtocolViolation: A rule is broken.
        unittest.SkipTest: It takes what the selector or the machine has not.
    """
    try:
        _prove(case, make, limit, strict)
    except ProtocolViolation as violation:
        message = str(violation)
        if len(message) <= _LONGEST:
            raise
        half = _LONGEST // 2
        left_out = len(message) - 2 * half
        violation.args = (violation.rule, f"{message[:half]} ... ({left_out:,} characters) ... {message[-half:]}")
        raise violation from None


def _prove(case: Case, make: Callable[[], Selector], limit: float, strict: bool) -> None:
    """As :func:`prove`, with messages of any length."""
    try:
        with _alarm_after(limit), Bench(case.rule, make, strict=strict) as bench:
            bench.skip_without(case.needs)
            case.prove(bench)
    except (ProtocolViolation, unittest.SkipTest):
        raise
    except _Expired as error:
        raise ProtocolViolation("end", f"{_place(error)} did not come to its end within {limit:g} s") from None
    except Exception as error:
        raise ProtocolViolation(case.rule, f"{_place(error)} raised {error!r}") from error


def outcome_of(case: Case, make: Callable[[], Selector], *, limit: float = LIMIT) -> Outcome:
    """Run a case here, as :func:`prove` does, and say what came of it."""
    try:
        prove(case, make, limit=limit)
    except ProtocolViolation as violation:
        return Outcome(case.name, case.group, "failed", violation.rule, str(violation))
    except unittest.SkipTest as skipped:
        return Outcome(case.name, case.group, "skipped", case.rule, str(skipped))
    return Outcome(case.name, case.group, "passed", case.rule, "")


def _place(error: BaseException) -> str:
    """The line of the case in which it ended."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.line for frame in frames if frame.filename in _FILES]
    return f"`{lines[-1]}`" if lines else "making a selector"


@contextmanager
def _alarm_after(seconds: float) -> Iterator[None]:
    """Raise :class:`_Expired` in the block when its time is over, where that can be done."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(*_: object) -> NoReturn:
        raise _Expired

    before: Any = signal.signal(signal.SIGALRM, expire)
    started = time.monotonic()
    rest, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        # The timer may be in use already, by a test framework that limits each test.
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if rest:
            signal.setitimer(signal.ITIMER_REAL, max(rest - (time.monotonic() - started), 0.001), interval)
