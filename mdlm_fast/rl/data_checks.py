"""What a data set of prompts must be, row by row. Messages name the data set, the row (from 0) and what to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import IterableDataset

RESERVED_COLUMNS = ("prompts", "completions", "trainer_state", "log_extra", "log_metric")  # arguments of rewards


def check_kind(dataset: Any, name: str) -> None:
    """Raises TypeError if rows cannot be read by number, ValueError if there are none."""
    if dataset is None:
        raise TypeError(f"{name} is missing; pass a data set with a column 'prompt'")
    if isinstance(dataset, (str, Mapping)):
        hint = "pass one split of it, such as dataset['train']" if isinstance(dataset, Mapping) else "load it first"
        raise TypeError(f"{name} is a {type(dataset).__name__}, not a data set of rows; {hint}")
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"{name} is a {type(dataset).__name__}: prompts are drawn by number, so it needs __len__ and __getitem__; "
            "turn a stream into a list or a datasets.Dataset"
        )
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty; it needs at least one row with a 'prompt'")


def read_row(dataset: Any, number: int, name: str) -> Mapping[str, Any]:
    """A row. Raises ValueError if it cannot be read, is no dict, or has no prompt."""
    where = f"{name}, row {number}"
    try:
        row = dataset[number]
    except Exception as error:  # whatever the user's data set raises
        raise ValueError(f"{where}: it cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: it is a {type(row).__name__}, not a dict of columns")
    if row.get("prompt") is None:
        raise ValueError(
            f"{where}: there is no 'prompt' (columns: {', '.join(map(repr, row)) or 'none'}); every row needs one, a "
            "text or a list of {'role', 'content'} messages"
        )
    return row


def check_columns(columns: tuple[str, ...], name: str) -> None:
    """Raises ValueError if a column has the name of another argument of reward functions."""
    for column in columns:
        if column in RESERVED_COLUMNS:
            raise ValueError(
                f"{name} has a column {column!r}, which reward functions get as something else; rename the column"
            )


def check_prompt(prompt: Any, conversational: bool, where: str) -> None:
    """Raises ValueError if a prompt is empty, malformed, or of another form than the first row's."""
    if isinstance(prompt, str) == conversational:
        kinds = ("a text", "a list of messages")
        mine, first = kinds[not conversational], kinds[conversational]
        mine = mine if isinstance(prompt, (str, list)) else f"a {type(prompt).__name__}"
        raise ValueError(f"{where}: the prompt is {mine}, that of row 0 is {first}; use one form for all rows")
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError(f"{where}: the prompt is empty; remove the row")
        return
    whole = isinstance(prompt, list) and all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in prompt
    )
    if not whole:
        raise ValueError(
            f"{where}: the prompt must be a text or a list of {{'role': text, 'content': text}} messages, got "
            f"{repr(prompt)[:120]}"
        )
    if not prompt or not prompt[-1]["content"].strip():
        raise ValueError(f"{where}: the prompt's last message is empty; remove the row")


def check_tokens(ids: list[int], tokenizer: Any, limit: int | None, mask_id: int | None, where: str) -> None:
    """Raises ValueError if a prompt has no tokens, too many, or tokens that stand for no text."""
    if not ids:
        raise ValueError(f"{where}: the prompt has no tokens; remove the row")
    if limit is not None and len(ids) > limit:
        raise ValueError(
            f"{where}: the prompt has {len(ids)} tokens, more than the limit of {limit}; shorten it, remove the row "
            "or raise max_prompt_length if the model takes more"
        )
    if mask_id is not None and mask_id in ids:
        raise ValueError(f"{where}: the prompt holds the mask token, id {mask_id}; remove it from the text")
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown == tokenizer.pad_token_id and unknown in ids:
        raise ValueError(
            f"{where}: the prompt holds words that the tokenizer does not know, and would be read as padding"
        )
