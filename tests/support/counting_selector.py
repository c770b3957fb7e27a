"""A selector that counts what it is asked, in front of the backend that FLOWNO_SELECTOR names."""

from collections import Counter
from collections.abc import Callable
from selectors import SelectorKey
from typing import Any

from flowno.core.event_loop.backend import FileObject, open_selector

__all__ = ["CountingSelector"]


class CountingSelector:
    """The five methods of the protocol, counted by name in ``calls``.

    ``fail`` holds an exception by the name of the method that is to raise it. ``before_select`` is called in each
    ``select``. ``masks`` is what is registered, ``timeouts`` what ``select`` was asked for.
    """

    def __init__(self) -> None:
        self.inner = open_selector(None).selector
        self.calls: Counter[str] = Counter()
        self.fail: dict[str, BaseException] = {}
        self.masks: dict[int, int] = {}
        self.timeouts: list[float | None] = []
        self.before_select: Callable[[], object] = bool
        self.world = getattr(self.inner, "world", None)
        if self.world is None:
            del self.world

    def _count(self, method: str) -> None:
        self.calls[method] += 1
        if method in self.fail:
            raise self.fail[method]

    def register(self, fileobj: FileObject, events: int, data: Any = None, /) -> SelectorKey:
        self._count("register")
        key = self.inner.register(fileobj, events, data)
        self.masks[key.fd] = events
        return key

    def modify(self, fileobj: FileObject, events: int, data: Any = None, /) -> SelectorKey:
        self._count("modify")
        key = self.inner.modify(fileobj, events, data)
        self.masks[key.fd] = events
        return key

    def unregister(self, fileobj: FileObject, /) -> SelectorKey:
        self._count("unregister")
        key = self.inner.unregister(fileobj)
        del self.masks[key.fd]
        return key

    def select(self, timeout: float | None = None, /) -> list[tuple[SelectorKey, int]]:
        self._count("select")
        self.timeouts.append(timeout)
        self.before_select()
        return self.inner.select(timeout)

    def close(self) -> None:
        self._count("close")
        self.inner.close()

    def __enter__(self) -> "CountingSelector":
        return self

    def __exit__(self, *_: object) -> None:
        self.inner.close()
