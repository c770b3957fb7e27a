"""Buffers that a program hands over: what is sent, as bytes; and how much room there is for what comes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["octets_of", "room_in"]


def octets_of(data: Buffer) -> bytes | memoryview:
    """Any contiguous buffer as one whose length is its number of bytes, without copying it."""
    if type(data) is bytes:
        return data
    view = memoryview(data)
    return view.cast("B") if view.nbytes else b""


def room_in(buffer: Buffer, nbytes: int) -> int:
    """How many bytes are to go into a buffer that something is received into.

    Raises:
        TypeError: It is not writable.
        ValueError: ``nbytes`` is negative, or more than there is room for.
    """
    view = memoryview(buffer)
    if view.readonly:
        raise TypeError(f"recv_into() needs a writable buffer, not {buffer!r}")
    if not 0 <= nbytes <= view.nbytes:
        raise ValueError(f"recv_into() cannot take {nbytes} bytes into a buffer of {view.nbytes}")
    return nbytes or view.nbytes
