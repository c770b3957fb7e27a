"""A forked child: what it does to its selector is its own affair, and the parent's goes on as before.

As a loop does it, a child calls ``after_fork()`` first, where there is one.
"""

import json
import os
import signal
import traceback
import warnings
from collections.abc import Callable
from selectors import EVENT_READ, EVENT_WRITE

from ...core.event_loop.selector_rules import ProtocolViolation
from .bench import Bench
from .case import Group

FORKING = Group("forking")
case = FORKING.case


def _nothing() -> None:
    """What the parent does where it has nothing to do."""


def _require_in_child(bench: Bench, body: Callable[[], object], meanwhile: Callable[[], object] = _nothing) -> None:
    """Run something in a forked child, where the selector is told of it first, and require that it goes well.

    ``meanwhile`` is run here after the fork.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of other threads. The child takes no lock of theirs, and does not return.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        code = 1
        try:
            os.close(reader)
            if hasattr(bench.selector, "after_fork"):
                bench.selector.after_fork()
            body()
            code = 0
        except BaseException as error:
            seen = str(error) if isinstance(error, ProtocolViolation) else repr(error)
            where = "".join([*traceback.format_tb(error.__traceback__), *getattr(error, "__notes__", ())])
            with open(writer, "w", encoding="ascii", closefd=False) as say:
                json.dump([seen[:4096], where], say)
        finally:
            os._exit(code)
    os.close(writer)
    try:
        meanwhile()
        with open(reader, encoding="ascii", closefd=False) as said:
            answer = said.read()
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(reader)
        _, status = os.waitpid(child, 0)
    if status:
        seen, where = json.loads(answer) if answer else (f"it ended with status {status}", "")
        bench.broken(f"in a forked child: {seen}", note=f"In the child:\n{where}")


@case("fork", "fork")
def a_child_has_the_same_registrations(bench: Bench) -> None:
    ours, peer = bench.pair()
    bench.selector.register(ours, EVENT_READ, "ours")
    bench.selector.register(peer, EVENT_WRITE, "peer")

    def child() -> None:
        bench.require_reported_data("peer")
        peer.send(b"x")
        bench.require_reported({ours.fileno(): EVENT_READ, peer.fileno(): EVENT_WRITE})
        bench.require_equal(bench.selector.unregister(ours).data, "ours", "the data of what was unregistered")

    _require_in_child(bench, child)


@case("fork", "fork")
def unregister_in_a_child_leaves_the_registration_of_the_parent(bench: Bench) -> None:
    ours, peer = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    _require_in_child(bench, lambda: bench.selector.unregister(ours))
    peer.send(b"x")
    bench.require_reported({ours.fileno(): EVENT_READ})


@case("fork", "fork")
def modify_in_a_child_leaves_the_interest_of_the_parent(bench: Bench) -> None:
    ours, peer = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    _require_in_child(bench, lambda: bench.selector.modify(ours, EVENT_WRITE))
    bench.require_reported({})
    peer.send(b"x")
    bench.require_reported({ours.fileno(): EVENT_READ})


@case("fork", "fork")
def register_in_a_child_registers_nothing_in_the_parent(bench: Bench) -> None:
    ours, other = bench.pair()
    bench.selector.register(other, EVENT_READ)
    _require_in_child(bench, lambda: bench.selector.register(ours, EVENT_WRITE))
    bench.require_reported({})
    bench.require_wait(0.002)
    bench.require_unknown(ours.fileno())


@case("fork", "fork")
def close_in_a_child_leaves_the_selector_of_the_parent(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_WRITE)
    _require_in_child(bench, bench.selector.close)
    bench.require_reported({ours.fileno(): EVENT_WRITE})


@case("fork", "fork")
def what_the_parent_does_after_the_fork_is_nothing_to_the_child(bench: Bench) -> None:
    ours, peer = bench.pair()
    go_on, gone_on = bench.pair()
    gone_on.setblocking(True)
    bench.selector.register(ours, EVENT_WRITE)

    def child() -> None:
        gone_on.recv(1)
        bench.require_reported({ours.fileno(): EVENT_WRITE})

    def in_parent() -> None:
        bench.selector.unregister(ours)
        bench.selector.register(peer, EVENT_WRITE)
        go_on.send(b"x")

    _require_in_child(bench, child, in_parent)


@case("fork", "fork")
def a_descriptor_that_a_child_has_closed_harms_no_other(bench: Bench) -> None:
    (bad, _), (good, _) = bench.pair(), bench.pair()
    number = bad.fileno()
    bench.selector.register(number, EVENT_READ)
    bench.selector.register(good, EVENT_WRITE)

    def child() -> None:
        bad.close()
        found = bench.ready()
        bench.require_equal(found.get(good.fileno()), EVENT_WRITE, "what was reported for the other descriptor")
        bench.selector.unregister(number)
        bench.require_reported({good.fileno(): EVENT_WRITE})

    _require_in_child(bench, child)


@case("fork", "fork", "after_fork")
def after_fork_can_be_repeated_and_does_nothing_in_the_parent(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_WRITE)
    bench.selector.after_fork()
    bench.require_reported({ours.fileno(): EVENT_WRITE})

    def child() -> None:
        bench.selector.after_fork()
        bench.require_reported({ours.fileno(): EVENT_WRITE})

    _require_in_child(bench, child)


@case("fork", "fork")
def a_grandchild_is_as_free_as_a_child(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_WRITE)

    def child() -> None:
        _require_in_child(bench, lambda: bench.selector.unregister(ours))
        bench.require_reported({ours.fileno(): EVENT_WRITE})
        _require_in_child(bench, bench.selector.close)
        bench.require_reported({ours.fileno(): EVENT_WRITE})

    _require_in_child(bench, child)
    bench.require_reported({ours.fileno(): EVENT_WRITE})
