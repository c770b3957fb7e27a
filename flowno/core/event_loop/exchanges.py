"""Methods that are exchanged while somebody watches their calls, so that they cost nothing while nobody does.

Several may watch one method, and leave in any order: whoever just remembered what was there, and put that back, would
take out those who came later, or bring back those who have left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["exchange", "put_back"]

#: What stands in the class by itself, and who watches it, the last one outermost; by the class and the name.
_exchanged: dict[tuple[type, str], tuple[Any, list[Callable[[Any], Any]]]] = {}


def exchange(owner: type, name: str, watch: Callable[[Any], Any]) -> None:
    """Replace an attribute of a class by ``watch(what is there)``.

    Args:
        owner: The class, which has the attribute itself.
        name: The attribute.
        watch: Makes the replacement. It is called again when others come or leave.
    """
    _, watchers = _exchanged.setdefault((owner, name), (vars(owner)[name], []))
    watchers.append(watch)
    _renew(owner, name)


def put_back(owner: type, name: str, watch: Callable[[Any], Any]) -> None:
    """Undo one :func:`exchange`."""
    _exchanged[owner, name][1].remove(watch)
    _renew(owner, name)


def _renew(owner: type, name: str) -> None:
    value, watchers = _exchanged[owner, name]
    for watch in watchers:
        value = watch(value)
    setattr(owner, name, value)
    if not watchers:
        del _exchanged[owner, name]
