"""The safe arithmetic parser: against Python's own operators on random trees, and on hostile text."""

from __future__ import annotations

import operator
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mdlm_fast.tasks.arithmetic import (
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_EXPRESSION_LENGTH,
    ExpressionError,
    evaluate_expression,
)

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def value_of(tree: object) -> Fraction:
    if isinstance(tree, int):
        return Fraction(tree)
    op, left, right = tree  # type: ignore[misc]
    return OPERATORS[op](value_of(left), value_of(right))


def text_of(tree: object) -> str:
    if isinstance(tree, int):
        return str(tree)
    op, left, right = tree  # type: ignore[misc]
    return f"({text_of(left)} {op}{text_of(right)})"


def leaves(tree: object) -> list[int]:
    return [tree] if isinstance(tree, int) else leaves(tree[1]) + leaves(tree[2])  # type: ignore[index]


trees = st.recursive(st.integers(0, 10**6), lambda node: st.tuples(st.sampled_from("+-*/"), node, node), max_leaves=8)


@given(trees)
def test_value_and_numbers_of_random_trees(tree: object) -> None:
    try:
        expected = value_of(tree)
    except ZeroDivisionError:
        with pytest.raises(ExpressionError, match="division by zero"):
            evaluate_expression(text_of(tree))
        return
    assume(len(text_of(tree)) <= MAX_EXPRESSION_LENGTH)
    assert evaluate_expression(text_of(tree)) == (expected, leaves(tree))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 + 3 * 4", 14),
        ("2 - 3 - 4", -5),
        ("24 / 4 / 2", 3),
        ("-3 * -2", 6),
        ("7 × 8", 56),
        ("[1 + 2] * {3}", 9),
        ("8 ÷ 2 − 1", 3),
        ("  12", 12),
        ("3/2", Fraction(3, 2)),
    ],
)
def test_precedence_and_notation(text: str, value: Fraction) -> None:
    assert evaluate_expression(text)[0] == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "9**9**9",
        "2^64",
        "1e9",
        "1.5",
        "1 2",
        "1 +",
        "* 2",
        "(1 + 2",
        "1 + 2)",
        "()",
        "1/0",
        "5/(3-3)",
        "__import__('os').system('true')",
        "a + b",
        "1; 2",
        "0x10",
        "\u0661 + 1",
        "1\x00",
        "9" * (MAX_DIGITS + 1),
        "(" * (MAX_DEPTH + 2) + "1" + ")" * (MAX_DEPTH + 2),
        "-" * (MAX_DEPTH + 2) + "1",
        "1+" * MAX_EXPRESSION_LENGTH + "1",
    ],
)
def test_hostile_text_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        evaluate_expression(text)


@given(st.text(max_size=80))
def test_any_text_gives_a_value_or_an_expression_error(text: str) -> None:
    try:
        value, numbers = evaluate_expression(text)
    except ExpressionError:
        return
    assert isinstance(value, Fraction) and numbers
