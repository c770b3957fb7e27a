"""For every assertion of the conformance kit, a selector that makes it fail.

An assertion is a call of ``broken``, or of a function whose name begins with ``require_`` or ``_require_``. Each
function of the kit that makes any is a key here, and has one entry for each of them, in the order of its source: the
selector that a case fails with. For an assertion in a function that cases share, the entry names a case as well.
"""

from collections.abc import Callable
from selectors import SelectSelector as StandardSelect
from typing import Any, Final

from flowno_backends import PollSelector
from tests.support.broken_selectors import (
    BOTH,
    AsksNobody,
    BelongsToItsThread,
    ChangesItsMindOnce,
    ClaimsFiles,
    ClaimsTooMuch,
    ClosesAtHome,
    ClosesOnce,
    ClosesTheFiles,
    CountsInAnInt,
    CountsMilliseconds,
    CriesWolf,
    EntersNothing,
    Epoll,
    FindsWhatIsEqual,
    ForgetsInAChild,
    ForgetsWithNewData,
    ForgivesRegister,
    ForgivesUnregister,
    GivesItsDescriptorToAll,
    GivesUp,
    HasADict,
    HasNoEnd,
    IgnoresHangUps,
    IsEdgeTriggered,
    IsImpatient,
    KeepsTheFirstInterest,
    KeepsWhatFailed,
    KnowsNone,
    KnowsTheFirstFile,
    LeaksADescriptor,
    LeaksWithEachSelect,
    LooksForNumbers,
    ModifiesByObject,
    ModifiesTheUnknown,
    NeverCloses,
    NeverForgets,
    NeverReads,
    NeverWrites,
    OfAllThereWas,
    OfNumbers,
    OfObjects,
    OfOtherEvents,
    OverflowsAtNaN,
    Oversleeps,
    Ready,
    RegistersOnce,
    RegistersTwice,
    RegistersWhatItRefuses,
    RemembersForAll,
    RemembersTheFirstKey,
    ReportsAFew,
    ReportsAFewOfMany,
    ReportsAll,
    ReportsGhosts,
    ReportsGhostsOfMany,
    ReportsOneDirection,
    ReportsTheFirstKey,
    ReportsTwice,
    ReportsWhatNobodyAskedFor,
    ReturnsTheFirstKey,
    ReturnsTheOldKey,
    ReturnsTheOldResult,
    SeesOnlyTheClosed,
    SharesItsEnd,
    SharesWithItsChildren,
    SpinsOnTheClosed,
    SwallowsErrors,
    TakesAnyMask,
    TakesEqualForIdentical,
    TakesFilesAndForgetsThem,
    TakesLargeOnesAndForgetsThem,
    TakesNaN,
    TakesNonsense,
    TakesNoTimeForSome,
    TakesPlainNumbers,
    UnregistersByObject,
    UnregistersForAll,
    UnregistersNothing,
    UnregistersTheOpen,
    UnregistersTheSameFile,
    WaitsFirst,
    WaitsForNews,
    WaitsNoLongerThanThis,
    WorksInItsChildren,
    answering,
    descriptors,
    is_closed,
    is_large,
    is_regular,
    nothing,
    out_of_order,
    refusing,
    without_data,
)

__all__ = ["BREAKERS", "Breaker"]

#: Makes a selector that is broken.
Breaker = Callable[[], Any]

#: The breaker of an assertion, with the name of a case where it is not that of the function. None stands for the standard
#: library's epoll selector where there is none.
Entry = Breaker | tuple[str, Breaker] | None

fails_in_a_child: Final = answering("after_fork", out_of_order)


def reports(wrong: Callable[[Ready], Any], **calls: int) -> Breaker:
    """Of a selector whose select returns what is wrong, in those of its calls."""
    breaker: Breaker = answering("select", wrong, **calls)
    return breaker


def keys_without_data(ready: Ready) -> Ready:
    return [(without_data(key), events) for key, events in ready]


def for_all_events(ready: Ready) -> Ready:
    return [(key, BOTH) for key, _ in ready]


BREAKERS: Final[dict[str, tuple[Entry, ...]]] = {
    # bench
    "require_equal": (("modify_returns_the_new_key", ReturnsTheOldKey),),
    "require_refused": (
        ("nan_is_refused", OverflowsAtNaN),
        ("nan_is_refused", TakesNaN),
    ),
    "require_accepted": (("closing_twice_does_nothing", ClosesOnce),),
    "require_unknown": (("a_modify_that_fails_unregisters", KeepsWhatFailed),),
    "ready": (
        ("a_result_is_a_list_of_pairs", reports(iter)),
        ("a_result_is_a_list_of_pairs", reports(descriptors)),
        ("only_the_direction_that_was_asked_for_is_reported", ReportsWhatNobodyAskedFor),
        ("no_event_is_reported_twice_in_one_result", ReportsTwice),
    ),
    "require_reported": (("data_from_before_the_registration_is_reported", WaitsForNews),),
    "require_reported_data": (("new_data_comes_with_the_next_report", ReportsTheFirstKey),),
    "require_wait": (("a_wait_is_never_shorter_than_asked_for", IsImpatient),),
    "require_long_waits": (("a_wait_is_not_ended_without_a_reason_time_and_again", WaitsNoLongerThanThis),),
    "require_no_wait": (
        ("what_is_ready_is_not_waited_for", NeverWrites),
        ("what_is_ready_is_not_waited_for", WaitsFirst),
    ),
    # bookkeeping
    "register_returns_the_key_of_the_registration": (answering("register", tuple), answering("register", without_data)),
    "modify_returns_the_new_key": (ReturnsTheOldKey,),
    "unregister_returns_the_last_key": (ReturnsTheFirstKey,),
    "new_data_comes_with_the_next_report": (reports(keys_without_data, until=1), ReportsTheFirstKey),
    "what_was_registered_before_is_not_reported_for_what_is_now": (ReportsTheFirstKey, ReportsGhosts),
    "an_old_result_is_not_returned_again": (reports(nothing), ReturnsTheOldResult),
    "register_refuses_events_that_are_no_mask": (TakesNonsense, RegistersWhatItRefuses),
    "modify_refuses_events_that_are_no_mask": (TakesAnyMask,),
    "register_refuses_a_negative_descriptor": (TakesNonsense,),
    "register_refuses_an_object_without_a_descriptor": (TakesNonsense,),
    "register_refuses_what_is_registered": (ForgivesRegister, RegistersWhatItRefuses),
    "register_refuses_the_number_of_what_is_registered": (RegistersTwice, RegistersWhatItRefuses),
    "modify_refuses_the_unknown": (ModifiesTheUnknown,),
    "unregister_refuses_the_unknown": (ForgivesUnregister,),
    "what_was_unregistered_is_unknown": (ForgivesUnregister, ModifiesTheUnknown),
    "what_was_unregistered_can_be_registered_again": (RegistersOnce, reports(nothing, since=2)),
    "number_and_object_are_one_registration": (ModifiesByObject, UnregistersByObject, UnregistersNothing),
    "a_number_of_another_type_is_that_number": (TakesPlainNumbers, reports(nothing), UnregistersByObject),
    "a_closed_descriptor_cannot_be_registered_and_leaves_no_trace": (
        AsksNobody,
        refusing(OSError(9, "Bad file descriptor"), is_closed, base=AsksNobody),
        reports(nothing),
    ),
    "a_modify_that_fails_unregisters": (KeepsWhatFailed,),
    "two_selectors_do_not_know_of_each_other": (RemembersForAll, UnregistersForAll),
    "a_selector_works_in_a_thread_that_has_not_made_it": (BelongsToItsThread,),
    "closing_twice_does_nothing": (ClosesOnce,),
    "closing_leaves_the_registered_files_open": (ClosesTheFiles,),
    "opening_and_closing_leaks_no_descriptor": (LeaksADescriptor,),
    "registering_and_waiting_leaks_no_descriptor": (LeaksWithEachSelect,),
    "leaving_a_with_block_closes": (EntersNothing, NeverCloses),
    "the_descriptor_of_a_selector_is_not_inherited": (GivesItsDescriptorToAll,),
    "the_map_is_live": (
        answering("get_map", OfObjects),
        answering("get_map", OfNumbers),
        answering("get_map", OfOtherEvents),
        answering("get_map", OfAllThereWas),
    ),
    "the_map_is_read_only": (HasADict,),
    "number_and_object_have_one_key": (answering("get_key", without_data, until=1), RemembersTheFirstKey, KnowsNone),
    "nothing_is_known_after_close": (HasNoEnd, answering("get_map", OfAllThereWas)),
    # readiness
    "a_result_is_a_list_of_pairs": (reports(iter, until=1), reports(descriptors)),
    "data_makes_readable_until_all_of_it_is_read": (IsEdgeTriggered, reports(nothing, since=4)),
    "without_data_nothing_is_readable": (CriesWolf, reports(nothing), NeverForgets),
    "data_from_before_the_registration_is_reported": (WaitsForNews,),
    "room_makes_writable_as_long_as_there_is_any": (IsEdgeTriggered, reports(nothing, since=4)),
    "a_full_buffer_is_not_writable": (ReportsAll,),
    "room_in_a_buffer_that_was_full_is_reported": (ReportsAll, GivesUp),
    "both_directions_come_in_one_result": (ReportsOneDirection,),
    "only_the_direction_that_is_ready_is_reported": (reports(for_all_events, until=3), NeverForgets),
    "only_the_direction_that_was_asked_for_is_reported": (
        reports(for_all_events, until=1),
        reports(for_all_events, since=2),
    ),
    "no_event_is_reported_twice_in_one_result": (ReportsTwice,),
    "all_that_is_ready_comes_in_one_result": (ReportsAFew,),
    "a_changed_interest_holds_at_once": (KeepsTheFirstInterest,),
    "an_interest_can_be_changed_and_changed_back_without_a_wait": (ChangesItsMindOnce,),
    "new_data_alone_changes_no_interest": (ForgetsWithNewData,),
    "what_was_unregistered_is_not_reported": (ReportsGhosts,),
    "a_closed_peer_makes_readable_for_ever": (IgnoresHangUps, IsEdgeTriggered),
    "what_was_sent_before_an_end_of_file_is_read_before_it": (IsEdgeTriggered,),
    "a_half_closed_peer_is_no_reason_to_write": (ReportsAll,),
    "a_reset_is_reported_as_the_registered_events": (IgnoresHangUps,),
    "a_hang_up_is_reported_as_the_registered_events": (IgnoresHangUps,),
    "a_pipe_that_loses_its_writer_is_readable": (ReportsAll, IgnoresHangUps),
    "a_pipe_that_loses_its_reader_is_reported_as_the_registered_events": (IgnoresHangUps,),
    "a_pipe_without_a_reader_can_be_registered_and_is_reported": (IgnoresHangUps, ReportsTheFirstKey, ReportsGhosts),
    "a_connection_that_is_refused_makes_writable": (IgnoresHangUps,),
    "a_listening_socket_is_readable_while_connections_wait": (CriesWolf, GivesUp, NeverForgets),
    "a_connection_that_is_made_makes_writable": (NeverWrites,),
    "an_empty_datagram_makes_readable": (NeverReads,),
    "what_is_typed_at_a_terminal_makes_readable": (NeverReads,),
    # timing
    "zero_and_less_do_not_wait": (TakesNoTimeForSome,),
    "zero_and_less_do_not_wait_with_nothing_registered": (TakesNoTimeForSome,),
    "what_is_ready_is_not_waited_for": (WaitsFirst,),
    "a_wait_is_never_shorter_than_asked_for": (IsImpatient,),
    "a_wait_with_nothing_registered_is_never_shorter_than_asked_for": (IsImpatient,),
    "a_wait_is_not_ended_without_a_reason_time_and_again": (WaitsNoLongerThanThis,),
    "a_wait_comes_to_its_end": (Oversleeps,),
    "fractions_of_a_millisecond_are_kept": (CountsMilliseconds,),
    "any_length_is_accepted": (reports(nothing), CountsInAnInt),
    "nan_is_refused": (TakesNaN,),
    "nan_is_refused_with_nothing_registered": (TakesNaN,),
    "_require_punctual": (("fractions_of_a_millisecond_are_kept", CountsMilliseconds),),
    # signals and threads
    "another_thread_ends_a_wait_without_limit": (NeverReads,),
    "another_thread_ends_a_long_wait": (NeverReads,),
    "none_of_a_thousand_wake_ups_is_lost": (IsEdgeTriggered,),
    "an_error_of_a_signal_handler_ends_the_wait": (SwallowsErrors, reports(nothing)),
    "a_signal_handler_that_returns_does_not_end_the_wait": (NeverReads,),
    # forking
    "_require_in_child": (("close_in_a_child_leaves_the_parents_selector", fails_in_a_child),),
    "a_child_has_the_same_registrations": (
        reports(keys_without_data, until=1),
        reports(nothing, since=2),
        answering("unregister", without_data),
        ForgetsInAChild,
    ),
    "unregister_in_a_child_leaves_the_parents_registration": (fails_in_a_child, SharesWithItsChildren),
    "modify_in_a_child_leaves_the_parents_interest": (fails_in_a_child, SharesWithItsChildren, reports(nothing)),
    "register_in_a_child_registers_nothing_in_the_parent": (
        fails_in_a_child,
        SharesWithItsChildren,
        IsImpatient,
        ForgivesUnregister,
    ),
    "close_in_a_child_leaves_the_parents_selector": (fails_in_a_child, SharesWithItsChildren),
    "what_the_parent_does_after_the_fork_is_nothing_to_the_child": (SharesWithItsChildren, fails_in_a_child),
    "a_descriptor_that_a_child_has_closed_harms_no_other": (
        ForgetsInAChild,
        reports(nothing, since=2),
        fails_in_a_child,
    ),
    "after_fork_can_be_repeated_and_does_nothing_in_the_parent": (
        ForgetsInAChild,
        reports(nothing, since=2),
        answering("after_fork", out_of_order, since=3),
    ),
    "a_grandchild_is_as_free_as_a_child": (
        answering("after_fork", out_of_order, since=2),
        SharesWithItsChildren,
        ClosesAtHome,
        SharesItsEnd,
        fails_in_a_child,
        WorksInItsChildren,
    ),
    # hostile descriptors
    "a_closed_descriptor_is_unregistered_by_number": (
        UnregistersTheOpen,
        answering("unregister", without_data),
        ReportsGhosts,
    ),
    "a_closed_object_is_unregistered_by_identity": (LooksForNumbers, TakesEqualForIdentical),
    "an_equal_object_is_not_taken_for_the_registered_one": (FindsWhatIsEqual, TakesEqualForIdentical),
    "a_closed_descriptor_does_not_make_select_raise": (StandardSelect, SpinsOnTheClosed),
    "many_closed_descriptors_do_not_hide_the_others": (SpinsOnTheClosed,),
    "a_closed_descriptor_does_not_make_a_wait_return_with_nothing": (SpinsOnTheClosed,),
    "a_closed_descriptor_is_reported_as_the_registered_events": (SpinsOnTheClosed, SeesOnlyTheClosed, ReportsGhosts),
    "a_number_that_is_another_file_by_now_is_unregistered": (UnregistersTheSameFile, ReportsGhosts),
    "a_number_that_was_unregistered_late_is_the_new_files": (ReportsAll, KnowsTheFirstFile),
    "a_changed_interest_in_a_reused_number_is_one_in_the_new_file": (Epoll, KnowsTheFirstFile, ReportsAll, NeverReads),
    "a_number_can_be_used_again_and_again": (KnowsTheFirstFile,),
    "a_duplicate_that_lives_on_does_not_make_select_spin": (ReportsGhosts, Epoll),
    "a_duplicate_that_lives_on_does_not_hide_the_others": (Epoll, IsImpatient),
    "a_new_file_is_not_taken_for_the_duplicate_of_an_old_one": (Epoll, IsImpatient, NeverReads),
    "a_new_file_and_the_duplicate_of_an_old_one_are_one_report": (ReportsTwice, NeverForgets, IsImpatient),
    "a_modified_registration_is_not_taken_for_the_duplicate_of_an_old_file": (
        Epoll,
        ReportsAll,
        IsImpatient,
        NeverReads,
    ),
    "the_same_file_under_the_same_number_can_be_registered_again": (Epoll, NeverReads),
    "a_regular_file_is_always_ready_or_refused_at_once": (
        refusing(PermissionError(1, "Operation not permitted"), is_regular),
        TakesFilesAndForgetsThem,
    ),
    "a_selector_that_claims_files_takes_them": (ClaimsFiles, TakesFilesAndForgetsThem),
    "a_large_number_is_held_or_refused_at_once": (
        refusing(ValueError("too large"), is_large, base=PollSelector),
        refusing(RuntimeError("too large"), is_large, base=PollSelector),
        TakesLargeOnesAndForgetsThem,
        StandardSelect,
    ),
    "a_selector_that_claims_any_number_holds_a_large_one": (ClaimsTooMuch, TakesLargeOnesAndForgetsThem),
    "a_selector_that_claims_any_number_holds_two_thousand": (ClaimsTooMuch, ReportsAFewOfMany, ReportsGhostsOfMany),
    "_require_unregistered": (
        ("a_closed_descriptor_is_unregistered_by_number", UnregistersTheOpen),
        ("a_closed_descriptor_is_unregistered_by_number", UnregistersNothing),
    ),
}
