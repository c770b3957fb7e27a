"""``trace(selector)``: what a selector is asked, and what it answers."""

import logging
from collections.abc import Callable
from selectors import SelectorKey
from typing import Any, ClassVar, TypeVar
from weakref import WeakSet

from flowno.core.event_loop.backend import FileObject, display_name, world_of

from ..logs import Console
from .base import SelectorDecorator, events_in_words

__all__ = ["TraceSelector"]

T = TypeVar("T")


class TraceSelector(SelectorDecorator):
    """Logs every call and its result to the logger ``flowno.selector``, at the level DEBUG.

    Who asks for a trace by name is to see it. So the first call sets the level of that logger to DEBUG, unless the
    program has given it one, and has the lines written to standard error for as long as no handler of the program would
    get them; with the last one that is closed, both are taken back. A program that has configured logging finds them
    where its messages go. Where the logger is off, as by ``logging.getLogger("flowno.selector").setLevel("INFO")``,
    nothing is formatted.

    Args:
        inner: The selector.

    Example:
        >>> import selectors, socket, sys
        >>> handler = logging.StreamHandler(sys.stdout)
        >>> TraceSelector.logger.addHandler(handler)
        >>> one, other = socket.socketpair()
        >>> with one, other, TraceSelector(selectors.SelectSelector()) as selector:
        ...     key = selector.register(one, selectors.EVENT_WRITE, "data")
        ...     ready = selector.select(0.5)
        selectors:SelectSelector: register(<socket.socket ...>, WRITE, 'data') -> fd ...
        selectors:SelectSelector: select(0.5) -> fd ... WRITE, after ... s
        selectors:SelectSelector: close() -> None
        >>> TraceSelector.logger.removeHandler(handler)
    """

    #: Where the calls are logged.
    logger: ClassVar[logging.Logger] = logging.getLogger("flowno.selector")

    word = "trace"
    facts = "logs every call and its result"

    _is_shown = False

    def register(self, fileobj: FileObject, events: int, data: Any = None) -> SelectorKey:
        if not self._is_on():
            return self.inner.register(fileobj, events, data)
        call = "register(%r, %s, %r)", fileobj, events_in_words(events), data
        return self._traced(call, _fd, lambda: self.inner.register(fileobj, events, data))

    def modify(self, fileobj: FileObject, events: int, data: Any = None) -> SelectorKey:
        if not self._is_on():
            return self.inner.modify(fileobj, events, data)
        call = "modify(%r, %s, %r)", fileobj, events_in_words(events), data
        return self._traced(call, _fd, lambda: self.inner.modify(fileobj, events, data))

    def unregister(self, fileobj: FileObject) -> SelectorKey:
        if not self._is_on():
            return self.inner.unregister(fileobj)
        return self._traced(("unregister(%r)", fileobj), _fd, lambda: self.inner.unregister(fileobj))

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        if not self._is_on():
            return self.inner.select(timeout)
        clock = world_of(self.inner).clock
        start = clock()
        return self._traced(
            ("select(%r)", round(timeout, 6) if isinstance(timeout, float) else timeout),
            lambda ready: f"{_reports(ready)}, after {clock() - start:.6f} s",
            lambda: self.inner.select(timeout),
        )

    def close(self) -> None:
        try:
            if self.logger.isEnabledFor(logging.DEBUG):
                self._traced(("close()",), repr, self.inner.close)
            else:
                self.inner.close()
        finally:
            if self in _shown:
                _shown.discard(self)
                _hide(self.logger)

    def _is_on(self) -> bool:
        if not self._is_shown:
            self._is_shown = True
            _shown.add(self)
            _show(self.logger)
        return self.logger.isEnabledFor(logging.DEBUG)

    def _traced(self, call: tuple[Any, ...], result_in_words: Callable[[T], str], make: Callable[[], T]) -> T:
        form, *arguments = call
        try:
            result = make()
        except BaseException as error:
            self.logger.debug(f"%s: {form} raised %r", display_name(self.inner), *arguments, error)
            raise
        self.logger.debug(f"%s: {form} -> %s", display_name(self.inner), *arguments, result_in_words(result))
        return result


def _fd(key: object) -> str:
    return f"fd {key.fd}" if isinstance(key, SelectorKey) else repr(key)


def _reports(ready: Any) -> str:
    try:
        reports = [f"fd {key.fd} {events_in_words(events)}" for key, events in ready]
    except (AttributeError, TypeError, ValueError):
        return repr(ready)  # not what the protocol says; check(selector) complains of it
    return ", ".join(reports) or "nothing"


#: The selectors that have asked for it and are open, and whether the level is theirs.
_shown: WeakSet[TraceSelector] = WeakSet()
_has_set_level = False


def _show(logger: logging.Logger) -> None:
    """Turn a logger on, and see that its lines go somewhere."""
    global _has_set_level
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.DEBUG)
        _has_set_level = True
    if not any(isinstance(handler, Console) for handler in logger.handlers):
        logger.addHandler(Console(logger))


def _hide(logger: logging.Logger) -> None:
    """Take that back where nobody asks for it any more."""
    global _has_set_level
    if _shown:
        return
    for handler in [handler for handler in logger.handlers if isinstance(handler, Console)]:
        logger.removeHandler(handler)
    if _has_set_level and logger.level == logging.DEBUG:
        logger.setLevel(logging.NOTSET)
    _has_set_level = False
