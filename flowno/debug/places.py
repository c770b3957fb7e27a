"""Where something was made, and where a task is, in the words of a traceback."""

from __future__ import annotations

import linecache
import os
import sys
from itertools import takewhile
from traceback import FrameSummary, StackSummary
from typing import TYPE_CHECKING, Final, TypeAlias

from flowno.core.event_loop import event_loop
from flowno.core.event_loop.snapshots import is_own

if TYPE_CHECKING:
    from types import FrameType

__all__ = [
    "ORIGIN_DEPTH",
    "Place",
    "here_and_outwards",
    "in_the_task",
    "place_in_words",
    "stack_in_words",
    "with_stack",
]

#: The innermost frames: file, line, function, as in the ``cr_origin`` of a coroutine.
Place: TypeAlias = tuple[tuple[str, int, str], ...]

#: How many frames of a place are kept, the innermost.
ORIGIN_DEPTH: Final = 10

#: A task ends, outwards, where the loop has stepped it: what comes then is whoever has started the run.
_LOOP: Final = event_loop.__file__

#: Where the frames are of those who watch.
_WATCHERS: Final = os.path.dirname(__file__) + os.sep


def here_and_outwards() -> Place:
    """Where the program is now, as far as the outermost frame of the task that runs; cheap, as nothing is read.

    Where there is nothing of the program, in a handler of a server for one, it is where flowno is.
    """
    ours: list[tuple[str, int, str]] = []
    frames: list[tuple[str, int, str]] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(frames) < ORIGIN_DEPTH and frame.f_code.co_filename != _LOOP:
        filename = frame.f_code.co_filename
        if not filename.startswith(_WATCHERS):
            found = ours if is_own(frame) else frames
            found.append((filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return tuple(frames or ours[:ORIGIN_DEPTH])


def in_the_task(place: Place) -> Place:
    """As much of a place as is inside of the task: Python's own ones go further out."""
    inside = takewhile(lambda frame: frame[0] != _LOOP, place)
    return tuple(frame for frame in inside if not frame[0].startswith(_WATCHERS))


def stack_in_words(stack: StackSummary) -> str:
    """A stack as a traceback has it, the innermost frame last."""
    return "".join(stack.format()).rstrip()


def place_in_words(place: Place) -> str:
    """As :func:`stack_in_words`, of a place."""
    for filename, _, _ in place:
        linecache.checkcache(filename)
    frames = [FrameSummary(filename, line, function) for filename, line, function in reversed(place)]
    return stack_in_words(StackSummary.from_list(frames))


def with_stack(what: str, place: Place | None) -> str:
    """A line about what was made, and where; nothing where that is not known."""
    return f"\n{what} (most recent call last):\n{place_in_words(place)}" if place else ""
