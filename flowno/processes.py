"""Other programs: started, fed, read from, waited for and ended while the other tasks run.

:func:`run_process` runs a program to its end and has what it wrote; :func:`open_process` starts one to talk with. The
names are those of trio and anyio, the options those of :class:`subprocess.Popen`.

Example:
    >>> import sys
    >>> from flowno import run, run_process
    >>> async def main():
    ...     finished = await run_process([sys.executable, "-c", "print(6 * 7)"])
    ...     return finished.stdout.split()
    >>> run(main())
    [b'42']
"""

# A child that has ended is a zombie, which keeps its number, until its parent asks how it has ended ("reaps" it). The
# number may be another process's a moment later. So only one place reaps, _reap(), and while a signal is sent it does
# not. What tells that there is something to reap:
#
# a) pidfd_open(2), Linux 5.3: an fd that is readable once the child has ended, also after it was reaped. It stands for
#    this child for good, and pidfd_send_signal(2) through it meets no other.
# b) Elsewhere, and where a sandbox forbids that, a thread that blocks in waitid(2) with WNOWAIT, which does not reap;
#    then it closes its end of a socket pair. Before Python 3.13 macOS has no os.waitid; there it asks kqueue(2). It is
#    one thread a child however often the child is waited for, and a wait that is cancelled leaves it alone.
#
# A handler for SIGCHLD would be one for the whole process, and only in the main thread. None is installed.
#
# The program is started in the loop's thread, not in a worker. CPython holds the GIL while it forks and, by vfork(2),
# until the program has been executed, so the loop would stand still all the same. And a child that asked to die with
# its parent, prctl(2) PR_SET_PDEATHSIG, would die with the worker: the parent that is meant is the thread.

from __future__ import annotations

import errno
import io
import logging
import os
import signal as _signal
import socket as _socket
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from threading import RLock
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from .core.event_loop.primitives import sleep, wait_readable
from .core.event_loop.running import current_world, required_event_loop
from .core.event_loop.scopes import CancelScope, TaskGroup, move_on_after
from .core.event_loop.sockets import SocketHandle
from .core.event_loop.synchronization import Lock
from .core.event_loop.tasks import TaskCancelled, TaskHandle
from .core.event_loop.threads import OwnThread
from .core.event_loop.timers import checked_seconds
from .net.streams import Stream

if TYPE_CHECKING:
    from types import TracebackType
    from typing import NoReturn, Self

    from typing_extensions import Buffer

__all__ = ["LOST", "Process", "open_process", "run_process"]

_Argument: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
_Standard: TypeAlias = "int | IO[Any] | None"

#: The returncode of a child that was reaped by something else, so that nobody can say how it has ended; as of asyncio.
#: It must not be 0, which is success.
LOST = 255

#: Bytes that are read, or passed on, at a time.
_CHUNK = 65_536

#: Whether threads stand between the pipes and the loop: select() of Windows takes sockets only.
_RELAYED = os.name == "nt"

#: What would make a pipe one of text, or one that holds bytes back.
_NOT_OURS = ("bufsize", "encoding", "errors", "text", "universal_newlines")

logger = logging.getLogger("flowno.processes")


# ------------------------------------------------------------------------------------------------------------ processes


class Process:
    """A child process, as :func:`open_process` starts it.

    An asynchronous context manager: leaving it does what :meth:`aclose` does. One that is dropped while its child runs
    gives a ResourceWarning, and the child is reaped once it has ended, as :mod:`subprocess` does both.

    Attributes:
        args: The command, as it was given.
        pid: The number of the process.
        stdin: What the child reads, as a :class:`~flowno.Stream` to write to; its ``write_eof()`` closes it. None
            where that is no pipe.
        stdout: What the child writes, as a stream to read from. None where that is no pipe.
        stderr: As ``stdout``, for its error output.
    """

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._reaping = RLock()  # other threads, and signal handlers, may send signals while the loop reaps
        self._waiting = Lock()  # belongs to the one task that waits for the child's end on behalf of all
        self._pidfd = _open_pidfd(popen.pid)
        self._ends: _socket.socket | None = None  # what is readable at the child's end where there is no pidfd
        self.args: Any = popen.args
        self.pid = popen.pid
        self.stdin = _stream_of(popen.stdin, "stdin")
        self.stdout = _stream_of(popen.stdout, "stdout")
        self.stderr = _stream_of(popen.stderr, "stderr")
        popen.stdin = popen.stdout = popen.stderr = None  # they belong to the streams now

    @property
    def returncode(self) -> int | None:
        """None while the child runs; then its exit status, or minus the signal that killed it. It is looked up.

        255, and a warning in the log, where something else has reaped the child: ``os.wait()``, or a SIGCHLD that is
        ignored, with which the system itself does.
        """
        with self._reaping:
            popen = self._popen
            if popen.returncode is None:
                popen.returncode = _reap(popen)
            if popen.returncode is not None and not self._waiting.is_locked():
                self._stop_watching()
            return popen.returncode

    async def wait(self) -> int:
        """Wait until the child has ended. Any number of tasks may.

        A child whose pipe is full ends only if somebody reads it.

        Returns:
            Its ``returncode``.

        Cancellation: the child goes on.
        """
        async with self._waiting:
            while (returncode := self.returncode) is None:
                await wait_readable(self._ending())
            self._stop_watching()
            return returncode

    def send_signal(self, signal: int) -> None:
        """Send a signal to the child; nothing where it has ended, so that no other process can get it. From any thread.

        Args:
            signal: Such as ``signal.SIGHUP``. On Windows ``SIGTERM``, ``CTRL_C_EVENT`` or ``CTRL_BREAK_EVENT``.

        Raises:
            PermissionError: The child is another user's by now.
            ValueError, OSError: There is no such signal.
        """
        with self._reaping:
            if self.returncode is not None:
                return
            if os.name == "nt":
                self._popen.send_signal(signal)  # by its handle
                return
            try:
                if self._pidfd >= 0:
                    _signal.pidfd_send_signal(self._pidfd, signal)
                else:
                    os.kill(self.pid, signal)
            except ProcessLookupError:
                pass  # something else has reaped it since we looked

    def terminate(self) -> None:
        """Ask the child to end, by SIGTERM; on Windows, end it. As :meth:`send_signal` otherwise."""
        self.send_signal(_signal.SIGTERM)

    def kill(self) -> None:
        """End the child, by SIGKILL. As :meth:`send_signal` otherwise."""
        self.send_signal(getattr(_signal, "SIGKILL", _signal.SIGTERM))

    async def aclose(self) -> None:
        """Close the pipes, kill the child if it still runs, and wait until it has ended. Idempotent.

        Raises:
            PermissionError: The child is another user's by now, and cannot be killed.

        Cancellation: arrives when the child has ended.
        """
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.kill()
        with CancelScope(shield=True):
            await self.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if hasattr(self, "_ends"):  # else __init__ came not so far
            self._stop_watching()

    def __repr__(self) -> str:
        code = self._popen.returncode
        return f"<Process {self.pid} {'running' if code is None else f'ended with {code}'}: {self.args!r}>"

    def _ending(self) -> int | _socket.socket:
        """What becomes readable when the child ends."""
        if self._pidfd >= 0:
            return self._pidfd
        if self._ends is None:
            near_end, far_end = current_world().socketpair()
            # The Popen would not be dropped with this Process if the thread had it. On Windows it holds just a handle.
            block = self._popen.wait if os.name == "nt" else partial(_await_end, self.pid)
            _start_thread(_tell, block, far_end)
            self._ends = near_end
        return self._ends

    def _stop_watching(self) -> None:
        """Close what becomes readable when the child ends; nobody waits for it."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if self._ends is not None:
            self._ends.close()
            self._ends = None


async def open_process(
    command: str | bytes | Sequence[_Argument],
    *,
    stdin: _Standard = None,
    stdout: _Standard = None,
    stderr: _Standard = None,
    **options: Any,
) -> Process:
    """Start a program.

    Args:
        command: The program and its arguments, which no shell sees; with ``shell=True``, one string for the shell.
        stdin: What the program reads: ``subprocess.PIPE``, ``subprocess.DEVNULL``, a file or an fd; None is what this
            program reads. The same for the next two.
        stdout: Where its output goes.
        stderr: Where its error output goes; ``subprocess.STDOUT`` sends it where the output goes.
        options: Those of :class:`subprocess.Popen`, such as ``cwd``, ``env``, ``shell``, ``start_new_session``,
            ``process_group``, ``user``, ``group``, ``umask``, ``pass_fds``, ``creationflags``. Not those that make a
            pipe one of text.

    Returns:
        The child, with a stream for each pipe.

    Raises:
        OSError: It cannot be started; FileNotFoundError names the program, or the ``cwd``, that does not exist.
        TypeError: ``command`` is a string without ``shell=True``, or the reverse; or there is no such option.
        ValueError: ``command`` is an empty sequence, or an option has a value that makes no sense.

    Cancellation: nothing was started. Once it is, the child is returned, and the cancellation arrives at the next wait.

    Example:
        >>> import subprocess, sys
        >>> from flowno import open_process, run
        >>> async def main():
        ...     command = [sys.executable, "-c", "print(input().upper())"]
        ...     async with await open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        ...         await process.stdin.write(b"hello\\n")
        ...         line = await process.stdout.readline()
        ...         return line.split(), await process.wait()
        >>> run(main())
        ([b'HELLO'], 0)
    """
    _check_command(command, options)
    required_event_loop("open_process()")
    await sleep(0)  # where a cancellation arrives; from here on there is no wait, so that no child is lost
    return _start(command, stdin=stdin, stdout=stdout, stderr=stderr, **options)


async def run_process(
    command: str | bytes | Sequence[_Argument],
    *,
    input: Buffer | None = None,
    stdin: _Standard = None,
    stdout: _Standard = subprocess.PIPE,
    stderr: _Standard = subprocess.PIPE,
    check: bool = True,
    grace: float = 5.0,
    **options: Any,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end, feeding it and keeping what it writes, however much that is.

    It has ended when its pipes have, too: a program that it started and that still writes there is waited for.

    Args:
        command: As of :func:`open_process`.
        input: What the program reads; it may leave some of it unread.
        stdin: As of :func:`open_process`, where there is no ``input``; ``subprocess.PIPE`` is an empty input.
        stdout: As of :func:`open_process`; what goes into the pipe is in the result.
        stderr: As ``stdout``.
        check: Whether a returncode other than 0 is an error.
        grace: How many seconds the program has to end by itself when this is cancelled.
        options: As of :func:`open_process`.

    Returns:
        ``args``, ``returncode``, and as ``stdout`` and ``stderr`` what the program has written there, None where that
        is no pipe.

    Raises:
        subprocess.CalledProcessError: With ``check``, the returncode is not 0. It has the output as well.
        ValueError: ``input`` and ``stdin`` are both given, or ``grace`` is negative or NaN.
        OSError, TypeError: As of :func:`open_process`.

    Cancellation: the program gets SIGTERM and, ``grace`` seconds later, SIGKILL (on Windows it is ended at once). The
        cancellation goes on when it has ended.

    Example:
        >>> import sys
        >>> from flowno import run, run_process
        >>> async def main():
        ...     command = [sys.executable, "-c", "import sys; print(len(sys.stdin.read()))"]
        ...     finished = await run_process(command, input=b"x" * 1_000_000)
        ...     return finished.returncode, finished.stdout.split()
        >>> run(main())
        (0, [b'1000000'])
    """
    if input is not None:
        if stdin is not None:
            raise ValueError("input and stdin cannot both be given: input is what the program reads, through a pipe")
        try:
            memoryview(input)
        except TypeError:
            raise TypeError(f"input must be bytes, or another buffer, not {input!r}") from None
    if checked_seconds(grace, "grace") < 0:
        raise ValueError(f"grace must not be negative, and is {grace!r}")
    process = await open_process(
        command, stdin=stdin if input is None else subprocess.PIPE, stdout=stdout, stderr=stderr, **options
    )
    reads: list[TaskHandle[bytes] | None] = []
    async with process:
        try:
            async with TaskGroup() as group:
                for stream in (process.stdout, process.stderr):
                    reads.append(None if stream is None else await group.spawn(stream.read()))
                if process.stdin is not None:
                    await _feed(process.stdin, b"" if input is None else input)
            returncode = await process.wait()
        except TaskCancelled:
            await _stop(process, grace)
            raise
    output, errors = [None if read is None else await read.join() for read in reads]
    if check and returncode:
        raise subprocess.CalledProcessError(returncode, process.args, output, errors)
    return subprocess.CompletedProcess(process.args, returncode, output, errors)


def _start(command: Any, **options: Any) -> Process:
    popen: subprocess.Popen[bytes] = subprocess.Popen(command, bufsize=0, **options)  # pyright: ignore[reportAssignmentType]
    try:
        return Process(popen)
    except BaseException:
        with popen:  # closes its pipes, and reaps it
            popen.kill()
        raise


async def _feed(stdin: Stream, data: Buffer) -> None:
    """Write everything, then the end. A program need not read all of it."""
    try:
        await stdin.write(data)
    except (BrokenPipeError, ConnectionResetError):
        pass
    stdin.close()


async def _stop(process: Process, grace: float) -> None:
    """Ask a program to end, and give it some time for that. It may write more than the pipe takes meanwhile."""
    process.terminate()
    with move_on_after(grace, shield=True):
        async with TaskGroup() as group:
            if process.stdin is not None:
                process.stdin.close()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    await group.spawn(_drop_all(stream))
            await process.wait()
            group.cancel_scope.cancel()


async def _drop_all(stream: Stream) -> None:
    while await stream.read(_CHUNK):
        pass


def _check_command(command: object, options: dict[str, Any]) -> None:
    for name in _NOT_OURS:
        if name in options:
            raise TypeError(f"{name} is no option here: pipes are streams of bytes, to be decoded where they are read")
    is_string = isinstance(command, (str, bytes, os.PathLike))
    if is_string and not options.get("shell"):
        raise TypeError(f"command must be a sequence, [program, argument, ...], unless shell=True: {command!r}")
    if not is_string and options.get("shell"):
        raise TypeError(f"command must be a string with shell=True; the shell splits it: {command!r}")
    if isinstance(command, Sequence) and not is_string and not command:
        raise ValueError(f"command must begin with the program to start, and is {command!r}")


# -------------------------------------------------------------------------------------------------- the end of a child


def _open_pidfd(pid: int) -> int:
    """An fd for a child that nobody has reaped yet; -1 where there is none to be had."""
    if not hasattr(os, "pidfd_open"):
        return -1
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1  # ENOSYS: an old kernel; EPERM: a sandbox; EMFILE; ESRCH: it has ended, and the system has reaped it


def _reap(popen: subprocess.Popen[bytes]) -> int | None:
    """The returncode of a child, which gives its number free; None where it has not ended."""
    if os.name == "nt":
        return popen.poll()
    try:
        pid, status = os.waitpid(popen.pid, os.WNOHANG)
    except ChildProcessError:
        logger.warning("process %d was reaped by something else; its returncode is given as %d", popen.pid, LOST)
        return LOST
    return os.waitstatus_to_exitcode(status) if pid else None


def _await_end(pid: int) -> None:
    """Block until a child has ended, without reaping it."""
    if hasattr(os, "waitid"):
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            pass  # reaped already
        return
    import select

    system: Any = select  # which has no kqueue where the types are checked
    queue = system.kqueue()
    try:
        queue.control([system.kevent(pid, system.KQ_FILTER_PROC, system.KQ_EV_ADD, system.KQ_NOTE_EXIT)], 1)
    except ProcessLookupError:
        pass  # it has ended; macOS says so of one that is not reaped yet, too
    finally:
        queue.close()


def _tell(block: Callable[[], object], far_end: _socket.socket) -> None:
    """Have the near end become readable when a call returns."""
    with far_end:
        block()


def _start_thread(work: Callable[..., None], *args: Any) -> None:
    OwnThread(target=work, args=args, name=f"flowno process: {work.__name__}").start()


# ---------------------------------------------------------------------------------------------------------------- pipes


def _stream_of(file: IO[bytes] | None, name: str) -> Stream | None:
    """A stream for our end of a pipe; ``name`` is that of the other end in the child."""
    if file is None:
        return None
    pipe: Any
    if _RELAYED:
        near_end, far_end = current_world().socketpair()
        if name == "stdin":
            _start_thread(_relay_to, far_end, file)
        else:
            _start_thread(_relay_from, file, far_end)
        pipe = _RelayedPipe(near_end, name)
    else:
        pipe = _Pipe(file, name)
    return Stream(SocketHandle(pipe))


class _Pipe:
    """Our end of a pipe as a non-blocking socket, for a handle.

    The flag is of this end alone: the child's has another file description, and blocks, as it expects. So no socket
    pair is needed, which a child could not open as ``/dev/stdin``.

    Args:
        end: What owns the fd.
        name: Which of its standard streams this is to the child.
    """

    __slots__ = ("__weakref__", "_end", "_name")

    family = _socket.AF_UNSPEC
    type = _socket.SOCK_STREAM
    proto = 0

    def __init__(self, end: Any, name: str) -> None:
        self._end = end
        self._name = name

    def fileno(self) -> int:
        return -1 if self._end.closed else self._end.fileno()

    def setblocking(self, flag: bool) -> None:
        os.set_blocking(self.fileno(), flag)

    def recv(self, bufsize: int) -> bytes:
        if self._name == "stdin":
            raise io.UnsupportedOperation("stdin of a process can be written to, not read from")
        return self._read(bufsize)

    def recv_into(self, buffer: Buffer, nbytes: int = 0) -> int:
        view = memoryview(buffer).cast("B")
        data = self.recv(nbytes or len(view))
        view[: len(data)] = data
        return len(data)

    def send(self, data: Buffer) -> int:
        return self.sendmsg([data])

    def sendmsg(self, buffers: Sequence[Buffer], ancdata: object = (), flags: int = 0) -> int:
        if self._name != "stdin":
            raise io.UnsupportedOperation(f"{self._name} of a process can be read from, not written to")
        return self._write(buffers)

    def shutdown(self, how: int, /) -> None:
        """A pipe has one direction, so that to end it is to close it."""
        self.close()

    def close(self) -> None:
        self._end.close()

    def _no_socket(self, *args: object) -> NoReturn:
        raise OSError(errno.ENOTSOCK, f"{os.strerror(errno.ENOTSOCK)}: this is a pipe, {self._name} of a process")

    getsockname = getpeername = getsockopt = setsockopt = _no_socket

    def _read(self, size: int) -> bytes:
        return os.read(self.fileno(), size)

    def _write(self, buffers: Sequence[Buffer]) -> int:
        return os.writev(self.fileno(), buffers)


class _RelayedPipe(_Pipe):
    """As :class:`_Pipe`, with a thread between this end, which is a socket, and the pipe itself."""

    __slots__ = ()

    def fileno(self) -> int:
        fd: int = self._end.fileno()
        return fd

    def setblocking(self, flag: bool) -> None:
        self._end.setblocking(flag)

    def _read(self, size: int) -> bytes:
        data: bytes = self._end.recv(size)
        return data

    def _write(self, buffers: Sequence[Buffer]) -> int:
        sent: int = self._end.send(b"".join(buffers))
        return sent


def _relay_from(pipe: io.FileIO, far_end: _socket.socket) -> None:
    """Pass on what a child writes, until it has closed its end, or nobody wants more."""
    with pipe, far_end:
        try:
            while data := pipe.read(_CHUNK):
                far_end.sendall(data)
        except OSError:
            pass


def _relay_to(far_end: _socket.socket, pipe: io.FileIO) -> None:
    """Pass on what a child is to read, until that has ended, or it wants no more."""
    with far_end, pipe:
        try:
            while data := far_end.recv(_CHUNK):
                rest = memoryview(data)
                while rest:
                    rest = rest[pipe.write(rest) :]
        except OSError:
            pass
