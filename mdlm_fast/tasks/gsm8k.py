"""GSM8K: grade-school word problems with a number as the answer (arXiv 2110.14168)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from .completions import answer_section, boxed, completion_text, strip_special

_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d{1,40})(?:\.\d{1,40})?")
_DECORATION = re.compile(r"\\[$!,;: ]|\$|\{,\}|\\text\{[^{}]*\}")

INSTRUCTION = (
    "Solve the problem step by step. Write your reasoning between <reasoning> and </reasoning>, then the final number "
    "in \\boxed{} between <answer> and </answer>."
)


def gsm8k_prompt(question: str) -> str:
    """The user message for a question."""
    return f"{INSTRUCTION}\n\n{question}"


def _numbers(text: str) -> list[Fraction]:
    text = _DECORATION.sub(lambda m: "," if m[0] == "{,}" else "", text)
    return [Fraction(match.replace(",", "")) for match in _NUMBER.findall(text)]


def parse_number(completion: str) -> Fraction | None:
    r"""The number a completion gives as its answer, or None.

    The first number of the first ``\boxed{}`` that holds one; without such a box what follows ``####``; then the last
    number of the answer section; then the last number of the whole text."""
    text = strip_special(completion)
    for content in boxed(text):
        if numbers := _numbers(content):
            return numbers[0]
    if "####" in text and (numbers := _numbers(text.rsplit("####", 1)[1])):
        return numbers[0]
    for part in (answer_section(text), text):
        if part is not None and (numbers := _numbers(part)):
            return numbers[-1]
    return None


def gold_number(answer: Any) -> Fraction | None:
    """The reference number of a data set row: a number, or GSM8K's text with it after ``####``; None for null."""
    if answer is None:
        return None
    if isinstance(answer, (int, float)):
        return Fraction(answer) if math.isfinite(answer) else None
    return parse_number(str(answer))


def gsm8k_correct(completion: str, answer: Any) -> bool:
    """Whether the completion's number equals the reference, to one part in a million."""
    gold, given = gold_number(answer), parse_number(completion)
    return gold is not None and given is not None and abs(gold - given) <= abs(gold) / 1_000_000


def gsm8k_reward(completions: Sequence[Any], answer: Sequence[Any], **_: Any) -> list[float]:
    """TRL reward: 1.0 where the final number is right. ``answer``: a column of numbers or of GSM8K's answer texts."""
    return [float(gsm8k_correct(completion_text(c), a)) for c, a in zip(completions, answer, strict=True)]
