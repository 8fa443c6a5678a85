"""Packs: any cut of a loss gives one gradient, memory follows the largest pack, and a diverged loss updates nothing."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from mdlm_fast.rl import CJGRPOTrainer, backward, packing
from mdlm_fast.rl.buffer import RolloutBuffer
from mdlm_fast.rl.divergence import TrainingDiverged, check_gradients
from mdlm_fast.rl.packing import PackPlanner
from tests.rl import tiny

DECODERS = {
    "blocks": {"decoder": "llada", "diffusion_steps": 4, "block_length": 4},
    "ass": {"decoder": "eoser-ass", "diffusion_steps": 3},
    "rcr": {"decoder": "rcr", "diffusion_steps": 4},
}


def prepared(folder: Path, **settings: Any) -> tuple[Any, RolloutBuffer, nn.Module]:
    """A trainer and its rollout, the policy moved since, and a copy of the policy as it was."""
    trainer = tiny.trainer(CJGRPOTrainer, folder, beta=0.1, epsilon=0.1, num_iterations=2, **settings)
    before = copy.deepcopy(trainer.policy.model)
    buffer = tiny.produce(trainer)
    tiny.move(trainer.policy.model, seed=5)
    trainer.first_pass = False
    return trainer, buffer, before


def gradient(trainer: Any, buffer: RolloutBuffer, size: int | str) -> list[Tensor]:
    """Of all views, cut into packs of so many."""
    trainer.planner = PackPlanner(size, trainer.args.device)
    views = buffer.micro_batch(0, 0, len(buffer.groups))
    trainer.policy.model.zero_grad()
    backward.accumulate(trainer, trainer.policy.model, buffer, views)
    return [parameter.grad.clone() for parameter in trainer.policy.model.parameters()]


def assert_equal(mine: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    for one, other in zip(mine, theirs, strict=True):
        assert (one - other).double().norm() <= tolerance * other.double().norm()


@pytest.mark.parametrize("decoder", DECODERS)
def test_any_pack_size_gives_the_gradient_of_one_backward(tmp_path, decoder):
    trainer, buffer, _ = prepared(tmp_path, **DECODERS[decoder])
    steps = len(buffer.views[0][0])
    assert steps >= 3
    whole = gradient(trainer, buffer, steps)
    assert max(float(g.abs().max()) for g in whole) > 1e-3
    for size in (1, 2, 3, "auto"):
        assert_equal(gradient(trainer, buffer, size), whole, 1e-6)
    planner = trainer.planner  # "auto" has measured by now and packs more than one view
    assert max(len(pack) for pack in planner.packs(buffer.views[0][0])) > 1
    views = buffer.micro_batch(0, 0, 8)
    trainer.policy.model.zero_grad()
    backward.accumulate(trainer, trainer.policy.model, buffer, views)
    assert_equal([p.grad for p in trainer.policy.model.parameters()], whole, 1e-6)


# ---- the oracle: full logits of every state in float64, one loss, one backward --------------------------------------


def all_logps(policy: Any, module: nn.Module, canvas: Tensor, real: Tensor) -> Tensor:
    """float64 [B, L, V]; the mask token is outside the distribution."""
    logits = policy.with_module(module).logits(canvas, attention_mask=real)
    return logits.index_fill(-1, torch.tensor([tiny.MASK]), -torch.inf).log_softmax(-1)


def dense_loss(trainer: Any, buffer: RolloutBuffer, now: nn.Module, before: nn.Module) -> Tensor:
    batch, args = buffer.batch, trainer.args
    trajectory, final = batch.trajectory, batch.trajectory.sequences
    steps = []
    for step in range(trajectory.steps):
        state, (tokens, _), written = trajectory.states(step), trajectory.written(step), trajectory.committed(step)
        new = all_logps(trainer.policy, now, state, batch.attention_mask)
        old = all_logps(trainer.policy, before, state, batch.attention_mask).detach()
        losses = []
        for b, i in written.nonzero().tolist():
            start = int(batch.generated[b].long().argmax())
            if any(int(token) in tiny.EOS for token in final[b, start:i]):
                continue
            difference = new[b, i, tokens[b, i]] - old[b, i, tokens[b, i]]
            advantage = buffer.advantages[b].double()
            clipped = difference.exp().clamp(1 - args.epsilon, 1 + args.epsilon) * advantage
            kl = torch.exp(-difference) + difference - 1
            losses.append(-torch.minimum(difference.exp() * advantage, clipped) + args.beta * kl)
        if losses:
            steps.append(torch.stack(losses).mean())
    return torch.stack(steps).mean()


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_gradient_is_that_of_the_loss_written_out(tmp_path, decoder):
    trainer, buffer, before = prepared(tmp_path, **DECODERS[decoder])
    mine = gradient(trainer, buffer, 2)
    now = copy.deepcopy(trainer.policy.model).double()
    now.zero_grad()
    dense_loss(trainer, buffer, now, before.double()).backward()
    assert_equal(mine, [p.grad for p in now.parameters()], 2e-5)


# ---- micro-batches ---------------------------------------------------------------------------------------------------


class Gradients(TrainerCallback):
    """Keeps the gradients of every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[list[Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
        self.steps.append([parameter.grad.clone() for parameter in model.parameters()])


@pytest.mark.parametrize("settings", [{}, {"decoder": "rcr", "beta": 0.0, "completion_tokens": "all"}])
def test_how_an_optimizer_step_is_cut_into_micro_batches_does_not_matter(tmp_path, settings):
    found = []
    for size, count in ((8, 1), (4, 2), (2, 4)):
        seen = Gradients()
        trainer = tiny.trainer(
            CJGRPOTrainer,
            tmp_path,
            given={"callbacks": [seen]},
            per_device_train_batch_size=size,
            gradient_accumulation_steps=count,
            optim="sgd",
            learning_rate=0.1,
            **{"beta": 0.1, "num_iterations": 2, "max_steps": 3, "max_grad_norm": 0.0, **settings},
        )
        trainer.train()
        assert len(seen.steps) == 3
        found.append(seen.steps)
    for cut in found[1:]:
        for mine, whole in zip(cut, found[0], strict=True):
            assert max(float(g.abs().max()) for g in whole) > 1e-3
            assert_equal(mine, whole, 2e-6)


# ---- memory ----------------------------------------------------------------------------------------------------------


class Saved:
    """Context that counts the bytes which autograd keeps alive at a time, parameters left out."""

    def __init__(self, module: nn.Module) -> None:
        self.parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.alive: dict[int, list[int]] = {}  # storage -> [bytes, holders]
        self.now = self.peak = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda holder: holder.tensor)

    def pack(self, tensor: Tensor) -> Any:
        holder = Holder(tensor)
        storage = tensor.untyped_storage()
        pointer, size = storage.data_ptr(), storage.nbytes()
        if pointer not in self.parameters:
            known = self.alive.setdefault(pointer, [size, 0])
            known[1] += 1
            self.now += size if known[1] == 1 else 0
            self.peak = max(self.peak, self.now)
            weakref.finalize(holder, self.release, pointer)
        return holder

    def release(self, pointer: int) -> None:
        size, holders = self.alive[pointer]
        self.alive[pointer][1] = holders - 1
        if holders == 1:
            self.now -= size
            del self.alive[pointer]

    def __enter__(self) -> Saved:
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.hooks.__exit__(*error)


class Holder:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def peak(trainer: Any, buffer: RolloutBuffer, size: int | str) -> int:
    with Saved(trainer.policy.model) as saved:
        gradient(trainer, buffer, size)
    assert saved.now == 0
    return saved.peak


def test_memory_does_not_grow_with_the_number_of_steps(tmp_path):
    single, whole = {}, {}
    for steps in (4, 8, 16, 32):
        trainer, buffer, _ = prepared(
            tmp_path, decoder="llada", diffusion_steps=steps, max_completion_length=32, completion_tokens="all"
        )
        assert len(buffer.views[0][0]) == steps
        single[steps], whole[steps] = peak(trainer, buffer, 1), peak(trainer, buffer, steps)
    assert all(single[steps] <= 1.01 * single[4] for steps in single)
    assert all(whole[steps] >= 0.9 * steps * single[32] for steps in whole)  # the meter sees what one backward keeps


def test_automatic_packs_fill_the_share_of_free_memory(tmp_path, monkeypatch):
    trainer, buffer, _ = prepared(
        tmp_path, decoder="llada", diffusion_steps=16, max_completion_length=16, completion_tokens="all"
    )
    one = peak(trainer, buffer, 1)
    monkeypatch.setitem(packing.ENOUGH_POSITIONS, "cpu", 2000)
    for views in (0.5, 1, 3.2, 7.1, 1000):
        free = int(views * one / packing.FREE_SHARE)
        monkeypatch.setattr(packing, "free_memory", lambda _, free=free: free)
        trainer.planner = PackPlanner("auto", trainer.args.device)
        steps = buffer.micro_batch(0, 0, 8)
        assert [len(pack) for pack in trainer.planner.packs(steps)] == [1] * 16  # nothing is known yet
        with Saved(trainer.policy.model) as saved:
            backward.accumulate(trainer, trainer.policy.model, buffer, steps)
        limit = min(views, packing.ENOUGH_POSITIONS["cpu"] / steps[0].attention_mask.numel())
        assert max(len(pack) for pack in trainer.planner.packs(steps)) == max(int(limit), 1)
        with Saved(trainer.policy.model) as saved:
            backward.accumulate(trainer, trainer.policy.model, buffer, steps)
        assert saved.peak <= max(views, 1) * 1.02 * one


def test_a_pack_limit_shrinks_with_memory_and_never_grows(monkeypatch):
    monkeypatch.setitem(packing.ENOUGH_POSITIONS, "cpu", 2000)
    planner = PackPlanner("auto", torch.device("cpu"))
    planner.load_state({"bytes_per_position": 10.0, "limit": None})
    for free, expected in ((900000, 2000), (40000, 1600), (20000, 800), (90000, 800), (100, 4)):
        monkeypatch.setattr(packing, "free_memory", lambda _, free=free: free)
        assert planner.positions() == expected
        again = PackPlanner("auto", torch.device("cpu"))
        again.load_state(planner.state())
        assert again.positions() == expected and not again.must_measure


# ---- divergence ------------------------------------------------------------------------------------------------------


class AfterStep(TrainerCallback):
    """Changes the model after an optimizer step, and keeps its parameters as they are after every one."""

    def __init__(self, step: int, change: Callable[[nn.Module], None]) -> None:
        self.step, self.change = step, change
        self.kept: dict[str, Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                self.change(model)
        self.kept = {name: parameter.clone() for name, parameter in model.named_parameters()}


def diverge(folder: Path, step: int, change: Callable[[nn.Module], None], **settings: Any) -> str:
    """The message of a run that is spoilt after a step; nothing must have been updated since."""
    spoil = AfterStep(step, change)
    trainer = tiny.trainer(
        CJGRPOTrainer,
        folder,
        given={"callbacks": [spoil]},
        **{"beta": 0.1, "max_steps": 6, "num_iterations": 2, "shuffle_dataset": False, **settings},
    )
    with pytest.raises(TrainingDiverged) as caught:
        trainer.train()
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter, spoil.kept.get(name, parameter), rtol=0, atol=0, equal_nan=True)
    assert "The update was not made" in str(caught.value) and "checkpoint" in str(caught.value)
    return str(caught.value)


def word(prompt: int) -> int:
    """The id of a prompt's first word, which no other prompt has."""
    return tiny.WORDS.index(tiny.PROMPTS[prompt].split()[0])


def poison(index: int) -> Callable[[nn.Module], None]:
    return lambda model: model.get_input_embeddings().weight[index].fill_(torch.nan)


def test_nan_names_the_steps_the_prompt_and_the_weight(tmp_path):
    message = diverge(tmp_path, 1, poison(word(1)))
    assert message.startswith("optimizer step 2, denoising step 0, sequence 4 (prompt 1): ")
    assert "holds NaN, and the weights are no longer finite, first model.embed_tokens.weight" in message


def test_the_prompt_is_named_when_a_rollout_lasts_for_several_optimizer_steps(tmp_path):
    """Sequences are numbered within an optimizer step; its prompt is not that of the rollout's first completions."""
    settings = {"per_device_train_batch_size": 4, "steps_per_generation": 2}
    message = diverge(tmp_path, 1, poison(word(1)), **settings)
    assert message.startswith("optimizer step 2, denoising step 0, sequence 0 (prompt 1): ")


def test_nan_before_a_rollout_is_found_in_it(tmp_path):
    message = diverge(tmp_path, 2, lambda model: model.lm_head.weight[5, 0].fill_(torch.nan))
    assert message.startswith("optimizer step 3, while its rollout was decoded and scored: ")
    assert "holds NaN, and the weights are no longer finite, first lm_head.weight" in message


def test_infinite_activations_of_finite_weights_are_told_apart(tmp_path):
    message = diverge(tmp_path, 1, lambda model: model.model.norm.weight.fill_(1e38))
    assert message.startswith("optimizer step 2, denoising step 0, sequence 0") and "the weights are finite" in message


def test_a_policy_that_moved_too_far_stops(tmp_path):
    message = diverge(tmp_path, 0, lambda _: None, learning_rate=100.0)
    assert message.startswith("optimizer step 2, denoising step 0, sequence")
    assert "log ratio of new to old policy" in message and "max_log_ratio=20" in message


@pytest.mark.parametrize("part", ["reference", "policy that acted"])
def test_bad_log_probs_that_are_compared_with_are_named(tmp_path, part):
    trainer = tiny.trainer(CJGRPOTrainer, tmp_path, beta=0.1, shuffle_dataset=False)
    buffer = tiny.produce(trainer)
    views = buffer.micro_batch(0, 0, 8)
    name = "ref_logp" if part == "reference" else "old_logp"
    broken = getattr(views[2], name).clone()
    broken[3] = -torch.inf
    views[2] = views[2].with_(**{name: broken})
    with pytest.raises(TrainingDiverged) as caught:
        backward.accumulate(trainer, trainer.model, buffer, views)
    sequence = int(views[2].sequence[3])
    expected = f"optimizer step 1, denoising step 2, sequence {sequence} (prompt {sequence // 4}), token 3"
    assert expected in str(caught.value)
    assert f"log-prob under the {part} is -inf" in str(caught.value)


class Rooted(CJGRPOTrainer):
    """A loss of 0 whose derivative at 0 is not finite."""

    def token_loss(self, logp: Tensor, old_logp: Tensor, advantage: Tensor) -> Tensor:
        return (logp - logp.detach()).abs().sqrt() + 0 * advantage


def test_a_gradient_that_is_not_finite_stops(tmp_path):
    trainer = tiny.trainer(Rooted, tmp_path, max_steps=1)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    with pytest.raises(TrainingDiverged, match=r"optimizer step 1: the gradient of model.* not finite, although"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_gradients_of_overflowing_norm_stop():
    module = nn.Linear(2, 2)
    for size, diverged in ((1e15, False), (1e30, True)):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, size)
        if diverged:
            with pytest.raises(TrainingDiverged, match="optimizer step 7: the norm of the gradient is not finite"):
                check_gradients(module, optimizer_step=7)
        else:
            check_gradients(module, optimizer_step=7)
