"""Reading answers out of completions: what the parsers of all tasks share."""

from __future__ import annotations

import re
from typing import Any

_SPECIAL = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
MAX_COMPLETION = 200_000


def completion_text(completion: Any) -> str:
    """The text of a completion as TRL passes it: a string, or a list of messages (the last one's content counts).

    Raises:
        TypeError: neither of the two.
    """
    if isinstance(completion, str):
        text = completion
    elif (
        isinstance(completion, list)
        and completion
        and isinstance(completion[-1], dict)
        and isinstance(completion[-1].get("content"), str)
    ):
        text = completion[-1]["content"]
    else:
        raise TypeError(f"a completion must be a string or a list of messages, got {type(completion).__name__}")
    return text[:MAX_COMPLETION]


def strip_special(text: str) -> str:
    """Text up to the first end-of-text token, other special tokens removed.

    What a model writes after it ended its answer is not part of the answer."""
    ends = [end for token in ("<|eot_id|>", "<|endoftext|>", "<|im_end|>", "<eos>") if (end := text.find(token)) >= 0]
    return _SPECIAL.sub("", text[: min(ends)] if ends else text)


def boxed(text: str) -> list[str]:
    r"""Contents of every ``\boxed{...}``, in order, braces matched; one never closed runs to the end of its line.

    Of nested boxes the inner content counts once: ``\boxed{\boxed{1}}`` gives ``1``."""
    closing = _closing_braces(text)
    found = []
    position = 0
    while (match := _BOXED.search(text, position)) is not None:
        start = match.end() + 1
        end = closing.get(match.end(), -1)
        if end < 0:
            end = text.find("\n", start)
            end = len(text) if end < 0 else end
        if _BOXED.search(text, start, end) is None:
            found.append(text[start:end].strip())
            position = end
        else:
            position = start
    return found


def _closing_braces(text: str) -> dict[int, int]:
    """Index of the closing brace of every brace that is closed, by the index of the opening one. One pass."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for match in re.finditer("[{}]", text):
        if match[0] == "{":
            opened.append(match.start())
        elif opened:
            closing[opened.pop()] = match.start()
    return closing


def answer_section(text: str) -> str | None:
    """What follows the last ``<answer>``, up to ``</answer>`` if it is closed; None without the tag."""
    start = text.rfind("<answer>")
    if start < 0:
        return None
    return text[start + len("<answer>") :].split("</answer>", 1)[0].strip()
