"""Names: looked up in a thread, or not at all where the question is a number; and errors that say what was asked."""

import re
import socket
import sys
import threading
from typing import Any

import pytest

import flowno
from flowno import EventLoopError, sleep, spawn
from flowno.net.resolver import getaddrinfo, getnameinfo
from tests.support.worlds import ScriptedWorld, answer, in_world

pytestmark = pytest.mark.usefixtures("backend")


def ask(*args: Any, world: ScriptedWorld | None = None, **kwargs: Any) -> Any:
    with in_world(world or ScriptedWorld()) as loop:
        return loop.run_until_complete(getaddrinfo(*args, **kwargs), join=True)


# --------------------------------------------------------------------------------------------------------------- names


def test_a_name_is_looked_up_in_a_thread_while_other_tasks_run() -> None:
    world = ScriptedWorld()
    world.names["some.test"] = answer(("127.0.0.1", 80))
    world.go_on.clear()

    async def root() -> None:
        asking = await spawn(getaddrinfo("some.test", 80, type=socket.SOCK_STREAM))
        for _ in range(5):
            await sleep(0)
        assert not asking.is_finished
        world.go_on.set()
        assert await asking.join() == answer(("127.0.0.1", 80))

    with in_world(world) as loop:
        loop.run_until_complete(root(), join=True)
    assert world.asked == [("some.test", 80, 0, socket.SOCK_STREAM, 0, 0)]
    assert world.threads != [threading.get_ident()]


def test_a_cancelled_lookup_does_not_wait_for_the_resolver() -> None:
    world = ScriptedWorld()
    world.go_on.clear()

    async def root() -> None:
        asking = await spawn(getaddrinfo("some.test", 80))
        await sleep(0)
        assert await asking.cancel() is None
        assert not world.go_on.is_set()

    with in_world(world) as loop:
        loop.run_until_complete(root(), join=True)


def test_a_name_that_does_not_resolve_is_named_with_its_port() -> None:
    with pytest.raises(socket.gaierror, match=re.escape("('nowhere.test', 443)")) as caught:
        ask("nowhere.test", 443)
    assert caught.value.errno == socket.EAI_NONAME
    assert "Name or service not known" in str(caught.value)


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "..", "no\0name", b"no\0name"])
def test_what_can_be_no_name_is_a_value_error(host: Any) -> None:
    async def root() -> None:
        with pytest.raises(ValueError, match=r"cannot be the name of a host"):
            await getaddrinfo(host, 80)

    flowno.run(root())


def test_flags_that_ask_for_more_go_to_the_resolver() -> None:
    world = ScriptedWorld()
    world.names["127.0.0.1"] = answer(("127.0.0.1", 80))
    ask("127.0.0.1", 80, flags=socket.AI_CANONNAME, world=world)
    assert len(world.asked) == 1


def test_this_machine_has_addresses() -> None:
    async def root() -> list[Any]:
        return [found[4][0] for found in await getaddrinfo(None, 80, type=socket.SOCK_STREAM)]

    assert {"127.0.0.1", "::1"} & set(flowno.run(root()))


# ------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("host", "port", "sockaddr"),
    [
        ("127.0.0.1", 80, ("127.0.0.1", 80)),
        (b"127.0.0.1", "80", ("127.0.0.1", 80)),
        ("127.0.0.1", b"0080", ("127.0.0.1", 80)),
        ("127.0.0.1", None, ("127.0.0.1", 0)),
        ("127.0.0.1", "", ("127.0.0.1", 0)),
        ("::1", 65535, ("::1", 65535, 0, 0)),
        ("0:0:0:0:0:0:0:1", 1, ("::1", 1, 0, 0)),
        ("FE80::1%7", 1, ("fe80::1", 1, 0, 7)),
        ("::ffff:1.2.3.4", 1, ("::ffff:1.2.3.4", 1, 0, 0)),
    ],
)
def test_a_number_needs_no_resolver_and_no_thread(host: Any, port: Any, sockaddr: Any) -> None:
    world = ScriptedWorld()
    family = socket.AF_INET6 if len(sockaddr) == 4 else socket.AF_INET
    for kind, proto in ((socket.SOCK_STREAM, socket.IPPROTO_TCP), (socket.SOCK_DGRAM, socket.IPPROTO_UDP)):
        expected = [(family, kind, proto, "", sockaddr)]
        assert ask(host, port, type=kind, world=world) == expected
        assert ask(host, port, proto=proto, world=world)[0] == expected[0]
        assert ask(host, port, type=kind, proto=proto, family=family, flags=socket.AI_PASSIVE, world=world) == expected
    assert world.asked == []


def test_an_interface_can_be_named() -> None:
    index, name = socket.if_nameindex()[0]
    world = ScriptedWorld()
    assert ask(f"fe80::1%{name}", 80, type=socket.SOCK_STREAM, world=world)[0][4] == ("fe80::1", 80, 0, index)
    assert world.asked == []
    with pytest.raises(socket.gaierror, match="no-such"):
        ask("fe80::1%no-such-interface", 80)


@pytest.mark.skipif(sys.platform != "linux", reason="what the system gives for a number differs, ours is Linux's")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("type", [0, socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW])
@pytest.mark.parametrize("proto", [0, socket.IPPROTO_TCP, socket.IPPROTO_UDP])
def test_the_answer_for_a_number_is_the_system_s(host: str, type: int, proto: int) -> None:
    try:
        expected = socket.getaddrinfo(host, 80, type=type, proto=proto)
    except socket.gaierror:
        with pytest.raises(socket.gaierror):
            flowno.run(getaddrinfo(host, 80, type=type, proto=proto))
    else:
        assert flowno.run(getaddrinfo(host, 80, type=type, proto=proto)) == expected


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1%1", "1.2.3.4.5", "::1%"])
def test_a_number_of_the_wrong_family_or_form_is_for_the_resolver_to_refuse(host: str) -> None:
    with pytest.raises(socket.gaierror, match=re.escape(host)):
        ask(host, 80, family=socket.AF_INET6)


@pytest.mark.parametrize("port", [-1, 65536, "65536", b"70000"])
def test_a_number_that_is_no_port_is_a_value_error(port: Any) -> None:
    with pytest.raises(ValueError, match="port must be 0 to 65535"):
        ask("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [(7, 80), ("127.0.0.1", 1.5), (["127.0.0.1"], 80)])
def test_a_wrong_type_names_the_argument(host: Any, port: Any) -> None:
    with pytest.raises(TypeError, match=r"^(host|port) must be"):
        ask(host, port)


@pytest.mark.parametrize(
    "call",
    [
        lambda: getaddrinfo("127.0.0.1", 80),
        lambda: getnameinfo(("127.0.0.1", 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV),
    ],
)
def test_numbers_do_not_keep_the_other_tasks_from_running(call: Any) -> None:
    async def busy() -> None:
        while not stop:
            await call()

    async def root() -> None:
        task = await spawn(busy())
        await sleep(0)
        stop.append(True)
        await task.join()

    stop: list[bool] = []
    flowno.run(root())


# --------------------------------------------------------------------------------------------------- names of addresses


def test_getnameinfo_gives_the_name_or_the_number() -> None:
    async def root() -> None:
        numbers = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        assert await getnameinfo(("127.0.0.1", 80), numbers) == ("127.0.0.1", "80")
        assert await getnameinfo(("::1", 80, 0, 0), numbers) == ("::1", "80")
        assert await getnameinfo(("127.0.0.1", 80)) == socket.getnameinfo(("127.0.0.1", 80), 0)

    flowno.run(root())


@pytest.mark.parametrize("flags", [0, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV])
def test_getnameinfo_names_an_address_that_is_none(flags: int) -> None:
    with pytest.raises(socket.gaierror, match=re.escape("('no number', 80)")):
        flowno.run(getnameinfo(("no number", 80), flags))


@pytest.mark.parametrize("call", [lambda: getaddrinfo("127.0.0.1", 80), lambda: getnameinfo(("127.0.0.1", 80))])
def test_outside_of_a_loop_it_says_so(call: Any) -> None:
    with pytest.raises(EventLoopError, match="outside of an event loop"):
        call().send(None)
