"""A tiny random model with a tokenizer, a reward, and trainers of it: what the tests of the methods share."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import mdlm_fast as mf
from mdlm_fast.models import MaskedDiffusionModel
from mdlm_fast.rl.buffer import RolloutBuffer

WORDS = ("<pad>", "<mask>", "<eos>", *(f"w{i}" for i in range(57)))
VOCAB, MASK = len(WORDS), 1
#: Many ids end a text, so that ends come in the middle of it.
EOS = tuple(range(2, 13))
PROMPTS = ("w21 w22 w23 w24 w25", "w26 w27", "w28 w29 w30", "w31")


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<pad>", mask_token="<mask>", eos_token="<eos>"
    )


def model(seed: int = 0, positions: int = 128) -> MaskedDiffusionModel:
    """2 layers, 32 wide, 60 words, float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    config.is_causal = False
    module: Any = LlamaForCausalLM(config)
    nn.init.normal_(module.model.embed_tokens.weight, std=0.5)
    nn.init.normal_(module.lm_head.weight, std=0.3)
    return mf.wrap(module.eval(), tokenizer(), mask_id=MASK, eos_ids=EOS)


def move(module: nn.Module, seed: int, size: float = 0.02) -> None:
    """Adds noise to the parameters, as an update would change them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)


def reward(completions: list[str], **_: Any) -> list[float]:
    """A number in 0, 1/7, .. 1 that depends on the text alone."""
    return [zlib.crc32(text.encode()) % 8 / 7 for text in completions]


def trainer(
    kind: Any,
    folder: Path,
    policy: Any = None,
    rows: Any = PROMPTS,
    rewards: Any = reward,
    given: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """A trainer of a method on the CPU: 2 prompts of 4 completions each a rollout, 8 tokens in 4 steps.

    given: further arguments of the trainer. settings: of its config."""
    values: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "diffusion_steps": 4,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    args = kind.config_class(output_dir=str(folder), **{**values, **settings})
    dataset = [row if isinstance(row, dict) else {"prompt": row} for row in rows]
    return kind(model() if policy is None else policy, rewards, args, dataset, **(given or {}))


def produce(of: Any, prompts: tuple[int, ...] = (0, 1), generation: int = 0) -> RolloutBuffer:
    """A rollout of some rows of the data set, with everything that training on it needs."""
    samples = range(of.args.num_generations)
    return of.producer.produce([of.prompts[index, sample, generation] for index in prompts for sample in samples])
