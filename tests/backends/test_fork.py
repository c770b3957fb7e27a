"""A forked child that says nothing to its selector: the first use finds out, whichever it is.

What holds where it calls ``after_fork()`` first is in the conformance kit, which test_conformance.py runs.
"""

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

import pytest

from flowno.testing.conformance.bench import drain
from tests.backends.conftest import Pair, SelectorFactory, ready_fds

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.stdlib_differs("a child of the standard library's epoll changes the parent's registrations"),
]


def in_child(body: Callable[[], None]) -> None:
    """Run ``body`` in a forked child, and fail here if it fails there."""
    with warnings.catch_warnings():
        # Python 3.12 warns of threads, which xdist's workers have; the child neither takes a lock nor returns.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the child failed: see stderr"


def test_close_as_the_first_use_leaves_the_parent_s_selector(selector: Any, pair: Pair) -> None:
    ours, peer = pair
    selector.register(ours, EVENT_READ)
    in_child(selector.close)
    peer.send(b"x")
    assert ready_fds(selector.select(0)) == {ours.fileno(): EVENT_READ}


def test_a_bound_method_from_before_the_fork_works(selector: Any, pair: Pair) -> None:
    selector.register(pair[0], EVENT_WRITE)
    select = selector.select
    assert len(select(0)) == 1

    def body() -> None:
        assert len(select(0)) == 1

    in_child(body)


@pytest.mark.parametrize("first", ["register", "modify", "unregister", "select", "after_fork"])
def test_any_first_use_re_opens(selector: Any, make_pair: Any, first: str) -> None:
    (ours, peer), (other, _) = make_pair(), make_pair()
    selector.register(ours, EVENT_WRITE)
    expected = {ours.fileno(): EVENT_WRITE}

    def body() -> None:
        nonlocal expected
        if first == "register":
            selector.register(other, EVENT_WRITE)
            expected |= {other.fileno(): EVENT_WRITE}
        elif first == "modify":
            peer.send(b"x")
            selector.modify(ours, EVENT_READ)
            expected = {ours.fileno(): EVENT_READ}
        elif first == "unregister":
            selector.unregister(ours)
            expected = {}
        elif first == "select":
            assert ready_fds(selector.select(0)) == expected
        else:
            selector.after_fork()
        for _ in range(2):
            assert ready_fds(selector.select(0)) == expected
        assert "forked" not in repr(selector)

    in_child(body)
    drain(ours)
    assert ready_fds(selector.select(0)) == {ours.fileno(): EVENT_WRITE}


def test_after_fork_keeps_the_parent_s_kernel_object_and_opens_the_child_s_once(selector: Any, pair: Pair) -> None:
    selector.register(pair[0], EVENT_WRITE)
    kernel = selector._kernel
    selector.after_fork()
    selector.after_fork()
    assert selector._kernel is kernel

    def body() -> None:
        selector.after_fork()
        kernel = selector._kernel
        selector.after_fork()
        assert selector._kernel is kernel
        assert len(selector.select(0)) == 1

    in_child(body)


@pytest.mark.only("epoll", "kqueue")
def test_the_child_does_not_keep_the_parent_s_kernel_object(make_selector: SelectorFactory) -> None:
    selector = make_selector()
    fd = selector.fileno()

    def body() -> None:
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.fstat(fd)
        assert repr(selector).endswith("0 registered, forked>")
        assert os.fstat(selector.fileno())

    in_child(body)
    assert selector.fileno() == fd


@pytest.mark.only("epoll", "kqueue")
def test_where_no_new_object_can_be_had_the_next_use_tries_again(
    selector: Any, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    selector.register(pair[0], EVENT_WRITE)
    really = selector._open

    def body() -> None:
        def refuse() -> None:
            raise OSError(24, "too many")

        selector._open = refuse
        with pytest.raises(OSError, match="too many"):
            selector.select(0)
        selector._open = really
        assert len(selector.select(0)) == 1

    in_child(body)
