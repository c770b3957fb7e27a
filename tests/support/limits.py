"""How many files a process may have open, and select(2) hold."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

if sys.platform != "win32":
    import resource

__all__ = ["connections_that_fit", "is_open", "open_files"]


@contextmanager
def open_files(number: int) -> Iterator[None]:
    """Room for so many open files, else the test is skipped."""
    if sys.platform == "win32":
        yield  # sockets are no files there
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
        except (ValueError, OSError):
            pytest.skip(f"RLIMIT_NOFILE cannot be raised from {soft} to {number}; the hard limit is {hard}")
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connections_that_fit(backend: str, wanted: int, spare: int) -> int:
    """So many as are wanted or, with select, as there is room for beside ``spare`` other files.

    Its room are the numbers below FD_SETSIZE, 1,024, of which this process has some in use; on Windows 512 sockets.
    """
    if backend != "select":
        return wanted
    room = 512 if sys.platform == "win32" else sum(not is_open(fd) for fd in range(1024))
    return min(wanted, room - spare)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
