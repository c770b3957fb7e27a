"""The decorator of every operation: a generator function that yields commands, and whose calls are awaited.

It is ``types.coroutine``, so that an operation is one generator frame and nothing else. Python does not say of a
generator that it was dropped before it was awaited, as it does of a coroutine. So where ``FLOWNO_DEBUG`` is set when
flowno is imported, the operations are native coroutines instead: from the same code, at the same speed, and Python says
which of them were never awaited, and where they were made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from .observers import DEBUG_VARIABLE, switched_on

__all__ = ["coroutine", "part"]

F = TypeVar("F")

if TYPE_CHECKING or not switched_on(DEBUG_VARIABLE):
    from types import coroutine

    def part(function: F) -> F:
        """Of a generator function that operations delegate to, and that delegates to others, by ``yield from``."""
        return function
else:
    from functools import update_wrapper
    from types import FunctionType
    from types import coroutine as part  # Python lets no other generator delegate to a native coroutine

    # Of code objects, by the names of inspect, which takes longer to import than all of the core. What a call returns
    # is decided by them alone: generators and coroutines are one kind of frame, of which both can yield.
    _CO_GENERATOR, _CO_COROUTINE = 0x20, 0x80

    def coroutine(function: Any) -> Any:
        """The coroutine function that has the code of a generator function."""
        code = function.__code__
        code = code.replace(co_flags=code.co_flags & ~_CO_GENERATOR | _CO_COROUTINE)
        made = FunctionType(code, function.__globals__, None, function.__defaults__, function.__closure__)
        made.__kwdefaults__ = function.__kwdefaults__
        update_wrapper(made, function)
        del made.__wrapped__  # it is no wrapper: there is nothing behind it
        return made
