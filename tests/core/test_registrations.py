"""What is registered with a selector, as it is kept around one that cannot tell: by fd, and by identity."""

import os
import selectors
import socket
import tempfile
from collections.abc import Iterator
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any

import pytest

from flowno.core.event_loop.registrations import Registrations, descriptor_of
from flowno.debug.selector_decorators import FaultySelector
from flowno.testing import faults
from flowno_backends import SelectSelector


class Bookkeeper:
    """A selector without a system call, so that it holds every number; it fails with ``error`` where there is one."""

    def __init__(self) -> None:
        self.keys: dict[int, SelectorKey] = {}
        self.error: BaseException | None = None

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        fd = descriptor_of(fileobj)
        assert fd is not None
        self.keys[fd] = key = SelectorKey(fileobj, fd, events, data)
        self._fail()
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        old = self._find(fileobj)
        if events not in (EVENT_READ, EVENT_WRITE, EVENT_READ | EVENT_WRITE):
            raise ValueError(events)
        if isinstance(self.error, Exception):
            del self.keys[old.fd]
        self._fail()
        self.keys[old.fd] = key = SelectorKey(old.fileobj, old.fd, events, data)
        return key

    def unregister(self, fileobj: Any) -> SelectorKey:
        key = self._find(fileobj)
        self._fail()
        return self.keys.pop(key.fd)

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        return []

    def close(self) -> None:
        self.keys.clear()

    def _find(self, fileobj: Any) -> SelectorKey:
        for key in self.keys.values():
            if fileobj in (key.fd, key.fileobj):
                return key
        raise KeyError(fileobj)

    def _fail(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error


@pytest.fixture
def selector() -> Bookkeeper:
    return Bookkeeper()


@pytest.fixture
def registered(selector: Bookkeeper) -> Registrations:
    return Registrations(selector)


@pytest.fixture
def one() -> Iterator[socket.socket]:
    one, other = socket.socketpair()
    with one, other:
        yield one


def test_what_is_registered_is_found_by_its_number_and_by_its_object(
    registered: Registrations, one: socket.socket
) -> None:
    key = registered.register(one, EVENT_READ, "data")
    assert registered[one] is registered[one.fileno()] is key
    assert (list(registered), len(registered), registered.get(one.fileno() + 1)) == ([one.fileno()], 1, None)
    changed = registered.modify(one.fileno(), EVENT_WRITE, "other")
    assert registered[one] is changed
    assert registered.unregister(one) == changed
    assert dict(registered) == {}


def test_what_was_closed_is_found_by_its_object(registered: Registrations) -> None:
    one, other = socket.socketpair()
    with other, tempfile.TemporaryFile() as file:
        keys = [registered.register(fileobj, EVENT_READ) for fileobj in (one, file)]
        one.close()
        file.close()
        assert [registered[one], registered[file]] == keys
        assert registered.modify(one, EVENT_WRITE) is registered[one]
        registered.unregister(one)
        registered.unregister(file)
    assert dict(registered) == {}


def test_the_file_object_of_another_with_its_number_is_not_taken_for_it(registered: Registrations) -> None:
    one, other = socket.socketpair()
    with other:
        registered.register(one, EVENT_READ)
        one.close()
        with pytest.raises(KeyError):
            registered[other]


def test_number_0_is_a_number(registered: Registrations, selector: Bookkeeper) -> None:
    registered.register(0, EVENT_READ)
    registered.register(7, EVENT_READ)
    selector.error = OSError("no")
    with pytest.raises(OSError, match="no"):
        registered.modify(0, EVENT_WRITE)
    assert list(registered) == [7]


def test_after_a_modify_that_fails_the_descriptor_is_not_registered(
    registered: Registrations, selector: Bookkeeper
) -> None:
    one, other = socket.socketpair()
    with other:
        registered.register(one, EVENT_READ)
        one.close()
        selector.error = OSError("no")
        with pytest.raises(OSError, match="no"):
            registered.modify(one, EVENT_WRITE)
    assert dict(registered) == {} == selector.keys


def test_a_modify_to_no_mask_changes_nothing(registered: Registrations, one: socket.socket) -> None:
    key = registered.register(one, EVENT_READ)
    with pytest.raises(ValueError, match="0"):
        registered.modify(one, 0)
    assert registered[one] is key


@pytest.mark.parametrize("mask", [1.0, 1.5, "r"])
def test_a_modify_to_what_is_no_integer_changes_nothing(one: socket.socket, mask: Any) -> None:
    with SelectSelector() as selector:
        registered = Registrations(selector)
        key = registered.register(one, EVENT_READ)
        with pytest.raises(TypeError):
            registered.modify(one, mask)
        assert registered[one] is selector.get_key(one) is key


def test_what_a_register_that_fails_has_asked_for_is_not_registered(
    registered: Registrations, selector: Bookkeeper, one: socket.socket
) -> None:
    selector.error = OSError("no")
    with pytest.raises(OSError, match="no"):
        registered.register(one, EVENT_READ)
    assert dict(registered) == {}


def test_what_the_selector_does_not_know_is_not_registered(
    registered: Registrations, selector: Bookkeeper, one: socket.socket
) -> None:
    registered.register(one, EVENT_READ)
    selector.keys.clear()
    with pytest.raises(KeyError):
        registered.unregister(one)
    assert dict(registered) == {}


@pytest.mark.parametrize("call", ["register", "modify", "unregister"])
def test_a_call_that_is_interrupted_leaves_nothing_registered(
    registered: Registrations, selector: Bookkeeper, one: socket.socket, call: str
) -> None:
    arguments: tuple[Any, ...] = (one, EVENT_READ)
    if call != "register":
        registered.register(*arguments)
    if call == "unregister":
        arguments = (one,)
    selector.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        getattr(registered, call)(*arguments)
    assert dict(registered) == {} == selector.keys


def test_a_second_register_that_is_interrupted_leaves_the_first(
    registered: Registrations, selector: Bookkeeper, one: socket.socket
) -> None:
    key = registered.register(one, EVENT_READ)
    selector.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        registered.register(one, EVENT_READ)
    assert registered[one] is key


@pytest.mark.parametrize("is_closed", [False, True], ids=["number-0", "closed"])
def test_no_false_alarm_is_for_what_a_failed_modify_has_dropped(selector: Bookkeeper, is_closed: bool) -> None:
    one, other = socket.socketpair()
    fileobj = one if is_closed else 0
    with one, other, FaultySelector(selector, faults=faults(7, spurious=1)) as faulty:
        key = faulty.register(fileobj, EVENT_READ)
        assert faulty.select(0) == [(key, EVENT_READ)]
        if is_closed:
            one.close()
        selector.error = OSError("no")
        with pytest.raises(OSError, match="no"):
            faulty.modify(fileobj, EVENT_WRITE)
        assert faulty.select(0) == []


@pytest.mark.skipif(os.name == "nt", reason="select takes nothing but sockets on Windows")
def test_the_selectors_of_the_standard_library_are_followed_through_a_modify_that_fails() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    with selectors.DefaultSelector() as selector, os.fdopen(reading, "rb") as file:
        registered = Registrations(selector)
        registered.register(file, EVENT_READ)
        file.close()
        with pytest.raises((OSError, ValueError)):
            registered.modify(file, EVENT_READ | EVENT_WRITE)
        assert dict(registered) == {}
