"""Methods that are exchanged while somebody watches them."""

from collections.abc import Callable, Iterator
from typing import Any

from flowno.core.event_loop.exchange import Exchange, Replacement


class Greeter:
    def greet(self, name: str) -> str:
        return f"Hello, {name}"


METHOD = vars(Greeter)["greet"]


def marking(mark: str) -> Exchange:
    def layer(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, name: f"{mark}({original(self, name)})"

    def find() -> Iterator[Replacement]:
        yield Replacement(Greeter, "greet", layer)

    return Exchange(find)


def test_a_method_is_exchanged_while_somebody_needs_that_and_is_itself_afterwards() -> None:
    watching = marking("one")
    watching.begin()
    watching.begin()
    assert Greeter().greet("you") == "one(Hello, you)"
    watching.end()
    assert Greeter().greet("you") == "one(Hello, you)"
    watching.end()
    assert vars(Greeter)["greet"] is METHOD


def test_those_who_watch_the_same_method_may_end_in_any_order() -> None:
    first, second, third = marking("first"), marking("second"), marking("third")
    for each in (first, second, third):
        each.begin()
    assert Greeter().greet("you") == "third(second(first(Hello, you)))"
    second.end()
    assert Greeter().greet("you") == "third(first(Hello, you))"
    first.end()
    assert Greeter().greet("you") == "third(Hello, you)"
    first.begin()
    third.end()
    assert Greeter().greet("you") == "first(Hello, you)"
    first.end()
    assert vars(Greeter)["greet"] is METHOD


def test_what_is_to_be_exchanged_is_asked_when_the_first_one_needs_it() -> None:
    asked = []

    def find() -> Iterator[Replacement]:
        asked.append(True)
        return iter(())

    watching = Exchange(find)
    assert asked == []
    for _ in range(2):
        watching.begin()
        watching.begin()
        watching.end()
        watching.end()
    assert len(asked) == 2
