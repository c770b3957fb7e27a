"""What the documentation shows is true: its examples run, its transcripts are those of real runs, its names exist."""

import doctest
import importlib
import inspect
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flowno
import flowno_backends
from flowno.core.event_loop import commands, selectors
from flowno.core.event_loop.backend import BUILT_IN, available_selectors
from tests.conftest import IS_DEBUGGED, ROOT, RunPython

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
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("page", [page for page in PAGES if ">>>" in text_of(page)], ids=name_of)
def test_the_examples_in_pages_run(backend: str, page: Path) -> None:
    if IS_DEBUGGED and page.name == "testing.rst":
        pytest.skip("FLOWNO_DEBUG: of a handle that is dropped, more is said")
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


def transcripts() -> Iterator[tuple[str, str, str]]:
    """The page, the command and the output of everything that a page shows behind a ``$``."""
    for page in (README, *PAGES):
        for line in re.finditer(r"^( *)\$ (.+)\n((?:(?!\1\$ )\1\S.*\n|\1 +\S.*\n)*)", text_of(page), re.MULTILINE):
            indent, command, output = line.groups()
            output = re.sub(rf"^{indent}", "", output, flags=re.MULTILINE)
            yield name_of(page), command, output.removesuffix("```\n")


TRANSCRIPTS = list(transcripts())


def test_the_search_for_transcripts_finds_them() -> None:
    shown = [(page, command.split()[0]) for page, command, _ in TRANSCRIPTS]
    assert ("README.md", "FLOWNO_SELECTOR=kqueue") in shown
    assert ("docs/backends.rst", "FLOWNO_SELECTOR=poll") in shown
    assert ("docs/writing_a_backend.rst", "FLOWNO_SELECTOR=minimal_backend:MinimalSelector") in shown
    assert all(output for _, _, output in TRANSCRIPTS)


@pytest.mark.skipif(sys.platform != "linux", reason="the pages show what happens on Linux")
@pytest.mark.parametrize(
    ("command", "output"),
    [pytest.param(command, output, id=f"{page}: {command}") for page, command, output in TRANSCRIPTS],
)
def test_a_transcript_is_what_really_happens(command: str, output: str) -> None:
    words = shlex.split(command)
    environment = {"FLOWNO_SELECTOR": "", "FLOWNO_DEBUG": "", "PYTHONUNBUFFERED": "1"}  # as at a terminal
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    program = {"python": [], "flowno": ["-m", "flowno"]}[words.pop(0).rpartition("/")[2]]
    result = subprocess.run(
        [sys.executable, *program, *words],
        cwd=EXAMPLES,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")]), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        check=False,
    )
    assert doctest.OutputChecker().check_output(output, result.stdout, doctest.ELLIPSIS), result.stdout


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
    known = {"selectors", "demo", "--help", "--version", "COMMAND"}
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


@pytest.mark.parametrize("floor", ["core/event_loop", "debug"])
def test_the_house_has_every_room(floor: str) -> None:
    rows = re.search(rf"^     {floor}/ *(?:\S.*)?\n((?:       .+\n)+)", text_of(DOCS / "design.rst"), re.MULTILINE)
    assert rows is not None
    rooms = set(re.findall(r"^       (\w+\.py)  ", rows[1], re.MULTILINE))
    assert rooms == {path.name for path in (ROOT / "flowno" / floor).glob("[!_]*.py")}


def test_the_table_of_backends_has_each_in_the_order_of_preference() -> None:
    rows = re.findall(r"^``(\w+)`` ", text_of(DOCS / "backends.rst"), re.MULTILINE)
    assert rows == list(BUILT_IN)


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
