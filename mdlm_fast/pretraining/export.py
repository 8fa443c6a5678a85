"""Writes a training run's weights as a Hugging Face folder that transformers and `load_model` read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..tasks.vocabulary import EOS_ID, MASK_ID, build_tokenizer
from .data import GEN_LENGTH

if TYPE_CHECKING:
    from .run import Run


def export(run: Run, folder: str | Path) -> Path:
    """Writes config.json, model.safetensors (float32), the tokenizer and mdlm_fast.json; replaces the folder whole.

    Raises:
        FileExistsError: the folder exists and holds something else than a model.
    """
    from mdlm_fast.models import wrap
    from mdlm_fast.models.saving import save_model

    settings = {"gen_length": GEN_LENGTH, "prompts": "puzzle-words", "trained_steps": run.step}
    network = run.snapshot()
    network.set_attn_implementation("sdpa")
    model = wrap(network, build_tokenizer(), mask_id=MASK_ID, eos_ids=(EOS_ID,), settings=settings)
    return save_model(model, folder)
