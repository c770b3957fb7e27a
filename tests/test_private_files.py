"""What flowno makes in the file system is private, and nobody else's file is touched: in folders that are hostile.

It makes three things, each where it was told to: the socket of a server, that of a monitor, and traces.
"""

import errno
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

import flowno
from flowno import BusyResourceError, EventLoop, FlownoError, serve_unix
from flowno.debug import Monitor, trace
from flowno.debug.asking import MonitorError, ask
from flowno.debug.protocol import PROTOCOL
from flowno.net import unix_sockets
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither modes nor Unix sockets")

NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may write to, with a short path: that of a Unix socket has about 100 bytes."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        os.chmod(path, 0o777)  # not sticky: others may rename and remove, too
        yield Path(path)


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o177])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@contextmanager
def served(path: Path, mode: int | None = 0o600) -> Iterator[None]:
    """A server at this path."""

    async def handler(stream: flowno.Stream) -> None: ...

    with EventLoop() as loop:
        server = loop.run_until_complete(serve_unix(handler, path, mode=mode), join=True, wait_for_spawned_tasks=False)
        try:
            yield
        finally:
            loop.run_until_complete(server.aclose(), join=True)


Maker = Callable[[Path], AbstractContextManager[object]]
MAKERS: dict[str, Maker] = {"server": served, "monitor": Monitor, "trace": trace}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


# ------------------------------------------------------------------------------------------------------------ the umask


@makers
def test_what_is_made_is_for_its_owner_only_whatever_the_umask(make: Maker, folder: Path, umask: int) -> None:
    with make(folder / "made"):
        assert mode_of(folder / "made") == 0o600
        assert os.lstat(folder / "made").st_uid == os.geteuid()
        assert [each.name for each in folder.iterdir()] == ["made"]  # and nothing else is made


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_the_socket_of_a_server_has_the_mode_that_was_asked_for_whatever_the_umask(
    folder: Path, umask: int, mode: int
) -> None:
    with served(folder / "made", mode):
        assert mode_of(folder / "made") == mode


def test_without_a_mode_the_socket_of_a_server_has_what_the_umask_leaves(folder: Path, umask: int) -> None:
    with served(folder / "made", None):
        assert mode_of(folder / "made") == 0o777 & ~umask


# --------------------------------------------------------------------------------------------- what is there beforehand


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file that a hostile link leads to."""
    path = tmp_path / "victim"
    path.write_text("precious")
    path.chmod(0o644)
    return path


@makers
@pytest.mark.parametrize("leads_to", ["a file", "nothing"])
def test_a_link_of_somebody_else_is_not_followed(make: Maker, folder: Path, victim: Path, leads_to: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a link that is somebody else's")
    target = victim if leads_to == "a file" else victim.with_name("not there")
    (folder / "made").symlink_to(target)
    os.lchown(folder / "made", NOBODY, NOBODY)
    with pytest.raises((OSError, FlownoError)) as caught, make(folder / "made"):
        pass
    assert str(folder / "made") in str(caught.value)
    assert (victim.read_text(), mode_of(victim)) == ("precious", 0o644)
    assert os.listdir(victim.parent) == ["victim"]
    assert (folder / "made").is_symlink()


@makers
def test_a_file_of_somebody_else_is_left_as_it_is(make: Maker, folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a file that is somebody else's")
    (folder / "made").write_text("theirs")
    os.chown(folder / "made", NOBODY, NOBODY)
    with pytest.raises((OSError, FlownoError)), make(folder / "made"):
        pass
    assert (folder / "made").read_text() == "theirs"
    assert os.lstat(folder / "made").st_uid == NOBODY


def test_a_dead_socket_of_somebody_else_is_not_replaced_by_a_monitor(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a socket that is somebody else's")
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(folder / "made"))
    os.chown(folder / "made", NOBODY, NOBODY)
    with pytest.raises(BusyResourceError, match="there is something at"), Monitor(folder / "made"):
        pass
    assert os.lstat(folder / "made").st_uid == NOBODY


@pytest.mark.parametrize("kind", ["server", "monitor"])
def test_a_socket_is_put_in_the_place_of_no_link_and_no_file(kind: str, folder: Path, victim: Path) -> None:
    for put in (lambda: (folder / "made").symlink_to(victim), lambda: (folder / "made").write_text("precious")):
        put()
        with pytest.raises((OSError, FlownoError)), MAKERS[kind](folder / "made"):
            pass
        assert (folder / "made").read_text() == "precious"
        (folder / "made").unlink()


def test_a_trace_may_be_written_to_a_link_of_ones_own(folder: Path, victim: Path) -> None:
    (folder / "made").symlink_to(victim)
    with trace(folder / "made"):
        flowno.run(flowno.sleep(0))
    assert json.loads(victim.read_text())["traceEvents"]


# ------------------------------------------------------------------------------------------------ what is put meanwhile


class Replacing(socket.socket):
    """A socket that finds its file replaced as soon as it is bound, in a folder that others may write to."""

    target: Path

    def bind(self, address: str) -> None:
        super().bind(address)
        os.unlink(address)
        os.symlink(self.target, address)


def refuse_fchmod(fd: int, mode: int) -> None:
    """As the BSDs and macOS do for sockets: then chmod is left."""
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


@pytest.mark.parametrize("kind", ["server", "monitor"])
def test_the_mode_of_what_a_link_leads_to_that_was_put_there_meanwhile_is_not_changed(
    kind: str, folder: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(os, "O_PATH") and os.chmod not in os.supports_follow_symlinks:
        pytest.skip("this system can change no mode without following links")
    monkeypatch.setattr(Replacing, "target", victim, raising=False)
    monkeypatch.setattr(os, "fchmod", refuse_fchmod)
    monkeypatch.setattr("flowno.core.event_loop.backend.SystemWorld.socket", staticmethod(Replacing))
    monkeypatch.setattr("flowno.debug.monitor.socket.socket", Replacing)
    try:
        with MAKERS[kind](folder / "made"):
            pass
    except (OSError, FlownoError):
        pass
    assert mode_of(victim) == 0o644


def test_the_mode_is_set_of_a_socket_and_of_nothing_else(folder: Path, victim: Path) -> None:
    if not hasattr(os, "O_PATH"):
        pytest.skip("this system has no O_PATH")
    with pytest.raises(OSError, match="replaced by something else") as caught:
        unix_sockets.set_mode(str(victim), 0o666)
    assert caught.value.filename == str(victim)
    assert mode_of(victim) == 0o644


# ------------------------------------------------------------------------------------------------- who answers, instead


def test_what_a_false_monitor_says_does_not_reach_the_terminal_as_it_is(folder: Path) -> None:
    answer = json.dumps({"protocol": PROTOCOL, "error": "\x1b]0;owned\x07\nflowno: all is well"}).encode()
    program = """
import socket, sys
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    print("listens", flush=True)
    connection, _ = listener.accept()
    with connection:
        connection.recv(1000)
        connection.sendall(sys.argv[2].encode())
"""
    path = str(folder / "made")
    command = [sys.executable, "-I", "-S", "-c", program, path, answer.decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as impostor:
        assert impostor.stdout is not None
        assert impostor.stdout.readline() == b"listens\n"
        with pytest.raises(MonitorError) as caught:
            ask(path)
    assert str(caught.value) == rf"{path}: \x1b]0;owned\x07\nflowno: all is well"
