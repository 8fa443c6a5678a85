"""Rollouts: prompts in, completions with the decoder's own record out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mdlm_fast.config import DecodeConfig
from mdlm_fast.decode import generate
from mdlm_fast.models import MaskedDiffusionModel
from mdlm_fast.rl.objectives import until_first_eos
from mdlm_fast.rng import derive_seed
from mdlm_fast.trajectory import Trajectory

if TYPE_CHECKING:
    from mdlm_fast.rl.data import Item, PromptSet


@dataclass(frozen=True)
class RolloutBatch:
    """B completions of this process, in the order of the sampler.

    Attributes:
        trajectory: their record, [B, L] tensors.
        attention_mask: bool [B, L], False on pads.
        generated: bool [B, L], the positions behind the prompt.
        seeds: int64 [B], the key of each sequence; training masks are drawn from it too.
        texts: completions up to the first EOS; completion_ids: their tokens up to and including it; ended: whether
            there is one.
        forwards: model calls. seconds: of the decode.
    """

    trajectory: Trajectory
    attention_mask: Tensor
    generated: Tensor
    seeds: Tensor
    texts: list[str] = field(default_factory=list)
    completion_ids: list[list[int]] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    forwards: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Tensor]:
        """What views are built from, as flat tensors for safetensors."""
        own = {"attention_mask": self.attention_mask, "generated": self.generated, "seeds": self.seeds}
        record = {f"trajectory.{name}": value for name, value in self.trajectory.to_dict().items()}
        return {**{name: value.contiguous() for name, value in own.items()}, **record}

    @classmethod
    def from_dict(cls, tensors: dict[str, Tensor]) -> RolloutBatch:
        """The inverse of `to_dict`; texts are not kept."""
        record = {name.split(".", 1)[1]: v for name, v in tensors.items() if name.startswith("trajectory.")}
        return cls(Trajectory.from_dict(record), tensors["attention_mask"], tensors["generated"], tensors["seeds"])


def sequence_seeds(seed: int, generation: Tensor, prompt: Tensor, sample: Tensor) -> Tensor:
    """int64 [B], the key of each sequence from (run's seed, number of the rollout, prompt, sample of the prompt).

    All arguments but seed: int64 [B]. It depends on neither the batch, nor the process, nor torch's generators, so a
    resumed run draws what the interrupted one would have drawn."""
    return derive_seed(derive_seed(derive_seed(seed, generation), prompt), sample)


def item_seeds(seed: int, items: Sequence[Item]) -> Tensor:
    """int64 [B] on the CPU, `sequence_seeds` of a data set's items."""
    numbers = torch.tensor([[item[key] for key in ("generation", "index", "sample")] for item in items]).T
    return sequence_seeds(seed, *numbers)


def rollout_items(
    model: MaskedDiffusionModel, prompts: PromptSet, items: Sequence[Item], seed: int, config: DecodeConfig
) -> RolloutBatch:
    """Decodes one completion for every item of a data set, on the model's device, from the keys of `item_seeds`."""
    input_ids, attention_mask = (tensor.to(model.device) for tensor in prompts.encode(items))
    return rollout(model, input_ids, attention_mask, item_seeds(seed, items).to(model.device), config)


def rollout(
    model: MaskedDiffusionModel, input_ids: Tensor, attention_mask: Tensor, seeds: Tensor, config: DecodeConfig
) -> RolloutBatch:
    """Decodes one completion for every prompt.

    Args:
        input_ids, attention_mask: int64 and bool [B, P], padded on the left; a prompt stands there once a completion.
        seeds: int64 [B].
        config: how to decode; its record is what the trainers train on.
    """
    with evaluating(model.model):
        output = generate(model, input_ids, attention_mask, config, seeds=tuple(seeds.tolist()))
    assert output.trajectory is not None
    trajectory = output.trajectory
    length = trajectory.sequences.shape[1]
    generated = torch.zeros_like(trajectory.eligible)
    generated[:, input_ids.shape[1] :] = True
    real = attention_mask.bool()
    real = torch.cat([real, real.new_ones(real.shape[0], length - real.shape[1])], 1)
    ids = completion_tokens(output.sequences, generated, model.eos_ids)
    ended = [bool(row) and row[-1] in model.eos_ids for row in ids]
    texts = output.text if output.text is not None else [""] * len(ids)
    return RolloutBatch(
        trajectory, real, generated, seeds, texts, ids, ended, output.stats.forwards, output.stats.seconds
    )


def completion_tokens(sequences: Tensor, generated: Tensor, eos_ids: tuple[int, ...]) -> list[list[int]]:
    """Tokens of each completion up to and including its first EOS."""
    kept = until_first_eos(sequences, generated, eos_ids)
    return [row[keep].tolist() for row, keep in zip(sequences, kept, strict=True)]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a module into eval mode, and back into the mode it had."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
