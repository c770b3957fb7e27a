"""What the pages show at a terminal, done again: a section of a page is a session, with a shell and a folder to itself.

``python -m tests.support.transcripts PAGE...`` writes what comes now into pages, where it is not what they show. What
is known to vary is left out of that; leaving out more, by an ellipsis, is for whoever has asked for it.
"""

import doctest
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Command", "Shell", "fits", "open_shell", "sessions_of", "update"]

ROOT: Final = Path(__file__).parents[2]

#: Seconds that a command may take, and those without output after which a program in the background has said all.
PATIENCE: Final = 30.0
SILENCE: Final = 1.0

#: What the shell prints after each command: the end of what a program in the foreground has to say.
END: Final = b"\004"

#: A shell that reads one command after the other, which see nothing of that.
LOOP: Final = r"""exec 3<&0 </dev/null; while IFS= read -r line <&3; do eval "$line" 3<&-; printf '\004'; done"""

HEADING: Final = r"^(?:#+ (?P<marked>.+)|(?P<underlined>\S.*)\n(?:---+|===+))$"
COMMAND: Final = r"^(?P<indent> *)\$ (?P<line>.+)\n(?P<output>(?:(?!(?P=indent)\$ |```)(?P=indent) *\S.*\n)*)"

#: Another port each time; all that the system chooses have five digits, so that columns stay columns.
PORT: Final = r"(?<=127\.0\.0\.1:)\d{5}"

#: What else differs from run to run, and what stands for it in the pages.
VARYING: Final = (
    (r'/\S*/(?:flowno|lib/python3\.\d+)/(?:\S*/)?(\w+\.py)(:|", line )\d+', r"...\1\2..."),
    (r"/\S*/(?=\w+\.py)", "..."),
    (r"(?<=process )\d+", "..."),
    (r"\d+\.\d{2,}(?= s\b)", "..."),
    (r"\d\d:\d\d:\d\d[.,]\d{3}", "..."),
    (r"0x[0-9a-f]+", "0x..."),
    (r"\n\s*\n", "\n...\n"),  # a page has no empty line in an output
)


class Command(NamedTuple):
    """A command of a page, the output that is shown for it, and where in the page that stands."""

    line: str
    output: str
    indent: str
    start: int
    end: int


def sessions_of(page: Path) -> dict[str, list[Command]]:
    """The commands of a page, by the headings that they stand below."""
    sessions: dict[str, list[Command]] = {}
    heading = ""
    for found in re.finditer(f"{HEADING}|{COMMAND}", page.read_text(encoding="utf-8"), re.MULTILINE):
        heading = found["marked"] or found["underlined"] or heading
        if found["line"]:
            indent = found["indent"]
            output = re.sub(f"^{indent}", "", found["output"], flags=re.MULTILINE)
            sessions.setdefault(heading, []).append(Command(found["line"], output, indent, *found.span("output")))
    return sessions


def fits(shown: str, output: str) -> bool:
    """Whether a page shows an output rightly, ``...`` and the number of a port standing for anything."""
    return doctest.OutputChecker().check_output(re.sub(PORT, "...", shown), output, doctest.ELLIPSIS)


class Shell:
    """A shell in a copy of the folder of examples, in which ``python`` and ``flowno`` are those of this process."""

    def __init__(self, commands: int, output: int) -> None:
        self._commands = commands
        self._output = output
        self._has_background = False

    def run(self, command: Command, *, to_update: bool = False) -> str:
        """What a command prints, and what the programs in the background do meanwhile.

        As those end with nothing, their output is waited for until it is what is shown, or until it pauses.
        """
        self._has_background = self._has_background or command.line.endswith("&")
        os.write(self._commands, f"{command.line}\n".encode())
        output = self._read(lambda output: END in output, PATIENCE)
        if self._has_background and to_update:
            output += self._read(lambda output: False, SILENCE)
        elif self._has_background:
            so_far = output
            output += self._read(lambda more: fits(command.output, _text(so_far + more)), PATIENCE)
        return _text(output)

    def _read(self, is_enough: Callable[[bytes], bool], patience: float) -> bytes:
        output = b""
        deadline = time.monotonic() + patience
        while not is_enough(output) and select.select([self._output], [], [], max(0, deadline - time.monotonic()))[0]:
            data = os.read(self._output, 65536)
            if not data:
                break
            output += data
        return output


def _text(output: bytes) -> str:
    return re.sub(r" +$", "", output.replace(END, b"").decode(errors="replace"), flags=re.MULTILINE)


@contextmanager
def open_shell() -> Iterator[tuple[Shell, Path]]:
    """A shell, and the folder that it is in. All that it has started is ended with it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "docs" / "examples", folder, dirs_exist_ok=True)
        tools = folder / ".venv" / "bin"
        tools.mkdir(parents=True)
        for tool, options in (("python", ""), ("flowno", "-m flowno")):
            (tools / tool).write_text(f'#!/bin/sh\nexec "{sys.executable}" {options} "$@"\n')
            (tools / tool).chmod(0o755)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FLOWNO_")},
            "PATH": os.pathsep.join([str(tools), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")]),
            "PYTHONUNBUFFERED": "1",  # as at a terminal
            "COLUMNS": "100",
        }
        with subprocess.Popen(
            ["/bin/sh", "-c", LOOP],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                yield Shell(process.stdin.fileno(), process.stdout.fileno()), folder
            finally:
                os.killpg(process.pid, signal.SIGKILL)


def update(page: Path) -> None:
    """Write into a page what its commands print, where it is not what the page shows."""
    changes = []
    for commands in sessions_of(page).values():
        with open_shell() as (shell, _):
            for command in commands:
                output = shell.run(command, to_update=True)
                if not fits(command.output, output):
                    changes.append((command, output))
    text = page.read_text(encoding="utf-8")
    for command, output in sorted(changes, key=lambda change: -change[0].start):
        lines = "".join(f"{command.indent}{line}" for line in _lasting(output).splitlines(keepends=True))
        text = text[: command.start] + lines + text[command.end :]
    page.write_text(text, encoding="utf-8")


def _lasting(output: str) -> str:
    for pattern, stands_for in VARYING:
        output = re.sub(pattern, stands_for, output)
    return output


if __name__ == "__main__":
    for path in sys.argv[1:]:
        update(Path(path))
