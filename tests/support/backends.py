"""What the name of a backend under test says."""

import re

__all__ = ["system_call_of"]

_DECORATORS = re.compile(r"(?:[^(),]*\()*")


def system_call_of(backend: str) -> str:
    """``select`` for ``trace(check(select))``: the backend whose answers the loop gets, without what is around it."""
    return re.split(r"[(),]", _DECORATORS.sub("", backend, count=1))[0].strip()
