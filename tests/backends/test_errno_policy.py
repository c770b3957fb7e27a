"""What each backend makes of an errno, with a ``select`` module that answers as the table says."""

import errno
import os
import select
import socket
import sys
from collections.abc import Callable, Iterator
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

import pytest

from flowno_backends import EpollSelector, KqueueSelector, PollSelector, SelectSelector
from tests.backends.conftest import CLASSES, Pair, ready_fds

BOTH = EVENT_READ | EVENT_WRITE
POLLIN, POLLOUT = 1, 4


class Answers:
    """Raises the errnos that it was told, a call of a name at a time, and notes every call."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.errors: dict[str, list[int]] = {}
        self.ready: list[Any] = []

    def note(self, name: str, *args: Any) -> None:
        self.calls.append((name, *args))
        if number := self.errors.get(name, [0]).pop(0) if self.errors.get(name) else 0:
            raise OSError(number, os.strerror(number))

    def taken(self) -> list[Any]:
        calls, self.calls = self.calls, []
        return calls


class EpollModule(Answers):
    EPOLLIN, EPOLLOUT = POLLIN, POLLOUT

    def epoll(self) -> "EpollModule":
        self.note("open")
        return self

    def register(self, fd: int, mask: int) -> None:
        self.note("add", fd, mask)

    def modify(self, fd: int, mask: int) -> None:
        self.note("mod", fd, mask)

    def unregister(self, fd: int) -> None:
        self.note("del", fd)

    def poll(self, *wait: Any) -> Any:
        """Of the epoll object a wait; of the module, which is called without arguments, poll(2)."""
        return self.ready if wait else select.poll()

    def close(self) -> None:
        self.note("close")

    def fileno(self) -> int:
        return 3


@pytest.fixture
def epoll() -> Iterator[tuple[EpollSelector, EpollModule]]:
    module = EpollModule()
    selector = EpollSelector(select_module=module)
    module.taken()
    yield selector, module
    selector.close()


@pytest.mark.only("epoll")
@pytest.mark.usefixtures("case")
@pytest.mark.stdlib_differs("a policy of flowno's own")
class TestEpoll:
    def test_add_that_finds_an_entry_changes_it(self, epoll: Any) -> None:
        selector, module = epoll
        module.errors = {"add": [errno.EEXIST]}
        selector.register(5, BOTH)
        assert module.taken() == [("add", 5, 5), ("mod", 5, 5)]

    @pytest.mark.parametrize("number", [errno.EPERM, errno.EBADF, errno.ENOSPC, errno.ENOMEM])
    def test_add_raises_what_the_kernel_says_and_leaves_no_trace(self, epoll: Any, number: int) -> None:
        selector, module = epoll
        module.errors = {"add": [number]}
        with pytest.raises(OSError, match=os.strerror(number)):
            selector.register(5, EVENT_READ)
        assert not selector.get_map()
        selector.register(5, EVENT_READ)
        assert module.taken() == [("add", 5, 1), ("add", 5, 1)]

    def test_a_change_that_finds_no_entry_adds_one(self, epoll: Any) -> None:
        selector, module = epoll
        selector.register(5, EVENT_READ)
        module.errors = {"mod": [errno.ENOENT]}
        selector.modify(5, EVENT_WRITE)
        assert module.taken()[1:] == [("mod", 5, 4), ("add", 5, 4)]

    @pytest.mark.parametrize("number", [errno.EPERM, errno.EBADF, errno.ENOMEM])
    def test_a_change_that_fails_leaves_it_unregistered(self, epoll: Any, number: int) -> None:
        selector, module = epoll
        selector.register(5, EVENT_READ)
        module.errors = {"mod": [number]}
        with pytest.raises(OSError, match=os.strerror(number)):
            selector.modify(5, EVENT_WRITE)
        assert not selector.get_map()
        assert module.taken()[-1] == ("del", 5)

    @pytest.mark.parametrize("number", [errno.ENOENT, errno.EBADF, errno.EPERM, errno.EINVAL, errno.ENOMEM])
    def test_removing_never_fails(self, epoll: Any, number: int) -> None:
        selector, module = epoll
        key = selector.register(5, EVENT_READ)
        module.errors = {"del": [number]}
        assert selector.unregister(5) == key
        assert not selector.get_map()

    def test_a_stray_that_can_be_removed_is_removed(self, epoll: Any) -> None:
        selector, module = epoll
        selector.register(5, EVENT_READ)
        module.ready = [(9, POLLIN), (5, POLLIN)]
        module.taken()
        assert ready_fds(selector.select(0)) == {5: EVENT_READ}
        assert module.taken() == [("del", 9)]

    def test_a_stray_that_cannot_be_removed_costs_the_epoll_object(self, epoll: Any) -> None:
        selector, module = epoll
        selector.register(5, EVENT_READ)
        selector.register(6, EVENT_WRITE)
        module.taken()
        module.ready = [(9, POLLIN), (5, POLLIN)]
        module.errors = {"del": [errno.EBADF]}
        assert ready_fds(selector.select(0)) == {5: EVENT_READ}
        assert module.taken() == [("del", 9), ("open",), ("add", 5, 1), ("add", 6, 4), ("close",)]

    def test_without_a_descriptor_for_a_new_object_the_old_one_serves_on(self, epoll: Any) -> None:
        selector, module = epoll
        selector.register(5, EVENT_READ)
        module.ready = [(9, POLLIN), (5, POLLIN)]
        module.errors = {"del": [errno.EBADF], "open": [errno.EMFILE]}
        assert ready_fds(selector.select(0)) == {5: EVENT_READ}
        module.ready = [(5, POLLIN)]
        assert ready_fds(selector.select(0)) == {5: EVENT_READ}

    def test_a_failed_rebuild_keeps_the_old_object(self, epoll: Any) -> None:
        selector, module = epoll
        selector.register(5, EVENT_READ)
        before = selector._kernel
        module.taken()
        module.ready = [(9, POLLIN)]
        module.errors = {"del": [errno.EBADF], "add": [errno.ENOSPC]}
        assert selector.select(0) == []
        assert module.taken() == [("del", 9), ("open",), ("add", 5, 1), ("close",)]
        assert selector._kernel is before

    @pytest.mark.skipif(not hasattr(select, "poll"), reason="asks poll(2) about a number")
    @pytest.mark.parametrize("failing", ["open", "add"])
    def test_after_a_failed_rebuild_a_stray_is_still_known_for_one(self, epoll: Any, pair: Pair, failing: str) -> None:
        selector, module = epoll
        fd = pair[0].fileno()
        selector.register(fd, EVENT_READ)
        module.errors = {"del": [errno.ENOENT]}
        selector.unregister(fd)
        selector.register(fd, EVENT_READ)
        module.ready = [(fd, POLLIN)]
        for _ in range(2):
            module.errors = {failing: [errno.ENOMEM]}
            assert selector.select(0) == []
        module.taken()
        assert selector.select(0) == []
        assert module.taken() == [("open",), ("add", fd, 1), ("close",)]
        assert ready_fds(selector.select(0)) == {fd: EVENT_READ}

    @pytest.mark.skipif(not hasattr(select, "poll"), reason="asks poll(2) about a number")
    def test_a_number_in_doubt_is_reported_as_what_it_stands_for(self, epoll: Any, pair: Pair) -> None:
        """A stray is ready for both, and the new file for writing, which nobody asks for at first."""
        selector, module = epoll
        fd = pair[0].fileno()
        selector.register(fd, EVENT_READ)
        module.errors = {"del": [errno.ENOENT]}
        selector.unregister(fd)
        selector.register(fd, EVENT_READ)
        module.ready = [(fd, POLLIN | POLLOUT)]
        module.errors = {"open": [errno.EMFILE]}  # the stray stays
        assert selector.select(0) == []
        selector.modify(fd, BOTH)
        assert ready_fds(selector.select(0)) == {fd: EVENT_WRITE}

    def test_a_closed_number_that_is_given_to_the_new_object_does_not_fail_the_rebuild(self, epoll: Any) -> None:
        selector, module = epoll
        for fd in (module.fileno(), 5):
            selector.register(fd, EVENT_READ)
        module.taken()
        module.ready = [(9, POLLIN)]
        module.errors = {"del": [errno.EBADF], "add": [errno.EINVAL]}
        assert selector.select(0) == []
        assert module.taken() == [("del", 9), ("open",), ("add", 3, 1), ("add", 5, 1), ("close",)]

    @pytest.mark.parametrize("mask", [0x8, 0x10, 0x18, 0x2000, 0x1 | 0x18])  # ERR, HUP, both, RDHUP
    @pytest.mark.parametrize("events", [EVENT_READ, EVENT_WRITE, BOTH])
    def test_an_error_or_hang_up_is_the_registered_interest(self, epoll: Any, mask: int, events: int) -> None:
        selector, module = epoll
        selector.register(5, events)
        module.ready = [(5, mask)]
        assert ready_fds(selector.select(0)) == {5: events}


class KqueueModule(Answers):
    KQ_FILTER_READ, KQ_FILTER_WRITE = -1, -2
    KQ_EV_ADD, KQ_EV_DELETE = "add", "delete"

    class kevent:
        def __init__(self, ident: int, filter: int, flags: str, fflags: int = 0, data: int = 0, udata: int = 0) -> None:
            self.ident, self.filter, self.flags, self.udata = ident, filter, flags, udata

    def kqueue(self) -> "KqueueModule":
        return self

    def control(self, changes: Any, room: int, timeout: float | None) -> list[Any]:
        if changes is None:
            self.calls.append(("wait", timeout))
            return self.ready
        named = [(change.flags, "RW"[change.filter == -2], change.ident) for change in changes]
        self.calls.append(named)
        for flags, letter, _ in named:
            if number := self.errors.get(flags + letter):
                raise OSError(number[0], os.strerror(number[0]))
        return []

    def close(self) -> None:
        pass


@pytest.fixture
def kqueue() -> Iterator[tuple[KqueueSelector, KqueueModule]]:
    module = KqueueModule()
    selector = KqueueSelector(select_module=module)
    yield selector, module
    selector.close()


@pytest.fixture
def fd() -> Iterator[int]:
    with socket.socket() as sock:
        yield sock.fileno()


@pytest.mark.only("kqueue")
@pytest.mark.usefixtures("case")
@pytest.mark.stdlib_differs("a policy of flowno's own")
class TestKqueue:
    def test_both_filters_go_in_one_call(self, kqueue: Any, fd: int) -> None:
        selector, module = kqueue
        selector.register(fd, BOTH)
        assert module.taken() == [[("add", "R", fd), ("add", "W", fd)]]
        selector.unregister(fd)
        assert module.taken() == [[("delete", "R", fd), ("delete", "W", fd)]]

    def test_a_change_adds_and_removes_in_one_call(self, kqueue: Any, fd: int) -> None:
        selector, module = kqueue
        selector.register(fd, EVENT_READ)
        module.taken()
        selector.modify(fd, EVENT_WRITE)
        assert module.taken() == [[("delete", "R", fd), ("add", "W", fd)]]

    @pytest.mark.parametrize("failing", ["addR", "addW"])
    @pytest.mark.parametrize("number", [errno.ENOMEM, errno.EINVAL])
    def test_where_one_filter_fails_the_other_is_undone(self, kqueue: Any, fd: int, failing: str, number: int) -> None:
        selector, module = kqueue
        module.errors = {failing: [number]}
        with pytest.raises(OSError, match=os.strerror(number)):
            selector.register(fd, BOTH)
        assert module.taken()[-1] == [("delete", "R", fd), ("delete", "W", fd)]
        assert not selector.get_map()

    def test_a_change_that_fails_leaves_it_unregistered(self, kqueue: Any, fd: int) -> None:
        selector, module = kqueue
        selector.register(fd, EVENT_READ)
        module.errors = {"addW": [errno.ENOMEM]}
        with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
            selector.modify(fd, BOTH)
        assert module.taken()[-1] == [("delete", "R", fd), ("delete", "W", fd)]
        assert not selector.get_map()

    @pytest.mark.parametrize("number", [errno.EPIPE, errno.EBADF])
    def test_a_pipe_without_reader_is_ready(self, kqueue: Any, fd: int, number: int) -> None:
        # EPIPE on FreeBSD and macOS, EBADF though the descriptor is open on NetBSD.
        selector, module = kqueue
        module.errors = {"addW": [number]}
        selector.register(fd, BOTH)
        module.taken()
        assert ready_fds(selector.select(None)) == {fd: EVENT_WRITE}
        assert module.taken() == [("wait", 0)]
        selector.modify(fd, EVENT_READ)
        assert selector.select(7) == []
        assert module.taken()[-1] == ("wait", 7)

    def test_a_closed_descriptor_is_not(self, kqueue: Any) -> None:
        selector, module = kqueue
        with socket.socket() as sock:
            fd = sock.fileno()
        module.errors = {"addW": [errno.EBADF]}
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            selector.register(fd, EVENT_WRITE)
        assert selector.select(7) == []
        assert module.taken()[-1] == ("wait", 7)

    @pytest.mark.parametrize("number", [errno.ENOENT, errno.EBADF, errno.ENOMEM])
    def test_removing_never_fails_and_tries_each_filter(self, kqueue: Any, fd: int, number: int) -> None:
        selector, module = kqueue
        key = selector.register(fd, BOTH)
        module.taken()
        module.errors = {"deleteR": [number]}
        assert selector.unregister(fd) == key
        assert module.taken()[-2:] == [[("delete", "R", fd)], [("delete", "W", fd)]]

    def test_an_event_of_nobody_s_is_removed(self, kqueue: Any, fd: int) -> None:
        selector, module = kqueue
        selector.register(fd, EVENT_READ)
        module.ready = [module.kevent(99, -2, "add", udata=99 << 1 | 1), module.kevent(fd, -1, "add", udata=fd << 1)]
        module.taken()
        assert ready_fds(selector.select(0)) == {fd: EVENT_READ}
        assert module.taken() == [("wait", 0), [("delete", "W", 99)]]


class SelectModule:
    """``select`` on a machine where some descriptors are bad."""

    def __init__(self, *bad: int, number: int = errno.EBADF) -> None:
        self.bad = set(bad)
        self.number = number
        self.ready: tuple[list[int], list[int], list[int]] = ([], [], [])
        self.calls: list[Any] = []

    def select(self, *sets_and_timeout: Any) -> Any:
        *sets, timeout = sets_and_timeout
        self.calls.append((*map(sorted, sets), timeout))
        if self.bad & {fd for one in sets for fd in one}:
            raise OSError(self.number, "bad")
        return [[fd for fd in known if fd in asked] for known, asked in zip(self.ready, sets, strict=True)]


@pytest.mark.only("select")
@pytest.mark.usefixtures("case")
@pytest.mark.stdlib_differs("a policy of flowno's own")
class TestSelect:
    @pytest.mark.parametrize("number", [errno.EBADF, 10038])
    def test_one_bad_among_many_is_reported_and_the_rest_is_served(self, number: int) -> None:
        module = SelectModule(number=number)
        selector = SelectSelector(select_module=module)
        for fd in range(5, 10):
            selector.register(fd, BOTH if fd == 7 else EVENT_READ)
        module.bad, module.ready = {7}, ([5, 9], [], [])
        assert ready_fds(selector.select(None)) == {5: EVENT_READ, 9: EVENT_READ, 7: BOTH}

    def test_another_error_is_raised(self) -> None:
        module = SelectModule(number=errno.ENOMEM)
        selector = SelectSelector(select_module=module)
        selector.register(5, EVENT_READ)
        module.bad = {5}
        with pytest.raises(OSError, match="bad"):
            selector.select(0)

    def test_the_lists_are_made_once_for_one_set_of_registrations(self) -> None:
        lists: list[Any] = []

        class Noting(SelectModule):
            def select(self, *sets_and_timeout: Any) -> Any:
                lists.append(sets_and_timeout[:2])
                return super().select(*sets_and_timeout)

        selector = SelectSelector(select_module=Noting())
        selector.register(5, BOTH)
        lists.clear()
        for _ in range(2):
            selector.select(0)
        selector.modify(5, EVENT_READ)
        selector.select(0)
        assert lists[0][0] is lists[1][0]
        assert lists == [([5], [5]), ([5], [5]), ([5], [])]


class WindowsSelect(SelectSelector):
    _on_windows = True


@pytest.mark.only("select")
@pytest.mark.usefixtures("case")
@pytest.mark.stdlib_differs("a policy of flowno's own")
class TestSelectOnWindows:
    def test_a_refused_connect_is_writable_once(self) -> None:
        module = SelectModule()
        selector = WindowsSelect(select_module=module)
        selector.register(5, EVENT_WRITE)
        selector.register(6, BOTH)
        selector.register(7, EVENT_READ)
        module.calls.clear()
        module.ready = ([], [6], [5, 6])
        assert ready_fds(selector.select(1)) == {5: EVENT_WRITE, 6: EVENT_WRITE}
        assert module.calls == [([6, 7], [5, 6], [5, 6], 1)]

    def test_the_513th_is_refused_by_count(self) -> None:
        selector = WindowsSelect(select_module=SelectModule())
        for fd in range(10_000, 10_512):
            selector.register(fd, EVENT_READ)
        with pytest.raises(ValueError, match="512"):
            selector.register(10_512, EVENT_READ)
        selector.unregister(10_000)
        selector.register(10_512, EVENT_READ)

    def test_three_empty_sets_are_never_asked(self) -> None:
        module = SelectModule()
        selector = WindowsSelect(select_module=module)
        assert selector.select(0.001) == []
        assert module.calls == []


@pytest.mark.only("poll")
def test_poll_reports_what_the_kernel_calls_invalid(selector: Any, pair: Pair) -> None:
    fd = pair[0].fileno()
    selector.register(fd, EVENT_READ)
    pair[0].close()
    assert ready_fds(selector.select(None)) == {fd: EVENT_READ}


def test_a_missing_system_call_is_an_os_error_that_says_so(backend_class: Any) -> None:
    with pytest.raises(OSError) as raised:  # noqa: PT011 - its parts are looked at below
        backend_class(select_module=object())
    assert raised.value.errno == errno.ENOSYS
    assert raised.value.strerror == f"select.{backend_class.name} does not exist on {sys.platform}"


def test_every_backend_can_be_imported_where_the_platform_has_none(run_python: Callable[..., Any]) -> None:
    program = """
import sys, types
bare = types.ModuleType("select")
bare.error = OSError
bare.select = lambda *sets: None
sys.modules["select"] = bare
import flowno_backends
for name in "EpollSelector", "KqueueSelector", "PollSelector":
    try:
        getattr(flowno_backends, name)()
    except OSError as error:
        print(error.strerror)
print(flowno_backends.SelectSelector())
"""
    answer = run_python(program).stdout.splitlines()
    assert answer == [
        *(f"select.{call} does not exist on {sys.platform}" for call in ("epoll", "kqueue", "poll")),
        "<SelectSelector 0 registered>",
    ]


def test_the_four_have_the_same_members(backend_class: Any) -> None:
    common = {"_open", "_decoder", "_change", "select", "_close", "name", "capabilities", "facts"}
    assert common <= vars(backend_class).keys()
    assert PollSelector.__mro__[1] is backend_class.__mro__[1]
    assert set(CLASSES) == {"epoll", "kqueue", "poll", "select"}
