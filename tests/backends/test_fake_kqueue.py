"""The fake kqueue keeps the rules of kqueue(2), quoted from FreeBSD's page, and CPython's checks of arguments.

Where the platform has a real one, the same tests run on that.
"""

import errno
import os
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flowno.testing.conformance.bench import Pipe, drain, fill
from tests.backends.conftest import CASES, MakePair, Pair

if not hasattr(select, "poll"):
    pytest.skip("the fake kqueue stands on poll, which this platform lacks", allow_module_level=True)
if not any(case.call == "kqueue" for case in CASES):
    pytest.skip("FLOWNO_SELECTOR asks for another backend", allow_module_level=True)

if hasattr(select, "kqueue"):
    module: Any = select
else:
    from tests.support.fake_kqueue import FakeKqueue

    module = FakeKqueue()

READ, WRITE = module.KQ_FILTER_READ, module.KQ_FILTER_WRITE
ADD, DELETE, EOF, ERROR = module.KQ_EV_ADD, module.KQ_EV_DELETE, module.KQ_EV_EOF, module.KQ_EV_ERROR


@pytest.fixture
def queue() -> Iterator[Any]:
    queue = module.kqueue()
    yield queue
    queue.close()


def change(fd: int, filter_: int = READ, flags: int = ADD, udata: int = 0) -> Any:
    return module.kevent(fd, filter_, flags, 0, 0, udata)


def seen(queue: Any, room: int = 10, timeout: float | None = 0) -> set[tuple[int, int]]:
    return {(event.ident, event.filter) for event in queue.control(None, room, timeout)}


def refusal(call: Callable[[], Any]) -> int | None:
    with pytest.raises(OSError) as raised:  # noqa: PT011 - the caller looks at the errno
        call()
    return raised.value.errno


class TestEvents:
    def test_there_is_one_for_each_filter(self, queue: Any, pair: Pair) -> None:
        """'A kevent is identified by the (ident, filter) pair; there may only be one unique kevent per kqueue.'"""
        fd = pair[0].fileno()
        queue.control([change(fd, READ), change(fd, WRITE)], 0, 0)
        assert seen(queue) == {(fd, WRITE)}
        pair[1].send(b"x")
        assert seen(queue) == {(fd, READ), (fd, WRITE)}
        drain(pair[0])
        fill(pair[0])
        assert seen(queue) == set()

    def test_adding_again_exchanges_udata_and_makes_no_duplicate(self, queue: Any, pair: Pair) -> None:
        """'Re-adding an existing event will modify the parameters of the original event, and not result in a
        duplicate entry.'"""
        fd = pair[0].fileno()
        queue.control([change(fd, WRITE, udata=1)], 0, 0)
        queue.control([change(fd, WRITE, udata=2)], 0, 0)
        assert [event.udata for event in queue.control(None, 10, 0)] == [2]

    def test_the_amount_of_data_is_told(self, queue: Any, pair: Pair) -> None:
        """'data contains the number of bytes of protocol data available to read.'"""
        queue.control([change(pair[0].fileno())], 0, 0)
        pair[1].send(b"12345")
        assert [event.data for event in queue.control(None, 1, 0)] == [5]

    def test_the_end_of_file_comes_with_data_left_and_stays(self, queue: Any, pair: Pair) -> None:
        """'It is possible for EOF to be returned (indicating the connection is gone) while there is still data pending
        in the socket buffer.'"""
        queue.control([change(pair[0].fileno())], 0, 0)
        pair[1].send(b"data")
        pair[1].close()
        [event] = queue.control(None, 1, 5)
        assert (event.flags & EOF, event.data) == (EOF, 4)
        drain(pair[0])
        [event] = queue.control(None, 1, 5)
        assert (event.flags & EOF, event.data) == (EOF, 0)

    def test_without_end_of_file_there_is_no_flag(self, queue: Any, pair: Pair) -> None:
        queue.control([change(pair[0].fileno(), WRITE)], 0, 0)
        [event] = queue.control(None, 1, 0)
        assert not event.flags & EOF

    def test_a_writer_learns_that_the_reader_is_gone(self, queue: Any, pipe: Pipe) -> None:
        """'The filter will set EV_EOF when the reader disconnects.'"""
        queue.control([change(pipe.writer, WRITE)], 0, 0)
        pipe.close_reader()
        [event] = queue.control(None, 1, 5)
        assert event.flags & EOF

    def test_a_listening_socket_is_readable(self, queue: Any) -> None:
        """'Sockets which have previously been passed to listen() return when there is an incoming connection
        pending.'"""
        with socket.create_server(("127.0.0.1", 0)) as server:
            queue.control([change(server.fileno())], 0, 0)
            assert seen(queue) == set()
            with socket.create_connection(server.getsockname()):
                [event] = queue.control(None, 1, 5)
                assert event.data == 1

    def test_what_is_no_longer_ready_is_not_reported(self, queue: Any, pair: Pair) -> None:
        """'The filter is also run when the user attempts to retrieve the kevent from the kqueue. If the filter
        indicates that the condition that triggered the event no longer holds, the kevent is removed from the kqueue
        and is not returned.'"""
        queue.control([change(pair[0].fileno())], 0, 0)
        pair[1].send(b"x")
        assert seen(queue, 1) == {(pair[0].fileno(), READ)}
        drain(pair[0])
        assert seen(queue) == set()

    def test_a_file_is_readable_where_its_offset_is_not_at_its_end(self, queue: Any) -> None:
        """'Vnodes: returns when the file pointer is not at the end of file.'"""
        with tempfile.TemporaryFile() as file:
            queue.control([change(file.fileno())], 0, 0)
            assert seen(queue) == set()
            file.write(b"x")
            file.seek(0)
            assert seen(queue) == {(file.fileno(), READ)}

    def test_what_finds_no_room_has_its_turn(self, queue: Any, make_pair: MakePair) -> None:
        pairs = [make_pair() for _ in range(7)]
        queue.control([change(ours.fileno(), WRITE) for ours, _ in pairs], 0, 0)
        reported = [event.ident for _ in range(3) for event in queue.control(None, 3, 0)]
        assert {ours.fileno() for ours, _ in pairs} == set(reported)
        assert len(reported) == 9


class TestChanges:
    def test_they_are_made_before_events_are_looked_for(self, queue: Any, pair: Pair) -> None:
        """'All changes contained in the changelist are applied before any pending events are read from the queue.'"""
        [event] = queue.control([change(pair[0].fileno(), WRITE)], 5, 0)
        assert (event.ident, event.filter) == (pair[0].fileno(), WRITE)

    def test_deleting_what_is_absent_is_enoent(self, queue: Any, pair: Pair) -> None:
        """'[ENOENT] The event could not be found to be modified or deleted.'"""
        fd = pair[0].fileno()
        queue.control([change(fd, READ)], 0, 0)
        assert refusal(lambda: queue.control([change(fd, WRITE, DELETE)], 0, 0)) == errno.ENOENT
        queue.control([change(fd, READ, DELETE)], 0, 0)
        assert refusal(lambda: queue.control([change(fd, READ, DELETE)], 0, 0)) == errno.ENOENT

    @pytest.mark.parametrize("flags", [ADD, DELETE])
    def test_a_closed_descriptor_is_ebadf(self, queue: Any, flags: int) -> None:
        """'[EBADF] The specified descriptor is invalid.'"""
        reader, writer = os.pipe()
        os.close(reader)
        os.close(writer)
        assert refusal(lambda: queue.control([change(reader, READ, flags)], 0, 0)) == errno.EBADF

    def test_an_unknown_filter_is_einval(self, queue: Any, pair: Pair) -> None:
        """'[EINVAL] The specified time limit or filter is invalid.'"""
        assert refusal(lambda: queue.control([change(pair[0].fileno(), -99)], 0, 0)) == errno.EINVAL

    @pytest.mark.skipif(not sys.platform.startswith(("linux", "freebsd")), reason="the others: test_kqueue_dialects.py")
    def test_writing_to_a_pipe_without_reader_is_epipe(self, queue: Any, pipe: Pipe) -> None:
        """pipe_kqfilter in FreeBSD's and OpenBSD's sys/kern/sys_pipe.c, where the other end is gone."""
        pipe.close_reader()
        assert refusal(lambda: queue.control([change(pipe.writer, WRITE)], 0, 0)) == errno.EPIPE
        assert seen(queue) == set()

    def test_a_failure_is_an_event_if_there_is_room(self, queue: Any, pair: Pair) -> None:
        """'If an error occurs while processing an element of the changelist and there is enough room in the eventlist,
        then the event will be placed in the eventlist with EV_ERROR set in flags and the system error in data.'"""
        fd = pair[0].fileno()
        [event] = queue.control([change(fd, READ, DELETE, udata=7), change(fd, WRITE)], 1, 0)
        assert (event.ident, event.filter, event.flags & ERROR, event.data) == (fd, READ, ERROR, errno.ENOENT)
        assert event.udata == 7
        assert seen(queue) == {(fd, WRITE)}

    def test_what_is_ready_is_not_reported_beside_a_failure(self, queue: Any, pair: Pair) -> None:
        """``kqueue_kevent`` in FreeBSD's sys/kern/kern_event.c returns the errors before it looks for events."""
        fd = pair[0].fileno()
        queue.control([change(fd, WRITE)], 0, 0)
        [event] = queue.control([change(fd, READ, DELETE)], 10, 0)
        assert event.flags & ERROR
        assert seen(queue) == {(fd, WRITE)}

    def test_a_failure_without_room_ends_the_changes_and_undoes_none(self, queue: Any, make_pair: MakePair) -> None:
        """'Otherwise, -1 will be returned, and errno will be set to indicate the error condition.'"""
        first, second = (make_pair()[0].fileno() for _ in range(2))
        changes = [change(first, WRITE), change(second, READ, DELETE), change(second, WRITE)]
        assert refusal(lambda: queue.control(changes, 0, 0)) == errno.ENOENT
        assert seen(queue) == {(first, WRITE)}


class TestClosedDescriptors:
    """'Calling close() on a file descriptor will remove any kevents that reference the descriptor.'"""

    def test_the_filters_are_gone_though_a_duplicate_lives(self, queue: Any, pair: Pair) -> None:
        fd = os.dup(pair[0].fileno())
        queue.control([change(fd, WRITE)], 0, 0)
        os.close(fd)
        assert seen(queue) == set()

    def test_a_new_file_of_that_number_has_none(self, queue: Any, make_pair: MakePair) -> None:
        old, new = make_pair()[0], make_pair()[0]
        fd = os.dup(old.fileno())
        queue.control([change(fd, WRITE)], 0, 0)
        os.dup2(new.fileno(), fd)
        try:
            assert seen(queue) == set()
            assert refusal(lambda: queue.control([change(fd, WRITE, DELETE)], 0, 0)) == errno.ENOENT
            queue.control([change(fd, WRITE)], 0, 0)
            assert seen(queue) == {(fd, WRITE)}
        finally:
            os.close(fd)


class TestTime:
    def test_room_for_none_returns_at_once(self, queue: Any, pair: Pair) -> None:
        """'When nevents is zero, kevent() will return immediately even if there is a timeout specified.'"""
        queue.control([change(pair[0].fileno(), WRITE)], 0, 0)
        assert queue.control(None, 0, None) == []
        assert queue.control(None, 0, 100) == []

    @pytest.mark.parametrize("timeout", [0.0001, 0.0015, 0.01])
    def test_a_wait_is_as_long_as_asked_for(self, queue: Any, timeout: float) -> None:
        started = time.monotonic()
        assert queue.control(None, 1, timeout) == []
        assert time.monotonic() - started >= timeout

    def test_an_event_ends_a_wait_without_limit(self, queue: Any, pair: Pair) -> None:
        queue.control([change(pair[0].fileno(), WRITE)], 0, 0)
        assert seen(queue, 1, None) == {(pair[0].fileno(), WRITE)}

    @pytest.mark.parametrize("timeout", [-1, -0.5])
    def test_a_negative_one_is_a_value_error(self, queue: Any, timeout: float) -> None:
        with pytest.raises(ValueError, match="timeout must be positive or None"):
            queue.control(None, 1, timeout)

    def test_nan_is_a_value_error(self, queue: Any) -> None:
        with pytest.raises(ValueError, match="NaN"):
            queue.control(None, 1, float("nan"))

    @pytest.mark.parametrize("timeout", [1e10, 1e300, float("inf")])
    def test_a_huge_one_is_an_overflow_error(self, queue: Any, timeout: float) -> None:
        with pytest.raises(OverflowError):
            queue.control(None, 1, timeout)

    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
    def test_a_signal_that_ends_the_wait_finds_the_changes_made(self, queue: Any, pair: Pair) -> None:
        """'When kevent() call fails with EINTR error, all changes in the changelist have been applied.'"""

        class Interrupted(Exception):
            pass

        def handler(*_: object) -> None:
            raise Interrupted

        before = signal.signal(signal.SIGALRM, handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            with pytest.raises(Interrupted):
                queue.control([change(pair[0].fileno())], 1, 30)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        pair[1].send(b"x")
        assert seen(queue) == {(pair[0].fileno(), READ)}


class TestObject:
    def test_its_arguments_are_checked(self, queue: Any) -> None:
        with pytest.raises(ValueError, match="Length of eventlist must be 0 or positive"):
            queue.control(None, -1, 0)
        with pytest.raises(TypeError, match=r"changelist must be an iterable of select\.kevent objects"):
            queue.control([1], 1, 0)
        with pytest.raises(TypeError, match="timeout must be a real number or None"):
            queue.control(None, 1, "soon")

    def test_a_kevent_has_the_defaults_of_the_real_one(self) -> None:
        event = module.kevent(5)
        fields = (event.ident, event.filter, event.flags, event.fflags, event.data, event.udata)
        assert fields == (5, READ, ADD, 0, 0, 0)

    def test_it_has_a_number_until_it_is_closed(self) -> None:
        queue = module.kqueue()
        assert not os.get_inheritable(queue.fileno())
        assert not queue.closed
        queue.close()
        queue.close()
        assert queue.closed
        for call in (queue.fileno, lambda: queue.control(None, 0, 0)):
            with pytest.raises(ValueError, match="I/O operation on closed kqueue object"):
                call()

    @pytest.mark.skipif(hasattr(select, "kqueue"), reason="these flags are the kernel's")
    @pytest.mark.parametrize("flag", [0x10, 0x20, 0x40, 0x80])
    def test_flags_that_the_backend_does_not_use_are_refused(self, queue: Any, pair: Pair, flag: int) -> None:
        """EV_ONESHOT, EV_CLEAR, EV_RECEIPT and EV_DISPATCH, of which the fake keeps no rule."""
        assert refusal(lambda: queue.control([change(pair[0].fileno(), flags=ADD | flag)], 0, 0)) == errno.EINVAL

    @pytest.mark.skipif(not sys.platform.startswith(("linux", "freebsd")), reason="``kqueue_register`` of FreeBSD")
    def test_it_cannot_be_watched_by_itself(self, queue: Any) -> None:
        assert refusal(lambda: queue.control([change(queue.fileno())], 0, 0)) == errno.EINVAL

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
    def test_a_child_does_not_inherit_it(self, queue: Any, pair: Pair) -> None:
        """'The kqueue() descriptor is not inherited by a child created with fork(2).'"""
        from tests.backends.test_fork import in_child

        fd = queue.fileno()
        queue.control([change(pair[0].fileno(), WRITE)], 0, 0)

        def body() -> None:
            assert refusal(lambda: os.fstat(fd)) == errno.EBADF
            with pytest.raises((OSError, ValueError)):  # ValueError since Python 3.13, which knows
                queue.control(None, 1, 0)

        in_child(body)
        assert seen(queue) == {(pair[0].fileno(), WRITE)}
