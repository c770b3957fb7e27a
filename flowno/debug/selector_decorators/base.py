"""What every decorator of a selector starts from: it does what the selector inside does."""

from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any, Self

from flowno.core.event_loop.backend import FileObject, Selector, display_name
from flowno.core.event_loop.registrations import MASKS

__all__ = ["SelectorDecorator", "events_in_words"]


class SelectorDecorator:
    """Passes every call on to the selector that it is put around, and has whatever that one has besides.

    To be derived from: a decorator overrides the methods that it has something to add to. What it does not have itself
    (``fileno``, ``after_fork``, ``world``, ``get_map``) is that of the selector inside, if that has it.

    Args:
        inner: The selector.

    Attributes:
        inner: The selector.
        name: What to call it: the word of the decorator, and in parentheses the name of the selector inside.
    """

    #: What to write before the parenthesis.
    word = "decorated"

    def __init__(self, inner: Selector, /) -> None:
        self.inner = inner
        self.name = f"{self.word}({display_name(inner)})"

    def register(self, fileobj: FileObject, events: int, data: Any = None) -> SelectorKey:
        """As :meth:`flowno.Selector.register`."""
        return self.inner.register(fileobj, events, data)

    def modify(self, fileobj: FileObject, events: int, data: Any = None) -> SelectorKey:
        """As :meth:`flowno.Selector.modify`."""
        return self.inner.modify(fileobj, events, data)

    def unregister(self, fileobj: FileObject) -> SelectorKey:
        """As :meth:`flowno.Selector.unregister`."""
        return self.inner.unregister(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """As :meth:`flowno.Selector.select`."""
        return self.inner.select(timeout)

    def close(self) -> None:
        """As :meth:`flowno.Selector.close`."""
        self.inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        """What this decorator has not."""
        if name == "inner":
            raise AttributeError("this decorator of selectors was not initialised")  # not asked for for ever
        return getattr(self.inner, name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} around {self.inner!r}>"


def events_in_words(events: object) -> str:
    """``READ``, ``WRITE`` or ``READ|WRITE``; what is no such mask as it is."""
    if not isinstance(events, int) or events not in MASKS:
        return repr(events)
    return "|".join(word for event, word in ((EVENT_READ, "READ"), (EVENT_WRITE, "WRITE")) if events & event)
