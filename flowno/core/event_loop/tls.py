"""Sockets whose bytes go through TLS, the same on every selector.

TLS runs between two memory buffers (``ssl.MemoryBIO``); this module carries what is in them to and from the socket. So
the loop never waits for OpenSSL, and OpenSSL never for a socket.

a) Records leave in the order in which TLS made them, whoever sends them. A reader sends at once what its reading has
   made TLS say, if the socket takes it, and else leaves it to the next writer: a reader that waits to write can wait
   for ever for a peer that does the same.
b) OpenSSL takes no more out of the incoming buffer than the record that it works on (SSL_CTX_set_read_ahead(3) is off).
   So nothing pending there and in ``SSLObject.pending()`` means that nothing can be decrypted, and an attempt that
   would raise SSLWantReadError, which costs more than a system call, is saved.
c) ``SSLObject.unwrap()`` calls SSL_shutdown(3) twice: it sends the close_notify, and then looks for the peer's.
   Application data that it finds there instead is a fatal error, so what can be decrypted is decrypted before.
d) An end of the stream is not told to OpenSSL, which would break off writing, too: without a close_notify it is known
   for what it is when TLS asks for more and the socket has no more.
"""

from __future__ import annotations

import errno
import os
import socket as _socket
import ssl
from collections.abc import Callable, Generator, Iterable
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from .addresses import Address
from .buffers import octets_of, room_in
from .commands import Command, SocketCheckCommand
from .connecting import ran_out_of_time
from .errors import BusyResourceError, ClosedResourceError, FlownoError
from .fd_table import CLOSED
from .operations import coroutine, part
from .running import current_world, here, required_event_loop
from .sockets import SocketHandle
from .synchronization import Event
from .tasks import completed
from .timers import checked_seconds, is_over
from .tls_in_tls import Carrier

if TYPE_CHECKING:
    from typing import AwaitableGenerator, TypeAlias, TypeVar

    from typing_extensions import Buffer

    from .fd_table import FdRecord

    T = TypeVar("T")

    #: What calling a function gives that is decorated with types.coroutine.
    Operation: TypeAlias = AwaitableGenerator[Command, Any, T, Generator[Command, Any, T]]

__all__ = ["TLSSocketHandle", "TruncatedStreamError", "start_tls"]

#: Bytes that one receive takes from the socket, and that one send gives it: a few records of at most 16 KiB each, RFC
#: 8446 section 5.1. Below 128 KiB, from where on malloc(3) maps memory anew each time.
_CHUNK = 65_536

#: How many receives take what is unread where a handle is closed: a peer that goes on sending does not hold it up.
_MOST_RECEIVES_AT_CLOSE = 16

#: A receive that was full counts as this many operations: a peer may fill it with messages for TLS itself, each of
#: which is work (a KeyUpdate makes a new key, RFC 8446 section 4.6.3), and would keep the loop for a second.
_COST_OF_A_FULL_RECEIVE = 32

#: Bytes that TLS answers to such messages, and that the peer may leave unread: two thousand answers. It could have us
#: keep any number of them.
_MOST_ANSWERS = 65_536

_BOTH = EVENT_READ | EVENT_WRITE

#: The types of a TLS record, RFC 8446 section 5.1: change_cipher_spec, alert, handshake, application_data.
_RECORD_TYPES = frozenset({20, 21, 22, 23})


class TruncatedStreamError(FlownoError, ssl.SSLEOFError):
    """The connection ended without the peer's close_notify: something may have been cut off, RFC 8446 section 6.1."""


class TLSSocketHandle(SocketHandle):
    """A :class:`SocketHandle` whose bytes go through TLS.

    :meth:`connect` and ``await flowno.connect(handle, address)`` include the handshake. On a socket that is connected
    already, and on one that was accepted, it is made by the first operation that needs it, or by :meth:`do_handshake`;
    other tasks that use the handle meanwhile wait for it. It never blocks the loop, and never ``accept``.

    Args:
        socket: A stream socket.
        ssl_context: The TLS settings.
        server_hostname: The name that the peer's certificate must be for, also sent to the peer (SNI); None takes the
            host that the handle is connected to.
        server_side: Whether to be the server in the handshake. What ``accept`` returns is one anyway.
        session: The :attr:`session` of an earlier connection to the same peer, which makes the handshake shorter.
        require_close_notify: Whether a stream that ends without the peer's close_notify is an error, as it may have
            been cut off. False takes it for the end, for peers that never send one.

    Raises:
        TypeError: ``ssl_context`` is no SSLContext.

    Attributes:
        ssl_context: The TLS settings.
        server_hostname: The name of the peer.
        require_close_notify: As above.
        handshake_timeout: How many seconds the handshake may take. Accepted connections have it from their listener.
        shutdown_timeout: How many seconds :meth:`aclose` and :meth:`unwrap` may take. Handed on likewise.
    """

    __slots__ = (
        "_aside",  # plaintext that was decrypted before anybody asked for it
        "_broken",  # the error that has broken TLS for good: its type, arguments and attributes; else None
        "_cut_off",  # the socket is at its end
        "_established",  # the handshake is done
        "_failed",  # why it could not be made
        "_incoming",  # ciphertext from the socket, for TLS to read
        "_outgoing",  # ciphertext that TLS has written
        "_over",  # the Event that ends the handshake that goes on, else None
        "_server_side",
        "_session",  # what to resume
        "_spoken_for",  # the directions that tasks want to have after the handshake that goes on
        "_stalled",  # the Event that a writer waits for until a reader has read, else None
        "_thirsty",  # TLS can give nothing before it gets more ciphertext
        "_tls",  # the SSLObject, None before the handshake begins
        "_unsent",  # ciphertext taken out of _outgoing that the socket has not taken yet
        "handshake_timeout",
        "require_close_notify",
        "server_hostname",
        "shutdown_timeout",
        "ssl_context",
    )

    def __init__(
        self,
        socket: _socket.socket,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None,
        *,
        server_side: bool = False,
        session: ssl.SSLSession | None = None,
        require_close_notify: bool = True,
    ) -> None:
        if not isinstance(ssl_context, ssl.SSLContext):
            raise TypeError(f"ssl_context must be an ssl.SSLContext, not {ssl_context!r}")
        if server_hostname is not None and not isinstance(server_hostname, (str, bytes)):
            raise TypeError(f"server_hostname must be a str or None, not {server_hostname!r}")
        super().__init__(socket)
        self.ssl_context = ssl_context
        self.server_hostname = server_hostname
        self.require_close_notify = require_close_notify
        self.handshake_timeout = 30.0
        self.shutdown_timeout = 30.0
        self._server_side = server_side
        self._session = session
        self._established = False
        self._failed = ""
        self._tls: ssl.SSLObject | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._unsent: bytes | memoryview = b""
        self._aside = b""
        self._broken: tuple[type[ssl.SSLError], tuple[Any, ...], dict[str, Any]] | None = None
        self._thirsty = False
        self._cut_off = False
        self._over: Event | None = None
        self._spoken_for = 0
        self._stalled: Event | None = None

    # --- coroutines --------------------------------------------------------------------------------------------------

    if TYPE_CHECKING:

        def accept(self) -> Operation[tuple[TLSSocketHandle, Address]]: ...  # type: ignore[override]

    def recv(self, bufsize: int) -> Operation[bytes]:
        """Wait for data; what is decrypted already comes without waiting.

        Args:
            bufsize: How many bytes to take at most; one TLS record is what comes at a time.

        Returns:
            What has come; ``b""`` once the peer has ended the stream by its close_notify.

        Raises:
            TruncatedStreamError: The stream has ended without a close_notify.
            ssl.SSLError: The peer broke the rules of TLS.
            TimeoutError: The handshake took longer than ``handshake_timeout``. The handle is closed then.
            OSError, ValueError, BusyResourceError, ClosedResourceError: As of :meth:`SocketHandle.recv`.

        Cancellation: no data is lost, unless this task was making the handshake: then the handle is closed.
        """
        return self._read(bufsize, None)  # pyright: ignore[reportReturnType]

    def recv_into(self, buffer: Buffer, nbytes: int = 0) -> Operation[int]:
        """Wait for data, and put it into a buffer; what is decrypted already comes without waiting.

        Args:
            buffer: A writable buffer.
            nbytes: How many bytes to take at most; 0 fills the buffer.

        Returns:
            How many bytes have come; 0 once the peer has ended the stream by its close_notify.

        Raises:
            As :meth:`recv`, TypeError where the buffer is not writable, and ValueError where it is too small for
            ``nbytes``.

        Cancellation: as of :meth:`recv`.
        """
        size = room_in(buffer, nbytes)
        return self._read(size, memoryview(buffer).cast("B"))  # pyright: ignore[reportReturnType]

    def send(self, data: Buffer) -> Operation[int]:
        """Send some of the data: up to 64 KiB of it, as a whole.

        Args:
            data: Bytes, or any contiguous buffer.

        Returns:
            How many bytes were sent.

        Raises:
            As :meth:`sendAll`.

        Cancellation: the bytes count as sent; what the socket has not taken of them goes out before the next ones.
        """
        return self._write(memoryview(octets_of(data))[:_CHUNK], "send")  # pyright: ignore[reportReturnType]

    def sendAll(self, data: Buffer) -> Operation[Any]:
        """Send all of the data.

        Args:
            data: Bytes, or any contiguous buffer.

        Raises:
            ssl.SSLError: TLS is at its end, or broken.
            TimeoutError: The handshake took longer than ``handshake_timeout``. The handle is closed then.
            OSError, BusyResourceError, ClosedResourceError: As of :meth:`SocketHandle.sendAll`.

        Cancellation: ``bytes_sent`` says how much was handed to TLS; what the socket has not taken of that goes out
        before what is sent next, also where that is ``b""``. A handle whose handshake this task was making is closed.
        """
        return self._write(data if type(data) is bytes else octets_of(data), "sendAll")  # pyright: ignore[reportReturnType]

    sendall = sendAll

    def sendmsg(
        self,
        buffers: Iterable[Buffer],
        ancdata: Iterable[tuple[int, int, Buffer]] = (),
        flags: int = 0,
        address: Address = None,
    ) -> Operation[int]:
        """Send some of several buffers one behind the other: up to 64 KiB, as a whole. They are joined.

        Args:
            buffers: What to send.
            ancdata: Must be empty, ``flags`` 0 and ``address`` None: they would go past TLS.

        Returns:
            How many bytes were sent.

        Raises:
            As :meth:`sendAll`. OSError with EOPNOTSUPP for what would go past TLS.

        Cancellation: as of :meth:`send`.
        """
        if flags or address is not None or list(ancdata):
            raise self._unsupported("sendmsg with ancdata, flags or an address")
        return self.send(b"".join(buffers))

    def dup(self) -> SocketHandle:
        """OSError with EOPNOTSUPP: another handle on the connection would go past TLS.

        The same is raised by the other methods of :class:`SocketHandle` that would: those that receive or send
        datagrams, ancillary data or fds.
        """
        raise self._unsupported("dup")

    @coroutine
    def do_handshake(self) -> Generator[Command, Any, None]:
        """Make the handshake now, or wait until the task that makes it has; nothing where it is done.

        Raises:
            ssl.SSLCertVerificationError: The peer is not who it should be.
            ssl.SSLError: The peer refuses, or does not speak TLS. The message says at which handle.
            TruncatedStreamError: The peer closed the connection.
            TimeoutError: It took longer than ``handshake_timeout``.
            OSError: What the system says.
            BusyResourceError: A task connects the handle, or accepts.
            ClosedResourceError: The handle is closed, or the handshake failed in the other task.

        Whatever is raised in the task that makes the handshake, the handle is closed then.

        Cancellation: the handle is closed, unless another task makes the handshake.
        """
        if self._established:
            yield from completed(required_event_loop("do_handshake").budget)
        else:
            yield from self._enter("do_handshake", 0)

    @coroutine
    def send_eof(self) -> Generator[Command, Any, None]:
        """Tell the peer that no more will be sent, by a close_notify; what it sends can still be received. Idempotent.

        Raises:
            As :meth:`sendAll`.

        Cancellation: the close_notify goes out with the next thing that is sent, or when the handle is closed.
        """
        record = self._record
        if record.writing or not self._established:
            record = yield from self._enter("send_eof", EVENT_WRITE)
        record.writing = True
        try:
            if record.budget.left <= 0:
                yield SocketCheckCommand(self, record, EVENT_WRITE)
                record = self._record
            record.budget.left -= 1
            self._make_close_notify()
            while not self._flush():
                yield self._send_command
        finally:
            self._release(EVENT_WRITE)

    @coroutine
    def unwrap(self) -> Generator[Command, Any, tuple[SocketHandle, bytes]]:
        """End TLS and go on below it: exchange close_notify with the peer, which must do the same.

        Returns:
            The handle below: a new :class:`SocketHandle`, or in TLS inside of TLS the handle that this one was made
            from; and the bytes that the peer has sent behind its close_notify, as far as they were received. This
            handle counts as closed from then on.

        Raises:
            ssl.SSLError: The peer has sent data that was not received yet: receive it, to the end, and try again.
            TruncatedStreamError: The peer closed the connection instead.
            TimeoutError: It took longer than ``shutdown_timeout``. The handle is closed then.
            OSError, BusyResourceError, ClosedResourceError: As of :meth:`sendAll`.

        Cancellation: the handle is closed, as a connection whose end is half made can be used neither way.
        """
        if not self._established:
            yield from self._enter("unwrap", 0)
        record = yield from self._claim("unwrap", reading=True, writing=True)
        record.reading = record.writing = True
        try:
            yield from self._carry(self._step_unwrap, "unwrap", self.shutdown_timeout)
        except BaseException as error:
            if isinstance(error, TimeoutError) or not isinstance(error, Exception):
                self.close()
            raise
        finally:
            self._release(_BOTH)
        carrier: Any = self.socket
        below = carrier.below if isinstance(carrier, Carrier) else SocketHandle(carrier)
        below._take_record(record)
        self._record = CLOSED
        return below, self._incoming.read()

    @coroutine
    def aclose(self) -> Generator[Command, Any, None]:
        """Close the handle as the peer would like it: send the close_notify, wait for the peer's, then close.

        What the peer sends meanwhile is dropped. It takes ``shutdown_timeout`` seconds at most; where another task uses
        the handle, or the connection has failed, the handle is closed at once. None of that is an error any more.

        Cancellation: the handle is closed at once.
        """
        try:
            if self._established and self._record is not CLOSED:
                record = yield from self._claim("aclose", reading=True, writing=True)
                record.reading = record.writing = True
                try:
                    yield from self._carry(self._step_goodbye, "aclose", self.shutdown_timeout)
                finally:
                    self._release(_BOTH)
        except (OSError, BusyResourceError):
            pass
        finally:
            self.close()

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
        """As :meth:`SocketHandle.shutdown`; the end of sending is told to the peer by a close_notify first.

        Raises:
            BlockingIOError: The socket does not take the close_notify now; ``await send_eof()`` waits until it does.
            OSError, ClosedResourceError: As of :meth:`SocketHandle.shutdown`.
        """
        if how != _socket.SHUT_RD and self._established and self._fileno() >= 0:
            self._make_close_notify()
            if not self._flush():
                raise BlockingIOError(
                    errno.EAGAIN, f"{os.strerror(errno.EAGAIN)}: shutdown of {self!r}; await send_eof() first"
                )
        super().shutdown(how)

    def abort(self) -> None:
        """Close the handle at once, and send no close_notify: the peer finds that the stream was cut off."""
        self._established = False
        super().abort()

    def _say_goodbye(self) -> None:
        """Send the close_notify as far as the socket takes it, and take what has come, for close(2) answers unread data
        by a reset, at which some systems drop what the peer has not read yet."""
        if not self._established or self._fileno() < 0:
            return
        try:
            self._make_close_notify()
            self._flush()
            for _ in range(_MOST_RECEIVES_AT_CLOSE):
                if not self._sock_recv(_CHUNK):
                    break
        except OSError:
            pass

    # --- what was agreed upon ----------------------------------------------------------------------------------------

    @property
    def ssl_object(self) -> ssl.SSLObject | None:
        """The TLS engine, for what has no method here; None before the handshake begins. Leave its I/O alone."""
        return self._tls

    @property
    def session(self) -> ssl.SSLSession | None:
        """What a later connection to the same peer can resume, by ``TLSSocketHandle(..., session=...)``.

        With TLS 1.3 it is complete once something was received, as servers send it behind the handshake.
        """
        return self._session if self._tls is None else self._tls.session

    @property
    def session_reused(self) -> bool:
        """Whether the handshake was shortened by the session of an earlier connection."""
        return self._tls is not None and bool(self._tls.session_reused)

    def cipher(self) -> tuple[str, str, int] | None:
        """The name of the cipher, the version of TLS that defines it, its secret bits; None before the handshake."""
        return None if self._tls is None else self._tls.cipher()

    def version(self) -> str | None:
        """Such as ``"TLSv1.3"``; None before the handshake."""
        return None if self._tls is None else self._tls.version()

    def selected_alpn_protocol(self) -> str | None:
        """What was chosen of the protocols that ``ssl_context.set_alpn_protocols()`` offers; None for none."""
        return None if self._tls is None else self._tls.selected_alpn_protocol()

    def compression(self) -> str | None:
        """The compression in use; nearly always None, as it gives secrets away (RFC 7525 section 3.3)."""
        return None if self._tls is None else self._tls.compression()

    def getpeercert(self, binary_form: bool = False) -> dict[str, Any] | bytes | None:
        """The certificate of the peer, as ``ssl.SSLSocket.getpeercert`` gives it.

        Args:
            binary_form: Whether to get it as DER bytes, also where it was not verified.

        Raises:
            ValueError: The handshake is not done.
        """
        if self._tls is None:
            raise ValueError(f"{self!r}: the TLS handshake is not done yet")
        return cast("dict[str, Any] | bytes | None", self._tls.getpeercert(binary_form))

    # --- inside: bytes -----------------------------------------------------------------------------------------------

    @coroutine
    def _read(self, size: int, into: memoryview | None) -> Generator[Command, Any, Any]:
        """Receive; long and flat, as every message comes through here."""
        record = self._record
        if record.reading or not self._established:
            record = yield from self._enter("recv", EVENT_READ)
        record.reading = True
        try:
            if record.budget.left <= 0:
                yield SocketCheckCommand(self, record, EVENT_READ)  # also where there is plaintext for ever
                record = self._record
            record.budget.left -= 1
            if not self._thirsty or not size:
                data = self._decrypt(size, into)
                if data is not None:
                    return data
            wait = self._drained and self._fileno() >= 0  # of a closed fd, epoll would never report anything
            while True:
                if wait or record.budget.left <= 0:
                    yield self._recv_command
                    record = self._record
                record.budget.left -= 1
                if self._receive() is None:
                    wait = True
                    continue
                data = self._decrypt(size, into)
                if data is not None:
                    return data
                wait = self._drained
        finally:
            self._release(EVENT_READ)
            if self._stalled is not None:
                self._resume_writer()

    @coroutine
    def _write(self, data: bytes | memoryview, operation: str) -> Generator[Command, Any, int]:
        """Send; flat likewise."""
        record = self._record
        if record.writing or not self._established:
            record = yield from self._enter(operation, EVENT_WRITE)
        record.writing = True
        self.bytes_sent = sent = 0
        size = len(data)
        try:
            while True:
                if record.budget.left <= 0:
                    yield SocketCheckCommand(self, record, EVENT_WRITE)
                    record = self._record
                record.budget.left -= 1
                while self._unsent and not self._flush():  # of a send that was cancelled; else it would pile up
                    yield self._send_command
                if sent == size:  # nothing is to be sent but that
                    return sent
                try:
                    sent += self._tls.write(  # type: ignore[union-attr]
                        data if size <= _CHUNK else memoryview(data)[sent : sent + _CHUNK]
                    )
                except ssl.SSLWantReadError:
                    yield from self._await_answer()
                    continue
                except ssl.SSLError:
                    self._raise_again()
                    raise
                self.bytes_sent = sent
                while not self._flush():
                    yield self._send_command
                if sent == size:
                    return sent
        finally:
            self._release(EVENT_WRITE)

    def _decrypt(self, size: int, into: memoryview | None = None) -> Any:
        """What TLS can give without more ciphertext; None where there is nothing.

        Returns:
            Bytes or, where they went into a buffer, their number; ``b""`` or 0 at the end of the stream.
        """
        if self._aside:
            data, self._aside = self._aside[:size], self._aside[size:]
            if into is None:
                return data
            into[: len(data)] = data
            return len(data)
        tls = cast(ssl.SSLObject, self._tls)
        try:
            got = tls.read(size) if into is None else tls.read(size, into)
        except ssl.SSLWantReadError:
            self._thirsty = not self._cut_off
            if self._outgoing.pending:
                self._send_answers()
            if self._thirsty:
                if self._stalled is not None:
                    self._resume_writer()
                return None
            self._raise_again()
            if self.require_close_notify:
                raise self._truncation(
                    "the peer closed the connection without a close_notify, so that something may have been cut off; "
                    "require_close_notify=False takes that for the end"
                ) from None
        except ssl.SSLZeroReturnError:
            self._thirsty = False
            self._raise_again()
        except ssl.SSLError as error:
            self._thirsty = False
            self._flush_quietly()  # the alert that tells the peer why
            self._raise_again()
            self._remember(error)
            raise
        else:
            if got:
                self._thirsty = not (self._incoming.pending or tls.pending())
            elif size:
                self._thirsty = False  # the peer has ended TLS; it is no SSLZeroReturnError before we have, too
                self._raise_again()
            if self._outgoing.pending:
                self._send_answers()
            return got
        return b"" if into is None else 0

    def _send_answers(self) -> None:
        """Send what reading has made TLS say, as far as the socket takes it.

        Raises:
            ssl.SSLError: The peer makes TLS answer, and does not read the answers.
        """
        self._flush_quietly()
        if self._outgoing.pending > _MOST_ANSWERS:
            reason = (
                f"{self!r}: the peer does not read what TLS has to answer to its messages, such as new keys; "
                f"more than {_MOST_ANSWERS} bytes wait to be sent"
            )
            error = ssl.SSLError(ssl.SSL_ERROR_SSL, reason)
            self._lost = error.args
            self._thirsty = False  # so that this comes again, until it does
            raise error from None

    def _remember(self, error: ssl.SSLError) -> None:
        """An error that has broken TLS, of which OpenSSL speaks only once: later it says that the stream has ended."""
        if self._broken is None:
            self._broken = type(error), error.args, error.__dict__

    def _raise_again(self) -> None:
        """Raise the error that has broken TLS, where there was one."""
        if self._broken is not None:
            kind, args, attributes = self._broken
            error = kind(*args)
            error.__dict__.update(attributes)
            raise error

    def _receive(self) -> bytes | None:
        """Give TLS what the socket has, and count a full receive; None where it has nothing, ``b""`` at its end."""
        try:
            data = self._sock_recv(_CHUNK)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._failure(error, "recv") from None
        if data:
            self._incoming.write(data)
            self._drained = len(data) < _CHUNK
            if not self._drained:
                self._record.budget.left -= _COST_OF_A_FULL_RECEIVE - 1  # one is counted by who asks for it
        else:
            self._cut_off = True
            self._drained = False
        return data

    def _flush(self) -> bool:
        """Give the socket what TLS has written; False where it does not take everything."""
        data = self._unsent
        while True:
            if not data:
                if not self._outgoing.pending:
                    return True
                data = self._outgoing.read()
            try:
                sent = self._sock_send(data)
            except BlockingIOError:
                self._unsent = data
                return False
            except OSError as error:
                self._unsent = data
                raise self._failure(error, "send") from None
            if sent < len(data):
                self._unsent = memoryview(data)[sent:]
                return False  # a stream socket that takes a part is full
            self._unsent = data = b""

    def _flush_quietly(self) -> None:
        """As :meth:`_flush`, for those who do not send: an error is the next writer's, or the next reader's."""
        try:
            self._flush()
        except OSError:
            pass

    @part
    def _await_answer(self) -> Generator[Command, Any, None]:
        """Wait until more was received, for a writer: the peer renegotiates (TLS 1.2), and that comes first.

        Where a task is reading, it does that anyway. Else the writer does it, and a reader that comes meanwhile waits,
        as it would for the first handshake.
        """
        while not self._flush():
            yield self._send_command
        record = self._record
        if record.reading:
            if self._stalled is None:
                self._stalled = Event()
            yield from self._stalled.wait()  # pyright: ignore[reportGeneralTypeIssues]
            return
        record.reading = True
        over = self._over = Event()
        self._spoken_for = EVENT_WRITE
        self._established = False
        try:
            while (data := self._receive()) is None:
                yield self._recv_command
        finally:
            self._established = True
            self._over = None
            self._release(EVENT_READ & ~self._spoken_for)
            over.set()
        if not data:
            raise self._truncation("the peer closed the connection while TLS waited for its answer")

    def _resume_writer(self) -> None:
        stalled, self._stalled = self._stalled, None
        if stalled is not None:
            stalled.set()

    def _read_by(self, function: Callable[..., Any], *args: Any) -> Any:
        raise self._unsupported(function.__name__)

    def _write_by(self, function: Callable[..., Any], *args: Any, to: Address = None) -> Any:
        raise self._unsupported(function.__name__)

    def _sendfile_source(self, file: BinaryIO) -> None:
        """The system's sendfile(2) would go past TLS, too; so the file is read."""

    def _unsupported(self, what: str) -> OSError:
        return OSError(errno.EOPNOTSUPP, f"{what} would go past the TLS of {self!r}")

    def _truncation(self, what: str) -> TruncatedStreamError:
        error = TruncatedStreamError(ssl.SSL_ERROR_EOF, f"{self!r}: {what}")
        self._lost = error.args
        return error

    # --- inside: the handshake ---------------------------------------------------------------------------------------

    @part
    def _enter(self, operation: str, direction: int) -> Generator[Command, Any, FdRecord]:
        """The way into an operation that does not find everything at hand: take the record, make the handshake or wait
        for the task that makes it, or say what is wrong.

        Returns:
            The record, free in the direction that is asked for or owned in it already.
        """
        over = self._over
        if over is not None and self._record.table is not None and not self._spoken_for & direction:
            self._take(direction)
            try:
                yield from over.wait()  # pyright: ignore[reportGeneralTypeIssues]
            except BaseException:
                if self._over is over:
                    self._spoken_for &= ~direction
                else:
                    self._release(direction)
                raise
            if not self._established:
                raise ClosedResourceError(
                    f"{operation} on {self!r}: the TLS handshake, which another task was making, failed: {self._failed}"
                )
            return self._record
        if self._established:
            reading, writing = bool(direction & EVENT_READ), bool(direction & EVENT_WRITE)
            return (yield from self._claim(operation, reading=reading, writing=writing))
        record = yield from self._claim(operation, reading=True, writing=True)
        record.reading = record.writing = True
        over = self._over = Event()
        self._spoken_for = 0
        self._take(direction)
        try:
            yield from self._handshake()
        finally:
            self._over = None
            self._release(_BOTH & ~self._spoken_for)
            over.set()
        return self._record

    def _take(self, direction: int) -> None:
        """This direction is a task's as soon as the handshake is over."""
        self._spoken_for |= direction
        if direction & EVENT_WRITE:
            self.bytes_sent = 0  # it has sent nothing, whatever becomes of the handshake

    def _handshake(self) -> Generator[Command, Any, None]:
        """Make the handshake within its time limit; both directions are owned. Failing, it closes the handle."""
        try:
            yield from self._carry(self._step_handshake, "handshake", self.handshake_timeout)
        except BaseException as error:
            self._failed = str(error) or type(error).__name__
            self.close()
            raise
        self._established = True

    def _carry(self, step: Callable[[], bool], what: str, seconds: float) -> Generator[Command, Any, None]:
        """Do something with the peer that takes several steps, within a time limit; both directions are owned.

        Args:
            step: Does what it can with what has come; True once it is done.
            what: "handshake", or the operation.
            seconds: The time limit.
        """
        loop = here.loop or required_event_loop(repr(self))
        limit = "handshake_timeout" if what == "handshake" else "shutdown_timeout"
        seconds = checked_seconds(seconds, limit)
        expired = TimeoutError(f"the TLS {what} of {self!r} took longer than {limit}, {seconds:g} s")
        timer = loop.interrupt_after(seconds, expired)
        greeting = b""
        try:
            while True:
                done = step()
                while not self._flush():
                    if is_over(timer):  # it found this task awake, and could not interrupt it
                        raise expired
                    yield self._send_command
                if done:
                    return
                wait = self._drained or loop.budget.left <= 0
                while True:
                    if wait:
                        if is_over(timer):
                            raise expired
                        yield self._recv_command
                    loop.budget.left -= 1
                    data = self._receive()
                    if data is not None:
                        break
                    wait = True
                greeting = greeting or data
                if not data:
                    raise self._truncation(f"the peer closed the connection during the TLS {what}")
        except ssl.SSLError as error:
            self._flush_quietly()  # the alert that tells the peer why
            if what == "handshake":
                self._explain(error, greeting)
            raise
        finally:
            loop.cancel_timer(timer)
            del expired

    def _step_handshake(self) -> bool:
        """Go on with the handshake as far as what has come allows; True once it is done."""
        tls = self._begin()
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self._thirsty = False
        return True

    def _begin(self) -> ssl.SSLObject:
        """The TLS engine, made when it is first needed: until then the name of the peer may not be known.

        Raises:
            ValueError: The context wants the name of the peer, and there is none.
        """
        if self._tls is None:
            if self.ssl_context.check_hostname and not self.server_hostname and not self._server_side:
                # wrap_socket() says so itself; wrap_bio() would just not check.
                raise ValueError(
                    f"{self!r}: ssl_context.check_hostname needs server_hostname, the name that the peer's certificate "
                    "must be for"
                )
            self._tls = self.ssl_context.wrap_bio(
                self._incoming,
                self._outgoing,
                server_side=self._server_side,
                server_hostname=None if self._server_side else self.server_hostname,
                session=self._session,
            )
            self._session = None
        return self._tls

    def _explain(self, error: ssl.SSLError, greeting: bytes) -> None:
        """Have an error of the handshake say where it happened, and whether the peer speaks TLS at all."""
        if isinstance(error, TruncatedStreamError) or not isinstance(error.strerror, str):
            return
        error.strerror += f", in the TLS handshake of {self!r}"
        if greeting and not (greeting[0] in _RECORD_TYPES and greeting[1:2] in (b"\x03", b"")):
            error.strerror += f"; the peer does not speak TLS, what it sends begins with {greeting[:16]!r}"

    def _accepted(self, connection: _socket.socket) -> SocketHandle:
        handle = TLSSocketHandle(
            connection,
            self.ssl_context,
            None,
            server_side=True,
            require_close_notify=self.require_close_notify,
        )
        handle.handshake_timeout = self.handshake_timeout
        handle.shutdown_timeout = self.shutdown_timeout
        return handle

    def _connect_blocking(self, address: Address, seconds: float) -> None:
        deadline = current_world().clock() + seconds
        super()._connect_blocking(address, seconds)
        self._take_hostname(address)
        try:
            self._handshake_blocking(deadline)
        except BaseException as error:
            self.close()
            if ran_out_of_time(error):
                raise TimeoutError(
                    f"the TLS handshake with {address!r} was not done within connect_timeout, {seconds:g} s; "
                    "if the server runs in this loop, use await flowno.connect"
                ) from None
            raise
        self._established = True

    def _handshake_blocking(self, deadline: float) -> None:
        """Make the handshake while the loop stands still, by a time of the clock at the latest."""
        clock = current_world().clock
        greeting: bytes | None = b""
        try:
            while True:
                done = self._step_handshake()
                self.socket.settimeout(max(deadline - clock(), 1e-3))
                self.socket.sendall(self._outgoing.read())
                if done:
                    break
                data = self._receive()
                greeting = greeting or data
                if not data:
                    raise self._truncation("the peer closed the connection during the TLS handshake")
        except ssl.SSLError as error:
            self._explain(error, greeting or b"")
            self.socket.setblocking(False)
            self._flush_quietly()
            raise
        self.socket.setblocking(False)

    def _connect_owned(self, record: FdRecord, address: Address) -> Generator[Command, Any, None]:
        yield from super()._connect_owned(record, address)
        self._take_hostname(address)
        yield from self._handshake()

    def _take_hostname(self, address: Address) -> None:
        if self.server_hostname is None and isinstance(address, tuple):
            self.server_hostname = address[0]

    # --- inside: the end ---------------------------------------------------------------------------------------------

    def _make_close_notify(self) -> None:
        """Have TLS say that no more will be sent, RFC 8446 section 6.1; see c) above."""
        self._decrypt_aside()
        try:
            cast(ssl.SSLObject, self._tls).unwrap()
        except (ssl.SSLError, ValueError):
            pass  # the peer's own close_notify is not there yet, or TLS is broken anyway

    def _decrypt_aside(self) -> None:
        """Decrypt what has come already, for later."""
        if self._thirsty:
            return
        try:
            while data := cast(ssl.SSLObject, self._tls).read(_CHUNK):
                self._aside += data
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass  # nothing more
        except ssl.SSLError as error:
            self._remember(error)  # it is for the next one to read

    def _step_unwrap(self) -> bool:
        """Exchange close_notify with the peer as far as what has come allows; True once it is done."""
        self._thirsty = False
        self._decrypt_aside()
        if self._aside:
            raise ssl.SSLError(
                ssl.SSL_ERROR_SSL,
                f"unwrap on {self!r}: the peer has sent data that was not received yet; "
                "receive it, until b'' says that it has ended TLS, too, and unwrap then",
            )
        self._raise_again()
        try:
            cast(ssl.SSLObject, self._tls).unwrap()
        except ssl.SSLWantReadError:
            return False
        return True

    def _step_goodbye(self) -> bool:
        """As :meth:`_step_unwrap`; what the peer sends until then is of no interest."""
        self._thirsty = False
        self._decrypt_aside()
        self._aside = b""
        return self._step_unwrap()


@coroutine
def start_tls(
    handle: SocketHandle,
    ssl_context: ssl.SSLContext,
    *,
    server_side: bool = False,
    server_hostname: str | None = None,
    received: Buffer = b"",
    session: ssl.SSLSession | None = None,
    require_close_notify: bool = True,
    handshake_timeout: float = 30.0,
) -> Generator[Command, Any, TLSSocketHandle]:
    """Go on through TLS on a connection that has talked without it so far, or inside of the TLS that it has.

    Args:
        handle: A connected handle that no task uses. It counts as closed from then on.
        ssl_context: The TLS settings.
        server_side: Whether to be the server in the handshake.
        server_hostname: The name that the peer's certificate must be for, also sent to the peer (SNI).
        received: Bytes that were received already, and are the peer's beginning of TLS.
        session: The session of an earlier connection to the same peer.
        require_close_notify: Whether a stream that ends without the peer's close_notify is an error.
        handshake_timeout: How many seconds the handshake may take.

    Returns:
        The handle to go on with; its :meth:`TLSSocketHandle.unwrap` is the way back.

    Raises:
        TypeError: ``handle`` is no handle, ``ssl_context`` no SSLContext, or ``handshake_timeout`` no number. Nothing
            was done.
        ValueError: The context wants ``server_hostname``, or ``handshake_timeout`` is not above 0. Nothing was
            done.
        BusyResourceError: A task uses the handle. Nothing was done.
        ClosedResourceError: The handle is closed.
        ssl.SSLError, TimeoutError, OSError: The handshake failed; see :meth:`TLSSocketHandle.do_handshake`. The
            connection is closed then.

    Cancellation: the connection is closed.
    """
    if not isinstance(handle, SocketHandle):
        raise TypeError(f"start_tls() takes a SocketHandle, not {handle!r}")
    if checked_seconds(handshake_timeout, "handshake_timeout") <= 0:
        raise ValueError(f"handshake_timeout must be above 0 seconds, not {handshake_timeout!r}")
    if isinstance(handle, TLSSocketHandle) and not handle._established:
        yield from handle._enter("start_tls", 0)
    record = yield from handle._claim("start_tls", reading=True, writing=True)
    carrier: Any = Carrier(handle) if isinstance(handle, TLSSocketHandle) else handle.socket
    tls = TLSSocketHandle(
        carrier,
        ssl_context,
        server_hostname,
        server_side=server_side,
        session=session,
        require_close_notify=require_close_notify,
    )
    tls.handshake_timeout = handshake_timeout
    tls._begin()
    tls._incoming.write(received)
    tls._take_record(record)
    handle._record = CLOSED
    yield from tls._enter("start_tls", 0)
    return tls
