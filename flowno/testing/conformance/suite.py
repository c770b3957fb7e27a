"""The cases as tests, for pytest and for unittest; neither is imported by it but for ``SkipTest``."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from ...core.event_loop.backend import Selector
from .case import Case
from .cases import CASES
from .running import LIMIT, prove

__all__ = ["SelectorConformance"]


class SelectorConformance:
    """A test for each case of the kit, to be derived from by a class with a selector to test.

    A test whose case takes what the selector or the machine has not is skipped, and says what that is. A selector that
    breaks a rule fails with a :exc:`~flowno.debug.selector_decorators.ProtocolViolation`, which names it. A case that
    hangs is ended after ``limit`` seconds, where it runs in the main thread of a POSIX system; ``flowno check`` ends it
    everywhere.

    The tests have no parameters, so that pytest finds them in ``class TestMine(SelectorConformance)``, and unittest in
    ``class TestMine(SelectorConformance, unittest.TestCase)``.

    Attributes:
        factory: Makes a selector without arguments, as the class itself does.
        limit: Seconds that a case may take.
        strict: Whether to forbid, too, what the protocol merely allows: to report now and then what is not ready, and
            to end a wait before its time once or twice.

    Example:
        >>> import selectors
        >>> class TestSelect(SelectorConformance):
        ...     factory = selectors.SelectSelector
        >>> TestSelect().test_register_refuses_what_is_registered()
        >>> TestSelect().test_any_length_is_accepted()
        Traceback (most recent call last):
        flowno.core.event_loop.selector_rules.ProtocolViolation: ...
    """

    factory: ClassVar[Callable[..., Selector]]
    limit: ClassVar[float] = LIMIT
    strict: ClassVar[bool] = False

    def make_selector(self) -> Selector:
        """A new selector, which the case closes. To be overridden where ``factory`` is not enough."""
        return type(self).factory()


def _test_of(case: Case) -> Callable[[SelectorConformance], None]:
    def test(self: SelectorConformance) -> None:
        own = type(self)
        if not hasattr(own, "factory") and own.make_selector is SelectorConformance.make_selector:
            raise TypeError(
                f"{own.__qualname__} does not say what it tests: it needs a factory, as in `factory = MySelector`, or "
                "a make_selector() of its own"
            )
        prove(case, self.make_selector, limit=self.limit, strict=self.strict)

    test.__name__ = f"test_{case.name}"
    test.__qualname__ = f"{SelectorConformance.__name__}.{test.__name__}"
    test.__doc__ = f'Rule "{case.rule}": {case.sentence}.'
    return test


for _case in CASES:
    setattr(SelectorConformance, f"test_{_case.name}", _test_of(_case))
