"""asyncio's own event loop on a selector that is chosen as a flowno loop's is."""

import asyncio
import logging
import re
import selectors
import socket
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from selectors import EVENT_READ, SelectorKey
from typing import Any, TypeVar

import pytest

import flowno
from flowno import EventLoop, SelectorUnavailableError, UnknownSelectorError, asyncio_loop_factory
from flowno.core.event_loop.backend import SelectorChoice, open_selector
from flowno.debug.selector_decorators import CheckSelector, ProtocolViolation, ShadowSelector, TraceSelector
from flowno_backends import SelectSelector
from tests.conftest import ROOT, RunPython
from tests.core.test_foreign_selectors import FiveMethods
from tests.support.counting_selector import CountingSelector
from tests.support.virtual_time import VirtualTimeSelector

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T], selector: SelectorChoice | None = None, *, debug: bool | None = None) -> T:
    with asyncio.Runner(debug=debug, loop_factory=partial(asyncio_loop_factory, selector)) as runner:
        return runner.run(main)


def selector_of(loop: asyncio.AbstractEventLoop) -> Any:
    return loop._selector  # type: ignore[attr-defined]  # asyncio shows it in no other way


async def running_selector() -> Any:
    return selector_of(asyncio.get_running_loop())


async def exercise() -> list[object]:
    """Both directions of a socket, both callbacks of an fd, a thread and a timer."""
    loop = asyncio.get_running_loop()
    one, other = socket.socketpair()
    with one, other:
        for sock in (one, other):
            sock.setblocking(False)
        size = 1 << 20
        sending = asyncio.ensure_future(loop.sock_sendall(one, bytes(size)))
        received = 0
        while received < size:
            received += len(await loop.sock_recv(other, 1 << 16))
        await sending
        readable, writable = loop.create_future(), loop.create_future()
        loop.add_reader(one, lambda: readable.done() or readable.set_result("readable"))
        loop.add_writer(one.fileno(), lambda: writable.done() or writable.set_result("writable"))
        other.send(b".")
        outcome: list[object] = [received, await readable, await writable]
        outcome += [loop.remove_reader(one.fileno()), loop.remove_writer(one), loop.remove_reader(one)]
    in_thread = await loop.run_in_executor(None, sum, [1, 2])
    return [*outcome, in_thread, await asyncio.sleep(0.001, "slept")]


DONE: list[object] = [1 << 20, "readable", "writable", True, True, False, 3, "slept"]


# ------------------------------------------------------------------------------------------------------ the choice


def test_the_variable_chooses(backend: str) -> None:
    opened = open_selector()
    opened.selector.close()
    assert type(run(running_selector())) is type(opened.selector)
    assert run(exercise()) == DONE


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.run has no loop_factory before Python 3.12")
def test_the_line_that_the_documentation_promises(backend: str) -> None:
    assert asyncio.run(exercise(), loop_factory=flowno.asyncio_loop_factory) == DONE  # type: ignore[call-arg,unused-ignore]


CHOICES: list[tuple[Any, type]] = [
    ("select", SelectSelector),
    (" Select ", SelectSelector),
    ("selectors:SelectSelector", selectors.SelectSelector),
    (["selectors:SelectSelector", "select"], selectors.SelectSelector),
    (SelectSelector, SelectSelector),
    (lambda: SelectSelector(), SelectSelector),
    ("check(select)", CheckSelector),
    ("trace(check(select))", TraceSelector),
    ("shadow(select, selectors:SelectSelector)", ShadowSelector),
]


@pytest.mark.parametrize(("choice", "class_"), CHOICES)
def test_an_argument_beats_the_variable(choice: Any, class_: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWNO_SELECTOR", "unheard of")
    assert type(run(running_selector(), choice)) is class_
    assert run(exercise(), choice) == DONE


def test_of_a_list_the_first_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "Lacking", lambda: 1 / 0, raising=False)
    assert type(run(running_selector(), f"{__name__}:Lacking, select")) is SelectSelector


def test_a_selector_that_exists_is_used_as_it_is() -> None:
    mine = SelectSelector()
    assert run(running_selector(), mine) is mine


@pytest.mark.parametrize(
    "choice",
    ["unheard of", "selekt", "trace", "check(selekt)", "shadow(select)", "trace(select", "no.such:Thing",
     ["select", "x"], f"{__name__}:Broken", [f"{__name__}:Broken", f"{__name__}:Broken"], 3, [3], dict],
    ids=lambda choice: choice if isinstance(choice, str) else repr(choice),
)  # fmt: skip
def test_what_cannot_be_had_is_the_error_of_an_event_loop_of_flowno(
    choice: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "Broken", lambda: 1 / 0, raising=False)
    with pytest.raises((UnknownSelectorError, SelectorUnavailableError, TypeError)) as ours:
        EventLoop(selector=choice)
    with pytest.raises(ours.type) as raised:
        asyncio_loop_factory(choice)
    assert raised.type is ours.type
    assert str(raised.value) == str(ours.value).replace("EventLoop(", "asyncio_loop_factory(")


def test_an_error_of_the_variable_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWNO_SELECTOR", "selekt")
    with pytest.raises(UnknownSelectorError, match=r"^FLOWNO_SELECTOR=selekt: no selector is named 'selekt'"):
        asyncio_loop_factory()


def test_without_any_choice_the_error_says_who_has_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWNO_SELECTOR", raising=False)
    monkeypatch.setattr("flowno.core.event_loop.backend.BUILT_IN", {"none": f"{__name__}:Broken"})
    monkeypatch.setattr(sys.modules[__name__], "Broken", lambda: 1 / 0, raising=False)
    with pytest.raises(SelectorUnavailableError, match=r"^asyncio_loop_factory\(\): "):
        asyncio_loop_factory()


def test_an_untrusted_environment_loads_no_code(run_python: RunPython) -> None:
    program = (
        f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'backends')]!r}\n"
        "import flowno\n"
        "loop = flowno.asyncio_loop_factory()\n"
        "print(type(loop._selector).__module__)\n"
        "loop.close()\n"
    )
    result = run_python(program, options=["-E"], env={"FLOWNO_SELECTOR": "selectors:SelectSelector"})
    assert result.stdout.startswith("flowno_backends.")
    assert "FLOWNO_SELECTOR=selectors:SelectSelector: ignored selectors:SelectSelector" in result.stderr


# ------------------------------------------------------------------------------------------------- whose it is then


def test_the_selector_is_closed_with_the_loop(backend: str) -> None:
    with CountingSelector() as selector:
        loop = asyncio_loop_factory(selector)
        assert selector.calls["close"] == 0
        loop.close()
        assert selector.calls["close"] == 1
        loop.close()
        assert selector.calls["close"] == 1


class Worldless(SelectSelector):
    """Brings a world that lacks everything."""

    world = object()


def test_a_selector_that_cannot_be_used_is_closed_by_who_has_made_it() -> None:
    made: list[Worldless] = []

    def factory() -> Worldless:
        made.append(Worldless())
        return made[0]

    with pytest.raises(TypeError, match="the world of select has no clock"):
        asyncio_loop_factory(factory)
    assert repr(made[0]) == "<Worldless closed>"
    with Worldless() as mine:
        with pytest.raises(TypeError, match="the world of select has no clock"):
            asyncio_loop_factory(mine)
        assert repr(mine) == "<Worldless 0 registered>"


def test_a_selector_in_virtual_time_gives_the_loop_its_clock(backend: str) -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        start = loop.time()
        await asyncio.sleep(3600)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(7200):
                await loop.create_future()
        return loop.time() - start

    assert run(main(), VirtualTimeSelector) == pytest.approx(10800)


# ----------------------------------------------------------------------------------------- five methods and no more


class Bare(FiveMethods):
    """Five methods; takes sockets as they are, as asyncio has them, and knows them when they are closed."""

    def register(self, fileobj: Any, events: int, data: Any = None, /) -> SelectorKey:
        key = super().register(fileobj if isinstance(fileobj, int) else fileobj.fileno(), events, data)
        self.keys[key.fd] = key = key._replace(fileobj=fileobj)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None, /) -> SelectorKey:
        old = self.unregister(fileobj)
        return self.register(old.fileobj, events, data)

    def unregister(self, fileobj: Any, /) -> SelectorKey:
        fds = [key.fd for key in self.keys.values() if fileobj is key.fileobj or fileobj == key.fd]
        return super().unregister(fds[0] if fds else fileobj if isinstance(fileobj, int) else fileobj.fileno())


@pytest.mark.parametrize("around", [lambda it: it, CheckSelector, TraceSelector], ids=["bare", "check", "trace"])
def test_a_selector_of_five_methods_is_enough(around: Callable[[Any], Any]) -> None:
    bare = Bare()
    assert not hasattr(bare, "get_map")
    assert run(exercise(), around(bare)) == DONE
    assert bare.closed


def test_the_backend_of_the_documentation_runs_asyncio(run_python: RunPython) -> None:
    program = (
        "import asyncio, flowno\n"
        "async def main():\n"
        "    async def greet(reader, writer):\n"
        "        writer.write(b'hello')\n"
        "        writer.close()\n"
        "    async with await asyncio.start_server(greet, '127.0.0.1', 0) as server:\n"
        "        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())\n"
        "        print(await reader.read())\n"
        "        writer.close()\n"
        "with asyncio.Runner(loop_factory=flowno.asyncio_loop_factory) as runner:\n"
        "    runner.run(main())\n"
    )
    path = [str(ROOT), str(ROOT / "backends"), str(ROOT / "docs" / "examples")]
    result = run_python(
        f"import sys; sys.path[:0] = {path!r}\n{program}", env={"FLOWNO_SELECTOR": "minimal_backend:MinimalSelector"}
    )
    assert (result.stdout, result.stderr) == ("b'hello'\n", "")


def test_what_a_failed_modify_has_dropped_is_registered_anew(backend: str) -> None:
    selector = CountingSelector()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        one, other = socket.socketpair()
        with one, other:
            loop.add_reader(one, int)
            selector.fail["modify"] = OSError("no more of that")
            selector.inner.unregister(one)  # as its modify would have done
            with pytest.raises(OSError, match="no more of that"):
                loop.add_writer(one, int)
            del selector.masks[one.fileno()]
            assert not loop.remove_reader(one)
            loop.add_writer(one, int)
            assert loop.remove_writer(one)

    run(main(), selector)


def test_a_socket_that_is_closed_by_now_is_found_by_what_it_was(backend: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        one, other = socket.socketpair()
        with one, other:
            loop.add_reader(one, int)
            one.close()
            assert loop.remove_reader(one)
            assert not loop.remove_reader(one)

    run(main(), Bare)


# -------------------------------------------------------------------------------------------------------- debugging


def test_trace_shows_what_asyncio_asks(backend: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "flowno.selector")

    async def main() -> int:
        loop = asyncio.get_running_loop()
        one, other = socket.socketpair()
        with one, other:
            loop.add_reader(one, int)
            loop.add_writer(one, int)
            fd = one.fileno()
            loop.remove_reader(one)
            loop.remove_writer(one)
        return fd

    fd = run(main(), f"trace({backend})")
    lines = "\n".join(caplog.messages)
    for call in ("register(<socket.socket ", "modify(<socket.socket ", "unregister(<socket.socket "):
        assert re.search(rf": {re.escape(call)}.*-> fd {fd}$", lines, re.MULTILINE), lines
    assert re.search(r": select\(0\) -> ", lines), lines
    assert lines.endswith("close() -> None")


class Eager(SelectSelector):
    """Never waits."""

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        return super().select(0)


class Deaf(SelectSelector):
    """Hears of nothing but the call of another thread, which asyncio registers first."""

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        first = next(iter(self.get_map()), None)
        return [(key, events) for key, events in super().select(timeout) if key.fd == first]


def test_check_ends_the_run_where_the_selector_breaks_a_rule() -> None:
    with pytest.raises(ProtocolViolation, match='breaks the rule "early"'):
        run(asyncio.sleep(0.2), f"check({__name__}:Eager)")


def test_shadow_warns_where_the_second_disagrees(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        one, other = socket.socketpair()
        with one, other:
            other.send(b".")
            loop.add_reader(one, int)
            await asyncio.sleep(0.001)
            loop.remove_reader(one)

    run(main(), f"shadow({__name__}:Deaf, select)")
    assert [record.levelname for record in caplog.records if "and not by" in record.getMessage()] == ["WARNING"]


@pytest.mark.parametrize("decorated", ["trace({})", "check({})", "shadow({0},{0})", "check(shadow({0},select))"])
def test_a_program_runs_within_decorators_as_without(backend: str, decorated: str) -> None:
    assert run(exercise(), decorated.format(backend), debug=True) == DONE


def test_check_lets_both_callbacks_of_an_fd_come_and_go(backend: str) -> None:
    async def main() -> set[int]:
        loop = asyncio.get_running_loop()
        one, other = socket.socketpair()
        with one, other:
            for _ in range(3):
                loop.add_reader(one, int)
                loop.add_reader(one, int)
                loop.add_writer(one, int)
                await asyncio.sleep(0)
                loop.remove_reader(one)
                await asyncio.sleep(0)
                loop.remove_writer(one)
        return {key.events for key in selector_of(loop).get_map().values()}

    assert run(main(), f"check({backend})") == {EVENT_READ}
