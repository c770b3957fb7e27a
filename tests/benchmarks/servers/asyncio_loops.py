"""The event loops that asyncio's servers run on."""

import asyncio
import importlib
from collections.abc import Coroutine
from typing import Any


def run(main: Coroutine[Any, Any, None], loop: str) -> None:
    """``asyncio.run``, with the event loop of the module of this name, or with asyncio's own."""
    with asyncio.Runner(loop_factory=importlib.import_module(loop).new_event_loop if loop else None) as runner:
        runner.run(main)
