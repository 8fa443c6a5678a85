"""The CJ-GRPO iteration that benchmarks compare against must be a right one, or the comparison says nothing."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from mdlm_fast.bench.baselines import cj_grpo
from mdlm_fast.bench.baselines.cj_grpo import PHASES, PlainConfig
from mdlm_fast.bench.baselines.eoser import Rollout
from mdlm_fast.bench.baselines.llada import gumbel

VOCAB, MASK, PROMPT = 61, 60, 5


def tiny_model(seed: int, dtype: torch.dtype = torch.float64) -> Any:
    """A bidirectional Llama with logits spread widely enough for ratios to be clipped."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    config.is_causal = False
    model: Any = LlamaForCausalLM(config)
    nn.init.normal_(model.lm_head.weight, std=0.5)
    return model.to(dtype)


def with_adapter(model: Any) -> Any:
    """A LoRA model whose adapter changes the output; its own generator state comes from the caller's seed."""
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    return adapted.to(torch.float64)


class NeverMask(nn.Module):
    """Random logits, a new one for every call, in which the mask token never wins."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        self.calls += 1
        logits = torch.randn(*input_ids.shape, VOCAB)
        logits[..., MASK] = -1e4
        return type("Output", (), {"logits": logits})


def random_trajectory(seed: int, batch: int, config: PlainConfig) -> Rollout:
    torch.manual_seed(seed)
    return cj_grpo.rollout(NeverMask(), torch.randint(MASK, (batch, PROMPT)), config)


def row_logps(model: nn.Module, canvas: Tensor) -> np.ndarray:
    """[L, V], log-probabilities of one canvas, by numpy in float64."""
    with torch.no_grad():
        logits = model(input_ids=canvas[None], use_cache=False).logits[0].numpy()
    largest = logits.max(-1, keepdims=True)
    return logits - largest - np.log(np.exp(logits - largest).sum(-1, keepdims=True))


def oracle_loss(
    model: Any, old_model: Any, trajectory: Rollout, advantages: Tensor, config: PlainConfig
) -> tuple[float, int]:
    """The loss token by token, and how many tokens the clip range cut off. The reference is the adapter-free model."""
    total, cut = 0.0, 0
    for step, (before, after) in enumerate(zip(trajectory.states[:-1], trajectory.states[1:], strict=True)):
        terms = []
        for row in range(len(before)):
            new, old = row_logps(model, before[row]), row_logps(old_model, before[row])
            if config.beta:
                with model.disable_adapter():
                    reference = row_logps(model, before[row])
            for position in range(PROMPT, before.shape[1]):
                token = int(after[row, position])
                if int(before[row, position]) != MASK or token == MASK:
                    continue
                assert bool(trajectory.revealed[step][row, position - PROMPT])
                ratio = math.exp(new[position, token] - old[position, token])
                advantage = float(advantages[row])
                limit = 1 + config.epsilon if advantage > 0 else 1 - config.epsilon
                is_cut = ratio * advantage > limit * advantage
                cut += is_cut
                value = -(limit if is_cut else ratio) * advantage
                if config.beta:
                    gap = reference[position, token] - new[position, token]
                    value += config.beta * (math.exp(gap) - gap - 1)
                terms.append(value)
        total += sum(terms) / len(terms)
    return total / (len(trajectory.states) - 1), cut


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("schedule", [{"steps": 4, "blocks": 2}, {"steps": 3, "blocks": 1, "ascending": True}])
def test_loss_is_the_sum_written_out(seed: int, beta: float, schedule: dict[str, Any]) -> None:
    config = PlainConfig(mask_id=MASK, generated=12, beta=beta, epsilon=0.2, dtype=torch.float64, **schedule)
    trajectory = random_trajectory(seed, 3, config)
    model, old_model = tiny_model(seed), tiny_model(seed)
    with torch.no_grad():
        for parameter in old_model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if beta:
        model = with_adapter(model)
    advantages = torch.randn(3, dtype=torch.float64)
    old = cj_grpo.trajectory_logps(old_model, trajectory, config)
    reference = cj_grpo.reference_logps(model, trajectory, config)
    loss = cj_grpo.trajectory_loss(model, trajectory, advantages, old, reference, config)
    expected, cut = oracle_loss(model, old_model, trajectory, advantages, config)
    assert cut > 0
    assert loss.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "shape",
    [
        {"generated": 16, "steps": 8, "blocks": 2},
        {"generated": 14, "steps": 6, "blocks": 2},  # 7 tokens in 3 steps: the remainder goes first
        {"generated": 20, "steps": 4, "blocks": 1, "ascending": True},
        {"generated": 4, "steps": 1, "blocks": 1},
    ],
)
def test_rollout_reveals_every_token_once(dtype: torch.dtype, shape: dict[str, Any]) -> None:
    config = PlainConfig(mask_id=MASK, dtype=dtype, **shape)
    model = NeverMask()
    torch.manual_seed(shape["generated"])
    prompts = torch.randint(MASK, (3, PROMPT))
    states, revealed = (result := cj_grpo.rollout(model, prompts, config)).states, result.revealed
    assert (len(states), len(revealed), model.calls) == (config.steps + 1, config.steps, config.steps)
    assert all(state.dtype == torch.int64 for state in states)
    assert all(torch.equal(state[:, :PROMPT], prompts) for state in states)
    assert bool((states[0][:, PROMPT:] == MASK).all()) and not bool((states[-1] == MASK).any())
    assert torch.equal(torch.stack(revealed).sum(0), torch.ones(3, config.generated, dtype=torch.int64))
    for before, after, mask in zip(states, states[1:], revealed, strict=False):
        assert torch.equal((before != after)[:, PROMPT:], mask)
    counts = [mask.sum(1).tolist() for mask in revealed]
    length, steps = config.generated // config.blocks, config.steps // config.blocks
    if config.ascending:
        assert counts == [[size] * 3 for size in (1, 2, 4, 13)]
    else:
        expected = [length // steps + (step < length % steps) for step in range(steps)] * config.blocks
        assert counts == [[count] * 3 for count in expected]
        for step, mask in enumerate(revealed):
            block = step // steps
            assert not bool(mask[:, : block * length].any() or mask[:, (block + 1) * length :].any())


def test_greedy_rollout_reveals_the_surest_tokens() -> None:
    config = PlainConfig(mask_id=MASK, generated=8, steps=4, blocks=1, temperature=0.0, dtype=torch.float64)
    model = tiny_model(1)
    with torch.no_grad():  # no row's argmax may be the mask token
        model.lm_head.weight[MASK] = model.lm_head.weight[:MASK].mean(0)
    trajectory = cj_grpo.rollout(model, torch.randint(MASK, (2, PROMPT)), config)
    for step, mask in enumerate(trajectory.revealed):
        for row in range(2):
            logps = row_logps(model, trajectory.states[step][row])
            masked = (trajectory.states[step][row] == MASK).nonzero().flatten().tolist()
            surest = sorted(masked, key=lambda position: -logps[position].max())[:2]
            assert sorted(surest) == (mask[row].nonzero().flatten() + PROMPT).tolist()
            assert all(int(trajectory.states[step + 1][row, at]) == logps[at].argmax() for at in surest)


def test_race_draws_by_probability() -> None:
    """In float64 the race is a right sampler: a chi-square test against the softmax."""
    torch.manual_seed(0)
    logits = torch.randn(7, dtype=torch.float64)
    drawn = gumbel(logits.expand(20000, 7), 1.0).argmax(-1).bincount(minlength=7)
    expected = 20000 * logits.softmax(-1)
    assert float(((drawn - expected) ** 2 / expected).sum()) < 22.5  # 0.1 % of chi-square with 6 degrees of freedom


def test_checkpointing_changes_no_gradient() -> None:
    config = PlainConfig(mask_id=MASK, generated=8, steps=4, beta=0.0, dtype=torch.float64)
    trajectory = random_trajectory(3, 2, config)
    gradients = []
    for on in (False, True):
        model = tiny_model(3).train()
        cj_grpo.set_checkpointing(model, on)
        assert all(layer.gradient_checkpointing == on for layer in model.model.layers)
        old = cj_grpo.trajectory_logps(model, trajectory, config)
        cj_grpo.trajectory_loss(model, trajectory, torch.tensor([1.0, -1.0]), old, None, config).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_update_makes_every_inner_iteration_and_raises_the_better_row() -> None:
    config = PlainConfig(mask_id=MASK, generated=8, steps=4, beta=0.04, num_iterations=3, dtype=torch.float32)
    model = with_adapter(tiny_model(5)).float()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    before = copy.deepcopy(model.state_dict())
    trajectory = random_trajectory(5, 2, config)
    advantages = torch.tensor([1.0, -1.0])

    def gap() -> float:
        logps = cj_grpo.trajectory_logps(model, trajectory, config)
        rows = torch.stack([(step * mask).sum(1) for step, mask in zip(logps, trajectory.revealed, strict=True)]).sum(0)
        return float(rows[0] - rows[1])

    start = gap()
    losses = cj_grpo.update(model, optimizer, trajectory, advantages, config)
    assert len(losses) == 3 and losses[2] < losses[1] < losses[0]
    assert gap() > start
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("lora_" in name for name in changed)


def test_a_single_update_takes_its_own_log_probs_for_the_old_ones() -> None:
    config = PlainConfig(mask_id=MASK, generated=8, steps=4, beta=0.0, num_iterations=1, dtype=torch.float32)
    trajectory, advantages = random_trajectory(7, 2, config), torch.tensor([1.0, -0.5])
    updated = []
    for old_pass in (False, True):
        model = tiny_model(7, torch.float32)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        passes = CountingPhases()
        if old_pass:
            old = cj_grpo.trajectory_logps(model, trajectory, config)
            cj_grpo.trajectory_loss(model, trajectory, advantages, old, None, config).backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
        else:
            cj_grpo.update(model, optimizer, trajectory, advantages, config, passes)
            assert "old log-probs" not in passes.names
        updated.append(list(model.parameters()))
    for without, with_pass in zip(*updated, strict=True):
        torch.testing.assert_close(without, with_pass, rtol=0, atol=0)


class CountingPhases:
    """The names of the phases, in order."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str) -> Any:
        self.names.append(name)
        return nullcontext()


def test_iteration_trains_on_what_it_decoded() -> None:
    config = PlainConfig(mask_id=MASK, generated=8, steps=4, beta=0.0, num_iterations=2)
    model = tiny_model(6, torch.float32)
    seen: list[Tensor] = []

    def reward(completions: Tensor) -> Tensor:
        seen.append(completions)
        return torch.tensor([0.0, 1.0, 2.0])

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    phases = CountingPhases()
    losses = cj_grpo.iteration(model, optimizer, torch.randint(MASK, (3, PROMPT)), reward, config, phases)
    assert tuple(phases.names) == (*PHASES, *PHASES[-2:])
    assert len(losses) == 2 and all(math.isfinite(loss) for loss in losses)
    assert [tuple(completions.shape) for completions in seen] == [(3, 8)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 3}, "blocks=2 must divide steps=3"),
        ({"generated": 63}, "must divide .* generated=63"),
        ({"ascending": True}, "need blocks=1"),
        ({"ascending": True, "blocks": 1, "steps": 8}, "1 to 7 steps"),
    ],
)
def test_schedules_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PlainConfig(mask_id=MASK), **changes)


def test_a_kl_term_needs_an_adapter() -> None:
    config = PlainConfig(mask_id=MASK, generated=8, steps=4)
    with pytest.raises(ValueError, match=r"beta=0\.04 needs a reference policy"):
        cj_grpo.reference_logps(tiny_model(0), random_trajectory(0, 1, config), config)
