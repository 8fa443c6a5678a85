"""evaluate(): the share of a task's problems that a model solves with a given decoder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .registry import Row, Task, get_task, load_rows, reward_columns

if TYPE_CHECKING:
    from mdlm_fast.config import DecodeConfig
    from mdlm_fast.models import MaskedDiffusionModel


def build_prompts(model: MaskedDiffusionModel, task: Task, rows: list[Row]) -> list[str]:
    """Prompts in the model's own format: words for the built-in puzzle model, the chat template for instruction models,
    else the user message and a line break.

    Raises:
        ValueError: the model has no tokenizer, or the built-in model cannot do the task.
    """
    tokenizer: Any = model.tokenizer
    if tokenizer is None:
        raise ValueError(f"the model has no tokenizer, so it cannot read {task.name} problems; pass one to wrap()")
    if model.settings.get("prompts") == "puzzle-words":
        if task.word_prompt is None:
            raise ValueError(f"the built-in puzzle model knows sudoku and countdown, not {task.name}")
        return [task.word_prompt(row) for row in rows]
    messages = [task.chat_prompt(row) for row in rows]
    if getattr(tokenizer, "chat_template", None) is None:
        return [message + "\n" for message in messages]
    return [
        tokenizer.apply_chat_template([{"role": "user", "content": m}], add_generation_prompt=True, tokenize=False)
        for m in messages
    ]


def encode_texts(tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, int64 [B, P] each on the CPU, padded on the left; no special tokens are added."""
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    width = max(len(row) for row in rows)
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    ids = torch.full((len(rows), width), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row, dtype=torch.int64)
        mask[i, width - len(row) :] = 1
    return ids, mask


def encode_prompts(model: MaskedDiffusionModel, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, int64 [B, P] each, padded on the left."""
    ids, mask = encode_texts(model.tokenizer, prompts)
    return ids.to(model.device), mask.to(model.device)


def completion_texts(model: MaskedDiffusionModel, tokens: Tensor) -> list[str]:
    """Texts of generated ids [B, G] up to the first EOS."""
    tokenizer: Any = model.tokenizer
    texts = []
    for row in tokens.tolist():
        end = next((i for i, token in enumerate(row) if token in model.eos_ids), len(row))
        texts.append(tokenizer.decode(row[:end], skip_special_tokens=True))
    return texts


def _config(model: MaskedDiffusionModel, task: Task, config: DecodeConfig | str | None, overrides: Row) -> DecodeConfig:
    from mdlm_fast.config import DecodeConfig

    if isinstance(config, str):
        config = DecodeConfig.preset(config)
    trained = model.settings.get("gen_length")
    if config is None:
        settings = {"gen_length": trained or task.chat_length, **overrides}
        return DecodeConfig(**settings)
    if trained is not None and "gen_length" not in overrides and config.gen_length == DecodeConfig().gen_length:
        overrides = {"gen_length": trained, **overrides}
    return config.replace(**overrides)


def evaluate(
    model: MaskedDiffusionModel,
    task: str,
    *,
    limit: int | None = None,
    config: DecodeConfig | str | None = None,
    data: str | Path | None = None,
    batch_size: int = 64,
    return_completions: bool = False,
    **overrides: Any,
) -> dict[str, Any]:
    """Decodes a task's problems and scores the answers.

    Args:
        model: with a tokenizer, from `load_model` or `wrap`.
        task: "sudoku" or "countdown" (test puzzles come with the package), "gsm8k" or "math500" (need ``data``).
        limit: only the first so many problems.
        config: a `DecodeConfig`, the name of a preset, or None: one token a step on a canvas of the length the model
            was trained with (``gen_length`` of its mdlm_fast.json), else 256. A config that leaves gen_length
            at its default takes the trained length too.
        data: JSON-lines file of problems, see `mdlm_fast.tasks.load_rows`.
        batch_size: problems decoded together. It changes no draw: problem i draws from the seed of (seed, i).
        return_completions: add the texts as "completions".
        **overrides: fields of `DecodeConfig` to change.

    Returns:
        "accuracy" in [0, 1], "solved", "problems", "forwards" (over all batches), "tokens_per_forward" (answer tokens a
        forward pass commits in each sequence, on average), "forwards_per_answer" (passes until an answer was complete,
        on average: rules that decide from the scores finish some answers of a batch before others), "seconds"
        (decoding alone). With num_return_sequences = n every answer counts: "problems" stays, "answers" is n times it.

    Raises:
        ValueError: an unknown task, no data for it, no tokenizer, or a bad config.
        FileNotFoundError: ``data`` does not exist.
    """
    from mdlm_fast.decode import generate

    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    chosen = get_task(task)
    rows = load_rows(chosen, data, limit)
    prompts = build_prompts(model, chosen, rows)
    settings = _config(model, chosen, config, overrides)
    copies = settings.num_return_sequences
    forwards, row_forwards, batches, seconds = 0, 0, 0, 0.0
    texts: list[str] = []
    for start in range(0, len(prompts), batch_size):
        input_ids, attention_mask = encode_prompts(model, prompts[start : start + batch_size])
        began = time.perf_counter()
        numbered: Row = {}
        if settings.seeds is None and settings.row_ids is None:  # a problem's draws do not depend on batch_size
            numbered = {"row_ids": tuple(range(start, start + len(input_ids)))}
        output = generate(model, input_ids, attention_mask, settings, **numbered)
        seconds += time.perf_counter() - began
        forwards += int(output.stats.forwards)
        row_forwards += sum(output.stats.row_forwards)
        batches += 1
        texts += completion_texts(model, output.sequences[:, input_ids.shape[1] :])
    repeated = [row for row in rows for _ in range(copies)]
    rewards = chosen.reward(
        prompts=[p for p in prompts for _ in range(copies)], completions=texts, **reward_columns(chosen, repeated)
    )
    solved = sum(reward == 1.0 for reward in rewards)
    result: dict[str, Any] = {
        "task": task,
        "accuracy": solved / len(rewards),
        "solved": solved,
        "problems": len(rows),
        "answers": len(rewards),
        "forwards": forwards,
        "tokens_per_forward": settings.gen_length * batches / max(1, forwards),
        "forwards_per_answer": row_forwards / len(rewards),
        "seconds": round(seconds, 4),
    }
    if return_completions:
        result["completions"] = texts
    return result
