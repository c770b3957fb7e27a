"""What a case is: a sentence of the contract, the rule that it proves, what it takes, and a function that finds out."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ...core.event_loop.selector_rules import RULES

if TYPE_CHECKING:
    from .bench import Bench

__all__ = ["NEEDS", "Case", "Group", "Need"]


class Need(NamedTuple):
    """What a case may take that not every selector or every machine has.

    Attributes:
        reason: What is said where it is missing.
        is_met: Whether it is there, given the selector.
    """

    reason: str
    is_met: Callable[[Any], bool]


def _method(name: str) -> Need:
    return Need(f"the selector has no {name}()", lambda selector: hasattr(selector, name))


def _capability(name: str) -> Need:
    return Need(f"the selector does not claim the capability {name}", lambda selector: _claims(selector, name))


def _claims(selector: Any, capability: str) -> bool:
    return capability in getattr(selector, "capabilities", ())


def _can_fork(selector: Any) -> bool:
    return hasattr(os, "fork") and (hasattr(selector, "after_fork") or _claims(selector, "fork_safe"))


def _can_signal(_: Any) -> bool:
    return hasattr(signal, "pthread_kill") and threading.current_thread() is threading.main_thread()


#: What cases may take, by the name that they ask for it by.
NEEDS: Final[dict[str, Need]] = {
    "posix": Need("here only sockets can be waited for", lambda _: os.name == "posix"),
    "signals": Need("it takes the main thread of a system that can send a signal to a thread", _can_signal),
    "fork": Need("it takes os.fork, and after_fork() or the capability fork_safe", _can_fork),
    "after_fork": _method("after_fork"),
    "fileno": _method("fileno"),
    "get_key": _method("get_key"),
    "get_map": _method("get_map"),
    "with": Need("the selector is no context manager", lambda selector: hasattr(type(selector), "__exit__")),
    "any_fd": _capability("any_fd"),
    "files": _capability("files"),
    "sees_closed": _capability("sees_closed"),
    "submillisecond": _capability("submillisecond"),
}


class Case(NamedTuple):
    """One sentence of the contract.

    Attributes:
        name: The sentence, with underscores.
        group: Which part of the contract it belongs to.
        rule: The rule that a selector breaks by failing it.
        needs: What it takes: keys of :data:`NEEDS`.
        prove: Raises where the sentence is not true of the selector on the bench.
    """

    name: str
    group: str
    rule: str
    needs: tuple[str, ...]
    prove: Callable[[Bench], None]

    @property
    def sentence(self) -> str:
        return self.name.replace("_", " ")


class Group:
    """The cases of one part of the contract, in the order in which they are written.

    Args:
        name: What to call it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.cases: list[Case] = []

    def case(self, rule: str, *needs: str) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
        """Make a function that takes a bench a case, whose name is that of the function."""
        unknown = {rule}.difference(RULES) | set(needs).difference(NEEDS)
        if unknown:
            raise LookupError(f"neither a rule nor a need: {', '.join(sorted(unknown))}")

        def add(prove: Callable[[Bench], None]) -> Callable[[Bench], None]:
            self.cases.append(Case(prove.__name__, self.name, rule, needs, prove))
            return prove

        return add
