"""The errors of reads that do not find their end."""

from __future__ import annotations

from typing import Any

from ..core.event_loop.errors import FlownoError

__all__ = ["IncompleteReadError", "LimitOverrunError"]


class IncompleteReadError(FlownoError, EOFError):
    """The stream ended before all that was asked for had come.

    Args:
        partial: What had come before the end. It is not in the stream any more.
        expected: How many bytes were asked for; None where a separator was.
    """

    def __init__(self, partial: bytes, expected: int | None) -> None:
        asked = "a separator" if expected is None else f"{expected} bytes"
        super().__init__(f"the stream ended after {len(partial)} bytes, before {asked} had come")
        self.partial = partial
        self.expected = expected

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.partial, self.expected)


class LimitOverrunError(FlownoError):
    """No separator stands within the limit of the stream. All that has come is still in it.

    Args:
        message: What was looked for.
        consumed: How many bytes stand before the separator, or were looked through in vain: so many can be read, by
            ``readexactly``, without passing over a separator, though maybe over where the match of a pattern begins.
    """

    def __init__(self, message: str, consumed: int) -> None:
        super().__init__(message)
        self.consumed = consumed

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.consumed)
