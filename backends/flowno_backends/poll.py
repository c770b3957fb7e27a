"""Waiting with poll(2), on every Unix.

Facts that shape the code:

a) poll goes by the number alone, and the list is handed over at each wait: nothing outlives a close, and a fork shares
   nothing. ``select.poll`` keeps the list in the process and builds the array for the kernel anew after each change.
b) ``select.poll.register`` asks nobody, so a closed fd is noticed only by asking for its flags.
c) POLLHUP, POLLERR and POLLNVAL are reported without being asked for, and may come alone. POLLNVAL is a closed fd.
d) The timeout is in milliseconds, and CPython rounds up (``_PyTime_ROUND_TIMEOUT`` in selectmodule.c), so rounding here
   as well would add a millisecond; and 2.007 * 1000 is a hair above 2007, so a nanosecond is taken off.
e) More than 2**31 - 1 milliseconds is an OverflowError, and less than 0 waits for ever.
f) Regular files are always ready. On macOS terminals and some devices are reported as POLLNVAL, poll(2) "BUGS".
"""

import functools
import os
from collections.abc import Callable
from selectors import SelectorKey
from typing import Any, ClassVar

from flowno_backends.base import LONGEST, BackendSelector, Capability, clamped, poll_events

__all__ = ["PollSelector"]


class PollSelector(BackendSelector):
    """Waits with ``select.poll``: any number of descriptors, at a cost that grows with all of them."""

    name: ClassVar[str] = "poll"
    capabilities: ClassVar[frozenset[Capability]] = frozenset({"any_fd", "files", "fork_safe", "sees_closed"})
    facts: ClassVar[str] = "Unix; the cost grows with every descriptor; 1 ms; takes files; notices closed descriptors"

    def _open(self) -> Any:
        module = self._module
        self._masks = (0, module.POLLIN, module.POLLOUT, module.POLLIN | module.POLLOUT)
        return module.poll()

    def _decoder(self) -> Callable[[Any], tuple[int, int]]:
        return functools.partial(poll_events, self._module.POLLIN, self._module.POLLOUT)

    def _change(self, fd: int, old: int, new: int) -> None:
        if not old:
            os.get_inheritable(fd)  # fact b: fcntl(F_GETFD), the cheapest question about an fd; EBADF where closed
            self._kernel.register(fd, self._masks[new])
        elif new:
            self._kernel.modify(fd, self._masks[new])
        else:
            try:
                self._kernel.unregister(fd)
            except KeyError:
                pass  # a registration that a signal handler undid before it was made

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        if timeout is not None:
            if 1e-9 < timeout <= LONGEST:
                timeout = timeout * 1e3 - 1e-6  # fact d
            elif timeout != 0:
                timeout = clamped(timeout) * 1e3
        ready = self._ready
        return [ready[report] for report in self._kernel.poll(timeout)]

    def _close(self, kernel: Any) -> None:
        """A poll object holds no descriptor: nothing to close."""
