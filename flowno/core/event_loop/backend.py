"""What a backend is, and how one is chosen.

The event loop waits through a :class:`Selector`, five methods that every ``selectors.*Selector`` of the standard
library has already, and asks a :class:`World` for the time and for new sockets. Which selector a loop gets is decided
here, when the loop is made: ``EventLoop(selector=...)`` beats the environment variable ``FLOWNO_SELECTOR``, which beats
the first of :data:`BUILT_IN` that this machine can construct. Wherever a selector can be named, decorators can be put
around it, ``trace(check(poll))``. Both are loaded by their dotted names, so nothing in the core depends on one.
"""

import errno
import importlib
import itertools
import operator
import os
import socket as system_socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from selectors import SelectorKey
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias, cast

from .environment import environment_is_trusted
from .errors import SelectorUnavailableError, UnknownSelectorError
from .selector_names import ChoiceError, Place, Term, terms_of

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint

__all__ = [
    "BUILT_IN",
    "DECORATORS",
    "DECORATOR_ENTRY_POINT_GROUP",
    "ENTRY_POINT_GROUP",
    "ENVIRONMENT_VARIABLE",
    "SYSTEM_WORLD",
    "FileObject",
    "HasFileno",
    "OpenedSelector",
    "Selector",
    "SelectorChoice",
    "SelectorDecoratorInfo",
    "SelectorFactory",
    "SelectorInfo",
    "SystemWorld",
    "World",
    "available_selector_decorators",
    "available_selectors",
    "call_in_words",
    "default_selector_name",
    "display_name",
    "open_selector",
    "world_of",
]

ENVIRONMENT_VARIABLE: Final = "FLOWNO_SELECTOR"
ENTRY_POINT_GROUP: Final = "flowno.selectors"
DECORATOR_ENTRY_POINT_GROUP: Final = "flowno.selector_decorators"

# In order of preference. epoll and kqueue ask the kernel only about what is ready; poll and select hand it the whole
# list at each wait, and select cannot hold an fd of FD_SETSIZE or above.
BUILT_IN: Final[dict[str, str]] = {
    "epoll": "flowno_backends.epoll:EpollSelector",
    "kqueue": "flowno_backends.kqueue:KqueueSelector",
    "poll": "flowno_backends.poll:PollSelector",
    "select": "flowno_backends.select:SelectSelector",
}

# What is called with selectors, and makes one of them.
DECORATORS: Final[dict[str, str]] = {
    "check": "flowno.debug.selector_decorators.check:CheckSelector",
    "faulty": "flowno.debug.selector_decorators.faulty:FaultySelector",
    "shadow": "flowno.debug.selector_decorators.shadow:ShadowSelector",
    "trace": "flowno.debug.selector_decorators.trace:TraceSelector",
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
            ValueError: ``events`` is no mask of ``EVENT_READ`` and ``EVENT_WRITE``. Nothing has changed.
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
        raise TypeError(f"the world of {display_name(selector)} has no {', '.join(missing)}")
    return cast(World, world)


# ------------------------------------------------------------------------------------------------ what can be asked for

SelectorFactory: TypeAlias = Callable[[], Selector]
SelectorChoice: TypeAlias = str | Sequence[str] | SelectorFactory | Selector
"""A name, names in order of preference, ``"auto"``, ``"package.module:factory"``, a factory, or a selector.

Around each name there can be decorators: ``"check(epoll)"``, ``"shadow(kqueue, poll)"``.
"""


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


class SelectorDecoratorInfo(NamedTuple):
    """A decorator of selectors that flowno knows about, as :func:`available_selector_decorators` lists it.

    Attributes:
        name: What to write before the parenthesis: ``name(selector)``.
        takes: How many selectors it is put around, at least; None where it could not be loaded.
        source: Where it comes from: ``package.module:factory``, and for a plug-in the distribution that offers it.
        usable: Whether it could be loaded just now.
        reason: Why it could not, else None.
        facts: One line about the decorator, possibly empty.
    """

    name: str
    takes: int | None
    source: str
    usable: bool
    reason: str | None
    facts: str


class _Candidate(NamedTuple):
    """One way to get a selector, or a decorator.

    ``obstacle`` says why it can never be taken, whatever its factory would do. The factory is called with what comes of
    ``inner``; ``place`` is where the name stands in what was asked for, None where nobody has asked.
    """

    name: str
    source: str
    load: Callable[[], object]
    obstacle: str | None = None
    inner: tuple["_Candidate", ...] = ()
    place: Place | None = None


class _Request(NamedTuple):
    """What was asked for, in order of preference, and by whom, in the words that begin an error message.

    ``ignored`` are names that were struck out because they would load code on the word of an untrusted environment.
    """

    asked_by: str
    terms: tuple[Term, ...]
    ignored: tuple[str, ...] = ()
    plugins: bool = True


class _RefusedError(Exception):
    """A known backend cannot be constructed; the cause, where there is one, is the error of its factory."""


def open_selector(choice: SelectorChoice | None = None, asked_by: str | None = None) -> OpenedSelector:
    """Make the selector that was asked for.

    Args:
        choice: None takes what ``FLOWNO_SELECTOR`` says, a name or several separated by commas, and where that is unset
            or empty the best that this machine has, as ``"auto"`` does. ``decorator(name)`` stands for a name, too.
        asked_by: Who chooses, in the words that begin an error message, such as ``--selector poll``; None for a call
            of ``EventLoop``. The environment speaks for itself.

    Raises:
        UnknownSelectorError: Nothing is known by that name, or what was written is no name. In a list this is an error
            wherever the name stands; only a ``package.module:factory`` is not looked at before its turn comes.
        SelectorUnavailableError: It is known, but cannot be had; of a list, none can. Its ``__cause__`` says why.
        TypeError: ``choice`` is none of these, or its factory made something that is no selector.
    """
    if choice is None:
        request = _environment_request(asked_by or call_in_words("EventLoop", None))
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
        request = _request(asked_by or call_in_words("EventLoop", choice), given)
        return _open_first(request, _resolve(request))
    missing = _missing(given, _SELECTOR_METHODS)
    if not missing and not isinstance(given, type):
        selector = cast(Selector, given)
        return OpenedSelector(selector, display_name(selector), owned=False)
    if not callable(given):
        almost = f" without {', '.join(missing)}" if len(missing) < len(_SELECTOR_METHODS) else ""
        raise TypeError(f"selector must be a name, a list of names, a factory or a selector, not {given!r}{almost}")
    name = _dotted_name(given)
    request = _Request(asked_by or call_in_words("EventLoop", choice), ())
    return _open_first(request, [_Candidate(name, name, lambda: given)])


def available_selectors() -> list[SelectorInfo]:
    """Every backend that flowno knows about: the built-in ones in order of preference, then the installed plug-ins.

    What ``FLOWNO_SELECTOR`` asks for by ``package.module:factory`` or with decorators has a row too. Each is tried by
    constructing and closing one; what goes wrong with it becomes the ``reason`` of its row, and nothing is raised.
    Where ``EventLoop()`` would raise because of what ``FLOWNO_SELECTOR`` asks for, no row is the default.
    """
    try:
        wanted = _resolve(_environment_request())
    except UnknownSelectorError:
        wanted = []
    own = [candidate for candidate in wanted if candidate.inner or ":" in candidate.name]
    rows = [_probe(candidate) for candidate in (*_built_in(), *_plugins(), *own)]
    usable = {(row.name, row.source) for row in rows if row.usable}
    asked_for = [(candidate.name, candidate.source) for candidate in wanted]
    chosen = next((candidate for candidate in asked_for if candidate in usable), None)
    return [row._replace(default=(row.name, row.source) == chosen) for row in rows]


def available_selector_decorators() -> list[SelectorDecoratorInfo]:
    """Every decorator of selectors that flowno knows about: its own, then those of the installed plug-ins.

    Each is loaded, and none is made. What goes wrong becomes the ``reason`` of its row, and nothing is raised.
    """
    return [_probe_decorator(candidate) for candidate in _decorators()]


def default_selector_name() -> str:
    """The name of the backend that ``EventLoop()`` would get now, or ``none`` and the reason; for people to read."""
    try:
        request = _environment_request()
        opened = _open_first(request, _resolve(request))
        opened.selector.close()
    except Exception as error:
        return f"none ({_reason(error)})"
    return opened.name


# --------------------------------------------------------------------------------------------- from names to candidates


def _environment_request(otherwise_asked_by: str = "EventLoop()") -> _Request:
    value = os.environ.get(ENVIRONMENT_VARIABLE, "")
    request = _request(f"{ENVIRONMENT_VARIABLE}={value}", value)
    if not request.terms:
        request = request._replace(asked_by=otherwise_asked_by)
    if not request.terms or environment_is_trusted():
        return request
    foreign = [term for term in request.terms if _loads_foreign_code(term)]
    return request._replace(
        terms=tuple(term for term in request.terms if term not in foreign),
        ignored=tuple(map(str, foreign)),
        plugins=False,
    )


def _loads_foreign_code(term: Term) -> bool:
    plugin = _plugin_decorator(term.name) if term.inner else _plugin(term.name)
    return ":" in term.name or plugin is not None or any(map(_loads_foreign_code, term.inner))


def _request(asked_by: str, value: Sequence[object]) -> _Request:
    """What a comma-separated string asks for, or a list of such."""
    terms: list[Term] = []
    for part in [value] if isinstance(value, str) else value:
        if not isinstance(part, str):
            raise TypeError(f"selector: a list must hold names, not {part!r}")
        try:
            terms.extend(terms_of(part))
        except ChoiceError as mistake:
            raise _unknown(_Request(asked_by, ()), mistake) from None
    return _Request(asked_by, tuple(terms))


def _resolve(request: _Request) -> list[_Candidate]:
    """What a request stands for, in order and each once. Constructs nothing and imports no backend."""
    found: dict[str, _Candidate] = {}
    try:
        for term in request.terms or terms_of(_AUTO):
            for candidate in _candidates(term):
                found.setdefault(candidate.name, candidate)
    except ChoiceError as mistake:
        raise _unknown(request, mistake) from None
    return list(found.values())


def _candidates(term: Term) -> list[_Candidate]:
    """The ways to get what a term stands for; of ``auto`` and what is around it there are several.

    Raises:
        ChoiceError: There is none.
    """
    if term.inner:
        decorator = _decorator(term)
        return [_decorated(decorator, inner) for inner in itertools.product(*map(_candidates, term.inner))]
    name, key = term.name, term.name.casefold()
    built_in = {candidate.name: candidate for candidate in _built_in()}
    if key == _AUTO:
        return list(built_in.values())
    if key in built_in:
        return [built_in[key]]
    if ":" in name:
        return [_own(name, term.place)]
    if plugin := _plugin(name):
        return [plugin]
    if _known_decorator(key):
        hint = f", but a decorator of selectors: write {name}({_AUTO}), or another selector between the parentheses"
    elif "." in name:
        hint = " (one of your own is written package.module:factory)"
    else:
        hint = _did_you_mean(key, [*built_in, *(other.name for other in _plugins() if other.obstacle is None)])
    raise ChoiceError(f"no selector is named {name!r}{hint}", term.place, "selectors")


def _decorator(term: Term) -> _Candidate:
    """The decorator that a term names.

    Raises:
        ChoiceError: There is none, or it is one of our own and takes another number of selectors.
    """
    name, key = term.name, term.name.casefold()
    decorator = _known_decorator(key)
    if decorator is not None:
        decorator = decorator._replace(place=term.place)
        if key in DECORATORS:  # a slip is found wherever it stands, and that of a plug-in when its turn has come
            _check_number(decorator, decorator.load(), len(term.inner))
        return decorator
    if ":" in name:
        return _own(name, term.place)
    if key in (*BUILT_IN, _AUTO) or _plugin(name):
        hint = f", as {name} is a selector, and takes no others"
    elif "." in name:
        hint = " (one of your own is written package.module:factory(selector))"
    else:
        hint = _did_you_mean(key, [other.name for other in _decorators() if other.obstacle is None])
    raise ChoiceError(f"no decorator of selectors is named {name!r}{hint}", term.place, "decorators")


def _decorated(decorator: _Candidate, inner: tuple[_Candidate, ...]) -> _Candidate:
    return decorator._replace(
        name=f"{decorator.name}({','.join(other.name for other in inner)})",
        inner=inner,
    )


def _known_decorator(key: str) -> _Candidate | None:
    if key in DECORATORS:
        return _Candidate(key, DECORATORS[key], partial(_load, DECORATORS[key]))
    return _plugin_decorator(key)


def _built_in() -> Iterator[_Candidate]:
    for name, path in BUILT_IN.items():
        yield _Candidate(name, path, partial(_load, path))


def _decorators() -> Iterator[_Candidate]:
    for name, path in DECORATORS.items():
        yield _Candidate(name, path, partial(_load, path))
    yield from _offered(DECORATOR_ENTRY_POINT_GROUP, DECORATORS)


def _own(path: str, place: Place) -> _Candidate:
    """A backend or a decorator that is asked for by ``package.module:factory``."""
    return _Candidate(path, path, partial(_find, path, place), place=place)


def _plugin(name: str) -> _Candidate | None:
    return _by_name(name, _plugins())


def _plugin_decorator(name: str) -> _Candidate | None:
    return _by_name(name, _offered(DECORATOR_ENTRY_POINT_GROUP, DECORATORS))


def _by_name(name: str, candidates: Iterable[_Candidate]) -> _Candidate | None:
    key = name.casefold()
    return next((other for other in candidates if other.obstacle is None and other.name.casefold() == key), None)


def _plugins() -> Iterator[_Candidate]:
    return _offered(ENTRY_POINT_GROUP, BUILT_IN)


def _offered(group: str, built_in: Mapping[str, str]) -> Iterator[_Candidate]:
    """What the installed distributions offer, unloaded; one that cannot be asked for has an obstacle."""
    takers = dict.fromkeys([*built_in, _AUTO], "flowno itself")
    for offered_by, entry_points in _offers(group):
        if isinstance(entry_points, Exception):
            unread = f"its entry points cannot be read: {_reason(entry_points)}"
            yield _Candidate(offered_by, offered_by, lambda: None, unread)
            continue
        for entry_point in entry_points:
            name, key = entry_point.name, entry_point.name.casefold()
            obstacle = None
            if key in takers:
                obstacle = f"the name is taken by {takers[key]}"
            elif set(name) & set(",:()"):
                obstacle = "a name cannot hold a comma, a colon or a parenthesis"
            else:
                takers[key] = offered_by
            yield _Candidate(name, f"{entry_point.value} ({offered_by})", entry_point.load, obstacle)


def _offers(group: str) -> Iterator[tuple[str, "Iterable[EntryPoint] | Exception"]]:
    """The entry points of a group, by distribution. One whose metadata is broken spoils no other's."""
    # importlib.metadata.entry_points() ends at the first distribution that it cannot parse, anybody's.
    from importlib.metadata import distributions

    seen: set[str] = set()
    for distribution in distributions():
        if group not in (distribution.read_text("entry_points.txt") or ""):
            continue
        label = _label(distribution)
        if label.casefold() in seen:  # installed twice, such as an editable checkout that is also on sys.path
            continue
        seen.add(label.casefold())
        try:
            yield label, distribution.entry_points.select(group=group)
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
            raise _unknown(request, error) from error.__cause__
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
    """Load a candidate's factory and call it, with the selectors that it is to decorate.

    Raises:
        UnknownSelectorError: There is no such factory, or it takes another number of selectors.
        TypeError: It is no factory, or made something that is no selector.
        _RefusedError: Anything went wrong in it.
    """
    if candidate.obstacle is not None:
        raise _RefusedError(candidate.obstacle)
    factory = _guarded(candidate.load)
    if not callable(factory):
        raise TypeError(f"{candidate.name} is no factory but {factory!r}")
    if candidate.inner:
        _check_number(candidate, factory, len(candidate.inner))
    inner: list[Selector] = []
    try:
        for other in candidate.inner:
            inner.append(_construct(other))
        product = _guarded(factory, *inner)
        if missing := _missing(product, _SELECTOR_METHODS):
            raise TypeError(f"{candidate.name} made {product!r}, which is no selector: it has no {', '.join(missing)}")
    except BaseException:
        for selector in inner:
            selector.close()
        raise
    return cast(Selector, product)


def _guarded(function: Callable[..., object], *args: object) -> object:
    """Call what is somebody else's."""
    try:
        return function(*args)
    except UnknownSelectorError:
        raise
    except Exception as error:
        raise _RefusedError(_reason(error)) from error


def _check_number(decorator: _Candidate, factory: object, number: int) -> None:
    """See that a decorator takes so many selectors.

    Raises:
        ChoiceError: It does not.
    """
    least, most = _arity(factory)
    if number < least or (most is not None and number > most):
        wanted = f"{least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
        plural = "" if wanted.endswith("1") else "s"
        name = decorator.name.partition("(")[0]
        place = decorator.place
        raise ChoiceError(f"{name} takes {wanted} selector{plural}, not {number}", cast(Place, place))


def _arity(factory: object) -> tuple[int, int | None]:
    """How many positional arguments something takes, at least and at most; None is any number."""
    from inspect import Parameter, signature

    try:
        parameters = signature(cast(Callable[..., object], factory)).parameters.values()
    except (TypeError, ValueError):
        return 1, None  # not a function of Python's: calling it will tell
    named = [one for one in parameters if one.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    any_number = any(one.kind is Parameter.VAR_POSITIONAL for one in parameters)
    return sum(one.default is Parameter.empty for one in named), None if any_number else len(named)


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


def _probe_decorator(candidate: _Candidate) -> SelectorDecoratorInfo:
    facts = ""
    takes = None
    reason = candidate.obstacle
    if reason is None:
        try:
            factory = candidate.load()
        except Exception as error:
            reason = _reason(error)
        else:
            facts = _facts(factory)
            if callable(factory):
                takes = max(1, _arity(factory)[0])
            else:
                reason = f"it is no factory but {factory!r}"
    return SelectorDecoratorInfo(candidate.name, takes, candidate.source, reason is None, reason, facts)


def _load(path: str) -> object:
    module, _, attribute = path.partition(":")
    return operator.attrgetter(attribute)(importlib.import_module(module))


def _find(path: str, place: Place) -> object:
    """As :func:`_load`, for a path that somebody typed.

    Raises:
        ChoiceError: The path is malformed, or there is no such module or attribute. An error *in* the module, also an
            import of its own that fails, comes out as it is.
    """
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise ChoiceError(f"{path!r} is not of the form package.module:factory", place, "selectors")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ChoiceError(f"there is no module {error.name!r}", place, "selectors") from error
    try:
        return operator.attrgetter(attribute)(module)
    except AttributeError as error:
        hint = _did_you_mean(attribute, vars(module))
        raise ChoiceError(f"module {module_name!r} has no {attribute!r}{hint}", place, "selectors") from error


# ------------------------------------------------------------------------------------------------------------- in words


def _unknown(request: _Request, error: UnknownSelectorError) -> UnknownSelectorError:
    """The error of a request: who has asked, what is wrong, what there is instead, and where it was written."""
    about, place = (error.about, str(error.place)) if isinstance(error, ChoiceError) else ("selectors", "")
    instead = ""
    if about == "selectors":
        instead = f"; {_usable_here(request)}"
    elif about == "decorators":
        instead = f"; decorators: {', '.join(other.name for other in _decorators() if other.obstacle is None)}"
    return UnknownSelectorError(f"{request.asked_by}: {error}{instead}{place}")


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


def call_in_words(function: str, choice: SelectorChoice | None) -> str:
    """The call of a function whose argument ``selector`` is a choice, as an error message begins with it."""
    return f"{function}()" if choice is None else f"{function}(selector={_dotted_name(choice)})"


def display_name(selector: Selector) -> str:
    """What to call a selector when speaking to people: its ``name``, else that of its class."""
    name = getattr(selector, "name", None)
    return name if isinstance(name, str) and name else _dotted_name(type(selector))


def _dotted_name(thing: object) -> str:
    """``package.module:Class`` where the thing has such a name, else its repr."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    return f"{module}:{name}" if module and name else repr(thing)
