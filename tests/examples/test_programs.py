"""What is missing is said; where it was installed nothing is skipped for want of it; and how servers fail to begin."""

import configparser
import os
import re
import shutil
import socket
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT, RunPython
from tests.examples import programs
from tests.examples.conftest import Certificates
from tests.examples.programs import EXAMPLES, PACKAGES, REQUIRED, require


def test_a_program_that_is_missing_is_a_skip_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REQUIRED, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(pytest.skip.Exception, match="wrk is not installed"):
        require("wrk")


def test_a_program_that_is_missing_is_a_failure_where_programs_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REQUIRED, "1")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(pytest.fail.Exception, match="redis-server is not installed"):
        require("redis-server")


def test_the_list_of_missing_programs_names_each(run_python: RunPython, tmp_path: os.PathLike[str]) -> None:
    result = run_python(
        "import runpy; runpy.run_module('tests.examples.programs', run_name='__main__')", env={"PATH": str(tmp_path)}
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"missing programs, whose tests were skipped: {', '.join(PACKAGES)}\n"


def test_ci_installs_every_program_and_then_requires_them() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (line,) = [line for line in script.splitlines() if "apt-get install" in line]
    assert set(PACKAGES.values()) <= set(re.findall(r"[\w-]+", line))
    assert f"export {REQUIRED}=1" in script


def test_tox_passes_the_requirement_on_and_prints_the_list_at_the_end() -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    assert REQUIRED in tox["testenv"]["pass_env"].split()
    assert tox["testenv"]["commands_post"] == f"python -m {programs.__name__}"
    for name in ("lint", "types", "docs", "imports"):
        assert tox[f"testenv:{name}"]["commands_post"] == ""


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_program_is_in_the_gallery(path: os.PathLike[str]) -> None:
    name = os.path.basename(path)
    texts = [page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.rst")]
    assert any(f"literalinclude:: examples/{name}" in text for text in texts)


@pytest.mark.parametrize(
    "name",
    ["http_server", "http_client", "tls_echo_server", "tls_echo_client", "redis_client", "dns_exchange",
     "chat_server", "port_forwarder", "process_per_core"],
)  # fmt: skip
def test_every_program_says_how_to_use_it(name: str) -> None:
    result = subprocess.run(
        programs.command(name, "--help"), env=programs.environment(), capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: {name}.py")
    assert sys.executable not in result.stdout


#: The servers, each with what it is told besides where to listen.
SERVERS: dict[str, tuple[str, ...] | None] = {
    "chat_server": (),
    "http_server": (),
    "port_forwarder": ("--to-port", "1"),
    "tls_echo_server": ("--certificate",),
    "dns_exchange": ("serve",),
    "echo_server": None,  # it takes a port and nothing else
}
if hasattr(socket, "SO_REUSEPORT"):
    SERVERS["process_per_core"] = ()


#: What the system calls a port that another has: Windows in a sentence of its own, and at times a matter of rights.
TAKEN = ["WinError 10048", "WinError 10013"] if sys.platform == "win32" else ["in use"]


def start_at(port: int, name: str, certificates: Certificates) -> "subprocess.CompletedProcess[str]":
    """Start a server where it cannot listen."""
    options = SERVERS[name]
    if options is None:
        return programs.run(name, str(port))
    if options == ("--certificate",):
        options = ("--certificate", certificates.server)
    return programs.run(name, *options, "--host", "127.0.0.1", "--port", str(port))


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("port", ["taken", 99999])
def test_a_port_that_cannot_be_had_is_one_line_and_an_exit_status(
    name: str, port: Any, certificates: Certificates
) -> None:
    with socket.socket(type=socket.SOCK_DGRAM if name == "dns_exchange" else socket.SOCK_STREAM) as other:
        other.bind(("127.0.0.1", 0))
        if name != "dns_exchange":
            other.listen()
        result = start_at(other.getsockname()[1] if port == "taken" else port, name, certificates)
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert any(each in line for each in (TAKEN if port == "taken" else ["port must be 0"])), line
