"""Who is compared: a table, and for each of them the reason why it cannot run here, if it cannot."""

import fnmatch
import importlib
import select
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from flowno import available_selectors

__all__ = ["CONTENDERS", "Contender", "chosen", "contender", "import_error"]

# What a server can be asked for: the functions of its module in servers/.
_ALL = ("echo", "lines", "tls_echo", "churn", "sink")
_SOCKETS = ("echo", "churn", "sink")
_HANDLES = ("echo", "tls_echo", "churn", "sink")


@dataclass(frozen=True)
class Contender:
    """One of those that are compared.

    Args:
        key: Its name on the command line and in the JSON.
        label: Its name in the tables.
        module: What has to be importable; "" is nothing that could be missing.
        loop: Which event loop, or which selector, it runs on; "" is its default.
        server: Its module in servers/; "" where it has none.
        serves: The functions of that module.
        framework: What operations/ calls it; "" where it is but another way to write a server.
        holds: How many connections its selector can hold; None is as many as there are.
    """

    key: str
    label: str
    module: str = ""
    loop: str = ""
    server: str = ""
    serves: tuple[str, ...] = ()
    framework: str = ""
    holds: int | None = None

    def missing(self) -> str:
        """Why it cannot run here; "" where it can."""
        if self.module and (reason := import_error(self.module)):
            return reason
        if self.server == "bare" and not hasattr(select, "epoll"):
            return "this system has no epoll"
        return _selector_error(self.loop) if self.framework == "flowno" and self.loop else ""


def _flowno_on(selector: str, holds: int | None = None) -> Contender:
    label = f"flowno on {selector}"
    return Contender(f"flowno-{selector}", label, "", selector, "flowno_handles", _HANDLES, "flowno", holds)


CONTENDERS = (
    Contender("bare", "bare epoll loop", "", "", "bare", _SOCKETS),
    Contender("flowno", "flowno", "", "", "flowno_handles", _HANDLES, "flowno"),
    Contender("flowno-streams", "flowno streams", "", "", "flowno_streams", _ALL),
    _flowno_on("epoll"),
    _flowno_on("kqueue"),
    _flowno_on("poll"),
    _flowno_on("select", holds=1000),  # FD_SETSIZE, less the files that a process has open besides
    Contender("uvloop", "uvloop", "uvloop", "uvloop", framework="asyncio"),
    Contender("uvloop-streams", "uvloop streams", "uvloop", "uvloop", "asyncio_streams", _ALL),
    Contender("uvloop-sock", "uvloop sock_*", "uvloop", "uvloop", "asyncio_sockets", _SOCKETS),
    Contender("uvloop-protocol", "uvloop Protocol", "uvloop", "uvloop", "asyncio_protocols", _ALL),
    Contender("asyncio", "asyncio", framework="asyncio"),
    Contender("asyncio-streams", "asyncio streams", "", "", "asyncio_streams", _ALL),
    Contender("asyncio-sock", "asyncio sock_*", "", "", "asyncio_sockets", _SOCKETS),
    Contender("asyncio-protocol", "asyncio Protocol", "", "", "asyncio_protocols", _ALL),
    Contender("trio", "trio", "trio", "", "trio_", _ALL, "trio"),
    Contender("curio", "curio", "curio", "", "curio_", _ALL, "curio"),
    Contender("gevent", "gevent", "gevent", "", "gevent_", _ALL, "gevent"),
)

_BY_KEY = {one.key: one for one in CONTENDERS}


def contender(key: str) -> Contender:
    """The contender of this key."""
    return _BY_KEY[key]


def chosen(patterns: Sequence[str]) -> tuple[Contender, ...]:
    """Those whose key fits one of the patterns, as in ``uvloop*``. No patterns are all of them.

    Raises:
        ValueError: A pattern that fits nobody.
    """
    for pattern in patterns:
        if not fnmatch.filter(_BY_KEY, pattern):
            raise ValueError(f"there is no contender {pattern!r}; there are {', '.join(_BY_KEY)}")
    keys = {key for pattern in patterns or ["*"] for key in fnmatch.filter(_BY_KEY, pattern)}
    return tuple(one for one in CONTENDERS if one.key in keys)


@cache
def import_error(module: str) -> str:
    """Why a module cannot be imported; "" where it can."""
    try:
        with warnings.catch_warnings(action="ignore"):
            importlib.import_module(module)
    except Exception as error:  # curio raises other errors than ImportError on Pythons that it does not know
        return f"import {module}: {type(error).__name__}: {error}"
    return ""


@cache
def _selector_error(name: str) -> str:
    row = next(row for row in available_selectors() if row.name == name)
    if row.default:
        return "the default here: see flowno"
    return row.reason or ""
