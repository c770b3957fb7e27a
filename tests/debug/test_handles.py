"""Handles that nobody closes, blocking connects, and descriptors that are closed behind the loop's back."""

import gc
import os
import re
import socket
import warnings
from collections.abc import Callable

import pytest

import flowno
from flowno import ClosedResourceError, EventLoop, SocketHandle, spawn
from flowno.debug.handles import MOST_HANDLES
from tests.conftest import RunPython
from tests.debug.conftest import messages
from tests.support.loopback import listening, pair

pytestmark = pytest.mark.usefixtures("backend")


# ---------------------------------------------------------------------------------------------------- never closed


def drop() -> None:
    flowno.socket()  # nobody has it


def drop_in_a_cycle() -> None:
    handle = flowno.socket()
    cycle = [handle]
    cycle.append(cycle)  # type: ignore[arg-type]
    del handle, cycle
    gc.collect()


@pytest.mark.parametrize("dropping", [drop, drop_in_a_cycle])
def test_a_handle_that_is_dropped_unclosed_is_warned_of_with_where_it_was_made(
    loop: EventLoop, dropping: Callable[[], None]
) -> None:
    async def main() -> None:
        dropping()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.run_until_complete(main(), join=True)
    [message] = [str(each.message) for each in caught if "SocketHandle" in str(each.message)]
    assert re.match(r"unclosed <?SocketHandle.*\nmade at \(most recent call last\):\n", message)
    functions = re.findall(r", in (\w+)$", message, re.MULTILINE)
    assert functions[:2] == ["main", dropping.__name__]  # nothing of whoever runs the loop


def test_a_dropped_handle_is_said_once_and_in_the_log_where_such_warnings_are_ignored(run_python: RunPython) -> None:
    program = """
import flowno

async def main():
    flowno.socket()

flowno.run(main())
"""
    for options in ([], ["-W", "default"], ["-W", "error::DeprecationWarning"]):
        result = run_python(program, options=options, env={"FLOWNO_DEBUG": "1"})
        assert result.stderr.count("unclosed") == 1, result.stderr
        assert ("ResourceWarning" in result.stderr) == ("default" in options)


kept: list[SocketHandle] = []


@pytest.mark.not_in_debug_mode(reason="there is always a loop in debug mode")
def test_handles_that_are_still_open_when_the_last_loop_is_closed_are_reported_with_where_they_were_made(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as sock:

        async def main() -> None:
            kept.append(flowno.socket())
            kept.append(SocketHandle(sock))  # somebody else's
            flowno.socket().close()

        with EventLoop(debug=True):
            with EventLoop(debug=True) as loop:
                loop.run_until_complete(main(), join=True)
            assert messages(caplog) == []
        [message] = messages(caplog)
        assert re.match(r"<SocketHandle .*> was never closed\nmade at \(most recent call last\):\n", message)
        assert ", in main" in message
        while kept:
            kept.pop().close()


@pytest.mark.not_in_debug_mode(reason="there is always a loop in debug mode")
def test_of_very_many_that_are_still_open_some_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with EventLoop(debug=True):
        kept.extend(flowno.socket() for _ in range(MOST_HANDLES + 3))
    *said, rest = messages(caplog)
    assert len(said) == MOST_HANDLES
    assert rest == "3 more handles were never closed"
    while kept:
        kept.pop().close()


def test_a_tls_handle_is_warned_of_once(loop: EventLoop) -> None:
    async def main() -> None:
        flowno.socket(use_tls=True, server_hostname="localhost")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.run_until_complete(main(), join=True)
    assert [str(each.message).split()[:2] for each in caught if "Handle" in str(each.message)] == [
        ["unclosed", "<TLSSocketHandle"]
    ]


def test_handles_that_are_closed_detached_or_no_last_owner_are_not_warned_of(loop: EventLoop) -> None:
    async def main() -> None:
        flowno.socket().close()
        os.close(flowno.socket().detach()) if os.name != "nt" else None
        with socket.socket() as sock:
            SocketHandle(sock)  # the socket lives on, and somebody else closes it
        with pair() as (one, other):
            await one.sendAll(b"x")
            assert await other.recv(1) == b"x"

    loop.run_until_complete(main(), join=True)  # warnings are errors


def test_a_handle_whose_making_fails_is_not_warned_of(loop: EventLoop) -> None:
    async def main() -> None:
        with pytest.raises(TypeError):
            SocketHandle(3)  # type: ignore[arg-type]

    loop.run_until_complete(main(), join=True)


@pytest.mark.not_in_debug_mode(reason="there is always a loop in debug mode")
def test_the_class_of_handles_is_its_own_again_when_no_loop_is_debugged_any_more() -> None:
    names = ("__init__", "__del__", "connect")
    own = [vars(SocketHandle)[name] for name in names]
    one, other = EventLoop(debug=True), EventLoop(debug=True)
    assert all(vars(SocketHandle)[name] is not method for name, method in zip(names, own, strict=True))
    one.close()
    assert all(vars(SocketHandle)[name] is not method for name, method in zip(names, own, strict=True))
    other.close()
    assert [vars(SocketHandle)[name] for name in names] == own


# ---------------------------------------------------------------------------------------------- connects that block


def test_a_blocking_connect_of_a_task_is_reported_and_made(loop: EventLoop, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        with listening(1) as listener, flowno.socket() as client:
            client.connect(listener.getsockname())  # this line
            client.getpeername()

    loop.run_until_complete(main(), join=True)
    [message] = messages(caplog)
    assert re.match(
        r"<TaskHandle .*main alive> holds up the event loop by connect\(\('127.0.0.1', \d+\)\); "
        r"await flowno.connect\(handle, address\) does not:\n",
        message,
    )
    assert "client.connect(listener.getsockname())  # this line" in message


def test_a_connect_that_is_awaited_or_outside_of_a_run_is_not_reported(
    loop: EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with flowno.socket() as client:
            await flowno.connect(client, address)

    with listening() as listener, flowno.socket() as early:
        address = listener.getsockname()
        early.connect(address)
        loop.run_until_complete(main(), join=True)
    assert messages(caplog) == []


# --------------------------------------------------------------------------------- closed behind the loop's back


async def use(handle: SocketHandle, other: SocketHandle) -> None:
    """The loop knows the handle from now on."""
    await other.sendAll(b"x")
    assert await handle.recv(1) == b"x"


def test_a_socket_that_is_closed_under_its_handle_is_reported_with_where_it_was_first_used(
    loop: EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> int:
        with pair() as (one, other):
            await use(one, other)
            fd = one.fileno()
            one.socket.close()
            assert messages(caplog) == []
        return fd

    fd = loop.run_until_complete(main(), join=True)
    [message] = messages(caplog)
    assert message.startswith(f"fd {fd} was closed by other means than its handle, while ")
    assert "; close the handle instead\nit was first used at (most recent call last):\n" in message
    assert ", in use\n    assert await handle.recv(1) ==" in message


def test_who_waits_for_it_is_named(loop: EventLoop, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        with pair() as (one, _):
            reader = await spawn(one.recv(1), name="the reader")
            one.socket.close()
            loop.fds.audit()  # as the loop does when it has been quiet for a second
            with pytest.raises(ClosedResourceError):
                await reader.join()

    loop.run_until_complete(main(), join=True)
    [message] = messages(caplog)
    assert re.search(r"; <TaskHandle 'the reader' .*recv alive> waits to read from it; close the handle", message)


@pytest.mark.skipif(os.name == "nt", reason="os.close() closes no socket there")
def test_a_descriptor_that_was_closed_and_is_now_another_files_is_reported_though_its_socket_does_not_know(
    loop: EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with pair() as (one, other):
            await use(one, other)
            with open(os.devnull, "rb") as null:
                os.dup2(null.fileno(), one.fileno())
            loop.fds.audit()  # as the loop does about once a second
            assert len(messages(caplog)) == 1
            loop.fds.audit()
        assert len(messages(caplog)) == 1  # once

    loop.run_until_complete(main(), join=True)


def test_descriptors_that_are_closed_by_their_handles_are_not_reported(
    loop: EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        for _ in range(3):  # the same numbers again
            with pair() as (one, other):
                await use(one, other)
                waits = await spawn(one.recv(1))
                one.close()
                with pytest.raises(ClosedResourceError):
                    await waits.join()
            one, other = flowno.socketpair()
            with other:
                await use(one, other)
                os.close(one.detach()) if os.name != "nt" else one.close()
        loop.fds.audit()

    loop.run_until_complete(main(), join=True)
    assert messages(caplog) == []


def test_the_run_ends_and_says_what_nobody_has_noticed_before(
    loop: EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = flowno.socketpair()

    async def main() -> None:
        await use(one, other)
        one.socket.close()

    with other:
        loop.run_until_complete(main(), join=True)
        assert len(messages(caplog)) == 1
        one.close()
    assert len(messages(caplog)) == 1
