"""What instruments are told of servers, connections and streams."""

import ssl
from collections.abc import Awaitable, Callable

import pytest

import flowno
from flowno import Stream, open_connection, serve_tcp, spawn
from tests.support.instruments import Recorder
from tests.support.loopback import pair

pytestmark = pytest.mark.usefixtures("backend")


async def echo(stream: Stream) -> None:
    async for line in stream:
        await stream.write(line)


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize("through_tls", [False, True], ids=["plain", "tls"])
def test_of_a_server_accepts_handshakes_data_and_closes_are_told(
    through_tls: bool, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    server_tls = server_context if through_tls else None
    client_tls = client_context if through_tls else None

    async def main() -> None:
        with Recorder() as recorder:
            async with await serve_tcp(echo, "127.0.0.1", 0, tls=server_tls) as server:
                address = server.addresses[0]
                async with await open_connection(
                    *address, tls=client_tls, server_hostname="localhost" if through_tls else None
                ) as stream:
                    own = stream.get_extra_info("sockname")
                    await stream.write(b"Hello\n")
                    assert await stream.readline() == b"Hello\n"
        start, ready = recorder.only("on_socket_accept_start"), recorder.only("on_socket_accept_ready")
        assert start.socket_handle is ready.socket_handle is server.sockets[0]
        assert ready.peer_address == own
        assert ready.immediate
        assert recorder.only("on_socket_connect_ready").peer_address == address
        assert {done.peer_address for done in recorder.all("on_tls_handshake_complete")} == (
            {own, address} if through_tls else set()
        )
        assert [sent.data for sent in recorder.all("on_socket_send_data")] == [b"Hello\n"] * 2
        received = [got.data for got in recorder.all("on_socket_recv_data")]
        assert sorted(received) == [b"", b"Hello\n", b"Hello\n"]
        closed = [handle.peer_address for handle in recorder.all("on_socket_close")]
        assert sorted(closed, key=str) == sorted([own, address, None], key=str)

    flowno.run(main())


READS: dict[str, Callable[[Stream], Awaitable[object]]] = {
    "read": lambda stream: stream.read(6),
    "readexactly": lambda stream: stream.readexactly(6),
    "readline": lambda stream: stream.readline(),
    "readuntil": lambda stream: stream.readuntil((b"\n", b"\r")),
    "readinto": lambda stream: stream.readinto(bytearray(6)),
    "iteration": lambda stream: anext(stream),
}


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize("read", READS)
def test_a_stream_that_was_there_before_is_told_of(read: str) -> None:
    async def main() -> None:
        with pair() as (one, other):
            reader, writer = Stream(one), Stream(other)
            await writer.write(b"first\n")
            await READS[read](reader)
            with Recorder("on_socket") as recorder:
                task = await spawn(writer.writelines([b"sec", b"ond\n"]))
                await READS[read](reader)
                await task.join()
            assert recorder.only("on_socket_recv_data").data == b"second\n"[: 6 if read == "readinto" else 7]
            assert recorder.only("on_socket_send_data").data == b"second\n"

    flowno.run(main())


def test_a_file_that_the_system_sends_is_told_of_by_its_size() -> None:
    async def main() -> None:
        with pair() as (one, _), open(__file__, "rb") as file:
            with Recorder("on_socket_send") as recorder:
                sent = await one.sendfile(file, 0, 100)
            data = recorder.all("on_socket_send_data")
            assert sum(each.bytes_sent for each in data) == sent == 100
            assert b"".join(each.data for each in data) in (b"", file.seek(0) or file.read(100))

    flowno.run(main())
