"""What the tests of the tools get: an environment that asks for none of them, and a loop in debug mode."""

import os
from collections.abc import Iterator

import pytest

from flowno import EventLoop
from flowno.core.event_loop.environment import TRACE_VARIABLE, VARIABLES

#: ``FLOWNO_TRACE=path`` runs every test under a trace, which goes on to the end of the process.
_IS_TRACED = TRACE_VARIABLE in os.environ


@pytest.fixture(autouse=True)
def nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment of the tests switches on is not to be what a test finds."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def untraced_process() -> None:
    """For tests that look at what the first trace changes, and the last one puts back."""
    if _IS_TRACED:
        pytest.skip(f"{TRACE_VARIABLE}: the trace of the whole process is there before, and after")


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    with EventLoop(debug=True) as loop:
        yield loop


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What debug mode has logged, but for the steps that a busy machine has made slow."""
    return [each.getMessage() for each in caplog.records if each.name == "flowno.debug" and each.module != "watchdog"]
