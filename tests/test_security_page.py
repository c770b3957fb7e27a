"""The page on security names tests that exist, and every test that was written for it."""

import re

import pytest

from tests.conftest import ROOT
from tests.test_reliability_page import names_of

PAGE = (ROOT / "docs" / "security.rst").read_text(encoding="utf-8")
NAMED = set(re.findall(r"tests/(?:\w+/)?\w+\.py::\w+", PAGE))

#: What has no row without its tests, and no test without its row.
ITS_OWN = ["tests/net/test_hostile_peers.py", "tests/test_private_files.py", "tests/test_untrusted_environment.py"]


def test_each_row_names_its_tests() -> None:
    rows = re.split(r"^   \* - ", PAGE, flags=re.MULTILINE)[1:]
    rows = [row for row in rows if not row.startswith("What ")]  # the heads
    assert len(rows) > 20
    assert [row.partition("\n")[0] for row in rows if "``tests/" not in row] == []


@pytest.mark.parametrize("file", sorted({name.partition("::")[0] for name in NAMED}))
def test_the_tests_that_the_page_names_exist_and_those_of_peers_run_on_every_backend(file: str) -> None:
    tests = names_of(ROOT / file)
    named = {name.partition("::")[2] for name in NAMED if name.startswith(f"{file}::")}
    assert named - tests == set()
    if file.startswith(("tests/core/", "tests/net/", "tests/load/")):
        assert 'pytest.mark.usefixtures("backend")' in (ROOT / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("file", ITS_OWN)
def test_the_page_has_every_test_that_was_written_for_it(file: str) -> None:
    tests = {name for name in names_of(ROOT / file) if name.startswith("test_")}
    assert {name for name in tests if f"{file}::{name}" not in NAMED} == set()
