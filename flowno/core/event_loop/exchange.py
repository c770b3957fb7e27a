"""Methods that are exchanged while somebody watches what goes through them, so that they cost nothing at other times.

Several may watch the same method, and come and go in any order: what a class has is made anew from the method itself
and the layers that are over it by then. Who is in the middle of a call goes on with what was called.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from threading import RLock
from typing import Any, NamedTuple, TypeAlias

__all__ = ["Exchange", "Layer", "Replacement", "layers", "lock"]

#: Makes a method out of a method: one that does the same, and tells somebody.
Layer: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]


class Replacement(NamedTuple):
    """A method that is to be exchanged, and what for.

    Attributes:
        owner: The class that defines the method.
        name: What it is called there.
        layer: Called with the method, or with what other layers have made of it; gives what takes its place.
    """

    owner: type
    name: str
    layer: Layer


#: Held by whoever changes what is exchanged in this process. A signal handler may come in between, too. The child of a
#: fork has another one, so it is looked up here each time.
lock = RLock()

#: What is exchanged in this process: by class and name, the method itself and the layers over it, the innermost first.
layers: dict[tuple[type, str], tuple[Callable[..., Any], list[Layer]]] = {}


class Exchange:
    """Replacements that are made together, and are there while somebody needs them.

    Args:
        find: Called when the first one does; says what to exchange.

    Attributes:
        users: How many need them.
    """

    def __init__(self, find: Callable[[], Iterable[Replacement]]) -> None:
        self.users = 0
        self._find = find
        self._made: list[Replacement] = []

    def begin(self) -> None:
        """One more needs them; for every thread, from the next call on."""
        with lock:
            if not self.users:
                for each in self._find():
                    method, over = layers.setdefault(each[:2], (vars(each.owner)[each.name], []))
                    over.append(each.layer)
                    self._made.append(each)
                    _make_anew(each, method, over)
            self.users += 1

    def end(self) -> None:
        """One less does. With the last layer of a method its class has the method itself again."""
        with lock:
            self.users -= 1
            while not self.users and self._made:
                each = self._made.pop()
                method, over = layers[each[:2]]
                over.remove(each.layer)
                _make_anew(each, method, over)
                if not over:
                    del layers[each[:2]]


def _make_anew(each: Replacement, method: Callable[..., Any], over: list[Layer]) -> None:
    for layer in over:
        method = layer(method)
    setattr(each.owner, each.name, method)


def _renew_lock() -> None:
    """In the child of a fork: whoever had the lock is not there any more."""
    global lock
    lock = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
