"""A forked child: what it does to its selector is its own affair, and the parent's goes on as before.

As a loop does it, a child calls ``after_fork()`` first, where there is one.
"""

from selectors import EVENT_READ, EVENT_WRITE

from .bench import Bench
from .case import Group

FORKING = Group("forking")
case = FORKING.case


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

    bench.in_child(child)


@case("fork", "fork")
def unregister_in_a_child_leaves_the_parents_registration(bench: Bench) -> None:
    ours, peer = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    bench.in_child(lambda: bench.selector.unregister(ours))
    peer.send(b"x")
    bench.require_reported({ours.fileno(): EVENT_READ})


@case("fork", "fork")
def modify_in_a_child_leaves_the_parents_interest(bench: Bench) -> None:
    ours, peer = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    bench.in_child(lambda: bench.selector.modify(ours, EVENT_WRITE))
    bench.require_reported({})
    peer.send(b"x")
    bench.require_reported({ours.fileno(): EVENT_READ})


@case("fork", "fork")
def register_in_a_child_registers_nothing_in_the_parent(bench: Bench) -> None:
    ours, other = bench.pair()
    bench.selector.register(other, EVENT_READ)
    bench.in_child(lambda: bench.selector.register(ours, EVENT_WRITE))
    bench.require_reported({})
    bench.require_wait(0.002)
    bench.require_unknown(ours.fileno())


@case("fork", "fork")
def close_in_a_child_leaves_the_parents_selector(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_WRITE)
    bench.in_child(bench.selector.close)
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

    bench.in_child(child, in_parent)


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

    bench.in_child(child)


@case("fork", "fork", "after_fork")
def after_fork_can_be_repeated_and_does_nothing_in_the_parent(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_WRITE)
    bench.selector.after_fork()
    bench.require_reported({ours.fileno(): EVENT_WRITE})

    def child() -> None:
        bench.selector.after_fork()
        bench.require_reported({ours.fileno(): EVENT_WRITE})

    bench.in_child(child)


@case("fork", "fork")
def a_grandchild_is_as_free_as_a_child(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_WRITE)

    def child() -> None:
        bench.in_child(lambda: bench.selector.unregister(ours))
        bench.require_reported({ours.fileno(): EVENT_WRITE})
        bench.in_child(bench.selector.close)
        bench.require_reported({ours.fileno(): EVENT_WRITE})

    bench.in_child(child)
    bench.require_reported({ours.fileno(): EVENT_WRITE})
