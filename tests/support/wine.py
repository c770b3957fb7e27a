"""Where Wine, under which the tests for Windows run on Linux, is not as Windows is."""

import sys

import pytest

__all__ = [
    "PATIENCE",
    "copies_no_files",
    "is_slow",
    "keeps_sockets_of_killed_programs",
    "says_nothing_of_locks",
    "takes_a_reset_for_an_end",
]


def _is_wine() -> bool:
    if sys.platform != "win32":
        return False
    import ctypes

    return hasattr(ctypes.WinDLL("ntdll"), "wine_get_version")


_IS_WINE = _is_wine()

#: How many times as long as elsewhere a program may take to start and to run, before it counts as hung.
PATIENCE = 6 if _IS_WINE else 1

takes_a_reset_for_an_end = pytest.mark.skipif(_IS_WINE, reason="Wine's recv() gives a reset as the end of the stream")

says_nothing_of_locks = pytest.mark.skipif(_IS_WINE, reason="Wine's C runtime refuses a locked file without an errno")

copies_no_files = pytest.mark.skipif(_IS_WINE, reason="Wine 8 has no CopyFile2, and ends who calls it, as shutil does")

keeps_sockets_of_killed_programs = pytest.mark.skipif(
    _IS_WINE, reason="Wine 8 may keep the sockets open of a program that is killed in select(), until all programs end"
)

is_slow = pytest.mark.skipif(_IS_WINE, reason="Wine takes a millisecond for each system call of a socket, and longer")
