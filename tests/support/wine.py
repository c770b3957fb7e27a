"""Where Wine, under which the tests for Windows run on Linux, is not as Windows is."""

import sys

import pytest

__all__ = ["closes_without_reset", "is_slow", "says_nothing_of_locks"]


def _is_wine() -> bool:
    if sys.platform != "win32":
        return False
    import ctypes

    return hasattr(ctypes.WinDLL("ntdll"), "wine_get_version")


_IS_WINE = _is_wine()

closes_without_reset = pytest.mark.skipif(_IS_WINE, reason="Wine sends no reset where SO_LINGER asks for one")

says_nothing_of_locks = pytest.mark.skipif(_IS_WINE, reason="Wine's C runtime refuses a locked file without an errno")

is_slow = pytest.mark.skipif(_IS_WINE, reason="Wine takes a millisecond for each system call of a socket, and longer")
