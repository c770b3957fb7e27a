"""A reader of traces that takes nothing but what Chrome's "Trace Event Format" allows, and viewers show as meant."""

import json
from bisect import bisect_right
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Slice", "Trace", "read_trace"]

Event = dict[str, Any]

#: The fields of an event, by its phase: those that it must have, and those that it may have besides.
COMMON = {"ph", "pid", "tid", "ts"}
FIELDS: dict[str, tuple[set[str], set[str]]] = {
    "X": (COMMON | {"name", "cat", "dur"}, {"args"}),
    "B": (COMMON | {"name", "cat"}, {"args"}),
    "E": (COMMON, {"name", "cat", "args"}),
    "s": (COMMON | {"name", "cat", "id"}, {"args"}),
    "f": (COMMON | {"name", "cat", "id", "bp"}, {"args"}),
    "C": (COMMON | {"name", "args"}, set()),
    "M": (COMMON | {"name", "args"}, set()),
}
TYPES: dict[str, tuple[type, ...]] = {
    "ph": (str,), "pid": (int,), "tid": (int,), "ts": (int, float), "dur": (int, float), "name": (str,), "cat": (str,),
    "id": (int,), "bp": (str,), "args": (dict,),
}  # fmt: skip
METADATA: dict[str, tuple[str, type]] = {
    "process_name": ("name", str),
    "process_labels": ("labels", str),
    "process_sort_index": ("sort_index", int),
    "thread_name": ("name", str),
    "thread_sort_index": ("sort_index", int),
}


class Slice(NamedTuple):
    """A slice of a lane. Times are nanoseconds; ``args`` has those of the beginning and of the end."""

    lane: str
    name: str
    category: str
    start: int
    end: int
    args: dict[str, Any]
    task: str  # the slice of the task that this one is in; for the slice itself, and outside of one, ""


def _start(one: Slice) -> int:
    return one.start


class Trace(NamedTuple):
    """A trace that was found to be right.

    ``arrows`` are the slices that each leads from and to. ``counters`` are the values of each curve, in order.
    """

    slices: list[Slice]
    arrows: list[tuple[Slice, Slice]]
    counters: dict[str, list[float]]
    lanes: dict[int, list[str]]  # the names that each has had
    processes: list[str]

    def of(self, category: str, task: str | None = None) -> list[Slice]:
        """The slices of a category, in order; of one task, where it is named."""
        found = [one for one in self.slices if one.category == category and task in (None, one.task)]
        return sorted(found, key=_start)

    def between(self) -> list[tuple[str, str]]:
        """Who has woken whom, by the names of the tasks; ``selector`` for the loop itself."""
        pairs = sorted(self.arrows, key=lambda arrow: arrow[0].end)
        return [(who.task or who.category, whom.task) for who, whom in pairs]


def read_trace(path: Path) -> Trace:
    """Read a trace; AssertionError names the rule that is broken, and the event that breaks it."""
    document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    assert set(document) <= {"traceEvents", "displayTimeUnit", "otherData"}
    assert document["displayTimeUnit"] in ("ms", "ns")
    events: list[Event] = document["traceEvents"]
    for event in events:
        _check_fields(event)
    lanes, processes = _names(events)
    slices = _slices(events, lanes)
    return Trace(
        [one for of_lane in slices.values() for one in of_lane],
        _arrows(events, slices),
        _counters(events),
        lanes,
        list(processes.values()),
    )


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def _check_fields(event: Event) -> None:
    assert event.get("ph") in FIELDS, f"an unknown phase: {event}"
    needed, allowed = FIELDS[event["ph"]]
    assert needed <= set(event) <= needed | allowed, f"fields: {event}"
    for name, value in event.items():
        assert type(value) in TYPES[name], f"the type of {name}: {event}"
    assert min(event["ts"], event.get("dur", 0)) >= 0, f"a negative time: {event}"
    assert "" not in (event.get("name"), event.get("cat")), f"an empty name: {event}"
    assert event.get("bp", "e") == "e", f"bp: {event}"
    if event["ph"] == "M":
        name, kind = METADATA[event["name"]]
        assert {key: type(value) for key, value in event["args"].items()} == {name: kind}, f"metadata: {event}"
    if event["ph"] == "C":
        kinds = {type(value) for value in event["args"].values()}
        assert kinds, f"a counter of nothing: {event}"
        assert kinds <= {int, float}, f"a counter: {event}"


def _names(events: list[Event]) -> tuple[dict[int, list[str]], dict[int, str]]:
    """The names of the lanes and of the processes; each lane belongs to one process, and nothing is without a name."""
    lanes: dict[int, list[str]] = defaultdict(list)
    processes: dict[int, str] = {}
    owners: dict[int, int] = {}
    for event in events:
        assert owners.setdefault(event["tid"], event["pid"]) == event["pid"], f"a lane of two processes: {event}"
        if event["ph"] == "M" and event["name"] == "thread_name":
            lanes[event["tid"]].append(event["args"]["name"])
        elif event["ph"] == "M" and event["name"] == "process_name":
            assert event["pid"] not in processes, f"a second name: {event}"
            processes[event["pid"]] = event["args"]["name"]
        elif event["ph"] != "M":
            assert event["tid"] in lanes, f"before its lane was named: {event}"
            assert event["pid"] in processes, f"before its process was named: {event}"
    return dict(lanes), processes


def _nanoseconds(microseconds: float) -> int:
    return round(microseconds * 1000)


def _slices(events: list[Event], names: dict[int, list[str]]) -> dict[int, list[Slice]]:
    """The slices of each lane, which nest, in the order in which they begin."""
    found: dict[int, list[Slice]] = {lane: [] for lane in names}
    open_slices: dict[int, list[tuple[Event, list[tuple[Event, int, int]]]]] = defaultdict(list)
    times: dict[int, int] = defaultdict(int)
    for event in events:
        if event["ph"] in "MC":
            continue
        lane, now = event["tid"], _nanoseconds(event["ts"])
        assert now >= times[lane], f"time goes back: {event}"
        times[lane] = now
        stack = open_slices[lane]
        name = names[lane][0]
        if event["ph"] == "B":
            stack.append((event, []))
        elif event["ph"] == "E":
            assert stack, f"an end without a beginning: {event}"
            begin, inside = stack.pop()
            assert event.get("name", begin["name"]) == begin["name"], f"the end of something else: {event}"
            start = _nanoseconds(begin["ts"])
            args = {**begin.get("args", {}), **event.get("args", {})}
            found[lane].append(Slice(name, begin["name"], begin["cat"], start, now, args, ""))
            for one, its_start, its_end in inside:
                assert its_end <= now, f"longer than what it is in: {one}"
                found[lane].append(
                    Slice(name, one["name"], one["cat"], its_start, its_end, one.get("args", {}), begin["name"])
                )
        elif event["ph"] == "X":
            end = now + _nanoseconds(event["dur"])
            if stack:
                stack[-1][1].append((event, now, end))
            else:
                args = event.get("args", {})
                found[lane].append(Slice(name, event["name"], event["cat"], now, end, args, args.get("task", "")))
    assert not any(open_slices.values()), f"never ended: {open_slices}"
    for of_lane in found.values():
        flat = sorted((one for one in of_lane if one.category != "task"), key=_start)
        for one, following in pairwise(flat):
            assert one.end <= following.start, f"they overlap in one lane: {one}, {following}"
    return found


def _arrows(events: list[Event], slices: dict[int, list[Slice]]) -> list[tuple[Slice, Slice]]:
    """Each arrow has one beginning and one end, and both are in a slice."""
    ends: dict[int, dict[str, Event]] = defaultdict(dict)
    for event in events:
        if event["ph"] in "sf":
            assert event["ph"] not in ends[event["id"]], f"an arrow with two ends of a kind: {event}"
            ends[event["id"]][event["ph"]] = event
    flat = {lane: sorted((one for one in of if one.category != "task"), key=_start) for lane, of in slices.items()}
    found = []
    for arrow in ends.values():
        assert set(arrow) == {"s", "f"}, f"half an arrow: {arrow}"
        first, last = arrow["s"], arrow["f"]
        assert first["ts"] <= last["ts"], f"an arrow back in time: {arrow}"
        assert (first["name"], first["cat"]) == (last["name"], last["cat"]), f"two halves of two arrows: {arrow}"
        bound = []
        for event in (first, last):
            at = _nanoseconds(event["ts"])
            of_lane = flat[event["tid"]]
            index = bisect_right(of_lane, at, key=_start) - 1
            assert index >= 0, f"before any slice: {event}"
            assert at < of_lane[index].end, f"it belongs to no slice: {event}"
            bound.append(of_lane[index])
        found.append((bound[0], bound[1]))
    return found


def _counters(events: list[Event]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    times: dict[tuple[int, str], float] = defaultdict(float)
    for event in events:
        if event["ph"] == "C":
            curve = event["pid"], event["name"]
            assert event["ts"] >= times[curve], f"time goes back: {event}"
            times[curve] = event["ts"]
            for name, value in event["args"].items():
                found[f"{event['name']} {name}"].append(value)
    return dict(found)
