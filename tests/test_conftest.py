"""The guards of conftest.py catch what they are there for."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, RunPython

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="on Windows the sockets are no fds")


def run_guarded(tmp_path: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """Runs tests, each in a file of its own, under this project's configuration and conftest, away from its others."""
    for number, test in enumerate(tests):
        (tmp_path / f"test_guarded_{number}.py").write_text(test)
    plugins = ["-p", "tests.conftest", "-p", "no:cacheprovider"]
    places = ["-c", "pyproject.toml", "--rootdir", str(tmp_path), "--confcutdir", str(tmp_path)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, *places, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


#: What a test may leave behind, and what is said of it.
LEAKS = [
    (
        "import socket\nkept = []\ndef test_keeps_a_socket():\n    kept.append(socket.socket())\n",
        "opened and not closed: fd",
    ),
    (
        (
            "import os, pytest\n@pytest.fixture(scope='module')\ndef pipe():\n    yield os.pipe()\n"
            "def test_closes_what_was_open(pipe):\n    os.close(pipe[0])\n"
        ),
        "closed, though it was open before the test: fd",
    ),
    (
        "import socket\ndef test_drops_a_socket():\n    socket.socket()\n",
        "ResourceWarning: unclosed <socket.socket",
    ),
    (
        (
            "class Broken:\n    def __del__(self):\n        raise ValueError\ndef test_has_a_finalizer_that_raises():\n"
            "    Broken()\n"
        ),
        "PytestUnraisableExceptionWarning",
    ),
    (
        (
            "import threading\ndef test_has_a_failing_thread():\n    thread = threading.Thread(target=lambda: 1 / 0)\n"
            "    thread.start()\n    thread.join()\n"
        ),
        "PytestUnhandledThreadExceptionWarning",
    ),
    (
        (
            "import threading\ndef test_leaves_a_thread():\n"
            "    threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        ),
        "started and not ended: <Thread(",
    ),
]


def test_a_leak_fails_the_test_and_is_named(tmp_path: Path) -> None:
    """In one run for all, as pytest takes longer to start than for any of them."""
    clean = "import socket\ndef test_cleans_up():\n    with socket.socket():\n        pass\n"
    failing = "import socket\nkept = []\ndef test_fails():\n    kept.append(socket.socket())\n    assert kept == []\n"
    result = run_guarded(tmp_path, clean, failing, *(test for test, _ in LEAKS))
    sections = re.split(r"^_+ (?:ERROR at teardown of )?(test_\w+) _+$", result.stdout, flags=re.MULTILINE)
    said = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert "test_cleans_up" not in said
    assert "the test leaks" not in said["test_fails"]  # its frames are alive, and it has failed anyway
    for test, complaint in LEAKS:
        name = re.findall(r"def (test_\w+)", test)[0]
        assert complaint in said.get(name, ""), result.stdout + result.stderr


def test_each_test_runs_without_the_garbage_collector_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWNO_TEST_GC", "off")
    test = "import gc\ndef test_one():\n    assert not gc.isenabled()\n    gc.enable()\n"
    result = run_guarded(tmp_path, test + test.replace("one", "another"))
    assert "2 passed" in result.stdout, result.stdout + result.stderr


def test_a_subprocess_sees_flowno_and_treats_warnings_as_errors(run_python: RunPython) -> None:
    result = run_python("import flowno.core.event_loop.backend, warnings; warnings.warn('careful')")
    assert "UserWarning: careful" in result.stderr
    assert result.returncode == 1


def test_a_backend_comes_to_a_subprocess_through_the_environment(backend: str, run_python: RunPython) -> None:
    result = run_python("import os; print(os.environ['FLOWNO_SELECTOR'])")
    assert result.stdout.strip() == backend, result.stderr


def test_ctrl_c_means_something_where_the_shell_has_started_the_tests_in_the_background(tmp_path: Path) -> None:
    test = "import signal\ndef test():\n    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a child inherits what is ignored
    try:
        result = run_guarded(tmp_path, test)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "1 passed" in result.stdout, result.stdout + result.stderr
