"""The decorator of every operation: a generator function that yields commands, and whose calls are awaited.

An operation is one generator frame and nothing else. But Python does not say of a generator that it was dropped before
it was awaited, as it does of a coroutine. So while a loop in debug mode is there, the operations that are begun are
native coroutines: from the same code, at the same speed, and Python says which of them were never awaited, and where
they were made. Those that are under way stay what they are.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Mapping
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Final, TypeVar

from . import exchange

__all__ = ["begin_native", "coroutine", "end_native", "part"]

F = TypeVar("F")

# Of code objects, by the names of inspect, which takes longer to import than all of the core. What a call returns is
# decided by them alone: generators and coroutines are one kind of frame, of which both can yield.
_CO_GENERATOR: Final = 0x20
_CO_COROUTINE: Final = 0x80
_CO_ITERABLE_COROUTINE: Final = 0x100

#: Every operation of the modules that are loaded, with the code by which its calls are generators that can be awaited.
_operations: Final[dict[FunctionType, CodeType]] = {}

#: How many need operations to be native coroutines.
_users = 0

if TYPE_CHECKING:
    from types import coroutine

    def part(function: F) -> F: ...
else:
    #: Of a generator function that operations delegate to by ``yield from``, and that delegates to others: what is no
    #: coroutine itself may not delegate to a native one.
    part = types.coroutine

    def coroutine(function: FunctionType) -> FunctionType:
        """As :func:`types.coroutine`, of a function that stands in a module or a class."""
        with exchange.lock:
            code = _operations[function] = types.coroutine(function).__code__
            if _users:
                _give({function: _native(code)})
        return function


def begin_native() -> None:
    """One more has the operations be native coroutines; in every thread, from the next call on."""
    global _users
    with exchange.lock:
        _users += 1
        if _users == 1:
            _give({function: _native(code) for function, code in _operations.items()})


def end_native() -> None:
    """One less does."""
    global _users
    with exchange.lock:
        _users -= 1
        if not _users:
            _give(_operations)


def _native(code: CodeType) -> CodeType:
    """The code by which the calls are coroutines, out of that by which they are generators."""
    return code.replace(co_flags=code.co_flags & ~(_CO_GENERATOR | _CO_ITERABLE_COROUTINE) | _CO_COROUTINE)


def _give(codes: Mapping[FunctionType, CodeType]) -> None:
    """Have functions run other code. They themselves stay, as programs have them under names of their own."""
    with warnings.catch_warnings():
        # Python 3.13 took to calling it deprecated that a call gives something of another type (gh-81137), for the sake
        # of who did not mean it. These are the same instructions, and await knows both.
        warnings.simplefilter("ignore", DeprecationWarning)
        for function, code in codes.items():
            function.__code__ = code
