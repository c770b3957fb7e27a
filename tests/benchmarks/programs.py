"""What the measuring programs print, and how it is read: each of their figures, and the one that is compared.

That one is a cost, so that less is better in every case, and flowno's place is the cost of another divided by its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["BUSY_ENOUGH", "PROGRAMS", "Column", "Program"]

Figures = Mapping[str, float]

#: The share of the time that a server has to be busy, else it had to wait for the client.
BUSY_ENOUGH = 0.95


@dataclass(frozen=True)
class Column:
    """One figure as it stands in the tables."""

    heading: str
    value: Callable[[Figures], float]
    show: Callable[[float], str]


@dataclass(frozen=True)
class Program:
    """One of the modules that measure.

    Args:
        cost: What is compared.
        others: What is shown beside it.
    """

    cost: Column
    others: tuple[Column, ...] = ()


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:#.3g}".rstrip(".")


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:#.3g}".rstrip(".")


def _whole(number: float) -> str:
    return f"{number:,.0f}"


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _busy(share: float) -> str:
    return f"{share:.0%}" if share >= BUSY_ENOUGH else f"{share:.0%} (not kept busy)"


PROGRAMS = {
    "load": Program(
        Column("µs of CPU", lambda figures: figures["server_cpu"] / figures["count"], _microseconds),
        (
            Column("in the kernel", lambda figures: figures["server_system"] / figures["server_cpu"], _percent),
            Column("per second", lambda figures: figures["count"] / figures["seconds"], _whole),
            Column("busy", lambda figures: figures["server_cpu"] / figures["seconds"], _busy),
        ),
    ),
    "operations": Program(
        Column("µs of CPU", lambda figures: figures["seconds"] / figures["count"], _microseconds),
        (Column("per second of CPU", lambda figures: figures["count"] / figures["seconds"], _whole),),
    ),
    "memory": Program(
        Column("bytes", lambda figures: figures["bytes"], _whole),
        (Column("of these, Python's", lambda figures: figures["traced"], _whole),),
    ),
    "imports": Program(Column("ms of CPU", lambda figures: figures["seconds"], _milliseconds)),
    "latency": Program(
        Column("p99, ms", lambda figures: figures["p99"], _milliseconds),
        (
            Column("p50, ms", lambda figures: figures["p50"], _milliseconds),
            Column("p99.9, ms", lambda figures: figures["p99.9"], _milliseconds),
            Column("busy", lambda figures: figures["utilisation"], _busy),
        ),
    ),
}
