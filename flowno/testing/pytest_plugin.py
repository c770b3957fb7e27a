"""The plugin for pytest: ``async def`` tests and fixtures run in a flowno event loop, once for each backend.

It is loaded in every project of an environment that flowno is installed in. So nothing happens here, and nothing is
imported that takes time, before a test has asked for it: by ``@pytest.mark.flowno``, by ``flowno_mode = auto``, or by
one of the two fixtures.
"""

from __future__ import annotations

import inspect
import math
import os
import re
import shlex
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from ..core.event_loop.backend import ENVIRONMENT_VARIABLE, available_selectors, open_selector
from ..core.event_loop.environment import FAULTS_VARIABLE
from ..core.event_loop.errors import SelectorUnavailableError, UnknownSelectorError
from ..core.event_loop.event_loop import EventLoop
from ..core.event_loop.running import current_event_loop
from ..core.event_loop.selector_names import terms_of

if TYPE_CHECKING:
    from .runner import Runner

__all__ = ["flowno_loop", "flowno_selector"]

MARKER: Final = "flowno"
LOOP: Final = "flowno_loop"
SELECTOR: Final = "flowno_selector"
SELECTOR_OPTION: Final = "--flowno-selector"

#: Markers of other frameworks: what has one of them is theirs.
OTHERS: Final = ("anyio", "asyncio", "trio", "twisted")

#: What ``@pytest.mark.flowno`` takes.
MARKER_OPTIONS: Final = ("timeout", "allow_leaks")

DEFAULT_TIMEOUT: Final = 60.0


class _Settings(NamedTuple):
    """What the command line and the configuration file say.

    Attributes:
        is_auto: Whether every ``async def`` test is ours that is nobody else's.
        timeout: Seconds for each step of a test; None for no limit.
        asked_for: What to run on by the command line, each with the reason why it cannot be had, or None.
        configured: The same, by the configuration file.
    """

    is_auto: bool
    timeout: float | None
    asked_for: dict[str, str | None]
    configured: dict[str, str | None]


_settings: Final = pytest.StashKey[_Settings]()
_chosen: Final = pytest.StashKey[dict[str, str | None]]()
_backend: Final = pytest.StashKey[str]()
_runner: Final = pytest.StashKey["Runner"]()
_faults: Final = pytest.StashKey[str]()
_has_failed: Final = pytest.StashKey[bool]()


# ------------------------------------------------------------------------------------------------------------- settings


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("flowno", "flowno")
    group.addoption(
        SELECTOR_OPTION,
        metavar="NAMES",
        help=f"the backends to run the tests of flowno on, separated by commas; without it, that of "
        f"{ENVIRONMENT_VARIABLE}, else those of {SELECTOR} in the configuration, else every one that works here",
    )
    parser.addini(SELECTOR, f"as {SELECTOR_OPTION}", default="")
    parser.addini("flowno_mode", "strict: async tests marked flowno are run by it; auto: all of them", default="strict")
    parser.addini(
        "flowno_timeout", "seconds that a test of flowno, or a set-up, may take; 0: no limit", default=DEFAULT_TIMEOUT
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "flowno(timeout=60, allow_leaks=False): run the async test in a flowno event loop, on each backend; timeout in "
        "seconds, 0 for none; allow_leaks where tasks and handles are left behind on purpose.",
    )
    mode = config.getini("flowno_mode")
    if mode not in ("strict", "auto"):
        raise pytest.UsageError(f"flowno_mode = {mode}: it is strict or auto")
    try:
        timeout = _seconds(float(config.getini("flowno_timeout")))
    except ValueError:
        raise pytest.UsageError(
            f"flowno_timeout = {config.getini('flowno_timeout')}: it is a number of seconds, 0 for no limit"
        ) from None
    option, ini = config.getoption(SELECTOR_OPTION) or "", config.getini(SELECTOR)
    config.stash[_settings] = _Settings(
        is_auto=mode == "auto",
        timeout=timeout,
        asked_for=_known(option, f"{SELECTOR_OPTION}="),
        configured=_known(ini, f"{SELECTOR} = "),
    )


def _seconds(value: object) -> float | None:
    """A time limit; None for none.

    Raises:
        ValueError: It is no time.
    """
    if value is None:
        return None
    if not isinstance(value, (int, float)) or math.isnan(value) or value < 0:
        raise ValueError
    return float(value) if 0 < value < math.inf else None


def _known(text: str, setting: str) -> dict[str, str | None]:
    """The selectors that a setting names, each with the reason why it cannot be had.

    Args:
        text: What was written.
        setting: What stands before it.

    Raises:
        UsageError: One is not known, or none can be had.
    """
    try:
        names = [str(term) for term in terms_of(text)]
    except UnknownSelectorError as error:
        raise pytest.UsageError(f"{setting}{text}: {error}") from None
    reasons: dict[str, str | None] = {}
    for name in names:
        try:
            opened = open_selector(name, f"{setting}{name}")
        except SelectorUnavailableError as error:
            reasons[name] = str(error)
        except (UnknownSelectorError, TypeError) as error:
            raise pytest.UsageError(str(error)) from None
        else:
            opened.selector.close()
            reasons[opened.name] = None  # which is the same for POLL and poll
    if reasons and all(reasons.values()):
        raise pytest.UsageError("\n".join(map(str, reasons.values())))
    return reasons


def _selectors(config: pytest.Config) -> dict[str, str | None]:
    """What the tests run on, as :func:`_known` has it; looked at when the first of them is collected.

    Raises:
        CollectError: What the environment asks for cannot be had.
    """
    if _chosen not in config.stash:
        settings = config.stash[_settings]
        config.stash[_chosen] = settings.asked_for or _of_the_environment() or settings.configured or _usable()
    return config.stash[_chosen]


def _of_the_environment() -> dict[str, str | None]:
    """The one that a program would run on where ``FLOWNO_SELECTOR`` is set."""
    if not os.environ.get(ENVIRONMENT_VARIABLE, "").strip(", "):
        return {}
    try:
        opened = open_selector()
    except (SelectorUnavailableError, UnknownSelectorError, TypeError) as error:
        raise pytest.Collector.CollectError(str(error)) from None
    opened.selector.close()
    return {opened.name: None}


def _usable() -> dict[str, str | None]:
    return {row.name: None for row in available_selectors() if row.usable}


class _Options(NamedTuple):
    """What the markers of a test say; the closest one that says something counts."""

    timeout: float | None
    allow_leaks: bool


def _options(item: pytest.Item) -> _Options:
    given: dict[str, Any] = {}
    for marker in item.iter_markers(MARKER):
        unknown = [*map(repr, marker.args), *(name for name in marker.kwargs if name not in MARKER_OPTIONS)]
        if unknown:
            pytest.fail(
                f"pytest.mark.flowno takes {' and '.join(f'{name}=' for name in MARKER_OPTIONS)}, not "
                f"{', '.join(unknown)}",
                pytrace=False,
            )
        given = {**marker.kwargs, **given}
    try:
        timeout = _seconds(given.get("timeout", item.config.stash[_settings].timeout))
    except ValueError:
        raise pytest.fail.Exception(
            f"pytest.mark.flowno(timeout={given['timeout']!r}): it is a number of seconds, 0 for no limit",
            pytrace=False,
        ) from None
    allow_leaks = given.get("allow_leaks", False)
    if not isinstance(allow_leaks, bool):
        pytest.fail(f"pytest.mark.flowno(allow_leaks={allow_leaks!r}): it is a bool, True or False", pytrace=False)
    return _Options(timeout, allow_leaks)


# ----------------------------------------------------------------------------------------------------------- collection


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: object) -> None:
    """A test of ours needs the loop, whether it names it or not."""
    if not collector.istestfunction(obj, name):
        return
    function = obj.__func__ if isinstance(obj, (staticmethod, classmethod)) else obj
    if _coroutine_function(function) is None:
        return
    own = getattr(function, "pytestmark", [])
    markers = {marker.name for marker in own} | {marker.name for marker in collector.iter_markers()}
    is_ours = MARKER in markers or (collector.config.stash[_settings].is_auto and markers.isdisjoint(OTHERS))
    if is_ours and not any(marker.name == "usefixtures" and LOOP in marker.args for marker in own):
        pytest.mark.usefixtures(LOOP)(function)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if SELECTOR not in metafunc.fixturenames or _chooses_itself(metafunc.definition):
        return
    choices = [
        pytest.param(name, id=name, marks=() if reason is None else pytest.mark.skip(reason=reason))
        for name, reason in _selectors(metafunc.config).items()
    ]
    metafunc.parametrize(SELECTOR, choices, indirect=True)


def _chooses_itself(item: pytest.Item) -> bool:
    """Whether ``@pytest.mark.parametrize`` says what a test runs on."""
    for marker in item.iter_markers("parametrize"):
        names = marker.args[0] if marker.args else marker.kwargs.get("argnames", ())
        if SELECTOR in (re.split(r"\W+", names) if isinstance(names, str) else names):
            return True
    return False


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse what nobody would run as it is meant."""
    mistakes = [mistake for item in items if (mistake := _mistake(item)) is not None]
    if mistakes:
        raise pytest.UsageError("\n".join(mistakes))


def _mistake(item: pytest.Item) -> str | None:
    if not isinstance(item, pytest.Function) or _coroutine_function(item.obj) is None:
        return None
    unittest = sys.modules.get("unittest")  # to import it takes time
    if unittest is not None and item.cls is not None and issubclass(item.cls, unittest.TestCase):
        return None  # it has its own way with these
    if LOOP not in item.fixturenames:
        if item.get_closest_marker(MARKER) is None:
            return None
        return (
            f"{item.nodeid}: was marked flowno when it was collected already; mark the function, its class or its "
            "module, or set flowno_mode = auto"
        )
    others = [name for name in OTHERS if item.get_closest_marker(name) is not None]
    others += ["anyio"] if "anyio_backend" in item.fixturenames else []  # its automatic mode sets no marker
    if others and _is_ours(item):
        return (
            f"{item.nodeid}: is to be run by flowno and by {others[0]}; one framework runs a test: take a marker away, "
            "or the automatic mode of one of the two"
        )
    return None


def _coroutine_function(function: Any) -> Callable[..., Any] | None:
    """The function that is the test, where that is ``async def``; of a test of Hypothesis, the one within."""
    inner = getattr(getattr(function, "hypothesis", None), "inner_test", function)
    return inner if inspect.iscoroutinefunction(inner) else None


def _is_ours(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function) or LOOP not in item.fixturenames:
        return False
    if _coroutine_function(item.obj) is None:
        return False
    return item.config.stash[_settings].is_auto or item.get_closest_marker(MARKER) is not None


# ------------------------------------------------------------------------------------------------------------- fixtures


@pytest.fixture
def flowno_selector(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the backend: the test runs once for each. Loops and programs that it starts use the same one."""
    if not hasattr(request, "param"):
        pytest.fail(
            f"{SELECTOR} has a test run once for each backend, so it must be known when that is collected: name it, or "
            f"{LOOP}, among the arguments of the test or of a fixture, or in pytest.mark.usefixtures",
            pytrace=False,
        )
    choice: str = request.param
    request.node.stash[_backend] = choice
    request.node.stash[_has_failed] = False  # a test may be run again
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT_VARIABLE, choice)
        yield choice


@pytest.fixture
def flowno_loop(request: pytest.FixtureRequest, flowno_selector: str) -> Iterator[EventLoop]:
    """The event loop of the test, on each backend; async tests and fixtures run in it."""
    from ..debug.faults import faults_of
    from .runner import Runner

    item = request.node
    options = _options(item)
    runner = item.stash[_runner] = Runner(flowno_selector, name=item.name, timeout=options.timeout)
    faults = faults_of(runner.loop)
    item.stash[_faults] = "" if faults is None else f", with {FAULTS_VARIABLE}={faults}"
    yield runner.loop
    del item.stash[_runner]  # pytest keeps the item to the end
    has_failed = item.stash[_has_failed]
    problems = runner.close(patient=not (has_failed or options.allow_leaks))
    if problems and not options.allow_leaks:
        _report(item, "teardown", problems, fails=not has_failed)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """Async fixtures of a test that has the loop run in it. Last, so that those of other plugins are theirs."""
    function = fixturedef.func
    is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    if not is_async or LOOP not in request.fixturenames:
        return (yield)
    # Whatever is wrong is said by the function: pytest takes note of what its own implementation of this hook meets,
    # and of nothing else, and a fixture whose failure it does not know is in the way of all the tests to come.
    if fixturedef.scope == "function":
        with suppress(Exception, pytest.fail.Exception, pytest.skip.Exception):
            request.getfixturevalue(LOOP)  # before what the fixture needs, to end after that
    # What pytest calls, and only for now: the fixture is the same for all the tests that use it.
    vars(fixturedef)["func"] = _synchronous(function, request)
    try:
        return (yield)
    finally:
        vars(fixturedef)["func"] = function


def _synchronous(function: Callable[..., Any], request: pytest.FixtureRequest) -> Callable[..., Any]:
    """A fixture that does by the loop what an async one does."""
    if inspect.ismethod(function) and isinstance(request.instance, type(function.__self__)):
        function = function.__func__.__get__(request.instance)  # the instance of this test
    name = f"the fixture {request.fixturename!r}"

    def returns(**arguments: Any) -> Any:
        __tracebackhide__ = True
        runner = _runner_for(request)
        return runner.run(function(**arguments), f"the set-up of {name}")

    def yields(**arguments: Any) -> Iterator[Any]:
        __tracebackhide__ = True
        runner = _runner_for(request)
        generator = function(**arguments)
        yield runner.run(_first(generator, name), f"the set-up of {name}")
        runner.run(_rest(generator, name), f"the clean-up of {name}")

    return yields if inspect.isasyncgenfunction(function) else returns


def _runner_for(request: pytest.FixtureRequest) -> Runner:
    """What an async fixture is run by; it fails where it cannot be."""
    if request.scope != "function":
        pytest.fail(
            f"the async fixture {request.fixturename!r} has the scope {request.scope!r}: each test has an event loop "
            "of its own, and what belongs to one does not outlive it. Make it of scope 'function', or make what is "
            "shared in a fixture that is not async",
            pytrace=False,
        )
    loop = request.getfixturevalue(LOOP)
    if loop is current_event_loop():
        pytest.fail(
            f"the async fixture {request.fixturename!r} was asked for by getfixturevalue() while the loop runs that it "
            "would be set up in: name it among the arguments of the test or of the fixture that asks",
            pytrace=False,
        )
    runner: Runner = request.node.stash[_runner]
    return runner


async def _first(generator: AsyncGenerator[Any, None], name: str) -> Any:
    __tracebackhide__ = True
    async for value in generator:
        return value
    return pytest.fail(f"{name} did not yield", pytrace=False)


async def _rest(generator: AsyncGenerator[Any, None], name: str) -> None:
    __tracebackhide__ = True
    async for _ in generator:
        await generator.aclose()
        pytest.fail(f"{name} has yielded twice", pytrace=False)


# ------------------------------------------------------------------------------------------------------------ the tests


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    if not _is_ours(pyfuncitem):
        return (yield)
    runner = pyfuncitem.stash[_runner]
    original = pyfuncitem.obj
    test = _coroutine_function(original)
    assert test is not None

    @wraps(test)  # Hypothesis shows how it was called
    def run(*args: Any, **arguments: Any) -> Any:
        __tracebackhide__ = True
        return _run_test(pyfuncitem, runner, test(*args, **arguments))

    if test is original:
        pyfuncitem.obj = run
    else:
        original.hypothesis.inner_test = run
    try:
        return (yield)
    finally:
        if test is original:
            pyfuncitem.obj = original
        else:
            original.hypothesis.inner_test = test


def _run_test(item: pytest.Function, runner: Runner, test: Any) -> Any:
    """The test, and what is to be said of what it has left."""
    __tracebackhide__ = True
    allow_leaks = _options(item).allow_leaks
    try:
        value = runner.run(test, item.name)
    except BaseException:
        if problems := runner.leftovers(patient=False):
            _report(item, "call", problems, fails=False)
        raise
    if not allow_leaks and (problems := runner.leftovers()):
        _report(item, "call", problems, fails=True)
    return value


def _report(item: pytest.Item, when: str, problems: list[str], *, fails: bool) -> None:
    """Fail because of what was left; where the test has failed already, just say it, as it may be the reason."""
    __tracebackhide__ = True
    text = "\n".join(f"  {problem}" for problem in problems)
    if fails:
        pytest.fail(f"{item.name} has left something behind:\n{text}", pytrace=False)
    item.add_report_section(when, "flowno", f"{item.name} has also left something behind:\n{text}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure says which backend it was on, and under which faults, and how to run just that."""
    report = yield
    if report.failed and (choice := item.stash.get(_backend, None)) is not None:
        item.stash[_has_failed] = True
        again = _command_line("pytest", f"{SELECTOR_OPTION}={choice}", item.nodeid)
        report.sections.append((f"on {choice}", f"to run just this{item.stash.get(_faults, '')}: {again}"))
    return report


def _command_line(*words: str) -> str:
    """As the shell of this system reads it."""
    if os.name == "nt":
        from subprocess import list2cmdline

        return list2cmdline(words)
    return shlex.join(words)
