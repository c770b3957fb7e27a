"""A backend in five methods: what flowno asks of a selector, and nothing else."""

import select
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey


class MinimalSelector:
    """Waits with ``select.select``, and keeps what is registered in a dictionary."""

    name = "minimal"

    def __init__(self):
        self._keys = {}

    def register(self, fileobj, events, data=None):
        if events not in (EVENT_READ, EVENT_WRITE, EVENT_READ | EVENT_WRITE):
            raise ValueError(f"events must be EVENT_READ, EVENT_WRITE or both, not {events!r}")
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        if fd in self._keys:
            raise KeyError(f"fd {fd} is already registered")
        select.select([fd], [], [], 0)  # refuses an fd that is closed or too large now, and not in the middle of a wait
        self._keys[fd] = SelectorKey(fileobj, fd, events, data)
        return self._keys[fd]

    def modify(self, fileobj, events, data=None):
        self.unregister(fileobj)
        return self.register(fileobj, events, data)

    def unregister(self, fileobj):
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        return self._keys.pop(fd)

    def select(self, timeout=None):
        readers = [fd for fd, key in self._keys.items() if key.events & EVENT_READ]
        writers = [fd for fd, key in self._keys.items() if key.events & EVENT_WRITE]
        # Windows reports a refused connection among the exceptional conditions only, so writers are asked for those.
        readable, writable, failed = select.select(
            readers, writers, writers, None if timeout is None else max(timeout, 0)
        )
        events = dict.fromkeys(readable, EVENT_READ)
        for fd in {*writable, *failed}:
            events[fd] = events.get(fd, 0) | EVENT_WRITE
        return [(self._keys[fd], mask) for fd, mask in events.items()]

    def close(self):
        self._keys.clear()
