"""Helpers for the tests of programs that run in flowno. They need no test framework."""

from ..debug.faults import Faults, faults, faults_of
from .cancellation import CancellationLeak, cancel_everywhere

__all__ = ["CancellationLeak", "Faults", "cancel_everywhere", "faults", "faults_of"]
