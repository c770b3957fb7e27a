"""The programs of ``docs/examples`` in processes of their own, and the programs of others that the tests use.

``python -m tests.examples.programs`` says which of the others this machine lacks, so that their tests were skipped.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pytest

from tests.conftest import ROOT
from tests.support import wine

EXAMPLES = ROOT / "docs" / "examples"
PATIENCE = 20.0 * wine.PATIENCE  # seconds

#: The programs of others, each with the package that Debian has it in.
PACKAGES = {
    "curl": "curl",
    "openssl": "openssl",
    "redis-server": "redis-server",
    "strace": "strace",
    "wrk": "wrk",
}

#: Set, it makes a program that is missing a failure: where they were installed, no test may be skipped for want of one.
REQUIRED = "FLOWNO_REQUIRE_PROGRAMS"


def missing() -> list[str]:
    """The programs that this machine lacks."""
    return [name for name in PACKAGES if find(name) is None]


def find(name: str) -> str | None:
    """Where a program is. LibreSSL, the openssl of macOS and OpenBSD, has other options: it does not count."""
    path = shutil.which(name)
    if name == "openssl" and path is not None:
        version = subprocess.run([path, "version"], capture_output=True, text=True, timeout=PATIENCE, check=False)
        return path if version.stdout.startswith("OpenSSL") else None
    return path


def require(name: str) -> str:
    """The path of a program; without it the test is skipped, or fails where programs are required."""
    path = find(name)
    if path is None:
        message = f"{name} is not installed (Debian has it in the package {PACKAGES[name]})"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{message}, and {REQUIRED} is set", pytrace=False)
        pytest.skip(message)
    return path


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends")])
    return {**os.environ, "FLOWNO_DEBUG": "", "PYTHONPATH": path, "PYTHONUTF8": "1"}


def command(name: str, *args: str) -> list[str]:
    return [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py"), *args]


def run(name: str, *args: str, lines: str = "") -> "subprocess.CompletedProcess[str]":
    """Run an example to its end, with these lines on its standard input."""
    return subprocess.run(
        command(name, *args),
        env=environment(),
        input=lines,
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
    )


class Program:
    """An example that runs, and has said where it listens."""

    def __init__(self, process: "subprocess.Popen[str]", errors: IO[str]) -> None:
        self.process = process
        self._errors = errors
        self.first_line = self.readline()
        match = re.fullmatch(r"Listening on (?:https?://)?(\S+):(\d+)\n", self.first_line)
        assert match, self.first_line + self.errors()
        self.host, self.port = match[1], int(match[2])
        self.url = self.first_line.split()[-1]

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    def readline(self) -> str:
        """What it prints next."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def errors(self) -> str:
        """What it has written on its standard error so far."""
        self._errors.seek(0)
        return self._errors.read()

    def logs(self, text: str) -> bool:
        """Whether it writes this on its standard error, now or soon."""
        deadline = time.monotonic() + PATIENCE
        while not (found := text in self.errors()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return found

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def end(self) -> str:
        """Wait until it has ended, in order; what it has printed meanwhile."""
        try:
            output, _ = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it did not end within {PATIENCE:g} s, and has written:\n{self.errors()}")
        assert self.process.returncode == 0, self.errors()
        return output

    def stop(self) -> str:
        """End it by Ctrl-C; what it has printed meanwhile. On Windows there is no way to send that to one process."""
        if os.name != "posix":
            return "Stopped\n"
        self.interrupt()
        return self.end()


@contextmanager
def started(name: str, *args: str) -> Iterator[Program]:
    """An example that listens on a free port of 127.0.0.1. It is ended, at the latest, when this is left."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        subprocess.Popen(
            command(name, *args, "--host", "127.0.0.1", "--port", "0"),
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
        ) as process,
    ):
        try:
            yield Program(process, errors)
        finally:
            process.kill()


if __name__ == "__main__":
    lacking = missing()
    print(f"missing programs, whose tests were skipped: {', '.join(lacking)}" if lacking else "no program was missing")
