"""No operation costs more than it did, and none less without that being kept; counted, not timed."""

import sys
from pathlib import Path

import pytest

from tests.benchmarks import instructions
from tests.benchmarks.instructions import COMMAND, PYTHON, Cost, differences, measure_apart, read

counts = pytest.mark.skipif(
    sys.platform != "linux" or sys.implementation.name != "cpython",
    reason=f"the numbers are those of CPython on Linux, not of {sys.implementation.name} on {sys.platform}",
)


@pytest.mark.not_in_debug_mode(reason="it counts instructions")
@counts
def test_no_operation_costs_more_or_less_than_it_did() -> None:
    kept = read()
    if PYTHON not in kept:
        pytest.skip(f"nothing is kept for Python {PYTHON}; `{COMMAND} --update`, run by it, counts and keeps")
    changes = differences(kept[PYTHON], measure_apart())
    if changes:
        pytest.fail(
            "\n".join(changes)
            + f"\n\nIs that meant? Then `{COMMAND} --update`, run by each of Python {', '.join(kept)}, keeps the new "
            "numbers, and the commit says why they are what they are. An operation that has become cheaper is to be "
            "kept, too, or it can become as dear again and nobody notices.",
            pytrace=False,
        )


@counts
def test_the_numbers_do_not_depend_on_how_the_tests_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = measure_apart()
    for name, value in {
        "PYTHONDEVMODE": "1",
        "PYTHONOPTIMIZE": "2",
        "PYTHONHASHSEED": "7",
        "PYTHONTRACEMALLOC": "5",
        "FLOWNO_SELECTOR": "select",
    }.items():
        monkeypatch.setenv(name, value)
    assert measure_apart() == usual


@pytest.mark.parametrize(
    ("kept", "counted", "line"),
    [
        (Cost(200, 10), Cost(200, 10), None),
        (Cost(200, 10), Cost(204, 10), None),  # the tolerance
        (Cost(200, 10), Cost(196, 10), None),
        (Cost(200, 10), Cost(205, 10), "switch: 205 instructions, 200 are kept (+2.5%)"),
        (Cost(200, 10), Cost(150, 10), "switch: 150 instructions, 200 are kept (-25.0%)"),
        (Cost(200, 10), Cost(200, 11), "switch: 11 calls, 10 are kept (+10.0%)"),
        (Cost(200, 0), Cost(200, 0.5), "switch: 0.5 calls, 0 are kept (new)"),
        (None, Cost(200, 10), "switch: is not kept so far"),
        (Cost(200, 10), None, "switch: is kept, and is no operation any more"),
    ],
)
def test_a_change_beyond_the_tolerance_is_named_with_both_numbers(
    kept: Cost | None, counted: Cost | None, line: str | None
) -> None:
    def entry(cost: Cost | None) -> dict[str, Cost]:
        return {} if cost is None else {"switch": cost}

    assert differences(entry(kept), entry(counted)) == ([] if line is None else [line])


def test_an_update_keeps_the_other_pythons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(instructions, "FILE", tmp_path / "instructions.json")
    assert read() == {}
    instructions.write("3.98", {"switch": Cost(200.5, 10)})
    instructions.write("3.99", {"switch": Cost(100, 5), "sleep": Cost(300, 12)})
    instructions.write("3.98", {"switch": Cost(150, 9)})
    assert read() == {"3.98": {"switch": Cost(150, 9)}, "3.99": {"switch": Cost(100, 5), "sleep": Cost(300, 12)}}
