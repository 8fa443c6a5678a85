"""One comparison of training iterations: its sizes, and the model, prompt, reward and tokenizer of both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

#: The sides that train the released way, and whether they compute every layer again in their backward pass.
RELEASED, KEPT = "CJ-GRPO as released", "CJ-GRPO as released, layers kept"
CHECKPOINTING = {RELEASED: True, KEPT: False}

PROMPT, BLOCKS, RANK = 32, 2, 8
WARM_UP_STEPS = 2  # of the short iteration before those that count; at least a step a block


@dataclass(frozen=True)
class Vocabulary:
    """Number of tokens, and the ids of two of them. Prompts are of ids below `size` / 2, which are neither."""

    size: int
    mask_id: int
    eos_id: int


LLADA = Vocabulary(126464, 126336, 126081)
QUARTER = Vocabulary(32000, 31990, 31980)


@dataclass(frozen=True)
class Case:
    """An iteration: a rollout of completions of one prompt in `BLOCKS` blocks, temperature 1, and updates on it.

    Attributes:
        head: "trained" (every weight; no KL term) or "frozen" (LoRA of rank `RANK` on the layers' matrices, whose KL
            term is measured from the model without it).
        steps: S, of all blocks. batch: B, completions of the prompt. generated: G, tokens of each.
        updates: of the model on a rollout. dtype: of the weights.
        learning_rate, max_grad_norm: of both sides.
    """

    head: str
    steps: int
    batch: int
    generated: int
    updates: int
    dtype: str = "float32"
    device: str = "cpu"
    vocabulary: Vocabulary = LLADA
    learning_rate: float = 3e-6
    max_grad_norm: float = 0.2

    @property
    def beta(self) -> float:
        """Weight of the KL term."""
        return 0.04 if self.head == "frozen" else 0.0

    def record(self) -> dict[str, Any]:
        """What stands in the results file."""
        sizes = {name: getattr(self, name) for name in ("head", "steps", "batch", "generated", "updates", "dtype")}
        return {"method": "CJ-GRPO", **sizes}


def make_config(case: Case) -> LlamaConfig:
    """Llama without causal masking, 4 layers of width 256."""
    config = LlamaConfig(
        vocab_size=case.vocabulary.size,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        bos_token_id=1,
        eos_token_id=case.vocabulary.eos_id,
    )
    config.is_causal = False
    return config


def make_base(case: Case) -> Any:
    """The model, random."""
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(make_config(case))
    for settings in (model.config, model.generation_config):  # as the tokenizer's
        settings.pad_token_id = case.vocabulary.eos_id
    return model.to(case.device, getattr(torch, case.dtype))


def make_prompt(vocabulary: Vocabulary, length: int = PROMPT) -> Tensor:
    """int64 [length], the prompt of the group."""
    return torch.randint(3, vocabulary.size // 2, (length,), generator=torch.Generator().manual_seed(1))


def as_text(ids: Tensor) -> str:
    """What `make_tokenizer` turns into these ids, int64 [length]."""
    return " ".join(f"t{token}" for token in ids.tolist())


def reward_of_ids(ids: list[int]) -> float:
    """The mean id in thousands: no two completions have the same, so none is left out as neither good nor bad."""
    return sum(ids) / (1000 * max(len(ids), 1))


def reward_of_rows(completions: Tensor) -> Tensor:
    """`reward_of_ids` of every row: int64 [B, G] to float32 [B]."""
    return torch.tensor([reward_of_ids(row) for row in completions.tolist()], device=completions.device)


def reward_of_lists(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """`reward_of_ids` as a reward function of a trainer."""
    return [reward_of_ids(ids) for ids in completion_ids]


def make_tokenizer(vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    """One word a token: t0, t1, ..."""
    words = {f"t{token}": token for token in range(vocabulary.size)}
    model = Tokenizer(WordLevel(words, unk_token="t0"))
    model.pre_tokenizer = WhitespaceSplit()
    end = f"t{vocabulary.eos_id}"
    names = {"mask_token": f"t{vocabulary.mask_id}", "eos_token": end, "pad_token": end}
    return PreTrainedTokenizerFast(tokenizer_object=model, **names)
