"""Who is compared: a table, and for each of them the reason why it cannot run here, if it cannot."""

import importlib
import select
import warnings
from dataclasses import dataclass
from functools import cache

from flowno import available_selectors

__all__ = ["CONTENDERS", "Contender", "chosen"]

#: What a server can be asked for, the functions of each module in servers/.
ALL = ("echo", "lines", "tls_echo", "churn", "sink")
#: What a server can be asked for that has sockets, and nothing above them.
SOCKETS = ("echo", "churn", "sink")


@dataclass(frozen=True)
class Contender:
    """One of the programs that are compared.

    Args:
        key: Its name on the command line and in the JSON.
        label: Its name in the tables.
        modules: What has to be importable.
        framework: What operations/, memory and latency call it; "" where it has no part in these.
        loop: Which event loop, or which selector, the framework runs on; "" is its default.
        server: The module of servers/; "" where it has none.
        serves: The functions of that module.
    """

    key: str
    label: str
    modules: tuple[str, ...] = ()
    framework: str = ""
    loop: str = ""
    server: str = ""
    serves: tuple[str, ...] = ()

    def missing(self) -> str:
        """Why it cannot run here; "" where it can."""
        for module in self.modules:
            if reason := _import_error(module):
                return reason
        if self.server == "bare" and not hasattr(select, "epoll"):
            return "this system has no select.epoll"
        if self.key.startswith("flowno") and self.loop:
            return _selector_error(self.loop)
        return ""


@cache
def _import_error(module: str) -> str:
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
        return "it is the default here: the same as flowno"
    return "" if row.usable else row.reason or "not usable here"


CONTENDERS = (
    Contender("bare", "select.epoll, bare", server="bare", serves=SOCKETS),
    Contender("flowno", "flowno", framework="flowno", server="flowno_handles", serves=("echo", "tls_echo", "churn", "sink")),
    Contender("flowno-streams", "flowno streams", server="flowno_streams", serves=ALL),
    *(
        Contender(
            f"flowno-{name}",
            f"flowno on {name}",
            framework="flowno",
            loop=name,
            server="flowno_handles",
            serves=("echo", "tls_echo", "churn", "sink"),
        )
        for name in ("epoll", "kqueue", "poll", "select")
    ),
    Contender("uvloop", "uvloop", ("uvloop",), framework="asyncio", loop="uvloop"),
    Contender("uvloop-streams", "uvloop streams", ("uvloop",), "", "uvloop", "asyncio_streams", ALL),
    Contender("uvloop-sock", "uvloop sock_*", ("uvloop",), "", "uvloop", "asyncio_sockets", SOCKETS),
    Contender("uvloop-protocol", "uvloop Protocol", ("uvloop",), "", "uvloop", "asyncio_protocols", ALL),
    Contender("asyncio", "asyncio", framework="asyncio"),
    Contender("asyncio-streams", "asyncio streams", server="asyncio_streams", serves=ALL),
    Contender("asyncio-sock", "asyncio sock_*", server="asyncio_sockets", serves=SOCKETS),
    Contender("asyncio-protocol", "asyncio Protocol", server="asyncio_protocols", serves=ALL),
    Contender("trio", "trio", ("trio",), framework="trio", server="trio_", serves=ALL),
    Contender("curio", "curio", ("curio",), framework="curio", server="curio_", serves=ALL),
    Contender("gevent", "gevent", ("gevent",), framework="gevent", server="gevent_", serves=ALL),
)


def chosen(names: list[str]) -> tuple[Contender, ...]:
    """Those of these names; ``uvloop`` also means ``uvloop-streams`` and the like. No names are all of them.

    Raises:
        ValueError: A name that is nobody's.
    """
    for name in names:
        if not any(_is_called(one, name) for one in CONTENDERS):
            keys = ", ".join(one.key for one in CONTENDERS)
            raise ValueError(f"there is no contender {name!r}; there are {keys}")
    return tuple(one for one in CONTENDERS if not names or any(_is_called(one, name) for name in names))


def _is_called(contender: Contender, name: str) -> bool:
    return contender.key == name or contender.key.startswith(f"{name}-")
