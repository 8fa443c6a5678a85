"""Facts about a Hugging Face model that its class does not spell out."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """The model under a PEFT wrapper, or the model."""
    getter = getattr(model, "get_base_model", None)
    base = getter() if callable(getter) else model
    return base if isinstance(base, nn.Module) else model


def forward_arguments(model: nn.Module) -> frozenset[str]:
    """Names of the arguments that the model's forward declares."""
    return frozenset(inspect.signature(type(unwrapped(model)).forward).parameters)


def is_causal(model: nn.Module) -> bool:
    """Whether a transformers decoder attends causally, which `config.is_causal = False` turns off.

    Encoders (BERT and kin) declare no `use_cache` that could matter here and attend in both directions.
    """
    config = getattr(model, "config", None)
    declared = getattr(config, "is_causal", None)
    if declared is not None:
        return bool(declared)
    flags = [bool(m.is_causal) for m in unwrapped(model).modules() if isinstance(getattr(m, "is_causal", None), bool)]
    is_decoder_only = "CausalLM" in type(unwrapped(model)).__name__
    return is_decoder_only and any(flags)


def _position_table(model: nn.Module) -> nn.Embedding | None:
    for name, module in unwrapped(model).named_modules():
        if name.endswith("embeddings.position_embeddings") and isinstance(module, nn.Embedding):
            return module
    return None


def position_offset(model: nn.Module) -> int:
    """First position id: RoBERTa and kin count from `padding_idx + 1`, everything else from 0."""
    table = _position_table(model)
    return 0 if table is None or table.padding_idx is None else table.padding_idx + 1


def max_length(model: nn.Module) -> int | None:
    """Longest input a model with learned absolute positions takes; None for rotary models."""
    table = _position_table(model)
    return None if table is None else table.num_embeddings - position_offset(model)


def embedding_count(model: nn.Module) -> int | None:
    """Number of ids the model can read."""
    getter = getattr(model, "get_input_embeddings", None)
    table = getter() if callable(getter) else None
    return table.num_embeddings if isinstance(table, nn.Embedding) else None


def config_ids(config: Any, name: str) -> tuple[int, ...]:
    """`config.<name>` as a tuple of ids: it may be missing, None, one id or a list."""
    value = getattr(config, name, None)
    if value is None:
        return ()
    return (int(value),) if isinstance(value, int) else tuple(int(v) for v in value)
