"""The command line: what it prints, and how it ends."""

import json
import os
import pkgutil
import re
import select
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from flowno import available_selector_decorators, available_selectors
from flowno.cli import main
from flowno.testing.conformance import CASES, RULES
from tests.conftest import ROOT, RunPython
from tests.support import wine

FLOWNO = "from flowno.cli import main; raise SystemExit(main())"
PORT = r"\d+"
NO_KQUEUE = "select.kqueue does not exist on linux; usable here: epoll, poll, select"
TRANSCRIPT = rf"""
  Server: Listening on port {PORT}
  Client: Connected to server
  Client: Sent: Hello, world!
  Server: Client connected from \('127\.0\.0\.1', {PORT}\)
  Server: Received: Hello, world!
  Server: Response sent
  Client: Received: Echo: Hello, world!
  Main: All tasks completed
"""
USABLE = [row.name for row in available_selectors() if row.usable and not set(row.name) & set(":(")]
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="kqueue works here, or the reason reads otherwise")
on_posix = pytest.mark.skipif(os.name != "posix", reason="the shell's redirections")


def rates(output: str) -> dict[str, int]:
    """The table at the end of a demonstration."""
    head, *rows = output[output.index("backend ") :].splitlines()
    assert head.split() == ["backend", "messages/s"]
    assert {len(row) for row in rows} == {len(head)}, "the columns are not aligned"
    return {name: int(rate.replace(",", "")) for name, rate in map(str.split, rows)}


def table(text: str) -> list[list[str]]:
    """The cells below the head of a table; a column begins where its title does."""
    head, *lines = text.splitlines()
    columns = [match.start() for match in re.finditer(r"\S+(?:,? \S+)*", head)]
    borders = list(zip(columns, [*columns[1:], None], strict=True))
    return [[line[start:end].strip() for start, end in borders] for line in lines]


# ------------------------------------------------------------------------------------------------------------ selectors


def test_selectors_shows_every_backend_with_its_source_and_facts(
    run_python: RunPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLOWNO_SELECTOR", raising=False)
    result = run_python(FLOWNO, "selectors")
    assert (result.returncode, result.stderr) == (0, "")
    rows = table(result.stdout.partition("\n\n")[0])
    expected = []
    for row in available_selectors():
        expected.append([row.name, "yes" if row.usable else "no", "yes" if row.default else "", row.source])
        expected += [["", "", "", text] for text in (row.reason, row.facts) if text]
    assert rows == expected
    assert [row[0] for row in rows if row[2]] == USABLE[:1]


def test_selectors_shows_every_decorator_below_with_how_it_is_written(run_python: RunPython) -> None:
    result = run_python(FLOWNO, "selectors", env={"FLOWNO_SELECTOR": None})
    rows = table(result.stdout.partition("\n\n")[2])
    expected = []
    for row in available_selector_decorators():
        assert row.takes is not None
        form = f"{row.name}({','.join(['selector'] * row.takes)})"
        expected += [[form, "yes", row.source], ["", "", row.facts]]
    assert rows == expected
    assert [row[0] for row in rows if row[0]] == [
        "check(selector)", "faulty(selector)", "shadow(selector,selector)", "trace(selector)",
    ]  # fmt: skip


def test_selectors_as_json_is_what_available_selectors_returns_and_then_the_decorators(
    run_python: RunPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWNO_SELECTOR", "select")
    result = run_python(FLOWNO, "selectors", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    rows = json.loads(result.stdout)
    backends = [row for row in rows if "default" in row]
    assert backends == [row._asdict() for row in available_selectors()]
    assert [row["name"] for row in backends if row["default"]] == ["select"]
    assert [row for row in rows if "takes" in row] == [row._asdict() for row in available_selector_decorators()]


@pytest.mark.parametrize("option", [[], ["--json"]], ids=["table", "json"])
def test_selectors_fails_after_the_list_where_no_loop_could_be_made(run_python: RunPython, option: list[str]) -> None:
    result = run_python(FLOWNO, "selectors", *option, env={"FLOWNO_SELECTOR": "bogus"})
    assert result.returncode == 1
    assert "SelectSelector" in result.stdout
    assert result.stderr.startswith(
        "flowno selectors: FLOWNO_SELECTOR=bogus: no selector is named 'bogus'; usable here: "
    )
    assert result.stderr.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------------- check


def test_check_prints_a_line_for_each_case_below_its_group(backend: str, run_python: RunPython) -> None:
    result = run_python(FLOWNO, "check", backend, "-k", "registered")
    assert (result.returncode, result.stderr) == (0, "")
    chosen = [case for case in CASES if any("registered" in field for field in (case.name, case.group, case.rule))]
    lines = result.stdout.splitlines()
    assert [line for line in lines if line in {case.group for case in CASES}] == list(
        dict.fromkeys(case.group for case in chosen)
    )
    found = re.findall(r"^  (?:passed|skipped)  (?: )?([\w ]+)", result.stdout, re.MULTILINE)
    assert found == [case.sentence for case in chosen]
    assert re.fullmatch(rf"{re.escape(backend)}: \d+ passed, 0 failed, \d+ skipped", lines[-1])


def test_check_names_the_rule_and_what_was_seen_where_a_case_fails(run_python: RunPython) -> None:
    result = run_python(FLOWNO, "check", "selectors:SelectSelector", "--case", "any length")
    assert result.returncode == 1
    assert f'\n           rule "select-raises": {RULES["select-raises"]}\n           select(' in result.stdout
    assert "0 passed, 1 failed, 0 skipped" in result.stdout
    assert result.stderr == "flowno check: selectors:SelectSelector breaks 1 of the rules: select-raises\n"


def test_check_as_json_has_every_outcome(run_python: RunPython) -> None:
    result = run_python(FLOWNO, "check", "check(select)", "-k", "timing", "--json")
    rows = json.loads(result.stdout)
    assert (result.returncode, result.stderr) == (0, "")
    assert {row["case"] for row in rows} >= {case.name for case in CASES if case.group == "timing"}
    assert {tuple(row) for row in rows} == {("case", "group", "result", "rule", "reason")}
    assert {row["result"] for row in rows} <= {"passed", "skipped"}


TALKATIVE = """
import os
from flowno_backends import SelectSelector

print("imported")

class Talkative(SelectSelector):
    def __init__(self):
        super().__init__()
        print("made")

    def select(self, timeout=None):
        print("asked")
        os.write(1, b"written\\n")
        return super().select(timeout)
"""


def test_what_a_selector_prints_does_not_spoil_the_outcome(run_python: RunPython, tmp_path: Path) -> None:
    (tmp_path / "talkative.py").write_text(TALKATIVE, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "backends")])
    arguments = ("check", "talkative:Talkative", "-k", "a result is a list", "--json")
    result = run_python(FLOWNO, *arguments, env={"PYTHONPATH": path})
    assert [row["result"] for row in json.loads(result.stdout)] == ["passed"]
    assert set(result.stderr.splitlines()) == {"imported", "made", "asked", "written"}


def test_check_lists_every_rule_with_its_cases(run_python: RunPython) -> None:
    result = run_python(FLOWNO, "check", "--rules")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line for line in lines if line[0] != " "] == [f"{rule}: {promise}" for rule, promise in RULES.items()]
    proofs = [*(case.sentence for case in CASES), "every case, on the way"]
    assert sorted(line.strip() for line in lines if line[0] == " ") == sorted(proofs)
    assert lines[-2:] == [f"end: {RULES['end']}", "  every case, on the way"]
    rows = json.loads(run_python(FLOWNO, "check", "--rules", "--json").stdout)
    assert [row["case"] for row in rows] == [case.name for case in CASES]
    assert all(RULES[row["rule"]] == row["promise"] for row in rows)


def test_check_lists_the_rules_of_the_cases_that_were_chosen(run_python: RunPython) -> None:
    result = run_python(FLOWNO, "check", "--rules", "-k", "mapping")
    assert [line.partition(":")[0] for line in result.stdout.splitlines() if line[0] != " "] == ["mapping"]


def test_check_needs_no_test_framework(run_python: RunPython) -> None:
    program = "import sys; from flowno.cli import main; assert main() == 0; raise SystemExit('pytest' in sys.modules)"
    assert run_python(program, "check", "select", "-k", "mask").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "NAME is missing"),
        (["bogus"], 2, "flowno check: error: bogus: no selector is named 'bogus'"),
        (["check(bogus)"], 2, "flowno check: error: check(bogus): no selector is named 'bogus'"),
        (["select", "-k", "nonsense"], 2, "argument -k/--case: no case, group or rule contains 'nonsense'"),
        pytest.param(["kqueue"], 1, f"flowno check: kqueue: {NO_KQUEUE}", marks=on_linux),
    ],
)
def test_check_says_what_cannot_be_checked(
    run_python: RunPython, arguments: list[str], code: int, message: str
) -> None:
    result = run_python(FLOWNO, "check", *arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert message in result.stderr


#: Modules and selectors that end whatever process they are used in, or keep it.
UNTRIED = """
import os, sys, time
from flowno_backends import SelectSelector

class ExitsWhenMade(SelectSelector):
    def __init__(self):
        sys.exit()

class ExitsWhenClosed(SelectSelector):
    def close(self):
        raise SystemExit(0)

class EndsTheProcess(SelectSelector):
    def __init__(self):
        os._exit(0)

class HangsWhenMade(SelectSelector):
    def __init__(self):
        while True:
            time.sleep(60)

class HangsWhenClosed(SelectSelector):
    def close(self):
        while True:
            time.sleep(60)

class RefusesToClose(SelectSelector):
    def close(self):
        super().close()
        raise RuntimeError("never")
"""
PROGRAM = "import sys\nfrom selectors import SelectSelector as Mine\nsys.exit(0)\n"
#: With its limit in seconds.
WITH_LIMIT = f"""
import sys
from flowno.testing.conformance import isolation
isolation._OPENING = float(sys.argv.pop())
{FLOWNO}
"""


@pytest.fixture
def check_theirs(run_python: RunPython, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    (tmp_path / "untried.py").write_text(UNTRIED, encoding="utf-8")
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    (tmp_path / "imports.py").write_text("import no_such_module_of_theirs", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "backends")])
    return lambda program, *args: run_python(program, "check", *args, env={"PYTHONPATH": path}, timeout=60)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("program:Mine", "when it was to be made, it or its module raised SystemExit(0)\n"),
        ("untried:ExitsWhenMade", "when it was to be made, it or its module raised SystemExit()\n"),
        ("untried:ExitsWhenClosed", "when it was to be closed, it raised SystemExit(0)\n"),
        ("untried:EndsTheProcess", "when it was to be made, the interpreter ended with exit code 0\n"),
        ("imports:Mine", "ModuleNotFoundError: No module named 'no_such_module_of_theirs'; usable here: "),
    ],
)
def test_check_says_what_a_selector_does_to_the_process_that_it_is_tried_in(
    check_theirs: Callable[..., subprocess.CompletedProcess[str]], name: str, what: str
) -> None:
    result = check_theirs(FLOWNO, name, "-k", "mask", "--json")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"flowno check: {name}: {what}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("name", "what", "limit"), [("Made", "made", "1"), ("Closed", "closed", "8")])
def test_check_does_not_wait_for_ever_for_a_selector_to_be_made_or_closed(
    check_theirs: Callable[..., subprocess.CompletedProcess[str]], name: str, what: str, limit: str
) -> None:
    result = check_theirs(WITH_LIMIT, f"untried:HangsWhen{name}", limit)
    message = f"when it was to be {what}, it did not come to its end within {limit} s"
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"flowno check: untried:HangsWhen{name}: {message}\n"


HANGS_IN_C = """
import ctypes, os
from flowno_backends import SelectSelector

class HangsInC(SelectSelector):
    def register(self, *args):
        os.write(2, b"%d\\n" % os.getpid())
        ctypes.PyDLL(None).pause()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="nothing else ends a process that holds the GIL")
def test_a_case_that_hangs_in_c_does_not_outlive_the_command(tmp_path: Path) -> None:
    (tmp_path / "hangs_in_c.py").write_text(HANGS_IN_C, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "backends")])
    with subprocess.Popen(
        [sys.executable, "-m", "flowno", "check", "hangs_in_c:HangsInC", "-k", "refuses_what_is_registered"],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as command:
        assert command.stderr is not None
        worker = int(command.stderr.readline())
        command.kill()
        ended, _, _ = select.select([command.stderr], [], [], 30)  # the worker has it, too
        if not ended:
            os.kill(worker, signal.SIGKILL)
        assert ended
        assert command.stderr.read() == b""


def test_check_tries_a_selector_all_the_same_that_raises_when_it_is_closed(
    check_theirs: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    result = check_theirs(FLOWNO, "untried:RefusesToClose", "-k", "leaving a with block closes")
    assert result.returncode == 1
    assert "0 passed, 1 failed" in result.stdout
    assert "RuntimeError('never')" in result.stdout


# ----------------------------------------------------------------------------------------------------------------- demo


def test_demo_shows_the_backend_that_the_environment_chooses_and_no_other(backend: str, run_python: RunPython) -> None:
    result = run_python(FLOWNO, "demo")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.match(re.escape(backend) + TRANSCRIPT + r"\n", result.stdout)
    assert result.stdout.count("Listening") == 1
    assert list(rates(result.stdout)) == [backend]
    assert rates(result.stdout)[backend] > 0


@pytest.mark.parametrize("unset", [None, "", " , "], ids=["unset", "empty", "commas"])
def test_demo_shows_every_usable_backend_where_none_was_chosen(run_python: RunPython, unset: str | None) -> None:
    result = run_python(FLOWNO, "demo", env={"FLOWNO_SELECTOR": unset})
    assert (result.returncode, result.stderr) == (0, "")
    for name in USABLE:
        assert re.search(rf"^{re.escape(name)}{TRANSCRIPT}\n", result.stdout, re.MULTILINE)
    assert list(rates(result.stdout)) == USABLE


def test_demo_takes_the_backend_of_its_option_before_that_of_the_environment(run_python: RunPython) -> None:
    result = run_python(FLOWNO, "demo", "--selector", "bsd, SELECT", env={"FLOWNO_SELECTOR": "bogus"})
    assert result.returncode == 2  # an unknown name in a list is a mistake wherever it stands
    result = run_python(FLOWNO, "demo", "--selector", "SELECT", env={"FLOWNO_SELECTOR": "bogus"})
    assert (result.returncode, result.stderr) == (0, "")
    assert list(rates(result.stdout)) == ["select"]


def test_demo_runs_on_a_selector_of_the_standard_library(run_python: RunPython) -> None:
    result = run_python(FLOWNO, "demo", "--selector", "selectors:SelectSelector")
    assert (result.returncode, result.stderr) == (0, "")
    assert list(rates(result.stdout)) == ["selectors:SelectSelector"]


BROKEN = """
from flowno_backends import SelectSelector

class Broken(SelectSelector):
    facts = "for a test"

    def select(self, timeout=None):
        raise RuntimeError("out of order")
"""


def test_demo_goes_on_after_a_backend_that_fails_and_ends_with_1(tmp_path: Path, run_python: RunPython) -> None:
    (tmp_path / "broken_backend.py").write_text(BROKEN)
    metadata = tmp_path / "broken_backend-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-backend\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[flowno.selectors]\nbroken = broken_backend:Broken\n")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {FLOWNO}"
    result = run_python(program, "demo", env={"FLOWNO_SELECTOR": None})
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "flowno demo: broken: RuntimeError: out of order"
    assert "Traceback" not in result.stderr
    assert "\nbroken\n" in result.stdout
    assert list(rates(result.stdout)) == USABLE


def as_main(backend: str) -> str:
    """A program that demonstrates the ``Backend`` that ``backend`` defines."""
    return f"""
import signal, sys
import flowno.cli
from flowno_backends import SelectSelector
{backend}
sys.modules["this"] = sys.modules["__main__"]
raise SystemExit(flowno.cli.main(["demo", "--selector", "this:Backend"]))
"""


def test_demo_does_not_wait_for_ever_for_a_backend_that_loses_readiness(run_python: RunPython) -> None:
    deaf = """
class Backend(SelectSelector):
    def select(self, timeout=None):
        super().select(timeout)
        return []
flowno.cli.LIMIT = 0.3
"""
    result = run_python(as_main(deaf))
    message = "flowno demo: this:Backend: TimeoutError: the demonstration did not come to its end within 0.3 s\n"
    assert (result.returncode, result.stderr) == (1, message)


def test_ctrl_c_ends_with_130_and_no_traceback(run_python: RunPython) -> None:
    interrupting = """
class Backend(SelectSelector):
    interrupted = False
    def select(self, timeout=None):
        if not self.interrupted:
            self.interrupted = True
            signal.raise_signal(signal.SIGINT)
        return super().select(timeout)
"""
    result = run_python(as_main(interrupting))
    assert (result.returncode, result.stderr) == (130, "")


# --------------------------------------------------------------------------------------- what is wrong, and who says so


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "message"),
    [
        pytest.param(
            ["demo"],
            "bogus",
            1,
            "flowno demo: FLOWNO_SELECTOR=bogus: no selector is named 'bogus'; usable here: ",
            id="unknown in the environment",
        ),
        pytest.param(
            ["demo"],
            "kqueue",
            1,
            f"flowno demo: FLOWNO_SELECTOR=kqueue: {NO_KQUEUE}",
            id="unavailable in the environment",
            marks=on_linux,
        ),
        pytest.param(
            ["demo", "--selector", "kqueue"],
            "poll",
            1,
            f"flowno demo: --selector kqueue: {NO_KQUEUE}",
            id="unavailable option",
            marks=on_linux,
        ),
        pytest.param(
            ["demo", "--selector", "eppol"],
            None,
            2,
            "flowno demo: error: --selector eppol: no selector is named 'eppol' (did you mean ",
            id="unknown option",
        ),
        pytest.param(
            ["demo", "--selector", "nowhere:Selector"],
            None,
            2,
            "flowno demo: error: --selector nowhere:Selector: there is no module 'nowhere'; usable here: ",
            id="no such module",
        ),
        pytest.param(
            ["demo", "--selector", "os:getcwd"],
            None,
            2,
            "flowno demo: error: --selector os:getcwd: os:getcwd made ",
            id="not a selector",
        ),
        pytest.param(
            ["demo"],
            "os:getcwd",
            1,
            "flowno demo: FLOWNO_SELECTOR=os:getcwd: os:getcwd made ",
            id="not a selector in the environment",
        ),
        pytest.param(["demo", "--selector"], None, 2, "flowno demo: error: argument --selector: ", id="no value"),
        pytest.param([], None, 2, "flowno: error: the following arguments are required: command", id="no command"),
        pytest.param(["bogus"], None, 2, "flowno: error: argument command: invalid", id="no such command"),
        pytest.param(["selectors", "--xml"], None, 2, "flowno: error: unrecognized arguments", id="no such option"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    run_python: RunPython, arguments: list[str], environment: str | None, code: int, message: str
) -> None:
    result = run_python(FLOWNO, *arguments, env={"FLOWNO_SELECTOR": environment})
    *usage, said = result.stderr.splitlines()
    assert (result.returncode, result.stdout) == (code, "")
    assert said.startswith(message)
    assert [line.partition(" ")[0] for line in usage] == (["usage:"] if code == 2 else [])


def test_what_is_wrong_within_a_decorator_is_pointed_at(run_python: RunPython) -> None:
    result = run_python(FLOWNO, "demo", "--selector", "check(eppol)")
    _, said, *shown = result.stderr.splitlines()
    assert result.returncode == 2
    assert said.startswith("flowno demo: error: --selector check(eppol): no selector is named 'eppol' (did you mean ")
    assert shown == ["flowno demo: error:   check(eppol)", "flowno demo: error:         ^^^^^"]


def test_demo_runs_within_a_decorator(run_python: RunPython) -> None:
    result = run_python(FLOWNO, "demo", "--selector", "check( select )")
    assert (result.returncode, result.stderr) == (0, "")
    assert list(rates(result.stdout)) == ["check(select)"]


def run_with_stdout(redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" -m flowno "$@" {redirection}', sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "backends"), "FLOWNO_SELECTOR": "", "PYTHONUNBUFFERED": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30 * wine.PATIENCE,
        check=False,
    )


@on_posix
@pytest.mark.parametrize("arguments", [["selectors"], ["--help"], ["--version"]], ids=" ".join)
def test_a_closed_standard_output_is_a_failure(arguments: list[str]) -> None:
    result = run_with_stdout(">&-", *arguments)
    assert (result.returncode, result.stderr) == (1, "flowno: standard output is closed\n")


@on_posix
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", [["selectors"], ["demo", "--selector", "select"], ["--help"]], ids=" ".join)
def test_an_output_that_cannot_be_written_is_a_failure(arguments: list[str]) -> None:
    result = run_with_stdout(">/dev/full", *arguments)
    assert (result.returncode, result.stderr) == (1, "flowno: standard output: No space left on device\n")


@pytest.mark.skipif(os.name != "posix", reason="Windows says EINVAL of a broken pipe")
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", [["selectors"], ["demo", "--selector", "select"]], ids=" ".join)
def test_a_reader_that_has_gone_is_a_failure_without_a_word(arguments: list[str], unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "flowno", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "backends"), "PYTHONUNBUFFERED": unbuffered},
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30 * wine.PATIENCE,
            check=False,
        )
    finally:
        os.close(writing)
    assert (result.returncode, result.stderr) == (1, "")


# ---------------------------------------------------------------------------------------------------------- the program


def test_help_names_the_commands_and_their_options(run_python: RunPython) -> None:
    top = run_python(FLOWNO, "--help")
    demo = run_python(FLOWNO, "demo", "--help")
    assert top.returncode == demo.returncode == 0
    assert top.stdout.startswith("usage: flowno [-h]")
    assert {"selectors", "demo", "FLOWNO_SELECTOR"} <= set(top.stdout.split())
    assert "--selector NAME" in demo.stdout


def test_version_is_that_of_the_project(run_python: RunPython) -> None:
    result = run_python(FLOWNO, "--version")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert (result.returncode, result.stdout) == (0, f"flowno {version}\n")


def test_python_m_flowno_and_the_script_are_the_same_program(run_python: RunPython) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert pkgutil.resolve_name(scripts["flowno"]) is main
    as_module = run_python("import runpy; runpy.run_module('flowno', run_name='__main__')", "selectors", "--json")
    as_script = run_python(FLOWNO, "selectors", "--json")
    assert as_module.returncode == 0, as_module.stderr
    assert as_module.stdout == as_script.stdout
