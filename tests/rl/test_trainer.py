"""The trainer: record and training agree, bad input is refused in time, any kind of model trains, logs are TRL's."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainingArguments, set_seed

import mdlm_fast as mf
from mdlm_fast.models import save_model
from mdlm_fast.rl import CJGRPOTrainer, backward, producer
from mdlm_fast.rl import rollout as rollouts
from mdlm_fast.rl.lora import lora_config
from mdlm_fast.rl.reference import ADAPTER
from tests.rl import tiny
from tests.rl.watching import Gradients

# ---- the rollout's record is what training computes ------------------------------------------------------------------

#: (settings, whether the record can be the old log-prob of training; where not, a pass recomputes it).
ROLLOUTS: dict[str, tuple[dict[str, Any], bool]] = {
    "blocks": ({"decoder": "llada", "block_length": 4}, True),
    "eoser": ({"decoder": "eoser"}, True),
    "ass": ({"decoder": "ass", "diffusion_steps": None}, True),
    "eoser and ass": ({"decoder": "eoser-ass", "diffusion_steps": None}, True),
    "remasking": ({"decoder": "rcr"}, True),
    "cool": ({"decoder": "llada", "temperature": 0.6}, True),
    "hot": ({"decoder": "eoser-ass", "diffusion_steps": None, "temperature": 1.5}, True),
    "cool, remasking": ({"decoder": "rcr", "temperature": 0.6}, False),
    "cool, trained at 1": ({"temperature": 0.6, "logp_temperature": 1.0}, True),
    "drawn at 1, trained cool": ({"logp_temperature": 0.7}, False),
    "top-p": ({"top_p": 0.8}, True),
    "top-p, cool, recomputed": ({"top_p": 0.8, "temperature": 0.6, "old_logprobs": "recompute"}, False),
    "top-k": ({"top_k": 5, "temperature": 0.8}, True),
    "stop at EOS": ({"block_length": 2, "decoder_overrides": {"stop_at_eos": True}}, True),
    "all tokens": ({"block_length": 2, "completion_tokens": "all"}, True),
    "all ids": ({"decoder_overrides": {"normalize_over": "all"}}, True),
    "threshold": ({"decoder": "fast-dllm", "block_length": 8, "diffusion_steps": None}, True),
}


def dense_logps(trainer: Any, canvas: Tensor, real: Tensor, temperature: float) -> Tensor:
    """float64 [B, L, V] of the policy."""
    policy = trainer.policy.with_module(copy.deepcopy(trainer.policy.model).double())
    logits = policy.logits(canvas, attention_mask=real) / temperature
    if trainer.decode_config.normalize_over != "all":
        logits = logits.index_fill(-1, torch.tensor([tiny.MASK]), -torch.inf)
    return logits.log_softmax(-1)


@pytest.mark.parametrize("case", ROLLOUTS)
def test_old_log_probs_are_those_of_the_first_pass(tmp_path, monkeypatch, case):
    settings, recorded = ROLLOUTS[case]
    trainer = tiny.trainer(
        CJGRPOTrainer, tmp_path, beta=0.1, num_iterations=2, max_steps=2, logging_steps=1, **settings
    )
    passes: list[Any] = []
    score = producer.log_probs
    monkeypatch.setattr(producer, "log_probs", lambda *arguments: passes.append(arguments[0]) or score(*arguments))
    buffer = tiny.produce(trainer)
    assert sum(model is trainer.policy for model in passes) == (0 if recorded else 1)
    batch, views = buffer.batch, buffer.views[0][0]
    assert len(views) >= 2 and not batch.attention_mask.all()  # prompts of different lengths
    temperature = trainer.args.training_temperature
    for view in views:
        dense = dense_logps(trainer, batch.trajectory.states(view.step), batch.attention_mask, temperature)
        position = view.rows.long() % dense.shape[1]
        expected = dense[view.sequence, position, view.targets]
        assert (view.old_logp - expected).abs().max() < 1e-4
    trainer.train()
    log = trainer.state.log_history
    assert log[0]["rollout/logp_gap_max"] < 1e-4 and log[0]["log_ratio/mean_abs"] < 1e-5
    assert "rollout/logp_gap_max" not in log[1] and log[1]["log_ratio/mean_abs"] > 1e-5


def off(monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    """Rollouts whose record of log-probs is off by so much."""
    decode = rollouts.rollout

    def wrong(*arguments: Any) -> Any:
        batch = decode(*arguments)
        moved = {name: getattr(batch.trajectory, name) + by for name in ("commit_logp", "commit_logp_T")}
        return replace(batch, trajectory=replace(batch.trajectory, **moved))

    monkeypatch.setattr(rollouts, "rollout", wrong)


def test_the_gap_is_logged(tmp_path, monkeypatch):
    off(monkeypatch, 0.25)
    trainer = tiny.trainer(CJGRPOTrainer, tmp_path, max_steps=1, logging_steps=1, num_iterations=1, beta=0.1)
    trainer.train()
    assert trainer.state.log_history[0]["rollout/logp_gap_max"] == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize(("cap", "weight"), [(1.2, 1.2), (2.0, 1.5)])
def test_importance_weights_are_truncated_and_scale_the_policy_term(tmp_path, monkeypatch, cap, weight):
    def gradient(**settings: Any) -> Tensor:
        trainer = tiny.trainer(
            CJGRPOTrainer, tmp_path, num_iterations=1, beta=0.0, old_logprobs="recompute", **settings
        )
        buffer = tiny.produce(trainer)
        for view in buffer.views[0][0]:
            assert (view.importance is None) == (not settings)
            if view.importance is not None:
                torch.testing.assert_close(view.importance, torch.full_like(view.importance, weight), rtol=1e-4, atol=0)
        trainer.first_pass = True
        backward.accumulate(trainer, trainer.model, buffer, buffer.micro_batch(0, 0, 8))
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters()])

    plain = gradient()
    off(monkeypatch, -float(torch.tensor(1.5).log()))
    torch.testing.assert_close(gradient(importance_sampling_cap=cap), weight * plain, rtol=1e-3, atol=1e-6)


# ---- bad input -------------------------------------------------------------------------------------------------------


def needs_a_column(completions: list[str], answer: list[str]) -> list[float]:
    return [0.0 for _ in completions]


class Judge:
    def __call__(self, completions: list[str]) -> list[float]:
        return [0.0 for _ in completions]


def without_mask_token() -> Any:
    plain = tiny.tokenizer()
    plain.mask_token = None
    return {"policy": tiny.model().model, "given": {"processing_class": plain}}


#: (what is passed to tiny.trainer, error, what its message says).
BAD: dict[str, tuple[Callable[[], dict[str, Any]], type[Exception], str]] = {
    "group size": (lambda: {"num_generations": 3}, ValueError, "num_generations=3 does not fit .* it can be 2, 4, 8"),
    "group of one": (lambda: {"num_generations": 1}, ValueError, "num_generations=1: advantages compare"),
    "too few prompts": (lambda: {"rows": ["w21"]}, ValueError, "has 1 prompts, but a generation batch takes 2"),
    "no data": (lambda: {"rows": []}, ValueError, "train_dataset is empty"),
    "no prompt": (lambda: {"rows": [{"question": "w21"}]}, ValueError, "row 0: there is no 'prompt'"),
    "empty prompt": (lambda: {"rows": ["w21", " "]}, ValueError, "row 1: the prompt is empty"),
    "mask in a prompt": (lambda: {"rows": ["w21 <mask>"]}, ValueError, "row 0: the prompt holds the mask token"),
    "long prompt": (lambda: {"max_prompt_length": 4}, ValueError, "row 0: the prompt has 5 tokens, more than .* 4"),
    "long for the model": (
        lambda: {"policy": tiny.model(positions=12)},
        ValueError,
        "row 0: the prompt has 5 tokens, more than the limit of 4",
    ),
    "no room": (lambda: {"policy": tiny.model(positions=8)}, ValueError, "max_completion_length=8 leaves no room"),
    "steps": (lambda: {"diffusion_steps": 5, "block_length": 4}, ValueError, "steps=5 must be a multiple of .* blocks"),
    "blocks": (lambda: {"block_length": 3}, ValueError, "steps=4 must be a multiple of the number of blocks, 3"),
    "ass steps": (lambda: {"decoder": "ass", "diffusion_steps": 5}, ValueError, "steps=5"),
    "decoder": (lambda: {"decoder": "greedy"}, ValueError, "unknown preset 'greedy'"),
    "guidance": (lambda: {"decoder_overrides": {"cfg_scale": 1.0}}, ValueError, "cfg_scale=1.0: guided rollouts"),
    "greedy": (lambda: {"temperature": 0.0}, ValueError, "temperature=0.0: every completion of a prompt would be"),
    "no mask token": (without_mask_token, ValueError, "mask"),
    "no tokenizer": (
        lambda: {"policy": mf.wrap(tiny.model().model, mask_id=1, eos_ids=(2,))},
        ValueError,
        "no tokenizer, so it cannot read prompts: pass processing_class=",
    ),
    "no reward": (lambda: {"rewards": []}, ValueError, "reward_funcs is empty"),
    "reward model": (lambda: {"rewards": "judge-8b"}, TypeError, r"reward_funcs\[0\] is 'judge-8b', a reward model"),
    "reward class": (lambda: {"rewards": Judge}, TypeError, r"reward_funcs\[0\] is the class Judge; pass an instance"),
    "reward's column": (
        lambda: {"rewards": needs_a_column},
        ValueError,
        "'needs_a_column' needs the argument 'answer', but the data set has no such column",
    ),
    "reward weights": (lambda: {"reward_weights": [1.0, 2.0]}, ValueError, "reward_weights has 2 entries for 1"),
    "importance": (lambda: {"importance_sampling_cap": 2.0}, ValueError, "set old_logprobs='recompute'"),
    "importance without a record": (
        lambda: {"importance_sampling_cap": 2.0, "old_logprobs": "recompute", "logp_temperature": 0.7},
        ValueError,
        "the rollout does not record the log-probs that training computes .at temperature 0.7",
    ),
    "frozen adapter": (
        lambda: {"policy": adapted(frozen=True)},
        ValueError,
        "the model's adapter is frozen: load it with .*is_trainable=True",
    ),
    "two adapters": (
        lambda: {"policy": adapted(), "given": adapter()},
        ValueError,
        "holds an adapter already: leave out peft_config",
    ),
    "delta": (lambda: {"delta": 1.4}, ValueError, r"delta=1.4 must be above 1 \+ epsilon_high = 1.5"),
    "epsilon_high": (lambda: {"epsilon_high": -0.1}, ValueError, "epsilon_high=-0.1 must be at least 0"),
    "mixup": (lambda: {"ref_model_mixup_alpha": 1.5}, ValueError, "ref_model_mixup_alpha=1.5 must be above 0"),
    "batch size": (lambda: {"auto_find_batch_size": True}, ValueError, "would cut groups of completions apart"),
    "accumulation": (
        lambda: {"gradient_accumulation_steps": 2, "steps_per_generation": 3},
        ValueError,
        "steps_per_generation=3 must be a multiple of gradient_accumulation_steps=2",
    ),
    "moving nothing": (
        lambda: {"sync_ref_model": True, "beta": 0.0},
        ValueError,
        "sync_ref_model=True has no reference to move",
    ),
    "moving a fixed one": (
        lambda: {"sync_ref_model": True, "reference": "adapter_off", "given": adapter()},
        ValueError,
        "sync_ref_model=True, but this trainer's reference is 'adapter_off', which cannot follow",
    ),
    "no reference": (lambda: {"reference": "none", "beta": 0.1}, ValueError, "reference='none' leaves beta=0.1"),
    "LM head adapted": (
        lambda: {"given": {"peft_config": LoraConfig(target_modules=["lm_head"])}},
        ValueError,
        "lm_head",
    ),
}


def adapter(**settings: Any) -> dict[str, Any]:
    torch.manual_seed(1)
    return {"peft_config": lora_config(tiny.model().model, r=2, alpha=4, **settings)}


def adapted(frozen: bool = False) -> Any:
    policy = tiny.model()
    module = get_peft_model(policy.model, adapter()["peft_config"])
    return policy.with_module(module.requires_grad_(False) if frozen else module)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_the_first_forward_pass(tmp_path, monkeypatch, case):
    wrong, error, message = BAD[case]
    calls = []
    forward = LlamaForCausalLM.forward

    @functools.wraps(forward)
    def counted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        return forward(*arguments, **keywords)

    monkeypatch.setattr(LlamaForCausalLM, "forward", counted)
    with pytest.raises(error, match=message):
        tiny.trainer(CJGRPOTrainer, tmp_path, **wrong()).train()
    assert not calls
    assert not list(tmp_path.iterdir())


def test_args_of_another_kind_are_refused(tmp_path):
    with pytest.raises(TypeError, match="args must be a CJGRPOConfig, got TrainingArguments"):
        CJGRPOTrainer(tiny.model(), tiny.reward, TrainingArguments(output_dir=str(tmp_path)), [{"prompt": "w21"}])


# ---- kinds of models -------------------------------------------------------------------------------------------------


def first_step(folder: Path, policy: Any = None, rows: Any = tiny.PROMPTS, **settings: Any) -> tuple[Any, list[Tensor]]:
    """A trainer after one optimizer step, and the gradients of that step."""
    seen = Gradients()
    given = {"callbacks": [seen], **settings.pop("given", {})}
    settings = {"beta": 0.1, "max_steps": 1, "logging_steps": 1, "num_iterations": 1, **settings}
    trainer = tiny.trainer(CJGRPOTrainer, folder, policy, rows, given=given, **settings)
    trainer.train()
    return trainer, seen.steps[0]


def test_a_model_may_be_wrapped_plain_or_a_path(tmp_path):
    wrapped = tiny.model()
    save_model(wrapped, tmp_path / "model")
    _, expected = first_step(tmp_path / "a", wrapped)
    assert max(float(g.abs().max()) for g in expected) > 1e-3
    plain, tokenizer = tiny.model().model, tiny.tokenizer()
    plain.config.eos_token_id = list(tiny.EOS)  # a plain model says itself what ends a text
    for policy, given in ((str(tmp_path / "model"), {}), (plain, {"processing_class": tokenizer})):
        trainer, mine = first_step(tmp_path / "b", policy, given=given)
        assert trainer.policy.mask_id == tiny.MASK and trainer.policy.eos_ids == tiny.EOS
        for one, other in zip(mine, expected, strict=True):
            torch.testing.assert_close(one, other)


def test_a_trained_model_is_saved_for_load_model(tmp_path):
    trainer, _ = first_step(tmp_path)
    trainer.save_model(str(tmp_path / "final"))
    again = mf.load_model(tmp_path / "final")
    assert again.eos_ids == tiny.EOS and isinstance(again.tokenizer, PreTrainedTokenizerFast)
    for mine, saved in zip(trainer.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(mine, saved)


def test_lora_trains_the_adapter_alone_and_measures_from_the_base_model(tmp_path):
    policy = tiny.model()
    before = {name: parameter.clone() for name, parameter in policy.model.named_parameters()}
    trainer, gradients = first_step(tmp_path, policy, given=adapter(), max_steps=3, num_iterations=3, learning_rate=0.1)
    assert trainer.reference.kind == "adapter_off"
    names = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert len(names) == len(gradients) > 0 and all("lora_" in name and "lm_head" not in name for name in names)
    base = {
        n.replace(".base_layer", "").removeprefix("base_model.model."): p for n, p in trainer.model.named_parameters()
    }
    assert all(torch.equal(base[name], value) for name, value in before.items())
    kl = [entry["kl"] for entry in trainer.state.log_history[:3]]
    assert kl[0] < 1e-10 and kl[2] > 1e-6
    moved = trainer.model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj.lora_B.default").weight
    assert moved.abs().max() > 0


@pytest.mark.parametrize("lora", [False, True])
def test_gradient_checkpointing_changes_no_gradient(tmp_path, lora):
    settings = {"given": adapter() if lora else {}, "max_steps": 2, "num_iterations": 2}
    plain, expected = first_step(tmp_path, **settings)
    settings["given"] = {**settings["given"], **(adapter() if lora else {})}
    trainer, mine = first_step(tmp_path, gradient_checkpointing=True, **settings)
    assert any(getattr(m, "gradient_checkpointing", False) for m in trainer.model.modules())
    assert not any(getattr(m, "gradient_checkpointing", False) for m in plain.model.modules())
    for one, other in zip(mine, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    assert trainer.state.log_history[1]["loss"] == pytest.approx(plain.state.log_history[1]["loss"], rel=1e-4)


@pytest.mark.parametrize("mixed", [False, True])
def test_bfloat16_trains(tmp_path, mixed):
    """Weights in bfloat16, or in float32 with bfloat16 passes; rollouts and training round alike."""
    policy = tiny.model()
    if not mixed:
        policy.model.to(torch.bfloat16)
    trainer, gradients = first_step(tmp_path, policy, bf16=mixed, max_steps=2, num_iterations=2, learning_rate=1e-2)
    _, exact = first_step(tmp_path)
    dtype = torch.float32 if mixed else torch.bfloat16
    assert all(p.dtype == dtype for p in trainer.model.parameters()) and all(g.dtype == dtype for g in gradients)
    log = trainer.state.log_history
    assert log[0]["rollout/logp_gap_max"] < 0.05 and log[1]["log_ratio/mean_abs"] > log[0]["log_ratio/mean_abs"]
    assert log[0]["grad_norm"] == pytest.approx(float(torch.cat([g.flatten() for g in exact]).norm()), rel=0.6)


# ---- the reference that follows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["copy", "adapter"])
def test_the_reference_follows_the_policy(tmp_path, kind):
    given = adapter() if kind == "adapter" else {}
    policy: list[dict[str, Tensor]] = []
    trainer, _ = first_step(
        tmp_path,
        given=given,
        max_steps=5,
        num_iterations=1,
        learning_rate=0.1,
        sync_ref_model=True,
        ref_model_sync_steps=2,
        ref_model_mixup_alpha=0.25,
        save_strategy="steps",
        save_steps=1,
    )
    assert trainer.reference.kind == kind
    for step in range(1, 6):
        folder = tmp_path / f"checkpoint-{step}"
        file = folder / ("adapter_model.safetensors" if kind == "adapter" else "model.safetensors")
        policy.append(load_file(file))
    start = at_start(kind)
    for step in (2, 3, 4, 5):
        reference = load_file(tmp_path / f"checkpoint-{step}" / "reference.safetensors")
        assert reference
        for name, value in reference.items():
            own = name.replace(f".{ADAPTER}.", ".").replace(".default.", ".")
            mixed = 0.25 * policy[1][own] + 0.75 * start[own]
            if step >= 4:
                mixed = 0.25 * policy[3][own] + 0.75 * mixed
            torch.testing.assert_close(value, mixed, rtol=1e-5, atol=1e-7)


def at_start(kind: str) -> dict[str, Tensor]:
    """What is trained, as it was before training."""
    model, config = tiny.model().model, adapter()["peft_config"]
    if kind == "copy":
        return dict(model.named_parameters())
    set_seed(3)  # the trainer's
    return get_peft_model_state_dict(get_peft_model(model, config))


# ---- logs ------------------------------------------------------------------------------------------------------------

#: TRL's keys of GRPOTrainer that mean something here, and those of the diffusion part.
KEYS = {
    "loss",
    "grad_norm",
    "learning_rate",
    "epoch",
    "num_tokens",
    "completions/mean_length",
    "completions/min_length",
    "completions/max_length",
    "completions/clipped_ratio",
    "completions/mean_terminated_length",
    "completions/min_terminated_length",
    "completions/max_terminated_length",
    "rewards/reward/mean",
    "rewards/reward/std",
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "kl",
    "entropy",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "clip_ratio/region_mean",
    "step_time",
}
OWN_KEYS = {
    "rollout/forwards",
    "rollout/steps",
    "rollout/tokens_per_step",
    "rollout/logp_gap_max",
    "log_ratio/mean_abs",
    "tokens_per_second",
    *(f"time/{phase}" for phase in ("rollout", "reward", "old", "ref", "train")),
}


def test_logs_have_trls_keys_and_reach_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer, _ = first_step(tmp_path, report_to=["tensorboard"], max_steps=4, num_iterations=2)
    log = trainer.state.log_history[0]
    assert set(log) - {"step"} == KEYS | OWN_KEYS
    files = list(tmp_path.rglob("events.out.tfevents*"))
    assert len(files) == 1
    events = EventAccumulator(str(files[0])).Reload()
    tags = set(events.Tags()["scalars"])
    assert {f"train/{name}" for name in (KEYS | OWN_KEYS) - {"epoch"}} <= tags
    assert [event.step for event in events.Scalars("train/kl")] == [1, 2, 3, 4]
    assert events.Scalars("train/reward")[0].value == pytest.approx(log["reward"])


def test_logged_numbers_are_those_of_the_rollout(tmp_path):
    trainer = tiny.trainer(
        CJGRPOTrainer, tmp_path, max_steps=1, logging_steps=1, shuffle_dataset=False, num_iterations=1
    )
    buffers = []
    produce = trainer.producer.produce
    trainer.producer.produce = lambda items: buffers.append(produce(items)) or buffers[0]
    trainer.train()
    log, batch = trainer.state.log_history[0], buffers[0].batch
    final = batch.trajectory.sequences[batch.generated].view(8, 8).tolist()
    lengths = [next((i + 1 for i, token in enumerate(row) if token in tiny.EOS), 8) for row in final]
    ended = [any(token in tiny.EOS for token in row) for row in final]
    rewards = torch.tensor(tiny.reward(batch.texts))
    assert log["completions/mean_length"] == pytest.approx(sum(lengths) / 8)
    assert (log["completions/min_length"], log["completions/max_length"]) == (min(lengths), max(lengths))
    assert log["completions/clipped_ratio"] == pytest.approx(1 - sum(ended) / 8)
    assert log["num_tokens"] == sum(lengths)
    assert log["reward"] == pytest.approx(float(rewards.mean()))
    assert log["rewards/reward/std"] == pytest.approx(float(rewards.std()))
    assert log["reward_std"] == pytest.approx(float(rewards.view(2, 4).std(1, correction=0).mean()))
    assert (log["rollout/forwards"], log["rollout/steps"], log["rollout/tokens_per_step"]) == (4, 4, 2)
