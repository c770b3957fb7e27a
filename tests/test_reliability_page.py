"""The page on reliability names tests that exist, and that run on every backend."""

import ast
import re
from pathlib import Path

import pytest

from flowno.testing import SelectorConformance
from flowno.testing.conformance import CASES
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "reliability.rst"
NAMED = sorted(set(re.findall(r"tests/\w+/\w+\.py::\w+(?:::\w+)?", PAGE.read_text(encoding="utf-8"))))

#: Rooms that make their selectors themselves, one of each kind that there is.
OWN_SELECTORS = ("tests/backends/", "tests/core/test_foreign_selectors.py", "tests/core/test_fork.py")


def names_of(path: Path) -> set[str]:
    """The tests of a file by their names, ``TestCase::test_name`` for those in a class."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
            if any(ast.unparse(base) == SelectorConformance.__name__ for base in node.bases):
                found |= {f"{node.name}::test_{case.name}" for case in CASES}
    return found


def test_the_page_names_tests() -> None:
    assert len(NAMED) > 100


@pytest.mark.parametrize("file", sorted({name.partition("::")[0] for name in NAMED}))
def test_the_tests_that_the_page_names_exist_and_run_on_every_backend(file: str) -> None:
    path = ROOT / file
    tests = names_of(path)
    named = [name.partition("::")[2] for name in NAMED if name.startswith(f"{file}::")]
    assert [name for name in named if name not in tests] == []
    if not file.startswith(OWN_SELECTORS):
        assert 'pytest.mark.usefixtures("backend")' in path.read_text(encoding="utf-8")
