"""Who is registered: the same answers from every backend, before any system call is asked."""

import errno
import gc
import os
import selectors
import weakref
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any

import pytest

from tests.backends.conftest import MakePair, Pair, SelectorFactory, posix, ready_fds

BOTH = EVENT_READ | EVENT_WRITE


class Number(int):
    """A descriptor of a kind of its own."""


class Box:
    """A file object that is not a socket, and whose descriptor can be taken away."""

    def __init__(self, fd: Any) -> None:
        self.fd = fd

    def fileno(self) -> Any:
        return self.fd

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Box)

    def __hash__(self) -> int:
        return 0


def test_register_returns_the_key_with_all_its_fields(selector: Any, pair: Pair) -> None:
    key = selector.register(pair[0], BOTH, "data")
    assert isinstance(key, SelectorKey)
    assert (key.fileobj, key.fd, key.events, key.data) == (pair[0], pair[0].fileno(), BOTH, "data")
    assert key == SelectorKey(pair[0], pair[0].fileno(), BOTH, "data")


def test_every_argument_can_be_named_as_in_the_standard_library(selector: Any, pair: Pair) -> None:
    selector.register(fileobj=pair[0], events=EVENT_READ, data=1)
    selector.modify(fileobj=pair[0], events=EVENT_WRITE, data=2)
    assert [key.data for key, _ in selector.select(timeout=0)] == [2]
    assert selector.unregister(fileobj=pair[0]).data == 2


@pytest.mark.parametrize("events", [0, 4, 5, -1, 999_999])
def test_a_bad_mask_is_a_value_error_and_registers_nothing(selector: Any, pair: Pair, events: int) -> None:
    with pytest.raises(ValueError, match=r"(?i)events"):
        selector.register(pair[0], events)
    assert not selector.get_map()


@pytest.mark.parametrize("events", [0, 4, -1])
@pytest.mark.stdlib_differs("the standard library's modify does not check the mask")
def test_a_bad_mask_leaves_a_registration_as_it_is(selector: Any, pair: Pair, events: int) -> None:
    key = selector.register(pair[0], EVENT_READ)
    with pytest.raises(ValueError, match="events"):
        selector.modify(pair[0], events)
    assert selector.get_key(pair[0]) == key


@pytest.mark.parametrize("fileobj", [-1, -10, "text", None, Box(-1), Box("text"), Box(None)])
def test_what_is_no_descriptor_is_a_value_error(selector: Any, fileobj: Any) -> None:
    with pytest.raises(ValueError, match=r"(?i)file"):
        selector.register(fileobj, EVENT_READ)
    assert not selector.get_map()


def test_the_mask_is_checked_before_the_descriptor_and_that_before_the_presence(selector: Any, pair: Pair) -> None:
    selector.register(pair[0], EVENT_READ)
    with pytest.raises(ValueError, match=r"(?i)events"):
        selector.register(-1, 0)
    with pytest.raises(ValueError, match=r"(?i)events"):
        selector.register(pair[0], 0)


def test_the_same_object_twice_is_a_key_error(selector: Any, pair: Pair) -> None:
    key = selector.register(pair[0], EVENT_READ)
    with pytest.raises(KeyError, match="already registered"):
        selector.register(pair[0], EVENT_WRITE)
    assert selector.get_key(pair[0]) == key


def test_the_same_number_under_another_object_is_a_key_error(selector: Any, pair: Pair) -> None:
    selector.register(pair[0], EVENT_READ)
    for lookalike in (pair[0].fileno(), Box(pair[0].fileno())):
        with pytest.raises(KeyError, match="already registered"):
            selector.register(lookalike, EVENT_READ)
    assert len(selector.get_map()) == 1


def test_an_int_subclass_is_a_number(selector: Any, pair: Pair) -> None:
    number = Number(pair[0].fileno())
    selector.register(number, EVENT_WRITE)
    assert ready_fds(selector.select(0)) == {pair[0].fileno(): EVENT_WRITE}
    assert selector.unregister(pair[0].fileno()).fd == pair[0].fileno()


def test_number_and_object_find_the_same_registration(selector: Any, pair: Pair) -> None:
    key = selector.register(pair[0], EVENT_READ)
    assert selector.get_key(pair[0].fileno()) == key
    assert selector.modify(pair[0].fileno(), EVENT_WRITE).fd == pair[0].fileno()
    assert selector.unregister(Box(pair[0].fileno())).fd == pair[0].fileno()
    assert not selector.get_map()


@pytest.mark.parametrize("fileobj", [999_999, 0])
def test_the_unknown_is_a_key_error(selector: Any, fileobj: int) -> None:
    for call in (selector.unregister, selector.get_key, lambda known: selector.modify(known, EVENT_READ)):
        with pytest.raises(KeyError):
            call(fileobj)


@pytest.mark.stdlib_differs("the standard library looks for a descriptor first, and says ValueError")
@pytest.mark.parametrize("fileobj", [-1, "text", Box(-1)])
def test_the_unknown_without_a_descriptor_is_a_key_error(selector: Any, fileobj: Any) -> None:
    for call in (selector.unregister, selector.get_key, lambda known: selector.modify(known, EVENT_READ)):
        with pytest.raises(KeyError, match="not registered"):
            call(fileobj)
    assert selector.get_map().get(fileobj) is None
    assert fileobj not in selector.get_map()


def test_unregister_returns_the_key_and_forgets_it(selector: Any, pair: Pair) -> None:
    key = selector.register(pair[0], EVENT_READ, "data")
    assert selector.unregister(pair[0]) == key
    with pytest.raises(KeyError):
        selector.unregister(pair[0])
    assert selector.register(pair[0], EVENT_READ) is not None


def test_a_closed_object_is_found_by_identity(selector: Any, pair: Pair) -> None:
    # Equal and with the same hash, so that only identity tells one from the other.
    boxes = [Box(sock.fileno()) for sock in pair]
    keys = [selector.register(box, EVENT_READ) for box in boxes]
    for box in boxes:
        box.fd = -1
    assert selector.get_key(boxes[1]) == keys[1]
    assert selector.unregister(boxes[1]) == keys[1]
    assert selector.unregister(boxes[0]) == keys[0]


def test_the_map_is_live(selector: Any, pair: Pair) -> None:
    mapping = selector.get_map()
    assert (len(mapping), list(mapping)) == (0, [])
    key = selector.register(pair[0], EVENT_READ)
    assert pair[0] in mapping
    assert pair[0].fileno() in mapping
    assert pair[1] not in mapping
    assert (mapping[pair[0]], list(mapping), list(mapping.values())) == (key, [pair[0].fileno()], [key])
    selector.unregister(pair[0])
    assert mapping.get(pair[0]) is None


def test_the_map_is_read_only(selector: Any, pair: Pair) -> None:
    selector.register(pair[0], EVENT_READ)
    mapping: Any = selector.get_map()
    with pytest.raises(TypeError):
        del mapping[pair[0]]
    with pytest.raises(TypeError):
        mapping[pair[0]] = None


def test_after_close_the_selector_says_so_and_an_old_map_is_empty(selector: Any, pair: Pair) -> None:
    selector.register(pair[0], EVENT_READ)
    mapping = selector.get_map()
    selector.close()
    with pytest.raises(RuntimeError):
        selector.get_key(pair[0])
    assert mapping.get(pair[0]) is None
    with pytest.raises(KeyError):
        mapping[pair[0]]
    assert len(mapping) == 0


def test_close_can_be_repeated(selector: Any) -> None:
    selector.close()
    selector.close()


@pytest.mark.stdlib_differs("a closed selector of the standard library says ValueError, or waits for ever")
def test_a_closed_selector_refuses_to_work(selector: Any, pair: Pair) -> None:
    selector.close()
    with pytest.raises(RuntimeError, match="closed"):
        selector.select()
    with pytest.raises(RuntimeError, match="closed"):
        selector.register(pair[0], EVENT_READ)
    assert not selector.get_map()
    assert repr(selector) == f"<{type(selector).__name__} closed>"


def test_leaving_the_context_closes(make_selector: SelectorFactory, pair: Pair) -> None:
    with make_selector() as selector:
        selector.register(pair[0], EVENT_READ)
    with pytest.raises(RuntimeError):
        selector.get_key(pair[0])


def test_the_registered_file_stays_open_when_the_selector_is_closed(selector: Any, pair: Pair) -> None:
    selector.register(pair[0], EVENT_READ)
    selector.close()
    assert pair[1].send(b"x") == 1
    assert pair[0].recv(1) == b"x"


def test_new_data_is_reported_with_the_next_event(selector: Any, pair: Pair) -> None:
    selector.register(pair[0], EVENT_WRITE, "old")
    assert [key.data for key, _ in selector.select(0)] == ["old"]
    selector.modify(pair[0], EVENT_WRITE, "new")
    assert [key.data for key, _ in selector.select(0)] == ["new"]
    assert selector.get_key(pair[0]).data == "new"


def test_what_was_registered_before_is_not_reported_for_what_is_now(selector: Any, pair: Pair) -> None:
    selector.register(pair[1], EVENT_READ)
    for data in range(3):
        selector.register(pair[0], EVENT_WRITE, data)
        assert [key.data for key, _ in selector.select(0)] == [data]
        selector.unregister(pair[0])
    assert selector.select(0) == []


@posix
@pytest.mark.stdlib_differs("select of the standard library learns about a closed descriptor in the wait")
def test_a_closed_descriptor_cannot_be_registered_and_leaves_no_trace(selector: Any, make_pair: MakePair) -> None:
    sock, _ = make_pair()
    fd = os.dup(sock.fileno())
    os.close(fd)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as raised:
        selector.register(fd, EVENT_READ)
    assert raised.value.errno == errno.EBADF
    assert fd not in selector.get_map()
    os.dup2(sock.fileno(), fd)
    try:
        selector.register(fd, EVENT_WRITE)
        assert ready_fds(selector.select(0)) == {fd: EVENT_WRITE}
    finally:
        os.close(fd)


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
