"""Where a read of a stream ends: separators and patterns, looked for in what comes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from ..core.event_loop.errors import FlownoError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Finder", "LimitOverrunError", "PatternSearch", "Search"]

#: Where a read ends in what has been received, counted from where it begins; -1 where more is needed. What has been
#: received are the first buffer's bytes from the number on.
Finder: TypeAlias = Callable[["bytes | bytearray", int], int]

#: A pattern is looked for in everything for so many pieces, and then each time that there is more by one part in so
#: many; in between, in the newest piece and so many bytes before it.
_PIECES = 64
_OVERLAP = 1024


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


class Search:
    """Looks for separators in what comes, and at no byte twice."""

    __slots__ = ("_limit", "_longest", "_searched", "_separators")

    def __init__(self, separator: Buffer | tuple[Buffer, ...], limit: int) -> None:
        given = separator if isinstance(separator, tuple) else (separator,)
        self._separators = sorted((bytes(memoryview(one)) for one in given), key=len)
        if not self._separators or not self._separators[0]:
            raise ValueError(f"a separator is at least one byte, and there is at least one; not {separator!r}")
        self._longest = len(self._separators[-1])
        self._limit = limit
        self._searched = 0  # so many bytes cannot begin a separator

    def end_of(self, buffer: bytes | bytearray, start: int) -> int:
        """The end of the separator that ends first, counted from ``start``; -1 where there is none yet."""
        size = len(buffer)
        position = start + self._searched
        # By windows that grow, so that a separator which is far away does not cost more than what is found before it.
        window = size if len(self._separators) == 1 else 256
        while position < size:
            found, end = -1, min(position + window, size)
            stop = end
            for separator in self._separators:
                at = buffer.find(separator, position, end)
                if at >= 0 and (found < 0 or at + len(separator) < end):
                    found, end = at, at + len(separator)
            if found >= 0:
                if found - start > self._limit:
                    raise LimitOverrunError(f"a separator stands behind the limit, {self._limit} bytes", found - start)
                return end - start
            if stop == size:
                break
            position = max(stop - self._longest + 1, position)
            window *= 2
        self._searched = max(size - start - self._longest + 1, self._searched)
        if self._searched > self._limit:
            raise LimitOverrunError(
                f"no separator in {self._searched} bytes, and the limit is {self._limit}", self._searched
            )
        return -1


class PatternSearch:
    """Looks for a pattern in what comes.

    Nothing says where a match may begin that ends in what has just come, so each search looks through everything, up to
    the limit. A peer that sends byte by byte must not make that quadratic: after some pieces only what has come since
    the last search is looked through, and a bit before it, and everything when that has grown by a part of it, or is
    all there will be. So the costs are linear, and pieces of a 64th of the limit never make a difference. The match
    counts for the limit, too, or the pieces would decide whether one that ends behind it is found.

    Args:
        pattern: A compiled pattern of bytes.
        limit: How many bytes to look through.
    """

    __slots__ = ("_limit", "_looked_through", "_pattern", "_pieces", "_searched")

    def __init__(self, pattern: re.Pattern[bytes], limit: int) -> None:
        if isinstance(pattern.pattern, str):
            raise TypeError(f"readuntil() takes a pattern of bytes, not of text: {pattern!r}")
        self._pattern = pattern
        self._limit = limit
        self._pieces = 0
        self._searched = 0  # so many bytes were there the last time
        self._looked_through = 0  # so many were there the last time that everything was looked through
        if pattern.search(b""):
            raise self._matches_nothing()

    def end_of(self, buffer: bytes | bytearray, start: int) -> int:
        """The end of the first match, counted from ``start``; -1 where there is none yet."""
        # A slice, which is no copy: of what stands before it, "^" and look-behind see nothing.
        with memoryview(buffer) as whole, whole[start : start + self._limit] as view:
            size = len(view)
            begin = 0
            is_new = self._searched < size < self._limit
            if is_new and self._pieces >= _PIECES and (size - self._looked_through) * _PIECES < size:
                begin = max(self._searched - _OVERLAP, 0)
            else:
                self._looked_through = size
            match = self._pattern.search(view, begin)
        self._pieces += 1
        self._searched = size
        if match is not None:
            if match.start() == match.end():
                raise self._matches_nothing()
            return match.end()
        if size >= self._limit:
            raise LimitOverrunError(f"{self._pattern!r} has no match in {size} bytes, the limit", size)
        return -1

    def _matches_nothing(self) -> ValueError:
        return ValueError(f"{self._pattern!r} matches where no byte is, which does not end a read; it is to take one")
