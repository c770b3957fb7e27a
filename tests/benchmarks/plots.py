"""Draws what was measured: for each case a bar for each contender, as an SVG. Needs matplotlib."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.benchmarks.cases import Case
from tests.benchmarks.contenders import contender
from tests.benchmarks.programs import PROGRAMS
from tests.benchmarks.report import Results, Spread, cost_heading

__all__ = ["draw"]

#: flowno, what is measured beside it, and the loop that has nothing to add.
_COLOURS = {"flowno": "#2a6f97", "bare": "#6c757d"}
_OTHERS = "#c9ada7"

_SETTINGS = {
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "flowno",  # the same figures make the same file
}


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw all cases that were measured.

    Args:
        results: What was measured.
        folder: Where to put the files, ``<key of the case>.svg``; it is made where it does not exist.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for case in results.cases():
        costs = {one: Spread.of(list(by_round.values())) for one, by_round in _measured(results, case).items()}
        if costs:
            files.append(folder / f"{case.key}.svg")
            with mpl.rc_context(_SETTINGS):
                # No date in it, for the same reason as the hashsalt.
                _bars(case, costs).savefig(files[-1], format="svg", metadata={"Date": None})
    return files


def _measured(results: Results, case: Case) -> dict[str, dict[int, float]]:
    return {one: costs for one in results.contenders(case) if (costs := results.costs(case, one))}


def _bars(case: Case, costs: dict[str, Spread]) -> Figure:
    """The medians, the least on top, with their quartiles."""
    cost = PROGRAMS[case.program].cost
    order = sorted(costs, key=lambda one: costs[one].median, reverse=True)
    medians = [costs[one].median for one in order]
    errors = [
        [costs[one].median - costs[one].low for one in order],
        [costs[one].high - costs[one].median for one in order],
    ]
    figure = Figure(figsize=(7, 0.8 + 0.27 * len(order)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(
        [contender(one).label for one in order],
        medians,
        xerr=errors,
        color=[_COLOURS.get(one.partition("-")[0], _OTHERS) for one in order],
        error_kw={"linewidth": 0.8},
    )
    axes.bar_label(bars, [cost.show(median) for median in medians], padding=6)
    axes.set_title(case.title, loc="left")
    axes.set_xlabel(cost_heading(case))
    axes.xaxis.set_major_formatter(lambda value, _: cost.show(value) if value else "0")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
