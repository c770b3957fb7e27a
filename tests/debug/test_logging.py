"""What flowno logs: under which names, at what cost, and the quick look at it by ``FLOWNO_LOG_LEVEL``."""

import ast
import logging
import re
from collections.abc import Iterator

import pytest

from flowno import EventLoop
from tests.conftest import ROOT, RunPython

PAGE = ROOT / "docs" / "logging.rst"
METHODS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
SOURCES = sorted((ROOT / "flowno").rglob("*.py"))

HELLO = """
import logging
{before}
import flowno

async def main():
    logging.getLogger("flowno.test").info("a message %d", 1)

flowno.run(main())
flowno.run(main())
"""

BY_THE_ROOT = "logging.basicConfig(format='mine: %(message)s', level='INFO')"
BY_FLOWNO = """
handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter("mine: %(message)s"))
logging.getLogger("flowno").addHandler(handler)
logging.getLogger("flowno").setLevel("INFO")
"""


def loggers() -> Iterator[tuple[str, str]]:
    """The loggers that flowno has, each with the module that logs by it."""
    for path in SOURCES:
        for name in re.findall(r'getLogger\("(flowno[\w.]*)"\)', path.read_text(encoding="utf-8")):
            yield name, path.relative_to(ROOT).as_posix()


# ------------------------------------------------------------------------------------------------------------ the names


def test_the_table_of_the_page_has_every_logger() -> None:
    rows = re.findall(r"^   \* - ``(flowno[\w.]*)``", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    used = {name for name, path in loggers() if not path.startswith("flowno/debug/logs")}
    assert set(rows) == used | {"flowno"}
    assert rows == ["flowno", *sorted(used)]


def test_nothing_is_logged_by_the_common_logger_itself() -> None:
    assert [path for name, path in loggers() if name == "flowno"] == ["flowno/debug/logs.py"]


def test_the_backend_in_use_is_one_debug_line(backend: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="flowno"), EventLoop() as loop:
        (record,) = [record for record in caplog.records if record.name == "flowno.selector"]
        assert record.levelno == logging.DEBUG
        assert record.getMessage() == f"<EventLoop {backend} idle> waits by {loop.selector!r}"


# ------------------------------------------------------------------------------------------------------------- the cost


def messages(tree: ast.AST) -> Iterator[ast.Call]:
    """The calls that log something."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in METHODS
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id.endswith("logger")
        ):
            yield node


def test_no_message_is_put_together_before_somebody_wants_to_see_it() -> None:
    found = [(path, call) for path in SOURCES for call in messages(ast.parse(path.read_text(encoding="utf-8")))]
    assert len(found) > 20
    for path, call in found:
        template = call.args[0]
        where = f"{path.relative_to(ROOT)}:{call.lineno}"
        assert isinstance(template, ast.Constant), f"{where}: a template and its arguments, please"


def test_import_installs_no_handler_and_sets_no_level(run_python: RunPython) -> None:
    program = """
import logging, pkgutil, importlib
import flowno
for module in pkgutil.walk_packages(flowno.__path__, "flowno."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
known = logging.Logger.manager.loggerDict
ours = [known[name] for name in known if name.startswith("flowno") and isinstance(known[name], logging.Logger)]
print(len(ours) > 5, [logger for logger in ours if logger.handlers or logger.level or not logger.propagate])
print(logging.getLogger().handlers)
"""
    result = run_python(program, env={"FLOWNO_LOG_LEVEL": "debug"})
    assert (result.stdout, result.stderr) == ("True []\n[]\n", "")


# ----------------------------------------------------------------------------------------------------- FLOWNO_LOG_LEVEL


def lines_of(text: str) -> list[str]:
    """What was logged, without the time."""
    return [re.sub(r"^\d\d:\d\d:\d\d\.\d{3} ", "", line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("level", "selector", "message"),
    [("debug", 2, 2), ("DEBUG", 2, 2), (" Info ", 0, 2), ("20", 0, 2), ("warning", 0, 0), ("", 0, 0), ("0", 0, 0)],
)
def test_the_variable_shows_messages_from_its_level_on(
    run_python: RunPython, level: str, selector: int, message: int
) -> None:
    result = run_python(HELLO.format(before=""), env={"FLOWNO_LOG_LEVEL": level})
    assert (result.returncode, result.stdout) == (0, "")
    lines = lines_of(result.stderr)
    assert lines.count("INFO flowno.test: a message 1") == message
    assert sum(line.startswith("DEBUG flowno.selector: <EventLoop ") for line in lines) == selector
    assert all(re.match(r"\d\d:\d\d:\d\d\.\d{3} ", line) for line in result.stderr.splitlines())


def test_a_program_without_standard_error_runs_all_the_same(run_python: RunPython) -> None:
    program = HELLO.format(before="import sys; shown, sys.stderr = sys.stderr, None")
    result = run_python(f"{program}\nsys.stderr = shown\nflowno.run(main())", env={"FLOWNO_LOG_LEVEL": "info"})
    assert result.returncode == 0
    assert lines_of(result.stderr) == ["INFO flowno.test: a message 1"]


@pytest.mark.parametrize("before", [BY_THE_ROOT, BY_FLOWNO], ids=["root", "flowno"])
def test_a_program_that_has_configured_logging_itself_is_left_alone(run_python: RunPython, before: str) -> None:
    result = run_python(HELLO.format(before=before), env={"FLOWNO_LOG_LEVEL": "debug"})
    assert result.stderr == "mine: a message 1\n" * 2


def test_one_that_does_it_later_takes_over(run_python: RunPython) -> None:
    program = HELLO.format(before="") + "\nlogging.basicConfig(format='mine: %(message)s')\nflowno.run(main())"
    result = run_python(program, env={"FLOWNO_LOG_LEVEL": "info"})
    assert lines_of(result.stderr) == ["INFO flowno.test: a message 1"] * 2 + ["mine: a message 1"]


def test_a_wrong_level_is_one_warning_that_says_what_there_is(run_python: RunPython) -> None:
    result = run_python(HELLO.format(before=""), options=[], env={"FLOWNO_LOG_LEVEL": "loud"})
    assert result.returncode == 0
    (line,) = [line for line in result.stderr.splitlines() if "Warning" in line]
    assert "RuntimeWarning: FLOWNO_LOG_LEVEL=loud was ignored: it is none of CRITICAL, FATAL, ERROR, WARN" in line
    assert "a message" not in result.stderr
