"""Countdown: by value, every number exactly once."""

from __future__ import annotations

import pytest

from mdlm_fast.tasks import countdown_correct, countdown_prompt, countdown_reward, parse_expression
from mdlm_fast.tasks.countdown import completion_solves

PROMPT = countdown_prompt([30, 100, 93], 23)


@pytest.mark.parametrize(
    "completion",
    [
        "93 + 30 = 123 ; 123 - 100 = 23",
        "30 + 93 = 123 ; 123 - 100 = 23",
        "100 - 93 = 7 ; 30 - 7 = 23",
        "93 + 30 - 100",
        "23 = 93 - 100 + 30",
        "( 30 + 93 ) - 100",
        "93 + 30 - 100 = 23",
    ],
)
def test_right_answers(completion: str) -> None:
    assert countdown_correct(PROMPT, completion)


@pytest.mark.parametrize(
    "completion",
    [
        "",
        ";",
        "=",
        "23",
        "23 = 23",
        "93 + 30 = 123",
        "93 + 30 = 124 ; 124 - 100 = 24",
        "93 + 30 = 122 ; 123 - 100 = 23",
        "93 + 30 = 123 ; 123 - 100 = 22",
        "93 + 30 = 123 ; 100 - 77 = 23",
        "93 - 93 = 0 ; 0 + 23 = 23",
        "93 + 30 - 100 + 30 - 30",
        "93 - 70",
        "93 + 30 = 123 ; 123 - 100 = 23 ;",
        "93 + 30 = 123 ; 123 = 123 ; 123 - 100 = 23",
        "24 = 93 + 30 - 100",
        "93 + 30 - 100 = 24",
        "93 / 0 = 1 ; 1 - 100 = 23",
        "93 + 30 = 123 = 123 ; 123 - 100 = 23",
    ],
)
def test_wrong_answers(completion: str) -> None:
    assert not countdown_correct(PROMPT, completion)


def test_equal_numbers_are_each_used_once() -> None:
    prompt = countdown_prompt([5, 5, 5], 5)
    assert countdown_correct(prompt, "5 + 5 = 10 ; 10 - 5 = 5")
    assert not countdown_correct(prompt, "5 - 5 = 0 ; 0 + 5 = 5 ; 5 + 5 = 10")
    assert not countdown_correct(prompt, "5")


def test_a_fraction_on_the_way_is_only_an_expression() -> None:
    prompt = countdown_prompt([3, 2, 4], 6)
    assert countdown_correct(prompt, "3 / 2 * 4")
    assert not countdown_correct(prompt, "3 / 2 = 1 ; 1 * 4 = 6")


def test_no_puzzle_in_the_prompt() -> None:
    assert not countdown_correct("hello", "1 + 1")


def test_prompt_needs_three_numbers() -> None:
    with pytest.raises(ValueError, match=r"three integers, got \[1, 2\]"):
        countdown_prompt([1, 2], 3)


@pytest.mark.parametrize(
    ("completion", "expression"),
    [
        (r"<answer>\boxed{49 + 55 - 53}</answer>", "49 + 55 - 53"),
        (r"\boxed{2 \times 3 = 6}", "2 * 3"),
        (r"\boxed{\frac{6}{2} - 1}", "((6)/(2)) - 1"),
        (r"first \boxed{1+1} then \boxed{2 \div 1}", "2 / 1"),
        ("<answer>1 + 2</answer>", "1 + 2"),
        ("nothing", None),
        (r"\boxed{}", None),
    ],
)
def test_parse_expression(completion: str, expression: str | None) -> None:
    assert parse_expression(completion) == expression


def test_both_kinds_of_completion() -> None:
    assert completion_solves("93 + 30 = 123 ; 123 - 100 = 23", [30, 100, 93], 23)
    assert completion_solves(r"so \boxed{93 + 30 - 100}<|eot_id|>", [30, 100, 93], 23)
    assert not completion_solves(r"so \boxed{93 + 30}", [30, 100, 93], 23)


def test_reward_is_trl_style() -> None:
    rewards = countdown_reward(
        prompts=["p", "p"],
        completions=["93 + 30 - 100", [{"role": "assistant", "content": "1"}]],
        completion_ids=[[1], [2]],
        numbers=[[30, 100, 93]] * 2,
        target=[23, 23],
    )
    assert rewards == [1.0, 0.0]
