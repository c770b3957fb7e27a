"""The command line, ``flowno`` and ``python -m flowno``: backends, shown and tested; traces; what a process does.

Exit codes: 0; 1 where something failed, the environment variable ``FLOWNO_SELECTOR`` and a backend that this machine
lacks included; 2 where the command line itself is wrong; 130 after Ctrl-C. A failure is one message on standard error.
A program that is run by ``flowno trace`` ends as it would without.
"""

from __future__ import annotations

import argparse
import builtins
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from . import (
    SelectorDecoratorInfo,
    SelectorInfo,
    SocketHandle,
    available_selector_decorators,
    available_selectors,
    connect,
    gather,
    run,
    sleep,
    socket,
    spawn,
)
from . import exit as end_the_run
from .core.event_loop.backend import ENVIRONMENT_VARIABLE, OpenedSelector, open_selector
from .core.event_loop.errors import UnknownSelectorError

if TYPE_CHECKING:
    from .debug.protocol import Answer
    from .testing.conformance import Case, Outcome

__all__ = ["main"]

#: Seconds that the demonstration of one backend may take.
LIMIT: Final = 10

#: The short echo run at its end.
SECONDS: Final = 0.3
CONNECTIONS: Final = 10
MESSAGE: Final = b"x" * 1024


class _Failure(Exception):
    """The end of a command, with what to say about it."""


class _UsageError(Exception):
    """As :class:`_Failure`, where the command line is wrong."""


class _ProgramEndedError(Exception):
    """A program that was run by a command has ended, with an exception or without; its output is its own matter."""

    def __init__(self, error: BaseException | None) -> None:
        super().__init__(error)
        self.error = error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows the name of the program; None takes it from ``sys.argv``.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if sys.stdout is None and words[:1] != ["trace"]:  # the shell's >&-; a program that is run may have nothing to say
        return _fail("flowno", "standard output is closed")
    try:
        code = _run(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except _ProgramEndedError as ended:
        if ended.error is None:
            return 0
        end_of_program = ended.error
    except KeyboardInterrupt:
        return 130
    except OSError as error:  # of standard output; every other one is a _Failure by now
        # What is still in the buffer has nowhere to go, and the interpreter would try again at its end.
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1 if isinstance(error, BrokenPipeError) else _fail("flowno", f"standard output: {error.strerror}")
    else:
        return code
    raise end_of_program  # out here, where its context stays as it is


def _run(arguments: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as ended:  # after --help and --version, or an error that argparse has printed
        return int(ended.code or 0)
    try:
        options.run(options)
    except _Failure as failure:
        return _fail(f"flowno {options.command}", str(failure))
    except _UsageError as mistake:
        options.parser.print_usage(sys.stderr)
        _fail(f"flowno {options.command}: error", str(mistake))
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flowno",
        description="A reactor framework in pure Python, with exchangeable selectors.",
        epilog=f"{ENVIRONMENT_VARIABLE} in the environment names the backend of each event loop that is not given one.",
    )
    parser.add_argument("--version", action=_Version, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)

    selectors = commands.add_parser(
        "selectors",
        help="list the backends and their decorators, and which of them work here",
        description="List the backends, and what can be put around them: whether each works here or why not, where it "
        "comes from, and what is particular about it.",
    )
    selectors.add_argument("--json", action="store_true", help="as JSON, for programs")
    selectors.set_defaults(run=_selectors, parser=selectors)

    demo = commands.add_parser(
        "demo",
        help="run an echo server and its clients on each backend",
        description="Run an echo server and a client over real sockets, then measure messages per second: without "
        f"--selector, on the backend that {ENVIRONMENT_VARIABLE} names; where that is unset, on each that works here.",
    )
    demo.add_argument(
        "--selector",
        metavar="NAME",
        help="the backend: a name, several in order of preference (kqueue,poll), auto, package.module:factory, or one "
        "of these within a decorator, such as check(poll)",
    )
    demo.set_defaults(run=_demo, parser=demo)

    check = commands.add_parser(
        "check",
        help="find out whether a backend keeps its promises",
        description="Try a backend out, case by case, in a process of its own, and name the rule of the protocol that "
        "it breaks: any that can be named, flowno's own, one of the standard library or yours.",
    )
    check.add_argument(
        "selector",
        metavar="NAME",
        nargs="?",
        help="the backend: a name, package.module:factory, or one of these within a decorator, such as check(epoll)",
    )
    check.add_argument(
        "-k", "--case", metavar="TEXT", default="", help="only the cases whose name, group or rule contains this"
    )
    check.add_argument("--rules", action="store_true", help="list the rules and their cases, and check nothing")
    check.add_argument("--json", action="store_true", help="as JSON, for programs")
    check.set_defaults(run=_check, parser=check)

    trace = commands.add_parser(
        "trace",
        help="run a program, and write a trace of its event loops",
        description="Run a Python program as python itself would, and write a trace of what its event loops do, to be "
        "opened in https://ui.perfetto.dev or chrome://tracing.",
    )
    trace.add_argument("-o", dest="output", metavar="FILE", default="trace.json", help="the trace (trace.json)")
    trace.add_argument("program", metavar="program.py")
    trace.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="what the program is given")
    trace.set_defaults(run=_trace, parser=trace)

    for name, run_it, help_text in (
        ("ps", _ps, "list the tasks of a running process"),
        ("where", _where, "show where the tasks of a running process are, and what they wait for"),
        ("top", _top, "watch the tasks of a running process"),
    ):
        command = commands.add_parser(
            name,
            help=help_text,
            description=f"{help_text[0].upper()}{help_text[1:]}: one that was started with FLOWNO_MONITOR=PATH.",
        )
        command.add_argument("target", metavar="PID|SOCKET", help="the number of the process, or its monitor's socket")
        if name == "where":
            command.add_argument(
                "task", metavar="TASK", nargs="?", help="the name of a task, or its id; all by default"
            )
        if name != "top":
            command.add_argument("--json", action="store_true", help="as JSON, for programs")
        command.set_defaults(run=run_it, parser=command)
    return parser


class _Version(argparse.Action):
    """Prints the version. Not argparse's own action, which would have it looked up for every command."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("flowno")
        except PackageNotFoundError:
            number = "(a checkout that is not installed)"
        print(f"flowno {number}")
        parser.exit()


# ------------------------------------------------------------------------------------------------------------ selectors


def _selectors(options: argparse.Namespace) -> None:
    rows = available_selectors()
    decorators = available_selector_decorators()
    if options.json:
        import json

        listed = [*(row._asdict() for row in rows), *(row._asdict() for row in decorators)]
        print(json.dumps(listed, indent=2))
    else:
        _print_table([("name", "usable", "default", "source, obstacle, facts"), *_cells(rows)])
        print()
        _print_table([("decorator", "usable", "source, obstacle, facts"), *_decorator_cells(decorators)])
    if not any(row.default for row in rows):  # FLOWNO_SELECTOR asks for what cannot be had; this says why
        _open(None).selector.close()


def _cells(rows: Sequence[SelectorInfo]) -> list[tuple[str, str, str, str]]:
    """The rows as text: a line for each backend, and below it one for why it is not usable and one for its facts."""
    cells = []
    for row in rows:
        cells.append((row.name, "yes" if row.usable else "no", "yes" if row.default else "", row.source))
        cells += [("", "", "", line) for line in (row.reason, row.facts) if line]
    return cells


def _decorator_cells(rows: Sequence[SelectorDecoratorInfo]) -> list[tuple[str, str, str]]:
    """As :func:`_cells`; the name is followed by how many selectors there are to be."""
    cells = []
    for row in rows:
        form = f"{row.name}({','.join(['selector'] * (row.takes or 1))})"
        cells.append((form, "yes" if row.usable else "no", row.source))
        cells += [("", "", line) for line in (row.reason, row.facts) if line]
    return cells


# ----------------------------------------------------------------------------------------------------------------- demo


def _demo(options: argparse.Namespace) -> None:
    rates = []
    failures = []
    for opened in _chosen(options):
        print(opened.name, flush=True)
        transcript: list[str] = []
        try:
            with closing(opened.selector):
                rate = run(_show(transcript.append), opened.selector)
        except Exception as error:  # somebody else's backend may fail in any way, and the next one is to be shown, too
            failures.append(f"{opened.name}: {type(error).__name__}: {error}")
        else:
            rates.append((opened.name, f"{rate:,.0f}"))
        print(*(f"  {line}" for line in transcript), "", sep="\n", flush=True)
    if rates:
        print(f"{CONNECTIONS} connections, {len(MESSAGE)} bytes a message, both ends in one event loop:\n")
        _print_table([("backend", "messages/s"), *rates], numbers=True)
    if failures:
        raise _Failure("\n".join(failures))


def _chosen(options: argparse.Namespace) -> Iterator[OpenedSelector]:
    """The backends to show: the one that was asked for, else each that works here."""
    if options.selector is not None:
        yield _open_named(options.selector, f"--selector {options.selector}")
    elif os.environ.get(ENVIRONMENT_VARIABLE, "").strip(", "):
        yield _open(None)
    else:
        yield from (_open(row.name) for row in available_selectors() if row.usable)


def _open_named(choice: str, asked_by: str) -> OpenedSelector:
    """Open what the command line names, in these words."""
    try:
        return open_selector(choice, asked_by)
    except (UnknownSelectorError, TypeError) as error:
        raise _UsageError(str(error)) from error
    except OSError as error:
        raise _Failure(str(error)) from error


def _open(choice: str | None) -> OpenedSelector:
    try:
        return open_selector(choice)
    except (OSError, UnknownSelectorError, TypeError) as error:
        raise _Failure(str(error)) from error


async def _show(say: Callable[[str], object]) -> float:
    await spawn(_limit())
    await _echo(say)
    return await _measure()


async def _limit() -> None:
    """A backend that loses readiness would keep the demonstration waiting for ever."""
    await sleep(LIMIT)
    await end_the_run(exception=TimeoutError(f"the demonstration did not come to its end within {LIMIT} s"))


async def _echo(say: Callable[[str], object]) -> None:
    """The example of the README, on a free port, with every socket closed; ``say`` takes its lines."""

    async def echo_server(server_sock: SocketHandle) -> None:
        client_sock, address = await server_sock.accept()
        with client_sock:
            say(f"Server: Client connected from {address}")
            data = await client_sock.recv(1024)
            say(f"Server: Received: {data.decode()}")
            await client_sock.sendAll(b"Echo: " + data)
            say("Server: Response sent")

    async def echo_client(port: int) -> None:
        await sleep(0.1)
        with socket() as client_sock:
            client_sock.connect(("localhost", port))
            say("Client: Connected to server")
            message = b"Hello, world!"
            await client_sock.sendAll(message)
            say(f"Client: Sent: {message.decode()}")
            response = await client_sock.recv(1024)
            say(f"Client: Received: {response.decode()}")

    with socket() as server_sock:
        server_sock.bind(("localhost", 0))
        server_sock.listen(1)
        port = server_sock.getsockname()[1]
        say(f"Server: Listening on port {port}")
        await gather(echo_server(server_sock), echo_client(port))
        say("Main: All tasks completed")


async def _measure() -> float:
    """How many messages a second come back from an echo server that runs in the same loop."""

    async def answer(sock: SocketHandle) -> None:
        with sock:
            while data := await sock.recv(len(MESSAGE)):
                await sock.sendAll(data)

    async def serve(server_sock: SocketHandle) -> int:
        accepted = [await server_sock.accept() for _ in range(CONNECTIONS)]
        await gather(*[answer(sock) for sock, _address in accepted])
        return 0

    async def ask(address: tuple[str, int], end: float) -> int:
        messages = 0
        with socket() as sock:
            await connect(sock, address)
            while time.perf_counter() < end:
                await sock.sendAll(MESSAGE)
                missing = len(MESSAGE)
                while missing:
                    data = await sock.recv(missing)
                    if not data:
                        raise ConnectionError("the connection ended in the middle of a message")
                    missing -= len(data)
                messages += 1
        return messages

    with socket() as server_sock:
        server_sock.bind(("127.0.0.1", 0))
        server_sock.listen(CONNECTIONS)
        start = time.perf_counter()
        clients = [ask(server_sock.getsockname(), start + SECONDS) for _ in range(CONNECTIONS)]
        messages = sum(await gather(serve(server_sock), *clients))
        return messages / (time.perf_counter() - start)


# ---------------------------------------------------------------------------------------------------------------- check


def _check(options: argparse.Namespace) -> None:
    from .testing.conformance import CASES

    words = options.case.casefold().replace(" ", "_")
    named = [(case, (case.name, case.group.replace(" ", "_"), case.rule)) for case in CASES]
    cases = [case for case, names in named if any(words in name for name in names)]
    if not cases:
        raise _UsageError(f"argument -k/--case: no case, group or rule contains {options.case!r}")
    if options.rules:
        _show_rules(cases, whole=not words, as_json=options.json)
        return
    if options.selector is None:
        raise _UsageError("NAME is missing: the backend to check")
    _show_outcomes(_tried(options.selector), options.selector, cases, as_json=options.json)


def _tried(choice: str) -> str:
    """What a selector is called that can be made, which is found out in another process: it may end that one."""
    from .testing.conformance.isolation import try_selector

    try:
        return try_selector(choice)
    except (UnknownSelectorError, TypeError) as error:
        raise _UsageError(str(error)) from error
    except (OSError, RuntimeError) as error:
        raise _Failure(str(error)) from error


def _show_rules(cases: Sequence[Case], *, whole: bool, as_json: bool) -> None:
    """Print the rules that these cases prove, or, where they are the whole list, every rule."""
    from .core.event_loop.selector_rules import RULES

    if as_json:
        import json

        rows = [
            {"case": case.name, "group": case.group, "rule": case.rule, "promise": RULES[case.rule]} for case in cases
        ]
        print(json.dumps(rows, indent=2))
        return
    for rule, promise in RULES.items():
        proofs = [case.sentence for case in cases if case.rule == rule]
        if whole and not proofs:
            proofs = ["every case, on the way"]
        if proofs:
            print(f"{rule}: {promise}", *proofs, sep="\n  ")


def _show_outcomes(name: str, choice: str, cases: Sequence[Case], *, as_json: bool) -> None:
    """Print what comes of the cases, each as soon as it is known.

    Raises:
        _Failure: Some have failed.
    """
    from .core.event_loop.selector_rules import RULES

    outcomes = []
    group = None
    for outcome in _outcomes(choice, cases):
        outcomes.append(outcome)
        if as_json:
            continue
        if outcome.group != group:
            group = outcome.group
            print(group)
        missing = f": {outcome.reason}" if outcome.result == "skipped" else ""
        print(f"  {outcome.result:<7}  {outcome.case.replace('_', ' ')}{missing}", flush=True)
        if outcome.result == "failed":
            lines = (f'rule "{outcome.rule}": {RULES[outcome.rule]}', *outcome.reason.splitlines())
            print(*(f"           {line}" for line in lines), sep="\n", flush=True)
    numbers = Counter(outcome.result for outcome in outcomes)
    if as_json:
        import json

        print(json.dumps([outcome._asdict() for outcome in outcomes], indent=2))
    else:
        print(f"\n{name}: {numbers['passed']} passed, {numbers['failed']} failed, {numbers['skipped']} skipped")
    if numbers["failed"]:
        broken = dict.fromkeys(outcome.rule for outcome in outcomes if outcome.result == "failed")
        raise _Failure(f"{name} breaks {len(broken)} of the rules: {', '.join(broken)}")


def _outcomes(choice: str, cases: Sequence[Case]) -> Iterator[Outcome]:
    """What comes of the cases, in a process of their own.

    Raises:
        _Failure: There is no such process.
    """
    from .testing.conformance.isolation import check_selector

    try:
        yield from check_selector(choice, cases)
    except RuntimeError as error:
        raise _Failure(str(error)) from error


# ---------------------------------------------------------------------------------------------------------------- trace


def _trace(options: argparse.Namespace) -> NoReturn:
    from io import open_code

    from .debug.tracing import trace_process

    try:
        with open_code(os.path.abspath(options.program)) as file:
            source = file.read()
    except OSError as error:
        raise _UsageError(f"cannot read {options.program}: {error.strerror}") from error
    if os.path.exists(options.output) and os.path.samefile(options.output, options.program):
        raise _UsageError(f"-o {options.output} is the program itself, which the trace would replace")
    try:
        trace_process(options.output)
    except OSError as error:
        raise _Failure(f"{options.output}: {error.strerror}") from error
    _run_as_main(options.program, source, options.arguments)


def _run_as_main(path: str, source: bytes, arguments: Sequence[str]) -> NoReturn:
    """Run a program in the place of this one: as ``__main__``, with its arguments, and its folder in ``sys.path``.

    Raises:
        _ProgramEndedError: It has ended, which this does not return from.
    """
    sys.argv[:] = [path, *arguments]
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    path = os.path.abspath(path)
    main_module = sys.modules["__main__"] = ModuleType("__main__")
    vars(main_module).update(__file__=path, __builtins__=builtins, __cached__=None)
    try:
        exec(compile(source, path, "exec", dont_inherit=True), vars(main_module))
    except BaseException as error:
        if error.__traceback__ is not None:
            error.__traceback__ = error.__traceback__.tb_next
        sys.excepthook = partial(_show_error, sys.excepthook, error, error.__traceback__)
        raise _ProgramEndedError(error) from None
    raise _ProgramEndedError(None)


def _show_error(show: Callable[..., object], ended: BaseException, where: TracebackType | None, *error: Any) -> None:
    """The hook for an error that ends the process; that of the program began in the program, not in this file."""
    kind, value, traceback = error
    if value is ended:
        traceback = value.__traceback__ = where
    show(kind, value, traceback)


# ---------------------------------------------------------------------------------------------------- running processes


def _ps(options: argparse.Namespace) -> None:
    from .debug.reports import head_of, rows_of

    answer = _ask(options)
    if options.json:
        _print_json(answer)
        return
    for loop in answer.loops:
        print(head_of(loop))
        _print_table([("task", "state", "waits for", "where"), *rows_of(loop)])
    _say_if_idle(answer)


def _where(options: argparse.Namespace) -> None:
    from .debug.reports import lines_of

    answer = _ask(options)
    if options.task is not None:
        loops = [
            loop._replace(tasks=tuple(task for task in loop.tasks if options.task in (task.name, str(task.id))))
            for loop in answer.loops
        ]
        answer = answer._replace(loops=tuple(loop for loop in loops if loop.tasks))
        if not answer.loops:
            raise _Failure(f"process {answer.pid} has no task {options.task!r}; `flowno ps` lists those that it has")
    if options.json:
        _print_json(answer)
        return
    for loop in answer.loops:
        print(*lines_of(loop, whole=options.task is None), sep="\n")
    _say_if_idle(answer)


def _top(options: argparse.Namespace) -> None:
    try:
        from .debug.top import watch
    except ModuleNotFoundError:
        raise _Failure("it draws by rich, which is not installed; the extra 'monitor' of flowno has it") from None
    watch(lambda: _ask(options))


def _ask(options: argparse.Namespace) -> Answer:
    from .debug.asking import MonitorError, ask_target

    try:
        return ask_target(options.target)
    except MonitorError as error:
        raise _Failure(str(error)) from None


def _say_if_idle(answer: Answer) -> None:
    from .debug.reports import none_in

    if not answer.loops:
        print(none_in(f"process {answer.pid}"))


def _print_json(answer: Answer) -> None:
    import json

    from .debug.protocol import as_json

    print(json.dumps(as_json(answer), indent=2))


# --------------------------------------------------------------------------------------------------------------- output


def _print_table(rows: Sequence[Sequence[str]], numbers: bool = False) -> None:
    """Print rows with their columns aligned; ``numbers`` aligns all but the first to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if numbers and position else cell.ljust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _fail(program: str, message: str) -> int:
    """Say what is wrong; the exit code for it."""
    for line in message.splitlines():
        print(f"{program}: {line}", file=sys.stderr)
    return 1
