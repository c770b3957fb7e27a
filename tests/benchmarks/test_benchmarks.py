"""The programs that compare flowno with its peers work, and their arithmetic is right. No test is about time."""

import dataclasses
import importlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.benchmarks import cases, contenders, load, report, runner
from tests.benchmarks.cases import CASES
from tests.benchmarks.contenders import CONTENDERS, contender
from tests.benchmarks.programs import PROGRAMS
from tests.benchmarks.report import Results, Spread, Table
from tests.benchmarks.targets import TARGETS, Target
from tests.conftest import RunPython

# ---------------------------------------------------------------------------------------------------------- the servers

# All the functions of a module at once, each in an event loop and a thread of its own: one start of an interpreter
# instead of five.
ALL_FUNCTIONS = """
import importlib, json, os, socket, ssl, sys, threading
name, loop, certificate, *functions = sys.argv[1:]
module = importlib.import_module(f"tests.benchmarks.servers.{name}")
context = getattr(module, "SSLContext", ssl.SSLContext)(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate)
ports = []
for function in functions:
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    listener.setblocking(False)
    ports.append(listener.getsockname()[1])
    tls = context if function == "tls_echo" else None
    threading.Thread(target=module.serve, args=(listener, getattr(module, function), tls, loop), daemon=True).start()
print(json.dumps(ports), flush=True)
sys.stdin.read()
os._exit(0)
"""


class Running:
    """A server that nobody asks what it has used."""

    def __init__(self, port: int) -> None:
        self.address = ("127.0.0.1", port)

    def usage(self) -> dict[str, float]:
        return {"cpu": 0.0, "system": 0.0, "time": 0.0}


@contextmanager
def all_functions(one: contenders.Contender, certificate: Path) -> Iterator[dict[str, Running]]:
    command = [sys.executable, "-c", ALL_FUNCTIONS, one.server, one.loop, str(certificate), *one.serves]
    with subprocess.Popen(
        command, cwd=load.ROOT, env=load.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ports = json.loads(process.stdout.readline())
        try:
            yield {function: Running(port) for function, port in zip(one.serves, ports, strict=True)}
        finally:
            process.stdin.close()


@pytest.fixture(scope="module")
def certificate() -> Iterator[Path]:
    with runner.certificate() as (file, _):
        yield Path(file)


@pytest.mark.parametrize("one", [one for one in CONTENDERS if one.server], ids=lambda one: one.key)
def test_every_server_does_what_its_functions_say(one: contenders.Contender, certificate: Path) -> None:
    if reason := one.missing():
        pytest.skip(reason)
    module = importlib.import_module(f"tests.benchmarks.servers.{one.server}")
    assert all(hasattr(module, function) == (function in one.serves) for function in load.CLIENTS)
    options = ["--seconds", "0", "--connections", "3"]
    with all_functions(one, certificate) as servers:
        for function, server in servers.items():
            more = ["--certificate", str(certificate)] if function == "tls_echo" else []
            figures = load.CLIENTS[function](server, load.parse(["", function, *options, *more]))
            assert figures["count"] == 3
        too_long_for_the_buffers = ["--size", str(load.LONGEST_BLOCKING * 20)]
        assert (
            load.exchange(servers["echo"], load.parse(["", "echo", *options, *too_long_for_the_buffers]))["count"] == 3
        )


def test_a_server_that_echoes_something_else_is_found_out() -> None:
    class Wrong:
        def send(self, data: bytes) -> int:
            self.data = data
            return len(data)

        def recv(self, size: int) -> bytes:
            return self.data[::-1]

    with pytest.raises(load.ServerFailed, match="something else"):
        load._check_echo(Wrong(), b"message")  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------- the measurements


def run(keys: list[str], *some: contenders.Contender, rounds: int = 1) -> Results:
    """A thousandth of what would be measured, after a turn through JSON."""
    return Results(json.loads(json.dumps(runner.run(cases.chosen(keys), some, rounds, scale=0.001))))


@pytest.mark.skipif(sys.platform == "win32", reason="the CPU time of Windows has ticks of 15.6 ms, and this uses less")
@pytest.mark.parametrize("key", ["echo-1KiB-10", "lines-16", "spawn_join", "memory-task", "latency"])
def test_what_a_program_measures_becomes_a_row_with_costs(key: str) -> None:
    (case,) = cases.chosen([key])
    results = run([key], contender(case.base))
    (costs,) = (results.costs(case, one) for one in results.contenders(case))
    assert list(costs) == [0]
    assert math.isfinite(costs[0])
    (row,) = report.case_table(results, case).rows
    assert row[0] == contender(case.base).label


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"module": "no_such_module"}, "import no_such_module: ModuleNotFoundError"),
        ({"server": "no_such_server"}, "no_such_server'; the server ended with exit status 1"),
        ({"holds": 9}, "cannot hold 10 connections"),
    ],
)
def test_a_contender_that_cannot_be_measured_is_a_row_with_the_reason(change: dict[str, Any], reason: str) -> None:
    (case,) = cases.chosen(["echo-1KiB-10"])
    results = run([case.key], dataclasses.replace(contender("asyncio-streams"), **change))
    (row,) = report.case_table(results, case).rows
    assert row[0] == "asyncio streams"
    assert reason in row[-1]


def test_contenders_take_turns_and_each_round_begins_with_another() -> None:
    (case,) = cases.chosen(["echo-1KiB-10"])
    pairs = [(one, case) for one in CONTENDERS]
    orders = [[one.key for one, _ in runner._rotated(pairs, number)] for number in range(3)]
    assert len({order[0] for order in orders}) == 3
    assert all(sorted(order) == sorted(orders[0]) for order in orders)


# ----------------------------------------------------------------------------------------------------------- the tables


def test_the_tables_of_cases_contenders_and_targets_fit_together() -> None:
    by_key = {case.key: case for case in CASES}
    keys = {one.key for one in CONTENDERS}
    assert len(by_key) == len(CASES)
    assert len(keys) == len(CONTENDERS)
    for case in CASES:
        assert case.program in PROGRAMS
        assert {case.base, *case.contenders} <= keys
        assert case.base in case.contenders
        for one in map(contender, case.contenders):
            assert all(isinstance(word, str) and word for word in case.command(one) if word != one.loop)
            if case.program == "load":
                assert load.parse(case.command(one)[1:]).connections + case.connections > 0
    for target in TARGETS:
        assert {target.subject, target.against} <= {*by_key[target.case].contenders}
        assert by_key[target.case].group == by_key[target.against_case or target.case].group


@pytest.mark.parametrize(
    ("numbers", "low", "median", "high"),
    [([3.0], 3, 3, 3), ([1.0, 2.0], 1.25, 1.5, 1.75), ([5.0, 1.0, 2.0, 4.0, 3.0], 2, 3, 4)],
)
def test_a_spread_is_the_median_and_the_quartiles(numbers: list[float], low: float, median: float, high: float) -> None:
    assert Spread.of(numbers) == Spread(low, median, high)


def document(**costs: list[float | None]) -> dict[str, Any]:
    """As if a message had cost so many seconds in each round: ``contender=[...]`` or ``contender_in_case=[...]``."""
    measurements = []
    for name, by_round in costs.items():
        one, _, case = name.replace("_in_", "/").replace("_", "-").partition("/")
        for number, cost in enumerate(by_round):
            if cost is not None:
                figures = {"server_cpu": cost * 10, "server_system": cost * 8, "seconds": 20.0, "count": 10}
                measurements.append({"case": case or "echo-1KiB-10", "contender": one, "round": number, **figures})
    environment = {"python": "CPython 3.13.0", "packages": {"flowno": "0.1.0", "trio": "0.30"}}
    missing = [{"case": "echo-1KiB-10", "contender": "curio", "reason": "import curio: it is not there"}]
    return {"environment": environment, "measurements": measurements, "missing": missing}


def test_a_ratio_is_taken_inside_of_each_round() -> None:
    """In a round where the machine is slow it is slow for both; a round that one of them lacks is left out."""
    results = Results(document(flowno=[1.0, 10.0, 2.0, 1.0], trio=[3.0, 40.0, 10.0, None]))
    (case,) = cases.chosen(["echo-1KiB-10"])
    assert results.ratio(case, "flowno", "trio") == Spread(3.5, 4, 4.5)
    assert results.ratio(case, "flowno", "gevent") is None


def test_a_case_is_a_table_in_the_order_of_its_contenders() -> None:
    results = Results(document(trio=[3e-6, 4e-6, 5e-6], flowno=[1e-6, 2e-6, 2e-6]))
    (case,) = cases.chosen(["echo-1KiB-10"])
    table = report.case_table(results, case)
    assert table.heading == (
        "contender",
        "µs of CPU per message",
        "spread",
        "in the kernel",
        "per second",
        "busy",
        "times that of flowno",
    )
    assert table.rows == (
        ("flowno", "2.00", "1.50 - 2.00", "80%", "0", "0% (not kept busy)", ""),
        ("trio", "4.00", "3.50 - 4.50", "80%", "0", "0% (not kept busy)", "2.50 (2.25 - 2.75)"),
        ("curio", "", "", "", "", "", "import curio: it is not there"),
    )


def test_a_target_of_the_same_contender_in_another_case_is_measured_across_the_cases() -> None:
    results = Results(document(flowno_in_idle_0=[1.0, 2.0], flowno_in_idle_10000=[2.0, 4.0]))
    rows = {row[0]: row[1:] for row in report.targets_table(results).rows}
    assert rows["idle-10000"] == ("flowno, idle-0", "0.50 (0.50 - 0.50)", "0.90", "1.00", "missed")


@pytest.mark.parametrize(
    ("ratio", "goal", "verdict"),
    [
        (None, 2.0, "not measured"),
        (1.494, 2.0, "missed"),
        (1.496, 2.0, "met"),
        (1.5, 2.0, "met"),
        (1.5, None, "met"),
        (2.0, 2.0, "goal met"),
        (9.0, None, "met"),
    ],
)
def test_the_verdict_on_a_target(ratio: float | None, goal: float | None, verdict: str) -> None:
    spread = None if ratio is None else Spread(0, ratio, 99)
    assert report.verdict(Target("echo-1KiB-10", "trio", 1.5, goal), spread) == verdict


def test_a_table_as_text_and_for_the_documentation() -> None:
    table = Table("Title", ("who", "figure", "what"), (("a", "1", ""), ("sock_*", "1,000", "words")))
    assert table.as_text() == (
        "Title\n"
        "--------------------\n"
        "who     figure  what\n"
        "--------------------\n"
        "a            1\n"
        "sock_*   1,000  words\n"
    )
    assert table.as_rst() == (
        ".. list-table:: Title\n   :header-rows: 1\n\n"
        "   * - who\n     - figure\n     - what\n"
        "   * - a\n     - 1\n     -\n"
        "   * - sock\\_\\*\n     - 1,000\n     - words\n"
    )


def test_a_plot_is_an_svg_with_a_bar_for_each_contender_and_the_same_for_the_same_figures(
    run_python: RunPython, tmp_path: Path
) -> None:
    if reason := contenders.import_error("matplotlib"):
        pytest.skip(reason)
    file = tmp_path / "figures.json"
    file.write_text(json.dumps(document(flowno=[1.0, 1.1, 1.2], trio=[2.0, 2.5, 3.0])), "utf-8")
    folders = [tmp_path / "one", tmp_path / "another"]
    draw = (
        "import json, pathlib, sys\n"
        "from tests.benchmarks.plots import draw\n"
        "from tests.benchmarks.report import Results\n"
        "for folder in sys.argv[2:]:\n"
        "    draw(Results(json.loads(pathlib.Path(sys.argv[1]).read_text('utf-8'))), pathlib.Path(folder))\n"
    )
    ended = run_python(draw, str(file), *map(str, folders), options=())
    assert ended.returncode == 0, ended.stderr
    (svg,), (again,) = (list(folder.iterdir()) for folder in folders)
    assert svg.name == "echo-1KiB-10.svg"
    assert svg.read_bytes() == again.read_bytes()
    root = ElementTree.parse(svg).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert {"flowno", "trio", "Echo, 1 KiB, 10 connections"} <= {element.text for element in root.iter()}


# ----------------------------------------------------------------------------------------------------- the command line


def test_a_file_is_printed_again_without_measuring(run_python: RunPython, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    file.write_text(json.dumps(document(flowno=[1e-6], bare=[0.9e-6])), "utf-8")
    ended = run_python("from tests.benchmarks.__main__ import main; main()", "--from", str(file))
    assert ended.returncode == 0, ended.stderr
    assert "flowno 0.1.0, trio 0.30" in ended.stdout
    assert "0.90 (0.90 - 0.90)" in ended.stdout
    assert "goal met" in ended.stdout
    ended = run_python("from tests.benchmarks.__main__ import main; main()", "--from", str(file), "--format", "rst")
    assert ".. list-table:: Targets" in ended.stdout


@pytest.mark.parametrize("option", ["--cases", "--contenders"])
def test_a_name_that_is_none_is_answered_by_those_that_are(run_python: RunPython, option: str) -> None:
    ended = run_python("from tests.benchmarks.__main__ import main; main()", option, "ecoh")
    assert ended.returncode == 2
    assert "'ecoh'; there are " in ended.stderr


def test_contenders_are_chosen_by_patterns() -> None:
    assert [one.key for one in contenders.chosen(["uvloop*", "bare"])] == [
        "bare",
        "uvloop",
        "uvloop-streams",
        "uvloop-sock",
        "uvloop-protocol",
    ]
