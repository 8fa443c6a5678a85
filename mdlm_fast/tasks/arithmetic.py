"""Exact arithmetic on expressions that a model wrote. Nothing is ever passed to eval()."""

from __future__ import annotations

import re
from fractions import Fraction

MAX_EXPRESSION_LENGTH = 400
MAX_DIGITS = 12
MAX_DEPTH = 30
_TOKEN = re.compile(r"\s*(?:(\d+)|(.))", re.DOTALL)
_ALIASES = {
    "\u00d7": "*",
    "\u00b7": "*",
    "\u00f7": "/",
    "\u2212": "-",
    "\u2013": "-",
    "[": "(",
    "]": ")",
    "{": "(",
    "}": ")",
}


class ExpressionError(ValueError):
    """The text is no arithmetic expression, or its value is undefined or out of bounds."""


def _tokens(text: str) -> list[str]:
    if len(text) > MAX_EXPRESSION_LENGTH:
        raise ExpressionError(f"expression of {len(text)} characters is longer than {MAX_EXPRESSION_LENGTH}")
    tokens = []
    for number, other in _TOKEN.findall(text):
        if number:
            if len(number) > MAX_DIGITS or not number.isascii():
                raise ExpressionError(f"{number[:20]!r} is not an integer of at most {MAX_DIGITS} digits")
            tokens.append(number)
        elif other.strip():
            symbol = _ALIASES.get(other, other)
            if symbol not in "+-*/()":
                raise ExpressionError(f"unexpected character {other!r}")
            tokens.append(symbol)
    return tokens


class _Parser:
    """Recursive descent: sum of products of signed integers and brackets. No powers, so values stay small."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0
        self.numbers: list[int] = []

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.position += 1
        return token

    def total(self, depth: int) -> Fraction:
        value = self.product(depth)
        while self.peek() in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            value += sign * self.product(depth)
        return value

    def product(self, depth: int) -> Fraction:
        value = self.signed(depth)
        while self.peek() in ("*", "/"):
            if self.take() == "*":
                value *= self.signed(depth)
                continue
            divisor = self.signed(depth)
            if divisor == 0:
                raise ExpressionError("division by zero")
            value /= divisor
        return value

    def signed(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH:
            raise ExpressionError(f"nested deeper than {MAX_DEPTH}")
        token = self.take()
        if token in ("+", "-"):
            value = self.signed(depth + 1)
            return value if token == "+" else -value
        if token == "(":
            value = self.total(depth + 1)
            if self.take() != ")":
                raise ExpressionError("a bracket is not closed")
            return value
        if token.isdigit():
            self.numbers.append(int(token))
            return Fraction(int(token))
        raise ExpressionError(f"expected a number, found {token or 'the end'!r}")


def evaluate_expression(text: str) -> tuple[Fraction, list[int]]:
    """Exact value of ``+ - * /`` and brackets over non-negative integers, and the integers in the order they appear.

    Raises:
        ExpressionError: anything else, division by zero, more than `MAX_EXPRESSION_LENGTH` characters, integers of more
            than `MAX_DIGITS` digits, nesting deeper than `MAX_DEPTH`.
    """
    parser = _Parser(_tokens(text))
    value = parser.total(0)
    if parser.position < len(parser.tokens):
        raise ExpressionError(f"unexpected {parser.peek()!r} after the expression")
    return value, parser.numbers
