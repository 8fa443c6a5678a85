"""save_model(): a normal Hugging Face folder plus `mdlm_fast.json`, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mdlm_fast.models import checkpoint
from mdlm_fast.models._introspect import unwrapped
from mdlm_fast.models.rope import rotates_in_float32
from mdlm_fast.models.wrapper import MaskedDiffusionModel

SETTINGS_FILE = "mdlm_fast.json"


def save_model(model: MaskedDiffusionModel, directory: str | os.PathLike[str]) -> Path:
    """Write weights, config, tokenizer and `mdlm_fast.json` so that `load_model(directory)` gives the model back.

    Everything is written beside the target and renamed into place, so an interrupted save leaves what was there.
    A folder that exists is replaced whole.

    Args:
        model: of a native class; LLaDA and Dream models are saved as the Llama and Qwen2 they were loaded into.
        directory: target folder.

    Returns:
        The folder.

    Raises:
        FileExistsError: the target is a file, or a folder that holds something else than a model.
        TypeError: a model that transformers cannot save.
    """
    target = Path(directory).expanduser().absolute()
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / "config.json").is_file()):
        raise FileExistsError(f"directory={str(directory)!r} exists and is not a model folder; it was left alone")
    inner: Any = unwrapped(model.model)
    if not hasattr(inner, "save_pretrained"):
        raise TypeError(f"{type(inner).__name__} has no save_pretrained; only Hugging Face models can be saved")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        inner.save_pretrained(temporary)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(temporary)
        write_settings(model, temporary)
        temporary.chmod(0o755)
        _replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def write_settings(model: MaskedDiffusionModel, directory: Path) -> None:
    """Write `mdlm_fast.json`, what `load_model` needs beside weights, config and tokenizer."""
    settings = json.dumps(_settings(model), indent=2, sort_keys=True)
    (directory / SETTINGS_FILE).write_text(settings + "\n", encoding="utf-8")


def read_settings(directory: Path) -> dict[str, Any]:
    """The contents of `mdlm_fast.json`, or nothing if the checkpoint has none."""
    path = directory / SETTINGS_FILE
    return checkpoint.read_json(path) if path.is_file() else {}


def _settings(model: MaskedDiffusionModel) -> dict[str, Any]:
    settings: dict[str, Any] = {
        **model.settings,
        "mask_id": model.mask_id,
        "eos_ids": list(model.eos_ids),
        "shift": model.shift,
        "attention": model.attention,
        "block_size": model.block_size,
        "vocab_limit": model.vocab_limit,
    }
    if rotates_in_float32(model.model):
        settings["rope_float32"] = True
    return settings


def _replace(temporary: Path, target: Path) -> None:
    if not target.exists():
        temporary.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    target.rename(old / target.name)
    temporary.rename(target)
    shutil.rmtree(old)
