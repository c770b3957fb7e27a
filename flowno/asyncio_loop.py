"""asyncio on the backends of flowno: which selector its event loop waits by, chosen as a flowno loop's is."""

import asyncio
from collections.abc import Mapping
from selectors import BaseSelector, SelectorKey
from typing import TYPE_CHECKING, Any, cast

from .core.event_loop.backend import (
    SYSTEM_WORLD,
    FileObject,
    Selector,
    SelectorChoice,
    call_in_words,
    open_selector,
    world_of,
)
from .core.event_loop.registrations import Registrations

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

__all__ = ["asyncio_loop_factory"]


def asyncio_loop_factory(selector: SelectorChoice | None = None) -> asyncio.SelectorEventLoop:
    """Make an event loop of asyncio that waits by a selector of flowno.

    ``asyncio.run(main(), loop_factory=flowno.asyncio_loop_factory)`` runs a program of asyncio on the backend that
    ``FLOWNO_SELECTOR`` names; Python 3.11 has the argument in ``asyncio.Runner`` only. A program that chooses by itself
    passes ``functools.partial(flowno.asyncio_loop_factory, selector="poll")``.

    asyncio closes the selector together with the loop, also one that was passed in. A selector with a ``world`` gives
    the loop its clock; sockets and addresses remain those of the system.

    Args:
        selector: As of :class:`~flowno.EventLoop`: a name, several in order of preference as a list or separated by
            commas, ``"package.module:factory"``, a factory, or a selector, which serves one loop only. A name may stand
            within decorators, as in ``"trace(poll)"``. None takes what the environment variable ``FLOWNO_SELECTOR``
            says, and where that is empty, too, the best that this machine has.

    Raises:
        UnknownSelectorError: Nothing is known by that name.
        SelectorUnavailableError: It is known, but not to be had on this machine.
        TypeError: ``selector`` is none of these.

    Example:
        >>> import asyncio, functools, flowno
        >>> async def main():
        ...     return await asyncio.sleep(0.001, "done")
        >>> with asyncio.Runner(loop_factory=functools.partial(flowno.asyncio_loop_factory, "select")) as runner:
        ...     runner.run(main())
        'done'
    """
    opened = open_selector(selector, asked_by=call_in_words("asyncio_loop_factory", selector))
    try:
        world = world_of(opened.selector)
        loop = asyncio.SelectorEventLoop(_for_asyncio(opened.selector))
    except BaseException:
        if opened.owned:
            opened.selector.close()
        raise
    if world is not SYSTEM_WORLD:
        loop.time = world.clock  # type: ignore[method-assign]  # asyncio asks for the time in no other way
    return loop


def _for_asyncio(selector: Selector) -> BaseSelector:
    """The selector itself where it can tell what is registered, which asyncio asks besides the five methods."""
    if all(callable(getattr(selector, method, None)) for method in ("get_key", "get_map")):
        return cast(BaseSelector, selector)
    return _WithMap(selector)


class _WithMap(BaseSelector):
    """A selector of five methods, and a list of what is registered with it.

    asyncio looks there for the other callback of an fd before it changes the registration: by ``get_key`` up to Python
    3.12, by ``get_map`` since.
    """

    def __init__(self, inner: Selector) -> None:
        self._inner = inner
        self._registrations = Registrations(inner)

    def register(self, fileobj: FileObject, events: int, data: Any = None) -> SelectorKey:
        return self._registrations.register(fileobj, events, data)

    def modify(self, fileobj: FileObject, events: int, data: Any = None) -> SelectorKey:
        return self._registrations.modify(fileobj, events, data)

    def unregister(self, fileobj: FileObject) -> SelectorKey:
        return self._registrations.unregister(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        return self._inner.select(timeout)

    def close(self) -> None:
        self._registrations.clear()
        self._inner.close()

    def get_map(self) -> Mapping["FileDescriptorLike", SelectorKey]:
        return self._registrations
