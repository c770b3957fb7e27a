"""A backend that derives from one of flowno's, and tells on standard error what is registered with it."""

import sys
from selectors import EVENT_READ, EVENT_WRITE

from flowno_backends import SelectSelector

MASKS = {0: "-", EVENT_READ: "r", EVENT_WRITE: "w", EVENT_READ | EVENT_WRITE: "rw"}


class TracedSelector(SelectSelector):
    """As ``select``, with a line for every change of a registration."""

    facts = "as select, and tells what is registered"

    def _change(self, fd, old, new):
        print(f"fd {fd}: {MASKS[old]} -> {MASKS[new]}", file=sys.stderr)
        super()._change(fd, old, new)
