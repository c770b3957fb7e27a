"""asyncio on the backends of flowno: which selector its event loop waits by, chosen as a flowno loop's is."""

import asyncio
from collections.abc import Iterator, Mapping
from selectors import BaseSelector, SelectorKey
from typing import TYPE_CHECKING, Any, cast

from .core.event_loop.backend import SYSTEM_WORLD, Selector, SelectorChoice, call_in_words, open_selector, world_of

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
        self._keys: dict[int, SelectorKey] = {}
        self._map = _Map(self._keys)

    def register(self, fileobj: "FileDescriptorLike", events: int, data: Any = None) -> SelectorKey:
        key = self._inner.register(fileobj, events, data)
        self._keys[key.fd] = key
        return key

    def modify(self, fileobj: "FileDescriptorLike", events: int, data: Any = None) -> SelectorKey:
        old = self._map[fileobj]
        try:
            key = self._inner.modify(fileobj, events, data)
        except OSError:
            del self._keys[old.fd]  # so says the protocol: the fd is no longer registered
            raise
        self._keys[key.fd] = key
        return key

    def unregister(self, fileobj: "FileDescriptorLike") -> SelectorKey:
        key = self._inner.unregister(fileobj)
        self._keys.pop(key.fd, None)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        return self._inner.select(timeout)

    def close(self) -> None:
        self._keys.clear()
        self._inner.close()

    def get_map(self) -> Mapping["FileDescriptorLike", SelectorKey]:
        return self._map


class _Map(Mapping["FileDescriptorLike", SelectorKey]):
    """The registrations by what was registered: an fd, or an object that has one, or had one until it was closed."""

    def __init__(self, keys: dict[int, SelectorKey]) -> None:
        self._keys = keys

    def __getitem__(self, fileobj: "FileDescriptorLike") -> SelectorKey:
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        if fd in self._keys:
            return self._keys[fd]
        for key in self._keys.values():
            if key.fileobj is fileobj:
                return key
        raise KeyError(fileobj)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[int]:
        return iter(self._keys)
