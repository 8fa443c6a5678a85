"""What the released way needs of the memory, so that a case too large for the machine is not begun."""

from __future__ import annotations

import torch

from mdlm_fast.rl.memory import Adapter, ModelShape, activation_bytes_per_token

from .case import CHECKPOINTING, PROMPT, RANK, Case, make_config


def needed_bytes(case: Case, name: str) -> int:
    """The least at the peak of an iteration of the released way, beyond weights, gradients and optimizer state.

    The graphs of all steps are alive at the start of the backward pass. On top of them come the gradients that are made
    first: of the log-softmax, of the logits of the whole canvas, and of the head's weights where they are trained.

    Args:
        name: of the side, of `case.CHECKPOINTING`.
    """
    rows, canvas = case.batch * case.generated, case.batch * (PROMPT + case.generated)
    weights = make_config(case).hidden_size if case.head == "trained" else 0
    gradients = (rows + canvas + weights) * case.vocabulary.size * getattr(torch, case.dtype).itemsize
    return case.steps * bytes_of_a_step(case, name) + gradients


def bytes_of_a_step(case: Case, name: str) -> int:
    """What the graph of one step holds: the log-softmax of all generated positions, and of the layers what is kept."""
    dtype: torch.dtype = getattr(torch, case.dtype)
    trained = case.head == "trained"
    layers = activation_bytes_per_token(
        ModelShape.from_config(make_config(case)),
        dtype,
        trained,
        CHECKPOINTING[name],
        adapter=None if trained else Adapter(RANK, "all", dtype),
    )
    log_softmax = case.batch * case.generated * case.vocabulary.size * dtype.itemsize
    return log_softmax + case.batch * (PROMPT + case.generated) * layers
