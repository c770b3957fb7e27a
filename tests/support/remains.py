"""What a running loop and its process hold at one moment, to be compared with what they hold later."""

import gc
import os
import sys
from typing import NamedTuple

import flowno
from flowno.testing.cancellation import _open_fds as open_fds

__all__ = ["Remains", "allocated_blocks", "open_fds", "remains", "resident_bytes"]


class Remains(NamedTuple):
    """What there is.

    Attributes:
        fds: How many fds the process has open; on Windows, sockets are none.
        registered: How many fds the selector holds.
        tasks: How many tasks live.
        timers: How many deadlines there are.
    """

    fds: int
    registered: int
    tasks: int
    timers: int


def remains() -> Remains:
    """Of the loop that runs in this thread."""
    loop = flowno.current_event_loop()
    assert loop is not None
    return Remains(
        fds=len(open_fds()),
        registered=loop.fds.registered,
        tasks=len(loop.tasks),
        timers=len(loop.timers),
    )


def allocated_blocks() -> int:
    """How many blocks of memory Python has given out to objects that live: of a leak, exact to the object."""
    gc.collect()
    return sys.getallocatedblocks()


def resident_bytes() -> int | None:
    """How much memory the process has in use, Python's and all other; None where the system does not say."""
    if os.name != "posix":
        return None
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
