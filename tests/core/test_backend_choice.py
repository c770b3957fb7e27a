"""Which selector a loop gets: by argument, by ``FLOWNO_SELECTOR``, or the best that there is."""

import errno
import gc
import os
import selectors
import socket
import sys
from functools import partial

import pytest

from flowno.core.event_loop import backend
from flowno.core.event_loop.backend import (
    SYSTEM_WORLD,
    Selector,
    available_selectors,
    default_selector_name,
    open_selector,
    world_of,
)
from flowno.core.event_loop.errors import FlownoError, SelectorUnavailableError, UnknownSelectorError

# A machine of the tests' own: four built-in backends, of which the first cannot be had.


class Counted(selectors.SelectSelector):
    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        super().__init__()


class Best(Counted):
    """The best there is; fast."""


class Plain(Counted):
    """Works everywhere."""


class Last(Counted):
    facts = "one line of facts"


def lacking() -> Selector:
    raise OSError(errno.ENOSYS, "select.lacking does not exist on testos")


def full() -> Selector:
    raise OSError(errno.EMFILE, "Too many open files")


def broken() -> Selector:
    raise ZeroDivisionError("division by zero")


HERE = __name__


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWNO_SELECTOR", raising=False)
    table = {"lacking": "lacking", "best": "Best", "plain": "Plain", "last": "Last"}
    monkeypatch.setattr(backend, "BUILT_IN", {name: f"{HERE}:{factory}" for name, factory in table.items()})


# ------------------------------------------------------------------------------------------------- who decides


@pytest.mark.parametrize(
    ("argument", "variable", "chosen"),
    [
        (None, None, "best"),
        (None, "", "best"),
        (None, "  ", "best"),
        (None, ",", "best"),
        (None, "auto", "best"),
        (None, "AUTO", "best"),
        (None, "plain", "plain"),
        (None, "Plain", "plain"),
        (None, " PLAIN ", "plain"),
        (None, "lacking,plain,best", "plain"),
        (None, "last , plain", "last"),
        (None, "lacking,auto", "best"),
        (None, "last,auto", "last"),
        (None, f"{HERE}:Plain", f"{HERE}:Plain"),
        (None, f"{HERE}:lacking,last", "last"),
        ("plain", None, "plain"),
        ("plain", "last", "plain"),
        ("plain", "unheard of", "plain"),
        ("auto", "last", "best"),
        ("", "last", "best"),
        ([], "last", "best"),
        ("lacking,last", None, "last"),
        (["lacking", "last", "plain"], None, "last"),
        (("lacking", "Plain"), None, "plain"),
        (["lacking", "auto"], None, "best"),
        (f"{HERE}:Plain", "last", f"{HERE}:Plain"),
        (Plain, "last", f"{HERE}:Plain"),
        (partial(Plain), "last", repr(partial(Plain))),
    ],
)
def test_argument_beats_variable_beats_automatic_choice(
    argument: backend.SelectorChoice | None, variable: str | None, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("FLOWNO_SELECTOR", variable)
    opened = open_selector(argument)
    opened.selector.close()
    assert opened.name == chosen
    assert opened.owned


def test_an_instance_is_used_as_it_is_and_stays_its_makers() -> None:
    with selectors.SelectSelector() as mine:
        opened = open_selector(mine)
        assert opened.selector is mine
        assert not opened.owned
        assert opened.name == "selectors:SelectSelector"


def test_an_instance_that_has_a_name_goes_by_it() -> None:
    class Named(selectors.SelectSelector):
        name = "named"

    with Named() as mine:
        assert open_selector(mine).name == "named"


def test_the_variable_is_read_when_a_loop_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for name in ("plain", "last"):
        monkeypatch.setenv("FLOWNO_SELECTOR", name)
        opened = open_selector()
        opened.selector.close()
        names.append(opened.name)
    assert names == ["plain", "last"]


def test_no_backend_is_constructed_after_the_first_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Last, "made", 0)
    open_selector("plain,last").selector.close()
    assert Last.made == 0


def test_an_own_backend_may_be_an_attribute_of_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Best, "inner", Plain, raising=False)
    opened = open_selector(f"{HERE}:Best.inner")
    opened.selector.close()
    assert type(opened.selector) is Plain


def test_a_refused_backend_leaves_nothing_to_the_collector() -> None:
    gc.collect()
    open_selector("lacking,plain").selector.close()
    assert gc.collect() == 0


# ----------------------------------------------------------------------------- what cannot be honoured is an error


@pytest.mark.parametrize(
    ("argument", "variable", "message"),
    [
        (None, "plian", "FLOWNO_SELECTOR=plian: no selector is named 'plian' (did you mean plain?)"),
        (None, "xyz", "FLOWNO_SELECTOR=xyz: no selector is named 'xyz'"),
        (None, "lost,plain", "FLOWNO_SELECTOR=lost,plain: no selector is named 'lost' (did you mean last?)"),
        (None, "plain,xyz", "FLOWNO_SELECTOR=plain,xyz: no selector is named 'xyz'"),
        (
            None,
            "package.Backend",
            (
                "FLOWNO_SELECTOR=package.Backend: no selector is named 'package.Backend' "
                "(one of your own is written package.module:factory)"
            ),
        ),
        (None, ":x", "FLOWNO_SELECTOR=:x: ':x' is not of the form package.module:factory"),
        (None, "a:b:c", "FLOWNO_SELECTOR=a:b:c: 'a:b:c' is not of the form package.module:factory"),
        (
            "no_such_package.x:y",
            None,
            "EventLoop(selector='no_such_package.x:y'): there is no module 'no_such_package'",
        ),
        ("json.nothing:y", None, "EventLoop(selector='json.nothing:y'): there is no module 'json.nothing'"),
        (
            f"{HERE}:Plian",
            None,
            f"EventLoop(selector='{HERE}:Plian'): module '{HERE}' has no 'Plian' (did you mean Plain?)",
        ),
        (["xyz", "plain"], None, "EventLoop(selector=['xyz', 'plain']): no selector is named 'xyz'"),
    ],
)
def test_an_unknown_name_is_an_error_that_says_what_there_is(
    argument: backend.SelectorChoice | None, variable: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("FLOWNO_SELECTOR", variable)
    with pytest.raises(UnknownSelectorError) as caught:
        open_selector(argument)
    assert str(caught.value) == f"{message}; usable here: best, plain, last"
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, FlownoError)


@pytest.mark.parametrize(
    ("argument", "variable", "message", "code"),
    [
        (None, "lacking", "FLOWNO_SELECTOR=lacking: select.lacking does not exist on testos", errno.ENOSYS),
        (None, "Lacking", "FLOWNO_SELECTOR=Lacking: select.lacking does not exist on testos", errno.ENOSYS),
        ("lacking", None, "EventLoop(selector='lacking'): select.lacking does not exist on testos", errno.ENOSYS),
        (["lacking"], None, "EventLoop(selector=['lacking']): select.lacking does not exist on testos", errno.ENOSYS),
        (lacking, None, f"EventLoop(selector={HERE}:lacking): select.lacking does not exist on testos", errno.ENOSYS),
        (broken, None, f"EventLoop(selector={HERE}:broken): ZeroDivisionError: division by zero", errno.ENOSYS),
        (full, None, f"EventLoop(selector={HERE}:full): Too many open files", errno.EMFILE),
        (
            None,
            f"lacking,{HERE}:broken",
            (
                f"FLOWNO_SELECTOR=lacking,{HERE}:broken: lacking: select.lacking does not exist on testos; "
                f"{HERE}:broken: ZeroDivisionError: division by zero"
            ),
            errno.ENOSYS,
        ),
    ],
)
def test_an_unavailable_backend_is_an_error_that_says_who_asked_and_why_not(
    argument: backend.SelectorChoice | None,
    variable: str | None,
    message: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if variable is not None:
        monkeypatch.setenv("FLOWNO_SELECTOR", variable)
    with pytest.raises(SelectorUnavailableError) as caught:
        open_selector(argument)
    assert str(caught.value) == f"{message}; usable here: best, plain, last"
    assert caught.value.errno == code
    assert isinstance(caught.value.__cause__, (OSError, ZeroDivisionError))
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, FlownoError)


def test_automatic_choice_with_nothing_to_choose_says_why_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "BUILT_IN", {"one": f"{HERE}:lacking", "two": f"{HERE}:broken"})
    with pytest.raises(SelectorUnavailableError) as caught:
        open_selector()
    assert str(caught.value) == (
        "EventLoop(): one: select.lacking does not exist on testos; two: ZeroDivisionError: division by zero; "
        "usable here: none"
    )


def test_running_out_of_fds_does_not_choose_another_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "BUILT_IN", {"full": f"{HERE}:full", "plain": f"{HERE}:Plain"})
    with pytest.raises(SelectorUnavailableError, match="Too many open files") as caught:
        open_selector()
    assert caught.value.errno == errno.EMFILE


def test_an_own_module_that_fails_on_import_is_found_but_unavailable(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "needs_another_module.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(SelectorUnavailableError, match="No module named 'a_module_that_is_not_there'") as caught:
        open_selector("needs_another_module:Selector")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (3, r"selector must be a name, a list of names, a factory or a selector, not 3$"),
        (b"plain", r"selector must be a name, .* not b'plain'$"),
        ({"plain"}, r"selector must be a name, .* not \{'plain'\}$"),
        (["plain", 3], r"selector: a list must hold names, not 3$"),
        (["plain", None], r"selector: a list must hold names, not None$"),
        (dict, r"builtins:dict made \{\}, which is no selector: it has no register, modify, unregister, select, close"),
        (f"{HERE}:HERE", rf"{HERE}:HERE is no factory but '{HERE}'"),
    ],
)
def test_a_wrong_type_is_a_type_error_at_the_call(argument: backend.SelectorChoice, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        open_selector(argument)


def test_a_selector_that_lacks_methods_is_told_which() -> None:
    class Half:
        register = unregister = select = lambda self, *arguments: None

        def __repr__(self) -> str:
            return "<half>"

    with pytest.raises(TypeError, match="not <half> without modify, close"):
        open_selector(Half())  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"^EventLoop\(selector=.*\): .* made <half>, which is no selector: it has no modify, close"
    ):
        open_selector(Half)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ the list of backends


def test_each_backend_has_a_row_with_its_state() -> None:
    rows = {row.name: row for row in available_selectors()}
    assert [name for name in rows if name in backend.BUILT_IN] == ["lacking", "best", "plain", "last"]
    assert rows["lacking"] == backend.SelectorInfo(
        "lacking", f"{HERE}:lacking", False, "select.lacking does not exist on testos", False, ""
    )
    assert rows["best"] == backend.SelectorInfo("best", f"{HERE}:Best", True, None, True, "The best there is; fast.")
    assert rows["last"] == backend.SelectorInfo("last", f"{HERE}:Last", True, None, False, "one line of facts")


@pytest.mark.parametrize(
    ("variable", "default"),
    [
        ("", ["best"]),
        ("plain", ["plain"]),
        ("lacking,LAST", ["last"]),
        (f"{HERE}:Plain", [f"{HERE}:Plain"]),
        ("lacking", []),
        ("xyz", []),
        ("xyz,plain", []),
        (f"{HERE}:broken", []),
        ("no_such_module:x", []),
        (f"{HERE}:HERE", []),
    ],
)
def test_the_default_is_what_a_new_loop_would_get_and_nothing_where_it_would_raise(
    variable: str, default: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWNO_SELECTOR", variable)
    assert [row.name for row in available_selectors() if row.default] == default
    if default:
        assert default_selector_name() == default[0]
    else:
        assert default_selector_name().startswith("none (")


def test_an_own_backend_in_the_variable_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWNO_SELECTOR", f"plain,{HERE}:broken")
    row = available_selectors()[-1]
    assert (row.name, row.usable, row.reason) == (f"{HERE}:broken", False, "ZeroDivisionError: division by zero")


def test_a_backend_that_fails_to_close_is_not_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    def close(self: Plain) -> None:
        raise OSError(errno.EIO, "cannot close")

    monkeypatch.setattr(Plain, "close", close)
    assert {row.name: row.reason for row in available_selectors()}["plain"] == "cannot close"


# --------------------------------------------------------------------------- an environment that is not to be trusted


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no setuid")
@pytest.mark.parametrize("function", ["geteuid", "getegid"])
def test_a_setuid_program_loads_no_code_on_the_word_of_a_variable(
    monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    monkeypatch.setattr(os, function, lambda: -1)
    monkeypatch.setenv("FLOWNO_SELECTOR", f"{HERE}:Plain")
    with pytest.warns(RuntimeWarning, match=rf"^FLOWNO_SELECTOR={HERE}:Plain: ignored {HERE}:Plain: "):
        opened = open_selector()
    opened.selector.close()
    assert opened.name == "best"
    assert default_selector_name() == "best"
    assert [row.name for row in available_selectors() if row.default] == ["best"]


# ------------------------------------------------------------------------------------------------------ the world


def test_a_selector_without_a_world_lives_in_the_systems() -> None:
    with selectors.SelectSelector() as mine:
        assert world_of(mine) is SYSTEM_WORLD


def test_a_selector_may_bring_a_world() -> None:
    class Simulated(selectors.SelectSelector):
        world = backend.SystemWorld()

    with Simulated() as mine:
        assert world_of(mine) is Simulated.world


def test_a_world_that_lacks_a_function_is_refused() -> None:
    class Simulated(selectors.SelectSelector):
        name = "simulated"
        world = selectors

    with Simulated() as mine, pytest.raises(TypeError, match="the world of simulated has no clock, socket, socketpair"):
        world_of(mine)


def test_the_systems_world_is_the_system() -> None:
    assert SYSTEM_WORLD.clock() <= SYSTEM_WORLD.clock()
    one, other = SYSTEM_WORLD.socketpair()
    with one, other, SYSTEM_WORLD.socket() as sock:
        assert sock.type == socket.SOCK_STREAM
    assert SYSTEM_WORLD.getaddrinfo("127.0.0.1", 80, type=1)[0][4] == ("127.0.0.1", 80)
