"""How cases are run in a process of their own: one that hangs or takes the interpreter with it harms no other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final

from ...core.event_loop.backend import open_selector
from .case import Case
from .cases import CASES
from .running import LIMIT, Outcome, outcome_of

__all__ = ["check_selector"]

#: Seconds more for a case that no alarm has ended, and for a process to start.
_GRACE: Final = 5.0
_START: Final = 60.0

#: How many cases may hang, in a row and in all, before the others are given up.
_IN_A_ROW: Final = 3
_IN_ALL: Final = 5

_NOT_STARTED: Final = "the process that runs the cases did not start"


def check_selector(choice: str, cases: Iterable[Case] = CASES, *, limit: float = LIMIT) -> Iterator[Outcome]:
    """Run cases in a process of their own, and go on in another one where a case has ended that.

    Args:
        choice: What names the selector, as in ``FLOWNO_SELECTOR``.
        cases: Which of :data:`CASES`.
        limit: Seconds that a case may take.

    Yields:
        What came of each, as soon as it is known. Where three in a row or five in all have hung, the others are
        skipped.

    Raises:
        RuntimeError: Such a process could not be started. It is started by ``multiprocessing``, which imports the main
            module in it: a program that calls this has ``if __name__ == "__main__":`` around what it does.
    """
    left = list(cases)
    hung: list[bool] = []
    while left and not _too_many(hung):
        with _worker(choice, [case.name for case in left], limit) as answer:
            while left and not _too_many(hung):
                case = left.pop(0)
                try:
                    outcome: Outcome = answer(limit + _GRACE)
                except _NoAnswerError as error:
                    hung.append(isinstance(error, _SilentError))
                    yield Outcome(case.name, case.group, "failed", "end", str(error))
                    break
                hung.append(outcome.rule == "end")
                yield outcome
    for case in left:
        reason = f"not tried: {_too_many(hung)} have hung"
        yield Outcome(case.name, case.group, "skipped", case.rule, reason)


def _too_many(hung: list[bool]) -> str:
    """How many cases have hung where that is enough, in words, given for each whether it has."""
    if hung[-_IN_A_ROW:] == [True] * _IN_A_ROW:
        return f"{_IN_A_ROW} in a row"
    return f"{_IN_ALL} in all" if sum(hung) >= _IN_ALL else ""


class _NoAnswerError(Exception):
    """The process does not say what it was asked."""


class _SilentError(_NoAnswerError):
    """It said nothing in time."""


class _EndedError(_NoAnswerError):
    """It has ended."""


@contextmanager
def _worker(choice: str, names: list[str], limit: float) -> Iterator[Callable[[float], Any]]:
    """A process that runs cases, for as long as the block. What it says next is returned by what this gives.

    Raises:
        RuntimeError: It did not start.
    """
    context = multiprocessing.get_context("spawn")  # a fork would take along the threads and the locks of this process
    ours, theirs = context.Pipe()
    with ours:
        process = context.Process(target=_work, args=(theirs, choice, names, limit), daemon=True)
        try:
            with theirs:
                process.start()
        except OSError as error:
            raise RuntimeError(f"{_NOT_STARTED}: {error}") from error
        try:
            try:
                _next(ours, process, _START)
            except _NoAnswerError as error:
                raise RuntimeError(f"{_NOT_STARTED}: {error}") from None
            yield partial(_next, ours, process)
        finally:
            process.kill()
            process.join()
            process.close()


def _work(parent: Connection, choice: str, names: list[str], limit: float) -> None:
    """What the process does that runs the cases."""
    cases = {case.name: case for case in CASES}
    _print_to_stderr()
    parent.send(None)
    try:
        for name in names:
            parent.send(outcome_of(cases[name], lambda: open_selector(choice).selector, limit=limit))
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(1)  # nobody wants to know any more


def _print_to_stderr() -> None:
    """Have what a selector prints, by whatever way, go to standard error: the output is that of who runs the cases."""
    sys.stdout = sys.stderr
    with suppress(OSError):  # there is none
        os.dup2(2, 1)


def _next(connection: Connection, process: BaseProcess, limit: float) -> Any:
    """What the process says next.

    Raises:
        _EndedError: It has ended.
        _SilentError: It says nothing within its time.
    """
    # A child that the process has left may hold the connection and the sentinel open, and Wine may not report the end
    # by the connection: so ask the process itself, too.
    if not wait([connection, process.sentinel], limit) and process.is_alive():
        raise _SilentError(f"it did not come to its end within {limit:g} s, and could not be interrupted")
    try:
        if connection.poll():
            return connection.recv()
    except (EOFError, ConnectionError):
        pass
    process.join()
    raise _EndedError(f"the interpreter ended with {_in_words(process.exitcode or 0)}")


def _in_words(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"
