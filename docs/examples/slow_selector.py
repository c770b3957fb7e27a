"""A decorator of selectors: the loop hears of everything a little later."""

import time

from flowno.debug.selector_decorators import SelectorDecorator


class SlowSelector(SelectorDecorator):
    """Takes a hundredth of a second more for each answer, as a machine under load may."""

    word = "slow"

    def select(self, timeout=None):
        ready = super().select(timeout)
        time.sleep(0.01)
        return ready
