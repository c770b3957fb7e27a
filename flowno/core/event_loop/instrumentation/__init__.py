"""Instruments: objects that are told what the tasks do, with their sockets and queues.

An :class:`EventLoopInstrument` is a context manager with one method a hook. It sees what is done inside of its ``with``
block, which may be around a whole run, or in a task: then it sees that task, and those that are started from there on.

While nobody watches, none of this is anywhere near: the methods of handles and queues, and what the tasks of a loop are
stepped by, are exchanged when the first instrument is entered, and put back when the last one is left.

Example:
    >>> from flowno import run, socketpair
    >>> from flowno.core.event_loop.instrumentation import EventLoopInstrument
    >>> class Traffic(EventLoopInstrument):
    ...     sent = received = 0
    ...     def on_socket_send_data(self, metadata):
    ...         self.sent += metadata.bytes_sent
    ...     def on_socket_recv_data(self, metadata):
    ...         self.received += len(metadata.data)
    >>> async def main():
    ...     one, other = socketpair()
    ...     with one, other:
    ...         await one.sendAll(b"Hello, world!")
    ...         return await other.recv(5)
    >>> with Traffic() as traffic:
    ...     run(main())
    b'Hello'
    >>> traffic.sent, traffic.received
    (13, 5)
"""

from .instrument import EventLoopInstrument, get_current_instrument
from .metadata import (
    InstrumentationMetadata,
    ReadySocketInstrumentationMetadata,
    SocketConnectReadyMetadata,
    SocketConnectStartMetadata,
    SocketRecvDataMetadata,
    SocketSendDataMetadata,
    TaskSendMetadata,
    TaskThrowMetadata,
    TLSHandshakeMetadata,
)
from .printing import LogInstrument, PrintInstrument

__all__ = [
    "EventLoopInstrument",
    "InstrumentationMetadata",
    "LogInstrument",
    "PrintInstrument",
    "ReadySocketInstrumentationMetadata",
    "SocketConnectReadyMetadata",
    "SocketConnectStartMetadata",
    "SocketRecvDataMetadata",
    "SocketSendDataMetadata",
    "TLSHandshakeMetadata",
    "TaskSendMetadata",
    "TaskThrowMetadata",
    "get_current_instrument",
]
