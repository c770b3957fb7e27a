"""Faults that a kernel may make at any time, and some that it makes when things go wrong, made on purpose.

The kinds are :data:`KINDS`. When one is made is drawn by :mod:`flowno.debug.dice`; ``faulty(selector)`` makes those of
the selector, :mod:`flowno.debug.faulty_sockets` those of sockets.
"""

from __future__ import annotations

import logging
import os
import random
import weakref
from collections import Counter
from difflib import get_close_matches
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from flowno.core.event_loop.environment import FAULTS_VARIABLE, switched_on
from flowno.core.event_loop.observers import making

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowno.core.event_loop.event_loop import EventLoop
    from flowno.core.event_loop.fd_table import FdTable

    from .selector_decorators.faulty import FaultySelector

__all__ = ["KINDS", "Faults", "Kind", "LoopFaults", "attach", "faults", "faults_asked_for", "faults_of"]

logger = logging.getLogger("flowno.faults")


class Kind(NamedTuple):
    """A kind of fault.

    Attributes:
        rate: How often it is made where nobody says how often: of so many chances, from 0 to 1.
        is_harmless: Whether any program must bear it at any time. The others are made where they are asked for.
        what: What it is.
    """

    rate: float
    is_harmless: bool
    what: str


#: Every kind of fault, by its name.
KINDS: Final[dict[str, Kind]] = {
    "short": Kind(0.1, True, "a stream gives, or takes, fewer bytes than it could"),
    "byte": Kind(0.05, True, "a stream gives, or takes, one byte"),
    "eagain": Kind(0.1, True, "a call on a ready socket says EAGAIN, up to four times in a row"),
    "late": Kind(0.1, True, "what is ready is reported one to three reports later"),
    "split": Kind(0.1, True, "of what is ready for reading and writing, one is reported with the next report"),
    "reordered": Kind(0.2, True, "a report comes in another order"),
    "spurious": Kind(0.05, True, "an interest is reported that is not ready"),
    "early": Kind(0.05, True, "a wait ends before its time, up to twice in a row"),
    "eintr": Kind(0.05, True, "a wait ends with EINTR; a connect that goes on says EINTR"),
    "reset": Kind(0.01, False, "a stream is reset in both directions: ECONNRESET"),
    "aborted": Kind(0.1, False, "a connection is reset before it is accepted: ECONNABORTED"),
    "emfile": Kind(0.1, False, "accept finds no descriptor left in the process: EMFILE"),
    "enfile": Kind(0.1, False, "accept finds no descriptor left in the system: ENFILE"),
    "enobufs": Kind(0.05, False, "send, or accept, finds no memory for buffers: ENOBUFS"),
}

#: Stands for each harmless kind that is not named itself.
_HARMLESS: Final = "harmless"

#: How many bits a seed has that is picked.
_SEED_BITS: Final = 32


class Faults:
    """What faults are made, and how many were; made by :func:`faults`.

    A context manager: the event loops that are made inside of it, in any thread, have them. Where blocks are nested,
    the inner one counts. An error that leaves the block gets a note that says how to repeat it.

    Attributes:
        seed: Where the random numbers begin.
        rates: How often each kind is made, of those that are.
        injected: How many of each kind were made, in all loops that have these faults.
    """

    def __init__(self, seed: int | None, rates: Mapping[str, float], asked_by: str) -> None:
        self.rates = _checked_rates(rates, asked_by)
        given: object = seed  # checked, as the types bind only those who use a type checker
        if given is not None and not isinstance(given, int):
            raise TypeError(f"{asked_by}: seed must be an int or None, not {given!r}")
        self.seed = random.SystemRandom().getrandbits(_SEED_BITS) if seed is None else seed
        self.injected: Counter[str] = Counter()
        self._named = ",".join(f"{name}={rate:g}" for name, rate in rates.items())
        if seed is None:
            logger.warning("faults are made that %s=%s makes again", FAULTS_VARIABLE, self)

    def __str__(self) -> str:
        """What to write in ``FLOWNO_FAULTS``."""
        return f"seed={self.seed}" + (f",{self._named}" if self._named else "")

    def __repr__(self) -> str:
        return f"<Faults {self}>"

    def __enter__(self) -> Self:
        _blocks.append(self)
        making.append(self._inject_if_innermost)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        making.remove(self._inject_if_innermost)
        _blocks.remove(self)
        if error is not None and self.injected:
            error.add_note(f"faults were made ({self.count_in_words()}); {FAULTS_VARIABLE}={self} makes them again")

    def _inject_if_innermost(self, loop: EventLoop) -> None:
        if _blocks[-1] is self:
            self.inject_into(loop)

    def inject_into(self, loop: EventLoop) -> None:
        """Have these faults made in a new loop, until it is closed or dropped."""
        from . import faulty_sockets
        from .selector_decorators.faulty import FaultySelector

        selector = loop.selector
        if not isinstance(selector, FaultySelector):
            selector = FaultySelector(selector, faults=self)
            loop.decorate_selector(selector)
        mine = _loops[loop.fds] = LoopFaults(self, selector)
        faulty_sockets.begin()
        loop.close_callbacks += (mine.end, faulty_sockets.end)

    def record(self, kind: str, where: str) -> None:
        """Count a fault that was made, and log it."""
        self.injected[kind] += 1
        logger.debug("%s at %s", kind, where)

    def count_in_words(self) -> str:
        """Such as ``short 12, eagain 3``."""
        return ", ".join(f"{kind} {self.injected[kind]}" for kind in KINDS if self.injected[kind]) or "none"


class LoopFaults:
    """The faults of one event loop.

    Args:
        faults: Which ones.
        selector: The selector of the loop.

    Attributes:
        sockets: How many sockets the program has made for the loop so far.
        is_over: Whether the loop is closed.
    """

    def __init__(self, faults: Faults, selector: FaultySelector) -> None:
        self.faults = faults
        self.selector = selector
        self.sockets = 0
        self.is_over = False

    @staticmethod
    def of(table: FdTable) -> LoopFaults | None:
        """Those of the loop that has this table; None where it has none."""
        return _loops.get(table)

    def end(self) -> None:
        """The loop is closed, or was dropped."""
        self.is_over = True
        if self.faults.injected:
            logger.debug("%s: %s", self.faults, self.faults.count_in_words())


def faults(seed: int | None = None, **rates: float) -> Faults:
    """Make faults in the event loops that are made inside of a ``with`` block.

    Args:
        seed: Where the random numbers begin: a program that does the same meets the same faults. None picks one, and
            logs it as a warning of ``flowno.faults``.
        rates: How often each kind is made, from 0 to 1, by the names of :doc:`/faults`; ``harmless`` stands for the
            harmless ones that are not named. Without any, those have their usual rates.

    Returns:
        The context manager, which also tells what was made: see :class:`Faults`.

    Raises:
        ValueError: There is no such kind, the rate is none, or this system cannot make that fault.
        TypeError: ``seed`` or a rate is no number.

    Example:
        >>> from flowno import run, socketpair
        >>> from flowno.testing import faults
        >>> async def main():
        ...     one, other = socketpair()
        ...     with one, other:
        ...         await one.sendAll(b"four")
        ...         return await other.recv(100)
        >>> run(main())
        b'four'
        >>> with faults(seed=7, byte=1) as made:
        ...     run(main())
        b'f'
        >>> made.injected["byte"]
        4
    """
    return Faults(seed, rates, "faults()")


def faults_of(loop: EventLoop) -> Faults | None:
    """The faults that are made in a loop, whoever has asked for them: ``FLOWNO_FAULTS`` or :func:`faults`.

    Args:
        loop: The loop.

    Returns:
        With ``injected``, the counts; None where none are made.
    """
    mine = _loops.get(loop.fds)
    return None if mine is None else mine.faults


def attach(loop: EventLoop, value: str) -> None:
    """Have faults made in a new loop, as ``FLOWNO_FAULTS`` says; where a block is around it, that counts.

    Args:
        loop: The loop.
        value: ``seed=7``, and maybe kinds with their rates, separated by commas: ``seed=7,short=0.2``.

    Raises:
        ValueError: It is not of that form, or of a kind or a rate that is none.
    """
    if loop.fds not in _loops:
        _written(value).inject_into(loop)


def faults_asked_for() -> Faults:
    """What a selector makes that was asked for by its name: what is asked for around it, else the harmless ones."""
    if _blocks:
        return _blocks[-1]
    value = os.environ.get(FAULTS_VARIABLE, "")
    return _written(value if switched_on(FAULTS_VARIABLE) else "seed=0")


#: The ``with`` blocks that are open, the innermost last.
_blocks: list[Faults] = []

#: By the table of its descriptors, the faults of each loop that has any.
_loops: weakref.WeakKeyDictionary[FdTable, LoopFaults] = weakref.WeakKeyDictionary()

#: What was asked for by the environment, by its text: all loops of a process have one seed, also where it was picked.
_by_text: dict[str, Faults] = {}


def _written(text: str) -> Faults:
    if text not in _by_text:
        _by_text[text] = _read(text)
    return _by_text[text]


def _read(text: str) -> Faults:
    """What ``FLOWNO_FAULTS`` says."""
    asked_by = f"{FAULTS_VARIABLE}={text}"
    seed: int | None = None
    rates: dict[str, float] = {}
    seen = set()
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals:
            raise ValueError(f"{asked_by}: {part!r} has no value; it is written as {FAULTS_VARIABLE}=seed=7,short=0.2")
        if name in seen:
            raise ValueError(f"{asked_by}: {name} is there twice")
        seen.add(name)
        if name == "seed":
            try:
                seed = None if value.casefold() == "random" else int(value)
            except ValueError:
                raise ValueError(f"{asked_by}: the seed is a whole number, or random, not {value!r}") from None
        else:
            try:
                rates[name] = float(value)
            except ValueError:
                _checked_name(name, asked_by)  # an unknown name is the greater mistake
                raise ValueError(f"{asked_by}: {name} is a number from 0 to 1, not {value!r}") from None
    return Faults(seed, rates, asked_by)


def _checked_name(name: str, asked_by: str) -> None:
    if name not in KINDS and name != _HARMLESS:
        known = [*KINDS, _HARMLESS]
        close = get_close_matches(name, known)
        hint = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise ValueError(f"{asked_by}: no fault is named {name!r}{hint}; faults: {', '.join(known)}")
    if name == "reset" and os.name == "nt":
        raise ValueError(f"{asked_by}: reset cannot be made on Windows, which has no dup2() for sockets")


def _checked_rates(rates: Mapping[str, float], asked_by: str) -> dict[str, float]:
    """How often each kind is made, those that never are left out."""
    for name, rate in rates.items():
        _checked_name(name, asked_by)
        if not isinstance(rate, (int, float)):
            raise TypeError(f"{asked_by}: {name} must be a number from 0 to 1, not {rate!r}")
        if not 0 <= rate <= 1:
            raise ValueError(f"{asked_by}: {name} must be from 0 to 1, not {rate!r}")
    harmless = [name for name, kind in KINDS.items() if kind.is_harmless]
    if not rates:
        wanted = {name: KINDS[name].rate for name in harmless}
    else:
        wanted = dict(rates)
        others = wanted.pop(_HARMLESS, 0.0)
        wanted = {**dict.fromkeys(harmless, others), **wanted}
    return {name: float(wanted[name]) for name in KINDS if wanted.get(name)}
