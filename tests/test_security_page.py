"""The page on security names tests that exist, and every test that was written for it."""

import doctest
import logging
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

import flowno
from flowno import SocketHandle
from tests.conftest import ROOT
from tests.support import wine
from tests.support.loopback import reset
from tests.support.servers import all_ended
from tests.test_reliability_page import names_of

PAGE = (ROOT / "docs" / "security.rst").read_text(encoding="utf-8")
NAMED = set(re.findall(r"tests/(?:\w+/)?\w+\.py::\w+", PAGE))

#: What has no row without its tests, and no test without its row.
ITS_OWN = ["tests/net/test_hostile_peers.py", "tests/test_private_files.py", "tests/test_untrusted_environment.py"]


def test_each_row_names_its_tests() -> None:
    rows = re.split(r"^   \* - ", PAGE, flags=re.MULTILINE)[1:]
    rows = [row for row in rows if not row.startswith("What ")]  # the heads
    assert len(rows) > 20
    assert [row.partition("\n")[0] for row in rows if "``tests/" not in row] == []


@pytest.mark.parametrize("file", sorted({name.partition("::")[0] for name in NAMED}))
def test_the_tests_that_the_page_names_exist_and_those_of_peers_run_on_every_backend(file: str) -> None:
    tests = names_of(ROOT / file)
    named = {name.partition("::")[2] for name in NAMED if name.startswith(f"{file}::")}
    assert named - tests == set()
    if file.startswith(("tests/core/", "tests/net/", "tests/load/")):
        assert 'pytest.mark.usefixtures("backend")' in (ROOT / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("file", ITS_OWN)
def test_the_page_has_every_test_that_was_written_for_it(file: str) -> None:
    tests = {name for name in names_of(ROOT / file) if name.startswith("test_")}
    assert {name for name in tests if f"{file}::{name}" not in NAMED} == set()


# ---------------------------------------------------------------------------------------------- the handler of the page


async def is_silent(peer: SocketHandle) -> None:
    with suppress(ConnectionError):
        await peer.recv(1)


async def closes_in_the_middle(peer: SocketHandle) -> None:
    await peer.sendAll(b"GET / HT")
    peer.close()


async def resets_in_the_middle(peer: SocketHandle) -> None:
    await peer.sendAll(b"GET / HT")
    reset(peer)


async def never_ends_a_line(peer: SocketHandle) -> None:
    with suppress(ConnectionError):
        while True:
            await peer.sendAll(b"a" * 65_536)


async def says_nothing_and_goes(peer: SocketHandle) -> None:
    peer.close()


PEERS = [is_silent, closes_in_the_middle, resets_in_the_middle, never_ends_a_line, says_nothing_and_goes]


def names_of_the_page() -> dict[str, Any]:
    """What its examples define."""
    examples = doctest.DocTestParser().get_examples(PAGE)
    names: dict[str, Any] = {}
    exec("".join(example.source for example in examples), names)
    return names


def log_of(
    handler: Callable[[flowno.Stream], Awaitable[None]],
    peer: Callable[[SocketHandle], Awaitable[None]],
    caplog: pytest.LogCaptureFixture,
) -> list[tuple[str, str, bool]]:
    """What is logged where a server meets a peer: by whom, at what level, and whether with a traceback."""

    async def main() -> None:
        async with await flowno.serve_tcp(handler, "127.0.0.1", 0) as server:
            with flowno.socket() as handle:
                await flowno.connect(handle, server.addresses[0])
                while not server.connections:  # it is accepted, and not passed over
                    await flowno.sleep(0)
                await peer(handle)
                await all_ended(server)

    with caplog.at_level(logging.INFO):
        flowno.run(main())
    return [(record.name, record.levelname, record.exc_info is not None) for record in caplog.records]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("peer", PEERS)
def test_what_a_peer_does_to_the_handler_of_the_page_is_a_line_of_information(
    peer: Callable[[SocketHandle], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    names = names_of_the_page()
    if peer is is_silent:
        names["timeout"] = lambda _seconds: flowno.timeout(0.01)
    assert log_of(names["handler"], peer, caplog) == [("my_server", "INFO", False)]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("peer", "level"),
    [
        (closes_in_the_middle, "ERROR"),
        pytest.param(resets_in_the_middle, "INFO", marks=wine.takes_a_reset_for_an_end),
        (never_ends_a_line, "ERROR"),
    ],
)
def test_what_leaves_a_handler_is_an_error_unless_it_is_the_loss_of_the_connection(
    peer: Callable[[SocketHandle], Awaitable[None]], level: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(stream: flowno.Stream) -> None:
        await stream.readuntil(b"\r\n\r\n")

    assert log_of(handler, peer, caplog) == [("flowno.net", level, level == "ERROR")]
