"""The monitor of a process: a Unix socket, by which it tells its owner what its event loops do.

A thread of flowno's own serves it, so that it answers while a loop is stuck. It holds nothing up: the thread never
blocks for one client, there are few clients at a time, and each has little time. What it says is in ``protocol.py``.

Facts about Unix sockets, unix(7):
a) connect(2) needs write permission for the file, and asks for nothing else. So the mode of the file is the lock.
b) bind(2) makes the file with the mode of the socket, less the umask. On Linux fchmod(2) of the socket before that sets
   it, and the file is private from its first moment. BSD and macOS refuse that; there chmod(2) follows.
c) Until listen(2) every connect is refused. So nobody comes in between bind and chmod, either.
d) bind refuses a path that exists, whatever is there, and the file stays when its process ends without removing it.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import selectors
import socket
import stat
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from flowno.core.event_loop.environment import MONITOR_VARIABLE
from flowno.core.event_loop.errors import BusyResourceError, FlownoError
from flowno.core.event_loop.threads import OwnThread
from flowno.net.unix_sockets import set_mode

from .protocol import LONGEST_REQUEST, Answer, encode, path_of, requested
from .reports import take_all

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from flowno.core.event_loop.event_loop import EventLoop

__all__ = ["Monitor", "attach"]

logger = logging.getLogger("flowno.monitor")

#: Connections at a time; the one that is there longest makes room for the next.
MOST_CLIENTS: Final = 8

#: Seconds that a client has to ask, and to take each next part of the answer.
PATIENCE: Final = 5.0

#: Seconds of rest after an accept that failed, as it does where the process has no more descriptors.
REST: Final = 1.0

#: Seconds that the end of a monitor waits for its thread.
LONGEST_END: Final = 2.0

_PRIVATE: Final = 0o600

#: A struct ucred, unix(7): three numbers, of the process, its user and its group.
_CREDENTIALS: Final = struct.Struct("3i")

#: No SIGPIPE for a client that has gone: it would end a program that has put its default back.
_QUIETLY: Final[int] = getattr(socket, "MSG_NOSIGNAL", 0)


class Monitor:
    """Answers those who ask what the event loops of this process do, for as long as it is open. A context manager.

    ``FLOWNO_MONITOR`` opens one for a program that is not changed for it.

    Args:
        path: Where to listen: a path that is free, or on which a process that has ended has listened. ``{pid}`` stands
            for the number of the process; in a folder it is ``flowno-NUMBER.sock``. The file is for its owner only.

    Raises:
        BusyResourceError: Somebody listens there, or something else is there.
        OSError: The system refuses, or has no Unix sockets.

    Attributes:
        path: Where it listens.

    Example:
        >>> import os, tempfile
        >>> from flowno.debug.asking import ask
        >>> from flowno.debug import Monitor
        >>> with tempfile.TemporaryDirectory() as folder, Monitor(folder) as monitor:
        ...     print(ask(monitor.path).pid == os.getpid())
        True
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not hasattr(socket, "AF_UNIX"):
            raise OSError(f"a monitor needs Unix sockets, which Python has not on {sys.platform}")
        self.path = os.path.abspath(path_of(os.fspath(path), os.getpid()))  # the program may change its folder
        self._users = 1  # those that close() is to be called by
        self._clients: dict[socket.socket, _Client] = {}
        self._is_ending = False
        self._waker, self._far_end = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        try:
            self._listener, self._file = _listen(self.path)
        except BaseException:
            self._close_all(self._waker, self._far_end)
            raise
        try:
            self._selector.register(self._listener, selectors.EVENT_READ)
            self._selector.register(self._waker, selectors.EVENT_READ)
            self._thread = OwnThread(name="flowno monitor", target=self._serve)
            with _lock:
                _open.add(self)
            self._thread.start()
        except BaseException:  # the system has no more threads, or Ctrl-C
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, and remove the file. Where several use the monitor, the last of them ends it."""
        with _lock:
            self._users -= 1
            if self._users or self not in _open:
                return
            self._is_ending = True
            self._far_end.send(b"\0")
        if threading.current_thread() is not self._thread:  # where the last loop is dropped just now
            self._thread.join(LONGEST_END)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while not self._is_ending:
                for key, _ in self._selector.select(self._seconds_left()):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif isinstance(key.data, _Client):
                        self._go_on(key.data)
                now = time.monotonic()
                for client in list(self._clients.values()):
                    if client.deadline <= now:
                        self._drop(client)
        except Exception:
            logger.exception("the monitor at %s has failed", self.path)
        finally:
            self._end()

    def _seconds_left(self) -> float | None:
        deadline = min((client.deadline for client in self._clients.values()), default=None)
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return  # the client has gone again
        except OSError as error:
            logger.warning("the monitor at %s cannot accept a connection: %s", self.path, error)
            time.sleep(REST)
            return
        if not _may_ask(connection):
            connection.close()
            return
        if len(self._clients) == MOST_CLIENTS:
            self._drop(next(iter(self._clients.values())))
        connection.setblocking(False)
        self._clients[connection] = client = _Client(connection)
        self._selector.register(connection, selectors.EVENT_READ, client)

    def _go_on(self, client: _Client) -> None:
        """Take what a client asks, or give it what it takes of the answer."""
        if client.connection not in self._clients:
            return  # it has made room for another one
        try:
            if client.has_asked:
                client.write()
            else:
                client.read()
                if client.has_asked:
                    self._selector.modify(client.connection, selectors.EVENT_WRITE, client)
        except BlockingIOError:
            return
        except OSError:
            client.has_ended = True  # it has gone
        if client.has_ended:
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        del self._clients[client.connection]
        self._selector.unregister(client.connection)
        client.connection.close()

    def _end(self) -> None:
        """Remove the file, where it is still ours, and close everything."""
        with _lock:
            _open.discard(self)
        try:
            status = os.lstat(self.path)
            if (status.st_dev, status.st_ino) == self._file:
                os.unlink(self.path)
        except OSError:
            pass  # somebody has removed it already
        self.abandon()

    def abandon(self) -> None:
        """Close everything, and leave the file: it is the parent's, in the child of a fork."""
        self._close_all(self._listener, self._waker, self._far_end, *self._clients)
        self._clients.clear()

    def _close_all(self, *sockets: socket.socket) -> None:
        for each in sockets:
            each.close()
        try:
            self._selector.close()
        except OSError:
            pass  # a kqueue does not come along when the process forks, kqueue(2)


class _Client:
    """A connection: what has come of the request, and what is left of the answer."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.deadline = time.monotonic() + PATIENCE
        self.has_asked = False
        self.has_ended = False
        self._request = b""
        self._answer = memoryview(b"")

    def read(self) -> None:
        """Receive, and work out the answer where the request is complete."""
        data = self.connection.recv(LONGEST_REQUEST)
        self._request += data
        line, newline, _ = self._request.partition(b"\n")
        if newline or len(line) > LONGEST_REQUEST:
            self.has_asked = True
            self._answer = memoryview(_answer_to(line))
            self.deadline = time.monotonic() + PATIENCE
        else:
            self.has_ended = not data

    def write(self) -> None:
        """Send what the client takes."""
        self._answer = self._answer[self.connection.send(self._answer, _QUIETLY) :]
        self.deadline = time.monotonic() + PATIENCE
        self.has_ended = not self._answer


def _answer_to(line: bytes) -> bytes:
    if len(line) > LONGEST_REQUEST:
        return encode(f"a request has at most {LONGEST_REQUEST} bytes")
    try:
        return encode(Answer(os.getpid(), tuple(take_all(requested(line)))))
    except (ValueError, RecursionError) as error:
        return encode(f"the request is not understood: {error}")
    except Exception as error:
        logger.exception("the monitor cannot answer")
        return encode(f"{type(error).__name__}: {error}")


def _listen(path: str) -> tuple[socket.socket, tuple[int, int]]:
    """A socket that listens at a path, for the owner of this process only; and device and inode of its file."""
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            os.fchmod(listener.fileno(), _PRIVATE)
        except OSError:
            pass  # not on Linux; see b) above
        try:
            listener.bind(path)
        except OSError as error:
            if os.path.lexists(path):
                raise BusyResourceError(
                    f"there is something at {path} already, other than the socket of a monitor that has ended; choose "
                    "another path, such as one with {pid} in it for the number of the process"
                ) from None
            if error.errno is None:  # Python itself refuses
                reason = "the path is too long for a Unix socket, which takes about 100 bytes; choose a shorter one"
                raise OSError(errno.ENAMETOOLONG, reason, path) from None
            error.filename = path
            raise
        status = os.lstat(path)
        try:
            if stat.S_IMODE(status.st_mode) != _PRIVATE:
                set_mode(path, _PRIVATE)
            listener.listen()
            listener.setblocking(False)
        except BaseException:
            os.unlink(path)
            raise
    except BaseException:
        listener.close()
        raise
    return listener, (status.st_dev, status.st_ino)


def _remove_stale(path: str) -> None:
    """Remove the socket of a process of this user that has ended; anything else is left."""
    try:
        status = os.lstat(path)
    except OSError:
        return
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass  # it is there, and busy


def _may_ask(connection: socket.socket) -> bool:
    """Whether a peer is the owner of this process, or root: where the system tells, the mode of the file is not all."""
    if sys.platform != "linux":
        return True
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(credentials)
    return uid in (os.geteuid(), 0)


# ------------------------------------------------------------------------------------------------------- by environment

#: Those that listen. The lock is taken again by the thread that has it where a finalizer runs meanwhile.
_open: set[Monitor] = set()
_lock = threading.RLock()
_refused: set[str] = set()


def attach(loop: EventLoop, value: str) -> None:
    """Have a monitor for as long as the loop is open; for ``FLOWNO_MONITOR``.

    What is in the way is logged, once: it is no reason for a program not to run.
    """
    path = os.path.abspath(path_of(value, os.getpid()))
    with _lock:
        monitor = next((each for each in _open if each.path == path and each._users), None)
        if monitor is None:
            try:
                monitor = Monitor(path)
            except (OSError, FlownoError) as error:
                if path not in _refused:
                    _refused.add(path)
                    logger.warning("%s=%s: this process has no monitor: %s", MONITOR_VARIABLE, value, error)
                return
        else:
            monitor._users += 1
    loop.close_callbacks.append(monitor.close)


def _at_exit() -> None:
    """The process ends, maybe in the middle of a run."""
    for monitor in list(_open):
        monitor._users = 1
        monitor.close()


def _after_fork() -> None:
    """In the child: the monitors are the parent's, and so are their files. A loop that is made here gets its own."""
    global _lock
    _lock = threading.RLock()
    for monitor in _open:
        monitor.abandon()
    _open.clear()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
