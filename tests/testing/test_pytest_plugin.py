"""The plugin for pytest: async tests run in an event loop on each backend, and what they leave behind fails them.

Each test is a project of its own, whose tests are run in this process.
"""

import gc
import re
from textwrap import dedent

import pytest

import flowno_backends
from flowno.core.event_loop import deadlock, operations
from flowno.core.event_loop.backend import BUILT_IN, ENVIRONMENT_VARIABLE, available_selectors
from flowno.core.event_loop.environment import DEBUG_VARIABLE, FAULTS_VARIABLE
from flowno.debug import faults  # noqa: F401 - pytester takes back what a run has imported, and not what is there
from flowno.testing import runner
from tests.conftest import RunPython
from tests.support.virtual_time import VirtualTimeSelector

USABLE = [row.name for row in available_selectors() if row.usable and row.source == BUILT_IN.get(row.name)]
UNUSABLE = next(row.name for row in available_selectors() if not row.usable and row.name in BUILT_IN)


class InVirtualTime(VirtualTimeSelector):
    """What a test is run on whose time limit is to run out, and that says where it is then: nothing else takes time."""

    def __init__(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(ENVIRONMENT_VARIABLE, "select")
            super().__init__()


IN_VIRTUAL_TIME = f"--flowno-selector={__name__}:{InVirtualTime.__qualname__}"

IMPORTS = """
    import pytest, socket as system_socket, flowno
    from flowno import *
"""


#: Of those that are installed, none but this one. No test is about which are.
PLUGINS = ("-p", "flowno", "-p", "no:cacheprovider")


class Project:
    """A folder with tests.

    Args:
        pytester: Whose folder it is.
    """

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester

    def run(self, tests: str, *options: str, marked: bool = True) -> pytest.RunResult:
        """Run tests, all of which are marked for flowno."""
        mark = "pytestmark = pytest.mark.flowno\n" if marked else ""
        self.pytester.makepyfile(dedent(IMPORTS) + mark + dedent(tests))
        return self.again(*options)

    def again(self, *options: str) -> pytest.RunResult:
        return self.pytester.runpytest_inprocess(*PLUGINS, "-ra", *options)


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    """On the backend that every machine has."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "select")
    return Project(pytester)


@pytest.fixture
def project_on_all(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """On what the plugin chooses."""
    monkeypatch.delenv(ENVIRONMENT_VARIABLE)
    return project


def passed(result: pytest.RunResult) -> list[str]:
    """The tests that have passed, by their names, in order; the run must have been made with ``-v``."""
    return re.findall(r"^[^:\s]+::(\S+) PASSED", str(result.stdout), re.MULTILINE)


# ------------------------------------------------------------------------------------------------------ whose tests are


NOT_OURS = """
    class TestOld(unittest.IsolatedAsyncioTestCase):
        async def test_of_unittest(self):
            await asyncio.sleep(0)

    def test_synchronous():
        assert current_event_loop() is None

    @pytest.fixture
    async def an_async_fixture():
        pass
"""


def test_a_project_that_does_not_use_it_notices_nothing(project: Project) -> None:
    tests = f"import asyncio, unittest\n{dedent(NOT_OURS)}\nasync def test_of_nobody():\n    pass\n"
    with_plugin = project.run(tests, "-W", "error", marked=False)
    without_plugin = project.again("-W", "error", "-p", "no:flowno")
    assert with_plugin.parseoutcomes() == without_plugin.parseoutcomes()
    with_plugin.assert_outcomes(passed=2, failed=1)
    with_plugin.stdout.fnmatch_lines("*async def functions are not natively supported*")


def test_a_project_that_does_not_use_it_loads_no_more_than_import_flowno_and_is_not_warned(
    project: Project, run_python: RunPython
) -> None:
    """Nor is a program that has imported flowno before it runs pytest."""
    project.pytester.makepyfile("def test():\n    pass")
    program = """
        import sys, flowno, pytest
        before = set(sys.modules)
        pytest.main(["-p", "no:cacheprovider"])
        new = {name for name in sys.modules.keys() - before if name.partition(".")[0] in ("flowno", "flowno_backends")}
        print("new:", *sorted(new))
    """
    result = run_python(dedent(program), env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": None}, timeout=50)
    assert "1 passed in" in result.stdout, result.stdout + result.stderr
    assert "warning" not in result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == "new: flowno.testing flowno.testing.pytest_plugin"
    assert "PYTEST_DONT_REWRITE" in str(flowno_backends.__doc__)  # in the wheel it is beside flowno


def test_it_can_be_switched_off(project: Project) -> None:
    project.run("def test(flowno_loop):\n    pass", "-p", "no:flowno", marked=False).assert_outcomes(errors=1)


@pytest.mark.parametrize("marked", ["function", "class", "module", "none"])
def test_in_strict_mode_marked_tests_are_run(project: Project, marked: str) -> None:
    mark = {level: "@pytest.mark.flowno" if marked == level else "" for level in ("function", "class")}
    tests = f"""
        {mark["class"]}
        class TestIt:
            {mark["function"]}
            async def test(self):
                assert current_event_loop() is not None
    """
    result = project.run(tests, marked=marked == "module")
    result.assert_outcomes(**{"failed" if marked == "none" else "passed": 1})


def test_in_auto_mode_all_async_tests_are_run_that_are_not_those_of_others(project: Project) -> None:
    tests = """
        async def test_ours(an_async_fixture):
            assert current_event_loop() is not None

        @pytest.mark.trio
        async def test_of_trio():
            pass

        @pytest.mark.anyio
        class TestAnyio:
            async def test_of_anyio(self):
                pass
    """
    project.pytester.makeini("[pytest]\nflowno_mode = auto\nmarkers =\n  trio\n  anyio\n")
    result = project.run(f"import asyncio, unittest\n{dedent(NOT_OURS)}\n{dedent(tests)}", "-v", marked=False)
    assert passed(result) == ["TestOld::test_of_unittest", "test_synchronous", "test_ours[select]"]


def test_a_mode_that_there_is_not_is_an_error(project: Project) -> None:
    result = project.run("", "-o", "flowno_mode=automatic")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines("*flowno_mode = automatic: it is strict or auto")


@pytest.mark.parametrize(
    ("mark", "other"), [("asyncio", "asyncio"), ("usefixtures('anyio_backend')", "anyio")], ids=["marker", "fixture"]
)
def test_a_test_of_two_frameworks_is_an_error(project: Project, mark: str, other: str) -> None:
    tests = f"@pytest.mark.{mark}\nasync def test():\n    pass"
    result = project.run(tests, "-W", "ignore::pytest.PytestUnknownMarkWarning")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(f"*::test?select?: is to be run by flowno and by {other}; one framework runs a test*")


def test_a_marker_that_comes_after_collection_is_an_error(project: Project) -> None:
    project.pytester.makeconftest("""
        import pytest
        def pytest_collection_modifyitems(items):
            for item in items:
                item.add_marker(pytest.mark.flowno)
    """)
    result = project.run("async def test():\n    pass", marked=False)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines("*::test: was marked flowno when it was collected already*")


def test_what_the_marker_does_not_take_is_an_error(project: Project) -> None:
    tests = """
        @pytest.mark.flowno("poll", timout=5)
        async def test_option():
            pass

        @pytest.mark.flowno(timeout="soon")
        async def test_value():
            pass

        @pytest.mark.flowno(allow_leaks="no")
        async def test_bool():
            pass
    """
    result = project.run(tests)
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines([
        "pytest.mark.flowno takes timeout= and allow_leaks=, not 'poll', timout",
        "pytest.mark.flowno(timeout='soon'): it is a number of seconds, 0 for no limit",
        "pytest.mark.flowno(allow_leaks='no'): it is a bool, True or False",
    ])  # fmt: skip
    result.stdout.no_fnmatch_line("*another exception occurred*")


# ---------------------------------------------------------------------------------------------------- on which backends


ONE_TEST = """
    async def test():
        assert current_event_loop() is not None
"""


def test_a_test_runs_once_on_each_backend_that_works_here(project_on_all: Project) -> None:
    tests = """
        async def test_echo():
            name = current_event_loop().selector.name
            with open("names.txt", "a") as file:
                file.write(name + " ")
    """
    result = project_on_all.run(tests, "-v")
    assert passed(result) == [f"test_echo[{name}]" for name in USABLE]
    assert (project_on_all.pytester.path / "names.txt").read_text().split() == USABLE


@pytest.mark.parametrize("way", ["option", "ini", "variable"])
def test_the_backends_can_be_chosen(project_on_all: Project, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    options = {"option": ["--flowno-selector=select"], "ini": ["-o", "flowno_selector=select"], "variable": []}[way]
    if way == "variable":
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, "SELECT")
    assert passed(project_on_all.run(ONE_TEST, "-v", *options)) == ["test[select]"]


def test_a_backend_is_run_on_once_however_often_and_in_whatever_way_it_is_named(project: Project) -> None:
    names = "SELECT, select,check( Select ),check(select)"
    assert passed(project.run(ONE_TEST, "-v", f"--flowno-selector={names}")) == ["test[select]", "test[check(select)]"]


def test_the_command_line_beats_the_variable_and_that_the_configuration(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.pytester.makeini("[pytest]\nflowno_selector = check(select), select\n")
    monkeypatch.delenv(ENVIRONMENT_VARIABLE)
    assert passed(project.run(ONE_TEST, "-v")) == ["test[check(select)]", "test[select]"]
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "selectors:SelectSelector")
    assert passed(project.again("-v")) == ["test[selectors:SelectSelector]"]
    assert passed(project.again("-v", "--flowno-selector=check(select)")) == ["test[check(select)]"]


def test_a_variable_that_names_several_stands_for_the_first_that_works(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, f"{UNUSABLE},select")
    assert passed(project.run(ONE_TEST, "-v")) == ["test[select]"]


@pytest.mark.parametrize("option", [["--flowno-selector=slect"], ["-o", "flowno_selector=select,slect"]])
def test_an_unknown_backend_is_an_error_with_what_may_be_meant(project: Project, option: list[str]) -> None:
    result = project.run(ONE_TEST, *option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines("ERROR: *flowno?selector*: no selector is named 'slect' (did you mean select?)*usable*")


def test_an_unavailable_backend_alone_is_an_error(project: Project) -> None:
    result = project.run(ONE_TEST, f"--flowno-selector={UNUSABLE}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(f"ERROR: --flowno-selector={UNUSABLE}: *{UNUSABLE}*usable here: *")


def test_an_unavailable_backend_among_others_is_skipped_with_the_reason(project: Project) -> None:
    result = project.run(ONE_TEST, f"--flowno-selector={UNUSABLE},select")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(f"SKIPPED * --flowno-selector={UNUSABLE}: *usable here: *")


def test_a_variable_that_cannot_be_honoured_is_an_error_where_a_test_would_use_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "slect")
    project.pytester.makepyfile(test_other="def test():\n    pass")
    result = project.run(ONE_TEST)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines("FLOWNO_SELECTOR=slect: no selector is named 'slect' (did you mean select?)*")
    project.again("test_other.py").assert_outcomes(passed=1)


def test_a_test_can_choose_for_itself(project_on_all: Project) -> None:
    tests = """
        @pytest.mark.parametrize("flowno_selector", ["select"], indirect=True)
        async def test(flowno_selector):
            assert flowno_selector == "select"
    """
    assert passed(project_on_all.run(tests, "-v")) == ["test[select]"]


def test_a_failure_names_the_backend_and_how_to_run_just_that(project_on_all: Project) -> None:
    tests = """
        async def test_fails():
            assert current_event_loop().selector.name != "select"
    """
    result = project_on_all.run(tests)
    result.assert_outcomes(passed=len(USABLE) - 1, failed=1)
    result.stdout.fnmatch_lines(["*_ test_fails?select? _*", "*- on select -*"])
    command = re.search(r"^to run just this(?:, with \S+)?: pytest (\S+) '?([^\s']+)'?$", str(result.stdout), re.M)
    assert command is not None
    project_on_all.again(*command.groups()).assert_outcomes(failed=1)


@pytest.mark.parametrize("asked_by", ["the environment", "a fixture"])
def test_a_failure_names_the_faults_that_it_was_met_under(
    project: Project, monkeypatch: pytest.MonkeyPatch, asked_by: str
) -> None:
    """With the seed that was picked: what has logged it may be a test that has passed, whose output nobody sees."""
    if asked_by == "the environment":
        monkeypatch.setenv(FAULTS_VARIABLE, "seed=random,byte=1")
        fixture = ""
    else:
        monkeypatch.delenv(FAULTS_VARIABLE, raising=False)
        fixture = """
        @pytest.fixture(autouse=True)
        def faults():
            with flowno.testing.faults(byte=1):
                yield
        """
    tests = f"""
        import flowno.testing
        {fixture}
        async def test_passes():
            pass

        async def test_fails():
            one, other = socketpair()
            with one, other:
                await one.sendAll(b"four")
                assert await other.recv(4) == b"four"
    """
    result = project.run(tests)
    result.assert_outcomes(passed=1, failed=1)
    told = re.findall(r"^to run just this, with FLOWNO_FAULTS=(seed=\d+,byte=1): pytest ", str(result.stdout), re.M)
    assert len(told) == 1
    monkeypatch.setenv(FAULTS_VARIABLE, told[0])
    again = project.again("-k", "test_fails", "-p", "no:logging")
    again.assert_outcomes(failed=1, deselected=1)
    if not fixture:
        again.stdout.fnmatch_lines(f"to run just this, with FLOWNO_FAULTS={told[0]}: *")


def test_faults_of_a_block_within_an_async_test_are_none_of_its_loop(project: Project) -> None:
    tests = """
        from flowno.testing import faults, faults_of

        async def test_within():
            with faults(7) as made:
                assert faults_of(current_event_loop()) is not made

        def test_around(flowno_selector):
            async def main():
                return faults_of(current_event_loop())

            with faults(7) as made:
                assert flowno.run(main()) is made
    """
    project.run(tests).assert_outcomes(passed=2)


def test_loops_and_programs_of_a_test_use_the_same_backend(project: Project) -> None:
    tests = """
        import os, subprocess, sys

        def test_in_process(flowno_selector):
            async def main():
                return current_event_loop().selector.name
            assert run(main()) == "select"

        async def test_in_another_process():
            program = "import flowno; print(flowno.EventLoop())"
            assert "select idle" in subprocess.check_output([sys.executable, "-c", program], text=True)

        def test_not_afterwards():
            assert "FLOWNO_SELECTOR" not in os.environ
    """
    project.pytester.makepyfile("")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(ENVIRONMENT_VARIABLE)
        project.run(tests, "--flowno-selector=select").assert_outcomes(passed=3)


def test_the_backends_are_not_found_out_too_late(project: Project) -> None:
    tests = """
        def test(request):
            request.getfixturevalue("flowno_loop")
    """
    result = project.run(tests)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines("flowno_selector has a test run once for each backend, so it must be known when*")


# ----------------------------------------------------------------------------------------------------------- test kinds


def test_all_kinds_of_tests_run(project: Project) -> None:
    tests = """
        import unittest

        @pytest.mark.parametrize("number", [1, 2])
        async def test_parametrized(number):
            assert number in (1, 2)

        class TestClass:
            async def test_method(self, tmp_path):
                assert isinstance(self, TestClass)
                assert tmp_path.is_dir()

            @staticmethod
            async def test_static():
                await sleep(0)

        class TestDerived(TestClass):
            pass

        class TestUnit(unittest.TestCase):
            def test_unit(self):
                assert current_event_loop() is None

        def test_synchronous():
            assert current_event_loop() is None

        def test_synchronous_with_loop(flowno_loop):
            async def main():
                task = await spawn(sleep(0))
                return current_event_loop()
            assert flowno_loop.run_until_complete(main(), join=True) is flowno_loop

        @pytest.mark.xfail(strict=True)
        async def test_expected_to_fail():
            await sleep(0)
            raise ValueError

        async def test_skips():
            pytest.skip("not today")

        async def test_skips_in_a_task():
            async def child():
                pytest.skip("nor tomorrow")
            task = await spawn(child())
            await task.join()

        async def test_fails():
            with pytest.raises(ZeroDivisionError):
                1 / 0
            pytest.fail("for once")
    """
    result = project.run(tests, "-v")
    result.assert_outcomes(passed=9, skipped=2, xfailed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*::test_parametrized?select-1? PASSED*", "*::TestDerived::test_method?select? PASSED*", "*Failed: for once"]
    )


def test_the_examples_of_hypothesis_are_run(project: Project) -> None:
    """By what it documents for plugins: the test is synchronous, and calls ``test.hypothesis.inner_test``."""
    tests = """
        import types

        def given(function):
            def test():
                for number in range(3):
                    test.hypothesis.inner_test(number)
            test.hypothesis = types.SimpleNamespace(inner_test=function)
            return test

        @given
        async def test_of_hypothesis(number):
            await sleep(0)
            assert number < 2, f"not with {number}"
    """
    result = project.run(tests)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines("*AssertionError: not with 2")


EXAMPLES = """
    from hypothesis import Phase, given, settings, strategies

    phases = [Phase.generate, Phase.shrink]
    ours = settings(database=None, derandomize=True, deadline=None, max_examples=30, phases=phases)

    @ours
    @given(number=strategies.integers())
    async def test_numbers(number):
        await sleep(0)
        assert number < 100

    @ours
    @given(number=strategies.integers())
    @pytest.mark.flowno(timeout=5)
    async def test_each_takes_a_while(number):
        await sleep(1)

    @ours
    @given(number=strategies.integers())
    @pytest.mark.flowno(timeout=5)
    async def test_one_takes_too_long(number):
        await sleep(60 if number > 100 else 1)
"""


def test_an_example_of_hypothesis_is_shown_as_the_test_was_called_and_has_the_time_limit_for_itself(
    project: Project,
) -> None:
    pytest.importorskip("hypothesis", reason="it is not installed")
    result = project.run(EXAMPLES, IN_VIRTUAL_TIME)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines([
        "*: test_numbers(",
        "*    number=100,",
        "*TimeoutError: test_one_takes_too_long?*? took longer than 5 s; when*",
        "*: test_one_takes_too_long(",
    ])  # fmt: skip


def test_a_failure_shows_the_test_and_not_what_runs_it(project: Project) -> None:
    tests = """
        async def inner():
            await sleep(0)
            raise ValueError("inside")

        @pytest.fixture
        async def broken():
            await inner()

        async def test_fails():
            await inner()

        async def test_has_a_broken_fixture(broken):
            pass
    """
    result = project.run(tests)
    result.assert_outcomes(failed=1, errors=1)
    result.stdout.fnmatch_lines(["*ValueError: inside", "*:7: ValueError"])
    assert "runner.py" not in str(result.stdout)
    assert "pytest_plugin.py" not in str(result.stdout)


def test_each_test_has_a_fresh_loop(project: Project) -> None:
    tests = """
        loops = []

        @pytest.mark.parametrize("number", range(3))
        async def test(number):
            assert current_event_loop() not in loops
            assert all(repr(loop).endswith(" closed>") for loop in loops)
            loops.append(current_event_loop())
    """
    project.run(tests).assert_outcomes(passed=3)


def test_what_ctrl_c_ends_is_cleaned_up(project: Project) -> None:
    tests = """
        import signal

        @pytest.fixture
        async def connection():
            yield
            print("fixture cleaned up by", current_event_loop())

        async def child():
            try:
                await sleep(60)
            finally:
                print("child cleaned up")

        async def test(connection):
            await spawn(child())
            try:
                signal.raise_signal(signal.SIGINT)
                await sleep(60)
            finally:
                print("test cleaned up")
    """
    project.pytester.makepyfile(dedent(IMPORTS) + "pytestmark = pytest.mark.flowno\n" + dedent(tests))
    result = project.pytester.runpytest_inprocess(*PLUGINS, "-s", no_reraise_ctrlc=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    for line in ("test cleaned up", "child cleaned up", "*fixture cleaned up by <EventLoop select running>*"):
        result.stdout.fnmatch_lines(f"*{line}*")


# ------------------------------------------------------------------------------------------------------------- fixtures


def test_fixtures_run_in_the_loop_and_the_context_of_the_test(project: Project) -> None:
    tests = """
        from contextvars import ContextVar
        where = ContextVar("where")
        said = []

        @pytest.fixture
        async def outer(flowno_loop):
            assert current_event_loop() is flowno_loop
            said.append("outer begins")
            where.set("set in outer")
            yield current_task()
            assert where.get() == "set in test"
            assert current_event_loop() is flowno_loop
            said.append("outer ends")

        @pytest.fixture
        def between(outer):
            said.append("between begins")
            yield
            said.append("between ends")

        @pytest.fixture
        async def inner(between):
            assert where.get() == "set in outer"
            await sleep(0)
            said.append("inner begins")
            return "a value"

        async def test(outer, inner, flowno_loop):
            assert inner == "a value"
            assert current_task() is outer
            assert where.get() == "set in outer"
            where.set("set in test")
            said.append("test")

        def test_order():
            assert said == ["outer begins", "between begins", "inner begins", "test", "between ends", "outer ends"]
    """
    project.run(tests).assert_outcomes(passed=2)


def test_a_group_and_a_time_limit_of_a_fixture_are_around_the_test(project: Project) -> None:
    tests = """
        @pytest.fixture
        async def group():
            with CancelScope() as scope:
                async with timeout(60), TaskGroup() as group:
                    yield group
                    scope.cancel()
            assert scope.cancelled_caught

        @pytest.fixture
        async def limit():
            async with timeout(5):
                yield

        async def test_may_leave_a_task_to_the_group(group):
            await group.spawn(sleep(60))

        async def test_is_limited(limit):
            await sleep(10)
    """
    result = project.run(tests, IN_VIRTUAL_TIME)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["E *TaskCancelled: *test_is_limited*", "E *by <*, which a fixture has entered"])


def test_an_error_in_the_group_of_a_fixture_is_told(project: Project) -> None:
    tests = """
        async def server():
            raise OSError("the server is broken")

        @pytest.fixture
        async def group():
            async with TaskGroup() as group:
                await group.spawn(server())
                yield

        async def test(group):
            await sleep(60)
    """
    result = project.run(tests)
    result.assert_outcomes(failed=1, errors=1)
    result.stdout.fnmatch_lines(["*OSError: the server is broken*", "*TaskCancelled: *"])


def test_fixtures_can_be_methods_automatic_and_parametrized(project: Project) -> None:
    tests = """
        class Test:
            @pytest.fixture(autouse=True)
            async def everywhere(self):
                self.loop = current_event_loop()
                yield
                assert current_event_loop() is self.loop

            @pytest.fixture(params=[1, 2])
            async def number(self, request):
                return self.loop, request.param

            async def test(self, number):
                assert number[0] is self.loop is current_event_loop()
    """
    project.run(tests).assert_outcomes(passed=2)


def test_a_synchronous_test_with_the_loop_can_have_async_fixtures(project: Project) -> None:
    tests = """
        @pytest.fixture
        async def pair():
            ours, theirs = socketpair()
            with ours, theirs:
                yield ours, theirs

        def test(flowno_loop, pair):
            async def main():
                await pair[0].sendAll(b"hello")
                return await pair[1].recv(100)
            assert flowno_loop.run_until_complete(main(), join=True) == b"hello"
    """
    project.run(tests).assert_outcomes(passed=1)


@pytest.mark.parametrize("scope", ["class", "module", "session"])
def test_an_async_fixture_that_outlives_its_loop_is_an_error(project: Project, scope: str) -> None:
    tests = f"""
        @pytest.fixture(scope="{scope}")
        async def shared():
            return 42

        async def test(shared):
            pass
    """
    result = project.run(tests)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(f"the async fixture 'shared' has the scope '{scope}': each test has an event loop of*")


CANNOT_BE_SET_UP = {
    "option": (
        """
        @pytest.fixture(autouse=True)
        async def automatic():
            yield

        @pytest.mark.flowno(timout=3)
        async def test_mistaken():
            pass
        """,
        "pytest.mark.flowno takes timeout= and allow_leaks=, not timout",
    ),
    "backend": (
        f"""
        @pytest.fixture(autouse=True)
        async def automatic():
            yield

        @pytest.mark.parametrize("flowno_selector", ["{UNUSABLE}"], indirect=True)
        async def test_mistaken(flowno_selector):
            pass
        """,
        f"*SelectorUnavailableError: *{UNUSABLE}*",
    ),
    "scope": (
        """
        @pytest.fixture(scope="module")
        async def shared():
            yield

        async def test_mistaken(shared):
            pass

        async def test_mistaken_too(shared):
            pass
        """,
        "the async fixture 'shared' has the scope 'module': *",
    ),
}


@pytest.mark.parametrize(("tests", "mistake"), CANNOT_BE_SET_UP.values(), ids=CANNOT_BE_SET_UP)
def test_one_that_cannot_be_set_up_is_no_matter_of_the_others(project: Project, tests: str, mistake: str) -> None:
    others = "async def test_{}():\n    pass\n"
    result = project.run(others.format("before") + dedent(tests) + others.format("after") + others.format("later"))
    mistaken = tests.count("test_mistaken")
    result.assert_outcomes(passed=3, errors=mistaken)
    result.stdout.fnmatch_lines([mistake] * mistaken)
    result.stdout.no_fnmatch_line("*AssertionError*")


@pytest.mark.parametrize("asks", ["test", "fixture"])
def test_an_async_fixture_cannot_be_asked_for_while_the_loop_runs(project: Project, asks: str) -> None:
    tests = """
        @pytest.fixture
        async def number():
            return 42

        @pytest.fixture
        async def fixture(request):
            return request.getfixturevalue("number")

        async def test(request):
            request.getfixturevalue("number")

        async def test_of_fixture(fixture):
            pass
    """
    result = project.run(tests, "-k", "test_of_fixture" if asks == "fixture" else "not test_of_fixture")
    result.assert_outcomes(failed=asks == "test", errors=asks == "fixture")
    result.stdout.fnmatch_lines(
        "the async fixture 'number' was asked for by getfixturevalue() while the loop runs * argument*"
    )


def test_a_fixture_yields_once(project: Project) -> None:
    tests = """
        @pytest.fixture
        async def never():
            if False:
                yield

        @pytest.fixture
        async def twice():
            yield 1
            yield 2

        async def test_never(never):
            pass

        async def test_twice(twice):
            pass
    """
    result = project.run(tests)
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(["the fixture 'never' did not yield", "the fixture 'twice' has yielded twice"])


# ----------------------------------------------------------------------------------------------------------- time limit


def test_a_test_that_takes_too_long_cleans_up_and_says_what_everybody_waited_for(project: Project) -> None:
    tests = """
        async def client(handle):
            await handle.recv(100)

        @pytest.mark.flowno(timeout=5)
        async def test():
            ours, theirs = socketpair()
            with ours, theirs:
                task = await spawn(client(theirs))
                try:
                    await task.join()
                finally:
                    await sleep(0)
                    print("cleaned up")
    """
    result = project.run(tests, IN_VIRTUAL_TIME)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([
        ">*await task.join()",
        "E *TimeoutError: test?*? took longer than 5 s; when the time was over:",
        "E *test?*? waits for the end of client, at *.py:*in test",
        "E *client waits for data*, at *.py:* in client*",
        "*cleaned up*",
    ])  # fmt: skip


def test_the_time_limit_is_set_for_all_by_the_configuration(project: Project) -> None:
    tests = """
        @pytest.fixture
        async def slow():
            yield
            await sleep(60)

        async def test_in_test():
            await sleep(60)

        async def test_in_clean_up(slow):
            pass

        @pytest.mark.flowno(timeout=60)
        async def test_with_one_of_its_own():
            await sleep(10)

        @pytest.mark.flowno(timeout=0)
        async def test_with_none():
            await sleep(10)
    """
    result = project.run(tests, IN_VIRTUAL_TIME, "-o", "flowno_timeout=5")
    result.assert_outcomes(failed=1, passed=3, errors=1)
    result.stdout.fnmatch_lines("E *TimeoutError: the clean-up of the fixture 'slow' took longer than 5 s*")


@pytest.mark.parametrize("value", ["soon", "-1", "nan"])
def test_a_time_limit_that_is_none_is_an_error(project: Project, value: str) -> None:
    result = project.run("", "-o", f"flowno_timeout={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(f"*flowno_timeout = {value}: it is a number of seconds, 0 for no limit")


def test_a_test_that_swallows_its_cancellation_ends_all_the_same(project: Project) -> None:
    tests = """
        async def test_once():
            try:
                await sleep(90)
            except TaskCancelled:
                pass

        async def test_for_ever():
            while True:
                try:
                    await sleep(90)
                except TaskCancelled:
                    pass

        async def test_whatever_it_is_told():
            closed = 0
            while closed < 3:  # by the loop, by who has it run, and by Python, which would warn
                try:
                    await sleep(90)
                except GeneratorExit:
                    closed += 1
                except TaskCancelled:
                    pass

        async def test_after_those():
            pass
    """
    result = project.run(tests, IN_VIRTUAL_TIME)
    result.assert_outcomes(failed=3, passed=1)
    for name in ("once", "for_ever", "whatever_it_is_told"):
        result.stdout.fnmatch_lines(f"E *TimeoutError: test_{name}?*? took longer than 60 s; when*")
    result.stdout.no_fnmatch_line("*coroutine ignored GeneratorExit*")


def test_a_test_that_never_waits_for_anything_ends_all_the_same(project: Project) -> None:
    tests = """
        @pytest.mark.flowno(timeout=0.01)
        async def test():
            while True:
                await sleep(0)
    """
    result = project.run(tests)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines("*TimeoutError: test?select? took longer than 0.01 s; when*")


def test_a_test_that_blocks_the_loop_past_its_limit_fails_once_it_has_ended(project: Project) -> None:
    tests = """
        import time

        @pytest.mark.flowno(timeout=0.01)
        async def test():
            await sleep(0)
            time.sleep(0.02)
    """
    result = project.run(tests)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines("*TimeoutError: test?select? took longer than 0.01 s, and did not let the loop say so*")


def test_a_cancellation_that_has_not_arrived_by_the_end_of_a_step_does_not_reach_the_next_one(project: Project) -> None:
    tests = """
        @pytest.fixture
        async def connection():
            yield
            await sleep(1)
            print("cleaned up")

        async def test_takes_too_long(connection):
            with CancelScope(shield=True):
                await sleep(90)

        async def test_cancels_itself(connection):
            current_event_loop().running_task.cancel()
    """
    result = project.run(tests, IN_VIRTUAL_TIME, "-s")
    result.assert_outcomes(failed=1, passed=1)
    assert str(result.stdout).count("cleaned up") == 2
    result.stdout.fnmatch_lines("*TimeoutError: test_takes_too_long?*? took longer than 60 s; when*")


@pytest.mark.parametrize("limit", [0, 60])
def test_a_deadlock_is_told_at_once(project: Project, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where other threads or a signal handler of the program could help, it is not: xdist and pytest-timeout have such.
    monkeypatch.setattr(deadlock, "_somebody_could_call_in", lambda: False)
    tests = """
        @pytest.fixture
        async def connection():
            with CancelScope():
                yield
                await sleep(0)
                print("cleaned up")

        async def test(connection):
            await Event().wait()
    """
    result = project.run(tests, "-s", "-o", f"flowno_timeout={limit}")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([
        "*cleaned up*",
        "E *DeadlockError: no task can ever go on:",
        "E *<TaskHandle test?select? alive> waits for an event (1 waiting)",
    ])  # fmt: skip
    assert "_hand_over" not in str(result.stdout)


def test_a_wait_that_can_still_end_is_no_deadlock(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlock, "_somebody_could_call_in", lambda: False)
    tests = """
        async def set_later(event):
            await sleep(0.05)
            await event.set()

        async def test_for_a_timer():
            event = Event()
            await spawn(set_later(event))
            await event.wait()

        async def test_for_a_thread():
            import time
            await run_in_thread(time.sleep, 0.05)
    """
    project.run(tests).assert_outcomes(passed=2)


# ---------------------------------------------------------------------------------------------------------------- leaks


LEAKS = [
    (
        """
        async def worker():
            await sleep(60)

        async def test_leaves_a_task():
            await spawn(worker())
        """,
        "still running: worker waits for a timer, * s left of 60 s, at *.py:6 in worker*",
    ),
    (
        """
        async def worker():
            raise ValueError("nobody hears me")

        async def test_loses_an_error():
            await spawn(worker())
        """,
        "nobody joined: <TaskHandle worker failed> ended with ValueError: nobody hears me, at *.py:6 in worker",
    ),
    (
        """
        async def test_drops_a_handle():
            socket()
        """,
        "never closed: unclosed *",
    ),
    (
        """
        async def work():
            pass

        async def test_awaits_not():
            work()
        """,
        "never awaited: coroutine 'work' was never awaited*",
    ),
    (
        """
        async def test_awaits_no_operation():
            sleep(1)
        """,
        "never awaited: coroutine 'sleep' was never awaited*",
    ),
    (
        """
        import subprocess, sys
        from flowno import open_process

        async def test_drops_a_process():
            await open_process([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)  # which ends with its input
        """,
        "never closed: subprocess * is still running*",
    ),
]


@pytest.mark.parametrize(
    ("test", "complaint"), LEAKS, ids=["task", "error", "handle", "coroutine", "operation", "process"]
)
def test_what_is_left_behind_fails_the_test_unless_that_is_allowed(
    project: Project, test: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "GRACE", 0.01)
    result = project.run(test)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["test_*?select? has left something behind:", f"  {complaint}"])
    project.run(dedent(test).replace("async def test", "@pytest.mark.flowno(allow_leaks=True)\nasync def test"))
    project.again().assert_outcomes(passed=1)


ENDS_BY_EXIT = {
    "itself": """
        async def test():
            await exit()
        """,
    "a task of its": """
        async def end():
            await exit(7)

        async def test():
            await spawn(end())
            await sleep(60)
        """,
    "a fixture": """
        @pytest.fixture
        async def fixture():
            await exit()
            yield

        async def test(fixture):
            pass
        """,
}


@pytest.mark.parametrize("program", ENDS_BY_EXIT.values(), ids=ENDS_BY_EXIT)
def test_what_exit_has_ended_before_it_was_through_has_not_passed(project: Project, program: str) -> None:
    result = project.run(program.replace("await exit(", "await flowno.exit("))
    assert result.parseoutcomes().get("passed", 0) == 0
    result.stdout.fnmatch_lines(["*EventLoopError: exit() ended the run before * was through*"])


def test_a_clean_up_that_exit_has_ended_is_an_error(project: Project) -> None:
    result = project.run(
        """
        @pytest.fixture
        async def fixture():
            yield
            await flowno.exit()

        async def test(fixture):
            pass
        """
    )
    result.assert_outcomes(passed=1, errors=1)


def test_operations_are_what_they_were_once_a_test_is_over(project: Project) -> None:
    gc.collect()  # a loop in debug mode that is dropped has its say in it, too
    before = operations._users
    project.run(
        f"""
        from flowno.core.event_loop import operations

        async def test():
            assert operations._users > {before}
        """
    ).assert_outcomes(passed=1)
    assert operations._users == before


def test_it_is_told_where_a_dropped_handle_was_made(project: Project) -> None:
    result = project.run("async def test():\n    socket()")
    result.stdout.fnmatch_lines("*never closed: unclosed <*")
    assert re.search(
        r"made at .*\.py:5 in test|made at \(most recent call last\):\n.*\.py\", line 5", str(result.stdout)
    )


def test_in_debug_mode_it_is_told_where_everything_was_made(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    tests = """
        async def worker():
            await sleep(60)

        async def test():
            await spawn(worker())
            socket()
    """
    result = project.run(tests, IN_VIRTUAL_TIME)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([
        "*still running: worker waits for *, at *.py:6 in worker, made at *.py:9 in test",
        "*never closed: unclosed <SocketHandle *",
        "made at (most recent call last):",
        "*line 10, in test",
    ])  # fmt: skip


def test_a_handle_that_flowno_has_made_is_told_by_the_task_that_it_was_made_in(project: Project) -> None:
    result = project.run(
        """
        from flowno import connect, spawn

        kept = []

        async def test_keeps():
            with socket() as server, socket() as client:
                server.bind(("127.0.0.1", 0))
                server.listen()
                task = await spawn(server.accept(), name="the acceptor")
                await connect(client, server.getsockname())
                kept.append(await task.join())
        """
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines("*never closed: <SocketHandle fd=*>, made in the acceptor")


def test_a_handle_that_is_kept_fails_the_test_and_is_closed(project: Project) -> None:
    tests = """
        kept = []

        async def test_keeps():
            kept.append(socket())

        def test_later():
            assert kept[0].fileno() == -1
    """
    result = project.run(tests)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines("*never closed: <SocketHandle fd=*>, made at *.py:8 in test_keeps")
    project.run(tests.replace("async def", "@pytest.mark.flowno(allow_leaks=True)\n        async def"))
    project.again().assert_outcomes(passed=2)


def test_a_program_that_is_kept_and_still_runs_fails_the_test_and_is_ended(project: Project) -> None:
    tests = """
        import sys

        kept = []

        async def test_keeps():
            kept.append(await open_process([sys.executable, "-c", "import time; time.sleep(60)"]))

        async def test_closes():
            async with await open_process([sys.executable, "-c", ""]) as process:
                kept.append(process)

        def test_later():
            assert kept.pop(0).returncode
            assert kept.pop(0).returncode is not None
    """
    result = project.run(tests)
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines("*never closed: <Process * running: *>, made at *.py:10 in test_keeps")
    project.run(tests.replace("async def test", "@pytest.mark.flowno(allow_leaks=True)\n        async def test"))
    project.again().assert_outcomes(passed=3)


def test_what_fixtures_have_started_may_go_on_until_they_end(project: Project) -> None:
    tests = """
        @pytest.fixture
        async def address():
            async def echo(stream):
                while data := await stream.read(100):
                    await stream.write(data)
            async with await serve_tcp(echo, "127.0.0.1", 0) as server:
                yield server.sockets[0].getsockname()

        @pytest.fixture
        def open_handles():
            handles = []
            yield handles
            for handle in handles:
                handle.close()

        async def test(address, open_handles):
            handle = socket()
            open_handles.append(handle)
            await connect(handle, address)
            await handle.sendAll(b"hello")
            assert await handle.recv(100) == b"hello"
    """
    project.run(tests).assert_outcomes(passed=1)


def test_a_task_that_is_about_to_end_is_no_leak(project: Project) -> None:
    tests = """
        async def echo(handle):
            with handle:
                while data := await handle.recv(100):
                    await handle.sendAll(data)
                for _ in range(5):
                    await sleep(0)

        async def test():
            ours, theirs = socketpair()
            await spawn(echo(theirs))
            with ours:
                await ours.sendAll(b"hello")
                assert await ours.recv(100) == b"hello"
    """
    project.run(tests).assert_outcomes(passed=1)


def test_what_a_fixture_leaves_behind_is_an_error_of_its_test(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "GRACE", 0.01)
    tests = """
        async def forgotten():
            await sleep(60)

        @pytest.fixture
        async def background():
            await spawn(forgotten())

        async def test(background):
            pass

        def test_synchronous(flowno_loop):
            flowno_loop.create_task(forgotten())
    """
    result = project.run(tests)
    result.assert_outcomes(passed=2, errors=2)
    result.stdout.fnmatch_lines(["test?select? has left something behind:", "  still running: forgotten *"])


def test_a_handle_of_a_task_that_is_joined_by_a_fixture_is_not_called_lost(project: Project) -> None:
    tests = """
        @pytest.fixture
        async def task():
            async def fails():
                raise ValueError
            task = await spawn(fails())
            yield task
            with pytest.raises(ValueError):
                await task.join()

        async def test(task):
            assert task.done()
    """
    project.run(tests).assert_outcomes(passed=1)


def test_of_a_failed_test_the_leaks_are_told_and_not_counted_again(project: Project) -> None:
    tests = """
        async def server():
            raise OSError("address in use")

        async def test():
            handle = socket()
            await spawn(server())
            assert False
    """
    result = project.run(tests)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([
        "*Captured flowno call*",
        "test?select? has also left something behind:",
        "  nobody joined: *OSError: address in use*",
    ])  # fmt: skip


def test_a_test_that_is_run_again_is_judged_anew(project: Project) -> None:
    """As pytest-rerunfailures and flaky do: the first run fails, and the second one leaves a handle behind."""
    project.pytester.makeconftest("""
        from _pytest.runner import runtestprotocol
        def pytest_runtest_protocol(item, nextitem):
            for _ in range(2):
                reports = runtestprotocol(item, nextitem=nextitem, log=False)
            for report in reports:
                item.ihook.pytest_runtest_logreport(report=report)
            return True
    """)
    tests = """
        runs, kept = [], []

        async def test():
            runs.append(1)
            assert len(runs) > 1
            kept.append(socket())
    """
    result = project.run(tests)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines("*test?select? has left something behind:*")


def test_a_test_still_sees_the_warnings_that_it_expects(project: Project) -> None:
    tests = """
        import gc, warnings

        async def work():
            pass

        async def test_by_warns():
            with pytest.warns(RuntimeWarning, match="never awaited"):
                work()
            with pytest.warns(UserWarning, match="careful"):
                warnings.warn("careful")

        async def test_by_recwarn(recwarn):
            warnings.warn("careful")
            assert str(recwarn.pop().message) == "careful"

        async def test_as_error():
            with pytest.raises(UserWarning):
                warnings.warn("careful")

        @pytest.mark.filterwarnings("ignore:careful")
        async def test_ignored():
            warnings.warn("careful")
    """
    project.run(tests, "-W", "error").assert_outcomes(passed=4)


# --------------------------------------------------------------------------------------------------- with other plugins


def test_it_works_with_xdist(project: Project) -> None:
    tests = """
        @pytest.mark.parametrize("number", range(3))
        async def test(number):
            pass

        async def test_fails():
            assert False
    """
    result = project.run(tests, "-p", "xdist", "-n", "2", "-W", "error", "--flowno-selector=select,check(select)")
    result.assert_outcomes(passed=6, failed=2)
    result.stdout.fnmatch_lines("to run just this: pytest *--flowno-selector=check(select)* *test_fails?check(select)*")


def test_a_plan_of_the_set_up_can_be_shown(project: Project) -> None:
    tests = """
        @pytest.fixture
        async def value():
            raise ValueError

        async def test(value):
            raise ValueError
    """
    result = project.run(tests, "--setup-plan")
    result.stdout.fnmatch_lines(["*SETUP *F flowno_loop *", "*SETUP *F value*"])
    assert "ValueError" not in str(result.stdout)


def test_its_fixtures_and_markers_are_described(project: Project) -> None:
    project.pytester.makepyfile("")
    project.again("--fixtures").stdout.fnmatch_lines(["flowno_selector -- *", "flowno_loop -- *"])
    project.again("--markers").stdout.fnmatch_lines("@pytest.mark.flowno(timeout=60, allow_leaks=False): *")
