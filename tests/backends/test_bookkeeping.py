"""What a registration answers beyond the protocol: as the standard library's do, and in which words.

What the protocol asks of it is in the conformance kit, which test_conformance.py runs on each backend.
"""

import errno
import gc
import math
import os
import selectors
import weakref
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

import pytest

from tests.backends.conftest import MakePair, Pair, posix, ready_fds


class Box:
    """A file object that is not a socket, and whose descriptor can be taken away."""

    def __init__(self, fd: Any) -> None:
        self.fd = fd

    def fileno(self) -> Any:
        return self.fd


def test_every_argument_can_be_named_as_in_the_standard_library(selector: Any, pair: Pair) -> None:
    selector.register(fileobj=pair[0], events=EVENT_READ, data=1)
    selector.modify(fileobj=pair[0], events=EVENT_WRITE, data=2)
    assert [key.data for key, _ in selector.select(timeout=0)] == [2]
    assert selector.unregister(fileobj=pair[0]).data == 2


@pytest.mark.parametrize("events", [0, 4, -1])
@pytest.mark.stdlib_differs("the standard library's modify does not check the mask")
def test_a_bad_mask_leaves_a_registration_as_it_is(selector: Any, pair: Pair, events: int) -> None:
    key = selector.register(pair[0], EVENT_READ)
    with pytest.raises(ValueError, match="events"):
        selector.modify(pair[0], events)
    assert selector.get_key(pair[0]) == key


@pytest.mark.parametrize("events", [1.0, 2.0, 3.0, "r", [EVENT_READ], b"\x01"], ids=repr)
@pytest.mark.stdlib_differs("the standard library's modify takes 1.0 for EVENT_READ, and select forgets an fd by 3.0")
def test_a_mask_that_is_no_integer_is_a_type_error_and_changes_nothing(
    selector: Any, make_pair: MakePair, events: Any
) -> None:
    (ours, peer), (other, _) = make_pair(), make_pair()
    key = selector.register(ours, EVENT_READ, "data")
    peer.send(b"x")
    for call in (selector.modify, selector.register):
        with pytest.raises(TypeError):
            call(ours, events)
    with pytest.raises(TypeError):
        selector.register(other, events)
    assert dict(selector.get_map()) == {key.fd: key}
    assert selector.select(0) == [(key, EVENT_READ)]
    selector.register(other, EVENT_READ)


def test_true_is_the_integer_that_it_is(selector: Any, pair: Pair) -> None:
    pair[1].send(b"x")
    key = selector.register(pair[0], True)
    assert key.events == EVENT_READ
    assert selector.select(0) == [(key, EVENT_READ)]
    selector.modify(pair[0], EVENT_WRITE)
    assert selector.modify(pair[0], True) == key
    assert selector.select(0) == [(key, EVENT_READ)]


@pytest.mark.parametrize("fd", [2**31, 2**32, 2**63, 2**64, 10**40])
@pytest.mark.parametrize("wrap", [int, lambda fd: Box(fd)], ids=["number", "object"])
@pytest.mark.stdlib_differs("an OverflowError, of select in the wait")
def test_a_number_that_no_descriptor_can_have_is_a_value_error(selector: Any, pair: Pair, fd: int, wrap: Any) -> None:
    selector.register(pair[0], EVENT_WRITE)
    with pytest.raises(ValueError, match=f"there is no file descriptor {fd} .*2147483647"):
        selector.register(wrap(fd), EVENT_READ)
    for call in (selector.unregister, selector.get_key, lambda unknown: selector.modify(unknown, EVENT_READ)):
        with pytest.raises(KeyError, match="not registered"):
            call(wrap(fd))
    assert wrap(fd) not in selector.get_map()
    assert ready_fds(selector.select(0)) == {pair[0].fileno(): EVENT_WRITE}


@pytest.mark.stdlib_differs("an OverflowError")
def test_an_object_with_an_infinite_number_is_a_value_error(selector: Any) -> None:
    with pytest.raises(ValueError, match="not a file descriptor"):
        selector.register(Box(math.inf), EVENT_READ)


def test_the_mask_is_checked_before_the_descriptor_and_that_before_the_presence(selector: Any, pair: Pair) -> None:
    selector.register(pair[0], EVENT_READ)
    with pytest.raises(ValueError, match=r"(?i)events"):
        selector.register(-1, 0)
    with pytest.raises(ValueError, match=r"(?i)events"):
        selector.register(pair[0], 0)


@pytest.mark.stdlib_differs("the standard library looks for a descriptor first, and says ValueError")
@pytest.mark.parametrize("fileobj", [-1, "text", Box(-1)])
def test_the_unknown_without_a_descriptor_is_a_key_error(selector: Any, fileobj: Any) -> None:
    for call in (selector.unregister, selector.get_key, lambda known: selector.modify(known, EVENT_READ)):
        with pytest.raises(KeyError, match="not registered"):
            call(fileobj)
    assert selector.get_map().get(fileobj) is None
    assert fileobj not in selector.get_map()


@pytest.mark.stdlib_differs("the words are flowno's")
def test_a_refusal_says_what_is_wrong(selector: Any, pair: Pair) -> None:
    selector.register(pair[0], EVENT_READ)
    for call, error, words in (
        (lambda: selector.register(pair[1], 4), ValueError, "events must be EVENT_READ, EVENT_WRITE or both, not 4"),
        (lambda: selector.modify(pair[0], 0), ValueError, "events must be EVENT_READ, EVENT_WRITE or both, not 0"),
        (lambda: selector.register(-1, EVENT_READ), ValueError, "file descriptor -1 of -1 is negative; was it closed?"),
        (lambda: selector.register("text", EVENT_READ), ValueError, "not a file descriptor and without one: 'text'"),
        (lambda: selector.register(pair[0], EVENT_READ), KeyError, "is already registered"),
        (lambda: selector.unregister(pair[1]), KeyError, "is not registered"),
        (lambda: selector.select(math.nan), ValueError, "NaN"),
    ):
        with pytest.raises(error) as raised:  # type: ignore[var-annotated]
            call()
        assert words in str(raised.value)
    assert list(selector.get_map()) == [pair[0].fileno()]


def test_a_closed_object_has_its_key_still(selector: Any, pair: Pair) -> None:
    box = Box(pair[0].fileno())
    key = selector.register(box, EVENT_READ)
    box.fd = -1
    assert selector.get_key(box) == key


@pytest.mark.stdlib_differs("a closed selector of the standard library says ValueError, or waits for ever")
def test_a_closed_selector_refuses_to_work(selector: Any, pair: Pair) -> None:
    selector.close()
    with pytest.raises(RuntimeError, match="closed"):
        selector.select()
    with pytest.raises(RuntimeError, match="closed"):
        selector.register(pair[0], EVENT_READ)
    assert not selector.get_map()
    assert repr(selector) == f"<{type(selector).__name__} closed>"


@posix
@pytest.mark.stdlib_differs("select of the standard library learns about a closed descriptor in the wait")
def test_a_closed_descriptor_is_refused_with_the_error_of_the_system(selector: Any, pair: Pair) -> None:
    fd = os.dup(pair[0].fileno())
    os.close(fd)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as raised:
        selector.register(fd, EVENT_READ)
    assert raised.value.errno == errno.EBADF
    assert not selector.get_map()


@pytest.mark.stdlib_differs("rules of flowno's own")
class TestDescription:
    def test_it_says_what_it_is_and_how_much_it_holds(self, selector: Any, pair: Pair) -> None:
        selector.register(pair[0], EVENT_READ)
        assert repr(selector) == f"<{type(selector).__name__} 1 registered>"

    def test_it_is_a_selector_of_the_standard_library(self, selector: Any) -> None:
        assert isinstance(selector, selectors.BaseSelector)

    def test_it_names_its_system_call(self, case: Any, selector: Any) -> None:
        assert selector.name == case.call
        assert selector.facts

    def test_it_claims_what_its_system_call_can_do(self, case: Any, selector: Any) -> None:
        assert (
            selector.capabilities
            == {
                "epoll": {"any_fd", "scales"},
                "kqueue": {"any_fd", "scales", "submillisecond"},
                "poll": {"any_fd", "files", "fork_safe", "sees_closed"},
                "select": {"fork_safe", "sees_closed"} | ({"files", "submillisecond"} if os.name == "posix" else set()),
            }[case.call]
        )

    def test_it_has_a_number_where_the_kernel_object_has_one(self, case: Any, selector: Any) -> None:
        assert hasattr(selector, "fileno") == (case.call in {"epoll", "kqueue"})
        if hasattr(selector, "fileno"):
            assert not os.get_inheritable(selector.fileno())

    def test_attributes_can_be_set_as_on_the_standard_library_s(self, selector: Any) -> None:
        selector.register = "something else"
        assert selector.register == "something else"

    def test_a_dropped_selector_is_gone_at_once_and_closes_in_silence(self, case: Any, pair: Pair) -> None:
        gc.disable()
        try:
            selector: Any = case.make()
            selector.register(pair[0], EVENT_WRITE)
            selector.select(0)
            gone = weakref.ref(selector)
            del selector
            assert gone() is None
        finally:
            gc.enable()
