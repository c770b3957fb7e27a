"""Who may import whom, and who may ask the system: the arrows that keep the parts exchangeable.

import-linter checks the same arrows transitively, from pyproject.toml (``tox -e imports``). These tests need nothing
installed, name the line, and cover what is not an import.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowno.core.event_loop.backend import BUILT_IN
from tests.conftest import ROOT, RunPython

LOOP = "flowno.core.event_loop"

# What a module may import of flowno and its backends. Both sides are prefixes; the first that fits on the left rules.
ALLOWED: dict[str, tuple[str, ...]] = {
    f"{LOOP}.errors": (),
    f"{LOOP}.selector_names": (f"{LOOP}.errors",),
    f"{LOOP}.environment": (),
    f"{LOOP}.backend": (f"{LOOP}.environment", f"{LOOP}.errors", f"{LOOP}.selector_names"),
    "flowno.core": ("flowno.core",),
    "flowno.net": ("flowno.net", "flowno.core"),
    "flowno.from_thread": ("flowno.core",),
    "flowno.asyncio_loop": ("flowno.core",),
    "flowno.processes": ("flowno.net", "flowno.core"),
    "flowno.debug": ("flowno.debug", "flowno.processes", "flowno.net", "flowno.core"),
    "flowno.testing": ("flowno.testing", "flowno.debug", "flowno.processes", "flowno.net", "flowno.core"),
    "flowno": ("flowno",),
    "flowno_backends": ("flowno_backends", f"{LOOP}.backend"),
}
# What it may name in an annotation, by an import under TYPE_CHECKING, but not load; all that fit on the left rule.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    f"{LOOP}.event_loop": (f"{LOOP}.sockets",),
    f"{LOOP}.commands": (f"{LOOP}.sockets",),
    "flowno": (f"{LOOP}.selectors",),  # the name of handles for programs; within flowno they are in sockets and tls
}
SYSTEM_CALLS = {"time.monotonic", "socket.socket", "socket.socketpair", "socket.getaddrinfo"}


def sources() -> dict[str, Path]:
    """Each module of flowno and of its backends, by its dotted name."""
    found = {}
    for root, package in ((ROOT, "flowno"), (ROOT / "backends", "flowno_backends")):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def covers(prefix: str, module: str) -> bool:
    return f"{module}.".startswith(f"{prefix}.")


def imports(tree: ast.AST, module: str, modules: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """The modules of ours that a module imports, also inside functions, each with its line."""
    package = (module if modules[module].name == "__init__.py" else module.rpartition(".")[0]).split(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) + 1 - node.level], *([base] if base else [])])
            full = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in modules else base for name in full]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.partition(".")[0] in ("flowno", "flowno_backends"))


def type_only(tree: ast.AST) -> set[int]:
    """The lines under ``if TYPE_CHECKING:``."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {line for block in blocks for line in range(block.lineno, (block.body[-1].end_lineno or 0) + 1)}


def system_calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Where a module uses one of :data:`SYSTEM_CALLS`, under whatever name it imported it.

    ``socket.socket`` is also a type, so it counts only where it is called.
    """
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used = f"{aliases.get(node.value.id)}.{node.attr}"
        elif isinstance(node, ast.Name):
            used = aliases.get(node.id, "")
        else:
            continue
        if used in SYSTEM_CALLS and (used != "socket.socket" or id(node) in called):
            yield node.lineno, used


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def test_the_imports_follow_the_arrows() -> None:
    modules = sources()
    wrong = []
    for module, path in modules.items():
        allowed = next(arrows for prefix, arrows in ALLOWED.items() if covers(prefix, module))
        forbidden = [name for prefix, names in FORBIDDEN.items() if covers(prefix, module) for name in names]
        tree = parse(path)
        annotations = type_only(tree)
        for line, name in imports(tree, module, modules):
            banned = line not in annotations and any(covers(prefix, name) for prefix in forbidden)
            if banned or not any(covers(prefix, name) for prefix in allowed):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {module} may not import {name}")
    assert wrong == []


def test_only_the_world_asks_the_system_for_the_time_and_for_sockets() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {call} belongs to the loop's world"
        for module, path in sources().items()
        if (covers("flowno.core", module) or covers("flowno.net", module)) and module != f"{LOOP}.backend"
        for line, call in system_calls(parse(path))
    ]
    assert wrong == []


def test_no_code_asks_which_backend_it_runs_on() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}: compares with the name of a backend"
        for module, path in sources().items()
        if covers("flowno", module)
        for node in ast.walk(parse(path))
        if isinstance(node, (ast.Compare, ast.MatchValue))
        and any(isinstance(part, ast.Constant) and part.value in BUILT_IN for part in ast.walk(node))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import flowno_backends.epoll", [(1, "flowno_backends.epoll")]),
        ("def f():\n    from flowno_backends import epoll", [(2, "flowno_backends.epoll")]),
        ("from . import backend", [(1, f"{LOOP}.backend")]),
        ("from .backend import Selector", [(1, f"{LOOP}.backend")]),
        ("from .. import event_loop", [(1, LOOP)]),
        ("from flowno import EventLoop", [(1, "flowno")]),
        ("import selectors", []),
    ],
)
def test_the_reader_of_imports_sees(code: str, found: list[tuple[int, str]]) -> None:
    modules = {name: Path("x.py") for name in ("flowno_backends.epoll", f"{LOOP}.backend", LOOP, f"{LOOP}.timers")}
    assert list(imports(ast.parse(code), f"{LOOP}.timers", modules)) == found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import time\ntime.monotonic()", [(2, "time.monotonic")]),
        ("from time import monotonic as now\nnow()", [(2, "time.monotonic")]),
        ("import socket as s\ns.socket(1)\ns.socketpair()", [(2, "socket.socket"), (3, "socket.socketpair")]),
        ("from socket import getaddrinfo\ngetaddrinfo('', 1)", [(2, "socket.getaddrinfo")]),
        ("import time\nclock = time.monotonic", [(2, "time.monotonic")]),
        ("import socket\ndef f(sock: socket.socket): isinstance(sock, socket.socket)", []),
        ("import time\ntime.sleep(1)\nworld.socket(1)\nself.socket()", []),
    ],
)
def test_the_reader_of_system_calls_sees(code: str, found: list[tuple[int, str]]) -> None:
    assert list(system_calls(ast.parse(code))) == found


IMPORT = """
import logging, os, sys  # logging needs dataclasses itself since Python 3.14, and they need inspect
known = set(sys.modules)
before = set(os.listdir("/dev/fd")) if os.name == "posix" else None
import flowno
after = set(os.listdir("/dev/fd")) if before is not None else None
heavy = ("importlib.metadata", "asyncio", "flowno_backends", "difflib", "concurrent.futures", "email", "subprocess",
         "ssl", "dataclasses", "inspect")
print([name for name in heavy if name in sys.modules.keys() - known], before == after)
"""


def test_import_flowno_is_light_and_opens_nothing(run_python: RunPython) -> None:
    # -S: site processes .pth files, whose imports are the environment's and not ours.
    result = run_python(f"import sys; sys.path += {sys.path!r}\n{IMPORT}", options=["-W", "error", "-S"])
    assert result.stdout.split() == ["[]", "True"], result.stdout + result.stderr
