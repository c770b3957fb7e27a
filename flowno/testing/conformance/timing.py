"""How long a wait lasts: never less than was asked for, and no longer than the clock of the selector makes it."""

import math
import time
from selectors import EVENT_READ, EVENT_WRITE
from typing import Final

from .bench import Bench
from .case import Group

TIMING = Group("timing")
case = TIMING.case

#: Timeouts in seconds that are rounded down to nothing, or down to a millisecond less, by who is careless.
_SHORT: Final = (1e-9, 1e-6, 0.0001, 0.001, 0.0015, 0.009, 0.0205)

#: Those that no C int holds in milliseconds, or no system call takes.
_HUGE: Final = (1e6 + 0.5, 2_147_483.0, 2_147_483.648, 4_294_967.296, 1e7, 1e10, 1e20, 1e300, math.inf)

#: Seconds that a wait with a long timeout is watched: more than the two that a careful selector may cut it to.
_LONG: Final = 2.5

#: Seconds that one is watched whose timeout is so long that it may be taken for none at all.
_AWHILE: Final = 0.2

#: Seconds that a wait may last too long: two ticks of the clock that Windows waits by, 15.6 ms each; where fractions of
#: a millisecond are claimed, less than what rounding up to the next one would add.
_COARSE: Final = 0.032
_FINE: Final = 0.0008

_NO_TIME: Final = (0, 0.0, -0.0, -1e-9, -1, -1e10, -math.inf)


@case("no-wait")
def zero_and_less_do_not_wait(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    for timeout in _NO_TIME:
        bench.require_no_wait(timeout, {})


@case("no-wait")
def zero_and_less_do_not_wait_with_nothing_registered(bench: Bench) -> None:
    for timeout in _NO_TIME:
        bench.require_no_wait(timeout, {})


@case("no-wait")
def what_is_ready_is_not_waited_for(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_WRITE)
    for timeout in (None, 60, 0.001, 0):
        bench.require_no_wait(timeout, {ours.fileno(): EVENT_WRITE})


@case("early")
def a_wait_is_never_shorter_than_asked_for(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    for timeout in _SHORT:
        bench.require_wait(timeout, times=4)


@case("early")
def a_wait_with_nothing_registered_is_never_shorter_than_asked_for(bench: Bench) -> None:
    for timeout in _SHORT:
        bench.require_wait(timeout, times=4)


@case("early")
def a_wait_is_not_ended_without_a_reason_time_and_again(bench: Bench) -> None:
    # Those of a second or two end within that time, and not in whole seconds.
    bench.require_long_waits((None, 86_400, 1.2, 2.2), _LONG)


@case("early")
def a_very_long_wait_is_one(bench: Bench) -> None:
    bench.require_long_waits(_HUGE, _AWHILE)


@case("late")
def a_wait_comes_to_its_end(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    _require_punctual(bench, 0.01, _COARSE, tries=20)


@case("late")
def a_wait_is_not_rounded_up_to_a_whole_second(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    _require_punctual(bench, 0.1, 0.5, tries=3)


@case("late", "submillisecond")
def fractions_of_a_millisecond_are_kept(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_READ)
    _require_punctual(bench, 0.0001, _FINE, tries=100)


@case("select-raises")
def any_length_is_accepted(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_WRITE)
    for timeout in _HUGE:
        try:
            bench.require_reported({ours.fileno(): EVENT_WRITE}, timeout)
        except (OSError, OverflowError, ValueError) as error:
            bench.broken(f"select({timeout!r}) raised {error!r}")


@case("nan")
def nan_is_refused(bench: Bench) -> None:
    ours, _ = bench.pair()
    bench.selector.register(ours, EVENT_WRITE)
    bench.require_refused(ValueError, bench.selector.select, math.nan)


@case("nan")
def nan_is_refused_with_nothing_registered(bench: Bench) -> None:
    bench.require_refused(ValueError, bench.selector.select, math.nan)


def _require_punctual(bench: Bench, timeout: float, grace: float, *, tries: int) -> None:
    """Require that the shortest of several waits lasts no longer than asked for, but for some seconds of grace.

    A busy machine makes waits longer, and none shorter: what is left in the shortest is the selector's own.
    """
    shortest = math.inf
    for _ in range(tries):
        started = time.monotonic()
        bench.ready(timeout)
        shortest = min(shortest, time.monotonic() - started)
        if shortest < timeout + grace:
            return
    bench.broken(f"select({timeout!r}) took {shortest:.6f} s at least, in {tries} times")
