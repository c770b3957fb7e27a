"""Selectors that do not keep their promises, each in its own way: for every case of the kit, one that fails it.

They stand on flowno's ``SelectSelector``, as that works everywhere, or on the standard library's where these are broken
already. Who is broken by what is in :data:`BROKEN`, at the end.
"""

import math
import mmap
import os
import select
import selectors
import stat
import threading
import time
import weakref
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any, ClassVar, Final

from flowno_backends import SelectSelector
from flowno_backends.base import CAPABILITIES

__all__ = ["BROKEN"]

BOTH = EVENT_READ | EVENT_WRITE

#: Longer than a call may take that does not wait.
TOO_LONG = 1.1

Ready = list[tuple[SelectorKey, int]]


def is_closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


def inode_of(fd: int) -> int:
    return os.fstat(fd).st_ino


def close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


# -------------------------------------------------------------------------------------------------------- bookkeeping


class ReturnsNoKey(SelectSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> Any:
        super().register(fileobj, events, data)


class ReturnsTheOldKey(SelectSelector):
    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        old = self.get_key(fileobj)
        super().modify(fileobj, events, data)
        return old


class ReturnsTheFirstKey(SelectSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        self.first = super().register(fileobj, events, data)
        return self.first

    def unregister(self, fileobj: Any) -> SelectorKey:
        super().unregister(fileobj)
        return self.first


class ReportsTheFirstKey(SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, SelectorKey] = {}

    def select(self, timeout: float | None = None) -> Ready:
        return [(self.seen.setdefault(key.fd, key), events) for key, events in super().select(timeout)]


class ReturnsTheOldResult(SelectSelector):
    """Where nothing is ready, what was reported before is returned once more."""

    def __init__(self) -> None:
        super().__init__()
        self.old: Ready = []

    def select(self, timeout: float | None = None) -> Ready:
        ready = super().select(timeout)
        if ready:
            self.old = ready
            return ready
        ready, self.old = self.old, []
        return ready


class TakesAnyMask(SelectSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        return super().register(fileobj, events & BOTH or EVENT_READ, data)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        return super().modify(fileobj, events & BOTH or EVENT_READ, data)


class TakesNonsense(SelectSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        try:
            return super().register(fileobj, events, data)
        except ValueError:
            return SelectorKey(fileobj, -1, events, data)


class RegistersTwice(SelectSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        if fileobj in self.get_map():
            return super().modify(fileobj, events, data)
        return super().register(fileobj, events, data)


class ModifiesTheUnknown(SelectSelector):
    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        if fileobj not in self.get_map():
            return super().register(fileobj, events, data)
        return super().modify(fileobj, events, data)


class ForgivesUnregister(SelectSelector):
    def unregister(self, fileobj: Any) -> Any:
        return super().unregister(fileobj) if fileobj in self.get_map() else None


class RegistersOnce(SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.known: set[Any] = set()

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        if fileobj in self.known:
            raise KeyError(fileobj)
        self.known.add(fileobj)
        return super().register(fileobj, events, data)


class KeepsThemByObject(SelectSelector):
    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        if self.get_key(fileobj).fileobj is not fileobj:
            raise KeyError(fileobj)
        return super().modify(fileobj, events, data)

    def get_key(self, fileobj: Any) -> SelectorKey:
        key = super().get_key(fileobj)
        if key.fileobj is not fileobj:
            raise KeyError(fileobj)
        return key


class TakesPlainNumbers(SelectSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        if isinstance(fileobj, int) and type(fileobj) is not int:
            raise KeyError(fileobj)
        return super().register(fileobj, events, data)


class AsksNobody(SelectSelector):
    def _check(self, fd: int) -> None:
        pass


class KeepsWhatFailed(SelectSelector):
    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        os.fstat(self.get_key(fileobj).fd)
        return super().modify(fileobj, events, data)


class UnregistersForAll(SelectSelector):
    instances: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()

    def __init__(self) -> None:
        super().__init__()
        self.instances.add(self)

    def unregister(self, fileobj: Any) -> SelectorKey:
        key = self.get_key(fileobj)
        for selector in self.instances:
            if fileobj in selector.get_map():
                SelectSelector.unregister(selector, fileobj)
        return key


class BelongsToItsThread(SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        if self.thread != threading.get_ident():
            raise RuntimeError("used in another thread than the one that has made it")
        return super().register(fileobj, events, data)


class ClosesOnce(SelectSelector):
    is_closed = False

    def close(self) -> None:
        if self.is_closed:
            raise RuntimeError("closed already")
        self.is_closed = True
        super().close()


class ClosesTheFiles(SelectSelector):
    def close(self) -> None:
        for key in list(self.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        super().close()


class LeaksADescriptor(SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.own = os.open(os.devnull, os.O_RDONLY)
        weakref.finalize(self, os.close, self.own)


class LeaksWithEachSelect(SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.own: list[int] = []
        weakref.finalize(self, close_all, self.own)

    def select(self, timeout: float | None = None) -> Ready:
        self.own.append(os.open(os.devnull, os.O_RDONLY))
        return super().select(timeout)


class GivesItsDescriptorToAll(LeaksADescriptor):
    def fileno(self) -> int:
        os.set_inheritable(self.own, True)
        return self.own


class NeverCloses(SelectSelector):
    def close(self) -> None:
        pass


class HasADict(SelectSelector):
    def get_map(self) -> Any:
        return {key.fd: key for key in super().get_map().values()}


# ---------------------------------------------------------------------------------------------------------- readiness


class ReturnsAnIterator(SelectSelector):
    def select(self, timeout: float | None = None) -> Any:
        return iter(super().select(timeout))


class IsEdgeTriggered(SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.before: Ready = []

    def select(self, timeout: float | None = None) -> Ready:
        before, self.before = self.before, super().select(timeout)
        return [report for report in self.before if report not in before]


class ReportsAll(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return [(key, key.events) for key in self.get_map().values()]


class WaitsForNews(SelectSelector):
    """Reports what has become ready since it was registered."""

    def __init__(self) -> None:
        super().__init__()
        self.old: set[int] = set()

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        key = super().register(fileobj, events, data)
        self.old |= {ready.fd for ready, _ in super().select(0)}
        return key

    def select(self, timeout: float | None = None) -> Ready:
        return [report for report in super().select(timeout) if report[0].fd not in self.old]


class GivesUp(SelectSelector):
    """Looks once, and never again at what was not ready then."""

    def __init__(self) -> None:
        super().__init__()
        self.given_up: set[int] = set()

    def select(self, timeout: float | None = None) -> Ready:
        ready = [report for report in super().select(0) if report[0].fd not in self.given_up]
        self.given_up |= set(self.get_map()) - {key.fd for key, _ in ready}
        return ready


class ReportsOneDirection(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return list({key.fd: (key, events) for key, events in super().select(timeout)}.values())


class ReportsWhatNobodyAskedFor(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return [(key, BOTH) for key, _ in super().select(timeout)]


class ReportsTwice(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return super().select(timeout) * 2


class ReportsAFew(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return super().select(timeout)[:64]


class KeepsTheFirstInterest(SelectSelector):
    def _change(self, fd: int, old: int, new: int) -> None:
        if not (old and new):
            super()._change(fd, old, new)


class ChangesItsMindOnce(SelectSelector):
    """Takes one modify between two waits."""

    def __init__(self) -> None:
        super().__init__()
        self.changed: set[int] = set()

    def _change(self, fd: int, old: int, new: int) -> None:
        if not (old and new and fd in self.changed):
            super()._change(fd, old, new)
        if old:
            self.changed.add(fd)

    def select(self, timeout: float | None = None) -> Ready:
        self.changed.clear()
        return super().select(timeout)


class ForgetsWithNewData(SelectSelector):
    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        old = self.get_key(fileobj)
        if events == old.events:
            self._change(old.fd, events, EVENT_WRITE)
        return super().modify(fileobj, events, data)


class ReportsGhosts(SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.ghosts: list[SelectorKey] = []

    def unregister(self, fileobj: Any) -> SelectorKey:
        self.ghosts.append(super().unregister(fileobj))
        return self.ghosts[-1]

    def select(self, timeout: float | None = None) -> Ready:
        return super().select(timeout) + [(key, key.events) for key in self.ghosts]


class IgnoresHangUps(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return [report for report in super().select(timeout) if not self.has_hung_up(report[0].fd)]

    def has_hung_up(self, fd: int) -> bool:
        poll = select.poll()
        poll.register(fd, 0)
        return any(mask & (select.POLLHUP | select.POLLERR) for _, mask in poll.poll(0))


class NeverWrites(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return [report for report in super().select(timeout) if report[1] != EVENT_WRITE]


class NeverReads(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return [report for report in super().select(timeout) if report[1] != EVENT_READ]


# --------------------------------------------------------------------------------------------- time, threads, signals


class TakesNoTimeForSome(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        if timeout is not None and timeout < 0:
            time.sleep(TOO_LONG)
        return super().select(timeout)


class WaitsFirst(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        time.sleep(TOO_LONG if timeout is None else min(timeout, TOO_LONG))
        return super().select(timeout)


class IsImpatient(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return super().select(0)


class WaitsNoLongerThanThis(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return super().select(0.1 if timeout is None else min(timeout, 0.1))


class Oversleeps(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        if timeout:
            time.sleep(0.6)
        return super().select(timeout)


class CountsMilliseconds(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return super().select(timeout and math.ceil(timeout * 1000) / 1000)


class CountsInAnInt(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        if timeout and timeout * 1000 >= 2**31:
            raise OverflowError("timeout is too large")
        return super().select(timeout)


class TakesNaN(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return super().select(0 if timeout is not None and math.isnan(timeout) else timeout)


class SwallowsErrors(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        try:
            return super().select(timeout)
        except Exception:
            return []


# --------------------------------------------------------------------------------------------------------------- fork


class ForgetsInAChild(SelectSelector):
    def after_fork(self) -> None:
        for fd in list(self.get_map()):
            self.unregister(fd)


class SharesWithItsChildren(SelectSelector):
    """As if parent and child had one object in the kernel: a change of one makes nonsense of what the other knows."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = mmap.mmap(-1, 1)
        self.known = 0

    def changed(self) -> None:
        self.known = self.shared[0] = (self.shared[0] + 1) % 256

    def _change(self, fd: int, old: int, new: int) -> None:
        self.changed()
        super()._change(fd, old, new)

    def close(self) -> None:
        self.changed()
        super().close()

    def select(self, timeout: float | None = None) -> Ready:
        ready = super().select(timeout)
        if self.shared[0] == self.known:
            return ready
        return [] if ready else [(key, key.events) for key in self.get_map().values()]


# ------------------------------------------------------------------------------------------------ hostile descriptors


class UnregistersTheOpen(SelectSelector):
    def unregister(self, fileobj: Any) -> SelectorKey:
        os.fstat(self.get_key(fileobj).fd)
        return super().unregister(fileobj)


class LooksForNumbers(SelectSelector):
    def unregister(self, fileobj: Any) -> SelectorKey:
        return super().unregister(fileobj if isinstance(fileobj, int) else fileobj.fileno())


class FindsWhatIsEqual(SelectSelector):
    """Goes by equality where there is no number to go by."""

    def unregister(self, fileobj: Any) -> SelectorKey:
        if fileobj not in self.get_map():
            fileobj = next((key.fd for key in self.get_map().values() if key.fileobj == fileobj), fileobj)
        return super().unregister(fileobj)


class SpinsOnTheClosed(SelectSelector):
    """Returns at once where one is closed, and does not say which."""

    def select(self, timeout: float | None = None) -> Ready:
        return [] if any(map(is_closed, self.get_map())) else super().select(timeout)


class KnowsTheFirstFile(SelectSelector):
    """Goes by what had the number first."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[int, int] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        key = super().register(fileobj, events, data)
        self.files.setdefault(key.fd, inode_of(key.fd))
        return key

    def select(self, timeout: float | None = None) -> Ready:
        return [report for report in super().select(timeout) if inode_of(report[0].fd) == self.files[report[0].fd]]


class UnregistersTheSameFile(KnowsTheFirstFile):
    def unregister(self, fileobj: Any) -> SelectorKey:
        fd = self.get_key(fileobj).fd
        if inode_of(fd) != self.files[fd]:
            raise FileNotFoundError(2, "No such file or directory")  # as epoll_ctl says it
        return super().unregister(fileobj)


class TakesFilesAndForgetsThem(SelectSelector):
    def select(self, timeout: float | None = None) -> Ready:
        return [report for report in super().select(timeout) if not stat.S_ISREG(os.fstat(report[0].fd).st_mode)]


class ClaimsTooMuch(SelectSelector):
    capabilities: ClassVar[frozenset[Any]] = frozenset(CAPABILITIES)


class ClaimsFiles(SelectSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        if stat.S_ISREG(os.fstat(fileobj.fileno()).st_mode):
            raise PermissionError(1, "Operation not permitted")  # as epoll_ctl says it
        return super().register(fileobj, events, data)


#: The standard library's, which spins on an entry of epoll that it cannot remove; None where there is no epoll.
Epoll: Final[Any] = getattr(selectors, "EpollSelector", None)

#: The name of each case of the kit, and a class that fails it.
BROKEN: Final[dict[str, Any]] = {
    # bookkeeping
    "register_returns_the_key_of_the_registration": ReturnsNoKey,
    "modify_returns_the_new_key": ReturnsTheOldKey,
    "unregister_returns_the_last_key": ReturnsTheFirstKey,
    "new_data_comes_with_the_next_report": ReportsTheFirstKey,
    "what_was_registered_before_is_not_reported_for_what_is_now": ReportsTheFirstKey,
    "an_old_result_is_not_returned_again": ReturnsTheOldResult,
    "register_refuses_events_that_are_no_mask": TakesAnyMask,
    "modify_refuses_events_that_are_no_mask": TakesAnyMask,
    "register_refuses_a_negative_descriptor": TakesNonsense,
    "register_refuses_an_object_without_a_descriptor": TakesNonsense,
    "register_refuses_what_is_registered": RegistersTwice,
    "register_refuses_the_number_of_what_is_registered": RegistersTwice,
    "modify_refuses_the_unknown": ModifiesTheUnknown,
    "unregister_refuses_the_unknown": ForgivesUnregister,
    "what_was_unregistered_is_unknown": ForgivesUnregister,
    "what_was_unregistered_can_be_registered_again": RegistersOnce,
    "number_and_object_are_one_registration": KeepsThemByObject,
    "a_number_of_another_type_is_that_number": TakesPlainNumbers,
    "a_closed_descriptor_cannot_be_registered_and_leaves_no_trace": AsksNobody,
    "a_modify_that_fails_unregisters": KeepsWhatFailed,
    "two_selectors_do_not_know_of_each_other": UnregistersForAll,
    "a_selector_works_in_a_thread_that_has_not_made_it": BelongsToItsThread,
    "closing_twice_does_nothing": ClosesOnce,
    "closing_leaves_the_registered_files_open": ClosesTheFiles,
    "opening_and_closing_leaks_no_descriptor": LeaksADescriptor,
    "registering_and_waiting_leaks_no_descriptor": LeaksWithEachSelect,
    "leaving_a_with_block_closes": NeverCloses,
    "the_descriptor_of_a_selector_is_not_inherited": GivesItsDescriptorToAll,
    "the_map_is_live": HasADict,
    "the_map_is_read_only": HasADict,
    "number_and_object_have_one_key": KeepsThemByObject,
    "nothing_is_known_after_close": NeverCloses,
    # readiness
    "a_result_is_a_list_of_pairs": ReturnsAnIterator,
    "data_makes_readable_until_all_of_it_is_read": IsEdgeTriggered,
    "without_data_nothing_is_readable": ReportsAll,
    "data_from_before_the_registration_is_reported": WaitsForNews,
    "room_makes_writable_as_long_as_there_is_any": IsEdgeTriggered,
    "a_full_buffer_is_not_writable": ReportsAll,
    "room_in_a_buffer_that_was_full_is_reported": GivesUp,
    "both_directions_come_in_one_result": ReportsOneDirection,
    "only_the_direction_that_is_ready_is_reported": ReportsAll,
    "only_the_direction_that_was_asked_for_is_reported": ReportsWhatNobodyAskedFor,
    "no_event_is_reported_twice_in_one_result": ReportsTwice,
    "all_that_is_ready_comes_in_one_result": ReportsAFew,
    "a_changed_interest_holds_at_once": KeepsTheFirstInterest,
    "an_interest_can_be_changed_and_changed_back_without_a_wait": ChangesItsMindOnce,
    "new_data_alone_changes_no_interest": ForgetsWithNewData,
    "what_was_unregistered_is_not_reported": ReportsGhosts,
    "a_closed_peer_makes_readable_for_ever": IsEdgeTriggered,
    "what_was_sent_before_an_end_of_file_is_read_before_it": IsEdgeTriggered,
    "a_half_closed_peer_is_no_reason_to_write": ReportsAll,
    "a_reset_is_reported_as_the_registered_events": IgnoresHangUps,
    "a_hang_up_is_reported_as_the_registered_events": IgnoresHangUps,
    "a_pipe_that_loses_its_writer_is_readable": IgnoresHangUps,
    "a_pipe_that_loses_its_reader_is_reported_as_the_registered_events": IgnoresHangUps,
    "a_pipe_without_a_reader_can_be_registered_and_is_reported": IgnoresHangUps,
    "a_connection_that_is_refused_makes_writable": IgnoresHangUps,
    "a_listening_socket_is_readable_while_connections_wait": GivesUp,
    "a_connection_that_is_made_makes_writable": NeverWrites,
    "an_empty_datagram_makes_readable": NeverReads,
    "what_is_typed_at_a_terminal_makes_readable": NeverReads,
    # timing
    "zero_and_less_do_not_wait": TakesNoTimeForSome,
    "zero_and_less_do_not_wait_with_nothing_registered": TakesNoTimeForSome,
    "what_is_ready_is_not_waited_for": WaitsFirst,
    "a_wait_is_never_shorter_than_asked_for": IsImpatient,
    "a_wait_with_nothing_registered_is_never_shorter_than_asked_for": IsImpatient,
    "a_wait_is_not_ended_without_a_reason_time_and_again": WaitsNoLongerThanThis,
    "a_wait_comes_to_its_end": Oversleeps,
    "fractions_of_a_millisecond_are_kept": CountsMilliseconds,
    "any_length_is_accepted": CountsInAnInt,
    "nan_is_refused": TakesNaN,
    "nan_is_refused_with_nothing_registered": TakesNaN,
    # signals and threads
    "another_thread_ends_a_wait_without_limit": NeverReads,
    "another_thread_ends_a_long_wait": NeverReads,
    "none_of_a_thousand_wake_ups_is_lost": IsEdgeTriggered,
    "an_error_of_a_signal_handler_ends_the_wait": SwallowsErrors,
    "a_signal_handler_that_returns_does_not_end_the_wait": NeverReads,
    # forking
    "a_child_has_the_same_registrations": ForgetsInAChild,
    "unregister_in_a_child_leaves_the_parents_registration": SharesWithItsChildren,
    "modify_in_a_child_leaves_the_parents_interest": SharesWithItsChildren,
    "register_in_a_child_registers_nothing_in_the_parent": SharesWithItsChildren,
    "close_in_a_child_leaves_the_parents_selector": SharesWithItsChildren,
    "what_the_parent_does_after_the_fork_is_nothing_to_the_child": SharesWithItsChildren,
    "a_descriptor_that_a_child_has_closed_harms_no_other": ForgetsInAChild,
    "after_fork_can_be_repeated_and_does_nothing_in_the_parent": ForgetsInAChild,
    "a_grandchild_is_as_free_as_a_child": SharesWithItsChildren,
    # hostile descriptors
    "a_closed_descriptor_is_unregistered_by_number": UnregistersTheOpen,
    "a_closed_object_is_unregistered_by_identity": LooksForNumbers,
    "an_equal_object_is_not_taken_for_the_registered_one": FindsWhatIsEqual,
    "a_closed_descriptor_does_not_make_select_raise": selectors.SelectSelector,
    "many_closed_descriptors_do_not_hide_the_others": SpinsOnTheClosed,
    "a_closed_descriptor_does_not_make_a_wait_return_with_nothing": SpinsOnTheClosed,
    "a_closed_descriptor_is_reported_as_the_registered_events": SpinsOnTheClosed,
    "a_number_that_is_another_file_by_now_is_unregistered": UnregistersTheSameFile,
    "a_number_that_was_unregistered_late_is_the_new_files": KnowsTheFirstFile,
    "a_changed_interest_in_a_reused_number_is_one_in_the_new_file": KnowsTheFirstFile,
    "a_number_can_be_used_again_and_again": KnowsTheFirstFile,
    "a_duplicate_that_lives_on_does_not_make_select_spin": Epoll,
    "a_duplicate_that_lives_on_does_not_hide_the_others": Epoll,
    "a_new_file_is_not_taken_for_the_duplicate_of_an_old_one": Epoll,
    "a_new_file_and_the_duplicate_of_an_old_one_are_one_report": Epoll,
    "a_modified_registration_is_not_taken_for_the_duplicate_of_an_old_file": Epoll,
    "the_same_file_under_the_same_number_can_be_registered_again": Epoll,
    "a_regular_file_is_always_ready_or_refused_at_once": TakesFilesAndForgetsThem,
    "a_selector_that_claims_files_takes_them": ClaimsFiles,
    "a_large_number_is_held_or_refused_at_once": selectors.SelectSelector,
    "a_selector_that_claims_any_number_holds_a_large_one": ClaimsTooMuch,
    "a_selector_that_claims_any_number_holds_two_thousand": ClaimsTooMuch,
}
