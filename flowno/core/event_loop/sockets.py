"""Sockets as tasks use them.

An operation of a handle tries; where it has to wait it yields a command, and tries again when the loop resumes it.
"""

from __future__ import annotations

import errno
import os
import socket as _socket
from array import array
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeVar, overload

from .addresses import AF_UNIX, Address, check_address, resolve
from .buffers import octets_of, room_in
from .commands import (
    Command,
    SocketAcceptCommand,
    SocketCheckCommand,
    SocketRecvCommand,
    SocketSendCommand,
)
from .connecting import accept_now, attempt, connect_blocking, pauses
from .errors import BusyResourceError, ClosedResourceError, EventLoopError
from .fd_table import CLOSED, UNBOUND, FdRecord
from .operations import coroutine
from .running import current_event_loop, current_world, here, required_event_loop
from .sendfile import send_file, source_of
from .tasks import completed
from .words import address_of

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from typing_extensions import Buffer

__all__ = ["SocketHandle", "layers_of"]

T = TypeVar("T")

_ErrorType: TypeAlias = "type[BaseException]"  # a handle has a ``type`` of its own

#: Lets a server restart while old connections linger, socket(7). Windows allows that anyway; its SO_REUSEADDR would let
#: two programs have one address.
_REBIND_OPTION: int = getattr(_socket, "SO_EXCLUSIVEADDRUSE", _socket.SO_REUSEADDR)

#: Received fds are not for the programs that this one starts, as no fd of Python's is, PEP 446.
_CLOSE_ON_EXEC: int = getattr(_socket, "MSG_CMSG_CLOEXEC", 0)

#: After so many receives that have filled their buffer the next one is tried without a wait, whatever was before.
_MOST_BEFORE_TRY = 64

#: An fd is a C int, and select(2) takes no larger one on Windows. Of a larger one CPython would take the lower bits
#: (``PyLong_AsSocket_t`` in socketmodule.h), and they may be an fd of somebody else.
_HIGHEST_FD = 2**31 - 1


class SocketHandle:
    """A socket that tasks use without blocking the event loop.

    One task at a time may receive (or accept) and one may send: both directions at once are fine, a second task in the
    same direction gets BusyResourceError before a byte moves. Any operation on a closed handle raises
    ClosedResourceError. A handle belongs to the loop that waits for it; once that loop has ended, another may have it.
    A context manager: leaving it closes the handle.

    Args:
        socket: Any socket, or an object that is like one. It is made non-blocking.

    Attributes:
        socket: The socket.
        connect_timeout: How many seconds the blocking :meth:`connect` may take.
        bytes_sent: How many bytes the last :meth:`sendAll` has handed over; after a cancellation, how far it came.
    """

    __slots__ = (
        "__weakref__",
        "_drained",  # the last receive took all that was there, or so it seems: wait before the next try
        "_fileno",  # bound method of the socket
        "_full_before_try",  # so many full receives in a row are followed by a try without a wait
        "_full_receives",  # how many receives have filled their buffer since that try
        "_lost",  # the arguments of the error by which the connection was lost, else None
        "_record",
        "_recv_command",
        "_send_command",
        "_sock_recv",  # bound method of the socket
        "_sock_send",  # bound method of the socket
        "bytes_sent",
        "connect_timeout",
        "socket",
    )

    def __init__(self, socket: _socket.socket) -> None:
        self._record = UNBOUND
        if not hasattr(socket, "setblocking"):
            raise TypeError(f"{type(self).__name__} takes a socket, not {socket!r}")
        socket.setblocking(False)
        self.socket = socket
        self.connect_timeout = 30.0
        self.bytes_sent = 0
        self._drained = False
        self._full_receives = 0
        self._full_before_try = 1
        self._lost: tuple[Any, ...] | None = None
        self._fileno = socket.fileno
        self._sock_recv = socket.recv
        self._sock_send = socket.send

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """A handle for a socket that is known by its fd, such as one that was inherited, or given away by
        :meth:`detach`. The handle owns the fd from now on, and closes it.

        Args:
            fd: An open socket, whose family, type and protocol are found out. It is made non-blocking.

        Raises:
            OSError: That is no open socket; the fd stays as it is.
            TypeError, ValueError: That is no fd at all.
        """
        if not isinstance(fd, int):
            raise TypeError(f"fd must be an int, not {fd!r}")
        if fd < 0:
            raise ValueError(f"fd must not be negative: {fd}")
        if fd > _HIGHEST_FD:
            raise ValueError(f"no fd has so large a number: {fd}")
        try:
            sock = current_world().socket(fileno=fd)
        except OSError as error:
            error.filename = fd
            raise
        try:
            return cls(sock)
        except BaseException:
            sock.detach()
            raise

    # --- to begin and to end -----------------------------------------------------------------------------------------

    def bind(self, address: Address, /) -> None:
        """Give the socket its own address. A name is resolved while the loop waits; a number is at once.

        A TCP socket can take the address of a server that has just ended (SO_REUSEADDR; on Windows, where that would
        let two servers share one, SO_EXCLUSIVEADDRUSE).

        Args:
            address: ``(host, port)``; port 0 has the system choose one.

        Raises:
            OSError: The address is taken, or not this machine's; it is named.
            ValueError: The host can be no name, or the port is not 0 to 65535.
            ClosedResourceError: The handle is closed.
        """
        check_address(self.socket, address)
        is_tcp = self.socket.family in (_socket.AF_INET, _socket.AF_INET6) and self.socket.type == _socket.SOCK_STREAM
        try:
            if is_tcp:
                self.socket.setsockopt(_socket.SOL_SOCKET, _REBIND_OPTION, 1)
            self.socket.bind(address)
        except OSError as error:
            raise self._failure(error, "bind", address) from None

    def listen(self, backlog: int | None = None, /) -> None:
        """Let peers connect.

        Args:
            backlog: How many connections may wait to be accepted; None takes Python's default.

        Raises:
            OSError: The system refuses.
            ClosedResourceError: The handle is closed.
        """
        if backlog is None:
            self._call(self.socket.listen)
        else:
            self._call(self.socket.listen, backlog)

    def connect(self, address: Address, /) -> None:
        """Connect to a peer. This blocks, and the whole event loop with it; ``await flowno.connect(...)`` does not.

        Args:
            address: ``(host, port)``, or what else the socket's family takes.

        Raises:
            OSError: What the system says of the attempt, with the address.
            TimeoutError: It took longer than ``connect_timeout`` seconds.
            ValueError: The host can be no name, or the port is not 0 to 65535.
            ClosedResourceError: The handle is closed.
        """
        check_address(self.socket, address)
        self._connect_blocking(address, self.connect_timeout)

    def close(self) -> None:
        """Close the handle and its socket. Idempotent, at once, and it never waits.

        Tasks that wait for it get ClosedResourceError. From another thread than the loop's, the loop closes it with its
        next batch.
        """
        if self._record is CLOSED:
            return
        record = self._shared_record()
        if record.table is None:
            self._close_now(record)
        else:
            record.table.inbox.act(self._close_now, record)
        self._record = CLOSED

    def detach(self) -> int:
        """Give the fd away. The handle is closed then, the socket is not: whoever has the fd closes it.

        Tasks that wait for the handle get ClosedResourceError. The fd stays non-blocking.

        Returns:
            The fd.

        Raises:
            ClosedResourceError: The handle is closed.
            EventLoopError: The loop that waits for the handle runs in another thread.
        """
        if self._record is CLOSED or self._fileno() < 0:
            raise ClosedResourceError(f"detach on {self!r}: there is no fd any more")
        record = self._shared_record()
        if record.table is not None:
            if not record.table.inbox.is_at_hand:
                raise EventLoopError(f"{self!r} is in use by an event loop of another thread, where it can be detached")
            record.table.retire(record, f"{self!r} was detached")
        self._record = CLOSED
        return self.socket.detach()

    def dup(self) -> SocketHandle:
        """Another handle on the same connection, with an fd of its own; the connection ends with the last of them.

        Raises:
            OSError: There is no fd left.
            ClosedResourceError: The handle is closed.
        """
        return SocketHandle(self._call(self.socket.dup))

    def _shared_record(self) -> FdRecord:
        """The record of the socket, whoever uses it: maybe not this handle yet, but another one, or a bare wait."""
        record = self._record
        loop = current_event_loop() if record.table is None else None
        return record if loop is None else loop.fds.find(self.socket) or record

    def abort(self) -> None:
        """As :meth:`close`, but what was sent is not given out as complete: through TLS, no close_notify is sent."""
        self.close()

    def _close_now(self, record: FdRecord) -> None:
        self._say_goodbye()
        if record.table is not None:
            # Only who waits reads the reason; the repr of a handle asks the system for two addresses.
            is_awaited = record.reader is not None or record.writer is not None
            record.table.retire(record, f"{self!r} was closed" if is_awaited else "")
        self.socket.close()

    def _say_goodbye(self) -> None:
        """What is sent before the socket is closed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: _ErrorType | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        record = getattr(self, "_record", UNBOUND)  # there is none where a subclass failed before __init__
        if record.table is not None:
            record.table.inbox.post(record.table.detach, record)

    # --- coroutines --------------------------------------------------------------------------------------------------
    #
    # What receives and what sends, _read_by() and _write_by() included, are copies of one pattern: own the direction,
    # try, and where that is in vain wait and try again. They are flat so that one frame is between the program and the
    # loop, because that was measured: each further layer costs 60 to 110 ns.

    @coroutine
    def accept(self) -> Generator[Command, Any, tuple[SocketHandle, Address]]:
        """Wait for a connection. Those that failed before they could be accepted are passed over.

        Returns:
            A handle for the connection, and the address of the peer.

        Raises:
            OSError: The system has no room (EMFILE, ENFILE, ENOBUFS, ENOMEM), or the socket does not listen.
            BusyResourceError: Another task accepts or receives.
            ClosedResourceError: The handle is closed, or was closed meanwhile.

        Cancellation: no connection is lost; one that is there stays for the next accept.
        """
        record = self._record
        if record.reading:
            record = yield from self._claim("accept", reading=True)
        command: Command
        if record.budget.left > 0:
            record.budget.left -= 1
            accepted = accept_now(self)
            if accepted is not None:
                return accepted
            command = SocketAcceptCommand(self, record)
        else:
            command = SocketCheckCommand(self, record, EVENT_READ)
        record.reading = True
        try:
            while True:
                yield command
                accepted = accept_now(self)
                if accepted is not None:
                    return accepted
                command = SocketAcceptCommand(self, self._record)
        finally:
            self._release(EVENT_READ)

    @coroutine
    def recv(self, bufsize: int) -> Generator[Command, Any, bytes]:
        """Wait for data.

        Args:
            bufsize: How many bytes to take at most.

        Returns:
            What has come; ``b""`` at the end of the stream.

        Raises:
            OSError: What the system says; ConnectionResetError where the peer broke off.
            ValueError: ``bufsize`` is negative.
            BusyResourceError: Another task receives.
            ClosedResourceError: The handle is closed, or was closed meanwhile.

        Cancellation: no data is lost.
        """
        record = self._record
        if record.reading:
            record = yield from self._claim("recv", reading=True)
        budget = record.budget
        command: Command = self._recv_command
        if self._drained and bufsize > 0 and self._fileno() >= 0:
            pass  # wait first; of a closed fd, epoll would never report anything
        elif budget.left > 0:
            budget.left -= 1
            try:
                data = self._sock_recv(bufsize)
            except BlockingIOError:
                self._tried_in_vain()
            except OSError as error:
                raise self._failure(error, "recv") from None
            else:
                if len(data) < bufsize:
                    self._drained = data != b""  # which is the end of the stream, and comes again
                else:
                    self._drained = self._waits_after_full_receive(tried=True)
                return data
        else:
            command = SocketCheckCommand(self, record, EVENT_READ)
        record.reading = True
        try:
            while True:
                yield command
                try:
                    data = self._sock_recv(bufsize)
                except BlockingIOError:
                    command = self._recv_command
                    continue
                except OSError as error:
                    raise self._failure(error, "recv") from None
                if len(data) < bufsize:
                    self._drained = data != b""
                else:
                    self._drained = self._waits_after_full_receive()
                return data
        finally:
            record = self._record  # as _release() does, without the call
            record.reading = record.table is None

    @coroutine
    def recv_into(self, buffer: Buffer, nbytes: int = 0) -> Generator[Command, Any, int]:
        """Wait for data, and put it into a buffer.

        Args:
            buffer: A writable buffer.
            nbytes: How many bytes to take at most; 0 fills the buffer.

        Returns:
            How many bytes have come; 0 at the end of the stream.

        Raises:
            As :meth:`recv`, TypeError where the buffer is not writable, and ValueError where it is too small for
            ``nbytes``.

        Cancellation: no data is lost.
        """
        record = self._record
        if record.reading:
            record = yield from self._claim("recv_into", reading=True)
        size = room_in(buffer, nbytes)
        budget = record.budget
        command: Command = self._recv_command
        if self._drained and size > 0 and self._fileno() >= 0:
            pass
        elif budget.left > 0:
            budget.left -= 1
            try:
                received = self.socket.recv_into(buffer, nbytes)
            except BlockingIOError:
                self._tried_in_vain()
            except OSError as error:
                raise self._failure(error, "recv_into") from None
            else:
                if received < size:
                    self._drained = received > 0
                else:
                    self._drained = self._waits_after_full_receive(tried=True)
                return received
        else:
            command = SocketCheckCommand(self, record, EVENT_READ)
        record.reading = True
        try:
            while True:
                yield command
                try:
                    received = self.socket.recv_into(buffer, nbytes)
                except BlockingIOError:
                    command = self._recv_command
                    continue
                except OSError as error:
                    raise self._failure(error, "recv_into") from None
                if received < size:
                    self._drained = received > 0
                else:
                    self._drained = self._waits_after_full_receive()
                return received
        finally:
            self._release(EVENT_READ)

    @coroutine
    def send(self, data: Buffer) -> Generator[Command, Any, int]:
        """Send some of the data: what the socket takes at once, else what it takes when it is ready.

        Args:
            data: Bytes, or any contiguous buffer.

        Returns:
            How many bytes were taken.

        Raises:
            OSError: What the system says; BrokenPipeError where the peer is gone.
            BusyResourceError: Another task sends.
            ClosedResourceError: The handle is closed, or was closed meanwhile.

        Cancellation: nothing was sent.
        """
        record = self._record
        if record.writing:
            record = yield from self._claim("send", writing=True)
        budget = record.budget
        command: Command = self._send_command
        if budget.left > 0:
            budget.left -= 1
            try:
                return self._sock_send(data)
            except BlockingIOError:
                pass
            except OSError as error:
                raise self._failure(error, "send") from None
        else:
            command = SocketCheckCommand(self, record, EVENT_WRITE)
        record.writing = True
        try:
            while True:
                yield command
                try:
                    return self._sock_send(data)
                except BlockingIOError:
                    command = self._send_command
                except OSError as error:
                    raise self._failure(error, "send") from None
        finally:
            self._release(EVENT_WRITE)

    @coroutine
    def sendAll(self, data: Buffer) -> Generator[Command, Any, None]:
        """Send all of the data, without copying it.

        Args:
            data: Bytes, or any contiguous buffer, which must not change until this returns.

        Raises:
            OSError: What the system says; BrokenPipeError where the peer is gone.
            BusyResourceError: Another task sends. None of this data was sent.
            ClosedResourceError: The handle is closed, or was closed meanwhile.

        Cancellation: some of it may have been sent; ``bytes_sent`` says how much.
        """
        record = self._record
        if record.writing:
            record = yield from self._claim("sendAll", writing=True)
        octets = data if type(data) is bytes else octets_of(data)
        size = len(octets)
        budget = record.budget
        command: Command = self._send_command
        if budget.left > 0:
            budget.left -= 1
            try:
                self.bytes_sent = sent = self._sock_send(octets)
            except BlockingIOError:
                self.bytes_sent = sent = 0
            except OSError as error:
                self.bytes_sent = 0
                raise self._failure(error, "sendAll") from None
            else:
                if sent == size:
                    return
        else:
            self.bytes_sent = sent = 0
            command = SocketCheckCommand(self, record, EVENT_WRITE)
        rest = memoryview(octets)[sent:]
        record.writing = True
        try:
            while True:
                yield command
                command = self._send_command
                try:
                    sent = self._sock_send(rest)
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise self._failure(error, "sendAll") from None
                self.bytes_sent += sent
                rest = rest[sent:]
                if not rest:
                    return
        finally:
            self._release(EVENT_WRITE)

    sendall = sendAll

    # --- messages, and what goes with them ---------------------------------------------------------------------------

    def recvfrom(self, bufsize: int, flags: int = 0) -> Awaitable[tuple[bytes, Address]]:
        """Wait for a datagram.

        Args:
            bufsize: How many bytes to take at most; the rest of a longer datagram is lost (on Windows an OSError).
            flags: As of recvfrom(2), such as ``socket.MSG_PEEK``.

        Returns:
            Awaited: the datagram, which may be empty, and the address of its sender.

        Raises:
            As :meth:`recv`. ConnectionRefusedError, on Windows ConnectionResetError, says that an earlier datagram
            found nobody; the socket stays usable.

        Cancellation: no datagram is lost.
        """
        return self._read_by(self.socket.recvfrom, bufsize, flags)

    def recvfrom_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> Awaitable[tuple[int, Address]]:
        """Wait for a datagram, and put it into a buffer.

        Args:
            buffer: A writable buffer.
            nbytes: How many bytes to take at most; 0 fills the buffer.
            flags: As of recvfrom(2).

        Returns:
            Awaited: how many bytes have come, and the address of their sender.

        Raises:
            As :meth:`recvfrom`, and TypeError where the buffer is not writable.

        Cancellation: no datagram is lost.
        """
        return self._read_by(self.socket.recvfrom_into, buffer, nbytes, flags)

    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0
    ) -> Awaitable[tuple[bytes, list[tuple[int, int, bytes]], int, Address]]:
        """Wait for data, and for what was sent along with it. Not on Windows.

        Args:
            bufsize: How many bytes to take at most.
            ancbufsize: How many bytes of ancillary data to take at most; see ``socket.CMSG_SPACE``.
            flags: As of recvmsg(2).

        Returns:
            Awaited: the data, the ancillary data as ``(level, type, data)``, flags such as ``socket.MSG_TRUNC``, and
            the address of the sender. Fds in the ancillary data are the caller's to close; :meth:`recv_fds` is
            simpler.

        Raises:
            As :meth:`recvfrom`. OSError with EOPNOTSUPP where the system has no such call.

        Cancellation: nothing is lost: what has come, fds included, is taken and returned in one step.
        """
        return self._read_by(self._optional_method("recvmsg"), bufsize, ancbufsize, flags)

    def recvmsg_into(
        self, buffers: Iterable[Buffer], ancbufsize: int = 0, flags: int = 0
    ) -> Awaitable[tuple[int, list[tuple[int, int, bytes]], int, Address]]:
        """As :meth:`recvmsg`, into several buffers, which are filled in turn. Not on Windows.

        Args:
            buffers: Writable buffers.
            ancbufsize: How many bytes of ancillary data to take at most.
            flags: As of recvmsg(2).

        Returns:
            Awaited: how many bytes have come, and the rest as of :meth:`recvmsg`.

        Raises:
            As :meth:`recvmsg`, and TypeError where a buffer is not writable.

        Cancellation: as of :meth:`recvmsg`.
        """
        return self._read_by(self._optional_method("recvmsg_into"), list(buffers), ancbufsize, flags)

    @overload
    def sendto(self, data: Buffer, address: Address, /) -> Awaitable[int]: ...

    @overload
    def sendto(self, data: Buffer, flags: int, address: Address, /) -> Awaitable[int]: ...

    def sendto(self, data: Buffer, *args: Any) -> Awaitable[int]:
        """``sendto(data, address)`` or ``sendto(data, flags, address)``: send a datagram.

        One task at a time may send, also datagrams: where several do, a :class:`~flowno.Lock` keeps them apart.

        Args:
            data: Bytes, or any contiguous buffer; sent as a whole or not at all.
            flags: As of sendto(2).
            address: Where to. A name is resolved in a worker thread; a number needs none.

        Returns:
            Awaited: how many bytes were sent.

        Raises:
            OSError: What the system says, with the address: it is too long for one datagram (EMSGSIZE), or nobody
                takes it.
            ValueError: The host can be no name, or the port is not 0 to 65535.
            BusyResourceError: Another task sends.
            ClosedResourceError: The handle is closed, or was closed meanwhile.

        Cancellation: nothing was sent.
        """
        if not 1 <= len(args) <= 2:
            raise TypeError(f"sendto() takes data, optional flags and an address, not {len(args) + 1} arguments")
        return self._write_by(self.socket.sendto, data, *args[:-1], to=args[-1])

    def sendmsg(
        self,
        buffers: Iterable[Buffer],
        ancdata: Iterable[tuple[int, int, Buffer]] = (),
        flags: int = 0,
        address: Address = None,
    ) -> Awaitable[int]:
        """Send several buffers one behind the other, without joining them: a datagram, or some of a stream.

        Args:
            buffers: What to send. The system sets a limit to their number (``os.sysconf("SC_IOV_MAX")``).
            ancdata: What to send along with it, as ``(level, type, data)``; not on Windows. It goes with the first
                byte, so it must not be sent again with the rest.
            flags: As of sendmsg(2).
            address: Where to, for a socket that is not connected.

        Returns:
            Awaited: how many bytes were taken; of a stream it may be a part.

        Raises:
            As :meth:`sendto`. OSError with EOPNOTSUPP for ancillary data on a system that has no such call.

        Cancellation: nothing was sent.
        """
        whole, along = list(buffers), list(ancdata)
        if along or hasattr(self.socket, "sendmsg"):
            return self._write_by(self._optional_method("sendmsg"), whole, along, flags, to=address)
        if address is None:
            return self._write_by(self.socket.send, b"".join(whole), flags)
        return self._write_by(self.socket.sendto, b"".join(whole), flags, to=address)

    def send_fds(
        self, buffers: Iterable[Buffer], fds: Iterable[int], flags: int = 0, address: Address = None
    ) -> Awaitable[int]:
        """Send fds to another process, through a Unix socket; the receiver gets fds of its own for the same files.

        Args:
            buffers: Data to go with them; a stream needs one byte at least.
            fds: What to send, at most 253 on Linux. They must stay open until this returns, and stay the caller's.
            flags: As of sendmsg(2).
            address: Where to, for a socket that is not connected.

        Returns:
            Awaited: how many bytes of the data were taken. The fds go with the first one.

        Raises:
            As :meth:`sendmsg`.

        Cancellation: nothing was sent.
        """
        rights = getattr(_socket, "SCM_RIGHTS", 0)  # where there is none, there is no sendmsg either
        return self.sendmsg(buffers, [(_socket.SOL_SOCKET, rights, array("i", fds))], flags, address)

    async def recv_fds(self, bufsize: int, maxfds: int, flags: int = 0) -> tuple[bytes, list[int], int, Address]:
        """Wait for data and the fds that were sent along with it, through a Unix socket.

        Args:
            bufsize: How many bytes of data to take at most.
            maxfds: How many fds to take at most. The system closes the others, and sets ``socket.MSG_CTRUNC``.
            flags: As of recvmsg(2).

        Returns:
            The data, the fds, flags, and the address of the sender. The fds are the caller's, who closes them; they
            are not inherited by the programs that this one starts.

        Raises:
            As :meth:`recvmsg`.

        Cancellation: nothing is lost: fds that have come are returned.
        """
        received = array("i")
        room = _socket.CMSG_LEN(maxfds * received.itemsize) if hasattr(_socket, "CMSG_LEN") else 0
        data, ancillary, answer, address = await self.recvmsg(bufsize, room, flags | _CLOSE_ON_EXEC)
        for level, kind, content in ancillary:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                received.frombytes(content[: len(content) - len(content) % received.itemsize])
        if not _CLOSE_ON_EXEC:
            for fd in received:
                os.set_inheritable(fd, False)
        return data, list(received), answer & ~_CLOSE_ON_EXEC, address

    async def sendfile(self, file: BinaryIO, offset: int = 0, count: int | None = None) -> int:
        """Send a file, or a part of it: by the system's own ``sendfile`` where that takes the file, else by reading it.

        The loop stands still while the system reads from the disk, for at most 256 KiB at a time.

        Args:
            file: A file that is open for reading in binary mode. Any other object with a ``read`` will do.
            offset: Where in the file to begin, in bytes. For a file that cannot seek, only 0.
            count: How many bytes to send at most; None goes on to the end of the file.

        Returns:
            How many bytes were sent: fewer than ``count`` where the file ends before. The file stands behind them.

        Raises:
            ValueError: The file is in text mode, the socket no stream, ``offset`` negative or ``count`` not positive.
            TypeError: ``offset`` or ``count`` is no int.
            OSError: What the system says of the file or the socket. The file stands behind what was sent.
            BusyResourceError: Another task sends. Nothing of this file was sent.
            ClosedResourceError: The handle is closed, or was closed meanwhile.

        Cancellation: some of it may have been sent; ``bytes_sent`` says how much, and the file stands behind that.
        """
        return await send_file(self, file, offset, count)

    def _sendfile(self, source: int, offset: int, size: int) -> int:
        return os.sendfile(self._fileno(), source, offset, size)

    def _sendfile_source(self, file: BinaryIO) -> int | None:
        """Where the system can send a file from; None where it is to be read."""
        return source_of(file)

    # --- what a socket has besides -----------------------------------------------------------------------------------

    @property
    def family(self) -> int:
        """The family of the socket's addresses, such as ``socket.AF_INET``."""
        return self.socket.family

    @property
    def type(self) -> int:
        """The type of the socket, such as ``socket.SOCK_STREAM``."""
        return self.socket.type

    @property
    def proto(self) -> int:
        """The number of the socket's protocol; 0 is the usual one of its family and type."""
        return self.socket.proto

    def fileno(self) -> int:
        """The fd of the socket, or -1 once it is closed."""
        return self.socket.fileno()

    def getsockname(self) -> Address:
        """The socket's own address. OSError, as of the system; ClosedResourceError where the handle is closed."""
        return self._call(self.socket.getsockname)

    def getpeername(self) -> Address:
        """The address of the peer. OSError where there is none; ClosedResourceError where the handle is closed."""
        return self._call(self.socket.getpeername)

    def setsockopt(self, level: int, option: int, value: int | Buffer) -> None:
        """Set an option of the socket, as ``socket.setsockopt`` does."""
        self._call(self.socket.setsockopt, level, option, value)

    def getsockopt(self, level: int, option: int, buflen: int = 0) -> int | bytes:
        """An option of the socket, as ``socket.getsockopt`` gives it: a number, or ``buflen`` bytes at most."""
        if buflen:
            return self._call(self.socket.getsockopt, level, option, buflen)
        return self._call(self.socket.getsockopt, level, option)

    def shutdown(self, how: int, /) -> None:
        """End one direction of the connection, or both; the peer sees the end of the stream.

        Args:
            how: ``socket.SHUT_RD``, ``SHUT_WR`` or ``SHUT_RDWR``.

        Raises:
            OSError: The socket is not connected.
            ClosedResourceError: The handle is closed.
        """
        self._call(self.socket.shutdown, how)

    def __repr__(self) -> str:
        fd = self._fileno()
        if fd < 0 or self._record is CLOSED:
            return f"<{type(self).__name__} closed>"
        name = address_of(self.socket, "getsockname")
        peer = address_of(self.socket, "getpeername")
        return f"<{type(self).__name__} fd={fd}{name and f' {name}'}{peer and f' -> {peer}'}>"

    # --- inside ------------------------------------------------------------------------------------------------------

    @coroutine
    def _read_by(self, function: Callable[..., T], *args: Any) -> Generator[Command, Any, T]:
        """Receive by any function that raises BlockingIOError where there is nothing, owning the read side."""
        record = self._record
        if record.reading:
            record = yield from self._claim(function.__name__, reading=True)
        budget = record.budget
        command: Command = self._recv_command
        if budget.left > 0:
            budget.left -= 1
            try:
                return function(*args)
            except BlockingIOError:
                pass
            except OSError as error:
                raise self._failure(error, function.__name__) from None
        else:
            command = SocketCheckCommand(self, record, EVENT_READ)
        record.reading = True
        try:
            while True:
                yield command
                try:
                    return function(*args)
                except BlockingIOError:
                    command = self._recv_command
                except OSError as error:
                    raise self._failure(error, function.__name__) from None
        finally:
            self._release(EVENT_READ)

    @coroutine
    def _write_by(self, function: Callable[..., T], *args: Any, to: Address = None) -> Generator[Command, Any, T]:
        """Send by any function that raises BlockingIOError where there is no room, owning the write side.

        Args:
            function: What to call.
            args: Its arguments, but for the address.
            to: The address, which comes last, and whose name is resolved; None where there is none.
        """
        if to is not None:
            try:
                args = (*args, (yield from resolve(self.socket, to)))
            except OSError as error:
                raise self._failure(error, function.__name__, to) from None
        record = self._record
        if record.writing:
            record = yield from self._claim(function.__name__, writing=True)
        budget = record.budget
        command: Command = self._send_command
        if budget.left > 0:
            budget.left -= 1
            try:
                return function(*args)
            except BlockingIOError:
                pass
            except OSError as error:
                raise self._failure(error, function.__name__, to) from None
        else:
            command = SocketCheckCommand(self, record, EVENT_WRITE)
        record.writing = True
        pause = pauses()
        try:
            while True:
                yield command
                try:
                    return function(*args)
                except BlockingIOError:
                    if command.__class__ is not SocketCheckCommand:  # ready, and yet there is no room
                        yield next(pause)
                    command = self._send_command
                except OSError as error:
                    raise self._failure(error, function.__name__, to) from None
        finally:
            self._release(EVENT_WRITE)

    @coroutine
    def _wait_until(self, direction: int) -> Generator[Command, Any, None]:
        """Wait for readiness in one direction, owning it."""
        record = self._record
        reading = direction == EVENT_READ
        operation = "wait_readable" if reading else "wait_writable"
        if record.reading if reading else record.writing:
            record = yield from self._claim(operation, reading=reading, writing=not reading)
        if self._fileno() < 0:
            raise self._closed(operation)
        if reading:
            record.reading = True
        else:
            record.writing = True
        try:
            yield self._recv_command if reading else self._send_command
        finally:
            self._release(direction)
        if reading:
            self._drained = False

    def _optional_method(self, name: str) -> Callable[..., Any]:
        """A method of the socket that not every system has."""
        function: Callable[..., Any] | None = getattr(self.socket, name, None)
        if function is None:
            raise OSError(errno.EOPNOTSUPP, f"this system has no {name}; asked of {self!r}")
        return function

    def _claim(
        self, operation: str, *, reading: bool = False, writing: bool = False
    ) -> Generator[Command, Any, FdRecord]:
        """The way into an operation on a record that looks owned: take the record of the loop, or say what is wrong.

        Returns:
            The record, free in the directions that are asked for.
        """
        loop = here.loop or required_event_loop(repr(self))
        record = self._record
        if record.table is None and record is not CLOSED and self._fileno() >= 0:
            record = loop.fds.attach(self.socket)
            self._take_record(record)
        if not ((reading and record.reading) or (writing and record.writing)):
            return record
        yield from completed(loop.budget)  # a failure, too, must not keep the other tasks from running
        if record is CLOSED or self._fileno() < 0:
            raise ClosedResourceError(f"{operation} on {self!r}: it came after close() or detach()")
        direction = "receiving from" if reading and record.reading else "sending to"
        raise BusyResourceError(
            f"another task is {direction} {self!r}; one task at a time may, so let one do it for both, or take turns"
        )

    def _waits_after_full_receive(self, *, tried: bool = False) -> bool:
        """Whether to wait before the next receive, as one has filled its buffer; ``tried``: it had not waited.

        Of a stream there is more, and a wait costs a call of the selector; of messages that are just as long there is
        nothing, and a try costs a call of the system, which makes the buffer first. So each try in vain doubles the
        number of full receives until the next, and each that succeeds halves it.
        """
        if tried:
            self._full_before_try = max(self._full_before_try // 2, 1)
            self._full_receives = 0
        self._full_receives += 1
        return self._full_receives < self._full_before_try

    def _tried_in_vain(self) -> None:
        self._full_receives = 0
        self._full_before_try = min(2 * self._full_before_try, _MOST_BEFORE_TRY)

    def _release(self, directions: int) -> None:
        """The end of an operation that owned these directions; the record is another one by now where the handle came
        to another loop, or was closed."""
        record = self._record
        if directions & EVENT_READ:
            record.reading = record.table is None
        if directions & EVENT_WRITE:
            record.writing = record.table is None

    def _take_record(self, record: FdRecord) -> None:
        """Take the record of an event loop, which this handle belongs to from now on."""
        self._record = record
        self._recv_command = SocketRecvCommand(self, record)
        self._send_command = SocketSendCommand(self, record)

    def _call(self, method: Callable[..., T], *args: Any) -> T:
        """Call a method of the socket that does not wait."""
        try:
            return method(*args)
        except OSError as error:
            raise self._failure(error, method.__name__) from None

    def _failure(self, error: OSError, operation: str, address: Address = None) -> OSError:
        """What to raise for an error of the system: the same, with the address, unless it means that we are closed."""
        if self._fileno() < 0:
            return self._closed(operation)
        if isinstance(error, (ConnectionError, TimeoutError)):
            self._lost = error.args
        if address is not None:
            if error.errno is None:  # found by Python, not by the system: a path too long for AF_UNIX, and the like
                error = OSError(errno.ENAMETOOLONG if self.socket.family == AF_UNIX else errno.EINVAL, str(error))
            error.filename = address  # str() shows it behind the reason
        return error

    def _closed(self, operation: str) -> ClosedResourceError:
        """What to raise where the socket was closed."""
        what = "the handle was" if self._record is CLOSED else "its socket was, but not by its handle,"
        return ClosedResourceError(f"{operation} on {self!r}: {what} closed")

    def _accept_nowait(self) -> tuple[SocketHandle, Address] | None:
        """The next connection, as :func:`accept_now` has it, for a server, which waits once for many of them.

        A method by itself, as instruments exchange it: of what :meth:`accept` does they hear from that.
        """
        return accept_now(self)

    def _accepted(self, connection: _socket.socket) -> SocketHandle:
        """The handle for an accepted connection."""
        return SocketHandle(connection)

    def _connect_blocking(self, address: Address, seconds: float) -> None:
        """What :meth:`connect` does, up to the end of the handshake where there is one."""
        connect_blocking(self, address, seconds)

    @coroutine
    def _connect(self, address: Address) -> Generator[Command, Any, None]:
        """Connect while the other tasks run. The handle is closed where this is cancelled: half an attempt is none."""
        record = self._record
        if record.reading or record.writing:
            record = yield from self._claim("connect", reading=True, writing=True)
        record.reading = record.writing = True
        try:
            if record.budget.left <= 0:
                yield SocketCheckCommand(self, record, EVENT_READ | EVENT_WRITE)
                record = self._record
            record.budget.left -= 1
            yield from self._connect_owned(record, address)
        except BaseException as error:
            if not isinstance(error, Exception):
                self.close()
            raise
        finally:
            self._release(EVENT_READ | EVENT_WRITE)

    def _connect_owned(self, record: FdRecord, address: Address) -> Generator[Command, Any, None]:
        """Connect, owning both directions; up to the end of the handshake likewise."""
        return attempt(self, record, address)


def layers_of(handle: SocketHandle) -> Iterator[SocketHandle]:
    """The handle, and in TLS inside of TLS those below it; the last one has the socket of the system."""
    below: SocketHandle | None = handle
    while below is not None:
        yield below
        below = getattr(below.socket, "below", None)
