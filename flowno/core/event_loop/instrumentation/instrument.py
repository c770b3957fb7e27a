"""What is told of what tasks do: the base of all instruments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import EventLoopError
from ..running import here
from .watching import Entry, stack, those_here, watch_steps_of, watching

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from ..commands import Command
    from ..queues import BaseQueue
    from .metadata import (
        InstrumentationMetadata,
        RawTask,
        ReadySocketInstrumentationMetadata,
        SocketConnectReadyMetadata,
        SocketConnectStartMetadata,
        SocketRecvDataMetadata,
        SocketSendDataMetadata,
        TaskSendMetadata,
        TaskThrowMetadata,
        TLSHandshakeMetadata,
    )

__all__ = ["EventLoopInstrument", "get_current_instrument"]


class EventLoopInstrument:
    """Is told what tasks do while it is entered. Derive from it, and define the hooks that you want.

    A context manager, which may be entered several times, in several threads, and left in any order. What it sees goes
    by the context variables of a task, :mod:`contextvars`: the code inside of the ``with`` block, and the tasks that
    are started there, until it is left. Of several that see the same, the one that was entered last is told first.

    Hooks are called where things happen, in the context and the thread of whoever does them, so they must not block.
    What one does itself is not reported. One that raises is logged, and its instrument is not called any more; no task
    ever notices. Only KeyboardInterrupt and SystemExit go through.
    """

    _entries: Sequence[Entry] = ()  # those that were not left, in the order in which they were made

    def on_queue_put(self, queue: BaseQueue[Any, Any], item: Any, immediate: bool) -> None:
        """An item was put into a queue, or given to the task that waited for it."""

    def on_queue_get(self, queue: BaseQueue[Any, Any], item: Any, immediate: bool) -> None:
        """An item was taken out of a queue."""

    def on_socket_connect_start(self, metadata: SocketConnectStartMetadata) -> None:
        """A handle is to be connected."""

    def on_socket_connect_ready(self, metadata: SocketConnectReadyMetadata) -> None:
        """It is connected; through TLS with the handshake, which was told before."""

    def on_socket_accept_start(self, metadata: InstrumentationMetadata) -> None:
        """A task wants to accept a connection. For a server it is told when the connection is there."""

    def on_socket_accept_ready(self, metadata: ReadySocketInstrumentationMetadata) -> None:
        """It has accepted one, from ``peer_address``; ``socket_handle`` is the handle that listens."""

    def on_socket_recv_start(self, metadata: InstrumentationMetadata) -> None:
        """A task wants to receive."""

    def on_socket_recv_ready(self, metadata: ReadySocketInstrumentationMetadata) -> None:
        """It has received."""

    def on_socket_recv_data(self, metadata: SocketRecvDataMetadata) -> None:
        """What it has received, told next."""

    def on_socket_send_start(self, metadata: InstrumentationMetadata) -> None:
        """A task wants to send."""

    def on_socket_send_ready(self, metadata: ReadySocketInstrumentationMetadata) -> None:
        """It has sent what it wanted to, or by ``send`` a part."""

    def on_socket_send_data(self, metadata: SocketSendDataMetadata) -> None:
        """What it has sent, told next; without the other where a ``sendAll`` failed or was cancelled half-way."""

    def on_socket_close(self, metadata: InstrumentationMetadata) -> None:
        """A handle is being closed; it is open still. Told once for each handle, and not for one that is dropped."""

    def on_tls_handshake_complete(self, metadata: TLSHandshakeMetadata) -> None:
        """A TLS handshake is done."""

    def on_task_before_send(self, metadata: TaskSendMetadata) -> None:
        """A task is about to begin, or to go on with an answer."""

    def on_task_after_send(self, metadata: TaskSendMetadata, command: Command) -> None:
        """That step has come to its end, and the task asks for this."""

    def on_task_before_throw(self, metadata: TaskThrowMetadata) -> None:
        """A task is about to go on with an exception, mostly its cancellation."""

    def on_task_after_throw(self, metadata: TaskThrowMetadata, command: Command) -> None:
        """That step has come to its end, and the task asks for this."""

    def on_task_completed(self, task: RawTask, result: Any) -> None:
        """A task has returned."""

    def on_task_error(self, task: RawTask, exception: BaseException) -> None:
        """A task has ended with an exception that is not its own cancellation."""

    def on_task_cancelled(self, task: RawTask, exception: BaseException) -> None:
        """A task was cancelled, and has ended by that."""

    def __enter__(self) -> Self:
        watching.begin()
        entry = Entry(self)
        self._entries = [*self._entries, entry]
        stack.set((entry, *those_here()))
        if here.loop is not None:
            watch_steps_of(here.loop)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        entries = self._entries
        if not entries:
            raise EventLoopError(f"{self!r} was left more often than it was entered")
        entry = next((each for each in stack.get() if each in entries), entries[-1])
        self._entries = [each for each in entries if each is not entry]
        entry.leave()
        stack.set(those_here())


#: Is told of nothing.
_NOBODY = EventLoopInstrument()


def get_current_instrument() -> EventLoopInstrument:
    """The instrument that sees what is done here; of several, the one that was entered last.

    Where there is none, it is one whose hooks do nothing. So libraries can call hooks of their own.
    """
    entries = those_here()
    instrument = entries[0].instrument if entries else None
    return _NOBODY if instrument is None else instrument
