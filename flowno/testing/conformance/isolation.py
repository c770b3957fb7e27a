"""How cases are run in a process of their own: one that hangs or takes the interpreter with it harms no other."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Final

from ...core.event_loop.backend import open_selector
from ...core.event_loop.selector_rules import ProtocolViolation
from .case import Case
from .running import CASES, LIMIT, Outcome, outcome_of

__all__ = ["check_selector"]

#: Seconds more for a case that no alarm has ended, and for a process to start.
_GRACE: Final = 5.0
_START: Final = 60.0


def check_selector(choice: str, cases: Iterable[Case] = CASES, *, limit: float = LIMIT) -> Iterator[Outcome]:
    """Run cases in a process of their own, and go on in another one where a case has ended that.

    Args:
        choice: What names the selector, as in ``FLOWNO_SELECTOR``.
        cases: Which of :data:`CASES`.
        limit: Seconds that a case may take.

    Yields:
        What came of each, as soon as it is known.
    """
    left = list(cases)
    context = multiprocessing.get_context("spawn")  # a fork would take along the threads and the locks of this process
    while left:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, choice, [case.name for case in left], limit), daemon=True)
        process.start()
        theirs.close()
        try:
            _next(ours, process, _START)
            while left:
                case = left[0]
                try:
                    outcome: Outcome = _next(ours, process, limit + _GRACE)
                except ProtocolViolation as ended:
                    yield Outcome(case.name, case.group, "failed", ended.rule, str(ended))
                    del left[0]
                    break
                yield outcome
                del left[0]
        finally:
            process.kill()
            process.join()
            process.close()
            ours.close()


def _work(parent: Connection, choice: str, names: list[str], limit: float) -> None:
    """What the process does that runs the cases."""
    cases = {case.name: case for case in CASES}
    parent.send(None)
    try:
        for name in names:
            parent.send(outcome_of(cases[name], lambda: open_selector(choice).selector, limit=limit))
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(1)  # nobody wants to know any more


def _next(connection: Connection, process: Any, limit: float) -> Any:
    """What the process says next.

    Raises:
        ProtocolViolation: It has ended, or says nothing within its time.
    """
    try:
        if connection.poll(limit):
            return connection.recv()
    except (EOFError, ConnectionError):
        process.join()
        raise ProtocolViolation("end", f"the interpreter ended with {_in_words(process.exitcode)}") from None
    raise ProtocolViolation("end", f"it did not come to its end within {limit:g} s, and could not be interrupted")


def _in_words(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"
