"""Waiting for an event, and no longer than some time."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from ..core.event_loop.running import required_event_loop

if TYPE_CHECKING:
    from ..core.event_loop.synchronization import Event

__all__ = ["wait_at_most"]


class _Expired(Exception):
    """Raised in the wait that has lasted long enough."""


async def wait_at_most(event: Event, seconds: float) -> bool:
    """Wait until an event has happened or some time has passed.

    Args:
        event: What to wait for.
        seconds: How long at most; infinite waits as long as it takes.

    Returns:
        Whether it has happened.

    Cancellation: the wait ends, and no timer is left.
    """
    if seconds == inf:
        await event.wait()
        return True
    loop = required_event_loop("wait_at_most()")
    expired = _Expired()
    timer = loop.interrupt_after(seconds, expired)
    try:
        await event.wait()
    except _Expired as error:
        if error is not expired:
            raise
        return event.is_set()
    else:
        return True
    finally:
        loop.forget(timer)
        del expired  # its traceback has this frame
