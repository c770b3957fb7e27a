"""Helpers for the tests of programs that run in flowno. They need no test framework."""

from .cancellation import CancellationLeak, cancel_everywhere

__all__ = ["CancellationLeak", "cancel_everywhere"]
