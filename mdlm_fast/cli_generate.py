"""`mdlm-fast generate`: texts in, texts and statistics out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mdlm_fast.config import DecodeConfig
    from mdlm_fast.models import MaskedDiffusionModel


def tokenize(model: MaskedDiffusionModel, prompts: list[str], chat: bool) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask of prompts, padded on the left: two int64 [B, P] tensors on the model's device.

    Raises:
        ValueError: the model has no tokenizer, or a prompt holds words that the tokenizer does not know.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError("the model has no tokenizer, so it cannot read text: give a checkpoint that comes with one")
    if chat:
        if getattr(tokenizer, "chat_template", None) is None:
            raise ValueError("--chat: the model's tokenizer has no chat template; leave --chat out")
        messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
        prompts = [tokenizer.apply_chat_template(m, add_generation_prompt=True, tokenize=False) for m in messages]
    rows = [tokenizer(prompt, add_special_tokens=not chat)["input_ids"] for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in row:
            raise ValueError(f"prompt {prompt!r} holds words that are not in the model's vocabulary")
    width = max(len(row) for row in rows)
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], dtype=torch.int64)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.int64)
    return ids.to(model.device), mask.to(model.device)


def decode_prompts(
    model: MaskedDiffusionModel, prompts: list[str], config: DecodeConfig, *, chat: bool
) -> dict[str, Any]:
    """Decode prompts as one batch.

    Returns:
        {"outputs": [{"prompt", "text"}, ...] in order (num_return_sequences per prompt), "stats": {...}}.
    """
    from mdlm_fast.decode import generate

    ids, mask = tokenize(model, prompts, chat)
    output = generate(model, ids, mask, config)
    copies = config.num_return_sequences
    texts = output.text or []
    outputs = [{"prompt": prompts[row // copies], "text": text} for row, text in enumerate(texts)]
    return {"outputs": outputs, "stats": plain(output.stats)}


def plain(stats: Any) -> dict[str, Any]:
    """A statistics object as JSON-serialisable values."""
    values = dict(stats) if isinstance(stats, dict) else {k: v for k, v in vars(stats).items() if not k.startswith("_")}
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in values.items()}
