"""One training run's network and optimisers, and the step that moves them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from ..tasks.vocabulary import MASK_ID
from .network import build_network

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from .config import PretrainConfig
    from .data import BoolArray, IntArray


def masked_loss(network: LlamaForCausalLM, prompt: IntArray, answer: IntArray, masked: BoolArray) -> torch.Tensor:
    """Sum over the batch of each example's mean cross-entropy on its masked positions (float32 scalar).

    With the number m of masked positions drawn uniformly, the mean over m masked positions times the answer's length is
    an unbiased estimate of the masked-diffusion bound (its 1/t weight is length / m), without 1/t's variance.
    Only masked positions meet the head.
    """
    where = torch.from_numpy(masked)
    target = torch.from_numpy(answer)
    canvas = torch.cat([torch.from_numpy(prompt), target.masked_fill(where, MASK_ID)], dim=1)
    hidden = network.model(input_ids=canvas).last_hidden_state[:, prompt.shape[1] :]
    logits = network.lm_head(hidden[where]).float()
    weight = (1.0 / where.sum(1, keepdim=True)).expand_as(where)[where]
    return (cross_entropy(logits, target[where], reduction="none") * weight).sum()


class Run:
    """Network and optimisers of one run."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.network = build_network(config)
        if config.compile:
            self.network.model.compile(dynamic=False)  # in place: parameter names stay as they are
        matrices = [p for name, p in self.network.named_parameters() if "layers." in name and p.ndim == 2]
        others = [p for name, p in self.network.named_parameters() if not ("layers." in name and p.ndim == 2)]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay, adjust_lr_fn="original"),
            torch.optim.AdamW(others, lr=config.adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        ]
        self.peaks = (config.muon_lr, config.adam_lr)
        self.step = 0

    def train_step(self, batches: list[tuple[IntArray, IntArray, BoolArray]]) -> list[float]:
        """One optimiser step; returns each task's mean loss."""
        examples = sum(len(answer) for _, answer, _ in batches)
        losses = []
        for prompt, answer, masked in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bf16):
                loss = masked_loss(self.network, prompt, answer, masked)
            (loss / examples).backward()
            losses.append(loss.item() / len(answer))
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0, error_if_nonfinite=True)
        factor = self.config.learning_rate_factor(self.step)
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return losses

    def state(self) -> dict[str, Any]:
        """Everything a later process needs to go on exactly here. Batches are made from (seed, step), so no generator
        state belongs to it."""
        return {
            "step": self.step,
            "identity": self.config.identity(),
            "network": self.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from `state()`.

        Raises:
            ValueError: the checkpoint belongs to a run with other settings.
        """
        mine, other = self.config.identity(), state["identity"]
        if mine != other:
            changed = ", ".join(f"{k} {other.get(k)!r} -> {mine.get(k)!r}" for k in mine if mine.get(k) != other.get(k))
            raise ValueError(f"the checkpoint was made with other settings ({changed}); use them or another folder")
        self.network.load_state_dict(state["network"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]

    def snapshot(self) -> LlamaForCausalLM:
        """A copy of the network in eval mode, not compiled."""
        network = build_network(self.config)
        network.load_state_dict(self.network.state_dict())
        return network.eval()
