"""What is compared: a table of cases, each the work of one program for a list of contenders."""

import fnmatch
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tests.benchmarks.contenders import CONTENDERS, Contender

if sys.platform != "win32":
    import resource

__all__ = ["CASES", "Case", "chosen"]

#: Files that a process has open besides its connections, with some room.
_OTHER_FILES = 50


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        key: Its name on the command line and in the JSON.
        title: Its name in the tables.
        unit: What the costs are those of; "" where that needs no word.
        program: The module that measures it, a key of :data:`~tests.benchmarks.programs.PROGRAMS`.
        work: What it is told to do: a function of servers/ or of operations/, or another word.
        contenders: Whom it is measured for.
        base: Whose costs the others' are divided by.
        options: What the program is told besides.
        count: How many operations, for programs that do not go by time.
        connections: How many are open at once.
        group: Cases of the same group are measured side by side, so that their costs can be compared.
    """

    key: str
    title: str
    unit: str
    program: str
    work: str
    contenders: tuple[str, ...]
    base: str = "flowno"
    options: tuple[str, ...] = ()
    count: int = 0
    connections: int = 0
    group: str = ""

    @property
    def needs_certificate(self) -> bool:
        return self.work == "tls_echo"

    def missing(self, contender: Contender) -> str:
        """Why this cannot be measured for that contender here; "" where it can."""
        if reason := contender.missing():
            return reason
        if contender.holds is not None and self.connections > contender.holds:
            return f"select cannot hold {self.connections:,} connections: it takes no number from FD_SETSIZE, 1,024, on"
        if sys.platform != "win32":
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            if hard != resource.RLIM_INFINITY and self.connections + _OTHER_FILES > hard:
                return f"{self.connections:,} connections, and the hard limit of RLIMIT_NOFILE is {hard:,}"
        return ""

    def command(self, contender: Contender, scale: float = 1.0) -> list[str]:
        """The module and its arguments.

        Args:
            contender: For whom.
            scale: 1 is one second, or :attr:`count` operations.
        """
        count = str(max(int(self.count * scale), 1))
        loop = ["--loop", contender.loop]
        if self.program == "load":
            return ["load", contender.server, self.work, *loop, *self.options, "--seconds", str(scale)]
        if self.program == "operations":
            return ["operations", contender.framework, *loop, self.work, count]
        if self.program == "memory":
            return ["memory", contender.framework if self.work == "task" else contender.server, *loop, self.work, count]
        if self.program == "latency":
            return ["latency", contender.server, *loop, count]
        return ["imports", contender.module or contender.framework]


def _serving(function: str) -> tuple[str, ...]:
    return tuple(one.key for one in CONTENDERS if function in one.serves)


_FRAMEWORKS = tuple(one.key for one in CONTENDERS if one.framework)
_BACKENDS = ("flowno", "flowno-epoll", "flowno-kqueue", "flowno-poll", "flowno-select")

_SIZES = (("64 B", 64), ("1 KiB", 1024), ("64 KiB", 65536), ("1 MiB", 1048576))
_CONNECTIONS = (1, 10, 200, 1000)
_IDLE = 10_000

_OPERATIONS = (
    ("spawn_join", "Spawn a task and join it", 50_000),
    ("switch", "Switch to another task", 200_000),
    ("queue", "Round trip by two queues", 50_000),
    ("lock", "Lock that ten tasks want", 50_000),
    ("sleeps", "Sleep, a hundred tasks at once", 20_000),
    ("time_limits", "Time limit around a call that does not wait", 50_000),
    ("time_limited_switches", "Time limit around a switch", 50_000),
    ("spawn_cancel", "Spawn a task and cancel it", 20_000),
)


def _count(connections: int) -> str:
    return "1 connection" if connections == 1 else f"{connections:,} connections"


def _network(
    key: str, title: str, work: str, connections: int, *options: str, unit: str = "message", base: str = "flowno"
) -> Case:
    return Case(
        key=key,
        title=f"{title}, {_count(connections)}",
        unit=unit,
        program="load",
        work=work,
        contenders=_serving(work),
        base=base,
        options=("--connections", str(connections), *options),
        connections=connections,
    )


def _beside_idle(idle: int) -> Case:
    return Case(
        key=f"idle-{idle}",
        title=f"Echo, 1 KiB, 100 connections and {idle:,} idle ones",
        unit="message",
        program="load",
        work="echo",
        contenders=("bare", *_BACKENDS, "uvloop-streams", "asyncio-streams", "trio", "gevent"),
        options=("--connections", "100", "--idle", str(idle)),
        connections=100 + idle,
        group="idle",
    )


CASES = (
    *(
        _network(
            f"echo-{size.replace(' ', '')}-{connections}",
            f"Echo, {size}",
            "echo",
            connections,
            "--size",
            str(number_of_bytes),
        )
        for size, number_of_bytes in _SIZES
        for connections in _CONNECTIONS
    ),
    _network("lines", "Lines of 100 bytes", "lines", 10, "--size", "100", unit="line", base="flowno-streams"),
    _network(
        "lines-16",
        "Lines of 100 bytes, 16 sent together",
        "lines",
        10,
        *("--size", "100", "--batch", "16"),
        unit="line",
        base="flowno-streams",
    ),
    _network("tls-10", "TLS echo, 1 KiB", "tls_echo", 10),
    _network("tls-100", "TLS echo, 1 KiB", "tls_echo", 100),
    _network("churn", "Connect, one message of 64 bytes, close", "churn", 50, "--size", "64", unit="connection"),
    _network("sink-1", "One way, 64 KiB at a time", "sink", 1, "--size", "65536", unit="64 KiB"),
    _network("sink-10", "One way, 64 KiB at a time", "sink", 10, "--size", "65536", unit="64 KiB"),
    _beside_idle(0),
    _beside_idle(_IDLE),
    *(Case(key, title, "operation", "operations", key, _FRAMEWORKS, count=count) for key, title, count in _OPERATIONS),
    Case(
        key="memory-idle",
        title="Memory of an idle connection",
        unit="connection",
        program="memory",
        work="idle",
        contenders=_serving("echo"),
        count=1000,
        connections=3000,  # three times as many as are counted
    ),
    Case("memory-task", "Memory of a task that waits", "task", "memory", "task", _FRAMEWORKS, count=10_000),
    Case(
        key="import",
        title="Import",
        unit="import",
        program="imports",
        work="import",
        contenders=("flowno", "uvloop", "asyncio", "trio", "curio", "gevent"),
    ),
    Case(
        key="latency",
        title="Time to an answer beside 100 busy connections",
        unit="",
        program="latency",
        work="echo",
        contenders=_serving("echo"),
        count=10_000,
        connections=101,
    ),
)


def chosen(patterns: Sequence[str]) -> tuple[Case, ...]:
    """Those whose key fits one of the patterns, as in ``echo-1KiB-*``. No patterns are all of them.

    Raises:
        ValueError: A pattern that fits no case.
    """
    known = [one.key for one in CASES]
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            raise ValueError(f"there is no case {pattern!r}; there are {', '.join(known)}")
    keys = {key for pattern in patterns or ["*"] for key in fnmatch.filter(known, pattern)}
    return tuple(one for one in CASES if one.key in keys)
