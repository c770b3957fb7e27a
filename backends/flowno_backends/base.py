"""What every backend shares: who is registered, what a readiness report means, and what a fork does to it.

A backend subclasses :class:`BackendSelector` and supplies ``name``, ``capabilities``, ``_open``, ``_decoder``,
``_change``, ``select`` and, where the kernel object has to be closed, ``_close``. Everything else is here, once.
"""

import errno
import math
import os
import select
import sys
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector, SelectorKey
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

__all__ = ["CAPABILITIES", "LONGEST", "BackendSelector", "Capability", "clamped", "poll_events"]

Capability = Literal["any_fd", "files", "fork_safe", "scales", "sees_closed", "submillisecond"]

#: Every capability, and what it means for a user.
CAPABILITIES: Final[Mapping[Capability, str]] = {
    "any_fd": "holds descriptors of any number, as many as the process may open",
    "files": "accepts regular files, which are always ready",
    "fork_safe": "owns nothing in the kernel that a forked child would share",
    "scales": "idle descriptors cost nothing while it waits",
    "sees_closed": "reports a descriptor that was closed while it was registered",
    "submillisecond": "waits for fractions of a millisecond",
}

#: The longest wait in seconds, 23 days: in milliseconds it fits the C int of epoll and poll (2**31 - 1), in seconds the
#: limit of 10**8 that the BSDs put on select and kevent. A longer one ends here, with nothing ready.
LONGEST: Final = 2_000_000

#: The bits that no mask of events has. What is no integer at all is a TypeError of ``&``, as in the standard library.
_NO_EVENT: Final = ~(EVENT_READ | EVENT_WRITE)

# SelectorKey(...) runs a Python-level __new__; this makes the same object in half the time.
_new_key: Final[Callable[[type[SelectorKey], tuple[object, int, int, object]], SelectorKey]] = tuple.__new__


def clamped(timeout: float) -> float:
    """A timeout in seconds that every system call takes: 0 for a negative one, ``LONGEST`` for a longer one.

    Raises:
        ValueError: It is not a number.
    """
    if math.isnan(timeout):
        raise ValueError("timeout is not a number (NaN)")
    return min(max(timeout, 0), LONGEST)


def poll_events(readable: int, writable: int, report: tuple[int, int]) -> tuple[int, int]:
    """The fd and the events of an ``(fd, revents)`` of poll and epoll.

    Whatever is neither readable nor writable is an error or a hang-up, and counts as both, so that whoever waits makes
    the call that raises the true error.
    """
    fd, revents = report
    return fd, (EVENT_READ if revents & ~writable else 0) | (EVENT_WRITE if revents & ~readable else 0)


def _descriptor(fileobj: "FileDescriptorLike") -> int:
    """The file descriptor of an int or of an object with ``fileno()``; ValueError where there is none."""
    try:
        fd = int(fileobj if isinstance(fileobj, int) else fileobj.fileno())
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise ValueError(f"not a file descriptor and without one: {fileobj!r}") from None
    if fd < 0:
        raise ValueError(f"file descriptor {fd} of {fileobj!r} is negative; was it closed?")
    return fd


def _find(keys: dict[int, SelectorKey], fileobj: "FileDescriptorLike") -> int:
    """The registered fd of ``fileobj``, by number, and where it has lost its number by identity; else KeyError."""
    try:
        fd = _descriptor(fileobj)
    except ValueError:
        fd = -1
    if fd in keys:
        return fd
    if not isinstance(fileobj, int):
        for key in keys.values():
            if key.fileobj is fileobj:
                return key.fd
    raise KeyError(f"{fileobj!r} is not registered")


class _Ready(dict[Any, tuple[SelectorKey, int]]):
    """``{what the kernel reports: what select returns}``, filled at first sight and purged when a registration changes.

    A report is translated once and then costs one probe. Looking up a report that belongs to no registration, or to
    one in ``doubtful``, is a KeyError.
    """

    def __init__(self, keys: dict[int, SelectorKey], decode: Callable[[Any], tuple[int, int]]) -> None:
        super().__init__()
        self.doubtful: set[int] = set()
        self._keys = keys
        self._decode = decode
        self.seen: dict[int, list[Any]] = {}

    def __missing__(self, report: Any) -> tuple[SelectorKey, int]:
        fd = self._decode(report)[0]
        if fd in self.doubtful:
            raise KeyError(report)
        entry = self.translate(report)
        self[report] = entry
        self.seen.setdefault(fd, []).append(report)
        return entry

    def translate(self, report: Any) -> tuple[SelectorKey, int]:
        fd, events = self._decode(report)
        key = self._keys[fd]
        events &= key.events
        if not events:
            raise KeyError(report)
        return key, events

    def purge(self, fd: int) -> None:
        for report in self.seen.pop(fd):
            del self[report]


class _Map(Mapping["FileDescriptorLike", SelectorKey]):
    """What ``get_map`` returns: a live, read-only view of the registrations."""

    def __init__(self, keys: dict[int, SelectorKey]) -> None:
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, fileobj: "FileDescriptorLike") -> SelectorKey:
        return self._keys[_find(self._keys, fileobj)]

    def __iter__(self) -> Iterator[int]:
        return iter(self._keys)


class _Closed:
    """Stands where the kernel object of a closed selector was: any use says so."""

    def __init__(self, owner: str) -> None:
        self._owner = owner

    def __getattr__(self, call: str) -> Any:
        raise RuntimeError(f"this {self._owner} is closed")


class _Forked:
    """Stands where the kernel object was in a forked child: the first use opens a new one and goes there."""

    def __init__(self, selector: "BackendSelector") -> None:
        self._selector = selector

    def __getattr__(self, call: str) -> Any:
        self._selector.after_fork()
        return getattr(self._selector._kernel, call)


class BackendSelector(BaseSelector):
    """A level-triggered selector over one system call, with the interface of ``selectors.BaseSelector``.

    Args:
        select_module: Where the system call is taken from; a stand-in for the standard library's ``select``.

    Raises:
        OSError: The platform lacks the system call (ENOSYS), or the kernel refuses.

    Errors and hang-ups are reported as the registered events. A selector may be used by one thread at a time.
    """

    #: The name of the system call, by which users choose the backend.
    name: ClassVar[str]
    #: What it can do: keys of ``CAPABILITIES``.
    capabilities: ClassVar[frozenset[Capability]]
    #: One line about it, for the list of backends.
    facts: ClassVar[str]

    def __init__(self, select_module: Any = select) -> None:
        self._module = select_module
        self._kernel: Any = _Closed(type(self).__name__)
        self._keys: dict[int, SelectorKey] = {}
        self._map = _Map(self._keys)
        self._room = 64
        if not hasattr(select_module, self.name):
            raise OSError(errno.ENOSYS, f"select.{self.name} does not exist on {sys.platform}")
        self._ready = _Ready(self._keys, self._decoder())
        self._kernel = self._open()
        if "fork_safe" not in self.capabilities:
            _shared_with_children.add(self)

    def register(self, fileobj: "FileDescriptorLike", events: int, data: Any = None) -> SelectorKey:
        """Watch ``fileobj`` for ``events``, a mask of EVENT_READ and EVENT_WRITE.

        Raises:
            ValueError: The mask or the fd is invalid, or this backend cannot hold an fd of that number.
            TypeError: The mask is no integer.
            KeyError: The fd is registered already.
            OSError: The kernel refuses; nothing is registered.
        """
        if not events or events & _NO_EVENT:
            raise ValueError(f"events must be EVENT_READ, EVENT_WRITE or both, not {events!r}")
        fd = fileobj if type(fileobj) is int and fileobj >= 0 else _descriptor(fileobj)
        keys = self._keys
        if fd in keys:
            raise KeyError(f"{fileobj!r} (fd {fd}) is already registered")
        try:
            self._change(fd, 0, events)
        except OverflowError:
            raise ValueError(f"there is no file descriptor {fd} ({fileobj!r}): they end at 2147483647") from None
        key = keys[fd] = _new_key(SelectorKey, (fileobj, fd, events, data))
        if len(keys) > self._room:
            self._room *= 2
        return key

    def modify(self, fileobj: "FileDescriptorLike", events: int, data: Any = None) -> SelectorKey:
        """Change the events or the data of a registration. New data alone costs no system call.

        Raises:
            ValueError: The mask is invalid; nothing changed.
            TypeError: The mask is no integer; nothing changed.
            KeyError: ``fileobj`` is not registered.
            OSError: The kernel refuses; ``fileobj`` is registered no longer.
        """
        if not events or events & _NO_EVENT:
            raise ValueError(f"events must be EVENT_READ, EVENT_WRITE or both, not {events!r}")
        keys = self._keys
        fd = fileobj if type(fileobj) is int and fileobj in keys else _find(keys, fileobj)
        old = keys[fd]
        if events != old.events:
            try:
                self._change(fd, old.events, events)
            except BaseException:
                keys[fd] = _new_key(SelectorKey, (old.fileobj, fd, old.events | events, data))
                self.unregister(fd)
                raise
        key = keys[fd] = _new_key(SelectorKey, (old.fileobj, fd, events, data))
        if fd in self._ready.seen:
            self._ready.purge(fd)
        return key

    def unregister(self, fileobj: "FileDescriptorLike") -> SelectorKey:
        """Stop watching ``fileobj``, which may be closed already, and return its last key.

        Raises:
            KeyError: ``fileobj`` is not registered.
        """
        keys = self._keys
        fd = fileobj if type(fileobj) is int and fileobj in keys else _find(keys, fileobj)
        # The key goes first: a report that still arrives then belongs to nobody, and the backend knows what to do.
        key = keys.pop(fd)
        if fd in self._ready.seen:
            self._ready.purge(fd)
        try:
            self._change(fd, key.events, 0)
        except OSError:
            pass  # nobody could act on it: the registration is gone for whoever asked
        return key

    @abstractmethod
    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """Wait until a registered descriptor is ready, and return ``(key, events)`` for all that are.

        Args:
            timeout: Seconds; None waits without limit, 0 or less does not wait.

        Raises:
            ValueError: ``timeout`` is not a number.
        """

    def close(self) -> None:
        """Forget all registrations and close the kernel object. Closing twice does nothing."""
        _shared_with_children.discard(self)
        self._keys.clear()
        self._ready.clear()
        kernel, self._kernel = self._kernel, _Closed(type(self).__name__)
        if not isinstance(kernel, _Closed | _Forked):
            self._close(kernel)

    def get_key(self, fileobj: "FileDescriptorLike") -> SelectorKey:
        """The key of ``fileobj``; KeyError where it is not registered, RuntimeError where the selector is closed."""
        if isinstance(self._kernel, _Closed):
            raise RuntimeError(f"this {type(self).__name__} is closed")
        return self._map[fileobj]

    def get_map(self) -> Mapping["FileDescriptorLike", SelectorKey]:
        """A live, read-only mapping from file objects and fds to keys; its iterator yields fds."""
        return self._map

    def after_fork(self) -> None:
        """In a forked child: open a kernel object of its own and register everything there. Otherwise nothing.

        The first use in the child does this by itself; calling it makes the moment explicit.

        Raises:
            OSError: The kernel refuses a new object; the next use tries again.
        """
        if isinstance(self._kernel, _Forked):
            self._reopen()

    def __repr__(self) -> str:
        if isinstance(self._kernel, _Closed):
            return f"<{type(self).__name__} closed>"
        forked = ", forked" if isinstance(self._kernel, _Forked) else ""
        return f"<{type(self).__name__} {len(self._keys)} registered{forked}>"

    # What a backend supplies.

    @abstractmethod
    def _open(self) -> Any:
        """Make the kernel object, and reset whatever else reflects what the kernel knows."""

    @abstractmethod
    def _decoder(self) -> Callable[[Any], tuple[int, int]]:
        """A function from a report of the kernel to its fd and events. It must not refer to the selector: a cycle."""

    @abstractmethod
    def _change(self, fd: int, old: int, new: int) -> None:
        """Tell the kernel that the events of ``fd`` go from ``old`` to ``new``; 0 is absent."""

    @abstractmethod
    def _close(self, kernel: Any) -> None:
        """Close the kernel object."""

    # What the bookkeeping does for all of them.

    def _reopen(self) -> None:
        """Change to a new kernel object that holds every registration and nothing else."""
        previous, self._kernel = self._kernel, self._open()
        try:
            for fd, key in self._keys.items():
                try:
                    self._change(fd, 0, key.events)
                except OSError as error:
                    # Closed, or closed and its number given to a file, or to the new kernel object, which refuses
                    # itself with EINVAL: a kernel object forgets such an fd by itself.
                    if error.errno not in (errno.EBADF, errno.EPERM) and fd != self._kernel.fileno():
                        raise
        except BaseException:
            self._close(self._kernel)
            self._kernel = previous
            raise
        self._ready.doubtful.clear()
        if not isinstance(previous, _Forked):
            self._close(previous)

    def _leave_to_parent(self) -> None:
        """In a forked child: let go of the kernel object, which is the parent's, without touching what it holds."""
        kernel, self._kernel = self._kernel, _Forked(self)
        with suppress(OSError):  # EBADF: a kqueue is not inherited at all, kqueue(2)
            self._close(kernel)


_shared_with_children: Final[weakref.WeakSet[BackendSelector]] = weakref.WeakSet()


def _leave_all_to_parent() -> None:
    for selector in list(_shared_with_children):
        if not isinstance(selector._kernel, _Forked):
            selector._leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all_to_parent)
