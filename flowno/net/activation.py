"""Sockets that systemd opened for this process: socket activation.

The protocol is that of sd_listen_fds(3). The sockets are the descriptors from 3 on; ``LISTEN_FDS`` says how many,
``LISTEN_PID`` for which process they are, and ``LISTEN_FDNAMES`` what they are called. Any program that does the same
will do as well: ``systemd-socket-activate``, ``podman``, ``s6``.
"""

from __future__ import annotations

import errno
import os
import stat
from itertools import repeat
from typing import TYPE_CHECKING

from ..core.event_loop.primitives import socket

if TYPE_CHECKING:
    from ..core.event_loop.sockets import SocketHandle

__all__ = ["activated_sockets"]

#: The first descriptor that is passed, SD_LISTEN_FDS_START.
_FIRST = 3

#: INT_MAX, which process ids and descriptors are within.
_MOST = 2**31 - 1

#: What a socket without a name is called, sd_listen_fds_with_names(3).
_UNNAMED = "unknown"


def activated_sockets() -> dict[str, list[SocketHandle]]:
    """Take over the sockets that were passed to this process, and remove the variables that say so.

    The programs that this one starts get neither. A second call finds nothing.

    Returns:
        Handles by the name of the socket unit (``FileDescriptorName=``), in the order in which they were passed; empty
        where nothing was passed, or it was meant for another process. They are the caller's to close.

    Raises:
        OSError: A descriptor is no socket (ENOTSOCK), or not open (EBADF); the variables make no sense (EINVAL). The
            descriptors are left alone, but the variables are removed.

    Example:
        >>> activated_sockets()  # not started by systemd
        {}
    """
    values = [os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")]
    pid, count = _number("LISTEN_PID", values[0]), _number("LISTEN_FDS", values[1])
    if pid != os.getpid() or not count:
        return {}
    names = values[2].split(":") if values[2] else []
    if names and len(names) != count:
        raise OSError(errno.EINVAL, f"LISTEN_FDNAMES={values[2]} has {len(names)} names for LISTEN_FDS={count} sockets")
    fds: dict[int, str] = {}
    for fd, name in zip(range(_FIRST, _FIRST + count), names or repeat(_UNNAMED), strict=False):
        _check_socket(fd, name)
        fds[fd] = name
    handles: dict[str, list[SocketHandle]] = {}
    for fd, name in fds.items():
        os.set_inheritable(fd, False)
        handles.setdefault(name or _UNNAMED, []).append(socket(fileno=fd))
    return handles


def _number(variable: str, value: str) -> int:
    """The value of a variable, 0 where it is not set."""
    if not value:
        return 0
    if not (value.isascii() and value.isdigit()):
        raise OSError(errno.EINVAL, f"{variable}={value} is no number")
    if len(value) > len(str(_MOST)) or int(value) > _MOST:
        raise OSError(errno.EINVAL, f"{variable}={value} is more than there can be")
    return int(value)


def _check_socket(fd: int, name: str) -> None:
    """See that a descriptor that was passed is a socket."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError as error:
        raise OSError(error.errno, f"descriptor {fd} ({name}), which LISTEN_FDS counts, is not open") from None
    if not stat.S_ISSOCK(mode):
        kind = next((kind for is_one, kind in _KINDS if is_one(mode)), "something else")
        raise OSError(errno.ENOTSOCK, f"descriptor {fd} ({name}), which LISTEN_FDS counts, is no socket but {kind}")


_KINDS = (
    (stat.S_ISFIFO, "a FIFO (ListenFIFO=)"),
    (stat.S_ISREG, "a file (ListenSpecial=)"),
    (stat.S_ISCHR, "a device (ListenSpecial=)"),
    (stat.S_ISDIR, "a folder"),
)
