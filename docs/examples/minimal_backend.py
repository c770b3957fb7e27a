"""A backend in five methods: what flowno asks of a selector, and nothing else."""

import select
import time
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey


class MinimalSelector:
    """Waits with ``select.select``, and keeps what is registered in a dictionary."""

    name = "minimal"

    def __init__(self):
        self._keys = {}

    def register(self, fileobj, events, data=None):
        self._refuse_what_is_no_mask(events)
        fd = self._fd_of(fileobj)
        if fd in self._keys:
            raise KeyError(f"fd {fd} is already registered")
        try:
            select.select([fd], [], [], 0)  # refuses an fd that is closed or too large now, and not during a wait
        except OverflowError:  # larger than any fd
            raise ValueError(f"{fd} is too large for a file descriptor") from None
        self._keys[fd] = SelectorKey(fileobj, fd, events, data)
        return self._keys[fd]

    def modify(self, fileobj, events, data=None):
        self._refuse_what_is_no_mask(events)
        key = self.unregister(fileobj)
        return self.register(key.fileobj, events, data)

    def unregister(self, fileobj):
        for key in self._keys.values():
            if key.fileobj is fileobj:  # it may be closed by now, and without a number
                return self._keys.pop(key.fd)
        return self._keys.pop(self._fd_of(fileobj))

    def select(self, timeout=None):
        if timeout is not None:
            timeout = min(max(timeout, 0), 86_400)  # select takes no less than 0, and not any number of seconds
        events = {}
        for fds, event in zip(self._wait(timeout), (EVENT_READ, EVENT_WRITE, EVENT_WRITE), strict=True):
            for fd in fds:
                events[fd] = events.get(fd, 0) | event
        return [(self._keys[fd], mask) for fd, mask in events.items()]

    def close(self):
        self._keys.clear()

    def _refuse_what_is_no_mask(self, events):
        if events not in (EVENT_READ, EVENT_WRITE, EVENT_READ | EVENT_WRITE):
            raise ValueError(f"events must be EVENT_READ, EVENT_WRITE or both, not {events!r}")

    def _fd_of(self, fileobj):
        try:
            return fileobj if isinstance(fileobj, int) else int(fileobj.fileno())
        except (AttributeError, TypeError, ValueError):
            raise ValueError(f"{fileobj!r} is no file descriptor, and has none") from None

    def _wait(self, timeout):
        readers = [fd for fd, key in self._keys.items() if key.events & EVENT_READ]
        writers = [fd for fd, key in self._keys.items() if key.events & EVENT_WRITE]
        if not self._keys and timeout is not None:
            time.sleep(timeout)  # three empty lists are an error on Windows
            return [], [], []
        try:
            # Windows has a refused connection among the exceptional conditions only, so writers are asked for those.
            return select.select(readers, writers, writers, timeout)
        except OSError:  # one is closed, and nobody says which: to report all has each task find out by itself
            return readers, writers, []
