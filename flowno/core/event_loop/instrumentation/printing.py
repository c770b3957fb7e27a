"""Instruments to look at."""

from __future__ import annotations

import logging
import reprlib
from typing import TYPE_CHECKING, Any

from ..tasks import function_name
from ..words import address_in_words, peer_in_words
from .instrument import EventLoopInstrument
from .watching import logger

if TYPE_CHECKING:
    from ..queues import BaseQueue
    from .metadata import (
        InstrumentationMetadata,
        RawTask,
        ReadySocketInstrumentationMetadata,
        SocketConnectReadyMetadata,
        SocketConnectStartMetadata,
        SocketRecvDataMetadata,
        SocketSendDataMetadata,
        TLSHandshakeMetadata,
    )

__all__ = ["LogInstrument", "PrintInstrument"]


class PrintInstrument(EventLoopInstrument):
    """Prints what happens to sockets and queues, and how tasks end, a line each.

    Example:
        >>> from flowno import AsyncQueue, run
        >>> from flowno.core.event_loop.instrumentation import PrintInstrument
        >>> async def main():
        ...     queue = AsyncQueue()
        ...     await queue.put("an item")
        ...     return await queue.get()
        >>> with PrintInstrument():
        ...     run(main())
        [put] <AsyncQueue with 1 items>: 'an item', at once
        [get] <AsyncQueue with 0 items>: 'an item', at once
        [task] main returned 'an item'
        'an item'
    """

    def _write(self, template: str, *args: object) -> None:
        print(template % args)

    def on_queue_put(self, queue: BaseQueue[Any, Any], item: Any, immediate: bool) -> None:
        self._write("[put] %r: %s, %s", queue, _shown(item), _at_once(immediate))

    def on_queue_get(self, queue: BaseQueue[Any, Any], item: Any, immediate: bool) -> None:
        self._write("[get] %r: %s, %s", queue, _shown(item), _at_once(immediate))

    def on_socket_connect_start(self, metadata: SocketConnectStartMetadata) -> None:
        self._write("[connect] %r to %s", metadata.socket_handle, address_in_words(metadata.target_address))

    def on_socket_connect_ready(self, metadata: SocketConnectReadyMetadata) -> None:
        self._write("[connect] %r: connected, %s", metadata.socket_handle, _duration(metadata))

    def on_socket_accept_start(self, metadata: InstrumentationMetadata) -> None:
        self._write("[accept] %r", metadata.socket_handle)

    def on_socket_accept_ready(self, metadata: ReadySocketInstrumentationMetadata) -> None:
        peer = peer_in_words(metadata.peer_address)
        self._write("[accept] %r: %s, %s", metadata.socket_handle, peer, _duration(metadata))

    def on_socket_recv_start(self, metadata: InstrumentationMetadata) -> None:
        self._write("[recv] %r", metadata.socket_handle)

    def on_socket_recv_ready(self, metadata: ReadySocketInstrumentationMetadata) -> None:
        self._write("[recv] %r: ready, %s", metadata.socket_handle, _duration(metadata))

    def on_socket_recv_data(self, metadata: SocketRecvDataMetadata) -> None:
        self._write("[recv] %r: %d bytes, %s", metadata.socket_handle, len(metadata.data), _shown(metadata.data))

    def on_socket_send_start(self, metadata: InstrumentationMetadata) -> None:
        self._write("[send] %r", metadata.socket_handle)

    def on_socket_send_ready(self, metadata: ReadySocketInstrumentationMetadata) -> None:
        self._write("[send] %r: done, %s", metadata.socket_handle, _duration(metadata))

    def on_socket_send_data(self, metadata: SocketSendDataMetadata) -> None:
        sent = metadata.data[: metadata.bytes_sent]
        self._write("[send] %r: %d bytes, %s", metadata.socket_handle, metadata.bytes_sent, _shown(sent))

    def on_socket_close(self, metadata: InstrumentationMetadata) -> None:
        self._write("[close] %r", metadata.socket_handle)

    def on_tls_handshake_complete(self, metadata: TLSHandshakeMetadata) -> None:
        cipher = metadata.cipher[0] if metadata.cipher is not None else "no cipher"
        seconds = metadata.finish_time - metadata.start_time
        self._write("[tls] %r: %s, %s, after %.6f s", metadata.socket_handle, metadata.version, cipher, seconds)

    def on_task_completed(self, task: RawTask, result: Any) -> None:
        self._write("[task] %s returned %s", function_name(task), _shown(result))

    def on_task_error(self, task: RawTask, exception: BaseException) -> None:
        self._write("[task] %s ended with %s", function_name(task), _shown(exception))

    def on_task_cancelled(self, task: RawTask, exception: BaseException) -> None:
        self._write("[task] %s was cancelled", function_name(task))


class LogInstrument(PrintInstrument):
    """Logs what :class:`PrintInstrument` prints, at level DEBUG of the logger ``flowno.instrumentation``."""

    def _write(self, template: str, *args: object) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s", template % args)  # now: what is said of a handle changes


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


def _shown(value: object) -> str:
    """A value in one line of ASCII, however long it is, whatever is in it, and also where its repr raises."""
    text = repr(value[:48]) + ("..." if len(value) > 48 else "") if isinstance(value, bytes) else _short.repr(value)
    return text.encode("ascii", "backslashreplace").decode()


def _at_once(immediate: bool) -> str:
    return "at once" if immediate else "after a wait"


def _duration(metadata: ReadySocketInstrumentationMetadata | SocketConnectReadyMetadata) -> str:
    if metadata.immediate:
        return "at once"
    return f"after {metadata.finish_time - metadata.start_time:.6f} s"
