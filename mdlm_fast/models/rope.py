"""Rotary position embeddings in float32, whatever dtype the model is cast to.

Two separate things. `keep_frequencies_float32` protects `inv_freq`: `model.to(torch.bfloat16)` also casts that buffer,
and 8 bits of frequency put a token at position 4000 off by whole turns. `rotate_in_float32` does what LLaDA's own code
does: it rotates queries and keys in float32 and rounds the result, where transformers rounds cosine and sine first.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaRotaryEmbedding, eager_attention_forward

_PREFIX = "mdlm_fast_rope32_"
_FREQUENCIES = ("inv_freq", "original_inv_freq")


def keep_frequencies_float32(model: nn.Module) -> None:
    """Make every rotary module of this model instance keep its float32 frequencies through any later cast."""
    for module in model.modules():
        if isinstance(getattr(module, "inv_freq", None), Tensor):
            module.__dict__["_apply"] = MethodType(_apply, module)


def _apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, which `.to`, `.half` and `.cuda` go through: it may move the frequencies, not cast them."""
    before = {name: getattr(self, name, None) for name in _FREQUENCIES}
    type(self)._apply(self, fn, recurse)
    for name, exact in before.items():
        if isinstance(exact, Tensor) and getattr(self, name).dtype != exact.dtype:
            setattr(self, name, exact.to(getattr(self, name).device))
    return self


class Float32Rotary(LlamaRotaryEmbedding):
    """Llama's rotary embedding with float32 cosine and sine, so that q and k are rotated in float32."""

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [B, L, head_dim] in float32 on the device of `x`."""
        return super().forward(x.new_empty((), dtype=torch.float32), position_ids)


def rotate_in_float32(model: LlamaForCausalLM) -> None:
    """Make this Llama rotate queries and keys in float32 and round the result to the model's dtype."""
    model.model.rotary_emb = Float32Rotary(model.config).to(model.device)
    base = getattr(model.config, "_attn_implementation", None) or "eager"
    if not base.startswith(_PREFIX):
        model.set_attn_implementation(_register(base))


def rotates_in_float32(model: nn.Module) -> bool:
    """Whether `rotate_in_float32` was applied to this model."""
    return any(isinstance(module, Float32Rotary) for module in model.modules())


def base_attention(model: nn.Module) -> str:
    """Name of the attention implementation ("sdpa", "eager", ...) without this module's prefix."""
    name = getattr(getattr(model, "config", None), "_attn_implementation", None) or "eager"
    return str(name).removeprefix(_PREFIX)


def _register(base: str) -> str:
    """Register `base` with queries and keys rounded to the dtype of the values first; returns its name."""
    name = _PREFIX + base

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> Any:
        run = ALL_ATTENTION_FUNCTIONS.get_interface(base, eager_attention_forward)
        return run(module, query.to(value.dtype), key.to(value.dtype), value, mask, **kwargs)

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name
