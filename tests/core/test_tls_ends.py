"""TLS: how a stream ends, by a close_notify or without."""

import socket as system_socket
import ssl
import threading
from typing import Any

import pytest
import trustme

import flowno
from flowno import BusyResourceError, ClosedResourceError, FlownoError, TaskHandle, TruncatedStreamError, spawn
from flowno.core.event_loop.selectors import TLSSocketHandle
from tests.support.loopback import LARGE, receive
from tests.support.tls import TLSEnds, client, echo, establish, tls_peer

pytestmark = pytest.mark.usefixtures("backend")


def test_a_stream_that_is_cut_off_is_no_end_of_stream(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    def cut_off(tls: ssl.SSLSocket) -> None:
        tls.sendall(b"half a mess")
        system_socket.socket(fileno=tls.detach()).close()

    def say_goodbye(tls: ssl.SSLSocket) -> None:
        tls.sendall(b"all of it")
        tls.unwrap()

    async def main(address: tuple[str, int]) -> bytes:
        with client(client_context) as handle:
            await flowno.connect(handle, address)
            received = b""
            while data := await handle.recv(100):
                received += data
            assert await handle.recv(100) == b""
            return received

    with tls_peer(server_context, say_goodbye) as address:
        assert flowno.run(main(address)) == b"all of it"
    with tls_peer(server_context, cut_off) as address, pytest.raises(ssl.SSLEOFError):
        flowno.run(main(address))


def test_an_operation_on_a_closed_handle_says_so(client_context: ssl.SSLContext) -> None:
    async def main() -> None:
        handle = client(client_context)
        handle.close()
        handle.close()
        for operation in (handle.recv(1), handle.send(b"x"), handle.sendAll(b"x"), handle.recv_into(bytearray(1))):
            with pytest.raises(ClosedResourceError):
                await operation

    flowno.run(main())


def test_closing_from_another_thread_leaves_tls_to_the_thread_of_the_loop(
    server_context: ssl.SSLContext, authority: trustme.CA
) -> None:
    """OpenSSL's objects are not made for two threads at once."""
    goodbyes: list[int] = []

    class Object(ssl.SSLObject):
        def unwrap(self) -> None:
            goodbyes.append(threading.get_ident())
            super().unwrap()

    context = ssl.create_default_context()
    context.sslobject_class = Object
    authority.configure_trust(context)
    waits = threading.Event()

    async def main(address: tuple[str, int]) -> None:
        with client(context) as handle:
            await flowno.connect(handle, address)
            reader = await spawn(handle.recv(1))

            def close() -> None:
                assert waits.wait(20)
                handle.close()

            closer = threading.Thread(target=close)
            closer.start()
            waits.set()
            with pytest.raises(ClosedResourceError):
                await reader.join()
            closer.join()

    with tls_peer(server_context, echo) as address:
        flowno.run(main(address))
    assert goodbyes == [threading.get_ident()]


def raw_end(handle: TLSSocketHandle) -> None:
    """End the connection below TLS: no close_notify."""
    handle.socket.shutdown(system_socket.SHUT_WR)


async def begin_to_send(handle: TLSSocketHandle) -> int:
    """Cancel a send that is larger than any buffer; how many bytes are on their way, in records to be finished."""
    sender = await spawn(handle.sendAll(bytes(LARGE)))
    await sender.cancel()
    return handle.bytes_sent


def test_a_truncated_stream_is_an_error_each_time(tls_ends: TLSEnds) -> None:
    async def main() -> None:
        with tls_ends() as (one, other):
            await establish(one, other)
            await other.sendAll(b"half a mess")
            raw_end(other)
            assert await one.recv(100) == b"half a mess"
            for _ in range(2):
                with pytest.raises(TruncatedStreamError, match=r"without a close_notify.*require_close_notify=False"):
                    await one.recv(100)
                with pytest.raises(FlownoError):
                    await one.recv_into(bytearray(100))
            await one.sendAll(b"still open in the other direction")
            assert await other.recv(100) == b"still open in the other direction"

    flowno.run(main())


def test_a_peer_that_never_sends_a_close_notify_can_be_put_up_with(tls_ends: TLSEnds) -> None:
    async def main() -> None:
        with tls_ends(require_close_notify=False) as (one, other):
            await establish(one, other)
            await other.sendAll(b"all")
            raw_end(other)
            assert await one.recv(100) == b"all"
            assert await one.recv(100) == b""
            assert await one.recv_into(bytearray(100)) == 0
            await one.sendAll(b"answer")
            assert await other.recv(100) == b"answer"

    flowno.run(main())


def test_accepted_connections_are_as_patient_as_their_listener(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def main() -> None:
        with (
            TLSSocketHandle(system_socket.socket(), server_context, None, require_close_notify=False) as listener,
            client(client_context) as one,
        ):
            listener.bind(("localhost", 0))
            listener.listen()
            connecting = await spawn(flowno.connect(one, ("localhost", listener.getsockname()[1])))
            other, _ = await listener.accept()
            with other:
                await other.do_handshake()
                await connecting.join()
                raw_end(one)
                assert await other.recv(1) == b""

    flowno.run(main())


@pytest.mark.not_under_faults(reason="TLS says goodbye, or why it fails, only as far as the socket takes it at once")
@pytest.mark.parametrize("how", ["send_eof", "shutdown"])
def test_a_direction_ends_while_the_other_goes_on(tls_ends: TLSEnds, how: str) -> None:
    async def main() -> None:
        with tls_ends() as (one, other):
            await establish(one, other)
            for part in (b"sent", b"before", b"the end"):
                await other.sendAll(part)  # is there, in records of their own, when the other direction ends
            assert await one.recv(2) == b"se"
            for _ in range(2):
                if how == "send_eof":
                    await one.send_eof()
                else:
                    one.shutdown(system_socket.SHUT_WR)
            assert await other.recv(9) == b""
            assert await other.recv(9) == b""
            await other.sendAll(b", and after")
            expected = b"ntbeforethe end, and after"
            assert await receive(one, len(expected)) == expected
            with pytest.raises(ssl.SSLError):
                await one.sendAll(b"x")
            await other.send_eof()
            assert await one.recv(9) == b""

    flowno.run(main())


@pytest.mark.not_under_faults(reason="it counts turns of the loop, or what is done in one of them")
@pytest.mark.skipif(
    not hasattr(system_socket, "AF_UNIX"),
    reason="by TCP, as socketpairs are here, there is room again at any moment",
)
def test_an_end_that_does_not_fit_is_waited_for_and_never_cut_off(tls_ends: TLSEnds) -> None:
    async def main() -> None:
        with tls_ends() as (one, other):
            await establish(one, other)
            sent = await begin_to_send(one)
            with pytest.raises(BlockingIOError, match="await send_eof"):
                one.shutdown(system_socket.SHUT_WR)
            ending = await spawn(one.send_eof())
            with pytest.raises(BusyResourceError):
                await one.send_eof()
            assert await receive(other, LARGE) == bytes(sent)
            await ending.join()

    flowno.run(main())


@pytest.mark.not_under_faults(reason="it counts on what the socket takes and gives at once")
def test_closing_takes_what_is_unread_however_much_so_that_the_peer_is_not_reset(tls_ends: TLSEnds) -> None:
    async def main() -> None:
        with tls_ends() as (one, other):
            await establish(one, other)
            await other.sendAll(bytes(100_000))
            one.close()
            assert await other.recv(1) == b""
            assert other.socket.recv(1) == b""

    flowno.run(main())


@pytest.mark.not_under_faults(reason="TLS says goodbye, or why it fails, only as far as the socket takes it at once")
def test_closing_says_so_and_drops_nothing_of_what_was_sent(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def main(address: tuple[str, int]) -> None:
        with client(client_context) as handle:
            await flowno.connect(handle, address)
            await handle.sendAll(b"the last word")  # with the session tickets of the server unread

    received = []

    def collect(tls: ssl.SSLSocket) -> None:
        while data := tls.recv(65536):
            received.append(data)
        received.append(b"the end")

    with tls_peer(server_context, collect) as address:
        flowno.run(main(address))
    assert received == [b"the last word", b"the end"]


def test_aclose_waits_for_the_peer_and_drops_what_it_sends(tls_ends: TLSEnds) -> None:
    async def main() -> None:
        with tls_ends() as (one, other):
            await establish(one, other)
            await other.sendAll(b"not read")
            closing = await spawn(one.aclose())
            assert await other.recv(9) == b""
            await other.sendAll(bytes(100_000))
            assert not closing.is_finished
            await other.aclose()
            await closing.join()
            assert one.fileno() == other.fileno() == -1
            await one.aclose()
            with pytest.raises(ClosedResourceError):
                await one.recv(1)

    flowno.run(main())


def test_aclose_finishes_what_a_cancelled_send_has_begun(tls_ends: TLSEnds) -> None:
    async def main() -> None:
        with tls_ends() as (one, other):
            await establish(one, other)
            sent = await begin_to_send(one)
            closing = await spawn(one.aclose())
            assert await receive(other, LARGE) == bytes(sent)
            await other.aclose()
            await closing.join()

    flowno.run(main())


def test_after_a_cancelled_send_an_empty_one_sends_its_records(tls_ends: TLSEnds) -> None:
    async def main() -> None:
        with tls_ends() as (one, other):
            await establish(one, other)
            sent = await begin_to_send(one)
            reader = await spawn(receive(other, sent))
            await one.sendAll(b"")
            one.socket.shutdown(system_socket.SHUT_WR)  # what is not with the socket by now never comes
            assert await reader.join() == bytes(sent)

    flowno.run(main())


def test_aclose_has_a_time_limit(tls_ends: TLSEnds) -> None:
    async def main() -> None:
        with tls_ends() as (one, other):
            await establish(one, other)
            assert one.shutdown_timeout == 30
            one.shutdown_timeout = 0.02
            await one.aclose()
            assert one.fileno() == -1
            assert await other.recv(1) == b""

    flowno.run(main())


@pytest.mark.not_under_faults(reason="TLS says goodbye, or why it fails, only as far as the socket takes it at once")
def test_a_cancelled_aclose_closes_at_once(tls_ends: TLSEnds) -> None:
    async def main() -> None:
        with tls_ends() as (one, other):
            await establish(one, other)
            closing = await spawn(one.aclose())
            await closing.cancel()
            assert closing.is_cancelled
            assert one.fileno() == -1
            assert await other.recv(1) == b""

    flowno.run(main())


@pytest.mark.parametrize("state", ["new", "in the handshake", "in use", "cut off", "reset"])
def test_aclose_closes_whatever_the_state(tls_ends: TLSEnds, state: str) -> None:
    async def main() -> None:
        with tls_ends() as (one, other):
            user: TaskHandle[Any] | None = None
            if state == "in the handshake":
                user = await spawn(one.do_handshake())
            elif state != "new":
                await establish(one, other)
            if state == "in use":
                user = await spawn(one.recv(1))
            elif state == "cut off":
                raw_end(other)
            elif state == "reset":
                await one.sendAll(b"never read")
                other.socket.close()
            await one.aclose()
            assert one.fileno() == -1
            if user is not None:
                with pytest.raises(ClosedResourceError):
                    await user.join()

    flowno.run(main())


def test_an_aborted_handle_says_no_goodbye(tls_ends: TLSEnds) -> None:
    async def main() -> None:
        with tls_ends() as (one, other):
            await establish(one, other)
            await one.sendAll(b"half of")
            one.abort()
            assert one.fileno() == -1
            assert await other.recv(100) == b"half of"
            with pytest.raises((TruncatedStreamError, ConnectionResetError)):
                await other.recv(100)

    flowno.run(main())
