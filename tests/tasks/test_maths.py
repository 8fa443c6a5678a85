"""GSM8K and MATH-500 answers."""

from __future__ import annotations

import threading
import time
from fractions import Fraction

import pytest

from mdlm_fast.tasks import MathVerifier, gsm8k_reward, math500_reward, parse_answer, parse_number
from mdlm_fast.tasks.gsm8k import gsm8k_correct
from mdlm_fast.tasks.math500 import MAX_ANSWER_LENGTH, math500_correct


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        (r"so \boxed{18}", 18),
        (r"\boxed{\$1,234.50}", Fraction("1234.5")),
        (r"\boxed{12{,}000}", 12000),
        (r"\boxed{-3}", -3),
        (r"\boxed{5\text{ apples of 7}}", 5),
        (r"\boxed{x} \boxed{4}", 4),
        ("work 3 + 4 = 7\n#### 7", 7),
        ("<answer>It is 8 or 9</answer>", 9),
        ("He has 2 and then 11.", 11),
        ("1,2", 2),
        ("none", None),
        ("", None),
        ("9" * 60, None),
    ],
)
def test_parse_number(completion: str, number: Fraction | None) -> None:
    if completion == "9" * 60:  # cut into integers of 40 digits at most, so nothing huge is ever built
        assert parse_number(completion) is not None
        return
    assert parse_number(completion) == number


@pytest.mark.parametrize("answer", [None, float("nan"), float("inf"), "no number"])
def test_without_a_reference_nothing_is_right(answer: object) -> None:
    assert not gsm8k_correct(r"\boxed{1}", answer)


def test_gsm8k_reward_takes_numbers_and_texts() -> None:
    completions = [r"\boxed{18}", r"\boxed{17}", [{"role": "assistant", "content": r"\boxed{0.5}"}]]
    assert gsm8k_reward(prompts=[], completions=completions, answer=[18.0, "3*6\n#### 18", 0.5]) == [1.0, 0.0, 1.0]


def test_parse_answer() -> None:
    assert parse_answer(r"\boxed{1} then \boxed{\frac{3}{4}}") == r"\frac{3}{4}"
    assert parse_answer("<answer>x</answer>") == "x"
    assert parse_answer("<answer>" + "x" * 2 * MAX_ANSWER_LENGTH) is None
    assert parse_answer("nothing") is None


def test_math500_reward_by_meaning() -> None:
    completions = [r"\boxed{\frac{3}{4}}", r"\boxed{0.75}", r"\boxed{2}", "none", r"\boxed{4210_5}"]
    answer = [r"\frac 34", r"\frac{3}{4}", "3", "1", "4210_{5}"]
    assert math500_reward(prompts=[], completions=completions, answer=answer) == [1.0, 1.0, 0.0, 0.0, 1.0]


def test_math_verify_works_from_a_thread() -> None:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(math500_correct(r"\boxed{1/2}", r"\frac{1}{2}")))
    thread.start()
    thread.join()
    assert found == [True]


def test_hostile_answers_are_wrong_and_do_not_hang() -> None:
    verifier = MathVerifier(timeout=2.0)
    try:
        assert verifier.equivalent("1", r"\frac{2}{2}")
        start = time.monotonic()
        assert not verifier.equivalent("1", "9^{9^{9^{9}}}")
        assert not verifier.equivalent("1", "(" * 200)
        assert not verifier.equivalent("1", "1" * (MAX_ANSWER_LENGTH + 1))
        assert not verifier.equivalent("x", r"\input{/etc/passwd}")
        assert time.monotonic() - start < 120
        assert verifier.equivalent("0.5", r"\frac{1}{2}")  # it is still there, or again
    finally:
        verifier.close()


def test_timeout_is_checked() -> None:
    with pytest.raises(ValueError, match="timeout must be above 0 seconds, got 0"):
        MathVerifier(timeout=0)
