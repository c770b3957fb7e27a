"""Sockets whose bytes go through TLS, the same on every selector.

TLS runs between two memory buffers (``ssl.MemoryBIO``); this module carries what is in them to and from the socket. So
the loop never waits for OpenSSL, and OpenSSL never for a socket. Records leave in the order in which TLS made them,
whoever sends them: a reader sends at once what its reading has made TLS say, if the socket takes it, and else leaves it
to the next writer, because a reader that waits to write can wait for ever for a peer that does the same.
"""

from __future__ import annotations

import socket as _socket
import ssl
from collections.abc import Generator
from selectors import EVENT_READ, EVENT_WRITE
from types import coroutine
from typing import TYPE_CHECKING, Any

from .commands import Command, SocketCheckCommand
from .errors import BusyResourceError
from .running import current_world, required_event_loop
from .selectors import Address, SocketHandle, _bytes_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .fd_table import FdRecord

__all__ = ["TLSSocketHandle"]

#: Bytes that one receive takes from the socket: a few records of at most 16 KiB each, RFC 8446 section 5.1.
_CHUNK = 65_536


class TLSSocketHandle(SocketHandle):
    """A :class:`SocketHandle` whose bytes go through TLS.

    :meth:`connect` and ``await flowno.connect(handle, address)`` include the handshake. On a socket that is connected
    already, and on one that was accepted, it is made by the first operation that needs it, and never blocks the loop. A
    stream that ends without the peer's close_notify was cut off and is an error (``ssl.SSLEOFError``), not an end.

    Args:
        socket: A stream socket.
        ssl_context: The TLS settings.
        server_hostname: The name that the peer's certificate must be for, also sent to the peer (SNI); None takes the
            host that the handle is connected to.

    Attributes:
        ssl_context: The TLS settings.
        server_hostname: The name of the peer.
        handshake_timeout: How many seconds the handshake may take.
    """

    __slots__ = (
        "_established",  # the handshake is done
        "_incoming",  # ciphertext from the socket, for TLS to read
        "_outgoing",  # ciphertext that TLS has written
        "_server_side",
        "_tls",  # the SSLObject, None before the handshake begins
        "_unsent",  # ciphertext taken out of _outgoing that the socket has not taken yet
        "handshake_timeout",
        "server_hostname",
        "ssl_context",
    )

    def __init__(self, socket: _socket.socket, ssl_context: ssl.SSLContext, server_hostname: str | None) -> None:
        super().__init__(socket)
        self.ssl_context = ssl_context
        self.server_hostname = server_hostname
        self.handshake_timeout = 30.0
        self._server_side = False
        self._established = False
        self._tls: ssl.SSLObject | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._unsent = memoryview(b"")

    # --- coroutines --------------------------------------------------------------------------------------------------

    @coroutine
    def recv(self, bufsize: int) -> Generator[Command, Any, bytes]:
        """Wait for data; what is decrypted already comes without waiting.

        Args:
            bufsize: How many bytes to take at most; one TLS record is what comes at a time.

        Returns:
            What has come; ``b""`` once the peer has ended the stream by its close_notify.

        Raises:
            ssl.SSLEOFError: The stream was cut off.
            ssl.SSLError: The peer broke the rules of TLS.
            TimeoutError: The handshake took longer than ``handshake_timeout``. The handle is closed then.
            OSError, BusyResourceError, ClosedResourceError: As of :meth:`SocketHandle.recv`.

        Cancellation: no data is lost, unless the handshake was going on: then the handle is closed.
        """
        received: bytes = yield from self._read(bufsize, None)
        return received

    @coroutine
    def recv_into(self, buffer: Buffer, nbytes: int = 0) -> Generator[Command, Any, int]:
        """Wait for data, and put it into a buffer; what is decrypted already comes without waiting.

        Args:
            buffer: A writable buffer.
            nbytes: How many bytes to take at most; 0 fills the buffer.

        Returns:
            How many bytes have come; 0 once the peer has ended the stream by its close_notify.

        Raises:
            As :meth:`recv`, and TypeError where the buffer is not writable.

        Cancellation: as of :meth:`recv`.
        """
        view = memoryview(buffer).cast("B")
        received: int = yield from self._read(min(nbytes, len(view)) if nbytes else len(view), view)
        return received

    @coroutine
    def send(self, data: Buffer) -> Generator[Command, Any, int]:
        """Send some of the data: up to 64 KiB of it, as a whole.

        Args:
            data: Bytes, or any contiguous buffer.

        Returns:
            How many bytes were sent.

        Raises:
            As :meth:`sendAll`.

        Cancellation: the bytes count as sent; what the socket has not taken of them goes out before the next ones.
        """
        view = _bytes_of(data)[:_CHUNK]
        yield from self._write(view)
        return len(view)

    @coroutine
    def sendAll(self, data: Buffer) -> Generator[Command, Any, None]:
        """Send all of the data.

        Args:
            data: Bytes, or any contiguous buffer.

        Raises:
            ssl.SSLError: TLS is at its end, or broken.
            TimeoutError: The handshake took longer than ``handshake_timeout``. The handle is closed then.
            OSError, BusyResourceError, ClosedResourceError: As of :meth:`SocketHandle.sendAll`.

        Cancellation: ``bytes_sent`` says how much was handed to TLS; what the socket has not taken of that goes out
        before what is sent next.
        """
        yield from self._write(_bytes_of(data))

    sendall = sendAll

    # --- to begin and to end -----------------------------------------------------------------------------------------

    def connect(self, address: Address, /) -> None:
        """Connect to a peer, and make the handshake. This blocks, and the whole event loop with it.

        Args:
            address: ``(host, port)``, or what else the socket's family takes.

        Raises:
            OSError: What the system says of the attempt, with the address.
            ssl.SSLError: The handshake failed; ``ssl.SSLCertVerificationError`` where the peer is not who it should
                be. The handle is closed then.
            TimeoutError: Both together took longer than ``connect_timeout`` seconds.
            ClosedResourceError: The handle is closed.
        """
        super().connect(address)

    def shutdown(self, how: int, /) -> None:
        """As :meth:`SocketHandle.shutdown`; the end of sending is told to the peer by a close_notify first."""
        if how != _socket.SHUT_RD:
            self._send_close_notify()
        super().shutdown(how)

    def _say_goodbye(self) -> None:
        if self._fileno() >= 0:
            self._send_close_notify()

    # --- inside: bytes -----------------------------------------------------------------------------------------------

    def _read(self, size: int, into: memoryview | None) -> Generator[Command, Any, Any]:
        record = self._record
        if record.reading:
            record = yield from self._claim(reading=True)
        if not self._established:
            yield from self._begin(record)
        record.reading = True
        budget = record.budget
        try:
            if budget.left <= 0:
                yield SocketCheckCommand(self, record, EVENT_READ)  # also where there is plaintext for ever
            budget.left -= 1
            tls: Any = self._tls
            while True:
                try:
                    return tls.read(size) if into is None else tls.read(size, into)
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLZeroReturnError:
                    return b"" if into is None else 0
                finally:
                    if self._outgoing.pending:
                        self._flush_quietly()
                if self._drained or budget.left <= 0:
                    yield self._recv_command
                budget.left -= 1
                while not self._receive():
                    yield self._recv_command
        finally:
            self._release(EVENT_READ)

    def _write(self, view: memoryview) -> Generator[Command, Any, None]:
        record = self._record
        if record.writing:
            record = yield from self._claim(writing=True)
        self.bytes_sent = 0
        if not self._established:
            yield from self._begin(record)
        record.writing = True
        budget = record.budget
        try:
            tls: Any = self._tls
            while not self._flush():  # the records of an operation that was cancelled
                yield self._send_command
            while self.bytes_sent < len(view):
                if budget.left <= 0:
                    yield SocketCheckCommand(self, record, EVENT_WRITE)
                budget.left -= 1
                self.bytes_sent += tls.write(view[self.bytes_sent : self.bytes_sent + _CHUNK])
                while not self._flush():
                    yield self._send_command
        finally:
            self._release(EVENT_WRITE)

    def _receive(self) -> bool:
        """Give TLS what the socket has; False where it has nothing."""
        try:
            data = self._sock_recv(_CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._failure(error, "recv") from None
        if data:
            self._incoming.write(data)
            self._drained = len(data) < _CHUNK
        else:
            self._incoming.write_eof()
        return True

    def _flush(self) -> bool:
        """Give the socket what TLS has written; False where it does not take everything."""
        while True:
            if not self._unsent:
                if not self._outgoing.pending:
                    return True
                self._unsent = memoryview(self._outgoing.read())
            try:
                sent = self._sock_send(self._unsent)
            except BlockingIOError:
                return False
            except OSError as error:
                raise self._failure(error, "send") from None
            self._unsent = self._unsent[sent:]

    def _flush_quietly(self) -> None:
        """As :meth:`_flush`, for those who do not send: an error is the next writer's, or the next reader's."""
        try:
            self._flush()
        except OSError:
            pass

    # --- inside: the beginning and the end of TLS --------------------------------------------------------------------

    def _begin(self, record: FdRecord) -> Generator[Command, Any, None]:
        """Make the handshake for the first operation that needs it. It takes both directions."""
        if record.reading or record.writing:
            raise BusyResourceError(f"another task is making the TLS handshake of {self!r}")
        record.reading = record.writing = True
        try:
            yield from self._handshake()
        finally:
            self._release(EVENT_READ | EVENT_WRITE)

    def _handshake(self) -> Generator[Command, Any, None]:
        """Make the handshake within its time limit; both directions are owned. Failing, it closes the handle."""
        loop = required_event_loop(repr(self))
        seconds = self.handshake_timeout
        expired = TimeoutError(f"the TLS handshake of {self!r} took longer than handshake_timeout, {seconds:g} s")
        timer = loop.interrupt_after(seconds, expired)
        try:
            while True:
                done = self._step_handshake()
                while not self._flush():
                    yield self._send_command
                if done:
                    break
                while not self._receive():
                    if timer.fire is None:  # it found this task awake, and could not interrupt it
                        raise expired
                    yield self._recv_command
            self._established = True
        except BaseException:
            self.close()
            raise
        finally:
            loop.forget(timer)
            del expired

    def _step_handshake(self) -> bool:
        """Go on with the handshake as far as what has come allows; True once it is done."""
        if self._tls is None:
            self._tls = self.ssl_context.wrap_bio(
                self._incoming,
                self._outgoing,
                server_side=self._server_side,
                server_hostname=None if self._server_side else self.server_hostname,
            )
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError:
            self._flush_quietly()  # the alert that tells the peer why
            raise
        return True

    def _accepted(self, connection: _socket.socket) -> SocketHandle:
        handle = TLSSocketHandle(connection, self.ssl_context, None)
        handle.handshake_timeout = self.handshake_timeout
        handle._server_side = True
        return handle

    def _connect_blocking(self, address: Address, seconds: float) -> None:
        clock = current_world().clock
        deadline = clock() + seconds
        super()._connect_blocking(address, seconds)
        self._take_hostname(address)
        try:
            while True:
                done = self._step_handshake()
                self.socket.settimeout(max(deadline - clock(), 1e-3))
                self.socket.sendall(self._outgoing.read())
                if done:
                    break
                data = self.socket.recv(_CHUNK)
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            self.socket.setblocking(False)
        except TimeoutError:
            self.close()
            raise TimeoutError(
                f"the TLS handshake with {address!r} was not done within connect_timeout, {seconds:g} s; "
                "if the server runs in this loop, use await flowno.connect"
            ) from None
        except BaseException:
            self.close()
            raise
        self._established = True

    def _connect_owned(self, record: FdRecord, address: Address) -> Generator[Command, Any, None]:
        yield from super()._connect_owned(record, address)
        self._take_hostname(address)
        yield from self._handshake()

    def _take_hostname(self, address: Address) -> None:
        if self.server_hostname is None and isinstance(address, tuple):
            self.server_hostname = address[0]

    def _send_close_notify(self) -> None:
        """Say that no more will be sent, RFC 8446 section 6.1, as far as the socket takes it without waiting."""
        if self._established and self._tls is not None:
            try:
                self._tls.unwrap()
            except (ssl.SSLError, ValueError):
                pass  # the peer's own close_notify is not there yet, or TLS is broken anyway
            self._flush_quietly()
