"""A model of open files: what may be read and written without blocking, by what has been done to them.

It asks the kernel nothing about readiness. It counts the bytes that were accepted and those that were taken out again,
and remembers which ends were closed, half-closed or reset; everything else follows:

* a read does not block where bytes are in flight, where the stream has ended, and where it was reset;
* a write does not block where there is room, and where it fails: the reader is gone, or the connection was reset.

How large a buffer is, the kernel decides. Next to empty it has room, after a write that was refused it has none, and in
between both are right. Two more answers are the kernel's and no rule of POSIX: what an end says that was shut down by
its own side, or that was never connected. Where the answer is the kernel's, every backend must give the same one.

There is one case in which they need not: a hang-up that comes alone. poll(2) and epoll(7) report POLLHUP whatever was
asked for, which a selector must report as the registered interest; select(2) on Linux counts it as readable, and never
as writable. It takes an fd that cannot be written to any more, through no fault of its peer, and whose buffer is full.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Binding", "End", "Listener", "OpenFile", "Readiness", "RegularFile", "Unconnected", "Way", "connected"]

#: So much in flight, in so few pieces, is next to nothing for every kernel: PIPE_BUF is 512 bytes at least.
_ALMOST_EMPTY_BYTES = 512
_ALMOST_EMPTY_WRITES = 8


class Readiness(Enum):
    """What a selector that is asked about a direction has to say."""

    NO = "not ready"
    YES = "ready"
    KERNEL = "what the kernel decides, and alike by every backend"
    ANY = "anything"


NO, YES, KERNEL, ANY = Readiness


@dataclass(eq=False, repr=False)
class OpenFile:
    """An open file description, open(2), which may have several numbers."""

    numbers: int = 0
    #: What is done at one end reaches the other in its own time.
    is_asynchronous: bool = False

    def readable(self) -> Readiness:
        raise NotImplementedError

    def writable(self) -> Readiness:
        raise NotImplementedError

    def closed(self) -> None:
        """Its last number was closed."""

    def __repr__(self) -> str:
        fields = ((name, value) for name, value in vars(self).items() if name != "peer" and value)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in fields)})"


@dataclass(eq=False)
class Binding:
    """That a number stands for an open file, from an open or dup to the next close or dup2 of that number."""

    file: OpenFile


@dataclass(eq=False)
class Way:
    """The bytes that go one way, from one end to the other."""

    in_flight: int = 0
    writes: int = 0
    is_full: bool = False
    #: The writer has closed or half-closed: an end of file follows what is in flight.
    has_ended: bool = False
    #: The reader is closed: whatever is written fails.
    is_broken: bool = False
    #: One of the two has shut it down, and it exists.
    is_shut: bool = False

    def accepted(self, count: int) -> None:
        self.in_flight += count
        self.writes += 1 + count // _ALMOST_EMPTY_BYTES

    def refused(self) -> None:
        self.is_full = True

    def taken(self, count: int) -> None:
        self.in_flight -= count
        if count:
            self.is_full = False
        if not self.in_flight:
            self.writes = 0

    def has_room(self) -> Readiness:
        if self.is_full:
            return NO
        almost_empty = self.in_flight <= _ALMOST_EMPTY_BYTES and self.writes <= _ALMOST_EMPTY_WRITES
        return YES if almost_empty else KERNEL


@dataclass(eq=False, repr=False)
class End(OpenFile):
    """One end of a connection or of a pipe, which has one way only."""

    incoming: Way | None = None
    outgoing: Way | None = None
    peer: "End | None" = None
    was_reset: bool = False
    has_stopped_reading: bool = False
    #: SO_LINGER with a time of 0, socket(7): the last close sends a reset.
    resets_at_close: bool = False

    def readable(self) -> Readiness:
        if self.incoming is None:  # the writer of a pipe
            assert self.outgoing is not None
            return KERNEL if self.outgoing.is_broken else NO
        ready = self.was_reset or self.has_stopped_reading or self.incoming.has_ended or self.incoming.in_flight
        return YES if ready else NO

    def writable(self) -> Readiness:
        if self.outgoing is None:  # the reader of a pipe
            assert self.incoming is not None
            return ANY if self.incoming.has_ended else KERNEL
        if self.was_reset or self.outgoing.is_broken:
            return YES
        if self.outgoing.is_shut:
            return ANY if self.readable() is YES else KERNEL
        room = self.outgoing.has_room()
        return KERNEL if room is NO and self.is_asynchronous else room

    def stops_writing(self) -> None:
        """shutdown(SHUT_WR)"""
        if self.outgoing is not None:
            self.outgoing.has_ended = self.outgoing.is_shut = True

    def stops_reading(self) -> None:
        """shutdown(SHUT_RD), of which TCP tells the peer nothing."""
        self.has_stopped_reading = True
        if self.incoming is not None and not self.is_asynchronous:
            self.incoming.is_shut = True

    def closed(self) -> None:
        leaves_bytes = self.incoming is not None and self.incoming.in_flight > 0
        if self.outgoing is not None:
            self.outgoing.has_ended = True
        if self.incoming is not None:
            self.incoming.is_broken = True
        if self.peer is not None and (self.resets_at_close or leaves_bytes):
            self.peer.was_reset = True


def connected(*, is_asynchronous: bool = False) -> tuple[End, End]:
    """The two ends of a connection."""
    one, other = Way(), Way()
    first = End(incoming=one, outgoing=other, is_asynchronous=is_asynchronous)
    second = End(incoming=other, outgoing=one, is_asynchronous=is_asynchronous, peer=first)
    first.peer = second
    return first, second


@dataclass(eq=False, repr=False)
class Unconnected(OpenFile):
    """A stream socket before its connect, or after one that was refused."""

    is_asynchronous: bool = True
    was_refused: bool = False

    def readable(self) -> Readiness:
        return YES if self.was_refused else KERNEL

    writable = readable


@dataclass(eq=False, repr=False)
class Listener(OpenFile):
    """A listening socket, and the connections that wait to be accepted."""

    is_asynchronous: bool = True
    waiting: deque[End] = field(default_factory=deque)

    def readable(self) -> Readiness:
        return YES if self.waiting else NO

    def writable(self) -> Readiness:
        return KERNEL

    def closed(self) -> None:
        for end in self.waiting:
            assert end.peer is not None
            end.peer.was_reset = True


@dataclass(eq=False, repr=False)
class RegularFile(OpenFile):
    """A file on a disk."""

    def readable(self) -> Readiness:
        return YES

    writable = readable
