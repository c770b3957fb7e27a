"""What is registered with a selector, for who is put around one: five methods cannot tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

    from .backend import FileObject, Selector

__all__ = ["MASKS", "Registrations", "descriptor_of"]

#: The masks that a selector takes.
MASKS: Final = (EVENT_READ, EVENT_WRITE, EVENT_READ | EVENT_WRITE)

#: What a selector raises by itself. Anything else has interrupted it, such as the KeyboardInterrupt of Ctrl-C.
_REFUSALS: Final = (KeyError, TypeError, ValueError, OSError)


class Registrations(Mapping["FileDescriptorLike", SelectorKey]):
    """Passes on what changes the registrations of a selector, and keeps their keys; a live mapping, iterated by fds.

    A file object is looked up by its number, and by itself where it has lost that, closed while it was registered.

    After a :meth:`modify` that fails, the fd is not registered, unless there was none, or the mask was none: so says
    the protocol, :class:`flowno.Selector`. After a call that was interrupted by an error that is not the selector's,
    nobody knows how far it has come; the fd is taken out of the selector, too.

    Args:
        selector: The selector.
        keys: What is registered with it already.
    """

    def __init__(self, selector: Selector, keys: Iterable[SelectorKey] = ()) -> None:
        self._selector = selector
        self._keys = {key.fd: key for key in keys}

    def register(self, fileobj: FileObject, events: int, data: Any = None) -> SelectorKey:
        """As :meth:`flowno.Selector.register`."""
        fd = descriptor_of(fileobj)
        try:
            key = self._selector.register(fileobj, events, data)
        except _REFUSALS:
            raise
        except BaseException:
            if fd not in self._keys:
                self._take_out(fileobj)
            raise
        if fd is not None:
            self._keys[fd] = key
        return key

    def modify(self, fileobj: FileObject, events: int, data: Any = None) -> SelectorKey:
        """As :meth:`flowno.Selector.modify`."""
        old = self.get(fileobj)
        try:
            key = self._selector.modify(fileobj, events, data)
        except _REFUSALS as error:
            if old is not None and not isinstance(error, (KeyError, TypeError)) and events in MASKS:
                self._keys.pop(old.fd, None)
            raise
        except BaseException:
            if old is not None:
                self._keys.pop(old.fd, None)
                self._take_out(old.fd)
            raise
        if old is not None:
            self._keys[old.fd] = key
        return key

    def unregister(self, fileobj: FileObject) -> SelectorKey:
        """As :meth:`flowno.Selector.unregister`."""
        old = self.get(fileobj)
        try:
            return self._selector.unregister(fileobj)
        except _REFUSALS:
            raise
        except BaseException:
            if old is not None:
                self._take_out(old.fd)
            raise
        finally:
            if old is not None:
                self._keys.pop(old.fd, None)

    def clear(self) -> None:
        """Forget them all; the selector is closed."""
        self._keys.clear()

    def __getitem__(self, fileobj: FileDescriptorLike) -> SelectorKey:
        fd = descriptor_of(fileobj)
        if fd is not None and fd in self._keys:
            return self._keys[fd]
        if not isinstance(fileobj, int):
            for key in self._keys.values():
                if key.fileobj is fileobj:
                    return key
        raise KeyError(f"{fileobj!r} is not registered")

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[int]:
        return iter(self._keys)

    def _take_out(self, fileobj: FileObject) -> None:
        try:
            self._selector.unregister(fileobj)
        except _REFUSALS:
            pass  # it had not come far


def descriptor_of(fileobj: FileDescriptorLike) -> int | None:
    """The number that a file object stands for; None where it stands for none (any more)."""
    try:
        fd = int(fileobj if isinstance(fileobj, int) else fileobj.fileno())
    except (AttributeError, TypeError, ValueError):
        return None
    return fd if fd >= 0 else None
