"""What a case is: a sentence of the contract, the rule that it proves, what it takes, and a function that finds out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from ...core.event_loop.selector_rules import RULES

if TYPE_CHECKING:
    from .bench import Bench

__all__ = ["NEEDS", "Case", "Group"]

#: What a case may take that not every selector or every machine has, and what is said where it is missing.
NEEDS: Final[dict[str, str]] = {
    "posix": "here only sockets can be waited for",
    "signals": "it takes the main thread of a system that can send a signal to a thread",
    "fork": "it takes os.fork, and after_fork() or the capability fork_safe",
    "after_fork": "the selector has no after_fork()",
    "fileno": "the selector has no fileno()",
    "get_key": "the selector has no get_key()",
    "get_map": "the selector has no get_map()",
    "with": "the selector is no context manager",
    "any_fd": "the selector does not claim the capability any_fd",
    "files": "the selector does not claim the capability files",
    "sees_closed": "the selector does not claim the capability sees_closed",
    "submillisecond": "the selector does not claim the capability submillisecond",
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
