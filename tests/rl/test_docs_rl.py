"""docs/rl.md says what is true: its Python runs, its commands exist, and its keys are logged."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mdlm_fast.cli import main
from mdlm_fast.rl import RLConfig
from mdlm_fast.rl.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
TEXT = re.sub(r"<!--.*?-->", "", (ROOT / "docs" / "rl.md").read_text())  # figures stand between markers


def test_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType("example")  # dataclasses look for the module they are in
    monkeypatch.setitem(sys.modules, "example", module)
    names = vars(module)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(blocks) >= 6
    for block in blocks:
        exec(block, names)
    assert names["trainer"].state.global_step == 2 and (tmp_path / "run" / "model" / "mdlm_fast.json").is_file()
    assert names["mdpo_args"].sample_train_steps == 8
    assert names["rewards"].tolist()[0] == [1.0, 0.0] and names["rewards"].isnan().sum() == 1
    logged = {key for entry in names["trainer"].state.log_history for key in entry}
    rows = [line.split("|")[1] for line in TEXT.splitlines() if line.startswith("| `")]
    for key in re.findall(r"`([\w/]+)`", "".join(rows)):
        if key.endswith("Trainer") or "NAME" in key:
            continue
        assert any(known == key or known.endswith(f"/{key}") for known in logged), key


def test_fields_exist() -> None:
    known = {f.name for f in dataclasses.fields(RLConfig)}
    section = TEXT.split("## Settings")[1].split("## What is logged")[0]
    named = set(re.findall(r"`(\w+)`", section)) - {"RLConfig", "DecodeConfig", "MDPOConfig", "processes"}
    assert len(named) > 30 and named <= known


@pytest.mark.parametrize("command", re.findall(r"^(?:\$ )?mdlm-fast (.*)$", TEXT, flags=re.MULTILINE))
def test_commands_are_right(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that train are planned alone."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    if words[0] == "train" and "--dry-run" not in words:
        words.append("--dry-run")
    assert main(words) == 0
    out = capsys.readouterr().out
    if "--json" in words:
        found = json.loads(out)
        assert f"{found['total'] / 1e9:.1f} GB in all" in TEXT and f"{found['released'] / 1e9:.0f} GB of" in TEXT
        assert f"with {found['views_that_fit']} views in a backward pass at most" in TEXT


def test_launched_recipes_exist() -> None:
    for command in re.findall(r"^accelerate launch (.*)$", TEXT, flags=re.MULTILINE):
        config, recipe = re.findall(r"recipes/\S+\.yaml", command)
        assert (ROOT / config).is_file() and Path(Recipe.read(ROOT / recipe).accelerate) == ROOT / config
