"""Datagrams and messages: recvfrom, recvmsg, sendto, sendmsg."""

import errno
import inspect
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

import flowno
from flowno import BusyResourceError, ClosedResourceError, EventLoop, SocketHandle, sleep, spawn
from flowno.core.event_loop.backend import SystemWorld
from flowno.core.event_loop.commands import SocketRecvCommand
from tests.support.counting_selector import CountingSelector
from tests.support.fairness import another_task
from tests.support.loopback import fill, pair

pytestmark = pytest.mark.usefixtures("backend")

has_messages = hasattr(socket.socket, "recvmsg")
needs_messages = pytest.mark.skipif(not has_messages, reason="this platform has no recvmsg")

IPV4, IPV6 = ("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)


@contextmanager
def udp(host: str = "127.0.0.1", family: int = socket.AF_INET) -> Iterator[tuple[SocketHandle, SocketHandle]]:
    """Two bound UDP handles."""
    with flowno.socket(family, socket.SOCK_DGRAM) as one, flowno.socket(family, socket.SOCK_DGRAM) as other:
        for handle in (one, other):
            try:
                handle.bind((host, 0))
            except OSError as error:
                pytest.skip(f"this machine has no {host}: {error}")
        yield one, other


#: Every way to receive, each giving the bytes and the address.


async def by_recvfrom(handle: SocketHandle) -> tuple[bytes, Any]:
    return await handle.recvfrom(100)


async def by_recvfrom_into(handle: SocketHandle) -> tuple[bytes, Any]:
    buffer = bytearray(100)
    size, address = await handle.recvfrom_into(buffer)
    return bytes(buffer[:size]), address


async def by_recvmsg(handle: SocketHandle) -> tuple[bytes, Any]:
    data, ancillary, flags, address = await handle.recvmsg(100)
    assert (ancillary, flags & ~getattr(socket, "MSG_EOR", 0)) == ([], 0)
    return data, address


async def by_recvmsg_into(handle: SocketHandle) -> tuple[bytes, Any]:
    first, second = bytearray(2), bytearray(98)
    size, ancillary, _, address = await handle.recvmsg_into(iter([first, second]))
    assert ancillary == []
    return bytes(first + second)[:size], address


Receive = Callable[[SocketHandle], Any]
RECEIVES: list[Any] = [
    pytest.param(by_recvfrom, id="recvfrom"),
    pytest.param(by_recvfrom_into, id="recvfrom_into"),
    pytest.param(by_recvmsg, id="recvmsg", marks=needs_messages),
    pytest.param(by_recvmsg_into, id="recvmsg_into", marks=needs_messages),
]
#: Every way to send ``b"abcd"`` to an address.
Send = Callable[[SocketHandle, Any], Any]
SENDS: list[Any] = [
    pytest.param(lambda handle, address: handle.sendto(b"abcd", address), id="sendto"),
    pytest.param(lambda handle, address: handle.sendto(memoryview(b"abcd"), 0, address), id="sendto with flags"),
    pytest.param(lambda handle, address: handle.sendmsg([b"ab", b"", bytearray(b"cd")], (), 0, address), id="sendmsg"),
]


@pytest.mark.parametrize("receive", RECEIVES)
@pytest.mark.parametrize("send", SENDS)
@pytest.mark.parametrize(("host", "family"), [IPV4, IPV6], ids=["IPv4", "IPv6"])
def test_a_datagram_comes_with_the_address_of_its_sender(host: str, family: int, send: Send, receive: Receive) -> None:
    async def root() -> None:
        with udp(host, family) as (one, other):
            assert await send(one, other.getsockname()) == 4
            assert await receive(other) == (b"abcd", one.getsockname())
            receiver = await spawn(receive(other))
            await sleep(0)
            assert not receiver.is_finished
            await send(one, other.getsockname()[:2])
            assert await receiver.join() == (b"abcd", one.getsockname())

    flowno.run(root())


@pytest.mark.parametrize("receive", RECEIVES)
def test_the_boundaries_of_datagrams_are_kept_and_empty_ones_come_through(receive: Receive) -> None:
    async def root() -> None:
        with udp() as (one, other):
            for text in (b"first", b"", b"third"):
                assert await one.sendto(text, other.getsockname()) == len(text)
            assert [(await receive(other))[0] for _ in range(3)] == [b"first", b"", b"third"]

    flowno.run(root())


def test_a_datagram_can_be_looked_at_before_it_is_taken() -> None:
    async def root() -> None:
        with udp() as (one, other):
            await one.sendto(b"abc", other.getsockname())
            assert (await other.recvfrom(100, socket.MSG_PEEK))[0] == b"abc"
            buffer = bytearray(5)
            assert (await other.recvfrom_into(buffer, 3, socket.MSG_PEEK))[0] == 3
            assert buffer == b"abc\0\0"
            assert (await other.recvfrom(100))[0] == b"abc"

    flowno.run(root())


@needs_messages
def test_a_datagram_that_was_cut_is_said_to_be() -> None:
    async def root() -> None:
        with udp() as (one, other):
            await one.sendto(b"abcdef", other.getsockname())
            data, _, flags, _ = await other.recvmsg(3)
            assert (data, flags & socket.MSG_TRUNC) == (b"abc", socket.MSG_TRUNC)

    flowno.run(root())


@needs_messages
@pytest.mark.skipif(not hasattr(socket, "IPV6_RECVPKTINFO"), reason="this platform does not have IPV6_RECVPKTINFO")
def test_ancillary_data_is_sent_and_received() -> None:
    """The hop limit of a datagram, and the address that it was sent to, RFC 3542."""
    hops = (7).to_bytes(4, sys.byteorder)

    async def root() -> None:
        with udp(*IPV6) as (one, other):
            other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            along = [(socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT, hops)]
            assert await one.sendmsg([b"x"], along, 0, other.getsockname()) == 1
            data, ancillary, _, _ = await other.recvmsg(100, 200)
            received = {kind: content for level, kind, content in ancillary if level == socket.IPPROTO_IPV6}
            assert data == b"x"
            assert received[socket.IPV6_HOPLIMIT] == hops
            assert received[socket.IPV6_PKTINFO][:16] == socket.inet_pton(socket.AF_INET6, "::1")

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@needs_messages
def test_messages_on_a_stream_carry_many_buffers() -> None:
    async def root() -> None:
        with pair() as (one, other):
            assert await one.sendmsg(iter([bytes([n]) for n in range(100)])) == 100
            assert (await other.recvmsg(200))[0] == bytes(range(100))
            await other.sendmsg([])
            one.shutdown(socket.SHUT_WR)
            assert (await other.recvmsg(200))[0] == b""

    flowno.run(root())


def test_sendmsg_needs_no_system_call_of_that_name_unless_something_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""

    class Plain(socket.socket):
        def __getattribute__(self, name: str) -> Any:
            if name in ("sendmsg", "recvmsg", "recvmsg_into"):
                raise AttributeError(name)
            return super().__getattribute__(name)

    async def root() -> None:
        with SocketHandle(Plain(socket.AF_INET, socket.SOCK_DGRAM)) as one, udp() as (other, _):
            assert await one.sendmsg([b"ab", memoryview(b"cd")], (), 0, other.getsockname()) == 4
            assert (await other.recvfrom(9))[0] == b"abcd"
            await flowno.connect(one, other.getsockname())
            assert await one.sendmsg(iter([b"ef", b"gh"])) == 4
            assert (await other.recvfrom(9))[0] == b"efgh"
            for refused in (
                lambda: one.sendmsg([b"x"], [(0, 0, b"")]),
                lambda: one.recvmsg(9),
                lambda: one.recvmsg_into([bytearray(9)]),
            ):
                with pytest.raises(OSError, match="has no (send|recv)msg") as caught:
                    await refused()
                assert caught.value.errno == errno.EOPNOTSUPP

    flowno.run(root())


# --------------------------------------------------------------------------------------------------- waiting for room


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_a_message_waits_for_room_and_is_sent_whole() -> None:
    """Also one whose buffers come from an iterator, which is gone after the first try."""

    async def root() -> None:
        with pair(4096) as (one, other):
            filled = fill(one)
            sender = await spawn(one.sendmsg(iter([b"ab", b"cd"])))
            await sleep(0)
            assert not sender.is_finished
            received = b""
            while len(received) < filled + 4:
                received += await other.recv(1 << 20)
            assert await sender.join() == 4
            assert received[filled:] == b"abcd"

    flowno.run(root())


# ----------------------------------------------------------------------------------------------------------- directions


@pytest.mark.parametrize("receive", RECEIVES)
def test_the_read_side_is_owned(receive: Receive) -> None:
    async def root() -> None:
        with udp() as (one, other):
            first = await spawn(receive(other))
            for second in (receive(other), other.recv(9)):
                with pytest.raises(BusyResourceError, match="receiving"):
                    await second
            await one.sendto(b"x", other.getsockname())
            assert (await first.join())[0] == b"x"
            first = await spawn(other.recv(9))
            with pytest.raises(BusyResourceError, match="receiving"):
                await receive(other)
            await first.cancel()

    flowno.run(root())


def test_the_write_side_is_owned() -> None:
    async def root() -> None:
        with pair(4096) as (one, _):
            fill(one)
            address = "nowhere"
            for first in (one.sendmsg([b"x"]), one.send(b"x")):
                task = await spawn(first)
                for second in (one.sendmsg([b"y"]), one.sendto(b"y", address), one.sendAll(b"y")):
                    with pytest.raises(BusyResourceError, match="sending"):
                        await second
                await task.cancel()

    flowno.run(root())


@pytest.mark.parametrize("receive", RECEIVES)
def test_a_cancelled_receive_loses_no_datagram(receive: Receive) -> None:
    async def root() -> None:
        with udp() as (one, other):
            task = await spawn(receive(other))
            assert await task.cancel() is None
            task = await spawn(receive(other))
            await one.sendto(b"x", other.getsockname())
            await sleep(0)
            result = await task.cancel()
            assert (result or await receive(other))[0] == b"x"

    flowno.run(root())


@pytest.mark.parametrize("receive", RECEIVES)
def test_a_handle_closed_under_a_receive_raises_in_it(receive: Receive) -> None:
    async def root() -> None:
        with udp() as (one, _):
            task = await spawn(receive(one))
            one.close()
            with pytest.raises(ClosedResourceError):
                await task.join()
            for operation in (receive(one), one.sendto(b"x", ("127.0.0.1", 1)), one.sendmsg([b"x"])):
                with pytest.raises(ClosedResourceError):
                    await operation

    flowno.run(root())


def test_no_flood_of_datagrams_keeps_the_other_tasks_from_running() -> None:
    async def root() -> None:
        with udp() as (one, other):
            async with another_task() as turns:
                await one.sendto(b"x", other.getsockname())
                for _ in range(300):
                    await other.recvfrom(9, socket.MSG_PEEK)
                assert turns.taken >= 300 // 64
                before = turns.taken
                for _ in range(300):
                    await one.sendto(b"x", other.getsockname())
                assert turns.taken - before >= 300 // 64

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it counts calls")
def test_a_datagram_that_is_there_costs_no_question_to_the_selector() -> None:
    selector = CountingSelector()

    async def root() -> None:
        with udp() as (one, other):
            for _ in range(10):
                await one.sendto(b"x", other.getsockname())
                assert (await other.recvfrom(9))[0] == b"x"

    with EventLoop(selector) as loop:
        loop.run_until_complete(root(), join=True)
    assert selector.calls["register"] == 1, "the waker only"
    selector.inner.close()


# ---------------------------------------------------------------------------------------------------------- addresses


class Names(SystemWorld):
    """A resolver that knows one name, and in which thread it was asked."""

    def __init__(self, number: tuple[Any, ...]) -> None:
        self.number = number
        self.threads: list[threading.Thread] = []

    def getaddrinfo(self, *args: Any, **kwargs: Any) -> Sequence[Any]:  # type: ignore[override]
        self.threads.append(threading.current_thread())
        if args[0] != "known.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", self.number)]


@pytest.mark.parametrize("send", SENDS)
def test_a_name_is_resolved_off_the_loop_and_a_number_not_at_all(send: Send) -> None:
    selector = CountingSelector()
    selector.world = names = Names(())

    async def root() -> None:
        with udp() as (one, other):
            await send(one, other.getsockname())
            assert names.threads == []
            names.number = other.getsockname()
            await send(one, ("known.invalid", other.getsockname()[1]))
            assert [thread is threading.current_thread() for thread in names.threads] == [False]
            assert [(await other.recvfrom(9))[0] for _ in range(2)] == [b"abcd", b"abcd"]
            with pytest.raises(socket.gaierror, match=r"unknown\.invalid"):
                await send(one, ("unknown.invalid", 1))
            await send(one, other.getsockname())

    with EventLoop(selector) as loop:
        loop.run_until_complete(root(), join=True)
    selector.inner.close()


@pytest.mark.parametrize("send", SENDS)
def test_what_can_be_no_name_is_a_value_error_that_names_it(send: Send) -> None:
    async def root() -> None:
        with udp() as (one, other):
            with pytest.raises(ValueError, match=r"'a{70}\.com' cannot be the name of a host") as caught:
                await send(one, ("a" * 70 + ".com", 80))
            assert type(caught.value) is ValueError
            await send(one, other.getsockname())

    flowno.run(root())


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (("known.invalid", 5), ("fe80::1", 5, 0, 3)),
        (("known.invalid", 5, 0, 4), ("fe80::1", 5, 0, 4)),
        (("fe80::1", 5, 0, 4), ("fe80::1", 5, 0, 4)),
    ],
    ids=["of the resolver", "given", "of a number"],
)
def test_the_scope_of_an_ipv6_address_is_kept(address: Any, expected: Any) -> None:
    sent: list[Any] = []

    class Recorder(socket.socket):
        def sendto(self, data: Any, *args: Any) -> int:
            sent.append(args[-1])
            return len(data)

    async def root() -> None:
        try:
            sock = Recorder(socket.AF_INET6, socket.SOCK_DGRAM)
        except OSError as error:
            pytest.skip(f"this machine has no IPv6: {error}")
        with SocketHandle(sock) as handle:
            await handle.sendto(b"x", address)

    selector = CountingSelector()
    selector.world = Names(("fe80::1", 5, 0, 3))
    with EventLoop(selector) as loop:
        loop.run_until_complete(root(), join=True)
    selector.inner.close()
    assert sent == [expected]


def test_broadcast_needs_no_resolver() -> None:
    selector = CountingSelector()
    selector.world = names = Names(())

    async def root() -> None:
        with udp() as (one, _):
            with pytest.raises(OSError, match="<broadcast>") as caught:  # SO_BROADCAST is not set
                await one.sendto(b"x", ("<broadcast>", 9))
            assert not isinstance(caught.value, socket.gaierror)

    with EventLoop(selector) as loop:
        loop.run_until_complete(root(), join=True)
    assert names.threads == []
    selector.inner.close()


# ----------------------------------------------------------------------------------------------------------- bad input


def test_a_datagram_that_is_too_long_is_refused_with_the_address() -> None:
    async def root() -> None:
        with udp() as (one, other):
            port = other.getsockname()[1]
            with pytest.raises(OSError, match=str(port)) as caught:
                await one.sendto(bytes(70_000), other.getsockname())
            assert caught.value.errno in (errno.EMSGSIZE, getattr(errno, "WSAEMSGSIZE", errno.EMSGSIZE))
            await one.sendto(b"x", other.getsockname())
            assert (await other.recvfrom(9))[0] == b"x"

    flowno.run(root())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows tells it in its own time, Wine not at all")
def test_a_datagram_that_found_nobody_is_an_error_of_the_next_operation_and_the_socket_goes_on() -> None:
    async def root() -> None:
        with udp() as (one, other):
            gone = other.getsockname()
            other.close()
            await flowno.connect(one, gone)
            await one.send(b"x")
            with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
                await one.recvfrom(9)
            with udp() as (third, _):
                await flowno.connect(one, third.getsockname())
                await one.send(b"y")
                assert await third.recvfrom(9) == (b"y", one.getsockname())

    flowno.run(root())


@pytest.mark.parametrize("args", [(), (0, ("127.0.0.1", 1), 3)], ids=["none", "too many"])
def test_sendto_takes_two_or_three_arguments(args: Any) -> None:
    with udp() as (one, _), pytest.raises(TypeError, match="sendto"):
        one.sendto(b"x", *args)


@pytest.mark.parametrize(
    "operation",
    [
        lambda handle: handle.recvfrom("1"),
        lambda handle: handle.recvfrom_into(b"read only"),
        lambda handle: handle.sendto("text", ("127.0.0.1", 1)),
        lambda handle: handle.sendto(b"x", "no address"),
        lambda handle: handle.sendmsg(["text"]),
    ],
    ids=["size", "buffer", "text", "address", "texts"],
)
def test_a_wrong_type_is_a_type_error_and_the_handle_stays_usable(operation: Any) -> None:
    async def root() -> None:
        with udp() as (one, other):
            await flowno.connect(one, other.getsockname())
            with pytest.raises(TypeError):
                await operation(one)
            await other.sendto(b"x", one.getsockname())
            assert (await one.recvfrom(9))[0] == b"x"

    flowno.run(root())


@pytest.mark.not_in_debug_mode(reason="operations are native coroutines")
def test_the_operations_are_generator_based_and_one_frame_deep() -> None:
    async def root() -> None:
        with udp() as (one, _):
            coroutine: Any = one.recvfrom(9)
            assert inspect.isgenerator(coroutine)
            assert inspect.isawaitable(coroutine)
            assert type(coroutine.send(None)) is SocketRecvCommand
            assert coroutine.gi_yieldfrom is None
            coroutine.close()

    flowno.run(root())
