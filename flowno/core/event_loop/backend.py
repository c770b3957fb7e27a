"""What a backend is, and how one is chosen.

The event loop waits through a :class:`Selector`, five methods that every ``selectors.*Selector`` of the standard
library has already, and asks a :class:`World` for the time and for new sockets. Which selector a loop gets is decided
here, when the loop is made: ``EventLoop(selector=...)`` beats the environment variable ``FLOWNO_SELECTOR``, which beats
the first of :data:`BUILT_IN` that this machine can construct. A backend is loaded by its dotted name, so nothing in the
core depends on one.
"""

import errno
import importlib
import operator
import os
import socket as system_socket
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from selectors import SelectorKey
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias, cast

from .errors import SelectorUnavailableError, UnknownSelectorError

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint

__all__ = [
    "BUILT_IN",
    "ENTRY_POINT_GROUP",
    "ENVIRONMENT_VARIABLE",
    "SYSTEM_WORLD",
    "FileObject",
    "HasFileno",
    "OpenedSelector",
    "Selector",
    "SelectorChoice",
    "SelectorFactory",
    "SelectorInfo",
    "SystemWorld",
    "World",
    "available_selectors",
    "default_selector_name",
    "environment_is_trusted",
    "open_selector",
    "world_of",
]

ENVIRONMENT_VARIABLE: Final = "FLOWNO_SELECTOR"
ENTRY_POINT_GROUP: Final = "flowno.selectors"

# In order of preference. epoll and kqueue ask the kernel only about what is ready; poll and select hand it the whole
# list at each wait, and select cannot hold an fd of FD_SETSIZE or above.
BUILT_IN: Final[dict[str, str]] = {
    "epoll": "flowno_backends.epoll:EpollSelector",
    "kqueue": "flowno_backends.kqueue:KqueueSelector",
    "poll": "flowno_backends.poll:PollSelector",
    "select": "flowno_backends.select:SelectSelector",
}

_AUTO: Final = "auto"
_SELECTOR_METHODS: Final = ("register", "modify", "unregister", "select", "close")
_WORLD_METHODS: Final = ("clock", "socket", "socketpair", "getaddrinfo")

# The process or the machine is out of something. Every backend would need it, so the next in line is no answer.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


# ---------------------------------------------------------------------------------------------------- the two contracts


class HasFileno(Protocol):
    """An object that stands for a file descriptor, such as a socket."""

    def fileno(self) -> int: ...


FileObject: TypeAlias = int | HasFileno
"""What can be registered: a file descriptor, or an object whose ``fileno()`` gives one."""

_AddressInfo: TypeAlias = tuple[
    system_socket.AddressFamily,
    system_socket.SocketKind,
    int,
    str,
    tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes],
]


class Selector(Protocol):
    """The part of an event loop that waits for file descriptors to become ready.

    The loop calls these five methods and no others, positionally, with ``SelectorKey``, ``EVENT_READ`` and
    ``EVENT_WRITE`` of the standard library. Readiness is level-triggered: an fd is reported by every call of
    :meth:`select` for as long as it is ready. Reporting one that turns out not to be ready is allowed, missing one that
    is ready is not. An error or a hang-up is reported as the registered interest, so that the waiter's own system call
    raises the true error. Only the thread that runs the loop calls a selector; waking it is the loop's business.

    Optional, and used where present: ``name`` (a str for people to read), ``fileno()``, ``after_fork()`` (called in a
    forked child before the first use there), ``facts`` (one line for the list of backends) and ``world`` (see
    :class:`World`).
    """

    def register(self, fileobj: FileObject, events: int, data: Any = None, /) -> SelectorKey:
        """Report ``fileobj`` from now on when it is ready for ``events``, and ``data`` with it.

        Raises:
            ValueError: ``events`` is no mask of ``EVENT_READ`` and ``EVENT_WRITE``, ``fileobj`` is no open fd, or it is
                one that this backend cannot hold.
            KeyError: The fd is registered already.
            OSError: The kernel refuses. Nothing stays registered.
        """
        ...

    def modify(self, fileobj: FileObject, events: int, data: Any = None, /) -> SelectorKey:
        """Exchange the interest and the data of a registered fd; the same interest costs no system call.

        Raises:
            ValueError: ``events`` is no mask of ``EVENT_READ`` and ``EVENT_WRITE``.
            KeyError: The fd is not registered.
            OSError: The kernel refuses. The fd is no longer registered.
        """
        ...

    def unregister(self, fileobj: FileObject, /) -> SelectorKey:
        """Forget an fd, also one that is closed by now; never an OSError.

        Raises:
            KeyError: The fd is not registered.
        """
        ...

    def select(self, timeout: float | None = None, /) -> list[tuple[SelectorKey, int]]:
        """Wait until something is ready, and return all that is, each key with the events that it is ready for.

        Args:
            timeout: Seconds. None waits without limit, zero and less look without waiting. The wait is not shorter than
                asked for unless something happened, and longer by no more than the backend's resolution.

        Raises:
            ValueError: ``timeout`` is not a number (NaN). Any other float is accepted.
        """
        ...

    def close(self) -> None:
        """Give back what the selector holds of the system. The registered fds stay open."""
        ...


class World(Protocol):
    """What the loop asks of its surroundings besides readiness: the time, and where sockets come from.

    A selector that simulates its sockets brings a world that makes them and a clock that it moves itself, and then an
    unchanged program runs in virtual time.
    """

    def clock(self) -> float:
        """Seconds on a clock that never goes back; only differences mean anything."""
        ...

    def socket(
        self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None
    ) -> system_socket.socket:
        """A new socket, or one around ``fileno``, as ``socket.socket`` makes it."""
        ...

    def socketpair(
        self, family: int | None = None, type: int = system_socket.SOCK_STREAM, proto: int = 0
    ) -> tuple[system_socket.socket, system_socket.socket]:
        """Two connected sockets, as ``socket.socketpair`` makes them; the loop itself takes what comes by default."""
        ...

    def getaddrinfo(
        self,
        host: bytes | str | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> Sequence[_AddressInfo]:
        """The addresses of a name, as ``socket.getaddrinfo`` gives them; it blocks."""
        ...


class SystemWorld:
    """The world of every selector that does not bring its own: this machine's clock, sockets and resolver."""

    # The system's own functions, unwrapped: the loop reads the clock at every batch.
    clock = staticmethod(time.monotonic)
    socket = staticmethod(system_socket.socket)
    socketpair = staticmethod(system_socket.socketpair)
    getaddrinfo = staticmethod(system_socket.getaddrinfo)


SYSTEM_WORLD: Final[World] = SystemWorld()


def world_of(selector: Selector) -> World:
    """The ``world`` that a selector brings, else the system's.

    Raises:
        TypeError: The selector has a ``world`` that lacks some of the four methods.
    """
    world = getattr(selector, "world", None)
    if world is None:
        return SYSTEM_WORLD
    if missing := _missing(world, _WORLD_METHODS):
        raise TypeError(f"the world of {_display_name(selector)} has no {', '.join(missing)}")
    return cast(World, world)


# ------------------------------------------------------------------------------------------------ what can be asked for

SelectorFactory: TypeAlias = Callable[[], Selector]
SelectorChoice: TypeAlias = str | Sequence[str] | SelectorFactory | Selector
"""A name, names in order of preference, ``"auto"``, ``"package.module:factory"``, a factory, or a selector."""


class OpenedSelector(NamedTuple):
    """A selector that a loop is about to use.

    Attributes:
        selector: The selector itself.
        name: What to call it when speaking to people.
        owned: Whether the loop closes it at its end: True for one that was made for it, False for one passed in.
    """

    selector: Selector
    name: str
    owned: bool


class SelectorInfo(NamedTuple):
    """A backend that flowno knows about, as :func:`available_selectors` lists it.

    Attributes:
        name: What to write in ``FLOWNO_SELECTOR`` or ``EventLoop(selector=...)``.
        source: Where it comes from: ``package.module:factory``, and for a plug-in the distribution that offers it.
        usable: Whether it could be constructed just now.
        reason: Why it could not, else None.
        default: Whether ``EventLoop()`` would use it.
        facts: One line about the backend, possibly empty.
    """

    name: str
    source: str
    usable: bool
    reason: str | None
    default: bool
    facts: str


class _Candidate(NamedTuple):
    """One way to get a selector. ``obstacle`` says why it can never be taken, whatever its factory would do."""

    name: str
    source: str
    load: Callable[[], object]
    obstacle: str | None = None


class _Request(NamedTuple):
    """Names that were asked for, in order of preference, and by whom, in the words that begin an error message.

    ``ignored`` are names that were struck out because they would load code on the word of an untrusted environment.
    """

    asked_by: str
    names: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    plugins: bool = True


class _RefusedError(Exception):
    """A known backend cannot be constructed; the cause, where there is one, is the error of its factory."""


def open_selector(choice: SelectorChoice | None = None) -> OpenedSelector:
    """Make the selector that was asked for.

    Args:
        choice: None takes what ``FLOWNO_SELECTOR`` says, a name or several separated by commas, and where that is unset
            or empty the best that this machine has, as ``"auto"`` does.

    Raises:
        UnknownSelectorError: Nothing is known by that name. In a list this is an error wherever the name stands; only a
            ``package.module:factory`` is not looked at before its turn comes.
        SelectorUnavailableError: It is known, but cannot be had; of a list, none can. Its ``__cause__`` says why.
        TypeError: ``choice`` is none of these, or its factory made something that is no selector.
    """
    if choice is None:
        request = _environment_request()
        if request.ignored:
            warnings.warn(
                f"{request.asked_by}: ignored {', '.join(request.ignored)}: under python -E or -I, or with more rights "
                "than its user has, a program loads no code on the word of an environment variable",
                RuntimeWarning,
                stacklevel=1,  # always this line, so that the default filter shows it once and not once for each caller
            )
        return _open_first(request, _resolve(request))

    given: object = choice  # checked, as the types bind only those who use a type checker
    if isinstance(given, Sequence) and not isinstance(given, (bytes, bytearray, memoryview)):
        request = _Request(f"EventLoop(selector={given!r})", _split(given))
        return _open_first(request, _resolve(request))
    missing = _missing(given, _SELECTOR_METHODS)
    if not missing and not isinstance(given, type):
        selector = cast(Selector, given)
        return OpenedSelector(selector, _display_name(selector), owned=False)
    if not callable(given):
        almost = f" without {', '.join(missing)}" if len(missing) < len(_SELECTOR_METHODS) else ""
        raise TypeError(f"selector must be a name, a list of names, a factory or a selector, not {given!r}{almost}")
    name = _dotted_name(given)
    return _open_first(_Request(f"EventLoop(selector={name})", (name,)), [_Candidate(name, name, lambda: given)])


def available_selectors() -> list[SelectorInfo]:
    """Every backend that flowno knows about: the built-in ones in order of preference, then the installed plug-ins.

    A ``package.module:factory`` in ``FLOWNO_SELECTOR`` has a row too. Each is tried by constructing and closing one;
    what goes wrong with it becomes the ``reason`` of its row, and nothing is raised. Where ``EventLoop()`` would raise
    because of what ``FLOWNO_SELECTOR`` asks for, no row is the default.
    """
    request = _environment_request()
    dotted = [_own(name) for name in request.names if ":" in name]
    rows = [_probe(candidate) for candidate in (*_built_in(), *_plugins(), *dotted)]
    try:
        wanted = [(candidate.name, candidate.source) for candidate in _resolve(request)]
    except UnknownSelectorError:
        wanted = []
    usable = {(row.name, row.source) for row in rows if row.usable}
    chosen = next((candidate for candidate in wanted if candidate in usable), None)
    return [row._replace(default=(row.name, row.source) == chosen) for row in rows]


def default_selector_name() -> str:
    """The name of the backend that ``EventLoop()`` would get now, or ``none`` and the reason; for people to read."""
    try:
        request = _environment_request()
        opened = _open_first(request, _resolve(request))
        opened.selector.close()
    except Exception as error:
        return f"none ({_reason(error)})"
    return opened.name


def environment_is_trusted() -> bool:
    """Whether an environment variable may make this process load code or open a path.

    It may not under ``python -E`` and ``-I``, nor in a program that runs with more rights than its user has (setuid).
    """
    if sys.flags.ignore_environment:
        return False
    if sys.platform == "win32":
        return True
    return os.getuid() == os.geteuid() and os.getgid() == os.getegid()


# --------------------------------------------------------------------------------------------- from names to candidates


def _environment_request() -> _Request:
    value = os.environ.get(ENVIRONMENT_VARIABLE, "")
    names = _split(value)
    asked_by = f"{ENVIRONMENT_VARIABLE}={value}" if names else "EventLoop()"
    if environment_is_trusted():
        return _Request(asked_by, names)
    ignored = tuple(name for name in names if ":" in name or _plugin(name) is not None)
    return _Request(asked_by, tuple(name for name in names if name not in ignored), ignored, plugins=False)


def _split(value: Sequence[object]) -> tuple[str, ...]:
    """The names in a comma-separated string, or in a list of such; empty ones do not count."""
    names: list[str] = []
    for part in [value] if isinstance(value, str) else value:
        if not isinstance(part, str):
            raise TypeError(f"selector: a list must hold names, not {part!r}")
        names.extend(name for name in map(str.strip, part.split(",")) if name)
    return tuple(names)


def _resolve(request: _Request) -> list[_Candidate]:
    """What the names of a request stand for, in order and each once. Constructs nothing and imports no backend."""
    built_in = {candidate.name: candidate for candidate in _built_in()}
    found: dict[str, _Candidate] = {}
    for name in request.names or (_AUTO,):
        key = name.casefold()
        if key == _AUTO:
            found |= {other: candidate for other, candidate in built_in.items() if other not in found}
        elif key in built_in:
            found.setdefault(key, built_in[key])
        elif ":" in name:
            found.setdefault(name, _own(name))
        elif plugin := _plugin(name):
            found.setdefault(key, plugin)
        else:
            names = [*built_in, *(other.name for other in _plugins() if other.obstacle is None)]
            hint = " (one of your own is written package.module:factory)" if "." in name else _did_you_mean(key, names)
            raise _unknown(request, f"no selector is named {name!r}{hint}")
    return list(found.values())


def _built_in() -> Iterator[_Candidate]:
    for name, path in BUILT_IN.items():
        yield _Candidate(name, path, partial(_load, path))


def _own(path: str) -> _Candidate:
    """A backend that is asked for by ``package.module:factory``."""
    return _Candidate(path, path, partial(_find, path))


def _plugin(name: str) -> _Candidate | None:
    key = name.casefold()
    return next((plugin for plugin in _plugins() if plugin.obstacle is None and plugin.name.casefold() == key), None)


def _plugins() -> Iterator[_Candidate]:
    """What the installed distributions offer, unloaded; one that cannot be asked for has an obstacle."""
    takers = dict.fromkeys([*BUILT_IN, _AUTO], "flowno itself")
    for offered_by, entry_points in _offers():
        if isinstance(entry_points, Exception):
            unread = f"its entry points cannot be read: {_reason(entry_points)}"
            yield _Candidate(offered_by, offered_by, lambda: None, unread)
            continue
        for entry_point in entry_points:
            name, key = entry_point.name, entry_point.name.casefold()
            obstacle = None
            if key in takers:
                obstacle = f"the name is taken by {takers[key]}"
            elif set(name) & set(",:"):
                obstacle = "a name cannot hold a comma or a colon"
            else:
                takers[key] = offered_by
            yield _Candidate(name, f"{entry_point.value} ({offered_by})", entry_point.load, obstacle)


def _offers() -> Iterator[tuple[str, "Iterable[EntryPoint] | Exception"]]:
    """The entry points of our group, by distribution. One whose metadata is broken spoils no other's."""
    # importlib.metadata.entry_points() ends at the first distribution that it cannot parse, anybody's.
    from importlib.metadata import distributions

    seen: set[str] = set()
    for distribution in distributions():
        if ENTRY_POINT_GROUP not in (distribution.read_text("entry_points.txt") or ""):
            continue
        label = _label(distribution)
        if label.casefold() in seen:  # installed twice, such as an editable checkout that is also on sys.path
            continue
        seen.add(label.casefold())
        try:
            yield label, distribution.entry_points.select(group=ENTRY_POINT_GROUP)
        except Exception as error:
            yield label, error


def _label(distribution: "Distribution") -> str:
    metadata = distribution.metadata
    return f"{metadata['Name']} {metadata['Version']}"


# ---------------------------------------------------------------------------------------- from candidates to a selector


def _open_first(request: _Request, candidates: Iterable[_Candidate]) -> OpenedSelector:
    """The first candidate that can be constructed; the caller owns it."""
    reasons: dict[str, str] = {}
    cause: BaseException | None = None
    code: int | None = None
    for candidate in candidates:
        try:
            selector = _construct(candidate)
        except UnknownSelectorError as error:
            raise _unknown(request, str(error)) from error.__cause__
        except TypeError as error:
            raise TypeError(f"{request.asked_by}: {error}") from None
        except _RefusedError as error:
            reasons[candidate.name] = str(error)
            cause = error.__cause__
            code = cause.errno if isinstance(cause, OSError) else None
            if code in _EXHAUSTED:
                break
        else:
            cause = None  # its traceback holds this frame: a cycle that would wait for the collector
            return OpenedSelector(selector, candidate.name, owned=True)
    if len(reasons) > 1:
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    else:
        why = "".join(reasons.values())
    unavailable = SelectorUnavailableError(f"{request.asked_by}: {why}; {_usable_here(request)}")
    unavailable.errno = code or errno.ENOSYS
    raise unavailable from cause


def _construct(candidate: _Candidate) -> Selector:
    """Load a candidate's factory and call it.

    Raises:
        UnknownSelectorError: There is no such factory.
        TypeError: It is no factory, or made something that is no selector.
        _RefusedError: Anything went wrong in it.
    """
    if candidate.obstacle is not None:
        raise _RefusedError(candidate.obstacle)
    try:
        factory = candidate.load()
        product = factory() if callable(factory) else None
    except UnknownSelectorError:
        raise
    except Exception as error:
        raise _RefusedError(_reason(error)) from error
    if not callable(factory):
        raise TypeError(f"{candidate.name} is no factory but {factory!r}")
    if missing := _missing(product, _SELECTOR_METHODS):
        raise TypeError(f"{candidate.name} made {product!r}, which is no selector: it has no {', '.join(missing)}")
    return cast(Selector, product)


def _probe(candidate: _Candidate) -> SelectorInfo:
    facts = ""
    reason = candidate.obstacle
    if reason is None:
        try:
            facts = _facts(candidate.load())
            selector = _construct(candidate)
            facts = _facts(type(selector)) or facts
            selector.close()
        except Exception as error:
            reason = _reason(error)
    return SelectorInfo(candidate.name, candidate.source, reason is None, reason, False, facts)


def _load(path: str) -> object:
    module, _, attribute = path.partition(":")
    return operator.attrgetter(attribute)(importlib.import_module(module))


def _find(path: str) -> object:
    """As :func:`_load`, for a path that somebody typed.

    Raises:
        UnknownSelectorError: The path is malformed, or there is no such module or attribute. An error *in* the module,
            also an import of its own that fails, comes out as it is.
    """
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise UnknownSelectorError(f"{path!r} is not of the form package.module:factory")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UnknownSelectorError(f"there is no module {error.name!r}") from error
    try:
        return operator.attrgetter(attribute)(module)
    except AttributeError as error:
        hint = _did_you_mean(attribute, vars(module))
        raise UnknownSelectorError(f"module {module_name!r} has no {attribute!r}{hint}") from error


# ------------------------------------------------------------------------------------------------------------- in words


def _unknown(request: _Request, problem: str) -> UnknownSelectorError:
    return UnknownSelectorError(f"{request.asked_by}: {problem}; {_usable_here(request)}")


def _usable_here(request: _Request) -> str:
    candidates = (*_built_in(), *_plugins()) if request.plugins else tuple(_built_in())
    usable = [row.name for row in map(_probe, candidates) if row.usable]
    return f"usable here: {', '.join(usable) or 'none'}"


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(word, list(known))
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _reason(error: Exception) -> str:
    """An error in one line. The system's words and ours stand alone; others need their class to make sense."""
    if isinstance(error, (UnknownSelectorError, _RefusedError)):
        return str(error)
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}"


def _facts(thing: object) -> str:
    """A backend's ``facts``, else the first line of its docstring."""
    facts = getattr(thing, "facts", None) or getattr(thing, "__doc__", None)
    lines = facts.strip().splitlines() if isinstance(facts, str) else []
    return lines[0] if lines else ""


def _missing(thing: object, methods: Iterable[str]) -> list[str]:
    return [method for method in methods if not callable(getattr(thing, method, None))]


def _display_name(selector: Selector) -> str:
    name = getattr(selector, "name", None)
    return name if isinstance(name, str) and name else _dotted_name(type(selector))


def _dotted_name(thing: object) -> str:
    """``package.module:Class`` where the thing has such a name, else its repr."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    return f"{module}:{name}" if module and name else repr(thing)
