"""The small project of ``docs/examples/your_project``: its tests pass, and its matrix is one that CI could run."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from flowno.core.event_loop.backend import BUILT_IN, ENVIRONMENT_VARIABLE, available_selectors
from tests.conftest import ROOT
from tests.support import wine

EXAMPLE = ROOT / "docs" / "examples" / "your_project"
WORKFLOW = ".github/workflows/tests.yml"

USABLE = [row.name for row in available_selectors() if row.usable and row.source == BUILT_IN.get(row.name)]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy, so that nothing is left beside the original."""
    return Path(
        shutil.copytree(EXAMPLE, tmp_path / "your_project", ignore=shutil.ignore_patterns("__pycache__", ".*cache"))
    )


def run(project: Path, *command: str, timeout: float, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run a Python module in the project, whose environment names neither a backend nor a plugin."""
    ours = {ENVIRONMENT_VARIABLE, "PYTEST_ADDOPTS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD", "FLOWNO_DEBUG"}
    inherited: Mapping[str, str] = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=project,
        env={**inherited, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What flowno is built from, elsewhere: a build leaves files beside its sources."""
    folder = tmp_path / "flowno"
    for name in ("flowno", "backends"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def read_tox() -> configparser.ConfigParser:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(EXAMPLE / "tox.ini", encoding="utf-8")
    return tox


@wine.copies_no_files
def test_its_tests_pass_on_every_backend_by_the_entry_point_alone(project: Path) -> None:
    result = run(project, "pytest", "-v", "-p", "no:cacheprovider", timeout=50, PYTHONPATH="src")
    assert result.returncode == 0, result.stdout
    for name in USABLE:
        assert f"::test_a_name_is_greeted[{name}] PASSED" in result.stdout


@pytest.mark.long
@pytest.mark.timeout(600)
def test_its_tox_passes(project: Path, checkout: Path) -> None:
    pytest.importorskip("tox", reason="tox is not installed")
    environment = f"py{sys.version_info.major}{sys.version_info.minor}-select"
    result = run(project, "tox", "run", "-e", environment, "--", "-v", timeout=580, FLOWNO=str(checkout))
    assert result.returncode == 0, result.stdout
    assert "::test_a_name_is_greeted[select] PASSED" in result.stdout


def test_its_tox_covers_every_python_and_every_backend() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = re.findall(r":: Python :: 3\.(\d+)", "\n".join(project["classifiers"]))
    tox = read_tox()
    assert tox["tox"]["env_list"] == f"py{{{','.join(f'3{minor}' for minor in versions)}}}-{{{','.join(BUILT_IN)}}}"
    for name in BUILT_IN:
        assert f"{name}: {ENVIRONMENT_VARIABLE} = {name}" in tox["testenv"]["set_env"].splitlines()


def test_its_tox_skips_the_backends_that_ours_skips() -> None:
    ours = configparser.ConfigParser(interpolation=None)
    ours.read(ROOT / "tox.ini", encoding="utf-8")
    assert read_tox()["testenv"]["platform"] == ours["testenv"]["platform"]


def test_it_takes_the_flowno_that_pip_finds_unless_it_is_told_otherwise() -> None:
    [requirement] = re.findall(r"\{env:FLOWNO:flowno>=(.+)\}", read_tox()["testenv"]["deps"])
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert [int(part) for part in version.split(".")] >= [int(part) for part in requirement.split(".")]
    assert not re.search(r"\bFLOWNO\b", (EXAMPLE / WORKFLOW).read_text(encoding="utf-8"))


def test_its_workflow_runs_every_environment_of_its_tox_once() -> None:
    """Read line by line: the workflow is ours, and a parser of YAML would be there for it alone."""
    text = (EXAMPLE / WORKFLOW).read_text(encoding="utf-8")
    commands = re.findall(r"^ *- run: (.+)$", text, re.MULTILINE)
    assert commands == [
        f'python -m pip install "tox>={read_tox()["tox"]["min_version"]}"',
        'python -m tox run -f "py${PYTHON/./}" --skip-missing-interpreters false',
    ]
    pythons = re.findall(r'"3\.(\d+)"', re.findall(r"^ *python: \[(.+)\]$", text, re.MULTILINE)[0])
    assert read_tox()["tox"]["env_list"].startswith(f"py{{{','.join(f'3{minor}' for minor in pythons)}}}-")
    assert re.findall(r"^ *PYTHON: (.+)$", text, re.MULTILINE) == ["${{ matrix.python }}"]


@pytest.mark.parametrize("name", ["pyproject.toml", "tox.ini", WORKFLOW, "src/greeter.py", "tests/test_greeter.py"])
def test_the_page_about_testing_shows_it(name: str) -> None:
    page = (ROOT / "docs" / "testing.rst").read_text(encoding="utf-8")
    assert f"literalinclude:: examples/your_project/{name}" in page
