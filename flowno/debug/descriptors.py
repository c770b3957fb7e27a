"""File descriptors that are closed by other means than their handle, while the event loop still has them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeAlias

from flowno.core.event_loop.fd_table import FdTable, identity_of, is_same

from .places import Place, here_and_outwards, with_stack

if TYPE_CHECKING:
    from flowno.core.event_loop.fd_table import FdRecord, Identity

__all__ = ["WatchedFdTable", "watch_descriptors"]

logger = logging.getLogger("flowno.debug")

#: What was behind a descriptor when it was first used, and where that was.
_FirstUse: TypeAlias = "tuple[Identity, Place]"


def watch_descriptors(fds: FdTable) -> None:
    """Have the table of a loop look whether its descriptors are still what they were."""
    fds.__class__ = WatchedFdTable
    fds.first_uses = {}  # type: ignore[attr-defined]  # it is one now


class WatchedFdTable(FdTable):
    """Says of each descriptor that was closed behind the loop's back that it was, once, as soon as the loop notices.

    That is when its number is used again, when the loop looks (about once a second), and when it forgets it.
    """

    first_uses: dict[FdRecord, _FirstUse]

    def attach(self, socket: Any) -> FdRecord:
        record = super().attach(socket)
        if record not in self.first_uses:
            self.first_uses[record] = identity_of(record.fd), here_and_outwards()
        return record

    def audit(self) -> None:
        for record in list(self._records.values()):
            self._look_at(record)
        super().audit()

    def retire(self, record: FdRecord, reason: str) -> None:
        self._look_at(record)
        self.first_uses.pop(record, None)
        super().retire(record, reason)

    def _unregistered(self, record: FdRecord) -> None:
        self._look_at(record)
        super()._unregistered(record)

    def _look_at(self, record: FdRecord) -> None:
        """Report a descriptor that is not what it was; from then on the record counts as one that is not watched."""
        first_use = self.first_uses.get(record)
        socket = record.socket()
        if first_use is None or socket is None:  # a socket that is gone without a close() went with its handle
            return
        identity, place = first_use
        if socket.fileno() == record.fd and is_same(identity_of(record.fd), identity):
            return
        del self.first_uses[record]
        waiters = [
            f"; {task!r} waits {what}"
            for task, what in ((record.reader, "to read from it"), (record.writer, "to write to it"))
            if task is not None
        ]
        logger.warning(
            "fd %d was closed by other means than its handle, while %s had it%s; close the handle instead%s",
            record.fd, repr(self.selector), "".join(waiters), with_stack("it was first used at", place),
        )  # fmt: skip
