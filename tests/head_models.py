"""Tiny models of every family, and what `RowHead` must give for them: shared by the tests of models.head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from mdlm_fast import ops

V = 61
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": V,
}


def llama(**changes: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "is_causal": False, "initializer_range": 0.3, **changes})).eval()


MODELS = {
    "llama": llama,
    "tied": lambda: llama(tie_word_embeddings=True),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=2, is_causal=False)).eval(),
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES)).eval(),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SIZES)).eval(),
    "albert": lambda: AlbertForMaskedLM(AlbertConfig(**SIZES, embedding_size=24)).eval(),
}


def some_ids(batch: int = 3, length: int = 10) -> Tensor:
    return torch.randint(0, V, (batch, length))


def some_rows() -> Tensor:
    return torch.tensor([29, 0, -1, 7, 11, 10, -1, 20], dtype=torch.int32)


def expected(full: Tensor, rows: Tensor, shift: bool = False) -> ops.RowScores:
    """Float64 softmax over full logits."""
    length = full.shape[1]
    z = full.flatten(0, 1).double()
    source = torch.tensor([r - 1 if shift and r % length else r for r in rows.tolist()])
    logp, token = z[source.clamp(min=0)].log_softmax(-1).max(-1)
    bad = rows < 0
    return ops.RowScores(token.masked_fill(bad, -1), logp.masked_fill(bad, -torch.inf), None, None, None)


def check(scores: ops.RowScores, want: ops.RowScores, tolerance: float = 1e-4) -> None:
    assert scores.token is not None and scores.logp is not None and want.logp is not None
    assert scores.token.tolist() == want.token.tolist()
    torch.testing.assert_close(scores.logp.double(), want.logp, rtol=0, atol=tolerance)
