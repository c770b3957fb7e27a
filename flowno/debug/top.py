"""A live table of the tasks of another process, for a terminal. It needs rich."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .reports import head_of, none_in, place_of, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowno.core.event_loop.snapshots import LoopSnapshot

    from .protocol import Answer

__all__ = ["screen_of", "watch"]

#: Seconds between two looks.
INTERVAL: Final = 1.0

#: What is shown first: a task that runs at each look holds the others up.
_ORDER: Final = {"running": 0, "ready": 1, "waiting": 2}


def watch(ask: Callable[[], Answer], console: Console | None = None) -> None:
    """Show a process until it ends or Ctrl-C comes; where there is no terminal, one look after the other.

    Args:
        ask: Asks it.
        console: Where to show it; None is standard output.

    Raises:
        MonitorError: It has ended, or does not answer.
    """
    console = Console() if console is None else console
    before = ask()
    first = screen_of(before, before, console.height)
    show: Callable[[Group], None]
    with ExitStack() as stack:
        if console.is_terminal:
            live = stack.enter_context(Live(first, console=console, screen=True))
            show = partial(live.update, refresh=True)
        else:
            show = console.print
            show(first)
        while True:
            time.sleep(INTERVAL)
            answer = ask()
            show(screen_of(answer, before, console.height))
            before = answer


def screen_of(answer: Answer, before: Answer, height: int) -> Group:
    """One look.

    Args:
        answer: What the process says.
        before: What it said at the look before, for what has changed since.
        height: How many lines there are.
    """
    earlier = {loop.loop: loop for loop in before.loops}
    room = max(1, (height - 2) // max(1, len(answer.loops)) - 5)
    process = f"process {answer.pid}"
    parts: list[Text | Table] = [Text(process, style="bold")]
    for loop in answer.loops:
        parts += [_head(loop, earlier.get(loop.loop)), _table(loop, room)]
    if not answer.loops:
        parts.append(Text(none_in(process)))
    return Group(*parts)


def _head(loop: LoopSnapshot, before: LoopSnapshot | None) -> Text:
    counters = loop.counters
    text = f"{head_of(loop)}, threads: {counters.threads}, {'asleep' if loop.is_asleep else 'busy'}"
    if before is not None and loop.time > before.time:
        waits = (counters.selector_waits - before.counters.selector_waits) / (loop.time - before.time)
        text += f", waits/s: {waits:,.0f}"
    return Text(text)


def _table(loop: LoopSnapshot, room: int) -> Table:
    table = Table(box=None, expand=True)
    for title, ratio in (("task", 3), ("state", None), ("waits for", 6), ("where", 3)):
        table.add_column(title, no_wrap=True, overflow="ellipsis", ratio=ratio)
    tasks = sorted(loop.tasks, key=lambda task: _ORDER[task.state])
    for task in tasks[:room]:
        place = os.path.basename(place_of(task))
        table.add_row(*(Text(printable(text)) for text in (task.name, task.state, task.waits_for or "", place)))
    if len(tasks) > room:
        table.add_row(Text(f"... and {loop.counters.tasks - room} more"))
    return table
