"""What the documentation shows is true: its examples run, its transcripts are those of real runs, its names exist."""

import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flowno
import flowno_backends
from flowno.core.event_loop import commands, instrumentation, selectors
from flowno.core.event_loop.backend import BUILT_IN, available_selectors
from flowno.core.event_loop.instrumentation import EventLoopInstrument
from flowno.testing.conformance import NEEDS
from flowno_backends.base import CAPABILITIES
from tests.conftest import IS_DEBUGGED, ROOT, RunPython
from tests.support.trace_format import read_trace
from tests.support.transcripts import Command, fits, open_shell, sessions_of, update

DOCS = ROOT / "docs"
EXAMPLES = DOCS / "examples"
PAGES = sorted(DOCS.rglob("*.rst"))
README = ROOT / "README.md"


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ---------------------------------------------------------------------------------------------------- examples to type


def modules() -> Iterator[str]:
    for package in (flowno, flowno_backends):
        yield package.__name__
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                yield module.name


def with_examples() -> list[str]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [
        name for name in modules() if any(test.examples for test in finder.find(importlib.import_module(name), name))
    ]


def test_the_search_for_examples_finds_them() -> None:
    assert {"flowno.core.event_loop.selectors", "flowno.core.event_loop.event_loop"} <= set(with_examples())


@pytest.mark.parametrize("module", with_examples())
def test_the_examples_in_docstrings_run(backend: str, module: str) -> None:
    if module == "flowno.debug.monitor" and not hasattr(socket, "AF_UNIX"):
        pytest.skip("a monitor needs Unix sockets, which this Python has not")
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


#: Pages with an example that is none for Windows.
NOT_FOR_WINDOWS = {
    "reports.rst": "it has a SIGUSR1 and a Unix socket, which Windows has not",
    "selectors.rst": "it has a Unix socket, which Windows has not",
    "servers.rst": "it shows the text of an error, which Windows words in another way",
}


@pytest.mark.parametrize("page", [page for page in PAGES if ">>>" in text_of(page)], ids=name_of)
def test_the_examples_in_pages_run(backend: str, page: Path) -> None:
    if IS_DEBUGGED and page.name == "testing.rst":
        pytest.skip("FLOWNO_DEBUG: of a handle that is dropped, more is said")
    if sys.platform == "win32" and page.name in NOT_FOR_WINDOWS:
        pytest.skip(NOT_FOR_WINDOWS[page.name])
    result = doctest.testfile(
        str(page), module_relative=False, optionflags=doctest.ELLIPSIS, encoding="utf-8", raise_on_error=False
    )
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_holds_an_example_that_the_tests_do_not_see(page: Path) -> None:
    text = text_of(page)
    assert "+SKIP" not in text
    # What may stand in a block: output, a transcript, or configuration. Python is typed at >>> or is a file.
    assert set(re.findall(r"code-block:: *(\S*)", text)) <= {"text", "console", "toml"}
    assert not re.search(r"::\n\n", re.sub(r"\.\. [\w-]+::.*\n", "", text)), "a literal block says nothing of its kind"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_a_page_includes_is_there(page: Path) -> None:
    for included in re.findall(r"literalinclude:: *(\S+)", text_of(page)):
        assert (page.parent / included).is_file(), included


# --------------------------------------------------------------------------------------------------------- transcripts


SESSIONS = [
    pytest.param(commands, id=f"{name_of(page)}: {heading}")
    for page in (README, *PAGES)
    for heading, commands in sessions_of(page).items()
]


def test_the_search_for_transcripts_finds_them() -> None:
    headings = {session.id for session in SESSIONS}
    assert {"README.md: Choose a backend", "docs/backends.rst: A debugging session"} <= headings
    assert all(command.output for session in SESSIONS for command in session.values[0])


@pytest.mark.skipif(sys.platform != "linux", reason="the pages show what happens on Linux")
@pytest.mark.parametrize("commands", SESSIONS)
def test_a_transcript_is_what_really_happens(commands: list[Command]) -> None:
    with open_shell() as (shell, folder):
        for command in commands:
            output = shell.run(command)
            # Where that is right, python -m tests.support.transcripts PAGE writes it into the page.
            assert fits(command.output, output), f"{command.line}\n{output}"
        for trace in folder.glob("*trace*.json"):
            assert read_trace(trace).slices


def test_the_page_about_debugging_puts_every_tool_to_its_bug() -> None:
    used = {command.line for commands in sessions_of(DOCS / "debugging.rst").values() for command in commands}
    for tool in (
        "FLOWNO_SELECTOR=poll ", "check(", "shadow(", "trace(", "FLOWNO_LOG_LEVEL=", "FLOWNO_MONITOR=", "flowno ps ",
        "flowno where ", "flowno top ", "kill -USR1 ", "flowno trace ", "FLOWNO_DEBUG=1 ",
    ):  # fmt: skip
        assert any(tool in line for line in used), tool


@pytest.mark.skipif(sys.platform != "linux", reason="there is a shell")
def test_a_transcript_that_has_become_wrong_is_written_again(tmp_path: Path) -> None:
    page = tmp_path / "page.rst"
    right = "A page\n======\n\n   $ python -c 'print(6 * 7)'\n   42\n   $ echo a; echo b\n   a\n   ...\n\nThe end.\n"
    page.write_text(right.replace("42", "43"), encoding="utf-8")
    update(page)
    assert page.read_text(encoding="utf-8") == right


# -------------------------------------------------------------------------------------------------------------- README


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(README), re.MULTILINE | re.DOTALL)
    return [text for marked, text in found if marked == language]


def normalised(text: str) -> list[str]:
    """The lines, without what differs from run to run: numbers, and the room that they take."""
    return [" ".join(re.sub(r"\d[\d,]*", "N", line).split()) for line in text.splitlines()]


def test_the_readme_shows_the_documented_example() -> None:
    assert blocks("python")[0] == text_of(EXAMPLES / "echo.py")


@pytest.mark.skipif(sys.platform == "win32", reason="it names poll, which Windows has not")
@pytest.mark.parametrize("code", blocks("python")[1:])
def test_the_other_examples_of_the_readme_run(run_python: RunPython, code: str) -> None:
    result = run_python(code)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_readme_shows_what_the_demonstration_prints(run_python: RunPython) -> None:
    shown = normalised(next(block for block in blocks("") if "messages/s" in block))
    # Its last backend, and one row for each that it ran on: epoll, poll and select where that was.
    result = run_python("from flowno.cli import main; main(['demo', '--selector', 'select'])")
    printed = normalised(result.stdout)
    assert [line for line in shown if line not in ("epoll N", "poll N")] == printed


@pytest.mark.parametrize("path", [README, *PAGES], ids=name_of)
def test_the_commands_that_a_page_names_exist(path: Path) -> None:
    known = {"selectors", "demo", "check", "trace", "ps", "where", "top", "--help", "--version", "COMMAND"}
    used = re.findall(r"(?:``|bin/|\$ |-m )flowno +([\w-]+)", text_of(path))
    assert set(used) <= known


def test_the_two_commands_that_start_from_nothing_are_the_same_but_for_their_end() -> None:
    commands_shown = [block.strip() for block in blocks("") if block.startswith("python3 -m venv")]
    assert commands_shown == [
        "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/flowno demo",
        "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest -n auto",
    ]
    assert commands_shown[0] in text_of(DOCS / "index.rst")


@pytest.mark.parametrize("path", [README, ROOT / "CHANGELOG.md"], ids=name_of)
def test_the_links_to_files_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", text_of(path)):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_index_shows_the_output_of_the_example() -> None:
    shown = re.search(r"code-block:: text\n\n((?: {3}\S.*\n)+)", text_of(DOCS / "index.rst"))
    assert shown is not None
    readme = next(block for block in blocks("") if "messages/s" in block)
    transcript = [line for line in readme.splitlines() if re.match(r" +(Server|Client|Main):", line)]
    assert normalised(shown[1]) == normalised("\n".join(transcript))


# ----------------------------------------------------------------------------------------------------------- reference

# The names that programs are written against, with their signatures.
PINNED = {
    "SocketHandle": "(socket)",
    "SocketHandle.bind": "(address, /)",
    "SocketHandle.listen": "(backlog=None, /)",
    "SocketHandle.connect": "(address, /)",
    "SocketHandle.accept": "()",
    "SocketHandle.recv": "(bufsize)",
    "SocketHandle.send": "(data)",
    "SocketHandle.sendAll": "(data)",
    "TLSSocketHandle": "(socket, ssl_context, server_hostname, *, server_side=False, session=None, "
    "require_close_notify=True)",
}


def documented_signatures() -> dict[str, str]:
    """What the page of the selectors module says, by the name within the module."""
    found = {}
    owner = ""
    pattern = (
        r"^( *)\.\. (?:auto)?(class|method|data):: (?:flowno\.core\.event_loop\.selectors\.)?(\w+)(\(.*?\)(?= ->|$)|$)"
    )
    for indent, kind, name, signature in re.findall(
        pattern, text_of(DOCS / "reference" / "selectors.rst"), re.MULTILINE
    ):
        if kind != "method":
            owner = name
        assert bool(indent) == (kind == "method")
        found[f"{owner}.{name}" if kind == "method" else name] = signature
    return found


def signature_of(thing: object) -> str:
    """A signature without its types and without ``self``."""
    signature = inspect.signature(thing)  # type: ignore[arg-type]
    parameters = [parameter for name, parameter in signature.parameters.items() if name != "self"]
    return str(inspect.Signature([parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]))


def test_the_page_of_selectors_has_the_signatures_that_programs_rely_on() -> None:
    documented = documented_signatures()
    assert {name: documented.get(name) for name in PINNED} == PINNED


def test_the_page_of_selectors_has_the_signatures_of_the_code() -> None:
    documented = documented_signatures()
    for name, signature in documented.items():
        thing: object = selectors
        for part in name.split("."):
            thing = getattr(thing, part)
        if signature:
            assert signature_of(thing) == signature, name


def test_the_page_of_selectors_misses_nothing() -> None:
    documented = documented_signatures()
    assert set(selectors.__all__) <= set(documented)
    for handle in (selectors.SocketHandle, selectors.TLSSocketHandle):
        public = {name: value for name, value in vars(handle).items() if not name.startswith("_")}
        methods = {name for name, value in public.items() if callable(value) or isinstance(value, classmethod)}
        shown = {name.partition(".")[2] for name in documented if name.startswith(f"{handle.__name__}.")}
        assert methods - {"sendall"} == shown - {"sendall"}


@pytest.mark.not_in_debug_mode(reason="operations are native coroutines")
def test_what_waits_yields_the_command_that_the_page_names() -> None:
    expected = {
        "accept": commands.SocketAcceptCommand,
        "recv": commands.SocketRecvCommand,
        "recv_into": commands.SocketRecvCommand,
        "send": commands.SocketSendCommand,
        "sendAll": commands.SocketSendCommand,
    }
    page = text_of(DOCS / "reference" / "selectors.rst")
    for name, command in expected.items():
        assert f"``{name}``" in page
        assert f"commands.{command.__name__}`" in page
        method = getattr(selectors.SocketHandle, name)
        assert method.__code__.co_flags & inspect.CO_ITERABLE_COROUTINE, f"{name} is no generator-based coroutine"


def test_the_reference_has_every_public_name() -> None:
    text = "\n".join(text_of(page) for page in PAGES)
    documented = re.findall(r"^\.\. (?:auto)?\w+:: (flowno[\w.]*)\.(\w+)", text, re.MULTILINE)
    for package in (flowno, flowno_backends):
        names = {name for path, name in documented if path.partition(".")[0] == package.__name__}
        assert set(package.__all__) <= names


def test_the_table_of_commands_has_every_command() -> None:
    pattern = r"^   \* - :class:`~flowno\.core\.event_loop\.commands\.(\w+)`"
    rows = re.findall(pattern, text_of(DOCS / "commands.rst"), re.MULTILINE)
    bases = {"Command", "FdCommand", "QueueingCommand", "SocketCommand"}
    assert set(rows) == set(commands.__all__) - bases
    assert len(rows) == len(set(rows))


def test_the_table_of_commands_says_of_each_whether_it_waits() -> None:
    pattern = r"^   \* - :class:`~flowno\.core\.event_loop\.commands\.(\w+)`\n(?:     .*\n)*?     - (yes|no)$"
    rows = re.findall(pattern, text_of(DOCS / "commands.rst"), re.MULTILINE)
    assert rows
    assert dict(rows) == {name: "yes" if getattr(commands, name).is_wait else "no" for name, _ in rows}


def documented_hooks() -> dict[str, str]:
    """What the page of instruments says: the hooks with their parameters."""
    return dict(re.findall(r"^   \* - ``(on_\w+)(\(.*\))``$", text_of(DOCS / "instruments.rst"), re.MULTILINE))


def test_the_table_of_hooks_has_every_hook_with_its_parameters() -> None:
    hooks = {name: hook for name, hook in vars(EventLoopInstrument).items() if name.startswith("on_")}
    assert documented_hooks() == {name: signature_of(hook).partition(" ->")[0] for name, hook in hooks.items()}


def test_the_reference_of_instruments_has_every_hook_with_its_parameters() -> None:
    page = text_of(DOCS / "reference" / "instrumentation.rst")
    assert dict(re.findall(r"automethod:: (on_\w+)(\(.*\)) -> None$", page, re.MULTILINE)) == documented_hooks()
    for name in instrumentation.__all__:
        assert f":: flowno.core.event_loop.instrumentation.{name}(" in page


def test_the_table_of_metadata_has_every_field_of_every_class() -> None:
    pattern = r"^   \* - :class:`~flowno\.core\.event_loop\.instrumentation\.(\w+)`\n     - ((?:.+\n)+?)(?=   \*|\n)"
    rows = re.findall(pattern, text_of(DOCS / "instruments.rst"), re.MULTILINE)
    documented = {name: set(re.findall(r"``(\w+)``", fields)) for name, fields in rows}
    assert documented == {
        name: {field.name for field in dataclasses.fields(getattr(instrumentation, name))}
        for name in instrumentation.__all__
        if name.endswith("Metadata")
    }


@pytest.mark.parametrize("floor", ["core/event_loop", "debug", "net", "testing"])
def test_the_house_has_every_room(floor: str) -> None:
    rows = re.search(rf"^     {floor}/ *(?:\S.*)?\n((?:       .+\n)+)", text_of(DOCS / "design.rst"), re.MULTILINE)
    assert rows is not None
    rooms = set(re.findall(r"^       (\w+\.py)  ", rows[1], re.MULTILINE))
    assert rooms == {path.name for path in (ROOT / "flowno" / floor).glob("[!_]*.py")}


def test_the_table_of_backends_has_each_in_the_order_of_preference() -> None:
    rows = re.findall(r"^``(\w+)`` ", text_of(DOCS / "backends.rst"), re.MULTILINE)
    assert rows == list(BUILT_IN)


def test_the_page_of_the_conformance_kit_says_what_each_capability_is() -> None:
    page = text_of(DOCS / "conformance.rst")
    claimable = {need for need in NEEDS if need in CAPABILITIES} | {"fork_safe"}
    for capability, meaning in CAPABILITIES.items():
        described = re.search(rf"^``{capability}``\n   It (.+)\.$", page, re.MULTILINE)
        assert (described and described[1]) == (meaning if capability in claimable else None)


def test_the_names_of_the_json_are_those_of_the_page() -> None:
    row = available_selectors()[0]
    page = text_of(DOCS / "command_line.rst")
    for field in row._fields:
        assert f"``{field}``" in page


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_references_to_flownos_names_lead_to_something(page: Path) -> None:
    for target in re.findall(r":(?:class|func|meth|exc|data):`~?(flowno[\w.]+)`", text_of(page)):
        assert pkgutil.resolve_name(target) is not None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_page_can_be_reached(page: Path) -> None:
    entry = page.relative_to(DOCS).with_suffix("").as_posix()
    listed = re.findall(r"^   ([\w/]+)$", text_of(DOCS / "index.rst"), re.MULTILINE)
    assert entry == "index" or entry in listed
