"""Real descriptors, and beside each the model of what it stands for."""

import errno
import os
import socket
import tempfile
from contextlib import suppress

from tests.support.limits import is_open
from tests.support.loopback import resets_at_close
from tests.support.socket_model import Binding, End, Listener, OpenFile, RegularFile, Unconnected, Way, connected

__all__ = ["Descriptor", "World"]

_PIECES = (1 << 20, 1 << 12, 1)


class Descriptor:
    """A file object as programs have them: it knows its number until it is closed, whatever the number stands for."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_closed = False

    def fileno(self) -> int:
        return -1 if self.is_closed else self.number

    def __repr__(self) -> str:
        return f"<{'closed ' if self.is_closed else ''}descriptor {self.number}>"


class World:
    """What the program under test has open. Every method does something and tells the model that it was done.

    A method that does not apply to a descriptor, as accept does not to a pipe, does nothing.
    """

    def __init__(self) -> None:
        self.bindings: dict[int, Binding] = {}
        self.descriptors: list[Descriptor] = []
        self._addresses: dict[Listener, tuple[str, int]] = {}
        self._deaf = socket.socket()  # bound and not listening: nobody else can have the port
        self._deaf.bind(("127.0.0.1", 0))

    def close_all(self) -> None:
        self._deaf.close()
        for number in self.bindings:
            os.close(number)
        self.bindings.clear()

    def file(self, descriptor: Descriptor) -> OpenFile | None:
        """What its number stands for; None where the descriptor is closed."""
        return None if descriptor.is_closed else self.bindings[descriptor.number].file

    # --- opening

    def socketpair(self) -> None:
        for sock, end in zip(socket.socketpair(), connected(), strict=True):
            self._adopt(sock, end)

    def pipe(self) -> None:
        way = Way()
        for number, end in zip(os.pipe(), (End(incoming=way), End(outgoing=way)), strict=True):
            os.set_blocking(number, False)
            self._bind(number, end)

    def listener(self) -> None:
        sock = socket.create_server(("127.0.0.1", 0), backlog=64)
        listener = Listener()
        self._addresses[listener] = sock.getsockname()
        self._adopt(sock, listener)

    def unconnected(self) -> None:
        self._adopt(socket.socket(), Unconnected())

    def regular_file(self) -> None:
        file, path = tempfile.mkstemp()
        os.unlink(path)
        self._bind(file, RegularFile())

    def _adopt(self, sock: socket.socket, file: OpenFile) -> None:
        sock.setblocking(False)
        self._bind(sock.detach(), file)

    def _bind(self, number: int, file: OpenFile) -> None:
        self.bindings[number] = Binding(file)
        file.numbers += 1
        self.descriptors.append(Descriptor(number))

    # --- numbers

    def dup(self, descriptor: Descriptor) -> None:
        if file := self.file(descriptor):
            self._bind(os.dup(descriptor.number), file)

    def dup2(self, descriptor: Descriptor, other: Descriptor) -> None:
        """Give the number of another, closed or not, to what a descriptor stands for."""
        file, number = self.file(descriptor), other.number
        if file is None or number == descriptor.number:
            return
        if number in self.bindings:
            os.dup2(descriptor.number, number)
            self._release(number)
            self.bindings[number] = Binding(file)
            file.numbers += 1
        elif not is_open(number):  # else it is a selector's by now
            os.dup2(descriptor.number, number)
            self._bind(number, file)

    def close(self, descriptor: Descriptor) -> None:
        if not descriptor.is_closed:
            descriptor.is_closed = True
            os.close(descriptor.number)
            self._release(descriptor.number)

    def _release(self, number: int) -> None:
        file = self.bindings.pop(number).file
        file.numbers -= 1
        if not file.numbers:
            file.closed()

    # --- bytes

    def write(self, descriptor: Descriptor, size: int) -> None:
        file = self.file(descriptor)
        if isinstance(file, End) and file.outgoing is not None:
            with suppress(ConnectionError):
                try:
                    file.outgoing.accepted(os.write(descriptor.number, bytes(size)))
                except BlockingIOError:
                    if size == 1:
                        file.outgoing.refused()

    def fill(self, descriptor: Descriptor) -> None:
        """Write until it takes no more."""
        file = self.file(descriptor)
        if isinstance(file, End) and file.outgoing is not None:
            with suppress(ConnectionError):
                for size in _PIECES:
                    with suppress(BlockingIOError):
                        while True:
                            file.outgoing.accepted(os.write(descriptor.number, bytes(size)))
                file.outgoing.refused()

    def read(self, descriptor: Descriptor, size: int) -> None:
        file = self.file(descriptor)
        if isinstance(file, End) and file.incoming is not None:
            with suppress(BlockingIOError, ConnectionError):
                file.incoming.taken(len(os.read(descriptor.number, size)))

    def drain(self, descriptor: Descriptor) -> None:
        """Read until there is no more, for now."""
        file = self.file(descriptor)
        if isinstance(file, End) and file.incoming is not None:
            with suppress(BlockingIOError, ConnectionError):
                while data := os.read(descriptor.number, _PIECES[0]):
                    file.incoming.taken(len(data))

    # --- connections

    def connect(self, descriptor: Descriptor, other: Descriptor) -> None:
        """Connect an unconnected socket: to a listener, and where the other is none, to where nobody listens."""
        file, listener = self.file(descriptor), self.file(other)
        if not isinstance(file, Unconnected) or file.was_refused:
            return
        sock = socket.socket(fileno=descriptor.number)
        try:
            if isinstance(listener, Listener):
                sock.setblocking(True)
                sock.connect(self._addresses[listener])
                sock.setblocking(False)
                ours, theirs = connected(is_asynchronous=True)
                listener.waiting.append(theirs)
                self._becomes(file, ours)
            else:
                sock.connect_ex(self._deaf.getsockname())
                file.was_refused = True
        finally:
            sock.detach()

    def _becomes(self, file: OpenFile, connection: End) -> None:
        """A socket is connected, under each of its numbers."""
        connection.numbers = file.numbers
        for binding in self.bindings.values():
            if binding.file is file:
                binding.file = connection

    def accept(self, descriptor: Descriptor) -> None:
        file = self.file(descriptor)
        if isinstance(file, Listener) and file.waiting:
            listener = socket.socket(fileno=descriptor.number)
            try:
                listener.settimeout(30)  # the connection is on its way
                sock, _ = listener.accept()
                listener.setblocking(False)
            finally:
                listener.detach()
            self._adopt(sock, file.waiting.popleft())

    def shutdown(self, descriptor: Descriptor, how: int) -> None:
        file = self.file(descriptor)
        if not isinstance(file, End) or file.peer is None:
            return
        sock = socket.socket(fileno=descriptor.number)
        try:
            sock.shutdown(how)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
            return  # it was reset
        finally:
            sock.detach()
        if how != socket.SHUT_RD:
            file.stops_writing()
        if how != socket.SHUT_WR:
            file.stops_reading()

    def reset(self, descriptor: Descriptor) -> None:
        """Close so that the peer gets a reset, unless a duplicate keeps the connection open."""
        file = self.file(descriptor)
        if isinstance(file, End) and file.peer is not None and file.is_asynchronous and file.peer.numbers:
            sock = socket.socket(fileno=descriptor.number)
            resets_at_close(sock)
            sock.detach()
            file.resets_at_close = True
            self.close(descriptor)
