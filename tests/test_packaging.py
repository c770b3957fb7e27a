"""What a newcomer is told works: the README, ``.ci/run``, the package's metadata and tox agree with each other."""

import configparser
import re
import tomllib

from flowno.core.event_loop.backend import BUILT_IN
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_ci_runs_the_readmes_command_for_the_tests() -> None:
    command = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    assert command.endswith("pytest -n auto")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert command in (line.strip() for line in readme.splitlines())


def test_no_text_installs_the_other_flowno_of_the_package_index() -> None:
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.rst"), *(ROOT / "docs").rglob("*.md")]
    command = re.compile(r"pip install (-\S+ )*['\"]?flowno\b")
    assert [path for path in texts if command.search(path.read_text(encoding="utf-8"))] == []


def test_there_is_one_run_time_dependency() -> None:
    assert [re.split(r"[<>=~ ]", dependency)[0] for dependency in PROJECT["dependencies"]] == ["typing-extensions"]


def test_every_dependency_has_a_lower_bound() -> None:
    for dependencies in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        for dependency in dependencies:
            assert ">=" in dependency, dependency


def test_tox_covers_every_python_of_the_classifiers_on_every_backend() -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    pythons = [
        classifier.rpartition(":: 3.")[2] for classifier in PROJECT["classifiers"] if ":: Python :: 3." in classifier
    ]
    matrix = f"py{{{','.join(f'3{minor}' for minor in pythons)}}}-{{{','.join(BUILT_IN)}}}"
    assert matrix in tox["tox"]["env_list"].split()
    for name in BUILT_IN:
        assert f"{name}: FLOWNO_SELECTOR = {name}" in tox["testenv"]["set_env"].splitlines()
