"""The places that flowno is to have: a table, and how it is read."""

from dataclasses import dataclass

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True)
class Target:
    """The costs of another, divided by those of flowno, in the same round.

    Args:
        case: The case.
        against: The other contender; or, with ``against_case``, the same one.
        at_least: The ratio that is demanded.
        goal: The ratio that is aimed at; None where there is none.
        subject: The contender that stands for flowno.
        against_case: The case of the other's costs, where that is another case.
    """

    case: str
    against: str
    at_least: float
    goal: float | None = None
    subject: str = "flowno"
    against_case: str = ""


TARGETS = (
    Target("echo-1KiB-10", "bare", 0.80, 0.88),
    Target("echo-1KiB-10", "uvloop-streams", 1.4),
    Target("echo-1KiB-10", "uvloop-sock", 3),
    Target("echo-1KiB-10", "trio", 2.4),
    Target("echo-1KiB-10", "gevent", 1.6),
    Target("echo-1KiB-200", "bare", 0.70, 0.85),
    Target("echo-1KiB-200", "uvloop-streams", 1.35),
    Target("echo-1KiB-200", "trio", 2.4),
    Target("echo-64KiB-10", "bare", 0.80, 0.9),
    Target("echo-64KiB-10", "uvloop-streams", 2.2),
    Target("lines", "uvloop-streams", 1.2, 1.5, subject="flowno-streams"),
    Target("lines", "asyncio-streams", 2, subject="flowno-streams"),
    Target("lines-16", "uvloop-streams", 1.2, 1.5, subject="flowno-streams"),
    Target("lines-16", "asyncio-streams", 2, subject="flowno-streams"),
    Target("tls-10", "uvloop-streams", 1.1, 1.2),
    Target("tls-10", "asyncio-streams", 1.4),
    Target("tls-10", "trio", 2),
    Target("tls-100", "uvloop-streams", 0.95, 1.2),
    Target("tls-100", "asyncio-streams", 1.4),
    Target("tls-100", "trio", 2),
    Target("churn", "bare", 0.65, 0.8),
    Target("churn", "uvloop-streams", 1.4),
    Target("churn", "trio", 2),
    Target("spawn_join", "uvloop", 1.4, 1.6),
    Target("switch", "uvloop", 1.8, 2.2),
    Target("queue", "uvloop", 2, 2.7),
    Target("lock", "uvloop", 1.8, 2.2),
    Target("sleeps", "uvloop", 1.4, 1.8),
    Target("time_limits", "uvloop", 1.8, 2.3),
    Target("spawn_cancel", "uvloop", 1.2, 1.5),
    Target("idle-10000", "flowno", 0.9, 1.0, against_case="idle-0"),
    Target("memory-idle", "asyncio-streams", 1, 2),
    Target("import", "asyncio", 1, 2),
)
