"""Ours with its steps captured in CUDA graphs, a side of its own on a GPU."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

import mdlm_fast as mf

from .check import checked, prompts, timed_model
from .shape import Shape
from .systems import SYSTEMS, generate_options, wrapped

#: Decodes of the built-in puzzles that must not change when their steps are captured, one for each rule.
RULES: dict[str, dict[str, Any]] = {
    "uniform": {"steps": 8},
    "ass, eoser": {"schedule": "ass", "eoser": mf.EOSER()},
    "sampled": {"temperature": 0.8, "steps": 8},
    "threshold": {"select": "threshold", "threshold": 0.9, "num_blocks": 4},
    "factor": {"select": "factor", "factor": 1.0, "num_blocks": 4},
    "entropy bound": {"select": "entropy_bound", "entropy_bound": 0.3, "confidence": "neg_entropy"},
    "RCR": {"remasking": mf.RCR(), "steps": 8},
    "stop": {"stop_at_eos": True, "num_blocks": 6},
    "guidance": {"cfg_scale": 0.5, "steps": 6},
}
PUZZLES = ["sudoku 1 0 3 4 0 4 1 2 2 1 0 3 4 0 2 0 :", "sudoku 0 0 3 4 3 4 0 2 2 1 0 3 4 0 2 0 :"]


def generate(model: Any, prompt: Tensor, shape: Shape, *, cuda_graph: bool = True) -> Tensor:
    """What `generate` makes of a shape whose system it can stand in for; int64 [B, P + G]."""
    options = SYSTEMS[shape.decoder].captured
    assert options is not None, f"{shape.decoder} is not measured with captured steps"
    config = mf.DecodeConfig(**generate_options(shape), **options(shape), cuda_graph=cuda_graph)
    return mf.generate(wrapped(model, shape), prompt, config=config).sequences


def agreement(shape: Shape, device: str) -> str:
    """What was found equal between captured and ordinary steps.

    Raises:
        AssertionError: a canvas differs.
    """
    short = replace(checked(shape), batch=shape.batch)
    model, ids = timed_model(shape.vocab, device), prompts(short, device)
    captured, ordinary = (generate(model, ids, short, cuda_graph=graph) for graph in (True, False))
    assert torch.equal(captured, ordinary), f"{short}: captured steps give other tokens"
    return f"equal tokens with and without capturing, here and under {puzzles_agree(device)} rules on puzzles"


@lru_cache
def puzzles_agree(device: str) -> int:
    """Decodes the built-in puzzles under every one of RULES with and without capturing; how many rules there are."""
    model = mf.load_model("builtin:puzzles", device=device)
    ids = model.tokenizer(PUZZLES, return_tensors="pt").input_ids.to(device)
    for name, rule in RULES.items():
        captured, ordinary = (
            mf.generate(model, ids, gen_length=24, seed=3, cuda_graph=graph, **rule).sequences
            for graph in (True, False)
        )
        assert torch.equal(captured, ordinary), f"puzzles, {name}: captured steps give other tokens"
    return len(RULES)
