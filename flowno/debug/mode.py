"""Debug mode: what a loop looks for while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowno.core.event_loop.event_loop import EventLoop

__all__ = ["attach"]


def attach(loop: EventLoop, value: str) -> None:
    """Put a new loop into debug mode."""
