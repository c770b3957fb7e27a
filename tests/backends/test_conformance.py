"""The conformance kit on each of flowno's backends, which may do nothing that the protocol merely allows."""

from typing import Any

import pytest

from flowno.testing import SelectorConformance


@pytest.mark.stdlib_differs("where, and why, is in docs/conformance.rst")
class TestConformance(SelectorConformance):
    strict = True
    limit = 30.0  # seconds, of a machine that runs everything at once

    @pytest.fixture(autouse=True)
    def take(self, case: Any) -> None:
        self.case = case

    def make_selector(self) -> Any:
        return self.case.make()
