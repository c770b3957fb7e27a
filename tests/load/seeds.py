"""What a random test does: ``FLOWNO_TEST_SEED=SEED`` makes it the same again, as far as that is the seed's to say."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["is_chosen", "seed_of_this_run", "told_by_a_failure"]

_VARIABLE = "FLOWNO_TEST_SEED"


def is_chosen() -> bool:
    """Whether one seed is asked for, and no others after it."""
    return bool(os.environ.get(_VARIABLE))


def seed_of_this_run() -> int:
    """The one that is asked for, else one of the system's."""
    return int(os.environ[_VARIABLE]) if is_chosen() else random.SystemRandom().randrange(1 << 32)


@contextmanager
def told_by_a_failure(seed: int) -> Iterator[None]:
    """Any error, also an interrupt, says how to run this once more."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"to run it again: {_VARIABLE}={seed}")
        raise
