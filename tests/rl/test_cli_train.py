"""`mdlm-fast train` and `mdlm-fast estimate`: what they run, print and refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel

import mdlm_fast as mf
from mdlm_fast.cli import main
from mdlm_fast.cli_train import parse_size
from mdlm_fast.rl.methods.cj_grpo import CJGRPOTrainer
from mdlm_fast.rl.plan import build_config
from mdlm_fast.rl.recipe import BUILTIN_DEFAULTS, Recipe
from mdlm_fast.rl.run import RECIPE
from mdlm_fast.tasks import evaluate

#: Two prompts with four completions each, hot enough for rewards to differ; a run is a second or two.
SMALL_ARGS = {"per_device_train_batch_size": 8, "num_generations": 4, "temperature": 2}
SMALL = ["--task", "countdown", "--prompts", "16", "--eval-prompts", "12"]
SMALL += [word for name, value in SMALL_ARGS.items() for word in ("-s", f"{name}={value}")]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def small_run(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> dict:
    status, out, err = run(capsys, "train", *SMALL, "--output-dir", str(folder), "--json", *arguments)
    assert (status, err) == (0, "")
    return json.loads(out)


def test_a_run_leaves_a_model_that_loads_and_solves_what_was_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    result = small_run(capsys, tmp_path / "run", "-s", "max_steps=2", "-s", "learning_rate=3e-4")
    assert result["optimizer_steps"] == 2 and (result["preset"], result["task"]) == ("cj-grpo", "countdown")
    for name, model in (("accuracy_before", "builtin:puzzles"), ("accuracy_after", result["model_dir"])):
        found = evaluate(mf.load_model(model), "countdown", limit=12, config="eoser-ass")
        assert result[name] == pytest.approx(found["accuracy"])
    start = mf.load_model("builtin:puzzles").model.state_dict()
    trained = mf.load_model(result["model_dir"]).model.state_dict()
    assert any(not torch.equal(value, trained[name]) for name, value in start.items())
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "reward" in entry] == [1]  # two updates on one rollout
    saved = Recipe.read(tmp_path / "run" / RECIPE)
    assert saved.args == {**SMALL_ARGS, "max_steps": 2, "learning_rate": 3e-4}

    arguments = [*SMALL, "--no-eval", "--output-dir", str(tmp_path / "run"), "--resume", "-s"]  # another learning rate
    status, out, err = run(capsys, "train", *arguments, "max_steps=2")
    assert (status, out) == (1, "") and "is finished" in err and err.count("\n") == 1
    status, out, err = run(capsys, "train", *arguments, "max_steps=3")
    assert status == 0 and "3 optimizer steps" in out
    assert f"warning: the settings differ from those the run began with, {tmp_path / 'run' / RECIPE}" in err


def test_an_adapter_is_saved_and_merged(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["--lora", "attention", "-s", "max_steps=1", "--no-eval", "-s", "learning_rate=1e-2"]
    result = small_run(capsys, tmp_path / "run", *arguments)
    assert result["accuracy_before"] is None and result["accuracy_after"] is None
    base = mf.load_model("builtin:puzzles")
    ids = torch.randint(0, 40, (2, 20))
    with torch.no_grad():
        before = base.model(ids).logits
        adapted = PeftModel.from_pretrained(base.model, result["adapter_dir"]).eval()(ids).logits
        merged = mf.load_model(result["model_dir"]).model(ids).logits
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)
    assert (merged - before).abs().max() > 1e-2
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 128 and "lm_head" not in str(config["target_modules"])


def test_interrupted_runs_say_how_to_go_on_and_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resumed run ends with the weights of one that was not interrupted."""
    arguments = ["train", *SMALL, "-s", "max_steps=4", "-s", "save_steps=2", "--no-eval", "--output-dir"]
    assert run(capsys, *arguments, str(tmp_path / "whole"))[0] == 0
    step = CJGRPOTrainer.training_step

    def interrupted(self: CJGRPOTrainer, *given: object) -> torch.Tensor:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(CJGRPOTrainer, "training_step", interrupted)
        status, out, err = run(capsys, *arguments, str(tmp_path / "run"))
    assert (status, out) == (130, "")
    assert "stopped after 3 of 4 optimizer steps; the same command with --resume goes on from" in err
    assert err.rstrip().endswith(str(tmp_path / "run" / "checkpoint-2"))

    status, out, err = run(capsys, *arguments, str(tmp_path / "run"))
    assert (status, out) == (1, "") and "--resume" in err and err.count("\n") == 1
    status, out, err = run(capsys, *arguments, str(tmp_path / "run"), "--resume")
    assert status == 0 and out.startswith("cj-grpo on countdown: 4 optimizer steps in ") and "warning" not in err
    assert "step 3/4  reward" in err and "step 2/4" not in err
    weights = [mf.load_model(tmp_path / name / "model").model.state_dict() for name in ("whole", "run")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_the_command_line_wins_over_yaml_over_defaults_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "preset: cj-grpo\ntask: countdown\nlora: attention\ndata: puzzles.jsonl\n"
        "args: {learning_rate: 3e-6, num_iterations: 5, beta: 1e-2}\n"
    )
    recipe = Recipe.read(file, preset=None, task="sudoku", args={"num_iterations": 3})
    assert (recipe.task, recipe.lora, recipe.data) == ("sudoku", "attention", str(tmp_path / "puzzles.jsonl"))
    values = recipe.config_values()
    assert (values["num_iterations"], values["learning_rate"], values["beta"]) == (3, 3e-6, 0.01)
    assert values["weight_decay"] == BUILTIN_DEFAULTS["weight_decay"] == 0.0
    assert values["decoder"] == "eoser-ass"
    released = Recipe.read(file, model="somewhere/else").config_values()
    assert (released["weight_decay"], released["decoder"], released["num_iterations"]) == (0.1, "llada", 5)
    assert Recipe.read(preset="cj-grpo-eoser").config_values()["decoder"] == "eoser"


def test_yaml_of_a_recipe_reads_back(tmp_path: Path) -> None:
    recipe = Recipe(preset="mdpo", lora={"targets": "mlp", "r": 4}, prompts=7, args={"learning_rate": 1e-6, "beta": 0})
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert Recipe.read(tmp_path / "r.yaml") == recipe


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--preset", "ppo"], "'ppo' is unknown; choose one of cj-grpo"),
        (["--task", "chess"], "chess"),
        (["--lora", "some"], "lora='some': choose one of none, all"),
        (["-s", "learning_rate"], "FIELD=VALUE"),
        (["-s", "lerning_rate=1"], "'lerning_rate' is not a field of CJGRPOConfig; did you mean learning_rate"),
        (["-s", "learning_rate=high"], "learning_rate='high' must be a number"),
        (["-s", "log_completions=2"], "log_completions=2 must be true or false"),
        (["-s", "num_generations=7"], "num_generations=7 does not fit a generation batch of 64 completions"),
        (["-s", "diffusion_steps=5"], "5"),
        (["-s", "beta=-1"], "beta=-1"),
        (["--model", "./absent"], "./absent"),
        (["--dtype", "float3"], "float3"),
        (["--data", "absent.jsonl"], "absent.jsonl: No such file"),
        (["--config", "absent.yaml"], "absent.yaml: No such file"),
        (["--config", "list.yaml"], "list.yaml must hold a mapping"),
        (["--config", "broken.yaml"], "broken.yaml is not YAML"),
        (["--config", "unknown.yaml"], "'modell' is unknown; did you mean model?"),
        (["--memory", "much"], "'much' is no size"),
        (["--processes", "0"], "--processes"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.yaml").write_text("[1, 2]")
    Path("broken.yaml").write_text("a: [1")
    Path("unknown.yaml").write_text("modell: x")
    status, out, err = run(capsys, "train", "--dry-run", *arguments)
    assert status != 0 and out == "" and err.count("\n") == 1 and err.startswith("mdlm-fast: error: ")
    assert part in err


def test_errors_before_training_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments, part in (
        (["--output-dir", __file__], "is a file"),
        (["--model", str(tmp_path / "absent"), "--output-dir", str(tmp_path)], "absent"),
        (["--prompts", "4", "--output-dir", str(tmp_path)], "the data set has 4 prompts"),
        (["--task", "gsm8k", "--output-dir", str(tmp_path)], "pass data="),
    ):
        status, out, err = run(capsys, "train", *arguments)
        assert status == 1 and out == "" and err.count("\n") == 1 and part in err


def test_other_processes_leave_the_message_to_the_main_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run(capsys, "train", "--dry-run", "-s", "nothing=1") == (1, "", "")


def test_dry_run_prints_the_plan_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, "train", "--dry-run", "--memory", "1GB", "--processes", "2")
    assert (status, err) == (0, "") and list(tmp_path.iterdir()) == []
    assert "128 completions: 16 prompts x 8" in out and "24 optimizer steps" in out
    status, out, _ = run(capsys, "train", "--dry-run", "--json", "-s", "steps_per_generation=4")
    plan = json.loads(out)
    # 64 completions x 4 micro-batches = 32 prompts x 8; 2 passes over 4 micro-batches; 4 steps of ASS on 24 tokens
    assert (plan["completions"], plan["prompts"], plan["updates"], plan["rollout_forwards"]) == (256, 32, 8, 4)
    assert (plan["train_forwards"], plan["reference_forwards"]) == (2 * 4 * 4, 4 * 4)
    assert plan["decode"]["schedule"] == "ass" and plan["adapter"] is None


def test_estimate_says_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["estimate", "--model", "llada-8b", "-s", "max_prompt_length=200"]
    status, out, err = run(capsys, *arguments, "--memory", "80GB", "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["weights"] == pytest.approx(2 * 8.016e9 + 4 * 0.336e9, rel=0.01)  # bfloat16, and LoRA r=128 in float32
    assert found["settings"]["prompt_length"] == 200 and found["settings"]["adapter"]["targets"] == "all"
    assert found["fits"] and found["views_that_fit"] >= 1 and found["released"] > 80e9  # 128 steps at once
    status, out, _ = run(capsys, *arguments, "--lora", "none", "--memory", "80GB")
    assert status == 0 and "does not fit 80.0 GB" in out and "optimizer state" in out
    status, out, _ = run(capsys, "estimate", "--json")
    assert json.loads(out)["settings"]["shape"]["vocab"] == mf.load_model("builtin:puzzles").vocab_size


def test_the_estimate_follows_the_config(tmp_path: Path) -> None:
    config = build_config(Recipe(preset="mdpo", args={"sample_train_steps": 3}), tmp_path)
    assert config.sample_train_steps == 3 and config.use_cpu == (not torch.cuda.is_available())


@pytest.mark.parametrize(
    ("text", "size"), [("80GB", 80 * 10**9), ("24 GiB", 24 * 2**30), ("1.5e9", 1.5e9), ("512m", 512e6), ("2tib", 2**41)]
)
def test_sizes(text: str, size: float) -> None:
    assert parse_size(text) == size


@pytest.mark.slow
def test_two_processes_under_accelerate_print_once(tmp_path: Path) -> None:
    """The accuracy before is that of one process; a second rollout follows the first update on both."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "mdlm_fast.cli"]
    command += ["train", *SMALL, "-s", "max_steps=3", "--output-dir", str(tmp_path / "run"), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)  # one object, from one process
    assert found["optimizer_steps"] == 3
    before = evaluate(mf.load_model("builtin:puzzles"), "countdown", limit=12, config="eoser-ass")
    assert found["accuracy_before"] == pytest.approx(before["accuracy"])
    assert mf.load_model(found["model_dir"]).vocab_size == mf.load_model("builtin:puzzles").vocab_size
