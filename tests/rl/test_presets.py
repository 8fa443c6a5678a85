"""Presets: every one constructs its config and trainer, pairs differ as the table says, and the table is up to date."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from mdlm_fast.config import DecodeConfig
from mdlm_fast.rl.lora import lora_config
from mdlm_fast.rl.preset_parts import Setting
from mdlm_fast.rl.presets import PAIRS, PRESETS, preset, table
from tests.rl import tiny

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "rl_presets.md"
HERE: dict[str, Any] = {"use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
ROWS = [{"prompt": prompt} for prompt in tiny.PROMPTS]


def test_names() -> None:
    methods = ("cj-grpo", "cj-grpo-eoser", "cj-grpo-ass", "cj-grpo-eoser-ass", "mdpo", "d1", "one-step", "coupled")
    wanted = {name + ending for name in (*methods, "trace", "dmpo") for ending in ("", "-paper")}
    assert set(PRESETS) == wanted
    with pytest.raises(ValueError, match="preset 'grpo' is unknown; choose one of cj-grpo, cj-grpo-paper"):
        preset("grpo")


@pytest.mark.parametrize("name", PRESETS)
def test_config_and_trainer_construct(name: str, tmp_path: Path) -> None:
    kind, settings = preset(name, output_dir=str(tmp_path), **HERE)
    args = kind.config_class(**settings)
    policy = tiny.model(positions=600)
    lora = PRESETS[name].lora
    peft_config = None if lora is None else lora_config(policy, **{**lora, "r": 2})
    trainer = kind(policy, tiny.reward, args, ROWS, peft_config=peft_config)
    assert isinstance(trainer.policy.model, PeftModel) == (lora is not None)
    assert trainer.decode_config.gen_length == args.max_completion_length
    assert trainer.args.per_device_train_batch_size == PRESETS[name].settings["per_device_train_batch_size"]
    dropouts = {part.p for part in trainer.model.modules() if isinstance(part, torch.nn.Dropout)}
    assert dropouts == ({0.05} if lora and name.endswith("-paper") else {0.0} if dropouts else set())


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_pairs_differ_in_the_settings_of_the_table_and_nothing_else(pair: Any) -> None:
    listed = {d.name: d for d in pair.differences if isinstance(d, Setting)}
    assert len(listed) == sum(isinstance(d, Setting) for d in pair.differences), "a setting stands once"

    def flat(name: str) -> dict[str, Any]:
        chosen = PRESETS[name]
        values = {key: value for key, value in chosen.settings.items() if key != "decoder_overrides"}
        values |= {f"decoder_overrides.{k}": v for k, v in chosen.settings.get("decoder_overrides", {}).items()}
        return values | {f"lora.{k}": v for k, v in (chosen.lora or {}).items()}

    released, ours = flat(f"{pair.name}-paper"), flat(pair.name)
    assert released.keys() == ours.keys()
    assert {key for key in ours if released[key] != ours[key]} == set(listed)
    for key, difference in listed.items():
        assert (released[key], ours[key]) == (difference.released, difference.ours)
    known = {f.name for f in fields(preset(pair.name)[0].config_class)}
    decoder = {f.name for f in fields(DecodeConfig)}
    for key in ours:
        part, _, name = key.rpartition(".")
        assert name in {"": known, "decoder_overrides": decoder, "lora": {"r", "alpha", "dropout", "targets"}}[part]
    assert all(d.why for d in pair.differences)


def test_the_table_in_the_documentation_is_up_to_date() -> None:
    wanted = table()
    assert DOCUMENT.read_text(encoding="utf-8") == wanted, "run: python -m mdlm_fast.rl.presets docs/rl_presets.md"
    for name in PRESETS:
        assert f"`{name}`" in wanted
    rows = [line for line in wanted.splitlines() if line.startswith("|")]
    assert all(row.replace("\\|", "").count("|") == 5 for row in rows)


def test_overrides() -> None:
    kind, settings = preset(
        "cj-grpo-eoser-paper", learning_rate=1e-4, block_length=8, decoder_overrides={"confidence": "margin"}
    )
    assert kind.__name__ == "CJGRPOTrainer" and settings["learning_rate"] == 1e-4 and settings["block_length"] == 8
    assert settings["decoder_overrides"] == {
        "eoser": {"g_min": 0.01, "eos_index": "block"},
        "sampler": "gumbel_bf16",
        "normalize_over": "all",
        "confidence": "margin",
    }
    settings["decoder_overrides"]["eoser"]["g_min"] = 0.5
    assert PRESETS["cj-grpo-eoser-paper"].settings["decoder_overrides"]["eoser"]["g_min"] == 0.01


def test_paper_presets_train(tmp_path: Path) -> None:
    """The switches of the released code work together: the bfloat16 draw, its filler, live dropout, micro-batches."""
    smaller = {"max_completion_length": 8, "diffusion_steps": 4, "block_length": 8, "num_iterations": 2, "max_steps": 2}
    for name in ("cj-grpo-paper", "d1-paper", "dmpo-paper"):
        kind, settings = preset(name, output_dir=str(tmp_path), logging_steps=1, **smaller, **HERE)
        policy = tiny.model(3)
        peft_config = lora_config(policy, **{**(PRESETS[name].lora or {}), "r": 2})
        trainer = kind(policy, tiny.reward, kind.config_class(**settings), ROWS, peft_config=peft_config)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert len(losses) == 2 and all(loss == loss for loss in losses)
