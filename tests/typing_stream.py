"""What type checkers make of flowno's streams. Nothing here is run: mypy and pyright check it, by ``tox -e types``."""

import re
import socket
import ssl
from typing import Any, assert_type

from flowno import Stream


def extra_information(stream: Stream) -> None:
    assert_type(stream.get_extra_info("socket"), socket.socket)
    assert_type(stream.get_extra_info("sslcontext"), ssl.SSLContext | None)
    assert_type(stream.get_extra_info("ssl_object"), ssl.SSLObject | None)
    assert_type(stream.get_extra_info("version"), str | None)
    assert_type(stream.get_extra_info("alpn_protocol"), str | None)
    assert_type(stream.get_extra_info("compression"), str | None)
    assert_type(stream.get_extra_info("cipher"), tuple[str, str, int] | None)
    assert_type(stream.get_extra_info("peercert"), dict[str, Any] | None)
    assert_type(stream.get_extra_info("alpn_protocol", "http/1.1"), str)
    assert_type(stream.get_extra_info("cipher", default=False), tuple[str, str, int] | bool)
    # An address is what the family of the socket has for one; and a name that nobody knows may be known one day.
    assert_type(stream.get_extra_info("peername"), Any)
    assert_type(stream.get_extra_info("sockname"), Any)
    assert_type(stream.get_extra_info("something else", 7), Any)


async def reads(stream: Stream) -> None:
    assert_type(await stream.readuntil(re.compile(rb"\r?\n")), bytes)
    assert_type(await stream.readinto(bytearray(9)), int)
    async for line in stream:
        assert_type(line, bytes)
    async for chunk in stream.chunks():
        assert_type(chunk, bytes)
    await stream.readuntil(re.compile("\n"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
