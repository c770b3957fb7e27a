"""Two backends, asked the same at the same time, agree with each other and with a model of what they watch.

Hypothesis makes up programs: descriptors of every kind are opened, written, read, filled, drained, half-closed, reset,
closed, duplicated, their numbers given to other files; registrations come, change and go, under the object and under
the number, before and after a close. Both backends get the same calls. The model of ``tests/support/socket_model.py``,
which asks the kernel nothing, says what each of them must answer.

What a backend may say of its own accord stands in one place, :class:`Side`, and is derived from its ``capabilities``:

* one that ``sees_closed`` goes by the number: it reports a closed one as ready, and one that was given to another file
  as that file is;
* one that does not has the kernel remember the open file. What it says of a registration whose number was closed in the
  meantime is left open until the registration is changed or made anew; changing it fails where the number is closed;
* one without ``files`` may refuse regular files.

``-m long`` runs 10,000 programs for each pair. A failure prints the program and a ``@reproduce_failure`` line.
"""

import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, count
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any, ClassVar, Final, TypeAlias

import pytest

if sys.platform == "win32":
    pytest.skip("there is one backend on Windows, and no other to agree with", allow_module_level=True)

import hypothesis.configuration
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from flowno_backends import BackendSelector, EpollSelector, PollSelector, SelectSelector
from tests.backends.conftest import BACKENDS, CLASSES, STDLIB, chosen, ready_fds
from tests.support.broken_selectors import (
    IsEdgeTriggered,
    LooksForNumbers,
    ReportsGhosts,
    ReportsOneDirection,
)
from tests.support.limits import is_open
from tests.support.socket_model import Binding, OpenFile, Readiness, RegularFile
from tests.support.socket_world import Descriptor, World

# Many steps on a busy machine; and Hypothesis makes a program that fails smaller before it tells.
pytestmark = pytest.mark.timeout(600)

BOTH: Final = EVENT_READ | EVENT_WRITE
MASKS: Final = (EVENT_READ, EVENT_WRITE, BOTH)

#: Programs in the default run, all pairs together, and for each pair with ``-m long``.
PROGRAMS: Final = 200
LONG: Final = 10_000

#: Seconds for what TCP does in its own time. It is a thousandth of one, but for a machine that does many other things.
#: Once a program has failed, the shorter ones that Hypothesis tries after it do not need as much.
PATIENCE: Final = 20.0
PATIENCE_AFTER_A_FAILURE: Final = 0.5

#: More descriptors make a program no better.
MOST_DESCRIPTORS: Final = 10

#: The kernel that decides what the model leaves to it answers poll, select and epoll from one table; kqueue of macOS
#: and the BSDs has tables of its own.
IS_ONE_TABLE: Final = sys.platform == "linux"

Outcome: TypeAlias = type[Exception] | None


@dataclass(eq=False)
class Registration:
    """What a selector was told of an fd; ``binding`` is what the number stood for when the kernel was last told."""

    fileobj: int | Descriptor
    events: int
    data: int
    binding: Binding | None


class Side:
    """One of the two backends, and what it must answer."""

    def __init__(self, name: str, selector: Any, capabilities: frozenset[str], world: World) -> None:
        self.name = name
        self.selector = selector
        self.registrations: dict[int, Registration] = {}
        self._goes_by_number = "sees_closed" in capabilities
        self._takes_files = "files" in capabilities
        self._bindings = world.bindings

    # --- the calls

    def register(self, fileobj: int | Descriptor, events: int, data: int) -> None:
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        expected: set[Outcome] = {None}
        if events not in MASKS or fd < 0:
            expected = {ValueError}
        elif fd in self.registrations:
            expected = {KeyError}
        elif fd not in self._bindings:
            expected = _closed(fd)
        elif isinstance(self._bindings[fd].file, RegularFile) and not self._takes_files:
            expected = {None, OSError}
        if self._call("register", (fileobj, events, data), expected) is None:
            self.registrations[fd] = Registration(fileobj, events, data, self._bindings.get(fd))

    def modify(self, fileobj: int | Descriptor, events: int, data: int) -> None:
        fd = self._find(fileobj)
        expected: set[Outcome] = {None}
        is_change = fd is not None and events != self.registrations[fd].events
        if events not in MASKS:
            expected = {ValueError}
        elif fd is None:
            expected = {KeyError}
        elif is_change and not self._goes_by_number:
            if fd not in self._bindings:
                expected = _closed(fd)
            elif isinstance(self._bindings[fd].file, RegularFile):
                expected = {None, OSError}
        outcome = self._call("modify", (fileobj, events, data), expected)
        if fd is not None and outcome is None:
            registration = self.registrations[fd]
            registration.events, registration.data = events, data
            if is_change:
                registration.binding = self._bindings.get(fd)
        elif fd is not None and outcome is OSError:
            del self.registrations[fd]

    def unregister(self, fileobj: int | Descriptor) -> None:
        fd = self._find(fileobj)
        self._call("unregister", (fileobj,), {KeyError} if fd is None else {None})
        if fd is not None:
            del self.registrations[fd]

    def _find(self, fileobj: int | Descriptor) -> int | None:
        """By number, and an object that has lost its number by identity."""
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        if fd in self.registrations:
            return fd
        return next((fd for fd, known in self.registrations.items() if known.fileobj is fileobj), None)

    def _call(self, method: str, arguments: tuple[Any, ...], expected: set[Outcome]) -> Outcome:
        outcome: Outcome = None
        try:
            getattr(self.selector, method)(*arguments)
        except (KeyError, ValueError, OSError) as error:
            outcome = next(kind for kind in (KeyError, ValueError, OSError) if isinstance(error, kind))
        call = f"{self.name}: {method}{arguments}"
        assert outcome in expected, f"{call} raised {_names({outcome})}, and not {_names(expected)}"
        return outcome

    def holds(self, descriptor: Descriptor) -> bool:
        return any(known.fileobj is descriptor for known in self.registrations.values())

    # --- the answers

    def check_map(self) -> None:
        """What ``get_map`` shows is what the calls have left."""
        shown = {fd: (key.events, key.data) for fd, key in self.selector.get_map().items()}
        expected = {fd: (known.events, known.data) for fd, known in self.registrations.items()}
        assert shown == expected, f"{self.name} holds {shown}, and should hold {expected}"

    def ready(self) -> dict[int, int]:
        try:
            return ready_fds(self.selector.select(0))
        except Exception as error:
            raise AssertionError(f"{self.name}: select has failed: {error!r}") from error

    def expectations(self) -> Iterator[tuple[int, int, Readiness, OpenFile | None]]:
        """The fd and event of all that is registered, what must be said of it, and the file that it is about."""
        for fd, known in self.registrations.items():
            binding = self._bindings.get(fd)
            file = None if binding is None else binding.file
            for event in (EVENT_READ, EVENT_WRITE):
                if known.events & event:
                    yield fd, event, self._expected(fd, event, known), file

    def _expected(self, fd: int, event: int, known: Registration) -> Readiness:
        binding = self._bindings.get(fd)
        if binding is None:
            return Readiness.YES if self._goes_by_number and not is_open(fd) else Readiness.ANY
        if not self._goes_by_number and known.binding is not binding:
            return Readiness.ANY
        if isinstance(binding.file, RegularFile) and not self._takes_files:
            return Readiness.ANY
        return binding.file.readable() if event == EVENT_READ else binding.file.writable()


def _closed(fd: int) -> set[Outcome]:
    """What comes of a call with a closed number, which a kernel object of a selector may have been given since."""
    return {None, OSError} if is_open(fd) else {OSError}


def _names(outcomes: set[Outcome]) -> str:
    return " or ".join("nothing" if outcome is None else outcome.__name__ for outcome in outcomes)


def _name(event: int) -> str:
    return "reading" if event == EVENT_READ else "writing"


Backend: TypeAlias = tuple[str, Callable[[], Any], frozenset[str]]

which: Final = st.integers(0, 3 * MOST_DESCRIPTORS - 1)
sizes: Final = st.sampled_from([1, 10, 100, 5000])
masks: Final = st.sampled_from([*MASKS * 4, 0, 4])


class Agreement(RuleBasedStateMachine):
    """The programs. Subclasses say which two backends they are tried on."""

    backends: ClassVar[tuple[Backend, Backend]]
    #: Programs that unregister before they close, and ask for nothing that is refused.
    is_careful: ClassVar[bool] = False
    patience: ClassVar[float]

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.sides = [Side(name, make(), capabilities, self.world) for name, make, capabilities in self.backends]
        self._data = count()

    def teardown(self) -> None:
        try:
            self.look()
        finally:
            for side in self.sides:
                side.selector.close()
            self.world.close_all()

    def _descriptor(self, index: int) -> Descriptor:
        return self.world.descriptors[index % len(self.world.descriptors)]

    def _registered(self, index: int) -> Descriptor:
        """One that is registered more likely than another."""
        known = [
            each for each in self.world.descriptors if any(each.number in side.registrations for side in self.sides)
        ]
        candidates = known * 2 + self.world.descriptors
        return candidates[index % len(candidates)]

    # --- descriptors

    @initialize()
    def begin(self) -> None:
        self.world.socketpair()

    @rule(kind=st.sampled_from(["socketpair", "pipe", "listener", "unconnected", "regular_file"]), events=masks)
    def open(self, kind: str, events: int) -> None:
        known = len(self.world.descriptors)
        if known < MOST_DESCRIPTORS:
            getattr(self.world, kind)()
            self._register_all(known, events)

    @rule(events=masks)
    def open_tcp(self, events: int) -> None:
        known = len(self.world.descriptors)
        if known < MOST_DESCRIPTORS:
            self.world.listener()
            self.world.unconnected()
            self._register_all(known, events)
            listener, socket_ = self.world.descriptors[known : known + 2]
            self.world.connect(socket_, listener)
            self.world.accept(listener)

    def _register_all(self, known: int, events: int) -> None:
        for descriptor in self.world.descriptors[known:]:
            if events in MASKS:
                self._register(descriptor, events)

    @rule(index=which)
    def dup(self, index: int) -> None:
        self._dup(self._descriptor(index))

    def _dup(self, descriptor: Descriptor) -> None:
        if len(self.world.descriptors) < MOST_DESCRIPTORS:
            self.world.dup(descriptor)

    @rule(index=which, other=which)
    def reuse_number(self, index: int, other: int) -> None:
        self._reuse_number(self._descriptor(index), self._descriptor(other))

    def _reuse_number(self, source: Descriptor, target: Descriptor) -> None:
        self._before_close(target)
        self.world.dup2(source, target)

    @rule(index=which, other=which, events=masks, by_number=st.booleans())
    def exchange(self, index: int, other: int, events: int, by_number: bool) -> None:
        """Give a number to another file, register that, and keep the first one open under a number of its own."""
        descriptor, source = self._descriptor(index), self._descriptor(other)
        self._dup(descriptor)
        self._reuse_number(source, descriptor)
        self._unregister(descriptor, by_number)
        self._register(descriptor, events, by_number)

    @rule(index=which, is_unregistered=st.booleans(), by_number=st.booleans())
    def close(self, index: int, is_unregistered: bool, by_number: bool) -> None:
        descriptor = self._registered(index)
        self._before_close(descriptor)
        self.world.close(descriptor)
        if is_unregistered:
            self._unregister(descriptor, by_number)
        self._forget_closed()

    @rule(index=which)
    def reset(self, index: int) -> None:
        self._before_close(self._descriptor(index))
        self.world.reset(self._descriptor(index))

    def _before_close(self, descriptor: Descriptor) -> None:
        if self.is_careful:
            for side in self.sides:
                if descriptor.number in side.registrations:  # the number may be another descriptor's by now
                    side.unregister(descriptor.number)

    def _forget_closed(self) -> None:
        """Keep a few closed descriptors, for calls with them; those that are registered always."""
        closed = [descriptor for descriptor in self.world.descriptors if descriptor.is_closed]
        for descriptor in closed[:-2]:
            if not any(side.holds(descriptor) for side in self.sides):
                self.world.descriptors.remove(descriptor)

    # --- what goes through them

    @rule(index=which, size=sizes)
    def write(self, index: int, size: int) -> None:
        self.world.write(self._descriptor(index), size)

    @rule(index=which)
    def fill(self, index: int) -> None:
        self.world.fill(self._descriptor(index))

    @rule(index=which, size=sizes)
    def read(self, index: int, size: int) -> None:
        self.world.read(self._descriptor(index), size)

    @rule(index=which)
    def drain(self, index: int) -> None:
        self.world.drain(self._descriptor(index))

    @rule(index=which, how=st.sampled_from([socket.SHUT_WR, socket.SHUT_RD, socket.SHUT_RDWR]))
    def shutdown(self, index: int, how: int) -> None:
        self.world.shutdown(self._descriptor(index), how)

    @rule(index=which, other=which)
    def connect(self, index: int, other: int) -> None:
        self.world.connect(self._descriptor(index), self._descriptor(other))

    @rule(index=which)
    def accept(self, index: int) -> None:
        if len(self.world.descriptors) < MOST_DESCRIPTORS:
            self.world.accept(self._descriptor(index))

    # --- registrations

    @rule(index=which, events=masks, by_number=st.booleans())
    def register(self, index: int, events: int, by_number: bool) -> None:
        self._register(self._descriptor(index), events, by_number)

    def _register(self, descriptor: Descriptor, events: int, by_number: bool = False) -> None:
        if not self._is_refused(descriptor, events):
            data = next(self._data)
            for side in self.sides:
                side.register(descriptor.number if by_number else descriptor, events, data)

    @rule(index=which, events=masks, by_number=st.booleans(), looks=st.booleans())
    def modify(self, index: int, events: int, by_number: bool, looks: bool) -> None:
        descriptor, data = self._registered(index), next(self._data)
        if not self._is_refused(descriptor, events):
            for side in self.sides:
                side.modify(descriptor.number if by_number else descriptor, events, data)
        if looks:
            self.look()

    @rule(index=which, by_number=st.booleans())
    def unregister(self, index: int, by_number: bool) -> None:
        self._unregister(self._registered(index), by_number)

    def _unregister(self, descriptor: Descriptor, by_number: bool) -> None:
        if not self._is_refused(descriptor, BOTH):
            for side in self.sides:
                side.unregister(descriptor.number if by_number else descriptor)

    def _is_refused(self, descriptor: Descriptor, events: int) -> bool:
        return self.is_careful and (descriptor.is_closed or events not in MASKS)

    # --- answers

    @rule()
    def look(self) -> None:
        """Both say what is ready, and nothing else, and say the same."""
        deadline = time.monotonic() + self.patience
        while wrong := self._differences():
            if time.monotonic() > deadline or not all(file is not None and file.is_asynchronous for file, _ in wrong):
                type(self).patience = PATIENCE_AFTER_A_FAILURE
                raise AssertionError("\n".join(message for _, message in wrong))
            time.sleep(0.001)

    def _differences(self) -> list[tuple[OpenFile | None, str]]:
        wrong: list[tuple[OpenFile | None, str]] = []
        left_open: list[dict[tuple[int, int], tuple[OpenFile | None, bool]]] = []
        for side in self.sides:
            side.check_map()
            seen = side.ready()
            left_open.append({})
            for fd, event, expected, file in side.expectations():
                is_ready = bool(seen.get(fd, 0) & event)
                if expected is (Readiness.NO if is_ready else Readiness.YES):
                    answer = "ready" if is_ready else "not ready"
                    wrong.append((file, f"{side.name}: fd {fd}, {file}, is {answer} for {_name(event)}"))
                elif expected is Readiness.KERNEL:
                    left_open[-1][fd, event] = file, is_ready
        one, other = left_open
        for fd, event in one.keys() & other.keys() if IS_ONE_TABLE else ():
            file, is_ready = one[fd, event]
            if is_ready != other[fd, event][1]:
                names = [side.name for side in self.sides]
                ready = names if is_ready else names[::-1]
                wrong.append((file, f"fd {fd}, {file}, is ready for {_name(event)} by {ready[0]}, not by {ready[1]}"))
        return wrong

    @rule()
    def wait(self) -> None:
        """A wait ends when something is ready, and not before its time when nothing is."""
        for side in self.sides:
            expected = {readiness for _, _, readiness, _ in side.expectations()}
            if Readiness.YES in expected:
                assert side.selector.select(self.patience), f"{side.name}: a wait has returned nothing"
            elif expected <= {Readiness.NO}:
                # A backend may be woken by what it was not rid of yet, and is rid of it then.
                assert any(_lasts(side, 0.002) for _ in range(3)), f"{side.name}: a wait has ended early"


def _lasts(side: Side, seconds: float) -> bool:
    started = time.monotonic()
    reported = side.selector.select(seconds)
    assert reported == [], f"{side.name}: nothing is ready, and it reports {reported}"
    return time.monotonic() - started >= seconds * 0.99


# ------------------------------------------------------------------------------------------------------------ the pairs


def _all_backends() -> dict[str, Backend]:
    ours = {call: (call, make, CLASSES[call].capabilities) for call, make in BACKENDS.items()}
    theirs = {f"stdlib-{call}": (f"stdlib-{call}", make, CLASSES[call].capabilities) for call, make in STDLIB.items()}
    return ours | theirs


def _pairs() -> list[tuple[str, str]]:
    """Each of ours with each other and with the standard library's, of those that ``FLOWNO_SELECTOR`` leaves one of."""
    pairs = [*combinations(BACKENDS, 2), *((call, f"stdlib-{call}") for call in STDLIB)]
    return [pair for pair in pairs if not chosen().isdisjoint(pair)]


PAIRS: Final = _pairs()


def try_programs(
    number: int, one: Backend, other: Backend, phases: tuple[Phase, ...] = tuple(Phase), patience: float = PATIENCE
) -> None:
    class Programs(Agreement):
        backends = (one, other)
        is_careful = any(name.startswith("stdlib") for name, _, _ in backends)

    Programs.patience = patience
    with tempfile.TemporaryDirectory() as home:  # nothing is left in the tree, and no two processes share it
        hypothesis.configuration.set_hypothesis_home_dir(home)
        run_state_machine_as_test(
            Programs,
            settings=settings(
                max_examples=number,
                stateful_step_count=40,
                phases=phases,
                database=None,
                deadline=None,
                derandomize=False,
                print_blob=True,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )


@pytest.mark.parametrize("pair", PAIRS, ids="-and-".join)
def test_two_backends_agree_with_each_other_and_with_the_model(pair: tuple[str, str]) -> None:
    backends = _all_backends()
    try_programs(-(-PROGRAMS // len(PAIRS)), backends[pair[0]], backends[pair[1]])


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("pair", PAIRS, ids="-and-".join)
def test_two_backends_agree_on_thousands_of_programs(pair: tuple[str, str]) -> None:
    backends = _all_backends()
    try_programs(LONG, backends[pair[0]], backends[pair[1]])


# ------------------------------------------------------------------------------------------ that it finds what is wrong


class LosesWriting(PollSelector):
    """Forgets to ask for writing where a modify asks for both."""

    def _change(self, fd: int, old: int, new: int) -> None:
        super()._change(fd, old, EVENT_READ if old and new == BOTH else new)


class KeepsOldData(SelectSelector):
    """Says that a modify was done, and does it in part."""

    def modify(self, fileobj: Any, events: int, data: Any = None) -> Any:
        return super().modify(fileobj, events, None)


class RaisesForTheClosed(SelectSelector):
    """Lets one closed descriptor fail the wait of all, as select(2) does."""

    def _test_each(self) -> Any:
        raise OSError("a closed descriptor")


class BelievesTheKernel(EpollSelector):
    """Takes an entry that has outlived the close of its number for what the number stands for now."""

    def _without_strays(self, reports: list[Any]) -> list[Any]:
        self._ready.doubtful.clear()
        return [self._ready[report] for report in reports if report[0] in self._keys]


BROKEN: Final[tuple[type[BackendSelector], ...]] = (
    LosesWriting,
    KeepsOldData,
    RaisesForTheClosed,
    BelievesTheKernel,
    IsEdgeTriggered,
    LooksForNumbers,
    ReportsGhosts,
    ReportsOneDirection,
)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_backend_is_found(broken: type[BackendSelector]) -> None:
    if broken.name not in BACKENDS:
        pytest.skip(f"needs select.{broken.name}")
    under_test = broken.__name__, broken, broken.capabilities
    with pytest.raises(AssertionError, match=broken.__name__):
        try_programs(3000, under_test, _all_backends()["select"], (Phase.generate,), patience=0.1)
