"""How selectors are written: names, several in order of preference, and decorators around them.

.. code-block:: text

    names = [term] { "," [term] }
    term  = name [ "(" term { "," term } ")" ]

A name is whatever holds no comma and no parenthesis; white space around it does not count. What a name stands for is
not known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from .errors import UnknownSelectorError

__all__ = ["ChoiceError", "Place", "Term", "terms_of"]

_TOKEN: Final = re.compile(r"[(),]|[^(),\s](?:[^(),]*[^(),\s])?")


class Place(NamedTuple):
    """A piece of a text, to be pointed at."""

    text: str
    start: int
    end: int

    def __str__(self) -> str:
        """Two lines, each after a line break: the text, and below it a mark. Nothing where the text is a plain name."""
        if not set(self.text) & set("()"):
            return ""
        mark = "^" * max(1, self.end - self.start)
        return f"\n  {self.text}\n  {' ' * self.start}{mark}"


class Term(NamedTuple):
    """One selector, as it was written: a name, and where it is a decorator's, the selectors that it is put around."""

    name: str
    inner: tuple[Term, ...]
    place: Place

    def __str__(self) -> str:
        return f"{self.name}({','.join(map(str, self.inner))})" if self.inner else self.name


class ChoiceError(UnknownSelectorError):
    """What was written cannot be meant.

    Args:
        problem: What is wrong with it.
        place: Where.
        about: What there is to choose from instead: "selectors", "decorators", or "" where the form is wrong.
    """

    def __init__(self, problem: str, place: Place, about: str = "") -> None:
        super().__init__(problem)
        self.place = place
        self.about = about


def terms_of(text: str) -> list[Term]:
    """The selectors that are written in a text, in order; empty places between commas do not count.

    Raises:
        ChoiceError: It is not of the form that the top of this module shows.
    """
    return _Reader(text).read()


class _Reader:
    """Reads a text from left to right, one function for each rule of the grammar."""

    def __init__(self, text: str) -> None:
        self._text = re.sub(r"\s", " ", text)  # a line break would put the mark below another line
        self._tokens = self._split()
        self._advance()

    def _split(self) -> Iterator[tuple[str, Place]]:
        for match in _TOKEN.finditer(self._text):
            yield match[0], Place(self._text, *match.span())
        yield "", Place(self._text, len(self._text), len(self._text))

    def _advance(self) -> None:
        self._token, self._place = next(self._tokens)

    def read(self) -> list[Term]:
        terms = []
        while self._token:
            if self._token not in (",", ")"):
                terms.append(self._term())
            if self._token == ")":
                raise ChoiceError("there is no parenthesis to be closed", self._place)
            self._comma()
        return terms

    def _term(self) -> Term:
        name, place = self._token, self._place
        if name == "(":
            raise ChoiceError("the name of a decorator is missing before the parenthesis", place)
        if name in (",", ")", ""):
            raise ChoiceError("the name of a selector is missing", place)
        self._advance()
        return Term(name, self._inner() if self._token == "(" else (), place)

    def _inner(self) -> tuple[Term, ...]:
        opening = self._place
        self._advance()
        terms = []
        while self._token:
            terms.append(self._term())
            if self._token == ")":
                self._advance()
                return tuple(terms)
            self._comma()
        raise ChoiceError("the parenthesis is not closed", opening)

    def _comma(self) -> None:
        if self._token == ",":
            self._advance()
        elif self._token:
            raise ChoiceError("a comma is missing", self._place)
