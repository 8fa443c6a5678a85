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
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaForCausalLM,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

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


class Float32RotaryAttention(LlamaAttention):
    """Llama's attention with queries and keys rotated in float32 and rounded to the model's dtype afterwards."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        """Arguments and results as in `LlamaAttention`; cosine and sine come in float32."""
        if position_embeddings is None:
            raise ValueError("position_embeddings must be the cosine and sine that Float32Rotary returns, got None")
        leading = hidden_states.shape[:-1]
        query, key, value = (
            project(hidden_states).view(*leading, -1, self.head_dim).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        rotated_query, rotated_key = apply_rotary_pos_emb(query, key, *position_embeddings)
        query, key = rotated_query.to(query.dtype), rotated_key.to(key.dtype)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        out, weights = attend(self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
        return self.o_proj(out.reshape(*leading, -1).contiguous()), weights


def rotate_in_float32(model: LlamaForCausalLM) -> None:
    """Make this Llama instance rotate queries and keys in float32 and round the result to the model's dtype."""
    model.model.rotary_emb = Float32Rotary(model.config).to(model.device)
    for layer in model.model.layers:
        layer.self_attn.__class__ = Float32RotaryAttention


def rotates_in_float32(model: nn.Module) -> bool:
    """Whether `rotate_in_float32` was applied to this model."""
    return any(isinstance(module, Float32Rotary) for module in model.modules())
