"""cuda_graph=True: the same steps with every number on the device. Here they run uncaptured, on the CPU, and must give
what the ordinary loop gives; capturing them is `make gpu-check`'s part."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

import mdlm_fast as mf
from mdlm_fast.bad_rows import BadRows
from mdlm_fast.captured import StepGraphs

PROMPTS = ["sudoku 1 0 3 4 0 4 1 2 2 1 0 3 4 0 2 0 :", "countdown 30 100 93 to 23 :", "countdown 3 4 5 to 23 :"]
CASES: dict[str, dict[str, Any]] = {
    "one token a step": {},
    "uniform": {"steps": 8},
    "blocks": {"num_blocks": 3, "steps": 12},
    "steps that reveal nothing": {"schedule": "cosine", "steps": 30},
    "ass": {"schedule": "ass", "num_blocks": 3, "eoser": mf.EOSER()},
    "threshold": {"select": "threshold", "threshold": 0.9, "num_blocks": 4},
    "factor": {"select": "factor", "factor": 1.0, "block_length": 8},
    "entropy bound": {"select": "entropy_bound", "entropy_bound": 0.3, "confidence": "neg_entropy"},
    "quota and threshold": {"select": "quota_threshold", "threshold": 0.8, "steps": 12, "num_blocks": 3},
    "origin": {"select": "origin", "schedule": "dream", "steps": 8, "num_blocks": 2},
    "random positions": {"schedule": "dream", "steps": 8, "alg_temp": 0.3},
    "sampled": {"temperature": 0.8, "top_p": 0.9, "num_return_sequences": 2, "steps": 6},
    "EOSER by block": {"eoser": mf.EOSER(eos_index="block"), "num_blocks": 2, "steps": 8},
    "RCR": {"remasking": mf.RCR(), "steps": 6},
    "RCR with EOSER": {
        "remasking": mf.RCR(scope="canvas", running="max"),
        "steps": 6,
        "num_blocks": 3,
        "eoser": mf.EOSER(),
    },
    "stop": {"stop_at_eos": True, "num_blocks": 6},
    "stop, threshold": {"stop_at_eos": True, "select": "threshold", "threshold": 0.7, "num_blocks": 6},
    "stop, RCR": {"stop_at_eos": True, "remasking": mf.RCR(), "steps": 12, "num_blocks": 6},
    "guidance": {"cfg_scale": 0.5, "steps": 5},
    "random order": {"confidence": "random", "steps": 5},
}


@pytest.fixture(scope="module")
def puzzles() -> tuple[Any, Any]:
    model = mf.load_model("builtin:puzzles")
    return model, model.tokenizer(PROMPTS, return_tensors="pt", padding=True)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_ordinary_loop(puzzles: tuple[Any, Any], name: str) -> None:
    model, inputs = puzzles
    options = {"gen_length": 24, "seed": 3, **CASES[name]}
    ordinary, captured = (
        mf.generate(model, inputs.input_ids, inputs.attention_mask, cuda_graph=graph, **options)
        for graph in (False, True)
    )
    assert torch.equal(captured.sequences, ordinary.sequences)
    assert captured.stats.row_steps == ordinary.stats.row_steps
    assert captured.stats.row_forwards == ordinary.stats.row_forwards
    assert captured.stats.forwards == ordinary.stats.forwards
    for field in ("commit_step", "commit_logp", "commit_logp_T", "commit_confidence"):
        assert torch.equal(getattr(captured.trajectory, field), getattr(ordinary.trajectory, field)), field
    assert (captured.trajectory.events is None) == (ordinary.trajectory.events is None)
    if ordinary.trajectory.events is not None:
        for part in fields(ordinary.trajectory.events):
            mine, theirs = (getattr(out.trajectory.events, part.name) for out in (captured, ordinary))
            assert torch.equal(mine, theirs), part.name


def test_infilling_and_nothing_to_fill(puzzles: tuple[Any, Any]) -> None:
    model, inputs = puzzles
    ids = inputs.input_ids.clone()
    ids[0, 3:7] = model.mask_id
    for select in ({"select": "threshold", "threshold": 0.5}, {"steps": 4}):
        ordinary, captured = (
            mf.generate(model, ids, inputs.attention_mask, gen_length=0, cuda_graph=graph, **select)
            for graph in (False, True)
        )
        assert torch.equal(captured.sequences, ordinary.sequences)
        assert captured.stats.row_steps == ordinary.stats.row_steps


@pytest.mark.parametrize(
    ("field", "value"),
    (
        ("token_hook", print),
        ("progress", True),
        ("stop_strings", ("x",)),
        ("max_batch", 2),
        ("record", "full"),
        ("score_scope", "masked"),
    ),
)
def test_what_needs_the_host_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"cuda_graph=True .*{field}"):
        mf.DecodeConfig(cuda_graph=True, **{field: value})


def test_steps_run_uncaptured_without_cuda() -> None:
    made: list[int] = []
    graphs = StepGraphs(made.append, torch.device("cpu"))
    for capacity in (8, 8, 4):
        graphs.run(capacity)
    assert made == [8, 8, 4]


def test_bad_rows_are_named_when_the_device_is_read() -> None:
    rows = BadRows(3, torch.device("cpu"))
    rows.note(torch.tensor([5, -1, 7]), torch.tensor([0, 0, 2]))
    rows.check()
    rows.note(torch.tensor([-3, 4, -2]), torch.tensor([2, 2, 1]))
    rows.note(torch.tensor([9]), torch.tensor([1]))
    with pytest.raises(ValueError, match="decoding row 1: a row of logits holds NaN; nothing was committed from it"):
        rows.check()
