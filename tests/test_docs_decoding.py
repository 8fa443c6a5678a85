"""docs/decoding.md says what is true: its code runs, and its table names every preset."""

import re
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import mdlm_fast as mf
from mdlm_fast.presets import PRESETS

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "decoding.md").read_text()


def test_code_runs() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=80,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    config.is_causal = False
    model = mf.wrap(LlamaForCausalLM(config).eval(), mask_id=79, eos_ids=(1,))
    names = {
        "mf": mf,
        "model": model,
        "ids": torch.tensor([[0, 4, 5], [6, 7, 8]]),
        "mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
    }
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(blocks) >= 6
    for block in blocks:
        exec(block, names)
    assert names["samples"].shape == (2, 4, 19)
    generated = names["out"].sequences[1, 3:].tolist()
    assert len(set(generated)) == 8


def test_every_preset_is_named() -> None:
    table = [line.split("|")[1] for line in TEXT.splitlines() if line.startswith("| `")]
    named = re.findall(r"`([a-z0-9-]+)`", "".join(table))
    assert sorted(named) == sorted(PRESETS)
