"""Where a read of a stream ends: a number of bytes, or separators and patterns that are looked for in what comes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from .errors import LimitOverrunError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["NOT_YET", "Finder", "PatternSearch", "SeparatorSearch", "exactly", "never", "up_to"]

#: Where a read ends in what has been received, counted from where it begins, or NOT_YET. What has been received are the
#: bytes of the first argument from the second on.
Finder: TypeAlias = Callable[["bytes | bytearray", int], int]

#: What a finder says where more must come.
NOT_YET = -1

#: With each of so many pieces, a pattern is looked for in everything.
_FIRST_PIECES = 64

#: Later it is so only once one part in so many of everything is new since the last time.
_SHARE = 64

#: Else it is looked for in the newest piece and in so many bytes before it.
_OVERLAP = 1024


def never(received: bytes | bytearray, start: int) -> int:
    """The finder of what reads until the end of the stream."""
    return NOT_YET


def exactly(size: int) -> Finder:
    """The finder of what reads so many bytes."""
    return lambda received, start: size if len(received) - start >= size else NOT_YET


def up_to(size: int) -> Finder:
    """The finder of what reads what there is, so many bytes at most. For no bytes, nothing has to come."""
    return lambda received, start: min(len(received) - start, size) or (NOT_YET if size else 0)


class SeparatorSearch:
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
        """The end of the separator that ends first, counted from ``start``; NOT_YET where there is none."""
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
        return NOT_YET


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
        """The end of the first match, counted from ``start``; NOT_YET where there is none."""
        # A slice, which is no copy: of what stands before it, "^" and look-behind see nothing.
        with memoryview(buffer) as whole, whole[start : start + self._limit] as view:
            size = len(view)
            begin = 0
            is_new = self._searched < size < self._limit
            if is_new and self._pieces >= _FIRST_PIECES and (size - self._looked_through) * _SHARE < size:
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
        return NOT_YET

    def _matches_nothing(self) -> ValueError:
        return ValueError(f"{self._pattern!r} matches where no byte is, which does not end a read; it is to take one")
