"""Makes tables of what was measured: the costs of all contenders in each case, and the targets, met or not.

A ratio is taken inside of each round, and a table has the median of these; in brackets, and in the column "spread", are
the quartiles.
"""

import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.cases import CASES, Case
from tests.benchmarks.contenders import contender
from tests.benchmarks.programs import PROGRAMS
from tests.benchmarks.targets import TARGETS, Target

__all__ = [
    "FORMATS",
    "Results",
    "Spread",
    "Table",
    "case_table",
    "cost_heading",
    "environment_table",
    "tables",
    "targets_table",
]


@dataclass(frozen=True)
class Spread:
    """The median of some numbers, and their quartiles."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> "Spread":
        if len(numbers) == 1:
            return cls(numbers[0], numbers[0], numbers[0])
        low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
        return cls(low, median, high)


class Results:
    """What was measured, in the order of the tables.

    Args:
        document: What :func:`~tests.benchmarks.runner.run` has returned, maybe by way of a file.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._figures: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
        for one in document["measurements"]:
            self._figures.setdefault((one["case"], one["contender"]), {})[one["round"]] = one
        self._missing = {(one["case"], one["contender"]): str(one["reason"]) for one in document["missing"]}

    def cases(self) -> list[Case]:
        """The cases that something is known about."""
        known = {case for case, _ in [*self._figures, *self._missing]}
        return [case for case in CASES if case.key in known]

    def contenders(self, case: Case) -> list[str]:
        """Those of the case that were measured, or are known to be missing."""
        known = {one for key, one in [*self._figures, *self._missing] if key == case.key}
        return [one for one in case.contenders if one in known]

    def missing(self, case: Case, one: str) -> str:
        """Why there are no figures; "" where there are."""
        return self._missing.get((case.key, one), "")

    def figures(self, case: Case, one: str) -> list[dict[str, float]]:
        """What was measured in each round."""
        return list(self._figures.get((case.key, one), {}).values())

    def costs(self, case: Case, one: str) -> dict[int, float]:
        """The costs by round."""
        cost = PROGRAMS[case.program].cost.value
        return {number: cost(figures) for number, figures in self._figures.get((case.key, one), {}).items()}

    def ratio(self, case: Case, subject: str, against: str, against_case: Case | None = None) -> Spread | None:
        """The costs of another divided by those of the subject; None where one of them was never measured."""
        own = self.costs(case, subject)
        others = self.costs(against_case or case, against)
        ratios = [others[number] / own[number] for number in own if number in others and own[number] > 0]
        return Spread.of(ratios) if ratios else None


# ----------------------------------------------------------------------------------------------------------- the tables


@dataclass(frozen=True)
class Table:
    """Rows of words under a heading."""

    title: str
    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def as_text(self) -> str:
        """For a terminal: numbers to the right, the words of the first and the last column to the left."""
        all_rows = [self.heading, *self.rows]
        widths = [max(map(len, column)) for column in zip(*all_rows, strict=True)]
        sides = ["<", *(">" for _ in widths[2:]), "<"]

        def line(row: Sequence[str]) -> str:
            cells = [f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)]
            return "  ".join(cells).rstrip()

        rule = "-" * len(line(self.heading))
        return "\n".join([self.title, rule, *map(line, all_rows[:1]), rule, *map(line, all_rows[1:]), ""])

    def as_rst(self) -> str:
        """For the documentation."""
        lines = [f".. list-table:: {self.title}", "   :header-rows: 1", ""]
        for row in [self.heading, *self.rows]:
            cells = [re.sub(r"([\\*_`|])", r"\\\1", cell) for cell in row]  # which mean something there
            lines += [f"   {'  -' if index else '* -'} {cell}".rstrip() for index, cell in enumerate(cells)]
        return "\n".join([*lines, ""])


FORMATS: dict[str, Callable[[Table], str]] = {"text": Table.as_text, "rst": Table.as_rst}


def tables(results: Results) -> Iterator[Table]:
    """All of them."""
    yield environment_table(results)
    for case in results.cases():
        yield case_table(results, case)
    yield targets_table(results)


def environment_table(results: Results) -> Table:
    words = dict(results.document["environment"])
    words["packages"] = ", ".join(f"{name} {version}" for name, version in words["packages"].items())
    return Table("Measured on", ("what", "which"), tuple((key, str(value)) for key, value in words.items()))


def case_table(results: Results, case: Case) -> Table:
    """The costs of all contenders in one case, and how much flowno's are smaller."""
    program = PROGRAMS[case.program]
    columns = (program.cost, *program.others)
    heading = (
        "contender",
        cost_heading(case),
        "spread",
        *(column.heading for column in program.others),
        f"times that of {contender(case.base).label}",
    )
    rows = []
    for one in results.contenders(case):
        rounds = results.figures(case, one)
        if not rounds:
            rows.append((contender(one).label, *("" for _ in heading[2:]), results.missing(case, one)))
            continue
        spreads = [Spread.of([column.value(figures) for figures in rounds]) for column in columns]
        cost, *others = (column.show(spread.median) for column, spread in zip(columns, spreads, strict=True))
        low, high = (program.cost.show(end) for end in (spreads[0].low, spreads[0].high))
        ratio = "" if one == case.base else _ratio(results.ratio(case, case.base, one))
        rows.append((contender(one).label, cost, f"{low} - {high}", *others, ratio))
    return Table(case.title, heading, tuple(rows))


def cost_heading(case: Case) -> str:
    """What the costs of a case are, as "µs of CPU per message"."""
    heading = PROGRAMS[case.program].cost.heading
    return f"{heading} per {case.unit}" if case.unit else heading


def _ratio(spread: Spread | None) -> str:
    return "not measured" if spread is None else f"{spread.median:.2f} ({spread.low:.2f} - {spread.high:.2f})"


def targets_table(results: Results) -> Table:
    """The targets of the cases that were measured, and what has become of them."""
    by_key = {case.key: case for case in results.cases()}
    rows = []
    for target in TARGETS:
        if (case := by_key.get(target.case)) is None:
            continue
        against_case = by_key.get(target.against_case) if target.against_case else case
        spread = results.ratio(case, target.subject, target.against, against_case) if against_case else None
        against = contender(target.against).label
        if target.against_case:
            against += f", {target.against_case}"
        goal = "" if target.goal is None else f"{target.goal:.2f}"
        rows.append((target.case, against, _ratio(spread), f"{target.at_least:.2f}", goal, verdict(target, spread)))
    return Table("Targets", ("case", "against", "times that of flowno", "at least", "goal", "verdict"), tuple(rows))


def verdict(target: Target, spread: Spread | None) -> str:
    """What has become of a target, in a word or two. The ratio counts as the table shows it, rounded."""
    if spread is None:
        return "not measured"
    ratio = round(spread.median, 2)
    if ratio < target.at_least:
        return "missed"
    return "met" if target.goal is None or ratio < target.goal else "goal met"
