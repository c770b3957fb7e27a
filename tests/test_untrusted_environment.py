"""Which variables are ignored where the environment is not to be trusted: those that load code or open a path.

Each process goes through the whole table, once for each way in which it may be that it must not trust.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from flowno.core.event_loop.backend import ENVIRONMENT_VARIABLE
from flowno.core.event_loop.environment import VARIABLES
from flowno.debug import ATTACHMENTS
from tests.conftest import RunPython

needs_root = pytest.mark.skipif(
    not hasattr(os, "setresuid") or os.geteuid() != 0, reason="only root can have two users at once, by setresuid(2)"
)

#: Python's options, and what the program does first, by the way in which it is not to be trusted.
WAYS = {
    "-E": (["-E"], ""),
    "-I": (["-I"], ""),
    "setuid": ([], "os.setresuid(65534, 0, 0)"),
    "setgid": ([], "os.setresgid(65534, 0, 0)"),
    "setuid, put aside": ([], "os.setresuid(0, 0, 65534)"),
    "setgid, put aside": ([], "os.setresgid(0, 0, 65534)"),
    # Started with the rights of another user than its own, it has all users the same by now: AT_SECURE tells.
    "setuid, given up": (
        [],
        """
if len(sys.argv) == 2:
    os.setresuid(65534, 0, 0)
    os.execv(sys.executable, [*sys.orig_argv, "again"])
os.setresuid(0, 0, 0)
""",
    ),
}

#: What loads code or opens a path: the variable, its value, and what of that the warning names. ``{folder}`` has a
#: module and an installed plug-in of somebody else; each leaves a mark when it is loaded.
IGNORED = {
    "a backend by its dotted name": ("FLOWNO_SELECTOR", "hostile:Selector", "hostile:Selector"),
    "a backend of a plug-in": ("FLOWNO_SELECTOR", "hostileplugin", "hostileplugin"),
    "one of several": ("FLOWNO_SELECTOR", "hostile:Selector,select", "hostile:Selector"),
    "a decorator by its dotted name": ("FLOWNO_SELECTOR", "hostile:decorate(select)", "hostile:decorate(select)"),
    "a decorator of a plug-in": ("FLOWNO_SELECTOR", "hostiledecorator(select)", "hostiledecorator(select)"),
    "within a decorator": ("FLOWNO_SELECTOR", "check(hostile:Selector)", "check(hostile:Selector)"),
    "a trace": ("FLOWNO_TRACE", "{folder}/mark", "{folder}/mark"),
    "a monitor": ("FLOWNO_MONITOR", "{folder}/mark", "{folder}/mark"),
}

#: What does neither, and is honoured.
HONOURED = {
    "a built-in backend": ("FLOWNO_SELECTOR", "select"),
    "a built-in decorator": ("FLOWNO_SELECTOR", "check(select)"),
    "debug mode": ("FLOWNO_DEBUG", "1"),
    "a level of the log": ("FLOWNO_LOG_LEVEL", "error"),
}

PROGRAM = """
import json, os, sys, warnings
path, folder, table, first = json.loads(sys.argv[1])
sys.path[:0] = [*path, folder]
exec(first)
from flowno import EventLoop
results = {}
for name, (variable, value, *_) in table.items():
    os.environ[variable] = value.replace("{folder}", folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with EventLoop() as loop:
            marked = os.path.exists(folder + "/mark")
            selector = type(loop.selector).__name__
    del os.environ[variable]
    sys.modules.pop("hostile", None)
    try:
        os.unlink(folder + "/mark")
    except (FileNotFoundError, PermissionError):
        pass  # a trace is open to the end of the process, and Windows deletes no open file
    results[name] = [marked, selector, [str(each.message) for each in caught]]
print(json.dumps(results))
"""

HOSTILE = """
import os, selectors
open(os.path.dirname(__file__) + "/mark", "w").close()
Selector = selectors.SelectSelector
def decorate(selector):
    return selector
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where somebody else has put code of his own, on the path of Python."""
    (tmp_path / "hostile.py").write_text(HOSTILE)
    about = tmp_path / "hostile-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[flowno.selectors]\nhostileplugin = hostile:Selector\n"
        "[flowno.selector_decorators]\nhostiledecorator = hostile:decorate\n"
    )
    return tmp_path


def results_of(
    run_python: RunPython, folder: Path, table: dict[str, Any], options: list[str], first: str
) -> dict[str, Any]:
    argument = json.dumps([sys.path, str(folder), table, first])
    env = dict.fromkeys((ENVIRONMENT_VARIABLE, *VARIABLES))
    result = run_python(PROGRAM, argument, options=options, env=env)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("way", [pytest.param(way, marks=[needs_root] if "set" in way else []) for way in WAYS])
def test_what_loads_code_or_opens_a_path_is_ignored_with_one_warning_that_names_it(
    run_python: RunPython, folder: Path, way: str
) -> None:
    if way == "setuid, given up" and sys.platform != "linux":
        pytest.skip("only Linux tells a program of how it was started")
    results = results_of(run_python, folder, IGNORED, *WAYS[way])
    for name, (variable, value, named) in IGNORED.items():
        if variable == "FLOWNO_MONITOR" and sys.platform == "win32":
            continue  # there is none
        marked, selector, said = results[name]
        assert not marked, name
        assert selector.endswith("Selector"), name  # of ours
        (warning,) = said
        assert warning.startswith(f"{variable}={value}".replace("{folder}", str(folder))), name
        assert named.replace("{folder}", str(folder)) in warning, name
        assert "ignored" in warning, name


def test_where_the_environment_is_trusted_all_of_it_is_honoured(run_python: RunPython, folder: Path) -> None:
    """So the table is one of variables that would do something."""
    results = results_of(run_python, folder, IGNORED, [], "")
    for name, (marked, _, said) in results.items():
        if name == "a monitor" and sys.platform == "win32":
            continue
        assert (marked, said) == (True, []), name


@pytest.mark.parametrize("way", ["-E", "-I", pytest.param("setuid", marks=needs_root)])
def test_what_loads_nothing_and_opens_nothing_is_honoured_all_the_same(
    run_python: RunPython, folder: Path, way: str
) -> None:
    results = results_of(run_python, folder, HONOURED, *WAYS[way])
    assert [said for _, _, said in results.values()] == [[]] * len(HONOURED)
    assert results["a built-in backend"][1] == "SelectSelector"
    assert results["a built-in decorator"][1] == "CheckSelector"


def test_every_variable_that_opens_a_path_is_in_the_table() -> None:
    opening = {variable for variable, attachment in ATTACHMENTS.items() if attachment.opens_a_path}
    assert opening | {ENVIRONMENT_VARIABLE} == {variable for variable, *_ in IGNORED.values()}


def test_who_asks_a_monitor_connects_to_no_path_on_the_word_of_a_variable(run_python: RunPython) -> None:
    program = """
import json, os, sys, warnings
sys.path[:0] = json.loads(sys.argv[1])
from flowno.debug.asking import MonitorError, ask_target
os.environ["FLOWNO_MONITOR"] = "/nowhere/socket"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        ask_target(str(os.getpid()))
    except MonitorError as error:
        print(error)
print(*(each.message for each in caught))
"""
    if sys.platform == "win32":
        pytest.skip("Python has no Unix sockets on Windows, and so no monitor")
    result = run_python(program, json.dumps(sys.path), options=["-I"], env={"FLOWNO_MONITOR": None})
    error, said = result.stdout.splitlines()
    assert "has no monitor that is known here" in error
    assert said.startswith("FLOWNO_MONITOR=/nowhere/socket was ignored: ")
    result = run_python(program, json.dumps(sys.path), options=[], env={"FLOWNO_MONITOR": None})
    error, said = result.stdout.splitlines()
    assert "/nowhere/socket" in error
    assert said == ""
