"""Countdown with three numbers, scored by value: every number is used exactly once and the target is reached."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .arithmetic import ExpressionError, evaluate_expression
from .completions import answer_section, boxed, completion_text, strip_special

INSTRUCTION = (
    "Using only the numbers given and the operations + - * /, write an expression that equals the target. Use every "
    "number exactly once. Write your reasoning between <reasoning> and </reasoning>, then the expression in \\boxed{} "
    "between <answer> and </answer>."
)
_LATEX = (("\\times", "*"), ("\\cdot", "*"), ("\\div", "/"), ("\\left", ""), ("\\right", ""), ("\\,", ""), ("$", ""))
_FRACTION = re.compile(r"\\d?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_PROMPT = re.compile(r"countdown\s+(\d{1,9})\s+(\d{1,9})\s+(\d{1,9})\s+to\s+(\d{1,9})\s*:\s*")


def countdown_prompt(numbers: Sequence[int], target: int) -> str:
    """The prompt of the built-in model: ``countdown a b c to t :``."""
    if len(numbers) != 3:
        raise ValueError(f"numbers must be three integers, got {list(numbers)!r}")
    return f"countdown {' '.join(str(n) for n in numbers)} to {target} :"


def expression_solves(expression: str, numbers: Sequence[int], target: int) -> bool:
    """Whether an arithmetic expression uses exactly these numbers, once each, and equals the target."""
    try:
        value, used = evaluate_expression(expression)
    except ExpressionError:
        return False
    return value == target and sorted(used) == sorted(numbers)


def worked_solves(steps: Sequence[str], numbers: Sequence[int], target: int) -> bool:
    """Whether steps ``a op b = c``, each right, use up the numbers (and each other's results) and end at the target."""
    available = list(numbers)
    for step in steps:
        left, equals, right = step.partition("=")
        try:
            value, used = evaluate_expression(left)
            stated, _ = evaluate_expression(right)
        except ExpressionError:
            return False
        if not equals or value != stated or len(used) < 2:
            return False
        for n in used:
            if n not in available:
                return False
            available.remove(n)
        if value.denominator != 1:
            return False
        available.append(int(value))
    return available == [target]


def countdown_correct(prompt: str, completion: str) -> bool:
    """Whether the built-in model's completion solves the puzzle of its prompt.

    Accepted are worked steps separated by ``;``, an expression, and ``target = expression``."""
    match = _PROMPT.fullmatch(prompt.strip())
    if match is None:
        return False
    *numbers, target = (int(group) for group in match.groups())
    completion = completion.strip()
    if ";" in completion:
        return worked_solves(completion.split(";"), numbers, target)
    left, equals, right = completion.partition("=")
    if not equals:
        return expression_solves(completion, numbers, target)
    if left.strip() == str(target):
        return expression_solves(right, numbers, target)
    return right.strip() == str(target) and expression_solves(left, numbers, target)


def countdown_chat_prompt(numbers: Sequence[int], target: int) -> str:
    """The user message for an instruction model."""
    return f"{INSTRUCTION}\n\nNumbers: {list(numbers)}\nTarget: {target}"


def parse_expression(completion: str) -> str | None:
    r"""The expression an instruction model gives as its answer, LaTeX operators made plain ones; None without one.

    Taken from the last non-empty ``\boxed{}``, else from the answer section; ``... = value`` is cut at the equals sign.
    """
    text = strip_special(completion)
    given = next((content for content in reversed(boxed(text)) if content), None) or answer_section(text)
    if not given:
        return None
    expression = _FRACTION.sub(r"((\1)/(\2))", given)
    for latex, plain in _LATEX:
        expression = expression.replace(latex, plain)
    return expression.split("=", 1)[0].strip() or None


def completion_solves(completion: str, numbers: Sequence[int], target: int) -> bool:
    """Whether a completion of either kind, the built-in model's words or an instruction model's text, is right."""
    expression = parse_expression(completion)
    if expression is not None:
        return expression_solves(expression, numbers, target)
    return countdown_correct(countdown_prompt(numbers, target), strip_special(completion))


def countdown_reward(
    completions: Sequence[Any], numbers: Sequence[Sequence[int]], target: Sequence[int], **_: Any
) -> list[float]:
    """TRL reward: 1.0 where the answer uses each of ``numbers`` once and equals ``target`` (both data set columns)."""
    return [
        float(completion_solves(completion_text(c), n, t)) for c, n, t in zip(completions, numbers, target, strict=True)
    ]
