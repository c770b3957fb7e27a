"""The programs of the comparisons do what they say. They run for a moment only, so their figures mean nothing here."""

import ast
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import operations
from tests.benchmarks.imports import import_seconds
from tests.benchmarks.latency import PERCENT, percentile
from tests.benchmarks.operations import FRAMEWORKS, OPERATIONS
from tests.benchmarks.operations.measuring import SLEEPERS, seconds_to_sleep, shares, warm_up
from tests.conftest import RunPython

#: Seconds of CPU time that an operation takes at least. Windows counts them in steps of 1/64: mostly it was none.
LEAST = 0.0 if sys.platform == "win32" else 1e-9

#: The frameworks, each with the loop that it is to run on; and the echo servers whose memory is measured.
PROGRAMS = [("flowno", ""), ("asyncio", ""), ("asyncio", "uvloop"), ("trio", ""), ("curio", ""), ("gevent", "")]
SERVERS = [
    ("flowno_handles", ""),
    ("flowno_streams", ""),
    ("asyncio_streams", "uvloop"),
    ("curio_", ""),
    ("gevent_", ""),
]

#: Runs each operation of a framework on a loop so often, in a process of its own, as some keep descriptors for good.
#: Prints what it took, and how often it was done: of tasks that do something several times, the sum.
ALL_OPERATIONS = """
import importlib, json, sys
from tests.benchmarks.operations import FRAMEWORKS, OPERATIONS

framework, loop, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
module = importlib.import_module(f"tests.benchmarks.operations.{FRAMEWORKS[framework]}")
done = []

def counted(work):
    def wrapper(*args):
        done.append(args[0] if args else 1)
        return work(*args)
    return wrapper

for worker in ("nothing", "give_way", "return_items", "contend", "sleep_often", "wait_forever"):
    setattr(module, worker, counted(getattr(module, worker)))
found = {}
for operation in OPERATIONS:
    done.clear()
    seconds = module.run(getattr(module, operation), count, loop)
    found[operation] = seconds, sum(done)
print(json.dumps(found))
"""


def needs(module: str) -> None:
    """Skip the test where a module cannot be imported, for whatever reason."""
    try:
        importlib.import_module(module)
    except Exception as error:  # curio has AttributeError for the Pythons that it does not know
        pytest.skip(f"import {module}: {type(error).__name__}: {error}")


def figures(run_python: RunPython, program: str, *args: str) -> dict[str, Any]:
    """What a program prints on its last line."""
    done = run_python(program, *args, options=())
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main_of(module: str) -> str:
    """The program that is a module of the benchmarks."""
    return f"from tests.benchmarks.{module} import main; main()"


# ----------------------------------------------------------------------------------------------------------- operations


@pytest.mark.parametrize(("framework", "loop"), PROGRAMS)
def test_each_operation_is_done_as_often_as_asked(framework: str, loop: str, run_python: RunPython) -> None:
    needs(loop or framework)
    found = figures(run_python, ALL_OPERATIONS, framework, loop, "23")
    assert list(found) == list(OPERATIONS)
    assert all(seconds >= LEAST for seconds, _ in found.values())
    assert {operation: done for operation, (_, done) in found.items()} == dict.fromkeys(OPERATIONS, warm_up(23) + 23)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_modules_have_the_same_functions_in_the_same_order(framework: str) -> None:
    def functions(framework: str) -> list[str]:
        path = Path(operations.__file__).with_name(f"{FRAMEWORKS[framework]}.py")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        return [each.name for each in tree.body if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))]

    assert functions(framework) == functions("flowno")
    assert functions(framework)[1 : 1 + len(OPERATIONS)] == list(OPERATIONS)


def test_the_tasks_share_the_work_and_sleep_for_whole_milliseconds() -> None:
    assert list(shares(23, 10)) == [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]
    assert {round(seconds_to_sleep(number) * 1000, 9) for number in range(SLEEPERS)} == set(range(1, 11))


@pytest.mark.parametrize("framework", ["asyncio", "trio", "curio", "gevent"])
def test_a_loop_that_a_framework_does_not_have_is_refused(framework: str) -> None:
    needs(framework)
    module = importlib.import_module(f"tests.benchmarks.operations.{FRAMEWORKS[framework]}")
    with pytest.raises(ValueError, match="poll"):
        module.run(module.switch, 1, "poll")


def test_an_operation_is_measured_on_any_backend(backend: str, run_python: RunPython) -> None:
    found = figures(run_python, main_of("operations.__main__"), "flowno", "--loop", backend, "switch", "50")
    assert found.pop("seconds") >= LEAST
    assert found == {"count": 50}


# --------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(("server", "loop"), SERVERS)
def test_an_idle_connection_takes_memory(server: str, loop: str, run_python: RunPython) -> None:
    pytest.importorskip("resource", reason="Windows does not tell")
    needs(loop or f"tests.benchmarks.servers.{server}")
    found = figures(run_python, main_of("memory"), server, "--loop", loop, "idle", "50")
    assert found["bytes"] >= 0  # resident memory grows by pages
    assert 500 < found["traced"] < 100_000
    assert found["count"] == 50


@pytest.mark.parametrize(("framework", "loop"), PROGRAMS)
def test_a_waiting_task_takes_memory(framework: str, loop: str, run_python: RunPython) -> None:
    pytest.importorskip("resource", reason="Windows does not tell")
    needs(loop or framework)
    found = figures(run_python, main_of("memory"), framework, "--loop", loop, "task", "100")
    assert found["bytes"] >= 0
    assert 500 < found["traced"] < 100_000
    assert found["count"] == 100


# ------------------------------------------------------------------------------------------------- imports, and latency


def test_an_import_takes_some_time() -> None:
    assert 0 < import_seconds("flowno", interpreters=1) < 60


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        import_seconds("no_such_module")


@pytest.mark.parametrize("server", ["flowno_handles", "asyncio_streams"])
def test_a_request_takes_some_time_beside_busy_clients(server: str, run_python: RunPython) -> None:
    found = figures(run_python, main_of("latency"), server, "--busy", "3", "50")
    assert 0 < found["p50"] <= found["p99"] <= found["p99.9"]
    assert found["utilisation"] > 0
    assert (found["count"], found["busy"]) == (50, 3)


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [1, 1, 1]), (10, [5, 10, 10]), (100, [50, 99, 100]), (10_000, [5000, 9900, 9990])]
)
def test_a_percentile_is_the_least_that_so_many_do_not_exceed(count: int, expected: list[int]) -> None:
    assert [percentile(range(1, count + 1), percent) for percent in PERCENT] == expected
