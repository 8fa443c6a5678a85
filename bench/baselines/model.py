"""A random masked diffusion LM whose predictions are spread as a trained one's are.

A freshly initialised transformer is nearly uniform over the vocabulary and sees no difference between masked positions:
threshold rules would commit one token a step, and rounding would decide every ranking. Two changes help:

* Weights of standard deviation 2 / sqrt(width) instead of 0.02. Attention is then sharp, so that masked positions,
  which share one embedding, attend to different tokens and end in different hidden states (mean cosine below 0.6).
* Logits of standard deviation 2 sqrt(2 ln V): 7 for 1,024 ids, 10 for 126,464. Independent normal logits of deviation
  s sqrt(2 ln V) freeze above s = 1: the largest probability no longer shrinks with V, and it differs from row to row
  (Derrida's random energy model). At s = 2 its quartiles are near 0.5, 0.7 and 0.9, and a threshold of 0.9 commits two
  to three tokens a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

#: LLaDA's ids, counted from the end of the vocabulary: 126,336 and 126,081 of 126,464.
MASK_FROM_END = 128
EOS_FROM_END = 383

SHARPNESS = 2.0  # standard deviation of the weights, in units of 1 / sqrt(width)
FREEZING = 2.0  # standard deviation of the logits, in units of sqrt(2 ln V)


@dataclass(frozen=True)
class Size:
    """Of a model's body."""

    layers: int
    width: int
    intermediate: int
    heads: int

    def __str__(self) -> str:
        return f"{self.layers} layers of width {self.width}"


#: What decodes in seconds on two cores, and LLaDA-8B's width with 8 of its 32 layers.
SMALL = Size(layers=4, width=256, intermediate=688, heads=4)
LLADA_WIDTH = Size(layers=8, width=4096, intermediate=12288, heads=32)


def mask_id(vocab: int) -> int:
    return vocab - MASK_FROM_END


def eos_id(vocab: int) -> int:
    return vocab - EOS_FROM_END


def random_model(
    vocab: int, *, device: str = "cpu", dtype: torch.dtype = torch.bfloat16, size: Size = SMALL, seed: int = 0
) -> Any:
    """Native Llama without causal masking, in eval mode, without a key-value cache; the same for the same seed and
    device."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=size.width,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=4096,
        initializer_range=SHARPNESS / math.sqrt(size.width),
        bos_token_id=1,
        eos_token_id=eos_id(vocab),
        use_cache=False,
    )
    config.is_causal = False
    torch.manual_seed(seed)
    with torch.device(device):
        model: Any = LlamaForCausalLM(config)
    # The body ends in a norm, so a hidden state has length sqrt(width).
    nn.init.normal_(model.lm_head.weight, std=FREEZING * math.sqrt(2 * math.log(vocab) / size.width))
    # A trained model does not predict the mask, and published loops that wait for a block without masks rely on it.
    model.lm_head.weight.data[mask_id(vocab)] = 0.0
    return model.to(dtype).eval()


def random_prompts(vocab: int, batch: int, length: int, *, device: str = "cpu", seed: int = 1) -> torch.Tensor:
    """int64 [batch, length], ordinary ids; drawn on the CPU, so the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, eos_id(vocab), (batch, length), generator=generator).to(device)
