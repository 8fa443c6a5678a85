"""A CJ-GRPO iteration (arXiv 2509.23924) in plain PyTorch, the way the released trainers work.

The rollout keeps a copy of the canvas before and after every step. Every step computes the logits of all positions,
races exponentials over all of them in the reduced dtype and takes a softmax over everything to read one probability a
position. Log-probabilities are dense: one forward pass a step for the old policy where there are several inner
iterations, one for the reference, and one for every inner iteration, whose S graphs are all alive until a single
backward pass.

The model is any Hugging Face causal LM whose attention is bidirectional (`config.is_causal = False`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .eoser import Rollout
from .llada import gumbel, probability_of, with_masks

#: Scores completions int64 [B, G]; float32 [B].
Reward = Callable[[Tensor], Tensor]

#: Gives the context that a phase of the iteration, one of `PHASES`, runs in, e.g. to time it.
Phase = Callable[[str], AbstractContextManager[Any]]
PHASES = ("rollout", "rewards", "old log-probs", "reference log-probs", "forward and backward", "optimizer")


def untimed(_: str) -> AbstractContextManager[None]:
    """The context of a phase that nobody times."""
    return nullcontext()


@dataclass(frozen=True)
class PlainConfig:
    """What the iteration does. Numbers are the released defaults, except the sizes.

    Attributes:
        mask_id: id of the mask token.
        generated: G, masks after the prompt.
        steps: S, denoising steps over all blocks.
        blocks: equal blocks decoded left to right, with equal shares of the steps; must divide both.
        ascending: the ascending step sizes of arXiv 2509.23924, 1, 2, 4, ... and the rest at the last step; one block.
        temperature: of the rollout; log-probabilities are those of temperature 1, as released.
        num_iterations: updates on one rollout.
        epsilon, beta: clip range of the ratio, weight of the KL term (0: no reference pass).
        dtype: logits are rounded to it as they leave the model: of the noise, the softmax and the log-softmax.
        checkpointing: whether every layer is computed again in the backward pass, as released.
        max_grad_norm: the gradient's norm is clipped to it.
    """

    mask_id: int
    generated: int = 64
    steps: int = 16
    blocks: int = 2
    ascending: bool = False
    temperature: float = 1.0
    num_iterations: int = 2
    epsilon: float = 0.5
    beta: float = 0.04
    dtype: torch.dtype = torch.bfloat16
    checkpointing: bool = True
    max_grad_norm: float = 0.2

    def __post_init__(self) -> None:
        if self.ascending:
            if self.blocks != 1 or not 1 <= self.steps <= self.generated.bit_length():
                raise ValueError(
                    f"ascending step sizes need blocks=1 and 1 to {self.generated.bit_length()} steps for "
                    f"generated={self.generated}, got blocks={self.blocks} and steps={self.steps}"
                )
        elif self.steps < 1 or self.steps % self.blocks or self.generated % self.blocks:
            raise ValueError(f"blocks={self.blocks} must divide steps={self.steps} and generated={self.generated}")

    def schedule(self) -> Iterator[tuple[int, int]]:
        """For every step: the end of its block, counted from the end of the prompt, and the tokens it reveals."""
        if self.ascending:
            sizes = [2**step for step in range(self.steps - 1)]
            yield from ((self.generated, size) for size in (*sizes, self.generated - sum(sizes)))
            return
        length, steps = self.generated // self.blocks, self.steps // self.blocks
        for block in range(self.blocks):
            for step in range(steps):
                yield (block + 1) * length, length // steps + int(step < length % steps)


@torch.no_grad()
def rollout(model: nn.Module, prompts: Tensor, config: PlainConfig) -> Rollout:
    """Decodes `prompts`, int64 [B, P], by low confidence; torch's generator is used."""
    batch, prompt_length = prompts.shape
    canvas = with_masks(prompts, config.generated, config.mask_id)
    states, revealed = [canvas.clone()], []
    for block_end, count in config.schedule():
        masked = canvas == config.mask_id
        logits = model(input_ids=canvas, use_cache=False).logits.to(config.dtype)
        tokens = gumbel(logits, config.temperature, config.dtype).argmax(-1)
        confidence = probability_of(logits, tokens)
        confidence[:, prompt_length + block_end :] = -torch.inf
        confidence = torch.where(masked, confidence, -torch.inf)
        quota = torch.full((batch,), count, device=canvas.device)
        for row in range(batch):
            chosen = confidence[row].topk(int(quota[row].item())).indices
            canvas[row, chosen] = tokens[row, chosen]
        states.append(canvas.clone())
        revealed.append((masked & (canvas != config.mask_id))[:, prompt_length:])
    return Rollout(states, revealed)


def step_logps(model: nn.Module, trajectory: Rollout, step: int, config: PlainConfig) -> Tensor:
    """float32 [B, G] (float64 if `config.dtype` is), log-probabilities of the tokens entering the next state."""
    logits = model(input_ids=trajectory.states[step], use_cache=False).logits.to(config.dtype)
    targets = trajectory.states[step + 1][:, -config.generated :]
    logps = logits[:, -config.generated :].log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return logps if config.dtype == torch.float64 else logps.float()


@torch.no_grad()
def trajectory_logps(model: nn.Module, trajectory: Rollout, config: PlainConfig) -> list[Tensor]:
    """`step_logps` of every step, without gradients."""
    return [step_logps(model, trajectory, step, config) for step in range(config.steps)]


def reference_logps(model: Any, trajectory: Rollout, config: PlainConfig) -> list[Tensor] | None:
    """Log-probabilities under the model with its adapter switched off; None without a KL term."""
    if config.beta == 0:
        return None
    if not hasattr(model, "disable_adapter"):
        raise ValueError(f"beta={config.beta} needs a reference policy: pass a peft model, or beta=0")
    disabled: AbstractContextManager[None] = model.disable_adapter()
    with disabled:
        return trajectory_logps(model, trajectory, config)


def step_loss(
    new: Tensor, old: Tensor, reference: Tensor | None, revealed: Tensor, advantages: Tensor, config: PlainConfig
) -> Tensor:
    """One step's loss: the mean over the tokens it revealed in the batch. Log-probabilities [B, G], advantages [B]."""
    ratio = (new - old).exp()
    clipped = ratio.clamp(1 - config.epsilon, 1 + config.epsilon)
    loss = -torch.min(ratio * advantages[:, None], clipped * advantages[:, None])
    if reference is not None:
        difference = reference - new
        loss = loss + config.beta * (difference.exp() - difference - 1)
    return (loss * revealed).sum() / revealed.sum().clamp(min=1)


def trajectory_loss(
    model: nn.Module,
    trajectory: Rollout,
    advantages: Tensor,
    old: list[Tensor] | None,
    reference: list[Tensor] | None,
    config: PlainConfig,
) -> Tensor:
    """The mean over steps, with the graphs of all steps attached. old: None where the policy is still the old one."""
    total = advantages.new_zeros(())
    for step in range(config.steps):
        new = step_logps(model, trajectory, step, config)
        of_old = new.detach() if old is None else old[step]
        of_reference = None if reference is None else reference[step]
        total = total + step_loss(new, of_old, of_reference, trajectory.revealed[step], advantages, config)
    return total / config.steps


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    trajectory: Rollout,
    advantages: Tensor,
    config: PlainConfig,
    phase: Phase = untimed,
) -> list[float]:
    """The inner iterations on one rollout; the loss of each."""
    old = None
    if config.num_iterations > 1:  # a single update is made by the old policy itself
        with phase("old log-probs"):
            old = trajectory_logps(model, trajectory, config)
    with phase("reference log-probs"):
        reference = reference_logps(model, trajectory, config)
    losses = []
    for _ in range(config.num_iterations):
        optimizer.zero_grad()
        with phase("forward and backward"):
            loss = trajectory_loss(model, trajectory, advantages, old, reference, config)
            loss.backward()
        losses.append(loss.item())
        with phase("optimizer"):
            nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
    return losses


def iteration(
    model: Any,
    optimizer: torch.optim.Optimizer,
    prompts: Tensor,
    reward: Reward,
    config: PlainConfig,
    phase: Phase = untimed,
) -> list[float]:
    """Rollout, rewards, and the updates on them; the loss of each. The rows of `prompts` are one group."""
    model.train()
    set_checkpointing(model, config.checkpointing)
    with phase("rollout"):
        trajectory = rollout(model, prompts, config)
    with phase("rewards"):
        rewards = reward(trajectory.states[-1][:, -config.generated :])
    return update(model, optimizer, trajectory, rewards - rewards.mean(), config, phase)


def set_checkpointing(model: Any, on: bool) -> None:
    """Whether the backward pass computes every layer again instead of keeping its activations."""
    if on:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()
