"""How cases are run in a process of their own: one that hangs or takes the interpreter with it harms no other.

Nor does this process load a selector, or make one: a module may end its process as well as a case may.
"""

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
from typing import Any, Final, NamedTuple

from ...core.event_loop.backend import open_selector
from ...core.event_loop.errors import SelectorUnavailableError, UnknownSelectorError
from .case import Case
from .cases import CASES
from .running import LIMIT, Outcome, outcome_of

__all__ = ["check_selector", "try_selector"]

#: Seconds more for a case that no alarm has ended, and for a process to start.
_GRACE: Final = 5.0
_START: Final = 60.0

#: Seconds for a selector to be imported and made, and as many for it to be closed.
_OPENING: Final = 30.0

#: How many cases may hang, in a row and in all, before the others are given up.
_IN_A_ROW: Final = 3
_IN_ALL: Final = 5

_NOT_STARTED: Final = "the process that runs the cases did not start"

#: What is wrong with what was asked for, and no matter of the process that it is tried in.
_REFUSALS: Final = (UnknownSelectorError, SelectorUnavailableError, TypeError)


def try_selector(choice: str) -> str:
    """Make a selector, and close it, in a process of its own.

    Args:
        choice: What names the selector, as in ``FLOWNO_SELECTOR``.

    Returns:
        What to call it when speaking to people: of several names, the one that was taken.

    Raises:
        UnknownSelectorError: As :class:`~flowno.EventLoop` does, and so are the next two.
        SelectorUnavailableError: It cannot be had on this machine.
        TypeError: It is no selector.
        RuntimeError: It has ended that process, or did not come to its end in it; or there was none, as with
            :func:`check_selector`.
    """
    with _worker(_try, choice) as answer:
        name = _tried(choice, "made", answer)
        _tried(choice, "closed", answer)
    return name


def _tried(choice: str, what: str, answer: Callable[[float], Any]) -> str:
    """What comes of a step of :func:`_try`."""
    try:
        said = answer(_OPENING)
    except _NoAnswerError as error:
        said = str(error)
    else:
        if isinstance(said, _REFUSALS):
            raise said
        if isinstance(said, _Passed):
            return said.name
    raise RuntimeError(f"{choice}: when it was to be {what}, {said}")


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
        with _worker(_work, choice, [case.name for case in left], limit) as answer:
            while left and not _too_many(hung):
                case = left.pop(0)
                try:
                    outcome: Outcome = answer(limit + _GRACE)
                except _NoAnswerError as error:
                    hung.append(isinstance(error, _SilentError))
                    stuck = ", and could not be interrupted" if hung[-1] else ""
                    yield Outcome(case.name, case.group, "failed", "end", f"{error}{stuck}")
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


class _Passed(NamedTuple):
    """A selector has done what it was asked."""

    name: str


@contextmanager
def _worker(work: Callable[..., None], *args: object) -> Iterator[Callable[[float], Any]]:
    """A process that does this work, for as long as the block. What it says next is returned by what this gives.

    Raises:
        RuntimeError: It did not start.
    """
    context = multiprocessing.get_context("spawn")  # a fork would take along the threads and the locks of this process
    ours, theirs = context.Pipe()
    with ours:
        process = context.Process(target=_begin, args=(theirs, work, *args), daemon=True)
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


def _begin(parent: Connection, work: Callable[..., None], *args: object) -> None:
    """What such a process does."""
    _end_with_the_parent()
    _print_to_stderr()
    parent.send(None)
    try:
        work(parent, *args)
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(1)  # nobody wants to know any more


def _try(parent: Connection, choice: str) -> None:
    """Say of a selector whether it could be made, and then closed."""
    try:
        opened = open_selector(choice, choice)
    except _REFUSALS as error:
        kind = next(kind for kind in _REFUSALS if isinstance(error, kind))
        parent.send(kind(str(error)))  # without its cause, which may be an object that cannot be sent
        return
    except SystemExit as error:
        parent.send(f"it or its module raised {error!r}")
        return
    parent.send(_Passed(opened.name))
    try:
        with suppress(Exception):  # it is for the cases to say what that breaks
            opened.selector.close()
    except SystemExit as error:
        parent.send(f"it raised {error!r}")
    else:
        parent.send(_Passed(opened.name))


def _work(parent: Connection, choice: str, names: list[str], limit: float) -> None:
    """Run cases, and say what comes of each."""
    cases = {case.name: case for case in CASES}
    for name in names:
        parent.send(outcome_of(cases[name], lambda: open_selector(choice).selector, limit=limit))


def _end_with_the_parent() -> None:
    """Have the system end this process with its parent, whatever keeps it busy: a case may hang with the GIL held.

    fcntl(2): who owns a pipe with O_ASYNC gets SIGIO when its other end is closed, and that ends a process on Linux.
    Others ignore SIGIO by default, signal(3). A thread that waits for the parent would be held up by the GIL as well,
    and in the way of the cases that fork.
    """
    parent = multiprocessing.parent_process()
    if sys.platform != "linux" or parent is None:
        return
    import fcntl

    signal.signal(signal.SIGIO, signal.SIG_DFL)
    end = parent.sentinel
    fcntl.fcntl(end, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(end, fcntl.F_SETFL, fcntl.fcntl(end, fcntl.F_GETFL) | os.O_ASYNC)


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
        raise _SilentError(f"it did not come to its end within {limit:g} s")
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
