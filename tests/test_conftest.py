"""The guards of conftest.py catch what they are there for."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, RunPython

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no list of a process's open fds")


def run_guarded(tmp_path: Path, test: str) -> subprocess.CompletedProcess[str]:
    """Runs one test under this project's configuration and conftest, away from its other tests."""
    path = tmp_path / "test_guarded.py"
    path.write_text(test)
    plugins = ["-p", "tests.conftest", "-p", "no:cacheprovider"]
    places = ["-c", "pyproject.toml", "--rootdir", str(tmp_path), "--confcutdir", str(tmp_path)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, *places, str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.mark.parametrize(
    ("test", "complaint"),
    [
        pytest.param(
            "import socket\nkept = []\ndef test():\n    kept.append(socket.socket())\n",
            "opened and not closed: fd",
            id="socket kept",
        ),
        pytest.param(
            "import os, pytest\n@pytest.fixture(scope='module')\ndef pipe():\n    yield os.pipe()\n"
            "def test(pipe):\n    os.close(pipe[0])\n",
            "closed, though it was open before the test: fd",
            id="foreign fd closed",
        ),
        pytest.param(
            "import socket\ndef test():\n    socket.socket()\n",
            "ResourceWarning: unclosed <socket.socket",
            id="socket dropped",
        ),
        pytest.param(
            "class Broken:\n    def __del__(self):\n        raise ValueError\ndef test():\n    Broken()\n",
            "PytestUnraisableExceptionWarning",
            id="finalizer raises",
        ),
        pytest.param(
            "import threading\ndef test():\n    thread = threading.Thread(target=lambda: 1 / 0)\n"
            "    thread.start()\n    thread.join()\n",
            "PytestUnhandledThreadExceptionWarning",
            id="thread raises",
        ),
        pytest.param(
            "import threading\ndef test():\n    threading.Thread(target=threading.Event().wait, daemon=True).start()\n",
            "started and not ended: <Thread(",
            id="thread left",
        ),
    ],
)
def test_a_leak_fails_the_test_and_is_named(tmp_path: Path, test: str, complaint: str) -> None:
    result = run_guarded(tmp_path, test)
    assert result.returncode == 1, result.stdout + result.stderr
    assert complaint in result.stdout


def test_a_test_that_cleans_up_passes(tmp_path: Path) -> None:
    test = "import socket\ndef test():\n    with socket.socket():\n        pass\n"
    result = run_guarded(tmp_path, test)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_failed_test_is_not_accused_of_leaking_too(tmp_path: Path) -> None:
    test = "import socket\nkept = []\ndef test():\n    kept.append(socket.socket())\n    assert kept == []\n"
    result = run_guarded(tmp_path, test)
    assert "1 failed" in result.stdout
    assert "the test leaks" not in result.stdout


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
