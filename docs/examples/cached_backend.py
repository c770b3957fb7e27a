"""A backend with a bug: it means to save the making of two lists."""

import select
from selectors import EVENT_READ, EVENT_WRITE

from minimal_backend import MinimalSelector


class CachedSelector(MinimalSelector):
    """As ``minimal``, with lists that are made anew only where there is one registration more or less."""

    name = "cached"
    _number = -1

    def select(self, timeout=None):
        if len(self._keys) != self._number:
            self._number = len(self._keys)
            self._readers = [fd for fd, key in self._keys.items() if key.events & EVENT_READ]
            self._writers = [fd for fd, key in self._keys.items() if key.events & EVENT_WRITE]
        readable, writable, _ = select.select(self._readers, self._writers, [], timeout)
        reports = [*((fd, EVENT_READ) for fd in readable), *((fd, EVENT_WRITE) for fd in writable)]
        return [(self._keys[fd], event) for fd, event in reports if fd in self._keys]
