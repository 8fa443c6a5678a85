"""The puzzle model: a native Llama made bidirectional, with number-aware initial embeddings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ..tasks.vocabulary import EOS_ID, INTEGER_OFFSET, MAX_INTEGER, PAD_ID, VOCAB_SIZE

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from .config import PretrainConfig

PERIODS = (2, 3, 4, 5, 7, 10, 16, 20, 25, 32, 50, 64, 100, 128, 200, 256, 400, 800)


def number_features() -> torch.Tensor:
    """Cosine and sine of every integer at several periods, and its magnitude: float32 [MAX_INTEGER + 1, F], rows of
    unit mean square. Addition is a rotation of these features, so it need not be learned number by number."""
    n = torch.arange(MAX_INTEGER + 1, dtype=torch.float64)
    columns = []
    for period in PERIODS:
        columns += [torch.cos(2 * math.pi * n / period), torch.sin(2 * math.pi * n / period)]
    columns += [n / 100 - 1, torch.log1p(n) / 3 - 1]
    return torch.stack(columns, dim=1).float()


def build_network(config: PretrainConfig) -> LlamaForCausalLM:
    """A `transformers.LlamaForCausalLM` with ``config.is_causal = False``, initialised from ``config.seed``."""
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        use_cache=False,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
        bos_token_id=None,
    )
    llama.is_causal = False
    llama._attn_implementation = (
        "eager"  # at 31 to 42 positions its backward is faster on a CPU than the fused kernel's
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = LlamaForCausalLM(llama)
        features = number_features()
        width = min(features.shape[1], config.hidden_size)
        numbers = slice(INTEGER_OFFSET, INTEGER_OFFSET + MAX_INTEGER + 1)
        with torch.no_grad():
            embedding, head = network.model.embed_tokens.weight, network.lm_head.weight
            embedding.normal_(0, 0.3)
            head.normal_(0, 0.02)
            embedding[numbers].mul_(0.3)
            embedding[numbers, :width] += 0.5 * features[:, :width]
            head[numbers, :width] += 0.1 * features[:, :width]
    return network
