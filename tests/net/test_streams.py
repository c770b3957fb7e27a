"""Streams: what a read returns and when, what stays in the stream, and how much is held at a time.

What is true of both runs on a plain connection and through TLS.
"""

import array
import asyncio
import errno
import os
import pickle
import random
import re
import socket
import ssl
import struct
import sys
import tracemalloc
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import flowno
from flowno import BusyResourceError, ClosedResourceError, SocketHandle, TaskCancelled, sleep, spawn
from flowno.core.event_loop.selectors import TLSSocketHandle
from flowno.core.event_loop.tls import TruncatedStreamError
from flowno.net import IncompleteReadError, LimitOverrunError, Stream
from flowno.net.extra_info import EXTRA_INFO
from tests.support import wine
from tests.support.loopback import LARGE, fill, pair, receive, reset, tcp_pair

pytestmark = pytest.mark.usefixtures("backend")

#: Two streams that are connected, closed at the end. Arguments are those of Stream().
Streams = Callable[..., AbstractAsyncContextManager[tuple[Stream, Stream]]]
#: The TLS settings of a client, and of the server that it trusts.
Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


@asynccontextmanager
async def plain_streams(**options: Any) -> AsyncIterator[tuple[Stream, Stream]]:
    with pair() as (one, other), closing(Stream(one, **options)) as first, closing(Stream(other, **options)) as second:
        yield first, second


@asynccontextmanager
async def tls_streams(contexts: Contexts, **options: Any) -> AsyncIterator[tuple[Stream, Stream]]:
    ends = socket.socketpair()
    with (
        TLSSocketHandle(ends[0], contexts[0], "localhost") as one,
        TLSSocketHandle(ends[1], contexts[1], None, server_side=True) as other,
    ):
        handshake = await spawn(one.do_handshake())
        await other.do_handshake()
        await handshake.join()
        yield Stream(one, **options), Stream(other, **options)


#: What only TLS knows of a connection.
OF_TLS = ("sslcontext", "ssl_object", "version", "alpn_protocol", "cipher", "peercert", "compression")


@pytest.fixture(scope="module")
def contexts(client_context: ssl.SSLContext, server_context: ssl.SSLContext) -> Contexts:
    return client_context, server_context


@pytest.fixture(params=["plain", "tls"])
def streams(request: pytest.FixtureRequest) -> Streams:
    return plain_streams if request.param == "plain" else partial(tls_streams, request.getfixturevalue("contexts"))


async def send(stream: Stream, *pieces: bytes, end: bool = False) -> None:
    """Write the pieces one by one, with turns of the loop between them, so that they come one by one."""
    for piece in pieces:
        await stream.write(piece)
        await sleep(0)
    if end:
        await stream.write_eof()


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


class DribblingSocket(socket.socket):
    """Gives no more than 100 bytes at a time, however many are there."""

    def recv(self, size: int, flags: int = 0) -> bytes:
        return super().recv(min(size, 100), flags)


# ---------------------------------------------------------------------------------------------------------------- lines


def test_lines_come_with_their_ends_the_last_one_as_it_is(streams: Streams) -> None:
    async def root() -> None:
        async with streams() as (one, other):
            sender = await spawn(send(one, b"first\n\nth", b"ird\nlast", end=True))
            assert [await other.readline() for _ in range(6)] == [b"first\n", b"\n", b"third\n", b"last", b"", b""]
            await sender.join()

    flowno.run(root())


def test_a_stream_is_an_iterator_over_its_lines(streams: Streams) -> None:
    async def root() -> None:
        async with streams() as (one, other):
            sender = await spawn(send(one, *bytewise(b"a\nbc\n\nd"), end=True))
            assert [line async for line in other] == [b"a\n", b"bc\n", b"\n", b"d"]
            assert [line async for line in other] == []
            await sender.join()

    flowno.run(root())


def test_a_loop_over_lines_can_be_left_and_the_rest_is_still_there(streams: Streams) -> None:
    async def root() -> None:
        async with streams() as (one, other):
            await one.write(b"header\n\nbody\n")
            async for line in other:
                if line == b"\n":
                    break
            assert await other.readexactly(4) == b"body"

    flowno.run(root())


def test_a_line_may_be_as_long_as_the_limit() -> None:
    async def root() -> None:
        async with plain_streams(limit=5) as (one, other):
            await one.write(b"12345\n12345\n")
            assert await other.readline() == b"12345\n"
            assert await anext(other) == b"12345\n"

    flowno.run(root())


@pytest.mark.parametrize("read", [Stream.readline, anext], ids=["readline", "anext"])
def test_a_line_above_the_limit_is_a_value_error_and_is_dropped_up_to_its_end(read: Callable[[Stream], Any]) -> None:
    async def root() -> None:
        async with plain_streams(limit=5) as (one, other):
            await one.write(b"ok\n123456\nnext\n")
            assert await read(other) == b"ok\n"
            with pytest.raises(ValueError, match="limit, 5 bytes"):
                await read(other)
            assert await read(other) == b"next\n"

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize("read", [Stream.readline, anext], ids=["readline", "anext"])
def test_a_line_above_the_limit_whose_end_has_not_come_is_dropped_as_far_as_it_has(
    read: Callable[[Stream], Any],
) -> None:
    async def root() -> None:
        async with plain_streams(limit=5) as (one, other):
            await one.write(b"1234567890")
            with pytest.raises(ValueError, match="limit is 5"):
                await read(other)
            await one.write(b"rest\n")
            assert await read(other) == b"rest\n"

    flowno.run(root())


# ----------------------------------------------------------------------------------------------------------- separators

# What is sent, the separators, what is read one by one, and what is left at the end.
SEPARATORS: list[tuple[bytes, Any, list[bytes], bytes]] = [
    (b"a\nb", b"\n", [b"a\n"], b"b"),
    (b"GET /\r\n\r\nbody", b"\r\n\r\n", [b"GET /\r\n\r\n"], b"body"),
    (b"\r\r\n\r\r\n\r\n", b"\r\n\r\n", [b"\r\r\n\r\r\n\r\n"], b""),
    (b"aaab", b"ab", [b"aaab"], b""),
    (b"one\r\ntwo\nthree", (b"\r\n", b"\n"), [b"one\r\n", b"two\n"], b"three"),
    (b"a\rb\r\nc", (b"\r\n", b"\r"), [b"a\r", b"b\r"], b"\nc"),
    (b"x-abcd-y", (b"abcd", b"bc"), [b"x-abc"], b"d-y"),  # the one that ends first, though it begins later
    (b"x-abcd-y", (b"abcd", b"cd"), [b"x-abcd"], b"-y"),  # both end there
    (b"1;2,3;", (b",", b";"), [b"1;", b"2,", b"3;"], b""),
    (b"a\0b", bytearray(b"\0"), [b"a\0"], b"b"),
    (b"a\0b\0", (memoryview(b"\0"), b"unseen"), [b"a\0", b"b\0"], b""),
    (b"x" * 1000 + b"\n" + b"y" * 3000 + b"\r\n", (b"\r\n", b"\n"), [b"x" * 1000 + b"\n", b"y" * 3000 + b"\r\n"], b""),
    (b"x" * 700 + b"-" * 300 + b"z", (b"-" * 300, b"z" * 9), [b"x" * 700 + b"-" * 300], b"z"),
]


@pytest.mark.parametrize("split", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize(("sent", "separator", "expected", "rest"), SEPARATORS)
def test_readuntil_ends_at_the_separator_that_ends_first(
    sent: bytes, separator: Any, expected: list[bytes], rest: bytes, split: bool
) -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):
            sender = await spawn(send(one, *(bytewise(sent) if split else [sent]), end=True))
            assert [await other.readuntil(separator) for _ in expected] == expected
            with pytest.raises(IncompleteReadError) as caught:
                await other.readuntil(separator)
            assert (caught.value.partial, caught.value.expected) == (rest, None)
            assert await other.read() == b""
            await sender.join()

    flowno.run(root())


@pytest.mark.parametrize("separator", [b"", (), (b"",), (b"\n", b""), bytearray()])
def test_an_empty_separator_is_a_value_error(separator: Any) -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):
            await one.write(b"a\n")
            for _ in range(2):
                with pytest.raises(ValueError, match="at least one"):
                    await other.readuntil(separator)
                assert await other.read(1)

    flowno.run(root())


@pytest.mark.parametrize("separator", ["\n", 10, None, ("\n",), [b"\n"]])
def test_a_separator_that_is_no_bytes_is_a_type_error(separator: Any) -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):
            await one.write(b"a\n")
            with pytest.raises(TypeError):
                await other.readuntil(separator)
            assert await other.readuntil() == b"a\n"

    flowno.run(root())


@pytest.mark.parametrize("separator", [b"\r\n", (b"\r\n", b"\n\n")], ids=["one", "two"])
@pytest.mark.parametrize("sent", [b"123456\r\nrest", b"1234567890rest"], ids=["found", "not found"])
@pytest.mark.parametrize("split", [False, True], ids=["whole", "bytewise"])
def test_readuntil_above_the_limit_leaves_everything_in_the_stream(sent: bytes, separator: Any, split: bool) -> None:
    async def root() -> None:
        async with plain_streams(limit=5) as (one, other):
            sender = await spawn(send(one, *(bytewise(sent) if split else [sent]), end=True))
            for _ in range(3):
                with pytest.raises(LimitOverrunError, match="limit") as caught:
                    await other.readuntil(separator)
            begin = await other.readexactly(caught.value.consumed)
            assert 5 < len(begin) < len(sent)
            assert b"\r\n" not in begin
            assert begin + await other.read() == sent
            await sender.join()

    flowno.run(root())


@pytest.mark.parametrize("separator", [b"\r\n", (b"\r\n", b"\n\n")], ids=["one", "two"])
@pytest.mark.parametrize("split", [False, True], ids=["whole", "bytewise"])
def test_what_stands_before_a_separator_may_be_as_long_as_the_limit(separator: Any, split: bool) -> None:
    async def root() -> None:
        async with plain_streams(limit=5) as (one, other):
            sender = await spawn(send(one, *(bytewise(b"12345\r\n") if split else [b"12345\r\n"])))
            assert await other.readuntil(separator) == b"12345\r\n"
            await sender.join()

    flowno.run(root())


def test_a_header_of_ten_megabytes_without_an_end_is_refused_and_not_stored(streams: Streams) -> None:
    async def root() -> None:
        async with streams() as (one, other):
            header = bytes(10 << 20)
            sender = await spawn(one.write(header))
            tracemalloc.start()
            try:
                for _ in range(3):
                    with pytest.raises(LimitOverrunError):
                        await other.readuntil(b"\r\n\r\n")
                assert tracemalloc.get_traced_memory()[1] < 2 << 20
            finally:
                tracemalloc.stop()
            assert not sender.is_finished, "the peer is not held back"
            other.close()
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                await sender.join()

    flowno.run(root())


# What is sent, the pattern, what is read one by one, and what is left at the end.
PATTERNS: list[tuple[bytes, str, list[bytes], bytes]] = [
    (b"one\r\ntwo\nthree", r"\r?\n", [b"one\r\n", b"two\n"], b"three"),
    (b"GET /\r\n\r\nbody\r\n", r"\r?\n\r?\n", [b"GET /\r\n\r\n"], b"body\r\n"),
    (b"a1b22;c333;", r"[0-9]{2};", [b"a1b22;", b"c333;"], b""),
    (b"begin(x)(y)end", r"\(.\)", [b"begin(x)", b"(y)"], b"end"),
    (b"1,2;3,4", r"[,;]", [b"1,", b"2;", b"3,"], b"4"),
    (b"line\nline\n", r"^line\n", [b"line\n", b"line\n"], b""),  # each begins where the one before it has ended
    (b"aXbXcX", r"(?<!b)X", [b"aX", b"bXcX"], b""),
    (b"XX", r"(?<!X)X", [b"X", b"X"], b""),  # what was read is not looked back at
]


@pytest.mark.parametrize("split", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize(("sent", "pattern", "expected", "rest"), PATTERNS)
def test_readuntil_ends_with_the_first_match_of_a_pattern(
    streams: Streams, sent: bytes, pattern: str, expected: list[bytes], rest: bytes, split: bool
) -> None:
    compiled = re.compile(pattern.encode(), re.DOTALL)

    async def root() -> None:
        async with streams() as (one, other):
            sender = await spawn(send(one, *(bytewise(sent) if split else [sent]), end=True))
            assert [await other.readuntil(compiled) for _ in expected] == expected
            with pytest.raises(IncompleteReadError) as caught:
                await other.readuntil(compiled)
            assert (caught.value.partial, caught.value.expected) == (rest, None)
            assert await other.read() == b""
            await sender.join()

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_a_pattern_is_matched_by_what_has_come_and_does_not_wait_for_more() -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):
            reader = await spawn(other.readuntil(re.compile(rb"[0-9]+")))
            await send(one, b"a1")
            assert await reader.join() == b"a1"
            await send(one, b"2b345c")
            assert await other.readuntil(re.compile(rb"[0-9]+")) == b"2"
            assert await other.readuntil(re.compile(rb"[0-9]+")) == b"b345"

    flowno.run(root())


@pytest.mark.parametrize("pattern", [rb"", rb"x*", rb"\r?\n?", rb"$"])
def test_a_pattern_that_matches_nothing_at_all_is_a_value_error_before_anything_is_waited_for(pattern: bytes) -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):
            for _ in range(2):
                with pytest.raises(ValueError, match="matches where no byte is"):
                    await other.readuntil(re.compile(pattern))
            await one.write(b"a\n")
            assert await other.readline() == b"a\n"

    flowno.run(root())


def test_a_match_without_a_byte_is_a_value_error_and_everything_stays_in_the_stream() -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):
            await one.write(b"ab\n")
            with pytest.raises(ValueError, match="matches where no byte is"):
                await other.readuntil(re.compile(rb"(?=b)"))
            assert await other.readline() == b"ab\n"

    flowno.run(root())


def test_a_pattern_of_text_is_a_type_error() -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):
            await one.write(b"a\n")
            with pytest.raises(TypeError, match="pattern of bytes"):
                await other.readuntil(re.compile("\n"))  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                await other.readuntil((b"\n", re.compile(b"\n")))  # type: ignore[arg-type]
            assert await other.readline() == b"a\n"

    flowno.run(root())


@pytest.mark.parametrize("split", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize(("before", "fits"), [(b"123", True), (b"1234", False)])
def test_a_match_has_to_end_within_the_limit_whatever_the_pieces(before: bytes, fits: bool, split: bool) -> None:
    sent = before + b"\r\nrest"

    async def root() -> None:
        async with plain_streams(limit=5) as (one, other):
            sender = await spawn(send(one, *(bytewise(sent) if split else [sent]), end=True))
            if fits:
                assert await other.readuntil(re.compile(rb"\r\n")) == before + b"\r\n"
            for _ in range(2):
                with pytest.raises(LimitOverrunError if not fits else IncompleteReadError) as caught:
                    await other.readuntil(re.compile(rb"\r\n"))
            if not fits:
                assert isinstance(caught.value, LimitOverrunError)
                assert "limit" in str(caught.value)
                assert await other.readexactly(caught.value.consumed) == sent[:5]
                assert await other.read() == sent[5:]
            await sender.join()

    flowno.run(root())


def test_the_cost_of_a_search_for_a_pattern_is_bounded_by_the_limit() -> None:
    async def root() -> None:
        async with plain_streams(limit=100) as (one, other):
            sender = await spawn(one.write(bytes(LARGE)))
            tracemalloc.start()
            try:
                for _ in range(3):
                    with pytest.raises(LimitOverrunError) as caught:
                        await other.readuntil(re.compile(rb"\r?\n"))
                    assert caught.value.consumed == 100
                assert tracemalloc.get_traced_memory()[1] < 1 << 20
            finally:
                tracemalloc.stop()
            assert not sender.is_finished, "the peer is not held back"
            await sender.cancel()

    flowno.run(root())


@wine.is_slow
@pytest.mark.not_in_debug_mode(reason="it measures the cost of steps")
@pytest.mark.timeout(20)
@pytest.mark.timeout(120)  # on a machine that does much else, too
def test_a_peer_that_sends_small_pieces_does_not_make_the_search_for_a_pattern_costly() -> None:
    """Searches that begin at the first byte with each piece take minutes here."""

    async def root() -> None:
        data = bytes(LARGE // 2) + b"\r\n"
        one, other = socket.socketpair()
        dribbling = DribblingSocket(other.family, other.type, other.proto, fileno=other.detach())
        with SocketHandle(one) as sender, SocketHandle(dribbling) as receiver:
            stream = Stream(receiver, limit=LARGE)
            sending = await spawn(sender.sendAll(data))
            assert await stream.readuntil(re.compile(rb"\r?\n")) == data
            await sending.join()

    flowno.run(root())


def test_a_long_match_is_found_as_it_comes_or_where_it_comes_in_many_pieces_by_the_end() -> None:
    pattern = re.compile(rb"<[^<>]+>")
    long = b"<" + b"x" * 5000 + b">"

    async def root() -> None:
        async with plain_streams() as (one, other):
            for size in (1, 100, 1024):
                sender = await spawn(send(one, *bytewise(b"-" * 300), b"<", *bytewise(b"x" * (size - 2)), b"x>"))
                assert (await other.readuntil(pattern)).endswith(b"x" * (size - 2) + b"x>")
                await sender.join()
            sender = await spawn(send(one, long[:2000], long[2000:4000], long[4000:]))
            assert await other.readuntil(pattern) == long
            await sender.join()
            sender = await spawn(send(one, *bytewise(long), end=True))
            assert await other.readuntil(pattern) == long
            await sender.join()

    flowno.run(root())


@pytest.mark.parametrize("limit", [2500, 65536], ids=["at the limit", "before it"])
def test_a_long_match_that_comes_in_many_pieces_is_found_when_a_64th_more_has_come_and_at_the_limit(limit: int) -> None:
    async def root() -> None:
        data = b"<" + b"x" * 2480 + b">"
        async with plain_streams(limit=limit) as (one, other):
            sender = await spawn(send(one, *bytewise(data + bytes(min(limit, 2500 + 2500 // 64) - len(data)))))
            assert await other.readuntil(re.compile(rb"<[^<>]+>")) == data
            await sender.join()

    flowno.run(root())


# -------------------------------------------------------------------------------------------------------------- numbers


def test_readexactly_waits_until_all_is_there(streams: Streams) -> None:
    async def root() -> None:
        async with streams() as (one, other):
            sender = await spawn(send(one, b"abc", b"def", b"gh", b"i"))
            assert await other.readexactly(2) == b"ab"
            assert await other.readexactly(0) == b""
            assert await other.readexactly(5) == b"cdefg"
            assert await other.readexactly(2) == b"hi"
            await sender.join()

    flowno.run(root())


def test_readexactly_of_a_stream_that_ends_before_gives_what_there_was(streams: Streams) -> None:
    async def root() -> None:
        async with streams() as (one, other):
            sender = await spawn(send(one, b"abc", end=True))
            with pytest.raises(IncompleteReadError, match="after 3 bytes, before 5 bytes") as caught:
                await other.readexactly(5)
            assert (caught.value.partial, caught.value.expected) == (b"abc", 5)
            assert isinstance(caught.value, EOFError)
            with pytest.raises(IncompleteReadError) as caught:
                await other.readexactly(1)
            assert caught.value.partial == b""
            assert await other.readexactly(0) == b""
            await sender.join()

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_read_takes_what_is_there_up_to_a_number(streams: Streams) -> None:
    async def root() -> None:
        async with streams() as (one, other):
            await one.write(b"abcdef")
            assert await other.read(2) == b"ab"
            assert await other.read(0) == b""
            assert await other.read(100) == b"cdef"
            late = await spawn(other.read(100))
            await one.write(b"gh")
            assert await late.join() == b"gh"
            await one.write_eof()
            assert [await other.read(100) for _ in range(3)] == [b"", b"", b""]

    flowno.run(root())


def test_read_without_a_number_reads_until_the_end(streams: Streams) -> None:
    async def root() -> None:
        data = random.Random(1).randbytes(300_000)
        async with streams() as (one, other):
            sender = await spawn(send(one, b"begin", data, end=True))
            assert await other.readexactly(3) == b"beg"
            assert await other.read() == b"in" + data
            assert await other.read(-1) == b""
            await sender.join()

    flowno.run(root())


def test_nothing_can_be_read_from_a_quiet_stream_without_waiting() -> None:
    async def root() -> None:
        async with plain_streams() as (_, other):
            assert await other.read(0) == await other.readexactly(0) == b""

    flowno.run(root())


@pytest.mark.parametrize("number", ["1", 1.0, None, b"1"])
@pytest.mark.parametrize("method", ["read", "readexactly"])
def test_a_number_that_is_no_integer_is_a_type_error(method: str, number: Any) -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):
            await one.write(b"abc")
            for _ in range(2):
                with pytest.raises(TypeError):
                    await getattr(other, method)(number)
                assert await getattr(other, method)(True) in (b"a", b"b")

    flowno.run(root())


def test_readexactly_of_a_negative_number_is_a_value_error() -> None:
    async def root() -> None:
        async with plain_streams() as (_, other):
            with pytest.raises(ValueError, match="-1"):
                await other.readexactly(-1)

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize("make", [bytearray, lambda size: array.array("B", bytes(size))], ids=["bytearray", "array"])
def test_readinto_fills_a_buffer_with_what_is_there(streams: Streams, make: Callable[[int], Any]) -> None:
    async def root() -> None:
        async with streams() as (one, other):
            await one.write(b"line\nabcdef")
            assert await other.readline() == b"line\n"
            small, large = make(2), make(100)
            assert await other.readinto(small) == 2  # of what the line has left over
            assert bytes(small) == b"ab"
            assert await other.readinto(large) == 4
            assert bytes(large[:5]) == b"cdef\0"
            late = await spawn(call(lambda stream: stream.readinto(memoryview(large)[1:3]), other))
            await one.write(b"ghi")
            assert await late.join() == 2
            assert bytes(large[:5]) == b"cghf\0"
            assert await other.read(9) == b"i"
            await one.write_eof()
            assert [await other.readinto(small) for _ in range(3)] == [0, 0, 0]
            assert other.at_eof()

    flowno.run(root())


def test_readinto_of_a_buffer_without_room_gives_nothing_and_does_not_wait() -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):
            assert await other.readinto(bytearray()) == 0
            await one.write(b"line\nrest\n")
            assert await other.readline() == b"line\n"
            assert await other.readinto(bytearray()) == 0
            assert await other.readline() == b"rest\n"

    flowno.run(root())


@pytest.mark.parametrize("buffer", [b"fixed", memoryview(b"fixed"), memoryview(bytearray(8))[::2], "text", 9, None])
def test_readinto_takes_what_can_be_written_to(buffer: Any) -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):
            await one.write(b"a\n")
            for _ in range(2):
                with pytest.raises(TypeError):
                    await other.readinto(buffer)
            assert await other.readline() == b"a\n"

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_readinto_holds_the_buffer_no_longer_than_it_reads(streams: Streams) -> None:
    async def root() -> None:
        async with streams() as (one, other):
            buffer = bytearray(9)
            reader = await spawn(other.readinto(buffer))
            await sleep(0)
            with pytest.raises(BufferError):
                buffer.append(0)
            await reader.cancel()
            buffer.append(0)
            await one.write(b"abc")
            assert await other.readinto(buffer) == 3
            other.close()
            with pytest.raises(ClosedResourceError) as caught:
                await other.readinto(buffer)
            buffer.append(0)
            assert caught.value
            assert buffer == b"abc" + bytes(8)

    flowno.run(root())


class IntoSocket(socket.socket):
    """Has the sizes of the buffers that were received into, and cannot receive otherwise."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sizes: list[int] = []

    def recv(self, size: int, flags: int = 0) -> bytes:
        raise AssertionError("a copy was made")

    def recv_into(self, buffer: Any, *args: Any) -> int:
        self.sizes.append(memoryview(buffer).nbytes)
        return super().recv_into(buffer, *args)


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_readinto_receives_straight_into_the_buffer() -> None:
    async def root() -> None:
        one, other = socket.socketpair()
        direct = IntoSocket(other.family, other.type, other.proto, fileno=other.detach())
        with SocketHandle(one) as sender, SocketHandle(direct) as receiver:
            stream = Stream(receiver)
            for size in range(1, 200):  # also where the read has to give way
                await sender.sendAll(bytes(size))
                assert await stream.readinto(bytearray(200)) == size
            assert set(direct.sizes) == {200}

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_chunks_are_what_comes_as_it_comes_up_to_a_size(streams: Streams) -> None:
    async def root() -> None:
        async with streams() as (one, other):
            await one.write(b"line\nabcdef")
            assert await other.readline() == b"line\n"
            chunks = other.chunks(4)
            assert aiter(chunks) is chunks
            assert [await anext(chunks), await anext(chunks)] == [b"abcd", b"ef"]
            late = await spawn(anext(chunks))  # type: ignore[arg-type]
            await one.write(b"no line")
            assert await late.join() == b"no l"
            await one.write_eof()
            assert [chunk async for chunk in other.chunks()] == [b"ine"]
            assert [chunk async for chunk in chunks] == []

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_a_loop_over_chunks_can_be_left_and_the_rest_is_still_there() -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):
            await one.write(b"abcdef\n")
            async for chunk in other.chunks(2):
                if chunk == b"cd":
                    break
            assert await other.readline() == b"ef\n"

    flowno.run(root())


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), ("4", TypeError), (None, TypeError)])
def test_chunks_have_a_size_above_zero(size: Any, error: type[Exception]) -> None:
    with pair() as (one, _), pytest.raises(error):
        Stream(one).chunks(size)


def test_large_messages_arrive_intact_and_in_order(streams: Streams) -> None:
    async def root() -> None:
        numbers = random.Random(2)
        messages = [numbers.randbytes(numbers.randrange(1 << 18)) for _ in range(12)]
        async with streams() as (one, other):

            async def produce() -> None:
                for message in messages:
                    await one.writelines([struct.pack("!I", len(message)), message])
                await one.write_eof()

            producer = await spawn(produce())
            for message in messages:
                (size,) = struct.unpack("!I", await other.readexactly(4))
                assert await other.readexactly(size) == message
            assert await other.read() == b""
            assert other.at_eof()
            await producer.join()

    flowno.run(root())


@wine.is_slow
@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.timeout(20)
def test_the_cost_of_a_message_does_not_depend_on_the_pieces_in_which_it_comes() -> None:
    """Pieces that are put together one by one, from the beginning each time, take minutes here."""

    async def root() -> None:
        data = random.Random(7).randbytes(LARGE)
        one, other = socket.socketpair()
        dribbling = DribblingSocket(other.family, other.type, other.proto, fileno=other.detach())
        with SocketHandle(one) as sender, SocketHandle(dribbling) as receiver:
            stream = Stream(receiver)
            sending = await spawn(sender.sendAll(data))
            assert await stream.readexactly(len(data) - 10) == data[:-10]
            assert await stream.readexactly(10) == data[-10:]
            await sending.join()

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_a_stream_that_waits_holds_nothing_of_what_was_read() -> None:
    async def root() -> None:
        async with plain_streams(limit=1 << 20) as (one, other):
            tracemalloc.start()
            try:
                for _ in range(2):
                    await one.write(bytes(50_000) + b"\n")
                    assert len(await other.readline()) == 50_001
                reader = await spawn(other.readline())
                await sleep(0)
                assert tracemalloc.get_traced_memory()[0] < 40_000
            finally:
                tracemalloc.stop()
            await one.write(b"\n")
            assert await reader.join() == b"\n"

    flowno.run(root())


def test_of_separators_that_end_together_the_shortest_counts_for_the_limit() -> None:
    async def root() -> None:
        async with plain_streams(limit=3) as (one, other):
            await one.write(b"123\r\n")
            with pytest.raises(LimitOverrunError):
                await other.readuntil((b"\r\n", b"\n"))
            assert await other.readuntil(b"\r\n") == b"123\r\n"

    flowno.run(root())


# ----------------------------------------------------------------------------------- whatever the pieces, as asyncio's


async def outcome(stream: Any, call: tuple[str, Any]) -> tuple[Any, ...]:
    """What a call comes to. What a limit has dropped depends on what had come by then, so that is not asked."""
    method, *args = call
    try:
        return "returned", await getattr(stream, method)(*args)
    except EOFError as error:
        return "incomplete", error.partial, error.expected  # type: ignore[attr-defined]
    except ValueError:
        return ("too long",)
    except Exception as error:
        return type(error).__name__, error.consumed > 12  # type: ignore[attr-defined]


def calls_and_data(seed: int) -> tuple[list[tuple[Any, ...]], bytes, list[bytes]]:
    """Some reads, what is sent, and the pieces in which it is."""
    numbers = random.Random(seed)
    separators: list[Any] = [b"\n", b"\r\n", b"ab", b"a"]
    if sys.version_info >= (3, 13):  # since when asyncio takes several
        separators += [(b"\n", b"\r\n"), (b"ab", b"ba", b"\n"), (b"aaa", b"b\r"), (b"\n" * 3,)]
    data = bytes(numbers.choice(b"ab\r\n" if numbers.random() < 0.5 else b"xyz") for _ in range(numbers.randrange(90)))
    calls: list[tuple[Any, ...]] = [
        numbers.choice(
            [
                ("readexactly", numbers.randrange(12)),
                ("readuntil", numbers.choice(separators)),
                ("readline",),
                ("read", 0),
            ]
        )
        for _ in range(12)
    ]
    cuts = sorted(numbers.sample(range(len(data) + 1), min(numbers.randrange(8), len(data))))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]
    return [*calls, ("read", -1)], data, pieces


def as_asyncio_has_it(calls: list[tuple[Any, ...]], data: bytes) -> list[tuple[Any, ...]]:
    async def main() -> list[tuple[Any, ...]]:
        reader = asyncio.StreamReader(limit=12)
        reader.feed_data(data)
        reader.feed_eof()
        return [await outcome(reader, call) for call in calls]  # type: ignore[arg-type]

    return asyncio.run(main())


def test_reads_give_what_those_of_asyncio_do_however_the_data_is_cut() -> None:
    async def root(calls: list[tuple[Any, ...]], pieces: list[bytes]) -> list[tuple[Any, ...]]:
        async with plain_streams(limit=12) as (one, other):
            sender = await spawn(send(one, *pieces, end=True))
            results = [await outcome(other, call) for call in calls]  # type: ignore[arg-type]
            await sender.join()
            return results

    with flowno.EventLoop() as loop:
        for seed in range(150):
            calls, data, pieces = calls_and_data(seed)
            expected = as_asyncio_has_it(calls, data)
            results: Any = loop.run_until_complete(root(calls, pieces), join=True)
            known = expected.index(("too long",)) + 1 if ("too long",) in expected else len(expected)
            assert results[:known] == expected[:known], (seed, calls, pieces)


def test_errors_have_the_fields_of_asyncios_and_can_be_pickled() -> None:
    incomplete = pickle.loads(pickle.dumps(IncompleteReadError(b"ab", 5)))
    assert (type(incomplete), incomplete.partial, incomplete.expected) == (IncompleteReadError, b"ab", 5)
    overrun = pickle.loads(pickle.dumps(LimitOverrunError("too far", 7)))
    assert (type(overrun), overrun.consumed, str(overrun)) == (LimitOverrunError, 7, "too far")


# --------------------------------------------------------------------------------------------------- the end, and worse


def test_at_eof_is_true_once_everything_was_read_and_the_end_was_seen(streams: Streams) -> None:
    async def root() -> None:
        async with streams() as (one, other):
            assert not other.at_eof()
            await one.write(b"ab")
            await one.write_eof()
            assert await other.read(1) == b"a"
            assert not other.at_eof()
            assert await other.readline() == b"b"
            assert other.at_eof()

    flowno.run(root())


class ResetSocket(socket.socket):
    """Says once that the connection was reset, where it has ended, and then what the system says."""

    told = False

    def recv(self, size: int, flags: int = 0) -> bytes:
        data = super().recv(size, flags)
        if not data and not self.told:
            self.told = True
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return data


def test_a_connection_that_broke_down_stays_broken_and_is_no_end() -> None:
    async def root() -> None:
        one, other = socket.socketpair()
        broken = ResetSocket(other.family, other.type, other.proto, fileno=other.detach())
        with SocketHandle(one) as sender, SocketHandle(broken) as receiver:
            stream = Stream(receiver)
            await sender.sendAll(b"line\nhalf a li")
            assert await stream.readline() == b"line\n"
            sender.close()
            for _ in range(3):
                with pytest.raises(ConnectionResetError):
                    await stream.readline()
            assert await stream.readexactly(9) == b"half a li", "what has come before is still there"
            for read in READS.values():
                with pytest.raises(ConnectionResetError):
                    await read(stream)
            assert not stream.at_eof()

    flowno.run(root())


@pytest.mark.skipif(sys.platform == "win32", reason="what is told of a reset differs between versions of Windows")
def test_a_connection_that_the_peer_has_reset_is_no_end() -> None:
    async def root() -> None:
        with tcp_pair() as (one, other):
            stream = Stream(other)
            await one.sendAll(b"line\n")
            assert await stream.readline() == b"line\n"
            reset(one)
            for _ in range(3):
                with pytest.raises(ConnectionResetError):
                    await stream.readline()

    flowno.run(root())


def test_a_tls_stream_that_was_cut_off_is_an_error(contexts: Contexts) -> None:
    async def root() -> None:
        async with tls_streams(contexts) as (one, stream):
            await one.write(b"line\nhalf")
            assert await stream.readline() == b"line\n"
            one.handle.socket.shutdown(socket.SHUT_WR)
            for _ in range(2):
                with pytest.raises(TruncatedStreamError):
                    await stream.readline()
            assert await stream.read(9) == b"half"

    flowno.run(root())


# ---------------------------------------------------------------------------------------------------------- two at once

Read = Callable[[Stream], Awaitable[Any]]


async def read_into(stream: Stream, size: int = 9) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: await stream.readinto(buffer)])


READS: dict[str, Read] = {
    "read": lambda stream: stream.read(9),
    "read all": lambda stream: stream.read(),
    "readexactly": lambda stream: stream.readexactly(5),
    "readuntil": lambda stream: stream.readuntil(b"\n"),
    "readuntil two": lambda stream: stream.readuntil((b"\n", b"\0")),
    "readuntil pattern": lambda stream: stream.readuntil(re.compile(rb"\r?\n")),
    "readline": lambda stream: stream.readline(),
    "anext": lambda stream: stream.__anext__(),
    "readinto": lambda stream: read_into(stream),
    "chunks": lambda stream: stream.chunks(9).__anext__(),
}
#: Those that wait for more where one byte has come.
PATIENT = [name for name in READS if name not in ("read", "readinto", "chunks")]


async def call(read: Read, stream: Stream) -> Any:
    return await read(stream)


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize("second", READS)
@pytest.mark.parametrize("first", READS)
@pytest.mark.parametrize("state", ["new", "used", "partly"])
def test_a_second_reader_is_refused_and_the_first_gets_everything(first: str, second: str, state: str) -> None:
    if state == "partly" and first not in PATIENT:
        first = "readline"
    partly = state == "partly"

    async def root() -> None:
        async with plain_streams() as (one, other):
            if state == "used":
                await one.write(b"\n")
                assert await other.readline() == b"\n"
            if partly:
                await one.write(b"1")
            reader = await spawn(call(READS[first], other))
            for _ in range(3):
                await sleep(0)
            for _ in range(70):  # more often than one step has operations
                with pytest.raises(BusyResourceError, match="reading from"):
                    await READS[second](other)
            await one.write(b"234\n" if partly else b"1234\n")
            await one.write_eof()
            assert await reader.join() == b"1234\n"

    flowno.run(root())


def test_a_reader_that_is_refused_again_and_again_keeps_nobody_waiting() -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):

            async def insist() -> bytes:
                while True:
                    try:
                        return await other.readline()
                    except BusyResourceError:
                        pass

            reader = await spawn(other.readline())
            insistent = await spawn(insist())
            await one.write(b"first\n")
            assert await reader.join() == b"first\n"
            await one.write(b"second\n")
            assert await insistent.join() == b"second\n"

    flowno.run(root())


@pytest.mark.parametrize("name", READS)
def test_a_reader_that_gives_way_still_owns_the_stream(name: str) -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):
            await one.write(b"line\n" * 100)
            await one.write_eof()
            refused = []

            async def intrude() -> None:
                try:
                    await other.read(1)
                except BusyResourceError as error:
                    refused.append(error)

            assert await other.readline() == b"line\n"
            for _ in range(62):
                await other.readexactly(1)
            intruder = await spawn(intrude())  # runs at once: the lines are there
            await intruder.join()
            assert not refused
            while True:  # until the budget of this step is used up, and the next read gives way
                loop = flowno.current_event_loop()
                assert loop is not None
                if loop.budget.left == 0:
                    break
                assert await other.readexactly(1)
            loop.create_task(intrude())
            assert await READS[name](other)
            assert len(refused) == 1

    flowno.run(root())


def test_one_task_reads_while_another_writes(streams: Streams) -> None:
    async def root() -> None:
        lines = [b"%d\n" % number for number in range(3000)]
        async with streams() as (one, other):

            async def talk(stream: Stream) -> None:
                for line in lines:
                    await stream.write(line)
                await stream.write_eof()

            async def listen(stream: Stream) -> list[bytes]:
                return [line async for line in stream]

            listeners = [await spawn(listen(stream)) for stream in (one, other)]
            talkers = [await spawn(talk(stream)) for stream in (one, other)]
            for talker in talkers:
                await talker.join()
            for listener in listeners:
                assert await listener.join() == lines

    flowno.run(root())


# --------------------------------------------------------------------------------------------------------------- budget


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize(
    ("name", "size"), [(name, 5) for name in READS if name != "read all"] + [("readexactly", 0), ("end", 0)]
)
def test_reads_that_need_not_wait_keep_nobody_waiting(name: str, size: int) -> None:
    read: Read = READS.get(name, lambda stream: stream.read(5))
    if (name, size) == ("readexactly", 0):
        read = lambda stream: stream.readexactly(0)  # noqa: E731
    elif name == "read":
        read = lambda stream: stream.read(5)  # noqa: E731
    elif name == "readinto":
        read = lambda stream: read_into(stream, 5)  # noqa: E731
    elif name == "chunks":
        read = lambda stream: stream.chunks(5).__anext__()  # noqa: E731

    async def root() -> int:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await sleep(0)
                turns += 1

        async with plain_streams() as (one, other):
            if size:
                await one.write(b"1234\n" * 4000)
            await one.write_eof()
            counter = await spawn(count())
            for _ in range(4000):
                assert len(await read(other)) == size
            await counter.cancel()
        return turns

    assert 4000 // 64 <= flowno.run(root()) <= 4000 // 16


# --------------------------------------------------------------------------------------------------------- cancellation


@pytest.mark.not_under_faults(reason="it counts turns of the loop, or what is done in one of them")
@pytest.mark.parametrize("name", PATIENT)
@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("used", [False, True])
def test_a_cancelled_read_loses_nothing(streams: Streams, name: str, turns: int, used: bool) -> None:
    async def root() -> None:
        async with streams() as (one, other):
            if used:
                await one.write(b"\n")
                assert await other.readline() == b"\n"
            reader = await spawn(call(READS[name], other))
            sender = await spawn(send(one, *bytewise(b"12")))
            for _ in range(turns):
                await sleep(0)
            await reader.cancel()
            assert reader.is_cancelled
            await send(one, b"3", b"4\n56\n")
            assert await other.readline() == b"1234\n"
            assert await other.readline() == b"56\n"
            await sender.join()

    flowno.run(root())


def test_reads_that_are_cancelled_all_the_time_lose_nothing_of_a_large_stream(streams: Streams) -> None:
    async def root() -> None:
        numbers = random.Random(3)
        data = bytes(numbers.choice(b"abc\n") for _ in range(200_000))
        async with streams(limit=1 << 20) as (one, other):
            sender = await spawn(send(one, *(data[at : at + 1777] for at in range(0, len(data), 1777)), end=True))
            received = b""
            while not other.at_eof():
                reader = await spawn(other.readexactly(numbers.choice([1, 50, 3000, 70_000])))
                for _ in range(numbers.randrange(4)):
                    await sleep(0)
                try:
                    received += await reader.cancel() or b""
                except IncompleteReadError as error:
                    received += error.partial
                received += await other.readline()
            assert received == data
            await sender.join()

    flowno.run(root())


@pytest.mark.parametrize("method", ["write", "writelines"])
def test_a_cancelled_write_says_how_far_it_came(streams: Streams, method: str) -> None:
    async def root() -> None:
        data = random.Random(4).randbytes(LARGE)
        whole = data if method == "write" else [data[:7], data[7:100_000], data[100_000:]]
        async with streams() as (one, other):
            writer = await spawn(getattr(one, method)(whole))
            reader = await spawn(other.readexactly(3))
            assert await reader.join() == data[:3]
            for _ in range(10):
                await sleep(0)
            await writer.cancel()
            sent = one.handle.bytes_sent
            assert 0 < sent < LARGE
            reader = await spawn(other.read())
            await one.write_eof()
            assert await reader.join() == data[3:sent]

    flowno.run(root())


# -------------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("data", [b"bytes", bytearray(b"bytes"), memoryview(b"bytes"), array.array("H", b"2bytes")])
def test_any_buffer_can_be_written(streams: Streams, data: Any) -> None:
    async def root() -> None:
        octets = bytes(memoryview(data).cast("B"))
        async with streams() as (one, other):
            writer = await spawn(call(lambda stream: stream.writelines([data, b"", b"-", data]), one))
            assert await other.readexactly(2 * len(octets) + 1) == octets + b"-" + octets
            await writer.join()
            await one.write(data)
            assert await other.readexactly(len(octets)) == octets

    flowno.run(root())


@pytest.mark.parametrize("data", ["text", 7, None, [1]])
def test_what_is_no_buffer_is_a_type_error_and_nothing_is_written(data: Any) -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):
            with pytest.raises(TypeError):
                await one.write(data)
            with pytest.raises(TypeError):
                await one.writelines([b"before", data])
            await one.write(b"x")
            assert await other.read(9) == b"x"

    flowno.run(root())


@pytest.mark.parametrize("parts", [[], [b""], [b"", bytearray()], [b"only"]])
def test_few_lines_or_none_can_be_written(parts: list[bytes]) -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):
            await one.writelines(parts)
            await one.writelines(iter(parts))
            await one.write(b".")
            assert await other.readuntil(b".") == b"".join(parts) * 2 + b"."

    flowno.run(root())


def test_a_writer_waits_for_a_reader(streams: Streams) -> None:
    async def root() -> None:
        data = random.Random(5).randbytes(LARGE)
        async with streams() as (one, other):
            writer = await spawn(one.write(data))
            reader = await spawn(other.readexactly(1))
            await reader.join()
            for _ in range(20):
                await sleep(0)
            assert not writer.is_finished
            assert await other.readexactly(LARGE - 1) == data[1:]
            await writer.join()

    flowno.run(root())


def test_a_second_writer_is_refused_and_the_first_is_not_disturbed(streams: Streams) -> None:
    async def root() -> None:
        data = random.Random(6).randbytes(LARGE)
        async with streams() as (one, other):
            reader = await spawn(other.readexactly(1))
            writer = await spawn(call(lambda stream: stream.writelines([data[:100], data[100:]]), one))
            assert await reader.join() == data[:1]
            for attempt in (one.write(b"x"), one.writelines([b"x", b"y"]), one.write_eof()):
                with pytest.raises(BusyResourceError):
                    await attempt
            reader = await spawn(other.read())
            await writer.join()
            await one.write_eof()
            assert await reader.join() == data[1:]

    flowno.run(root())


class CountingSocket(socket.socket):
    """Counts the calls that send, and has how many buffers each was given."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls: list[int] = []

    def send(self, *args: Any) -> int:
        self.calls.append(1)
        return super().send(*args)

    if hasattr(socket.socket, "sendmsg"):

        def sendmsg(self, buffers: Iterable[Any], *args: Any) -> int:
            whole = list(buffers)
            self.calls.append(len(whole))
            return super().sendmsg(whole, *args)


@contextmanager
def counted() -> Iterator[tuple[Stream, CountingSocket, Stream]]:
    one, other = socket.socketpair()
    counting = CountingSocket(one.family, one.type, one.proto, fileno=one.detach())
    with SocketHandle(counting) as handle, SocketHandle(other) as peer:
        yield Stream(handle), counting, Stream(peer)


@pytest.mark.not_under_faults(reason="it counts calls")
def test_lines_are_written_by_one_system_call() -> None:
    async def root() -> None:
        with counted() as (stream, counting, peer):
            await stream.writelines([b"one\n", bytearray(b"two\n"), b"three\n"])
            assert counting.calls == ([3] if hasattr(socket.socket, "sendmsg") else [1])
            assert [await peer.readline() for _ in range(3)] == [b"one\n", b"two\n", b"three\n"]

    flowno.run(root())


def test_there_may_be_more_lines_than_one_system_call_takes() -> None:
    async def root() -> None:
        lines = [b"%d\n" % number for number in range(5000)]
        with counted() as (stream, counting, peer):
            reader = await spawn(peer.readexactly(sum(map(len, lines))))
            await stream.writelines(lines)
            assert await reader.join() == b"".join(lines)
            assert len(counting.calls) < 50

    flowno.run(root())


@pytest.mark.parametrize("seed", range(8))
def test_lines_arrive_whatever_part_of_them_the_system_takes(seed: int) -> None:
    async def root() -> None:
        numbers = random.Random(seed)
        parts = [numbers.randbytes(numbers.choice([0, 1, 100, 5000, 60_000])) for _ in range(60)]
        with pair(4096) as (one, other):
            reader = await spawn(receive(other, sum(map(len, parts))))
            stream = Stream(one)
            await stream.writelines(parts)
            assert one.bytes_sent == sum(map(len, parts))
            assert await reader.join() == b"".join(parts)

    flowno.run(root())


def test_write_eof_ends_one_direction_and_is_idempotent(streams: Streams) -> None:
    async def root() -> None:
        async with streams() as (one, other):
            reader = await spawn(other.read())
            await one.write(b"question")
            for _ in range(3):
                await one.write_eof()
            assert await reader.join() == b"question"
            for write in (one.write, lambda data: one.writelines([data])):
                with pytest.raises(ClosedResourceError, match="write_eof"):
                    await write(b"more")
            await other.write(b"answer\n")
            assert await one.readline() == b"answer\n"

    flowno.run(root())


def test_write_eof_that_was_refused_can_come_again() -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):
            filled = fill(one.handle)
            writer = await spawn(one.write(b"last"))
            with pytest.raises(BusyResourceError):
                await one.write_eof()
            assert await other.readexactly(filled) == bytes(filled)
            await writer.join()
            await one.write_eof()
            assert await other.read() == b"last"

    flowno.run(root())


# ------------------------------------------------------------------------------------------------------------- to close


@pytest.mark.parametrize("name", READS)
def test_close_ends_the_wait_of_a_reader(streams: Streams, name: str) -> None:
    async def root() -> None:
        async with streams() as (one, other):
            await one.write(b"")
            reader = await spawn(call(READS[name], other))
            await sleep(0)
            other.close()
            with pytest.raises(ClosedResourceError):
                await reader.join()

    flowno.run(root())


def test_a_stream_that_is_closed_while_a_task_reads_gives_nothing_any_more() -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):
            await one.write(b"abc")
            reader = await spawn(other.readexactly(9))
            for _ in range(3):
                await sleep(0)
            other.close()
            with pytest.raises(ClosedResourceError):
                await reader.join()
            for _ in range(2):
                with pytest.raises(ClosedResourceError):
                    await other.read(1)

    flowno.run(root())


@pytest.mark.parametrize("name", READS)
def test_a_closed_stream_is_no_stream_at_its_end_nor_one_that_holds_data(name: str) -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):
            await one.write(b"line\nline\n")
            await one.write_eof()
            assert await other.readline() == b"line\n"
            for _ in range(3):
                other.close()
                for _ in range(2):
                    with pytest.raises(ClosedResourceError):
                        await READS[name](other)
            for attempt in (
                other.read(0),
                other.readexactly(0),
                other.write(b"x"),
                other.writelines([b"x", b"y"]),
                other.write_eof(),
                other.start_tls(ssl.create_default_context(), server_hostname="localhost"),
            ):
                with pytest.raises(ClosedResourceError):
                    await attempt
            await other.aclose()

    flowno.run(root())


def test_leaving_a_stream_closes_it(streams: Streams) -> None:
    async def root() -> None:
        async with streams() as (one, other):

            async def talk() -> None:
                async with one as entered:
                    assert entered is one
                    await one.write(b"bye\n")

            talker = await spawn(talk())
            async with other:
                assert await other.read() == b"bye\n"
            await talker.join()
            assert one.handle.fileno() == other.handle.fileno() == -1
            await one.aclose()
            one.close()

    flowno.run(root())


def test_leaving_a_tls_stream_waits_for_the_end_of_the_peer(contexts: Contexts) -> None:
    async def root() -> None:
        async with tls_streams(contexts) as (one, other):

            async def talk() -> None:
                async with one:
                    await one.write(b"bye\n")

            talker = await spawn(talk())
            assert await other.read() == b"bye\n"
            for _ in range(5):
                await sleep(0)
            assert not talker.is_finished
            await other.aclose()
            await talker.join()

    flowno.run(root())


async def leave_by_an_error(stream: Stream) -> None:
    async with stream:
        raise LookupError


def test_leaving_a_stream_by_an_error_does_not_wait_for_the_peer(streams: Streams) -> None:
    async def root() -> None:
        async with streams() as (one, other):
            peer = await spawn(other.readline())
            await one.write(b"bye\n")
            with pytest.raises(LookupError):
                await leave_by_an_error(one)
            assert one.handle.fileno() == -1
            assert await peer.join() == b"bye\n"

    flowno.run(root())


def test_aclose_of_tls_waits_for_the_end_of_the_peer_and_is_cancelled_at_once(
    contexts: Contexts,
) -> None:
    async def root() -> None:
        async with tls_streams(contexts) as (one, other):
            await one.write(b"bye\n")
            assert await other.readline() == b"bye\n"
            closer = await spawn(one.aclose())
            for _ in range(5):
                await sleep(0)
            assert not closer.is_finished
            await closer.cancel()
            assert one.handle.fileno() == -1
            with pytest.raises(ClosedResourceError):
                await one.readline()

    flowno.run(root())


# ---------------------------------------------------------------------------------------------------- extra, and other


def test_the_addresses_are_known_also_when_the_connection_is_gone() -> None:
    async def root() -> None:
        with tcp_pair() as (one, other):
            stream = Stream(other)
            names = one.getsockname(), other.getsockname()
            assert stream.get_extra_info("socket") is other.socket
            stream.close()
            assert (stream.get_extra_info("peername"), stream.get_extra_info("sockname")) == names
            for name in (*OF_TLS, "no such thing"):
                assert stream.get_extra_info(name) is None
                assert stream.get_extra_info(name, 7) == 7

    flowno.run(root())


def test_type_checkers_know_what_each_name_of_extra_information_gives() -> None:
    """What they make of it is in tests/typing_stream.py, which is for them to check."""
    overloads = typing.get_overloads(Stream.get_extra_info)
    names = [name for each in overloads for name in re.findall(r"'(\w+)'", each.__annotations__["name"])]
    assert sorted(names) == sorted(EXTRA_INFO)


def test_extra_information_of_tls(contexts: Contexts) -> None:
    async def root() -> None:
        ends = socket.socketpair()
        with (
            TLSSocketHandle(ends[0], contexts[0], "localhost") as one,
            TLSSocketHandle(ends[1], contexts[1], None, server_side=True) as other,
        ):
            stream = Stream(one)
            assert stream.get_extra_info("cipher", "unknown") == "unknown"
            reader = await spawn(Stream(other).readline())
            await stream.write(b"\n")
            await reader.join()
            assert stream.get_extra_info("sslcontext") is contexts[0]
            assert stream.get_extra_info("ssl_object").version() == one.version()
            assert stream.get_extra_info("cipher") == one.cipher()
            assert ("DNS", "localhost") in stream.get_extra_info("peercert")["subjectAltName"]
            assert stream.get_extra_info("compression", "none") == "none"
            assert stream.get_extra_info("version") == one.version()
            assert stream.get_extra_info("alpn_protocol", "none") == "none"

    flowno.run(root())


def test_what_is_known_after_the_handshake_is_not_known_while_it_goes_on(contexts: Contexts) -> None:
    async def root() -> None:
        ends = socket.socketpair()
        with TLSSocketHandle(ends[0], contexts[0], "localhost") as one, SocketHandle(ends[1]) as other:
            stream = Stream(one)
            reader = await spawn(stream.read())
            assert (await other.recv(1)) == b"\x16"  # it has begun, and gets no answer
            for name in ("peercert", "cipher", "version", "alpn_protocol"):
                assert stream.get_extra_info(name) is None
                assert stream.get_extra_info(name, 7) == 7
            reader.cancel()

    flowno.run(root())


def test_the_socket_of_tls_inside_of_tls_is_that_of_the_system(contexts: Contexts) -> None:
    async def root() -> None:
        async with tls_streams(contexts) as (one, other):
            sock = one.get_extra_info("socket")
            assert isinstance(sock, socket.socket)
            for _ in range(2):
                serving = await spawn(other.start_tls(contexts[1], server_side=True))
                await one.start_tls(contexts[0], server_hostname="localhost")
                await serving.join()
                assert one.get_extra_info("socket") is sock
            one.close()
            other.close()

    flowno.run(root())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"handshake_timeout": float("nan")}, ValueError),
        ({"handshake_timeout": "long"}, TypeError),
        ({"handshake_timeout": 0}, ValueError),
        ({"server_hostname": 7}, TypeError),
        ({"ssl_context": True}, TypeError),
    ],
    ids=str,
)
def test_a_wrong_argument_of_start_tls_leaves_the_stream_as_it_is(
    contexts: Contexts, arguments: dict[str, Any], error: type[Exception]
) -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):
            with pytest.raises(error, match=next(iter(arguments))):
                await one.start_tls(**{"ssl_context": contexts[0], "server_hostname": "localhost"} | arguments)
            await other.write(b"nothing was done\n")
            assert await one.readline() == b"nothing was done\n"

    flowno.run(root())


def test_the_protocol_that_was_chosen_is_known(contexts: Contexts) -> None:
    async def root() -> None:
        async with tls_streams(contexts) as (one, other):
            assert one.get_extra_info("alpn_protocol") == other.get_extra_info("alpn_protocol") == "imap"

    contexts[0].set_alpn_protocols(["h2", "imap"])
    contexts[1].set_alpn_protocols(["imap"])
    try:
        flowno.run(root())
    finally:
        for context in contexts:
            context.set_alpn_protocols([])


async def talked_over(context: ssl.SSLContext, server: ssl.SSLContext, **options: Any) -> Any:
    """Begin TLS in the middle of a stream, and talk: whether a session was resumed, and the session."""
    async with plain_streams() as (one, other):
        serving = await spawn(other.start_tls(server, server_side=True))
        await one.start_tls(context, server_hostname="localhost", **options)
        await serving.join()
        await other.write(b"hello\n")
        assert await one.readline() == b"hello\n"
        tls = one.get_extra_info("ssl_object")
        assert tls is not None
        return tls.session_reused, tls.session


def test_a_session_makes_the_handshake_of_start_tls_shorter(contexts: Contexts) -> None:
    async def root() -> None:
        reused, session = await talked_over(*contexts)
        assert not reused
        assert (await talked_over(*contexts, session=session))[0]
        async with plain_streams() as (_, other):
            with pytest.raises(ValueError, match="(?i)session"):
                await other.start_tls(ssl.create_default_context(), server_hostname="localhost", session=session)
            with pytest.raises(TypeError):
                await other.start_tls(contexts[0], server_hostname="localhost", session=b"")  # type: ignore[arg-type]
            await other.write(b"nothing was done")

    flowno.run(root())


@pytest.mark.parametrize("demanded", [True, False])
def test_an_end_without_a_close_notify_can_be_taken_for_the_end(contexts: Contexts, demanded: bool) -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):
            serving = await spawn(other.start_tls(contexts[1], server_side=True, require_close_notify=demanded))
            await one.start_tls(contexts[0], server_hostname="localhost")
            await serving.join()
            await one.write(b"all there is")
            one.handle.socket.shutdown(socket.SHUT_WR)
            assert await other.readexactly(12) == b"all there is"
            if demanded:
                with pytest.raises(TruncatedStreamError):
                    await other.read()
            else:
                assert await other.read() == b""

    flowno.run(root())


@pytest.mark.parametrize(
    ("limit", "error"), [(0, ValueError), (-1, ValueError), ("much", TypeError), (float("nan"), TypeError)]
)
def test_a_limit_is_a_number_above_zero(limit: Any, error: type[Exception]) -> None:
    with pair() as (one, _), pytest.raises(error, match="limit"):
        Stream(one, limit=limit)


@pytest.mark.parametrize("handle", [None, b"", socket.socket])
def test_a_stream_is_made_from_a_handle(handle: Any) -> None:
    with pytest.raises(TypeError, match="SocketHandle"):
        Stream(handle)


def test_the_repr_names_the_connection() -> None:
    with tcp_pair() as (one, _):
        assert str(one.getsockname()[1]) in repr(Stream(one))


def test_a_stream_is_used_in_a_loop() -> None:
    with pair() as (one, _):
        stream = Stream(one)
        for awaitable in (stream.read(1), stream.readline(), stream.write(b"")):
            with pytest.raises(flowno.EventLoopError, match="flowno.run"):
                awaitable.send(None)  # type: ignore[union-attr]


def test_a_stream_goes_from_one_loop_to_the_next() -> None:
    async def first(one: Stream, other: Stream) -> None:
        await one.write(b"a\nb\nc\n")
        assert await other.readline() == b"a\n"

    async def second(one: Stream, other: Stream) -> None:
        assert await other.readline() == b"b\n"
        assert await other.readline() == b"c\n"
        late = await spawn(other.readline())
        await one.write(b"d\n")
        assert await late.join() == b"d\n"

    with pair() as (one, other):
        streams = Stream(one), Stream(other)
        flowno.run(first(*streams))
        flowno.run(second(*streams))


# ------------------------------------------------------------------------------------------------------------------ TLS


def test_tls_begins_in_the_middle_of_a_stream_and_ends_there(contexts: Contexts) -> None:
    async def root() -> None:
        async with plain_streams() as (client, server):

            async def serve() -> None:
                assert await server.readline() == b"STARTTLS\n"
                await server.write(b"go ahead\n")
                await server.start_tls(contexts[1], server_side=True)
                assert await server.readline() == b"secret\n"
                await server.write(b"answer\n")
                await server.unwrap()
                assert await server.readline() == b"plain again\n"
                await server.write(b"bye\n")

            task = await spawn(serve())
            await client.write(b"STARTTLS\n")
            assert await client.readline() == b"go ahead\n"
            await client.start_tls(contexts[0], server_hostname="localhost")
            assert isinstance(client.handle, TLSSocketHandle)
            await client.write(b"secret\n")
            assert await client.readline() == b"answer\n"
            await client.unwrap()
            assert not isinstance(client.handle, TLSSocketHandle)
            await client.write(b"plain again\n")
            assert await client.readline() == b"bye\n"
            await task.join()

    flowno.run(root())


def test_what_was_received_behind_the_last_plain_line_belongs_to_tls(
    contexts: Contexts,
) -> None:
    """The client does not wait for the answer, and the server has read its first TLS message by then."""

    async def root() -> None:
        async with plain_streams() as (client, server):
            await client.write(b"STARTTLS\n")
            starting = await spawn(client.start_tls(contexts[0], server_hostname="localhost"))
            for _ in range(5):
                await sleep(0)
            assert await server.readline() == b"STARTTLS\n"
            await server.start_tls(contexts[1], server_side=True)
            await starting.join()
            await client.write(b"secret\n")
            assert await server.readline() == b"secret\n"

    flowno.run(root())


def test_a_command_that_was_slipped_in_before_tls_is_never_read(
    contexts: Contexts,
) -> None:
    async def root() -> None:
        async with plain_streams() as (client, server):
            await client.write(b"STARTTLS\nDELETE EVERYTHING\n")
            assert await server.readline() == b"STARTTLS\n"
            starting = await spawn(client.start_tls(contexts[0], server_hostname="localhost"))
            with pytest.raises(ssl.SSLError):
                await server.start_tls(contexts[1], server_side=True)
            for _ in range(3):
                with pytest.raises(ClosedResourceError):
                    await server.readline()
            with pytest.raises((ssl.SSLError, OSError)):
                await starting.join()
            with pytest.raises(ClosedResourceError):
                await client.write(b"in the clear")

    flowno.run(root())


def test_start_tls_and_unwrap_are_refused_while_a_task_reads(contexts: Contexts) -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):
            with pytest.raises(TypeError, match="TLS"):
                await other.unwrap()
            reader = await spawn(other.readline())
            with pytest.raises(BusyResourceError):
                await other.start_tls(contexts[1], server_side=True)
            await one.write(b"x\n")
            assert await reader.join() == b"x\n"

    flowno.run(root())


def test_nobody_reads_from_a_stream_that_is_on_its_way_out_of_tls(contexts: Contexts) -> None:
    async def root() -> None:
        async with tls_streams(contexts) as (one, other):
            await one.write(b"secret\nrest\n")
            assert await other.readline() == b"secret\n"
            ending = await spawn(other.unwrap())
            with pytest.raises(BusyResourceError):
                await other.readline()
            with pytest.raises(BusyResourceError):
                await other.unwrap()
            await ending.cancel()

    flowno.run(root())


@pytest.mark.parametrize("method", ["start_tls", "unwrap"])
def test_tls_is_not_begun_nor_ended_under_a_reader_that_gives_way(contexts: Contexts, method: str) -> None:
    async def root() -> None:
        async with tls_streams(contexts) as (one, other):
            await one.write(b"a\n" * 100)

            async def change() -> None:
                with pytest.raises(BusyResourceError):
                    await (other.unwrap() if method == "unwrap" else other.start_tls(contexts[1], server_side=True))

            await other.readline()
            loop = flowno.current_event_loop()
            assert loop is not None
            while loop.budget.left:
                await other.readline()
            changer = loop.create_task(change())
            assert await other.readline() == b"a\n"
            await changer.join()

    flowno.run(root())


def test_nobody_reads_from_a_stream_that_is_on_its_way_to_tls(contexts: Contexts) -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):
            await one.write(b"command\nrest")
            assert await other.readline() == b"command\n"
            starting = await spawn(one.start_tls(contexts[0], server_hostname="localhost"))
            with pytest.raises(BusyResourceError):
                await one.readline()
            await starting.cancel()
            with pytest.raises(TaskCancelled):
                await starting.join()
            with pytest.raises(ClosedResourceError):
                await one.readline()

    flowno.run(root())


def test_start_tls_that_cannot_begin_leaves_the_stream_as_it_was(contexts: Contexts) -> None:
    async def root() -> None:
        async with plain_streams() as (one, other):
            await one.write(b"a\nb\n")
            assert await other.readline() == b"a\n"
            with pytest.raises(TypeError):
                await other.start_tls(None)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="hostname"):
                await other.start_tls(contexts[0])
            assert await other.readline() == b"b\n"
            await other.write(b"c\n")
            assert await one.readline() == b"c\n"

    flowno.run(root())


def test_start_tls_has_a_time_limit(contexts: Contexts) -> None:
    async def root() -> None:
        async with plain_streams() as (_, other):
            with pytest.raises(TimeoutError, match="0.01 s"):
                await other.start_tls(contexts[1], server_side=True, handshake_timeout=0.01)
            with pytest.raises(ClosedResourceError):
                await other.readline()

    flowno.run(root())


def test_what_was_received_through_tls_comes_before_what_follows_it(contexts: Contexts) -> None:
    async def root() -> None:
        async with tls_streams(contexts) as (one, other):
            await one.write(b"secret\nrest of it\n")
            assert await other.readline() == b"secret\n"
            ending = await spawn(one.unwrap())
            await other.unwrap()
            await ending.join()
            with closing(one), closing(other):
                await one.write(b"plain\n")
                assert await other.readline() == b"rest of it\n"
                assert await other.readline() == b"plain\n"

    flowno.run(root())


def test_tls_that_both_ends_have_ended_goes_on_in_plain_text_in_both_directions(contexts: Contexts) -> None:
    async def root() -> None:
        async with tls_streams(contexts) as (one, other):
            await one.write_eof()
            assert await other.read() == b""
            assert other.at_eof()
            ending = await spawn(one.unwrap())
            await other.unwrap()
            await ending.join()
            with closing(one), closing(other):
                assert not other.at_eof()
                await one.write(b"question\n")
                assert await other.readline() == b"question\n"

    flowno.run(root())


def test_unwrap_that_is_cancelled_closes_the_stream(contexts: Contexts) -> None:
    async def root() -> None:
        async with tls_streams(contexts) as (one, _):
            ending = await spawn(one.unwrap())
            with pytest.raises(BusyResourceError):
                await one.readline()
            await ending.cancel()
            for attempt in (one.readline(), one.write(b"x")):
                with pytest.raises(ClosedResourceError):
                    await attempt

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it counts turns of the loop, or what is done in one of them")
def test_who_is_refused_leaves_the_count_of_who_writes_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1000)

    async def main() -> None:
        with tcp_pair() as (one, other):
            stream = Stream(one)
            writer = await spawn(one.sendAll(bytes(50_000_000)))
            await sleep(0)
            with pytest.raises(BusyResourceError):
                await stream.writelines([b"a", b"b"])
            with path.open("rb") as file, pytest.raises(BusyResourceError):
                await one.sendfile(file)
            await writer.cancel()
            sent = one.bytes_sent
            one.close()
            received = 0
            while data := await other.recv(65536):
                received += len(data)
            assert 0 < sent == received

    flowno.run(main())
