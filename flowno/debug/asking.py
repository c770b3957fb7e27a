"""To ask the monitor of another process what its event loops do."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING, Final

from flowno.core.event_loop.environment import MONITOR_VARIABLE, switched_on
from flowno.core.event_loop.errors import FlownoError

from . import may_open
from .protocol import MOST, decode, path_of, request
from .reports import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .protocol import Answer

__all__ = ["MonitorError", "ask", "ask_target"]

#: Seconds to wait for each part of an answer.
PATIENCE: Final = 10.0

#: What the variable is where it asks for nothing, as :func:`switched_on` has it of this process.
_OFF: Final = (b"", b"0")


class MonitorError(FlownoError, OSError):
    """A process does not say what its event loops do: it has no monitor, or does not answer."""


def ask_target(target: str, limit: int = MOST) -> Answer:
    """Ask a process that is named on a command line.

    Args:
        target: The number of the process, or the path of its monitor's socket. A number stands for what
            ``FLOWNO_MONITOR`` says in that process, which Linux tells its owner, or else here.
        limit: Of the tasks, registrations and timers of each loop, how many to be told at most.

    Raises:
        MonitorError: There is no such process, it has no monitor, or it does not answer.
    """
    if not target.isdecimal():
        return ask(target, limit)
    _require_unix_sockets()
    pid = int(target)
    paths = list(dict.fromkeys(_paths(pid)))
    if not paths:
        raise MonitorError(
            f"process {pid} has no monitor that is known here: start it with {MONITOR_VARIABLE}=PATH, and set that "
            "here, too, or give the path of its socket"
        )
    for path in paths:
        if os.path.exists(path):
            answer = ask(path, limit)
            if answer.pid == pid:
                return answer
            raise MonitorError(f"at {path} process {answer.pid} answers, and not {pid}")
    raise MonitorError(
        f"process {pid} does not listen at {' or '.join(paths)}: it has ended, or has no event loop at the moment"
    )


def ask(path: str, limit: int = MOST) -> Answer:
    """Ask the monitor that listens at a path.

    Args:
        path: Of its socket.
        limit: As of :func:`ask_target`.

    Raises:
        MonitorError: Nobody listens there, or what answers is no monitor.
    """
    _require_unix_sockets()
    if os.path.isdir(path):
        raise MonitorError(f"{path}: that is a folder; a monitor in it is flowno-NUMBER.sock")
    if os.path.isfile(path):
        raise MonitorError(f"{path}: that is no socket")
    parts = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE)
        try:
            connection.connect(path)
            connection.sendall(request(limit))
            while part := connection.recv(1 << 16):
                parts.append(part)
        except (TimeoutError, BlockingIOError):  # the latter where even the backlog is full, connect(2)
            raise MonitorError(
                f"{path}: no answer within {PATIENCE:g} s; the process is stopped, or in a function written in C that "
                "lets no other thread run"
            ) from None
        except ConnectionRefusedError:
            raise MonitorError(f"{path}: nobody listens there; the process has ended") from None
        except OSError as error:
            raise MonitorError(f"{path}: {error.strerror or error}") from None
    try:
        return decode(b"".join(parts))
    except ValueError as error:
        raise MonitorError(f"{path}: {printable(str(error))}") from None


def _require_unix_sockets() -> None:
    if not hasattr(socket, "AF_UNIX"):
        raise MonitorError(f"a monitor is asked by a Unix socket, which Python has not on {sys.platform}")


def _paths(pid: int) -> Iterator[str]:
    """Where a process may listen, the likeliest first.

    Raises:
        MonitorError: There is no such process, or it is somebody else's.
    """
    if sys.platform == "linux":
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                environment = file.read()
            folder = os.readlink(f"/proc/{pid}/cwd")
        except (FileNotFoundError, ProcessLookupError):
            raise MonitorError(f"there is no process {pid}") from None
        except OSError as error:
            raise MonitorError(f"process {pid} is not yours: {error.strerror}") from None
        for entry in environment.split(b"\0"):
            name, _, value = entry.partition(b"=")
            if name == MONITOR_VARIABLE.encode() and value not in _OFF:
                yield path_of(os.path.join(folder, os.fsdecode(value)), pid)
    if switched_on(MONITOR_VARIABLE) and may_open(MONITOR_VARIABLE, os.environ[MONITOR_VARIABLE]):
        yield path_of(os.path.abspath(os.environ[MONITOR_VARIABLE]), pid)
