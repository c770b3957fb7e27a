"""A connection as a stream of bytes: read by lines, by separators or by number, written with back-pressure built in.

The names and the errors are those of :mod:`asyncio`'s streams, in one class instead of two.

Example:
    >>> from flowno import run, socketpair, spawn
    >>> from flowno.net import Stream
    >>> async def shout(stream):
    ...     async with stream:
    ...         async for line in stream:
    ...             await stream.write(line.upper())
    >>> async def main():
    ...     one, other = socketpair()
    ...     task = await spawn(shout(Stream(other)))
    ...     async with Stream(one) as stream:
    ...         await stream.write(b"hello\\nworld\\n")
    ...         await stream.write_eof()
    ...         print(await stream.readline(), await stream.read())
    ...     await task.join()
    >>> run(main())
    b'HELLO\\n' b'WORLD\\n'
"""

from __future__ import annotations

import os
import re
import socket as _socket
from collections.abc import AsyncIterator, Awaitable, Generator, Iterable
from operator import index
from typing import TYPE_CHECKING, Any, Literal, overload

from ..core.event_loop.addresses import Address
from ..core.event_loop.buffers import octets_of
from ..core.event_loop.commands import Command
from ..core.event_loop.errors import BusyResourceError, ClosedResourceError
from ..core.event_loop.operations import coroutine, part
from ..core.event_loop.running import here, required_event_loop
from ..core.event_loop.sockets import SocketHandle, layers_of
from ..core.event_loop.tasks import GIVE_WAY, Budget
from .arguments import check_limit
from .errors import IncompleteReadError, LimitOverrunError
from .extra_info import EXTRA_INFO, Connection
from .searches import Finder, PatternSearch, SeparatorSearch, exactly, never, up_to

if TYPE_CHECKING:
    import ssl
    from types import TracebackType
    from typing import Self

    from typing_extensions import Buffer, TypeVar

    T = TypeVar("T", default=None)

__all__ = ["DEFAULT_LIMIT", "IncompleteReadError", "LimitOverrunError", "Stream"]

#: Bytes: how long a line may be, or what stands before a separator, unless a stream is told otherwise.
DEFAULT_LIMIT = 65_536

#: Bytes that one receive takes at most.
_CHUNK = 65_536

#: Buffers that one sendmsg may have, IOV_MAX in limits.h; the least that POSIX allows is 16.
_IOV_MAX = 1024
if hasattr(os, "sysconf") and "SC_IOV_MAX" in os.sysconf_names:
    _IOV_MAX = max(os.sysconf("SC_IOV_MAX"), 16)

#: The budgets of a stream whose buffer may not be read from directly: a task is in a read that has to wait, or may; and
#: no loop has read from it so far, or it is closed.
_IN_USE = Budget()
_UNBOUND = Budget()
_IN_USE.left = _UNBOUND.left = 0


class Stream:
    """A connection that is read from and written to as a stream of bytes.

    It reads ahead: from now on its handle is used through the stream only. One task at a time may read and one may
    write; both at once are fine, a second one in the same direction gets BusyResourceError before a byte moves. What
    has been received stays in the stream until a read returns it, also where one was cancelled or failed.

    An asynchronous iterator over its lines, :meth:`chunks` being one over what comes; and an asynchronous context
    manager: leaving it closes the stream as :meth:`aclose` does, or by an exception as :meth:`abort` does.

    Args:
        handle: A connected :class:`~flowno.core.event_loop.selectors.SocketHandle`, plain or TLS. The stream
            takes it over.
        limit: How many bytes may stand before the separator that :meth:`readline` and :meth:`readuntil` look for.

    Raises:
        ValueError: ``limit`` is not above 0.
        TypeError: ``handle`` is no handle, or ``limit`` no int.
    """

    __slots__ = (
        "__weakref__",
        "_budget",  # the running loop's, _IN_USE or _UNBOUND
        "_buffer",  # what has been received, from _start on
        "_ended",  # the peer will send no more
        "_error",  # errno and text of the error that the connection came to
        "_gathers",  # the handle can send several buffers by one call
        "_handle",
        "_peername",
        "_sockname",
        "_start",
        "_tail",  # what has been received, instead of _buffer, where it came in small pieces; _buffer is empty then
        "_write_ended",
        "limit",
    )

    def __init__(self, handle: SocketHandle, *, limit: int = DEFAULT_LIMIT) -> None:
        if not hasattr(handle, "sendAll"):
            raise TypeError(f"Stream() takes a SocketHandle, not {handle!r}")
        check_limit(limit)
        self.limit = limit
        self._budget = _UNBOUND
        self._buffer = b""
        self._start = 0
        self._tail = bytearray()
        self._ended = self._write_ended = False
        self._error: tuple[Any, ...] | None = None
        self._take_over(handle)
        # Asked now: of a connection that has broken down, the system does not know them any more.
        self._peername: Address = _address(handle.socket, "getpeername")
        self._sockname: Address = _address(handle.socket, "getsockname")

    def _take_over(self, handle: SocketHandle) -> None:
        self._handle = handle
        # TLS has its own records to put the bytes in, and Windows has no such call.
        self._gathers = not hasattr(handle, "ssl_context") and hasattr(handle.socket, "sendmsg")

    # --- reading -----------------------------------------------------------------------------------------------------
    #
    # Each read begins with what is fast: the answer is in the buffer, maybe after one receive into the empty buffer.
    # That is long and flat because it was measured. One test keeps others out, for a stream that is being read from, or
    # is closed, has no budget. What needs more than that is for _take_when().

    @coroutine
    def read(self, n: int = -1) -> Generator[Command, Any, bytes]:
        """Wait for data, and take what there is, up to ``n`` bytes; or everything until the end.

        Args:
            n: How many bytes to take at most; -1 reads until the end of the stream.

        Returns:
            What has come; ``b""`` at the end of the stream, and for 0 bytes.

        Raises:
            OSError: What the system says; ConnectionResetError where the peer broke off.
            BusyResourceError: Another task reads.
            ClosedResourceError: The stream is closed, or was closed meanwhile.

        Cancellation: no data is lost.
        """
        while type(n) is int and n > 0:
            budget = self._budget
            if budget.left > 0:
                start = self._start
                data = self._buffer[start : start + n]
                if data:
                    budget.left -= 1
                    self._start = start + len(data)
                    return data
            if not (yield from self._fill()):
                break
        size = index(n)
        if size < 0:
            yield from self._take_when(never)
            return self._take_all()
        some = yield from self._take_when(up_to(size))
        return some or b""

    @coroutine
    def readinto(self, buffer: Buffer) -> Generator[Command, Any, int]:
        """Wait for data, and put what there is into a buffer, as far as it has room.

        Where nothing was left over by another read, that is one receive straight into the buffer.

        Args:
            buffer: A writable buffer, which cannot change its size meanwhile.

        Returns:
            How many bytes have come; 0 at the end of the stream, and for a buffer without room.

        Raises:
            TypeError: The buffer is not writable, or not contiguous.
            OSError, BusyResourceError, ClosedResourceError: As of :meth:`read`.

        Cancellation: no data is lost, and the buffer is as it was.
        """
        with _room(buffer) as room:
            size = len(room)
            while True:
                budget = self._budget
                if budget.left > 0 and size and self._is_drained:
                    return (yield from self._fill_into(room))
                # It says as well what stands in the way, and what has the loop's budget afterwards.
                data = yield from self._take_when(self._unless_drained(up_to(size)))
                if data or data is None or not size:
                    break
            if data is None:
                return 0
            room[: len(data)] = data
            return len(data)

    @coroutine
    def readexactly(self, n: int) -> Generator[Command, Any, bytes]:
        """Wait for exactly so many bytes.

        Args:
            n: How many.

        Returns:
            The bytes.

        Raises:
            IncompleteReadError: The stream ended before. ``partial`` has what had come.
            ValueError: ``n`` is negative.
            OSError, BusyResourceError, ClosedResourceError: As of :meth:`read`.

        Cancellation: no data is lost.
        """
        while type(n) is int and n > 0:
            budget = self._budget
            if budget.left > 0:
                start = self._start
                end = start + n
                buffer = self._buffer
                if end <= len(buffer):
                    budget.left -= 1
                    self._start = end
                    return buffer[start:end]
            if not (yield from self._fill()):
                break
        size = index(n)
        if size < 0:
            raise ValueError(f"readexactly() takes a number of bytes, not {n!r}")
        data = yield from self._take_when(exactly(size))
        if data is None:
            raise IncompleteReadError(self._take_all(), size)
        return data

    @coroutine
    def readuntil(
        self, separator: Buffer | tuple[Buffer, ...] | re.Pattern[bytes] = b"\n"
    ) -> Generator[Command, Any, bytes]:
        """Wait for a separator.

        A pattern is searched for, each time that something has come, in all that was not read yet, as if that were the
        whole text; the first match ends what is read. So a pattern must not depend on what may follow:
        ``rb"\\r?\\n"`` finds the same ends however the data arrives; ``rb"\\s+"`` may end in the middle of white space
        that arrives in two pieces, and ``$``, ``\\b`` and look-ahead see an end where only the next piece is missing.
        What comes in more than 64 pieces is searched for matches of up to 1,024 bytes with each of them, and for longer
        ones each time that the amount has grown by a 64th, at the limit and at the end of the stream.

        Args:
            separator: The bytes that end what is read; or several of them in a tuple, of which that one counts that
                ends first; or a compiled pattern of bytes.

        Returns:
            All the bytes up to and including the separator, or the first match of the pattern.

        Raises:
            LimitOverrunError: More than ``limit`` bytes stand before the separator; or the first ``limit`` bytes hold
                no match of the pattern. They are left in the stream.
            IncompleteReadError: The stream ended before. ``partial`` has what had come.
            ValueError: A separator is empty, or there is none; or the pattern matches no bytes at all.
            TypeError: A separator is no bytes, or the pattern one of text.
            OSError, BusyResourceError, ClosedResourceError: As of :meth:`read`.

        Cancellation: no data is lost.
        """
        while type(separator) is bytes and separator:
            budget = self._budget
            if budget.left > 0:
                start = self._start
                found = self._buffer.find(separator, start)
                if 0 <= found - start <= self.limit:
                    budget.left -= 1
                    self._start = end = found + len(separator)
                    return self._buffer[start:end]
            if not (yield from self._fill()):
                break
        search: SeparatorSearch | PatternSearch
        if isinstance(separator, re.Pattern):
            search = PatternSearch(separator, self.limit)
        else:
            search = SeparatorSearch(separator, self.limit)
        data = yield from self._take_when(search.end_of)
        if data is None:
            raise IncompleteReadError(self._take_all(), None)
        return data

    @coroutine
    def readline(self) -> Generator[Command, Any, bytes]:
        """Wait for a line.

        Returns:
            The line, with the ``b"\\n"`` that ends it; without, the last one where the stream ended before; ``b""`` at
            the end of the stream.

        Raises:
            ValueError: The line is longer than ``limit``. It is dropped up to its end where that has come, else
                everything that has come is; use ``readuntil()`` to keep it.
            OSError, BusyResourceError, ClosedResourceError: As of :meth:`read`.

        Cancellation: no data is lost.
        """
        while True:
            budget = self._budget
            if budget.left > 0:
                start = self._start
                end = self._buffer.find(b"\n", start) + 1
                if 0 < end - start <= self.limit:
                    budget.left -= 1
                    self._start = end
                    return self._buffer[start:end]
            if not (yield from self._fill()):
                return (yield from self._next_line())

    def __aiter__(self) -> Self:
        """The lines of the stream, as :meth:`readline` has them, until its end."""
        return self

    @coroutine
    def __anext__(self) -> Generator[Command, Any, bytes]:
        while True:
            budget = self._budget
            if budget.left > 0:
                start = self._start
                end = self._buffer.find(b"\n", start) + 1
                if 0 < end - start <= self.limit:
                    budget.left -= 1
                    self._start = end
                    return self._buffer[start:end]
            if not (yield from self._fill()):
                break
        line = yield from self._next_line()
        if not line:
            raise StopAsyncIteration
        return line

    def chunks(self, n: int = _CHUNK) -> AsyncIterator[bytes]:
        """What comes, as it comes, until the end of the stream: an asynchronous iterator over what :meth:`read` gives.

        It can be left at any time, and there is nothing in it to close.

        Args:
            n: How many bytes to take at most at a time.

        Raises:
            ValueError: ``n`` is not above 0.
            OSError, BusyResourceError, ClosedResourceError: As of :meth:`read`, while it is iterated over.

        Example:
            >>> from flowno import run, socketpair
            >>> async def main():
            ...     one, other = socketpair()
            ...     async with Stream(one) as sender, Stream(other) as stream:
            ...         await sender.write(b"no line")
            ...         await sender.write_eof()
            ...         return [chunk async for chunk in stream.chunks(4)]
            >>> run(main())
            [b'no l', b'ine']
        """
        if index(n) <= 0:
            raise ValueError(f"chunks() takes a number of bytes above 0, not {n!r}")
        return _Chunks(self, n)

    def at_eof(self) -> bool:
        """Whether the peer has ended the stream, as far as a read has noticed, and everything has been read."""
        return self._ended and not self._tail and self._start == len(self._buffer)

    # --- writing -----------------------------------------------------------------------------------------------------

    def write(self, data: Buffer) -> Awaitable[None]:
        """Write all of the data, without copying it: awaited, it returns when the system has taken the last byte.

        So a peer that does not read slows its writer down, and nothing piles up here.

        Args:
            data: Bytes, or any contiguous buffer, which must not change until this returns.

        Raises:
            OSError: What the system says; BrokenPipeError where the peer is gone.
            BusyResourceError: Another task writes. None of this data was sent.
            ClosedResourceError: The stream is closed, or was closed meanwhile, or :meth:`write_eof` came before.

        Cancellation: some of it may have been sent; ``handle.bytes_sent`` says how much.
        """
        if self._write_ended:
            raise self._no_more()
        return self._handle.sendAll(data)

    @coroutine
    def writelines(self, buffers: Iterable[Buffer]) -> Generator[Command, Any, None]:
        """Write several buffers, as one: by one system call without joining them, where there is such a call.

        Through TLS they are joined.

        Args:
            buffers: Bytes, or any contiguous buffers, which must not change until this returns.

        Raises:
            As :meth:`write`.

        Cancellation: some of it may have been sent; ``handle.bytes_sent`` says how much, counted over all of them.
        """
        if self._write_ended:
            raise self._no_more()
        handle: Any = self._handle
        parts = list(map(octets_of, buffers))
        if len(parts) < 2 or not self._gathers:
            yield from handle.sendAll(parts[0] if len(parts) == 1 else b"".join(parts))
            return
        total = first = 0
        try:
            while first < len(parts):
                sent = yield from handle.sendmsg(parts[first : first + _IOV_MAX])
                total += sent
                while first < len(parts) and sent >= len(parts[first]):
                    sent -= len(parts[first])
                    first += 1
                if sent:
                    parts[first] = memoryview(parts[first])[sent:]
        except BusyResourceError:
            raise  # bytes_sent is what another task counts
        except BaseException:
            handle.bytes_sent = total
            raise
        handle.bytes_sent = total

    async def write_eof(self) -> None:
        """End the writing side: the peer reads what was written before, and then the end. Idempotent.

        Reading goes on. Through TLS the peer gets a close_notify.

        Raises:
            OSError: What the system says; the connection may be broken.
            BusyResourceError: Another task writes.
            ClosedResourceError: The stream is closed.

        Cancellation: the side is not ended, unless it had been already.
        """
        if self._write_ended:
            return
        handle: Any = self._handle
        if hasattr(handle, "send_eof"):
            await handle.send_eof()
        else:
            await handle.sendAll(b"")  # finds out whether another task writes
            handle.shutdown(_socket.SHUT_WR)
        self._write_ended = True

    def _no_more(self) -> ClosedResourceError:
        return ClosedResourceError(f"{self!r}: a write came after write_eof(), which ended the writing side")

    # --- the connection ----------------------------------------------------------------------------------------------

    @property
    def handle(self) -> SocketHandle:
        """What the stream reads from and writes to; another one after :meth:`start_tls` and :meth:`unwrap`."""
        return self._handle

    @overload
    def get_extra_info(self, name: Literal["peername", "sockname"], default: Any = None) -> Address: ...
    @overload
    def get_extra_info(self, name: Literal["socket"], default: Any = None) -> _socket.socket: ...
    @overload
    def get_extra_info(self, name: Literal["sslcontext"], default: T = ...) -> ssl.SSLContext | T: ...
    @overload
    def get_extra_info(self, name: Literal["ssl_object"], default: T = ...) -> ssl.SSLObject | T: ...
    @overload
    def get_extra_info(self, name: Literal["cipher"], default: T = ...) -> tuple[str, str, int] | T: ...
    @overload
    def get_extra_info(self, name: Literal["peercert"], default: T = ...) -> dict[str, Any] | T: ...
    @overload
    def get_extra_info(self, name: Literal["alpn_protocol", "compression", "version"], default: T = ...) -> str | T: ...
    @overload
    def get_extra_info(self, name: str, default: Any = None) -> Any: ...
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What else is known of the connection. Type checkers know by the name what it is.

        Args:
            name: One of ``"peername"`` and ``"sockname"``, the addresses, as the family of the socket has them, also
                when the connection is gone, and ``"socket"``. With TLS also ``"sslcontext"`` and ``"ssl_object"``;
                ``"version"``, such as ``"TLSv1.3"``; ``"alpn_protocol"``, what was chosen of those that both offer;
                ``"cipher"``, its name, the version of TLS that defines it and its secret bits; ``"peercert"``, as
                ``ssl.SSLObject.getpeercert()`` has it; and ``"compression"``.
            default: What to return where that is not known of this connection.
        """
        if name not in EXTRA_INFO:
            return default
        value = EXTRA_INFO[name](Connection(self._handle, self._peername, self._sockname))
        return default if value is None else value

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        session: ssl.SSLSession | None = None,
        require_close_notify: bool = True,
        handshake_timeout: float = 30.0,
    ) -> None:
        """Go on through TLS. What the peer has sent and was not read yet counts as TLS, never as plain text.

        Args:
            ssl_context: The TLS settings.
            server_side: Whether the peer is the client.
            server_hostname: The name that the peer's certificate must be for, also sent to the peer (SNI).
            session: That of an earlier connection to the same peer by the same context, which makes the handshake
                shorter: ``get_extra_info("ssl_object").session``.
            require_close_notify: Whether a stream that ends without the peer's close_notify is an error, as it may
                have been cut off. False takes it for the end, for peers that never send one.
            handshake_timeout: How many seconds the handshake may take.

        Raises:
            ssl.SSLError: The handshake failed; ``ssl.SSLCertVerificationError`` where the peer is not who it should be.
            TimeoutError: It took longer than ``handshake_timeout``.
            TypeError: ``ssl_context`` is no SSLContext, ``session`` no session, or ``handshake_timeout`` no number.
                Nothing was done.
            ValueError: The context wants ``server_hostname``, the session is another context's, or
                ``handshake_timeout`` is not above 0. Nothing was done.
            BusyResourceError: Another task reads or writes. Nothing was done.
            OSError, ClosedResourceError: As of :meth:`read`.

        Cancellation: the stream is closed, as it is by a handshake that failed.
        """
        from ..core.event_loop.tls import start_tls

        self._check_idle("start_tls()")
        self._budget = _IN_USE
        received = self._peek()
        try:
            handle = await start_tls(
                self._handle,
                ssl_context,
                server_side=server_side,
                server_hostname=server_hostname,
                received=received,
                session=session,
                require_close_notify=require_close_notify,
                handshake_timeout=handshake_timeout,
            )
        except OSError as error:
            if not isinstance(error, ClosedResourceError):
                self._error = error.args  # of a handle that is gone with it
            raise
        finally:
            self._budget = _UNBOUND
        self._take_all()
        self._take_over(handle)

    async def unwrap(self) -> None:
        """Leave TLS, by a close_notify in both directions, and go on in plain text.

        What was received through TLS and not read yet stays in front of what follows.

        Raises:
            ssl.SSLError: The peer has sent data that was not received yet: read it, to the end, and try again.
            TimeoutError: The peer did not answer within ``handle.shutdown_timeout`` seconds. The stream is closed then.
            TypeError: The stream does not go through TLS.
            BusyResourceError: Another task reads or writes.
            OSError, ClosedResourceError: As of :meth:`read`.

        Cancellation: the stream is closed.
        """
        tls: Any = self._handle
        if not hasattr(tls, "unwrap"):
            raise TypeError(f"{self!r} does not go through TLS")
        self._check_idle("unwrap()")
        self._budget = _IN_USE
        try:
            handle, received = await tls.unwrap()
        finally:
            self._budget = _UNBOUND
        if received:
            self._add(received)
        self._take_over(handle)
        self._ended = self._write_ended = False  # that was said of the stream inside of TLS

    async def aclose(self) -> None:
        """Close the stream and its handle. Through TLS, wait until the peer has ended its side, too. Idempotent.

        That takes ``handle.shutdown_timeout`` seconds at most, and whatever goes wrong meanwhile is no error any more.

        Cancellation: the stream is closed at once.
        """
        handle: Any = self._handle
        try:
            if hasattr(handle, "aclose"):
                await handle.aclose()
        finally:
            self.close()

    def close(self) -> None:
        """Close the stream and its handle at once. Idempotent, and it never waits.

        Tasks that read or write get ClosedResourceError. What was received and not read cannot be read any more.
        """
        self._budget = _UNBOUND
        self._handle.close()

    def abort(self) -> None:
        """As :meth:`close`, but what was written is not given out as complete: through TLS, no close_notify is sent.

        For a stream that is left in the middle of something; leaving ``async with`` by an error does this.
        """
        self._budget = _UNBOUND
        self._handle.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if error is None:
            await self.aclose()
        else:
            self.abort()

    def __repr__(self) -> str:
        return f"<Stream {self._handle!r}>"

    # --- inside ------------------------------------------------------------------------------------------------------

    @part
    def _fill(self) -> Generator[Command, Any, bool]:
        """Receive once, where nothing was left over: the way of most reads. False where that is no help."""
        budget = self._budget
        if budget.left <= 0 or self._start != len(self._buffer) or self._tail or self._ended or self._error is not None:
            return False
        self._buffer = b""  # not held while this waits, maybe for long
        self._start = 0
        self._budget = _IN_USE
        try:
            data = yield from self._handle.recv(_CHUNK)  # pyright: ignore[reportGeneralTypeIssues]
        except BaseException as error:
            self._remember(error)
            raise
        finally:
            self._budget = budget
        self._buffer = data
        self._ended = not data
        return not self._ended

    @property
    def _is_drained(self) -> bool:
        """Whether nothing is left over, and the connection is to be asked."""
        return self._start == len(self._buffer) and not self._tail and not self._ended and self._error is None

    def _unless_drained(self, end_of: Finder) -> Finder:
        """As a finder says, but for 0 bytes where nothing is left over, so that who reads receives by itself."""
        return lambda received, start: 0 if self._is_drained else end_of(received, start)

    @part
    def _fill_into(self, room: memoryview) -> Generator[Command, Any, int]:
        """As :meth:`_fill`, into the caller's buffer, where that is known to be possible."""
        budget = self._budget
        self._buffer = b""
        self._start = 0
        self._budget = _IN_USE
        try:
            received = yield from self._handle.recv_into(room)  # pyright: ignore[reportGeneralTypeIssues]
        except BaseException as error:
            self._remember(error)
            raise
        finally:
            self._budget = budget
        self._ended = not received
        return received

    @part
    def _take_when(self, end_of: Finder) -> Generator[Command, Any, bytes | None]:
        """Receive until a read finds its end, and take what it reads. None where the stream ends before."""
        if self._budget is _IN_USE:
            yield from self._refuse()
        budget = (here.loop or required_event_loop(f"a read from {self!r}")).budget
        self._budget = _IN_USE
        try:
            if budget.left <= 0:
                yield GIVE_WAY
            budget.left -= 1
            if self._handle.fileno() < 0:
                self._take_all()
                yield from self._handle.recv(0)  # pyright: ignore[reportGeneralTypeIssues]  # it says what is wrong
            while True:
                end = end_of(self._tail or self._buffer, self._start)
                if end >= 0:
                    return self._take(end)
                if self._ended:
                    return None
                if self._error is not None:
                    raise OSError(*self._error)
                data = yield from self._handle.recv(_CHUNK)  # pyright: ignore[reportGeneralTypeIssues]
                if data:
                    self._add(data)
                else:
                    self._ended = True
        except BaseException as error:
            self._remember(error)
            raise
        finally:
            if self._budget is _IN_USE:  # else it was closed meanwhile
                self._budget = budget

    def _remember(self, error: BaseException) -> None:
        """What broke the connection: the system says it once, and then that the stream has ended."""
        if isinstance(error, (ConnectionError, TimeoutError)) and error.errno is not None:
            self._error = error.args

    def _is_loss(self, error: BaseException) -> bool:
        """Whether an error says that this connection was lost, and not another one that its user has made."""
        if not isinstance(error, OSError):
            return False
        return error.args == self._error or any(error.args == layer._lost for layer in layers_of(self._handle))

    def _refuse(self) -> Generator[Command, Any, None]:
        budget = (here.loop or required_event_loop(f"a read from {self!r}")).budget
        if budget.left <= 0:  # a failure, too, must not keep the other tasks from running
            yield GIVE_WAY
        budget.left -= 1
        self._check_idle("the read")

    def _check_idle(self, operation: str) -> None:
        if self._budget is _IN_USE:
            raise BusyResourceError(
                f"another task is reading from {self!r}; {operation} has to wait: one task at a time may read"
            )

    def _next_line(self) -> Generator[Command, Any, bytes]:
        search = SeparatorSearch(b"\n", self.limit)
        try:
            line = yield from self._take_when(search.end_of)
        except LimitOverrunError as error:
            buffer = self._tail or self._buffer
            if buffer.startswith(b"\n", self._start + error.consumed):
                self._take(error.consumed + 1)
            else:
                self._take_all()
            raise ValueError(error.args[0]) from None
        return self._take_all() if line is None else line

    def _add(self, data: bytes) -> None:
        """Put more bytes behind those that were not read yet.

        What is left is copied at most once for each byte that has come since, so the cost is linear also where a peer
        sends byte by byte.
        """
        if self._tail:
            self._tail += data
            return
        left = len(self._buffer) - self._start
        if left > len(data):
            self._tail += memoryview(self._buffer)[self._start :]
            self._tail += data
            self._buffer = b""
        else:
            self._buffer = self._buffer[self._start :] + data
        self._start = 0

    def _take(self, size: int) -> bytes:
        """Take so many bytes from the front."""
        if not self._tail:
            start = self._start
            self._start = end = start + size
            return self._buffer[start:end]
        tail, self._tail = self._tail, bytearray()
        with memoryview(tail) as view:
            self._buffer = bytes(view[size:])
            return bytes(view[:size])

    def _peek(self) -> bytes:
        """All the bytes that were not read yet."""
        return bytes(self._tail) or self._buffer[self._start :]

    def _take_all(self) -> bytes:
        data = self._peek()
        self._buffer = b""
        self._start = 0
        self._tail = bytearray()
        return data


class _Chunks:
    """What a stream receives, as it comes. A class, as a generator would have to be closed where a loop is left.

    Args:
        stream: The stream.
        size: How many bytes to take at most at a time.
    """

    __slots__ = ("_size", "_stream")

    def __init__(self, stream: Stream, size: int) -> None:
        self._stream = stream
        self._size = size

    def __aiter__(self) -> Self:
        return self

    @coroutine
    def __anext__(self) -> Generator[Command, Any, bytes]:
        data = yield from self._stream.read(self._size)  # pyright: ignore[reportGeneralTypeIssues]
        if not data:
            raise StopAsyncIteration
        return data


def _room(buffer: Buffer) -> memoryview:
    """A buffer that can be written to, as a view of its bytes."""
    view = memoryview(buffer)
    if view.readonly:
        raise TypeError(f"readinto() takes a buffer that can be written to, such as a bytearray, not {type(buffer)!r}")
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def _address(socket: Any, method: str) -> Any:
    """An address of a socket; None where it has none."""
    try:
        return getattr(socket, method)()
    except (OSError, AttributeError):
        return None
