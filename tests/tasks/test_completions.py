"""What all answer parsers share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdlm_fast.tasks.completions import MAX_COMPLETION, answer_section, boxed, completion_text, strip_special


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        (r"a \boxed{1} b \boxed{ 2 }", ["1", "2"]),
        (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"]),
        (r"\boxed{\boxed{1}}", ["1"]),
        (r"\fbox{7}", ["7"]),
        (r"\boxed {3}", ["3"]),
        (r"\boxed{}", [""]),
        ("\\boxed{5 apples\nmore", ["5 apples"]),
        (r"boxed{1}", []),
        (r"\boxed 1", []),
        ("}}}{{{", []),
    ],
)
def test_boxed(text: str, contents: list[str]) -> None:
    assert boxed(text) == contents


@pytest.mark.parametrize(
    "text", ["\\boxed{" * 28_000, "\\boxed{" * 20_000 + "}" * 20_000, "{" * 199_000, "\\boxed{\n" * 25_000]
)
def test_long_hostile_texts_take_linear_time(text: str) -> None:
    assert len(boxed(text)) <= 25_000  # a quadratic scan would take hours here


@given(st.text(alphabet="\\boxed{}1 \n", max_size=200))
def test_boxed_never_fails(text: str) -> None:
    assert all(isinstance(content, str) for content in boxed(text))


def test_answer_section_is_the_last_one() -> None:
    assert answer_section("<answer>1</answer> so <answer> 2 </answer> end") == "2"
    assert answer_section("<answer>1</answer> <answer> 3 cut off") == "3 cut off"
    assert answer_section("none") is None


def test_text_after_the_end_token_does_not_count() -> None:
    assert strip_special("yes<|eot_id|><|endoftext|> \\boxed{9}") == "yes"
    assert strip_special("<|start|>yes</s>") == "yes"


def test_completions_are_texts_or_messages() -> None:
    assert completion_text("a") == "a"
    assert completion_text([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]) == "y"
    assert len(completion_text("x" * (MAX_COMPLETION + 5))) == MAX_COMPLETION
    for bad in (None, 3, [], [1], [{"role": "assistant"}], [{"content": None}]):
        with pytest.raises(TypeError, match="string or a list of messages"):
            completion_text(bad)
