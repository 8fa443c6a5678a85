"""The launches of Triton kernels that the table of machine code covers: ops with the arguments that select a kernel.

The host code runs as it would on a GPU, but no kernel starts (triton_program.py), so numbers in tensors mean nothing:
types, shapes and alignment are all that the compiler sees.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from mdlm_fast.ops._schemas import PARTIAL_FIELDS, STAT_BITS, TILE
from mdlm_fast.ops._triton import KERNELS, PART_KERNELS

SEQUENCES, LENGTH, COLUMNS, HIDDEN = 4, 64, 126464, 4096
EVERYTHING = sum(STAT_BITS.values())
ARGMAX = STAT_BITS["token"] + STAT_BITS["logp"]
ALL_IDS = {"normalize_all": True}
GUIDED = {"guidance_logits": torch.empty(SEQUENCES * LENGTH, COLUMNS, dtype=torch.bfloat16), "guidance_scale": 1.5}
HALF, SINGLE = {"dtype": torch.float16}, {"dtype": torch.float32}
ODD = {"columns": COLUMNS + 1}  # rows that start anywhere: no vector loads

NUMBERS = torch.zeros(1024, dtype=torch.int32)
#: Host functions by the names below: module of mdlm_fast.kernels and function.
PLACES = KERNELS | PART_KERNELS | {"uniform_numbers": ("philox", "uniform_numbers")}

#: What a launch is called: the host function, and how its arguments differ from the usual ones.
LAUNCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "argmax and log-prob, bfloat16": ("score_partials", {"stats": ARGMAX, "forbidden_ids": None}),
    "everything, bfloat16": ("score_partials", {}),
    "everything, float16": ("score_partials", HALF),
    "everything, float32": ("score_partials", SINGLE),
    "everything, bfloat16, all ids": ("score_partials", ALL_IDS),
    "everything, bfloat16, guided": ("score_partials", GUIDED),
    "everything, bfloat16, odd width": ("score_partials", ODD),
    "sampled, bfloat16": ("finish_scores", {}),
    "sampled, bfloat16, odd width": ("finish_scores", ODD),
    "greedy": ("finish_scores", {"sample": False}),
    "filtered, bfloat16": ("finish_scores", {"top_k": 50, "top_p": 0.9, "stats_tempered": True}),
    "log-probs, bfloat16": ("token_logprobs", {}),
    "log-probs, float32": ("token_logprobs", SINGLE),
    "log-probs, bfloat16, odd width": ("token_logprobs", ODD),
    "gradient, bfloat16": ("token_logprobs_backward", {}),
    "gradient, float32": ("token_logprobs_backward", SINGLE),
    "gradient of a chunk, bfloat16": ("logit_gradient_", {"logits": torch.empty(256, 8192, dtype=torch.bfloat16)}),
    "head, greedy, bfloat16": ("linear_score_rows", {"sample": False}),
    "head, sampled, bfloat16": ("linear_score_rows", {}),
    "head, greedy, bfloat16, 64 rows": ("linear_score_rows", {"sample": False, "length": 16}),
    "head, log-probs, bfloat16": ("linear_token_logprobs", {}),
    "head, logits, bfloat16": ("head_logits", {"hidden": torch.empty(256, HIDDEN, dtype=torch.bfloat16)}),
    "soft quota": ("select_commit_", {"alg_temp": 1.0}),
    "entropy bound": ("select_commit_", {"rule": "entropy_bound"}),
    "origin": ("select_commit_", {"rule": "origin"}),
    "threshold, 4096 positions": ("select_commit_", {"rule": "threshold", "length": 4096}),
    "256 positions": ("remask_", {"length": 256}),
    "4096 positions": ("remask_", {"length": 4096}),
    "uniform numbers": (
        "uniform_numbers",
        {"seeds": NUMBERS.long(), "positions": NUMBERS, "steps": NUMBERS, "stream": 1},
    ),
}


def launch(name: str) -> None:
    """Runs the host code of one launch."""
    host, changes = LAUNCHES[name]
    module, attribute = PLACES[host]
    function = getattr(import_module(f"mdlm_fast.kernels.{module}"), attribute)
    function(**_arguments(function, dict(changes)))


def _arguments(function: Callable[..., Any], changes: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a host function, by name: `changes`, the rest as in the usual call, else by default or None.

    `dtype` and `columns` among the changes are those of logits, hidden states and weights, `length` that of a sequence.
    """
    sizes = {"dtype": torch.bfloat16, "columns": COLUMNS, "length": LENGTH}
    sizes = {name: changes.pop(name, size) for name, size in sizes.items()}
    shape = (SEQUENCES, sizes["length"])
    usual = _logits(*shape, sizes["columns"], sizes["dtype"]) | _canvas(*shape)
    parameters = inspect.signature(function).parameters
    unknown = set(changes) - set(parameters)
    assert not unknown, f"{function.__name__} has no arguments {unknown}"
    defaults = {name: None if one.default is one.empty else one.default for name, one in parameters.items()}
    return {name: changes.get(name, usual.get(name, default)) for name, default in defaults.items()}


def _logits(sequences: int, length: int, columns: int, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of the ops on logits; optional ones that are missing are None."""
    row, number = torch.zeros(sequences * length, dtype=torch.int32), torch.zeros(sequences * length)
    return {
        "logits": torch.empty(sequences, length, columns, dtype=dtype),
        "hidden": torch.empty(sequences, length, HIDDEN, dtype=dtype),
        "weight": torch.empty(columns, HIDDEN, dtype=dtype),
        "row_sequence": row,
        "temperature": torch.zeros(sequences),
        "partials": torch.empty(row.numel(), -(-columns // TILE), PARTIAL_FIELDS),
        "forbidden_ids": torch.zeros(2, dtype=torch.int64),
        "guidance_rows": row,
        "guidance_scale": 0.0,
        "vocab_start": 0,
        "vocab_limit": columns,
        "normalize_all": False,
        "stats_tempered": False,
        "stats": EVERYTHING,
        "top_k": 0,
        "top_p": 1.0,
        "sample": True,
        "targets": row.long(),
        "need_entropy": True,
        "grad_logp": number,
        "grad_entropy": number,
        "lse": number.double(),
    }


def _canvas(sequences: int, length: int) -> dict[str, Any]:
    """Arguments of the ops on a canvas, every output among them."""
    shape = (sequences, length)
    number, flags, per_sequence = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool), torch.zeros(sequences)
    slot = torch.zeros(sequences * length, dtype=torch.int32)
    return {
        "canvas": torch.zeros(shape, dtype=torch.int64),
        "masked": flags,
        "scope": flags,
        "running": number,
        "count": per_sequence.int(),
        "mask_id": COLUMNS - 1,
        "rows": slot,
        "token": slot.long(),
        "confidence": number.flatten(),
        "logp": number.flatten(),
        "logp_T": number.flatten(),
        "entropy": number.flatten(),
        "quota": per_sequence.int(),
        "threshold": per_sequence,
        "gamma": per_sequence,
        "eos_ids": torch.zeros(1, dtype=torch.int64),
        "row_position": slot,
        "seeds": per_sequence.long(),
        "step": torch.zeros(1, dtype=torch.int32),
        "commit_step": torch.zeros(shape, dtype=torch.int16),
        "commit_logp": number,
        "commit_logp_T": number,
        "commit_confidence": number,
        "masks_left": per_sequence.int(),
        "done": per_sequence.bool(),
        "next_rows": slot,
        "num_next_rows": torch.zeros(1, dtype=torch.int32),
        "rule": "quota",
        "discount": "log",
        "alg_temp": 0.0,
    }
