"""What the monitor of a process and those who ask it say to each other.

One request, one answer, and the connection ends. Both are a line of JSON, in UTF-8. The request is an object with
``protocol`` (:data:`PROTOCOL`) and ``limit``, how many tasks, registrations and timers of each loop to send at most.
The answer is an object with ``protocol``, ``pid``, and ``loops``: a list of
:class:`~flowno.core.event_loop.snapshots.LoopSnapshot`, each as an object with its fields. Or it has ``error``, a text.
"""

from __future__ import annotations

import json
import os
from typing import Any, Final, NamedTuple

from flowno.core.event_loop.snapshots import (
    CountersSnapshot,
    FrameSnapshot,
    LoopSnapshot,
    RegistrationSnapshot,
    TaskSnapshot,
    TimerSnapshot,
)

from . import path_in_process

__all__ = [
    "LONGEST_REQUEST",
    "MOST",
    "PROTOCOL",
    "Answer",
    "as_json",
    "decode",
    "encode",
    "path_of",
    "request",
    "requested",
]

PROTOCOL: Final = 1

#: Bytes.
LONGEST_REQUEST: Final = 1024

#: Of the tasks, registrations and timers of a loop, how many an answer has at most.
MOST: Final = 10_000


class Answer(NamedTuple):
    """What a monitor says.

    Attributes:
        pid: Of its process.
        loops: The event loops that run there.
    """

    pid: int
    loops: tuple[LoopSnapshot, ...]


def path_of(value: str, pid: int) -> str:
    """Where a process listens, by what ``FLOWNO_MONITOR`` says: ``{pid}`` stands for its number.

    In a folder that is there it is ``flowno-NUMBER.sock``.
    """
    path = path_in_process(value, pid)
    return os.path.join(path, f"flowno-{pid}.sock") if os.path.isdir(path) else path


def request(limit: int) -> bytes:
    """A request for at most so many tasks, registrations and timers of each loop."""
    return _line({"protocol": PROTOCOL, "limit": limit})


def requested(line: bytes) -> int:
    """The limit of a request.

    Raises:
        ValueError: That is none.
    """
    asked = json.loads(line)
    if not isinstance(asked, dict) or asked.get("protocol") != PROTOCOL:
        raise ValueError(f"a request is an object whose protocol is {PROTOCOL}")
    limit = asked.get("limit")
    if not isinstance(limit, int) or not 0 <= limit <= MOST:
        raise ValueError(f"limit must be a number from 0 to {MOST}")
    return limit


def encode(answer: Answer | str) -> bytes:
    """An answer, or the text of an error."""
    if isinstance(answer, str):
        return _line({"protocol": PROTOCOL, "error": answer})
    return _line({"protocol": PROTOCOL, **as_json(answer)})


def decode(line: bytes) -> Answer:
    """An answer.

    Raises:
        ValueError: It is an error, whose text this has; or it is none of this protocol.
    """
    told = json.loads(line)
    if not isinstance(told, dict) or told.get("protocol") != PROTOCOL:
        raise ValueError("what answers there is no monitor of this version of flowno")
    if "error" in told:
        raise ValueError(str(told["error"]))
    try:
        return Answer(told["pid"], tuple(map(_loop, told["loops"])))
    except (KeyError, TypeError) as error:
        raise ValueError(f"the answer is not what it should be: {error!r}") from None


def as_json(thing: Any) -> Any:
    """Named tuples as dictionaries, whatever they are in."""
    if hasattr(thing, "_asdict"):
        return {name: as_json(value) for name, value in thing._asdict().items()}
    return [as_json(value) for value in thing] if isinstance(thing, tuple) else thing


def _loop(told: dict[str, Any]) -> LoopSnapshot:
    tasks = tuple(_task(each) for each in told["tasks"])
    registrations = tuple(
        RegistrationSnapshot(**{**each, "armed": tuple(each["armed"])}) for each in told["registrations"]
    )
    timers = tuple(TimerSnapshot(**each) for each in told["timers"])
    counters = CountersSnapshot(**told["counters"])
    return LoopSnapshot(
        **{**told, "tasks": tasks, "registrations": registrations, "timers": timers, "counters": counters}
    )


def _task(told: dict[str, Any]) -> TaskSnapshot:
    return TaskSnapshot(**{**told, "stack": tuple(FrameSnapshot(**frame) for frame in told["stack"])})


def _line(told: object) -> bytes:
    # Escaped throughout: a name may have what no encoding has, such as half of a surrogate pair.
    return json.dumps(told, separators=(",", ":")).encode() + b"\n"
