"""The methods: each one's loss and gradients against plain loops over full logits, and where they must agree."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mdlm_fast as mf
from mdlm_fast.rl import (
    CJGRPOTrainer,
    CoupledGRPOTrainer,
    DiffuGRPOTrainer,
    DMPOTrainer,
    OneStepGRPOTrainer,
    TraceTrainer,
    backward,
    masks,
)
from mdlm_fast.rl.buffer import RolloutBuffer
from mdlm_fast.rng import derive_seed, uniform
from tests.rl import tiny

METHODS = (OneStepGRPOTrainer, DiffuGRPOTrainer, CoupledGRPOTrainer, TraceTrainer, DMPOTrainer)


# ---- the oracle: one completion at a time, without pads, full logits in float64 -------------------------------------


@dataclass
class Completion:
    """What is known of one completion, pads left out."""

    ids: list[int]
    prompt: int
    step: list[int]  # step that committed each token, -1 in the prompt
    seed: int
    group: int
    reward: float

    def trained(self, everything: bool) -> list[int]:
        """Positions up to the first end of text."""
        found = []
        for position in range(self.prompt, len(self.ids)):
            found.append(position)
            if self.ids[position] in tiny.EOS and not everything:
                break
        return found

    def canvas(self, hidden: Callable[[int], bool]) -> tuple[int, ...]:
        return tuple(tiny.MASK if hidden(i) else token for i, token in enumerate(self.ids))

    def uniform(self, position: int, iteration: int, draw: int = 0) -> float:
        seeds = torch.tensor([derive_seed(self.seed, draw)])
        return float(uniform(seeds, position, iteration, "training_masks"))


def completions(buffer: RolloutBuffer) -> list[Completion]:
    batch, found = buffer.batch, []
    for row in range(len(batch.texts)):
        real = batch.attention_mask[row].nonzero().flatten().tolist()
        trajectory = batch.trajectory
        step = trajectory.commit_step[row, real].tolist()
        assert all(s >= 0 for s in step[-8:]) and all(s == -1 for s in step[:-8])
        ids = trajectory.sequences[row, real].tolist()
        score = tiny.reward([batch.texts[row]])[0]
        found.append(Completion(ids, len(ids) - 8, step, int(batch.seeds[row]), int(buffer.groups[row]), score))
    return found


class Policy:
    """log p(token | canvas) at a temperature, every id but the mask allowed, one canvas at a time."""

    def __init__(self, module: Any, temperature: float, learns: bool = False) -> None:
        self.module = copy.deepcopy(module).double()
        self.temperature, self.learns = temperature, learns
        self.known: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, canvas: tuple[int, ...], position: int, token: int) -> Tensor:
        if canvas not in self.known:
            with torch.set_grad_enabled(self.learns):
                logits = self.module(input_ids=torch.tensor([canvas]), use_cache=False).logits[0] / self.temperature
                mask = torch.zeros(tiny.VOCAB, dtype=torch.bool)
                mask[tiny.MASK] = True
                self.known[canvas] = logits.masked_fill(mask, -torch.inf).log_softmax(-1)
        return self.known[canvas][position, token]


@dataclass
class Policies:
    new: Policy
    old: Policy
    ref: Policy


def clipped(new: Tensor, old: Tensor, advantage: float, epsilon: float) -> Tensor:
    ratio = (new - old).exp()
    inside = ratio if 1 - epsilon < ratio.item() < 1 + epsilon else ratio.detach().clamp(1 - epsilon, 1 + epsilon)
    return torch.minimum(ratio * advantage, inside * advantage).neg()


def k3(new: Tensor, ref: Tensor) -> Tensor:
    gap = ref - new
    return gap.exp() - gap - 1


def means(all_of: list[Completion]) -> dict[int, float]:
    return {c.group: sum(o.reward for o in all_of if o.group == c.group) / 4 for c in all_of}


def one_step_loss(p: Policies, args: Any, batch: list[Completion], iteration: int, everything: list[Completion]) -> Any:
    total, count = 0.0, 0
    probability = getattr(args, "p_mask_prompt", 0.0)
    for c in batch:
        advantage = c.reward - means(everything)[c.group]
        canvas = c.canvas(lambda i, c=c: i >= c.prompt or c.uniform(i, iteration) < probability)
        for i in c.trained(args.completion_tokens == "all"):
            new, old, ref = (policy(canvas, i, c.ids[i]) for policy in (p.new, p.old, p.ref))
            total = total + clipped(new, old, advantage, args.epsilon) + args.beta * k3(new, ref)
            count += 1
    return total / count


def coupled_loss(p: Policies, args: Any, batch: list[Completion], iteration: int, everything: list[Completion]) -> Any:
    total, count = 0.0, 0
    for c in batch:
        others = [o.reward for o in everything if o.group == c.group]
        advantage = c.reward - (sum(others) - c.reward) / 3
        low, high = args.mask_ratio_low, args.mask_ratio_high
        t = low + (high - low) * c.uniform(2**32 - 1, iteration)
        first = {i for i in range(c.prompt, len(c.ids)) if c.uniform(i, iteration) < t}
        full = c.canvas(lambda i, c=c: i >= c.prompt)
        for i in c.trained(args.completion_tokens == "all"):
            inside = i in first
            half = c.canvas(lambda j, c=c, f=first, s=inside: j >= c.prompt and (j in f) == s)
            weight = 1 / t if inside else 1 / (1 - t)
            values = [(q(full, i, c.ids[i]), q(half, i, c.ids[i])) for q in (p.new, p.old, p.ref)]
            if args.coupled_ratio == "mixed":
                new, old, ref = ((a + weight * b) / 2 for a, b in values)
                total = total + clipped(new, old, advantage, args.epsilon) + args.beta * k3(new, ref)
            else:
                for k, share in ((0, 0.5), (1, weight / 2)):
                    new, old, ref = (pair[k] for pair in values)
                    term = clipped(new, old, advantage, args.epsilon) + args.beta * k3(new, ref)
                    total = total + share * term
            count += 1
    return total / count


def trace_loss(p: Policies, args: Any, batch: list[Completion], iteration: int, everything: list[Completion]) -> Any:
    total, rows = 0.0, 0
    for c in batch:
        rewards = [o.reward for o in everything if o.group == c.group]
        mean = sum(rewards) / 4
        deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 4)
        advantage = (c.reward - mean) / deviation if deviation else 0.0
        trained = c.trained(args.completion_tokens == "all")
        for first in range(0, 4, args.shrink):
            part = [i for i in trained if first <= c.step[i] < first + args.shrink]
            canvas = c.canvas(lambda i, c=c, f=first: c.step[i] >= f)
            rows += bool(part)
            for i in part:
                new, old = (policy(canvas, i, c.ids[i]) for policy in (p.new, p.old))
                share = 1 if args.kl_reduction == "sum" else 1 / len(part)
                total = total + clipped(new, old, advantage, args.epsilon) / len(part)
                total = total + share * args.beta * k3(new, old)
    return total / rows


def dmpo_loss(p: Policies, args: Any, batch: list[Completion], iteration: int, everything: list[Completion]) -> Any:
    scores = {}
    for number, c in enumerate(everything):
        ratio = 0.0
        for i in range(c.prompt, len(c.ids)):
            canvas = c.canvas(lambda j, c=c, i=i: c.step[j] >= c.step[i])
            ratio += float(p.ref(canvas, i, c.ids[i]) - p.old(canvas, i, c.ids[i]))
        scores[number] = ratio if args.reference != "none" else 0.0

    def share(number: int, sign: int) -> float:
        group = [n for n, c in enumerate(everything) if c.group == everything[number].group]
        weights = {n: math.exp(sign * everything[n].reward / args.alpha + scores[n]) for n in group}
        return weights[number] / sum(weights.values())

    total = 0.0
    for c in batch:
        number = next(n for n, o in enumerate(everything) if o is c)
        baseline = {"negative": share(number, -1), "uniform": 0.25, "none": 0.0}[args.centering]
        advantage = share(number, 1) - baseline
        for pair in range(args.replicates):
            low, high = args.mask_ratio_low, args.mask_ratio_high
            t = low + (high - low) * c.uniform(2**32 - 1, iteration, pair)
            first = {i for i in range(c.prompt, len(c.ids)) if c.uniform(i, iteration, pair) < t}
            for side in (True, False):
                canvas = c.canvas(lambda i, c=c, f=first, s=side: i >= c.prompt and (i in f) == s)
                hidden = [i for i in c.trained(args.completion_tokens == "all") if (i in first) == side]
                for i in hidden:
                    cross_entropy = -p.new(canvas, i, c.ids[i])
                    total = total + advantage * cross_entropy / len(hidden) / (2 * args.replicates)
    return total / (len(batch) / 4)


ORACLES: dict[Any, Callable[..., Any]] = {
    OneStepGRPOTrainer: one_step_loss,
    DiffuGRPOTrainer: one_step_loss,
    CoupledGRPOTrainer: coupled_loss,
    TraceTrainer: trace_loss,
    DMPOTrainer: dmpo_loss,
}
CASES = [
    (OneStepGRPOTrainer, {}),
    (DiffuGRPOTrainer, {"p_mask_prompt": 0.4, "temperature": 0.7}),
    (CoupledGRPOTrainer, {}),
    (CoupledGRPOTrainer, {"coupled_ratio": "per_view", "completion_tokens": "all"}),
    (TraceTrainer, {"shrink": 1, "kl_reduction": "sum", "beta": 0.3}),
    (TraceTrainer, {"shrink": 2, "beta": 0.3, "completion_tokens": "all", "temperature": 1.3}),
    (DMPOTrainer, {"alpha": 0.5}),
    (DMPOTrainer, {"alpha": 0.5, "replicates": 1, "centering": "uniform", "temperature": 0.7}),
    (DMPOTrainer, {"alpha": 0.5, "centering": "none", "reference": "none", "completion_tokens": "all"}),
]


def gradients(module: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def accumulated(trainer: Any, buffer: RolloutBuffer, iteration: int) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one optimizer step, as the trainer's loop adds them up."""
    trainer.model.zero_grad()
    trainer.first_pass = False
    size, total = trainer.args.per_device_train_batch_size, 0.0
    for micro in range(trainer.args.gradient_accumulation_steps):
        views = buffer.micro_batch(iteration, micro * size, size)
        total += float(backward.accumulate(trainer, trainer.model, buffer, views))
    return total, gradients(trainer.model)


@pytest.mark.parametrize("normalization", ("optimizer_step", "micro_batch"))
@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_loss_and_gradients(kind: Any, settings: dict[str, Any], normalization: str, tmp_path: Path) -> None:
    """The second pass over a rollout, two micro-batches, policy, old policy and reference all different."""
    policy = tiny.model(seed=11)
    trainer = tiny.trainer(
        kind,
        tmp_path,
        policy,
        **({"num_iterations": 2} if kind is DMPOTrainer else {"beta": 0.2, "epsilon": 0.1, "num_iterations": 2})
        | settings,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        loss_normalization=normalization,
    )
    args, temperature = trainer.args, trainer.args.temperature
    reference = Policy(policy.model, temperature)
    tiny.move(policy.model, 1)
    buffer = tiny.produce(trainer, prompts=(0, 2))
    old = Policy(policy.model, temperature)
    tiny.move(policy.model, 2)
    policies = Policies(Policy(policy.model, temperature, learns=True), old, reference)
    everything = completions(buffer)
    assert len({c.prompt for c in everything}) == 2, "prompts are ragged"
    assert len({len(c.trained(False)) for c in everything}) > 1, "some text ends early"
    parts = [everything] if normalization == "optimizer_step" else [everything[:4], everything[4:]]
    wanted = sum(ORACLES[kind](policies, args, part, 1, everything) for part in parts) / len(parts)
    loss, found = accumulated(trainer, buffer, iteration=1)
    wanted.backward()
    torch.testing.assert_close(loss, float(wanted.detach()), atol=2e-5, rtol=2e-5)
    exact = gradients(policies.new.module)
    scale = max(float(g.abs().max()) for g in exact.values())
    assert scale > 1e-4
    for name, gradient in found.items():
        torch.testing.assert_close(gradient.double(), exact[name], atol=2e-5 * max(scale, 1), rtol=1e-3)


# ---- ratios at the first pass --------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", (1.0, 0.6))
@pytest.mark.parametrize(
    ("kind", "shrink"), [(CJGRPOTrainer, 0), *((kind, 0) for kind in METHODS[:3]), *((TraceTrainer, s) for s in (1, 3))]
)
def test_ratios_are_1_before_the_first_update(kind: Any, shrink: int, temperature: float, tmp_path: Path) -> None:
    extra = {"shrink": shrink} if shrink else {}
    trainer = tiny.trainer(kind, tmp_path, num_iterations=2, temperature=temperature, **extra)
    buffer = tiny.produce(trainer)
    trainer.model.train()
    for passes in buffer.views:
        for views in passes:
            new = trainer.producer.log_probs(buffer, views, trainer.policy)
            for view, logp in zip(views, new, strict=True):
                assert float((logp - view.old_logp).abs().max()) < 1e-4
                if trainer.kl_to_old:
                    assert torch.equal(view.ref_logp, view.old_logp)


def test_dmpo_ratio_is_0_where_reference_and_rollout_policy_are_one(tmp_path: Path) -> None:
    for settings in ({}, {"temperature": 0.5}, {"old_logprobs": "recompute"}):
        trainer = tiny.trainer(DMPOTrainer, tmp_path, **settings)
        buffer = tiny.produce(trainer)
        assert float(trainer.sequence_log_ratio(buffer).abs().max()) < 1e-4
        tiny.move(trainer.policy.model, 5, 0.1)  # the record is that of the policy that acted
        moved = float(trainer.sequence_log_ratio(buffer).abs().max())
        assert (moved > 0.1) == ("old_logprobs" in settings)


# ---- known cases -----------------------------------------------------------------------------------------------------


def same_step(trainers: list[Any], iteration: int = 0) -> None:
    """All trainers' losses and gradients of the first pass, on the same rollout, are equal."""
    found = []
    for trainer in trainers:
        buffer = tiny.produce(trainer)
        tiny.move(trainer.policy.model, 4)
        found.append((buffer.batch.trajectory.sequences, *accumulated(trainer, buffer, iteration)))
    for sequences, loss, grads in found[1:]:
        assert torch.equal(sequences, found[0][0])
        assert loss == pytest.approx(found[0][1], abs=1e-6)
        for name, gradient in grads.items():
            torch.testing.assert_close(gradient, found[0][2][name], atol=1e-6, rtol=1e-4)


def test_cj_grpo_of_one_step_is_one_step_grpo(tmp_path: Path) -> None:
    same_step(
        [
            tiny.trainer(kind, tmp_path, diffusion_steps=1, num_iterations=2, beta=0.1, epsilon=0.2)
            for kind in (CJGRPOTrainer, OneStepGRPOTrainer)
        ]
    )


def test_diffu_grpo_without_prompt_masks_is_one_step_grpo(tmp_path: Path) -> None:
    shared = {"num_iterations": 2, "beta": 0.1}
    same_step(
        [
            tiny.trainer(DiffuGRPOTrainer, tmp_path, p_mask_prompt=0.0, **shared),
            tiny.trainer(OneStepGRPOTrainer, tmp_path, **shared),
        ],
        iteration=1,
    )


def test_trace_with_all_steps_merged_is_one_step_grpo(tmp_path: Path) -> None:
    """Rows have equally many tokens where the filler counts, so the mean of rows is the mean of tokens."""
    shared = {"completion_tokens": "all", "beta": 0.0, "scale_rewards": "none", "epsilon": 0.2, "num_iterations": 2}
    same_step(
        [tiny.trainer(OneStepGRPOTrainer, tmp_path, **shared)]
        + [tiny.trainer(TraceTrainer, tmp_path, shrink=shrink, **shared) for shrink in (4, 9)]
    )


def test_trace_without_merging_is_cj_grpo_where_steps_are_equal(tmp_path: Path) -> None:
    shared = {"completion_tokens": "all", "beta": 0.0, "scale_rewards": "none", "epsilon": 0.2, "num_iterations": 2}
    same_step(
        [tiny.trainer(CJGRPOTrainer, tmp_path, **shared), tiny.trainer(TraceTrainer, tmp_path, shrink=1, **shared)]
    )


def test_coupled_without_weights_is_the_mean_of_the_full_and_the_complementary_canvases(tmp_path: Path) -> None:
    trainer = tiny.trainer(CoupledGRPOTrainer, tmp_path, beta=0.0)
    buffer = tiny.produce(trainer)
    (view,) = buffer.views[0][0]
    half, tokens = torch.full_like(view.mix.coefficient, 0.5), view.tokens
    buffer.views[0][0] = [view.with_(mix=view.mix._replace(coefficient=half), old_logp=None)]
    _, mixed = accumulated(trainer, buffer, 0)
    alone = []
    for rows in (slice(0, tokens), slice(tokens, None)):
        part = view.with_(rows=view.rows[rows], targets=view.targets[rows], mix=None, old_logp=None)
        buffer.views[0][0] = [part]
        alone.append(accumulated(trainer, buffer, 0)[1])
    for name, gradient in mixed.items():
        torch.testing.assert_close(gradient, (alone[0][name] + alone[1][name]) / 2, atol=1e-6, rtol=1e-4)
    canvases = view.canvas().unflatten(0, (3, -1))
    eligible = buffer.batch.trajectory.eligible
    hidden = canvases == tiny.MASK
    assert torch.equal(hidden[0], eligible) and torch.equal(hidden[1] ^ hidden[2], eligible)


def test_coupled_ratio_per_view_has_the_mixed_gradient_at_ratio_1(tmp_path: Path) -> None:
    found = []
    for coupled_ratio in ("mixed", "per_view"):
        trainer = tiny.trainer(CoupledGRPOTrainer, tmp_path, beta=0.0, coupled_ratio=coupled_ratio)
        found.append(accumulated(trainer, tiny.produce(trainer), 0)[1])
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], atol=1e-6, rtol=1e-4)


def test_antithetic_pairs_cover_every_trained_position_once(tmp_path: Path) -> None:
    trainer = tiny.trainer(DMPOTrainer, tmp_path, replicates=3, num_iterations=2)
    buffer = tiny.produce(trainer)
    length = buffer.batch.attention_mask.shape[1]
    trained = trainer.producer.chunk(buffer, slice(None)).trained
    patterns = set()
    for views in buffer.views[0]:
        assert len(views) == 6
        for first, second in zip(views[::2], views[1::2], strict=True):
            seen = torch.zeros_like(trained, dtype=torch.int64)
            for view in (first, second):
                seen[view.sequence, view.rows.long() % length] += 1
                hidden = view.canvas().flatten()[view.rows.long()]
                assert (hidden == tiny.MASK).all() and (view.targets != tiny.MASK).all()
            assert torch.equal(seen, trained.long())
            patterns.add(tuple(first.rows.tolist()))
    assert len(patterns) == 6, "every pair of every pass has a mask of its own"


# ---- masks -----------------------------------------------------------------------------------------------------------


def test_masks_do_not_depend_on_padding_or_the_batch() -> None:
    seeds = torch.tensor([5, -6, 2**62])
    real = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    u = masks.position_uniforms(seeds, real, 3)
    for row in range(3):
        alone = masks.position_uniforms(seeds[row : row + 1], torch.ones(1, int(real[row].sum())).bool(), 3)
        assert torch.equal(u[row, real[row]], alone[0])
    others = [masks.position_uniforms(seeds, real, 4), masks.position_uniforms(seeds, real, 3, draw=1)]
    assert not any(torch.equal(u, other) for other in others)
    hidden, ratio = masks.random_masks(seeds, real, 3, 0.2, 0.8)
    assert torch.equal(hidden, u < ratio)


def test_mask_ratios_are_uniform_and_apart_from_positions() -> None:
    seeds = torch.arange(4000)
    ratio = masks.mask_ratios(seeds, 0, 0.2, 0.8)
    counts = torch.histc(ratio, 6, 0.2, 0.8) / 4000
    assert float((counts - 1 / 6).abs().max()) < 0.03
    everywhere = masks.position_uniforms(seeds, torch.ones(4000, 3).bool(), 0)
    correlation = torch.corrcoef(torch.cat([ratio[None], everywhere.T]))
    assert float((correlation - torch.eye(4)).abs().max()) < 0.06


@pytest.mark.parametrize("kind", (DiffuGRPOTrainer, CoupledGRPOTrainer, DMPOTrainer))
def test_canvases_do_not_depend_on_the_rest_of_the_batch(kind: Any, tmp_path: Path) -> None:
    trainer = tiny.trainer(kind, tmp_path, **({"p_mask_prompt": 0.5} if kind is DiffuGRPOTrainer else {}))
    buffer = tiny.produce(trainer)
    mask = buffer.batch.attention_mask
    for row in (0, 5, 7):
        alone = trainer.views(trainer.producer.chunk(buffer, slice(row, row + 1)), 0)
        keep = torch.arange(8) == row
        for view, single in zip((v.select(keep) for v in buffer.views[0][0]), alone, strict=True):
            assert torch.equal(view.canvas(), single.canvas())
            assert torch.equal(view.rows, single.rows)
            assert not (view.canvas()[:, ~mask[row]] == tiny.MASK).any(), "pads are never masked"


def test_prompt_masks_hide_prompt_tokens_at_the_rate_asked_for(tmp_path: Path) -> None:
    trainer = tiny.trainer(DiffuGRPOTrainer, tmp_path, p_mask_prompt=0.3, num_iterations=40)
    chunk = trainer.producer.chunk(tiny.produce(trainer), slice(None))
    prompt = chunk.attention_mask & ~chunk.generated
    hidden = torch.stack([trainer.canvas(chunk, i) == tiny.MASK for i in range(40)])
    assert abs(float(hidden[:, prompt].float().mean()) - 0.3) < 0.04
    assert hidden[:, chunk.generated].all()


def test_mask_period_repeats_masks(tmp_path: Path) -> None:
    trainer = tiny.trainer(DiffuGRPOTrainer, tmp_path, p_mask_prompt=0.5, num_iterations=4, mask_period=2)
    canvases = [views[0].canvas() for views in tiny.produce(trainer).views[0]]
    assert torch.equal(canvases[0], canvases[2]) and torch.equal(canvases[1], canvases[3])
    assert not torch.equal(canvases[0], canvases[1])


# ---- the loop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", METHODS)
def test_two_steps_of_training_on_the_built_in_puzzles(kind: Any, tmp_path: Path) -> None:
    policy = mf.load_model("builtin:puzzles")
    row = {"prompt": mf.tasks.sudoku_prompt("1030002000104000"), "puzzle": "1030002000104000"}
    args = kind.config_class(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=4,
        num_iterations=2,
        max_completion_length=20,
        diffusion_steps=4,
        max_steps=2,
        logging_steps=1,
        learning_rate=1e-4,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    trainer = kind(policy, tiny.reward, args, [row, row])
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2 and all(math.isfinite(entry["loss"]) for entry in logs)
    assert ("kl" in logs[-1]) == (kind is not DMPOTrainer)
    assert any(not torch.equal(before[name], value) for name, value in policy.model.state_dict().items())


def test_a_checkpoint_in_the_middle_of_a_rollout_holds_what_random_views_need(tmp_path: Path) -> None:
    trainer = tiny.trainer(CoupledGRPOTrainer, tmp_path, num_iterations=3)
    buffer = tiny.produce(trainer)
    tensors = buffer.to_dict()
    restored = RolloutBuffer.from_dict(tensors, buffer.chunk_size)
    trainer.producer.build_views(restored)
    restored.restore_views(tensors)
    for before, after in zip(buffer.views[0], restored.views[0], strict=True):
        for one, other in zip(before, after, strict=True):
            assert torch.equal(one.canvas(), other.canvas())
            assert torch.equal(one.old_logp, other.old_logp) and torch.equal(one.ref_logp, other.ref_logp)


# ---- settings --------------------------------------------------------------------------------------------------------

BAD = [
    (OneStepGRPOTrainer, {"importance_sampling_cap": 2.0, "old_logprobs": "recompute"}, "must be None: the decoder"),
    (DiffuGRPOTrainer, {"p_mask_prompt": 1.0}, r"p_mask_prompt=1.0 must be in \[0, 1\)"),
    (DiffuGRPOTrainer, {"mask_period": 0}, "mask_period=0 must be at least 1"),
    (CoupledGRPOTrainer, {"mask_ratio_low": 0.9}, "mask_ratio_low=0.9 and mask_ratio_high=0.8"),
    (CoupledGRPOTrainer, {"mask_ratio_high": 1.0}, "leaves the complement empty"),
    (CoupledGRPOTrainer, {"coupled_ratio": "none"}, "coupled_ratio='none': choose"),
    (CoupledGRPOTrainer, {"scale_rewards": "group"}, "scale_rewards='group' must be 'none'"),
    (TraceTrainer, {"shrink": 0}, "shrink=0 must be at least 1"),
    (TraceTrainer, {"kl_reduction": "max"}, "kl_reduction='max'"),
    (TraceTrainer, {"shrink": 2, "decoder": "rcr"}, "shrink=2 merges steps"),
    (TraceTrainer, {"sync_ref_model": True}, "no reference to move"),
    (DMPOTrainer, {"alpha": 0.0}, "alpha=0.0 must be above 0"),
    (DMPOTrainer, {"centering": "mean"}, "centering='mean': choose"),
    (DMPOTrainer, {"replicates": 0}, "replicates=0 must be at least 1"),
    (DMPOTrainer, {"beta": 0.1}, "beta=0.1 must be 0.0: DMPO"),
    (DMPOTrainer, {"epsilon": 0.5}, "epsilon=0.5 must be 0.2: DMPO's loss is no ratio"),
    (DMPOTrainer, {"delta": 2.0}, "delta=2.0 must be None: DMPO's loss is no ratio"),
]


@pytest.mark.parametrize(("kind", "settings", "message"), BAD)
def test_bad_settings_are_refused(kind: Any, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        kind.config_class(output_dir=str(tmp_path), use_cpu=True, **settings)
