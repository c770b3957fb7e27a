"""The environment variables that attach something to loops, and whether the environment is to be trusted at all.

``FLOWNO_SELECTOR`` is at home where backends are chosen.
"""

import os
import sys
from functools import cache
from typing import Final

__all__ = [
    "DEBUG_VARIABLE",
    "FAULTS_VARIABLE",
    "LOG_LEVEL_VARIABLE",
    "MONITOR_VARIABLE",
    "TRACE_VARIABLE",
    "VARIABLES",
    "environment_is_trusted",
    "switched_on",
]

DEBUG_VARIABLE: Final = "FLOWNO_DEBUG"
FAULTS_VARIABLE: Final = "FLOWNO_FAULTS"
LOG_LEVEL_VARIABLE: Final = "FLOWNO_LOG_LEVEL"
MONITOR_VARIABLE: Final = "FLOWNO_MONITOR"
TRACE_VARIABLE: Final = "FLOWNO_TRACE"

#: That attach something to each loop of a program, without a change to it. They are read when a loop is made.
VARIABLES: Final = (DEBUG_VARIABLE, FAULTS_VARIABLE, LOG_LEVEL_VARIABLE, MONITOR_VARIABLE, TRACE_VARIABLE)

#: What such a variable is where nothing is asked for, in small letters.
_OFF: Final = ("", "0", "false", "no", "off")

#: What Linux tells a program of how it was started, in linux/auxvec.h.
_AT_SECURE: Final = 23


def switched_on(variable: str) -> bool:
    """Whether an environment variable asks for something: empty, ``0``, ``false``, ``no`` and ``off`` do not."""
    return os.environ.get(variable, "").strip().lower() not in _OFF


def environment_is_trusted() -> bool:
    """Whether an environment variable may make this process load code or open a path.

    It may not under ``python -E`` and ``-I``, nor in a program that runs with more rights than its user has: setuid and
    setgid, also where they are put aside for now, and the capabilities of a file.
    """
    if sys.flags.ignore_environment:
        return False
    if sys.platform == "win32":
        return True
    if os.getuid() != os.geteuid() or os.getgid() != os.getegid():
        return False
    if hasattr(os, "getresuid") and (len({*os.getresuid()}) > 1 or len({*os.getresgid()}) > 1):
        return False
    return not _is_privileged()


@cache
def _is_privileged() -> bool:
    """Whether Linux has started this program with more rights than who has started it: AT_SECURE, getauxval(3).

    It stays so where the program has dropped these rights, as it does for secure_getenv(3) of the C library.
    """
    try:
        with open("/proc/self/auxv", "rb") as file:
            words = memoryview(file.read()).cast("L").tolist()
    except OSError:
        return False  # not Linux, or there is no /proc
    return dict(zip(words[::2], words[1::2], strict=True)).get(_AT_SECURE, 0) != 0
