"""Peers that break off: the error arrives where somebody waits for it, and nothing spins."""

import socket
import sys
from typing import Any

import pytest

import flowno
from flowno import EventLoop, SocketHandle, TaskHandle, sleep, spawn, wait_readable
from tests.support import wine
from tests.support.counting_selector import CountingSelector
from tests.support.loopback import LARGE, fill, pair, receive, reset, tcp_pair

pytestmark = pytest.mark.usefixtures("backend")


@wine.takes_a_reset_for_an_end
@pytest.mark.parametrize("waiting", [False, True])
def test_a_connection_reset_is_raised_where_it_is_received_from(waiting: bool) -> None:
    async def root() -> None:
        with tcp_pair() as (one, other):
            reader = await spawn(one.recv(1)) if waiting else None
            reset(other)
            with pytest.raises(ConnectionResetError):
                await (reader.join() if reader else one.recv(1))

    flowno.run(root())


def test_a_connection_reset_is_raised_in_both_directions_at_once() -> None:
    async def root() -> None:
        with tcp_pair() as (one, other):
            writer = await spawn(one.sendAll(bytes(LARGE)))
            reader = await spawn(one.recv(1))
            reset(other)
            outcomes = []
            for task in (writer, reader):
                try:
                    outcomes.append(await task.join())
                except OSError as error:
                    outcomes.append(type(error))
            # The system tells the reset once; the other direction sees what is left of the connection.
            assert ConnectionResetError in outcomes
            assert outcomes[0] in (ConnectionResetError, BrokenPipeError)
            assert outcomes[1] in (ConnectionResetError, b"")

    flowno.run(root())


def test_a_peer_that_closes_while_more_is_sent_breaks_the_pipe() -> None:
    async def root() -> None:
        with tcp_pair() as (one, other):
            writer = await spawn(one.sendAll(bytes(LARGE)))
            assert len(await receive(other, 100_000)) == 100_000
            other.close()
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                await writer.join()
            assert 100_000 <= one.bytes_sent < LARGE

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.skipif(sys.platform == "win32", reason="Windows drops what was not received with the connection")
def test_what_a_peer_has_sent_before_it_closed_is_received_after_a_broken_pipe() -> None:
    async def root() -> None:
        with pair() as (one, other):
            await other.sendAll(b"the reason why")
            other.close()
            for _ in range(3):
                with pytest.raises(BrokenPipeError):
                    await one.sendAll(b"x")
            assert await one.recv(100) == b"the reason why"
            assert await one.recv(100) == b""

    flowno.run(root())


@wine.takes_a_reset_for_an_end
def test_a_peer_that_closes_with_data_unread_is_a_reset_and_no_end_of_stream() -> None:
    async def root() -> None:
        with tcp_pair() as (one, other):
            await one.sendAll(b"never read")
            await wait_readable(other)
            other.close()
            with pytest.raises(ConnectionResetError):
                await one.recv(100)

    flowno.run(root())


def test_a_peer_that_closes_half_way_can_still_be_answered() -> None:
    async def root() -> None:
        with tcp_pair() as (one, other):
            reader = await spawn(receive(other, LARGE))
            await one.sendAll(b"question")
            one.shutdown(socket.SHUT_WR)
            assert await reader.join() == b"question"
            for _ in range(3):
                assert await other.recv(100) == b""
            collector = await spawn(receive(one, LARGE))
            await other.sendAll(bytes(LARGE))
            other.close()
            assert len(await collector.join()) == LARGE

    flowno.run(root())


@pytest.mark.parametrize("how", ["end of stream", "reset", "half close"])
@pytest.mark.parametrize("armed", ["read", "write", "both"])
def test_a_hang_up_that_nobody_waits_for_does_not_spin(how: str, armed: str) -> None:
    async def root() -> None:
        with tcp_pair() as (one, other):
            tasks: list[TaskHandle[Any]] = []
            if armed != "write":
                tasks.append(await spawn(one.recv(1)))
            if armed != "read":
                fill(one)
                tasks.append(await spawn(one.send(b"x")))
            for task in tasks:
                await task.cancel()
            if how == "half close":
                other.shutdown(socket.SHUT_WR)
            else:
                (reset if how == "reset" else SocketHandle.close)(other)
            before = counting.calls["select"]
            await sleep(0.1)
            assert counting.calls["select"] - before < 10

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_data_that_nobody_receives_does_not_spin_and_is_not_lost() -> None:
    async def root() -> None:
        with pair() as (one, other):
            await (await spawn(one.recv(1))).cancel()
            await other.sendAll(b"for later")
            before = counting.calls["select"]
            await sleep(0.1)
            assert counting.calls["select"] - before < 10
            assert await one.recv(100) == b"for later"

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)
