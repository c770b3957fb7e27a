"""Other programs: what they are given and give back, how they end, and that nothing of them is left.

Every test runs twice: as this system does it, and as one does that has neither pidfds nor pipes that can be waited for.
"""

import errno
import io
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flowno
from flowno import (
    CancelScope,
    EventLoop,
    Process,
    Stream,
    TaskCancelled,
    TaskGroup,
    TaskHandle,
    move_on_after,
    open_process,
    processes,
    run_process,
    sleep,
    spawn,
    timeout,
)
from tests.conftest import RunPython
from tests.support.counting_selector import CountingSelector
from tests.support.garbage import no_collections
from tests.support.remains import open_fds
from tests.support.worlds import ScriptedWorld, in_world

pytestmark = pytest.mark.usefixtures("backend")

PIPE, DEVNULL, STDOUT = subprocess.PIPE, subprocess.DEVNULL, subprocess.STDOUT
LARGE = 1 << 20
NET = 20.0  # seconds; a bound for what should not take any

posix_only = pytest.mark.skipif(os.name == "nt", reason="Windows has no such thing")


@pytest.fixture(params=["here", "elsewhere"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How ends are noticed and pipes are waited for."""
    way: str = request.param
    if way == "elsewhere":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
        monkeypatch.setattr(processes, "_RELAYED", True)
    return way


@pytest.fixture(autouse=True)
def no_children(way: str) -> Iterator[None]:
    """After each test every child has ended, and was reaped."""
    yield
    assert not has_children()


def has_children() -> bool:
    """Whether this process has any child, be it a zombie."""
    if not hasattr(os, "waitid"):
        return False
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def python(code: str, *args: str) -> list[str]:
    """The command that runs some Python; -I and -S spare it what takes time."""
    return [sys.executable, "-I", "-S", "-c", code, *args]


#: Says that it has begun, and goes on until its input ends.
LISTENER = python("import sys; print('ready', flush=True); sys.stdin.read()")

#: Goes on until it is killed.
STUBBORN = python(
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True)\nwhile 1: signal.pause()"
)

ECHO = python("import sys, shutil; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)")


async def begin(command: list[str] = LISTENER, **options: Any) -> Process:
    """A child that has said that it is ready."""
    process = await open_process(command, stdin=PIPE, stdout=PIPE, **options)
    assert (await output(process).readline()).strip() == b"ready"
    return process


def output(process: Process) -> Stream:
    assert process.stdout is not None
    return process.stdout


def input_of(process: Process) -> Stream:
    assert process.stdin is not None
    return process.stdin


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# -------------------------------------------------------------------------------------------- programs run to their end


def test_what_a_program_writes_and_how_it_ends() -> None:
    async def root() -> subprocess.CompletedProcess[bytes]:
        return await run_process(python("import sys; sys.stdout.write('out'); sys.stderr.write('err')"))

    finished = flowno.run(root())
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, b"out", b"err")
    assert finished.args[0] == sys.executable


def test_a_failure_is_an_error_that_has_the_output() -> None:
    command = python("import sys; print('out'); sys.exit('err')")

    async def root() -> None:
        with pytest.raises(subprocess.CalledProcessError) as caught:
            await run_process(command)
        error = caught.value
        assert (error.returncode, error.cmd) == (1, command)
        assert (error.output.strip(), error.stderr.strip()) == (b"out", b"err")

    flowno.run(root())


def test_a_failure_is_a_result_where_nobody_checks() -> None:
    async def root() -> int:
        return (await run_process(python("raise SystemExit(7)"), check=False)).returncode

    assert flowno.run(root()) == 7


def test_much_input_and_output_at_the_same_time() -> None:
    """More than the pipes hold: one that wrote all before it read would wait for ever, and so would its child."""
    data = os.urandom(LARGE)

    async def root() -> None:
        async with timeout(NET):
            finished = await run_process(ECHO, input=data)
        assert finished.stdout == data

    flowno.run(root())


def test_much_output_in_both_pipes() -> None:
    code = "import os\nfor _ in range(16):\n for fd in 1, 2: os.write(fd, bytes(65536))"

    async def root() -> None:
        async with timeout(NET):
            finished = await run_process(python(code))
        assert finished.stdout == finished.stderr == bytes(LARGE)

    flowno.run(root())


@pytest.mark.parametrize("code", ["pass", "import os; os.close(0); print('done')", "import os; os.read(0, 1)"])
def test_a_program_need_not_read_its_input(code: str) -> None:
    async def root() -> int:
        async with timeout(NET):
            return (await run_process(python(code), input=bytes(LARGE))).returncode

    assert flowno.run(root()) == 0


@pytest.mark.parametrize("options", [{"input": b""}, {"stdin": PIPE}, {"stdin": DEVNULL}], ids=str)
def test_an_input_that_is_empty(options: dict[str, Any]) -> None:
    async def root() -> bytes:
        async with timeout(NET):
            return (await run_process(python("import sys; print(sys.stdin.read() == '')"), **options)).stdout.strip()

    assert flowno.run(root()) == b"True"


def test_input_of_any_buffer() -> None:
    async def root() -> bytes:
        return (await run_process(ECHO, input=memoryview(bytearray(b"0123456789"))[2:5])).stdout

    assert flowno.run(root()) == b"234"


def test_where_the_output_goes(tmp_path: Path) -> None:
    command = python("import os; os.write(1, b'out'); os.write(2, b'err')")

    async def root() -> None:
        both = await run_process(command, stderr=STDOUT)
        assert (both.stdout, both.stderr) == (b"outerr", None)
        with open(tmp_path / "file", "wb") as file:
            none = await run_process(command, stdout=file, stderr=DEVNULL)
        assert (none.stdout, none.stderr) == (None, None)
        assert (tmp_path / "file").read_bytes() == b"out"

    flowno.run(root())


def test_an_input_and_a_stdin_are_too_much() -> None:
    async def root() -> None:
        with pytest.raises(ValueError, match="input and stdin cannot both be given"):
            await run_process(ECHO, input=b"", stdin=DEVNULL)

    flowno.run(root())


def test_an_input_of_text_is_refused() -> None:
    async def root() -> None:
        with pytest.raises(TypeError, match="input must be bytes, or another buffer, not 'text'"):
            await run_process(ECHO, input="text")  # type: ignore[arg-type]

    flowno.run(root())


@pytest.mark.parametrize(("grace", "error"), [(-1, ValueError), (float("nan"), ValueError), ("soon", TypeError)])
def test_the_grace_is_a_number_of_seconds(grace: float, error: type[Exception]) -> None:
    async def root() -> None:
        with pytest.raises(error, match="grace must"):
            await run_process(ECHO, grace=grace)

    flowno.run(root())


def test_fifty_programs_at_once() -> None:
    async def root() -> list[bytes]:
        async with TaskGroup() as group:
            tasks: list[TaskHandle[subprocess.CompletedProcess[bytes]]] = [
                await group.spawn(run_process(ECHO, input=b"%d" % number)) for number in range(50)
            ]
        return [(await task.join()).stdout for task in tasks]

    assert flowno.run(root()) == [b"%d" % number for number in range(50)]


def test_the_other_tasks_run_meanwhile() -> None:
    """The program waits for what another task does."""

    async def root() -> bytes:
        reader, writer = os.pipe()

        async def other() -> None:
            os.close(writer)

        with open(reader, "rb") as stdin:
            running = await spawn(run_process(python("import sys; print(sys.stdin.read() == '')"), stdin=stdin))
            await spawn(other())
            async with timeout(NET):
                return (await running.join()).stdout.strip()

    assert flowno.run(root()) == b"True"


# ------------------------------------------------------------------------------------------------ what can be asked for


@pytest.mark.parametrize("start", [open_process, run_process])
def test_a_program_that_does_not_exist_is_named(start: Any) -> None:
    async def root() -> None:
        with pytest.raises(FileNotFoundError) as caught:
            await start(["no-such-program", "argument"])
        if os.name != "nt":
            assert caught.value.filename == "no-such-program"

    flowno.run(root())


@posix_only
def test_a_folder_that_does_not_exist_is_named() -> None:
    async def root() -> None:
        with pytest.raises(FileNotFoundError) as caught:
            await open_process(ECHO, cwd="/no/such/folder", stdin=PIPE, stdout=PIPE)
        assert caught.value.filename == "/no/such/folder"

    flowno.run(root())


@pytest.mark.parametrize("option", ["text", "universal_newlines", "encoding", "errors", "bufsize"])
@pytest.mark.parametrize("start", [open_process, run_process])
def test_a_pipe_of_text_is_refused(start: Any, option: str) -> None:
    async def root() -> None:
        with pytest.raises(TypeError, match=f"{option} is no option here: pipes are streams of bytes"):
            await start(ECHO, **{option: None})

    flowno.run(root())


def test_an_option_that_popen_does_not_have_either_is_refused() -> None:
    async def root() -> None:
        with pytest.raises(TypeError, match="no_such_option"):
            await open_process(ECHO, no_such_option=True)

    flowno.run(root())


@pytest.mark.parametrize("command", ["echo hello", b"echo hello", Path("echo")])
def test_a_string_needs_a_shell(command: Any) -> None:
    async def root() -> None:
        with pytest.raises(TypeError, match="must be a sequence"):
            await open_process(command)

    flowno.run(root())


def test_a_shell_needs_a_string() -> None:
    async def root() -> None:
        with pytest.raises(TypeError, match="must be a string with shell=True"):
            await open_process(ECHO, shell=True)

    flowno.run(root())


def test_a_command_has_a_program() -> None:
    async def root() -> None:
        with pytest.raises(ValueError, match=r"command must begin with the program to start, and is \[\]"):
            await run_process([])

    flowno.run(root())


def test_a_shell() -> None:
    async def root() -> list[bytes]:
        return (await run_process("echo one && echo two", shell=True)).stdout.split()

    assert flowno.run(root()) == [b"one", b"two"]


def test_the_options_of_popen(tmp_path: Path) -> None:
    code = "import os; print(os.getcwd(), os.environ['NAME'])"

    async def root() -> list[bytes]:
        finished = await run_process(python(code), cwd=tmp_path, env={**os.environ, "NAME": "value"})
        return finished.stdout.split()

    assert flowno.run(root()) == [os.fsencode(tmp_path.resolve()), b"value"]


@posix_only
def test_a_session_of_its_own() -> None:
    async def root() -> None:
        async with await begin(
            python("import os; print('ready'); print(os.getsid(0))"), start_new_session=True
        ) as child:
            assert int(await output(child).readline()) == child.pid

    flowno.run(root())


def test_outside_of_an_event_loop_it_says_so() -> None:
    with pytest.raises(flowno.EventLoopError, match=r"open_process\(\) was used outside of an event loop"):
        open_process(ECHO).send(None)


# ---------------------------------------------------------------------------------------------------------------- pipes


def test_a_conversation() -> None:
    code = "import sys\nfor line in sys.stdin: print(line.upper(), end='', flush=True)"

    async def root() -> None:
        async with await open_process(python(code), stdin=PIPE, stdout=PIPE) as process:
            for word in (b"one", b"two"):
                await input_of(process).write(word + b"\n")
                assert (await output(process).readline()).strip() == word.upper()
            await input_of(process).writelines([b"th", b"ree", b"\n"])
            assert (await output(process).readline()).strip() == b"THREE"
            await input_of(process).write_eof()
            assert await output(process).readline() == b""
            assert await process.wait() == 0

    flowno.run(root())


def test_what_is_no_pipe_is_none() -> None:
    async def root() -> None:
        async with await open_process(python("pass"), stdin=DEVNULL, stderr=PIPE) as process:
            assert (process.stdin, process.stdout) == (None, None)
            assert isinstance(process.stderr, Stream)

    flowno.run(root())


@pytest.mark.parametrize(
    "read",
    [
        lambda stream: stream.read(1),
        lambda stream: stream.readline(),
        lambda stream: stream.handle.recv_into(bytearray(9)),
    ],
    ids=["read", "readline", "recv_into"],
)
def test_the_input_cannot_be_read_from(read: Any) -> None:
    async def root() -> None:
        async with await begin() as process:
            with pytest.raises(io.UnsupportedOperation, match="stdin of a process can be written to, not read from"):
                await read(input_of(process))

    flowno.run(root())


@pytest.mark.parametrize(
    "write", [lambda stream: stream.write(b"x"), lambda stream: stream.writelines([b"x", b"y"])], ids=["one", "several"]
)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_the_outputs_cannot_be_written_to(name: str, write: Any) -> None:
    async def root() -> None:
        async with await begin(stderr=PIPE) as process:
            with pytest.raises(io.UnsupportedOperation, match=f"{name} of a process can be read from, not written to"):
                await write(getattr(process, name))

    flowno.run(root())


def test_a_pipe_has_no_address() -> None:
    async def root() -> None:
        async with await begin() as process:
            assert output(process).get_extra_info("peername", "none") == "none"
            for ask in (output(process).handle.getpeername, output(process).handle.getsockname):
                with pytest.raises(OSError, match="this is a pipe, stdout of a process") as caught:
                    ask()
                assert caught.value.errno == errno.ENOTSOCK

    flowno.run(root())


def test_into_a_buffer() -> None:
    async def root() -> bytes:
        async with await open_process(python("print(end='0123456789')"), stdout=PIPE) as process:
            buffer = bytearray(4)
            assert await output(process).handle.recv_into(buffer) == 4
            return bytes(buffer)

    assert flowno.run(root()) == b"0123"


def test_the_output_may_end_before_the_program() -> None:
    code = "import os, sys; print('ready', flush=True); os.close(1); sys.stdin.read()"

    async def root() -> None:
        async with await begin(python(code)) as process:
            assert await output(process).read() == b""
            assert process.returncode is None
            input_of(process).close()
            assert await process.wait() == 0

    flowno.run(root())


def test_what_was_written_before_the_end_can_be_read_after_it() -> None:
    async def root() -> bytes:
        async with await open_process(python("print(end='last words')"), stdout=PIPE) as process:
            await process.wait()
            return await output(process).read()

    assert flowno.run(root()) == b"last words"


def test_a_write_to_a_program_that_reads_no_more_fails() -> None:
    async def root() -> None:
        async with await open_process(python("pass"), stdin=PIPE) as process:
            await process.wait()
            await assert_broken(input_of(process))

    flowno.run(root())


async def assert_broken(stream: Stream) -> None:
    """What stands between may take some of it."""
    async with timeout(NET):
        try:
            while True:
                await stream.write(bytes(LARGE))
        except (BrokenPipeError, ConnectionResetError):
            pass


def test_a_writer_waits_for_its_reader() -> None:
    code = "import sys; print('ready', flush=True); sys.stdin.readline(); print(len(sys.stdin.buffer.read()))"

    async def root() -> None:
        async with await begin(python(code)) as process:
            await input_of(process).write(b"\n")
            await input_of(process).write(bytes(LARGE))
            await input_of(process).write_eof()
            assert int(await output(process).readline()) <= LARGE

    flowno.run(root())


def test_a_reader_is_told_when_the_pipe_is_closed() -> None:
    async def root() -> None:
        async with await begin() as process:
            reading = await spawn(output(process).read(1))
            output(process).close()
            with pytest.raises(flowno.ClosedResourceError):
                await reading.join()

    flowno.run(root())


def test_another_child_does_not_hold_the_pipe_open() -> None:
    """Its end of the first one's input would keep that from ever ending."""

    async def root() -> None:
        async with await begin(close_fds=False) as first, await begin(close_fds=False):
            await input_of(first).write_eof()
            async with timeout(NET):
                assert await first.wait() == 0

    flowno.run(root())


@posix_only
def test_the_child_has_pipes_as_it_knows_them() -> None:
    """They block, also when ours do not, and can be opened by their names, which sockets cannot."""
    code = "import os; print(os.get_blocking(0), os.get_blocking(1)); print(open('/dev/stdin').read())"

    async def root() -> list[bytes]:
        return (await run_process(python(code), input=b"data")).stdout.split()

    assert flowno.run(root()) == [b"True", b"True", b"data"]


# -------------------------------------------------------------------------------------------------------- the end of it


@posix_only
def test_the_returncode_of_one_that_was_killed() -> None:
    async def root() -> None:
        async with await begin() as process:
            assert process.returncode is None
            process.kill()
            assert await process.wait() == process.returncode == -signal.SIGKILL

    flowno.run(root())


@posix_only
def test_signals() -> None:
    code = """
import os, signal
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"got it\\n"))
print("ready", flush=True)
while 1: signal.pause()
"""

    async def root() -> None:
        async with await begin(python(code)) as process:
            process.send_signal(signal.SIGUSR1)
            assert await output(process).readline() == b"got it\n"
            process.terminate()
            assert await process.wait() == -signal.SIGTERM

    flowno.run(root())


@posix_only
def test_a_signal_that_does_not_exist() -> None:
    async def root() -> None:
        async with await begin() as process:
            with pytest.raises((OSError, ValueError)):
                process.send_signal(12345)

    flowno.run(root())


@posix_only
@pytest.mark.parametrize("how", ["waited", "looked", "neither"])
def test_no_signal_is_sent_once_it_has_ended(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The number may be another process's."""
    sent: list[object] = []

    async def root() -> None:
        async with await open_process(python("pass"), stdout=PIPE) as process:
            if how == "waited":
                await process.wait()
            else:
                await end_of(process)
            if how == "looked":
                assert process.returncode == 0
            for call in (process.terminate, process.kill, lambda: process.send_signal(signal.SIGHUP)):
                call()
            assert await process.wait() == 0

    monkeypatch.setattr(os, "kill", lambda *args: sent.append(args))
    if hasattr(signal, "pidfd_send_signal"):
        monkeypatch.setattr(signal, "pidfd_send_signal", lambda *args: sent.append(args))
    flowno.run(root())
    assert sent == []


async def end_of(process: Process) -> None:
    """Wait until a child is a zombie, and leave it one."""
    processes._await_end(process.pid)


@posix_only
def test_signals_from_another_thread_while_the_loop_reaps() -> None:
    async def root() -> None:
        async with await begin() as process:
            threads = [threading.Thread(target=process.kill) for _ in range(8)]
            waiting = await spawn(process.wait())
            for thread in threads:
                thread.start()
            assert await waiting.join() == -signal.SIGKILL
            for thread in threads:
                thread.join(NET)

    flowno.run(root())


@posix_only
def test_no_error_where_something_else_reaps_it_just_before_the_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    async def root() -> None:
        async with await begin() as process:
            input_of(process).close()
            os.waitpid(process.pid, 0)
            with monkeypatch.context() as patch:
                patch.setattr(processes, "_reap", lambda popen: None)  # looked a moment earlier
                process.kill()

    flowno.run(root())


@pytest.mark.skipif(os.name != "posix", reason="counts the open fds")
def test_one_that_was_waited_for_holds_nothing_open(way: str) -> None:
    async def root() -> None:
        async with await open_process(LISTENER, stdin=PIPE, stdout=DEVNULL) as process:
            before = len(open_fds())
            input_of(process).close()
            await process.wait()
            has_pidfd = way == "here" and hasattr(os, "pidfd_open")
            assert len(open_fds()) <= before - 1 - has_pidfd

    flowno.run(root())


def test_several_tasks_wait() -> None:
    async def root() -> None:
        async with await begin() as process:
            waiting = [await spawn(process.wait()) for _ in range(5)]
            await input_of(process).write_eof()
            assert [await task.join() for task in waiting] == [0] * 5
            assert await process.wait() == 0

    flowno.run(root())


def test_a_wait_that_is_cancelled_leaves_the_child_and_the_other_waits_alone() -> None:
    async def root() -> None:
        async with await begin() as process:
            first, second, third = [await spawn(process.wait()) for _ in range(3)]
            await first.cancel()
            await second.cancel()
            assert process.returncode is None
            await input_of(process).write_eof()
            async with timeout(NET):
                assert await third.join() == 0

    flowno.run(root())


def test_a_wait_with_a_time_limit() -> None:
    async def root() -> None:
        async with await begin() as process:
            with pytest.raises(TimeoutError):
                async with timeout(0.01):
                    await process.wait()
            assert process.returncode is None
            await input_of(process).write_eof()
            assert await process.wait() == 0

    flowno.run(root())


def test_waits_that_are_cancelled_leave_at_most_one_thread() -> None:
    async def root() -> None:
        async with await begin() as process:
            before = threading.active_count()
            for _ in range(20):
                await (await spawn(process.wait())).cancel()
            assert threading.active_count() <= before + 1

    flowno.run(root())


@posix_only
def test_the_returncode_can_be_looked_up_while_others_wait() -> None:
    async def root() -> None:
        async with await begin() as process:
            waiting = await spawn(process.wait())
            process.kill()
            await end_of(process)
            assert process.returncode == -signal.SIGKILL
            async with timeout(NET):
                assert await waiting.join() == -signal.SIGKILL

    flowno.run(root())


def test_leaving_the_block_kills_and_reaps() -> None:
    async def root() -> None:
        async with await begin(STUBBORN) as process:
            pass
        assert process.returncode not in (None, 0)
        assert input_of(process).handle.fileno() == output(process).handle.fileno() == -1
        await process.aclose()

    flowno.run(root())


def test_a_child_that_has_ended_is_not_killed_by_leaving_the_block() -> None:
    async def root() -> int | None:
        async with await open_process(python("raise SystemExit(3)")) as process:
            await process.wait()
        return process.returncode

    assert flowno.run(root()) == 3


def test_the_child_is_reaped_before_a_cancellation_goes_on() -> None:
    async def root() -> None:
        with CancelScope() as scope:
            async with await begin(STUBBORN) as process:
                scope.cancel()
                await sleep(NET)
        assert scope.cancelled_caught
        assert process._popen.returncode not in (None, 0)

    flowno.run(root())


def test_the_end_of_the_run_ends_the_children() -> None:
    async def hold() -> None:
        async with await begin(STUBBORN):
            started.set()
            await sleep(NET)

    async def root() -> None:
        await spawn(hold())
        await started.wait()

    started = flowno.Event()
    flowno.run(root())


@posix_only
def test_a_child_that_is_dropped_is_warned_of_and_leaves_no_zombie() -> None:
    async def root() -> None:
        process = await open_process(python("pass"))
        await end_of(process)  # so that dropping it finds it ended
        reference = weakref.ref(process)
        with pytest.warns(ResourceWarning, match=f"subprocess {process.pid} is still running"):
            del process
        assert reference() is None

    with warnings.catch_warnings():
        flowno.run(root())


@posix_only
def test_a_process_is_freed_without_the_garbage_collector() -> None:
    async def root() -> Any:
        async with await begin() as process:
            process.kill()
            await process.wait()
        return weakref.ref(process)

    with no_collections():
        assert flowno.run(root())() is None


def test_its_name_says_how_it_is() -> None:
    async def root() -> None:
        async with await begin() as process:
            assert repr(process).startswith(f"<Process {process.pid} running: [")
            await input_of(process).write_eof()
            await process.wait()
            assert repr(process).startswith(f"<Process {process.pid} ended with 0: [")

    flowno.run(root())


# ------------------------------------------------------------------------------------------- what others do to children


@posix_only
@pytest.mark.parametrize("waiting", [False, True])
def test_a_child_that_something_else_has_reaped(caplog: pytest.LogCaptureFixture, waiting: bool) -> None:
    async def root() -> None:
        async with await begin() as process:
            task = await spawn(process.wait() if waiting else sleep(0))
            input_of(process).close()
            os.waitpid(process.pid, 0)
            async with timeout(NET):
                await task.join()
                assert await process.wait() == processes.LOST == 255
            process.kill()
        warned = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert [f"process {process.pid} was reaped by something else" in record.message for record in warned] == [True]

    flowno.run(root())


@posix_only
def test_where_the_system_reaps_children_itself(run_python: RunPython, way: str) -> None:
    """In a process of its own, as this is about all of its children."""
    code = f"""
import os, signal, sys
import flowno
from flowno import processes
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if {way == "elsewhere"}:
    processes._RELAYED = True
    if hasattr(os, "pidfd_open"):
        del os.pidfd_open
async def main():
    async with flowno.timeout({NET}):
        finished = await flowno.run_process([sys.executable, "-c", "print('out')"], check=False)
        print(finished.returncode, finished.stdout.split())
        async with await flowno.open_process([sys.executable, "-c", "pass"]) as process:
            print(await process.wait())
flowno.run(main())
"""
    result = run_python(code)
    assert result.stdout.splitlines() == ["255 [b'out']", "255"], result.stderr
    assert "was reaped by something else" in result.stderr


@posix_only
def test_no_handler_of_signals_is_installed() -> None:
    async def root() -> None:
        async with await begin() as process:
            assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
            process.kill()
            await process.wait()

    flowno.run(root())


@posix_only
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM, errno.EMFILE])
def test_where_a_pidfd_is_refused_it_is_done_without(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(pid: int, flags: int = 0) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)

    async def root() -> int:
        async with await begin() as process:
            process.terminate()
            return await process.wait()

    assert flowno.run(root()) == -signal.SIGTERM


class KqueueOfProcesses:
    """What kqueue(2) of macOS does with EVFILT_PROC and NOTE_EXIT: it knows no process that has ended."""

    def __init__(self) -> None:
        self.waitid = os.waitid

    def control(self, changes: list[tuple[int, ...]], max_events: int) -> None:
        for pid, filter, flags, notes in changes:
            assert (filter, flags, notes) == (-5, 1, 0x80000000)
            if self.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                raise ProcessLookupError
            self.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    def close(self) -> None: ...


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="the fake stands on it")
@pytest.mark.parametrize("ended", [False, True])
def test_where_there_is_no_waitid_kqueue_is_asked(monkeypatch: pytest.MonkeyPatch, way: str, ended: bool) -> None:
    """As on macOS before Python 3.13."""
    queue = KqueueOfProcesses()

    async def root() -> None:
        async with await begin() as process:
            waiting = None if ended else await spawn(process.wait())
            process.kill()
            if ended:
                queue.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            assert await (process.wait() if waiting is None else waiting.join()) == -signal.SIGKILL

    with monkeypatch.context() as patch:
        patch.delattr(os, "waitid")
        patch.delattr(os, "pidfd_open", raising=False)
        for name, value in {"KQ_FILTER_PROC": -5, "KQ_EV_ADD": 1, "KQ_NOTE_EXIT": 0x80000000}.items():
            patch.setattr(select, name, value, raising=False)
        patch.setattr(select, "kqueue", lambda: queue, raising=False)
        patch.setattr(select, "kevent", lambda *change: change, raising=False)
        flowno.run(root())


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is of Linux")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # preexec_fn beside threads, since Python 3.12
def test_a_child_that_is_to_die_with_its_parent_lives_as_long() -> None:
    """The parent is the thread that started it, which therefore must not be a worker."""
    import ctypes

    prctl, death_signal = ctypes.CDLL(None).prctl, 1

    async def root() -> None:
        async with await begin(preexec_fn=lambda: prctl(death_signal, signal.SIGKILL)) as process:
            await run_process(python("pass"))
            await input_of(process).write_eof()
            assert await process.wait() == 0

    flowno.run(root())


# --------------------------------------------------------------------------------------------------------- cancellation


def test_in_a_cancelled_block_nothing_is_started() -> None:
    async def root() -> None:
        with CancelScope() as scope:
            scope.cancel()
            await open_process(STUBBORN)
        assert scope.cancelled_caught
        assert not has_children()

    flowno.run(root())


def test_a_child_that_was_started_is_not_lost_to_a_cancellation() -> None:
    """It is cancelled between its beginning and the next wait, so it has the child, and reaps it."""
    got: list[Process] = []

    async def opening() -> None:
        async with await open_process(STUBBORN, stdout=PIPE) as process:
            got.append(process)
            await process.wait()

    async def root() -> None:
        task = await spawn(opening())
        await task.cancel()
        assert task.is_cancelled
        assert [process._popen.returncode in (None, 0) for process in got] == [False]

    flowno.run(root())


def test_a_child_that_cannot_be_handed_over_is_killed(way: str) -> None:
    """There are no sockets left for the pipes."""
    if way == "here":
        pytest.skip("nothing can fail where the pipes need no threads")

    class Exhausted(ScriptedWorld):
        made = 0

        def socketpair(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
            self.made += 1
            if self.made > 1:  # the first one is the loop's
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return super().socketpair(*args, **kwargs)

    async def root() -> None:
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            await open_process(python("import time; time.sleep(60)"), stdin=PIPE, stdout=PIPE)
        assert not has_children()

    with in_world(Exhausted()) as loop:
        loop.run_until_complete(root(), join=True)


@posix_only
def test_a_run_that_is_cancelled_lets_the_program_clean_up(tmp_path: Path) -> None:
    """It gets SIGTERM, may still write more than a pipe takes, and has ended before the cancellation goes on."""
    code = f"""
import os, signal, sys
def clean_up(*_):
    for _ in range(16): sys.stdout.write("x" * 65536)
    sys.stdout.flush()
    open({str(tmp_path / "cleaned")!r}, "w").close()
    os._exit(0)
signal.signal(signal.SIGTERM, clean_up)
open({str(tmp_path / "begun")!r}, "w").close()
while 1: signal.pause()
"""

    async def root() -> None:
        with CancelScope() as scope:
            await spawn(cancel(scope))
            await run_process(python(code), input=bytes(LARGE), grace=NET)
        assert scope.cancelled_caught
        assert (tmp_path / "cleaned").exists()

    async def cancel(scope: CancelScope) -> None:
        await appears(tmp_path / "begun")
        scope.cancel()

    flowno.run(root())


@posix_only
def test_a_run_that_is_cancelled_ends_the_input_of_its_program(tmp_path: Path) -> None:
    """This one ends by that alone, after it has begun to read what is more than a pipe holds."""
    code = f"""
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
told = []
open({str(tmp_path / "begun")!r}, "w").close()
while not told: time.sleep(0.001)
while os.read(0, 65536): pass
open({str(tmp_path / "ended")!r}, "w").close()
"""

    async def root() -> None:
        task = await spawn(run_process(python(code), input=bytes(LARGE), grace=NET))
        await appears(tmp_path / "begun")
        await task.cancel()
        assert (tmp_path / "ended").exists()

    flowno.run(root())


async def appears(path: Path) -> None:
    async with timeout(NET):
        while not path.exists():
            await sleep(0.005)


@posix_only
@pytest.mark.parametrize("grace", [0, 0.05])
def test_a_program_that_ignores_sigterm_is_killed(tmp_path: Path, grace: float) -> None:
    async def root() -> None:
        with open(tmp_path / "out", "wb") as out:
            task = await spawn(run_process(STUBBORN, stdout=out, grace=grace))
            async with timeout(NET):
                while not (tmp_path / "out").stat().st_size:
                    await sleep(0.005)
                await task.cancel()
        assert task.is_cancelled

    flowno.run(root())


@posix_only
def test_a_grandchild_that_holds_the_pipes_does_not_hold_up_a_cancellation(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    code = f"""
import subprocess, sys, os, signal
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
with open({str(file)!r} + "~", "w") as out: print(child.pid, file=out)
os.rename({str(file)!r} + "~", {str(file)!r})
signal.pause()
"""

    async def root() -> None:
        task = await spawn(run_process(python(code), grace=NET))
        await appears(file)
        grandchild = int(file.read_text())
        try:
            async with move_on_after(NET / 2) as scope:
                await task.cancel()
            assert not scope.cancelled_caught
            assert task.is_cancelled
            assert is_alive(grandchild)
        finally:
            os.kill(grandchild, signal.SIGKILL)

    flowno.run(root())


@posix_only
def test_a_time_limit_around_a_run() -> None:
    async def root() -> None:
        with pytest.raises(TimeoutError):
            async with timeout(0.05):
                await run_process(python("import signal; signal.pause()"))
        assert not has_children()

    flowno.run(root())


@posix_only
def test_an_interrupt_ends_the_program() -> None:
    async def interrupt() -> None:
        await sleep(0.05)
        raise KeyboardInterrupt

    async def root() -> None:
        await spawn(interrupt())
        await run_process(python("import signal; signal.pause()"))

    with EventLoop() as loop, pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(root())
    assert not has_children()


def test_to_wait_for_a_child_is_no_deadlock() -> None:
    """Nothing else is in the loop, and for a moment the selector has nothing to say."""

    async def root() -> int:
        async with await open_process(python("import time; time.sleep(0.05)")) as process:
            return await process.wait()

    with CountingSelector() as counting, EventLoop(counting) as loop:
        assert loop.run_until_complete(root(), join=True) == 0


@posix_only
def test_a_thread_that_waits_for_a_child_hides_no_deadlock(run_python: RunPython, way: str) -> None:
    """In a process of its own, where no other threads are, which could end it."""
    code = f"""
import os, sys
import flowno
from flowno import processes
if {way == "elsewhere"}:
    processes._RELAYED = True
    if hasattr(os, "pidfd_open"):
        del os.pidfd_open
async def main():
    async with await flowno.open_process([sys.executable, "-c", "input()"], stdin=-1) as process:
        async with flowno.move_on_after(0.01):
            await process.wait()
        try:
            await flowno.Event().wait()
        except flowno.TaskCancelled:
            print("ended")
            raise
flowno.run(main())
"""
    result = run_python(code)
    assert result.stdout.split() == ["ended"], result.stderr
    assert "DeadlockError: no task can ever go on" in result.stderr


def test_a_cancelled_run_is_cancelled_by_whoever_did_it() -> None:
    async def root() -> None:
        task = await spawn(run_process(LISTENER, stdin=PIPE))
        await sleep(0)
        task.cancel()
        with pytest.raises(TaskCancelled) as caught:
            await task.join()
        assert caught.value.by is task

    flowno.run(root())
