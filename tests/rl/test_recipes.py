"""The recipes: every file is read by what will read it, and the runs they describe can be planned."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from safetensors.torch import load_file

import mdlm_fast as mf
from mdlm_fast.cli import main
from mdlm_fast.rl.checkpoints import REFERENCE
from mdlm_fast.rl.plan import Plan, build_config
from mdlm_fast.rl.recipe import Recipe

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = sorted([*(FOLDER / "puzzles").glob("*.yaml"), *(FOLDER / "llada-8b").glob("*.yaml")])
ACCELERATE = sorted((FOLDER / "accelerate").glob("*.yaml"))
LLADA = [path for path in RECIPES if path.parent.name == "llada-8b"]


def launch_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What `accelerate launch` would set, set."""
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "-m", "mdlm_fast.cli", "train"])
    arguments, _, _ = _validate_launch_command(arguments)
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ""  # left out where deepspeed is not installed
        environment = prepare_deepspeed_cmd_env(arguments)[1]
    else:
        environment = prepare_multi_gpu_env(arguments)
    found = {k: v for k, v in environment.items() if k.startswith(("ACCELERATE_", "FSDP_"))}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


def test_there_are_recipes_for_one_and_eight_gpus() -> None:
    names = {path.stem for path in LLADA}
    kinds = ("lora", "fsdp2", "zero2")
    assert names == {"cj-grpo-1gpu-lora", *(f"{m}-8gpu-{kind}" for m in ("cj-grpo", "mdpo") for kind in kinds)}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_can_be_planned_and_fit_80_gb(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Recipe.read(path)
    plan = Plan.of(recipe)
    assert plan.launch.processes == (8 if "8gpu" in path.stem else 1)
    per_process = plan.config.per_device_train_batch_size * plan.config.steps_per_generation
    assert plan.completions == per_process * plan.launch.processes == plan.prompts * plan.config.num_generations
    assert plan.memory.total < 80e9
    if "lora" in path.stem:
        assert recipe.adapter() == {**recipe.adapter(), "r": 128, "targets": "all"}
    assert main(["train", "--dry-run", "--config", str(path), "--memory", "80GB"]) == 0
    assert f"{plan.completions} completions" in capsys.readouterr().out


@pytest.mark.parametrize("path", [p for p in LLADA if "8gpu" in p.stem], ids=lambda path: path.stem)
def test_mixed_precision_is_that_of_the_launch_config(path: Path, tmp_path: Path) -> None:
    recipe = Recipe.read(path)
    launch = load_config_from_file(recipe.accelerate)
    assert build_config(recipe, tmp_path).bf16 == (launch.mixed_precision == "bf16")
    assert recipe.dtype == "bfloat16" and re.search("8 GPUs", path.read_text())


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_reads_its_configs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config_from_file(str(path))
    kinds = {"ddp": DistributedType.MULTI_GPU, "fsdp2": DistributedType.FSDP, "zero2": DistributedType.DEEPSPEED}
    assert (config.distributed_type, config.num_processes) == (kinds[path.stem], 8)
    environment = launch_environment(path, monkeypatch)
    assert environment["ACCELERATE_MIXED_PRECISION"] == config.mixed_precision


def test_fsdp2_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    launch_environment(FOLDER / "accelerate" / "fsdp2.yaml", monkeypatch)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    plugin.set_mixed_precision("bf16")
    assert plugin.mixed_precision_policy.param_dtype is torch.bfloat16
    plugin.set_auto_wrap_policy(mf.load_model("builtin:puzzles").model)
    classes = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    assert {kind.__name__ for kind in classes} == {"LlamaDecoderLayer"}


@pytest.mark.parametrize("name", ["cj-grpo-8gpu-zero2", "mdpo-8gpu-zero2"])
def test_zero2_takes_its_batches_from_the_recipe(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's own config: whatever it leaves to "auto" is filled in, and nothing contradicts the recipe."""
    recipe = Recipe.read(FOLDER / "llada-8b" / f"{name}.yaml")
    plan = Plan.of(recipe)
    config = plan.config
    micro, accumulated = config.per_device_train_batch_size, config.gradient_accumulation_steps
    launch_environment(FOLDER / "accelerate" / "zero2.yaml", monkeypatch)
    plugin = DeepSpeedPlugin()
    plugin.set_mixed_precision("bf16")
    plugin.deepspeed_config_process(
        must_match=True,
        train_micro_batch_size_per_gpu=micro,
        gradient_accumulation_steps=accumulated,
        train_batch_size=micro * accumulated * plan.launch.processes,
        gradient_clipping=config.max_grad_norm,
    )
    filled = plugin.deepspeed_config
    assert filled["zero_optimization"]["stage"] == 2 and filled["bf16"]["enabled"] is True
    assert filled["train_batch_size"] == plan.completions * accumulated // config.steps_per_generation
    assert "auto" not in json.dumps(filled, default=str)


@pytest.mark.slow
def test_fsdp2_trains_as_ddp_does(tmp_path: Path) -> None:
    """Two gloo processes on the CPU; the frozen copy is sharded too."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "FSDP_"))}
    environment["OMP_NUM_THREADS"] = "1"
    found = {}
    for kind in ("fsdp", "ddp"):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
        program = [str(Path(__file__).with_name("fsdp_program.py")), kind, str(tmp_path / f"{kind}.json")]
        result = subprocess.run([*command, *program], capture_output=True, text=True, env=environment, timeout=400)
        assert result.returncode == 0, result.stderr[-3000:]
        found[kind] = json.loads((tmp_path / f"{kind}.json").read_text())
    assert found["fsdp"]["sharded"] == [True, True] and found["ddp"]["sharded"] == [False, False]
    for one, other in zip(found["fsdp"]["log"], found["ddp"]["log"], strict=True):
        for name in ("loss", "grad_norm", "kl", "reward", "entropy"):
            assert (name in one) == (name in other)
            assert name not in one or one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name
    weights = [mf.load_model(tmp_path / kind / "model").model.state_dict() for kind in ("fsdp", "ddp")]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5)
    start = mf.load_model("builtin:puzzles").model.state_dict()
    references = [load_file(tmp_path / kind / "progress" / REFERENCE) for kind in ("fsdp", "ddp")]
    assert set(references[0]) == set(references[1]) and any(
        (value - start[name]).abs().max() > 1e-4 for name, value in references[0].items()
    )
    for name, value in references[0].items():
        torch.testing.assert_close(value, references[1][name], rtol=1e-4, atol=1e-5)
    assert any((value - start[name]).abs().max() > 1e-4 for name, value in weights[0].items())
