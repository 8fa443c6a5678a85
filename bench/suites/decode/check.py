"""Every decoder checked against ours before it is timed.

Two comparisons, on a shorter decode of the same system, layout and vocabulary:

* Ours, as it is timed, against the baseline at temperature 0 in float32, where rounding decides no ranking: the same
  tokens, after the same number of passes.
* `released=True`, ours reproducing the release, against the baseline at the temperature asked for: the same tokens,
  drawn from torch's generator. In the dtype that is timed, but for the rollout, whose trainers and whose published
  decoder draw noise in different dtypes, which float32 makes one.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...baselines import dinfer
from ...baselines.model import LLADA_WIDTH, SMALL, mask_id, random_model, random_prompts
from .passes import passes
from .shape import Shape
from .systems import SYSTEMS, Decode, eoser_generate, eoser_rollout

CHECKED_TOKENS = 32
#: Noise this small leaves the argmax as it is, but for logits closer than it.
FADED = 1e-6


@lru_cache(maxsize=1)
def timed_model(vocab: int, device: str) -> Any:
    """The bfloat16 model that is timed: small on a CPU, of LLaDA-8B's width on a GPU."""
    return random_model(vocab, device=device, size=LLADA_WIDTH if torch.device(device).type == "cuda" else SMALL)


def prompts(shape: Shape, device: str) -> Tensor:
    """int64 [B, P]"""
    return random_prompts(shape.vocab, shape.batch, shape.prompt, device=device)


@lru_cache
def agreement(shape: Shape, device: str) -> str:
    """What was found equal.

    Raises:
        AssertionError: the decoders disagree.
    """
    model = timed_model(shape.vocab, device)
    exact = copy.deepcopy(model).float()
    greedy = replace(shape, temperature=0.0)
    system = SYSTEMS[shape.decoder]
    baseline = system.eager or system.baseline
    _same(exact, greedy, device, ours=system.paced or system.ours, baseline=baseline)
    found = "in float32 and greedily, equal tokens after as many passes"
    if system.paced is not None:
        _same(exact, greedy, device, ours=system.ours, baseline=system.paced, fewer=True)
        found = "in float32 and greedily, equal tokens after as many passes or fewer"
    if shape.decoder == "EOSER/CJ-GRPO rollout":
        _same_trajectory(exact, greedy, device)
        found += ", equal states at every step"
    if system.released is not None:
        rollout = shape.decoder == "EOSER/CJ-GRPO rollout"
        _same(exact if rollout else model, shape, device, ours=system.released, baseline=baseline)
        found += f"; at T = {shape.temperature:g} `released=True` draws its tokens"
    if system.eager is not None:
        _same_rule(model, shape, device)
        found += "; compiled and eager rule agree" + " as the noise fades" * (shape.temperature > 0)
    batch = f"{shape.batch} prompt{'s' * (shape.batch > 1)}"
    return f"{found} ({batch}, {shape.generated} tokens, {shape.steps} steps)"


def checked(shape: Shape) -> Shape:
    """The decode that stands for `shape` in the check."""
    return replace(shape, batch=min(shape.batch, 2), generated=CHECKED_TOKENS, prompt=8, block=CHECKED_TOKENS // 2)


def _decode(model: Any, decode: Decode, shape: Shape, device: str) -> tuple[Tensor, int]:
    """Canvas and rows of all passes."""
    torch.manual_seed(0)
    canvases: list[Tensor] = []
    found = passes(model, lambda: canvases.append(decode(model, prompts(shape, device), shape)))
    return canvases[0], found.rows


def _same(model: Any, shape: Shape, device: str, *, ours: Decode, baseline: Decode, fewer: bool = False) -> None:
    """fewer: ours may run fewer canvases through the model."""
    found, our_rows = _decode(model, ours, shape, device)
    wanted, rows = _decode(model, baseline, shape, device)
    different = int((found != wanted).sum())
    assert different == 0, f"{shape}: {different} of {wanted.numel()} tokens differ from {shape.decoder}'s"
    as_expected = our_rows <= rows if fewer else our_rows == rows
    assert as_expected, f"{shape}: ours ran {our_rows} canvases through the model, {shape.decoder} {rows}"
    assert not bool((found == mask_id(shape.vocab)).any()), f"{shape}: masks are left"


def _same_trajectory(model: Any, shape: Shape, device: str) -> None:
    """The states that the record of `generate` gives back are the copies that the rollout kept."""
    trajectory = eoser_generate(model, prompts(shape, device), shape).trajectory
    states = eoser_rollout(model, prompts(shape, device), shape).states
    assert trajectory is not None
    for step, state in enumerate(states[:-1]):
        assert torch.equal(trajectory.states(step), state), f"{shape}: the state before step {step} differs"


def _same_rule(model: Any, shape: Shape, device: str) -> None:
    """dInfer's rule, compiled and not, on the logits of a first step. The compiler has random numbers of its own, so
    above temperature 0 the noise has faded to next to nothing."""
    temperature = min(shape.temperature, FADED)
    mask = mask_id(shape.vocab)
    block = torch.full((shape.batch, shape.block_length), mask, device=device)
    with torch.no_grad():
        logits = model(torch.cat([prompts(shape, device), block], 1)).logits[:, -shape.block_length :]
        eager, compiled = (
            rule(logits, block.clone(), temperature, mask, 0.9) for rule in (dinfer.rule, dinfer.compiled_rule)
        )
    assert torch.equal(eager, compiled), (
        f"{shape}: the compiled rule differs in {int((eager != compiled).sum())} tokens"
    )
