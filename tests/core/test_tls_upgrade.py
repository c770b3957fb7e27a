"""TLS on a connection that has talked without it, back again, and inside of TLS."""

import socket as system_socket
import ssl
from collections.abc import Awaitable, Callable

import pytest

import flowno
from flowno import BusyResourceError, ClosedResourceError, SocketHandle, TruncatedStreamError, spawn, start_tls
from flowno.core.event_loop.selectors import TLSSocketHandle
from tests.support.loopback import LARGE, pair, receive

pytestmark = pytest.mark.usefixtures("backend")


#: Has TLS begin on both ends of a connection, of which the first is the client.
Upgrade = Callable[[SocketHandle, SocketHandle], Awaitable[tuple[TLSSocketHandle, TLSSocketHandle]]]


@pytest.fixture
def upgrade(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> Upgrade:
    async def upgraded(one: SocketHandle, other: SocketHandle) -> tuple[TLSSocketHandle, TLSSocketHandle]:
        server = await spawn(start_tls(other, server_context, server_side=True))
        return await start_tls(one, client_context, server_hostname="localhost"), await server.join()

    return upgraded


async def say(sender: SocketHandle, receiver: SocketHandle, data: bytes) -> None:
    task = await spawn(sender.sendAll(data))
    assert await receive(receiver, len(data)) == data
    await task.join()


def test_a_plain_connection_goes_on_through_tls_and_back(upgrade: Upgrade) -> None:
    async def main() -> None:
        with pair() as (one, other):
            await say(one, other, b"EHLO\r\n")
            await say(other, one, b"STARTTLS\r\n")
            tls_one, tls_other = await upgrade(one, other)
            with tls_one, tls_other:
                assert tls_one.version() == "TLSv1.3"
                await say(tls_one, tls_other, b"secret")
                await say(tls_other, tls_one, bytes(200_000))
                other_end = await spawn(tls_other.unwrap())
                back_one, behind_one = await tls_one.unwrap()
                back_other, behind_other = await other_end.join()
                assert behind_one == behind_other == b""
                with back_one, back_other:
                    assert type(back_one) is SocketHandle
                    await say(back_one, back_other, b"plain")
                    await say(back_other, back_one, b"again")
                    again_one, again_other = await upgrade(back_one, back_other)
                    with again_one, again_other:
                        await say(again_one, again_other, b"secret again")

    flowno.run(main())


def test_a_handle_that_was_given_to_tls_counts_as_closed(upgrade: Upgrade) -> None:
    async def main() -> None:
        with pair() as (one, other):
            tls_one, tls_other = await upgrade(one, other)
            with tls_one, tls_other:
                for operation in (one.recv(1), one.sendAll(b"past TLS")):
                    with pytest.raises(ClosedResourceError):
                        await operation
                one.close()
                await say(tls_one, tls_other, b"not affected")
                other_end = await spawn(tls_other.unwrap())
                back, _ = await tls_one.unwrap()
                (await other_end.join())[0].close()
                with back:
                    with pytest.raises(ClosedResourceError):
                        await tls_one.recv(1)
                    tls_one.close()
                    assert back.fileno() >= 0

    flowno.run(main())


def test_bytes_that_were_received_with_the_answer_are_the_beginning_of_tls(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def main() -> None:
        with pair() as (one, other):
            await one.sendAll(b"STARTTLS\r\n")
            started = await spawn(start_tls(one, client_context, server_hostname="localhost"))
            received = b""
            while len(received) < 100:
                received += await other.recv(65536)
            command, received = received[:10], received[10:]
            assert command == b"STARTTLS\r\n"
            tls_other = await start_tls(other, server_context, server_side=True, received=received)
            with await started.join() as tls_one, tls_other:
                await say(tls_one, tls_other, b"secret")

    flowno.run(main())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_bytes_behind_the_end_of_tls_are_not_lost(upgrade: Upgrade) -> None:
    async def main() -> None:
        with pair() as (one, other):
            tls_one, tls_other = await upgrade(one, other)
            with tls_one, tls_other:
                await tls_one.send_eof()
                assert await tls_other.recv(9) == b""
                back_other, behind = await tls_other.unwrap()
                assert behind == b""
                with back_other:
                    await back_other.sendAll(b"220 plain again\r\n")
                back_one, behind = await tls_one.unwrap()
                with back_one:  # by TCP, some may come later
                    assert behind + await receive(back_one, 100) == b"220 plain again\r\n"

    flowno.run(main())


def test_data_that_was_not_received_stands_in_the_way_of_unwrap(upgrade: Upgrade) -> None:
    async def main() -> None:
        with pair() as (one, other):
            tls_one, tls_other = await upgrade(one, other)
            with tls_one, tls_other:
                await tls_other.sendAll(b"read me")
                with pytest.raises(ssl.SSLError, match=r"sent data that was not received yet.*unwrap then"):
                    await tls_one.unwrap()
                assert await tls_one.recv(9) == b"read me"
                ending = await spawn(tls_other.unwrap())
                assert await tls_one.recv(9) == b""
                back, _ = await tls_one.unwrap()
                back.close()
                (await ending.join())[0].close()

    flowno.run(main())


def test_unwrap_needs_a_peer_that_ends_tls_too(upgrade: Upgrade) -> None:
    async def main() -> None:
        for what in ("time", "cancelled", "closed"):
            with pair() as (one, other):
                tls_one, tls_other = await upgrade(one, other)
                with tls_one, tls_other:
                    tls_one.shutdown_timeout = 0.02 if what == "time" else 20
                    ending = await spawn(tls_one.unwrap())
                    with pytest.raises(BusyResourceError):
                        await tls_one.recv(1)
                    if what == "time":
                        with pytest.raises(TimeoutError, match=r"TLS unwrap of .* shutdown_timeout, 0.02 s"):
                            await ending.join()
                    elif what == "cancelled":
                        await ending.cancel()
                    else:
                        tls_other.socket.shutdown(system_socket.SHUT_WR)
                        with pytest.raises(TruncatedStreamError, match="closed the connection during the TLS unwrap"):
                            await ending.join()
                    assert (tls_one.fileno() == -1) == (what != "closed")

    flowno.run(main())


def test_tls_runs_inside_of_tls(upgrade: Upgrade) -> None:
    data = bytes(range(256)) * 8000

    async def main() -> None:
        with pair() as (one, other):
            outer_one, outer_other = await upgrade(one, other)
            inner_one, inner_other = await upgrade(outer_one, outer_other)
            with inner_one, inner_other:
                assert inner_one.getsockname() == outer_one.socket.getsockname()
                assert inner_one.type == system_socket.SOCK_STREAM
                there = await spawn(inner_one.sendAll(data))  # full duplex, and more than any buffer takes
                back = await spawn(inner_other.sendAll(data))
                received = await spawn(receive(inner_one, len(data)))
                assert await receive(inner_other, len(data)) == data
                assert await received.join() == data
                await there.join()
                await back.join()
                with pytest.raises(ClosedResourceError):
                    await outer_one.recv(1)
                other_end = await spawn(inner_other.unwrap())
                back_one, behind = await inner_one.unwrap()
                back_other, _ = await other_end.join()
                assert behind == b""
                assert back_one is outer_one
                await say(back_one, back_other, b"one layer less")
                await back_one.send_eof()
                assert await back_other.recv(9) == b""
                back_one.close()
                back_other.close()

    flowno.run(main())


@pytest.mark.not_under_faults(reason="TLS says goodbye, or why it fails, only as far as the socket takes it at once")
def test_tls_inside_of_tls_closes_both(upgrade: Upgrade) -> None:
    async def main() -> None:
        with pair() as (one, other):
            outer_one, outer_other = await upgrade(one, other)
            inner_one, inner_other = await upgrade(outer_one, outer_other)
            await inner_one.sendAll(b"the last word")
            inner_one.close()
            assert outer_one.fileno() == -1
            assert await receive(inner_other, 100) == b"the last word"
            await inner_other.aclose()
            assert outer_other.fileno() == -1

    flowno.run(main())


def test_a_cut_off_outside_is_one_inside(upgrade: Upgrade) -> None:
    async def main() -> None:
        with pair() as (one, other):
            outer_one, outer_other = await upgrade(one, other)
            inner_one, inner_other = await upgrade(outer_one, outer_other)
            with inner_one, inner_other:
                await inner_one.sendAll(b"half")
                one.socket.shutdown(system_socket.SHUT_WR)
                assert await inner_other.recv(9) == b"half"
                for _ in range(2):
                    with pytest.raises(TruncatedStreamError):
                        await inner_other.recv(9)

    flowno.run(main())


def test_a_cancelled_send_inside_of_tls_is_continued(upgrade: Upgrade) -> None:
    async def main() -> None:
        with pair() as (one, other):
            outer = await upgrade(one, other)
            inner_one, inner_other = await upgrade(*outer)
            with inner_one, inner_other:
                sender = await spawn(inner_one.sendAll(b"a" * LARGE))
                await sender.cancel()
                sent = inner_one.bytes_sent
                assert 0 < sent < LARGE
                sender = await spawn(inner_one.sendAll(b"end"))
                assert await receive(inner_other, sent + 3) == b"a" * sent + b"end"
                await sender.join()

    flowno.run(main())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_what_start_tls_cannot_do_it_does_not_begin(client_context: ssl.SSLContext) -> None:
    async def main() -> None:
        with pair() as (one, other):
            with pytest.raises(TypeError, match="start_tls.. takes a SocketHandle, not 'a name'"):
                await start_tls("a name", client_context)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="SSLContext"):
                await start_tls(one, None)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="server_hostname"):
                await start_tls(one, client_context)
            reader = await spawn(one.recv(9))
            with pytest.raises(BusyResourceError):
                await start_tls(one, client_context, server_hostname="localhost")
            await other.sendAll(b"plain")
            assert await reader.join() == b"plain"
            await other.sendAll(b"still")
            assert await one.recv(9) == b"still"
            one.close()
            with pytest.raises(ClosedResourceError):
                await start_tls(one, client_context, server_hostname="localhost")

    flowno.run(main())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_start_tls_that_fails_or_is_cancelled_closes_the_connection(client_context: ssl.SSLContext) -> None:
    async def main() -> None:
        for what in ("time", "cancelled", "refused"):
            with pair() as (one, other):
                seconds = 0.02 if what == "time" else 20
                starting = await spawn(
                    start_tls(one, client_context, server_hostname="localhost", handshake_timeout=seconds)
                )
                if what == "cancelled":
                    await starting.cancel()
                elif what == "refused":
                    await other.sendAll(b"454 TLS not available\r\n")
                    with pytest.raises(ssl.SSLError, match="does not speak TLS"):
                        await starting.join()
                else:
                    with pytest.raises(TimeoutError):
                        await starting.join()
                while await other.recv(65536):
                    pass
                assert one.fileno() == -1

    flowno.run(main())
