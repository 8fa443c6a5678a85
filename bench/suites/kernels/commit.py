"""`select_commit_` and `remask_` against the loops of published decoders, from the same scores.

70% of the canvas is masked. Every call starts from the same state: the baselines leave `masked` as it is and write the
same places of the canvas again; ours clears its commits in `masked`, and restoring that is part of its time. Ours also
writes the record (commit step, log-prob), the masks left and the next step's rows, which the loops find out later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mdlm_fast import ops

from ...baselines import commit as baselines
from ...harness.results import OURS
from ...harness.timing import Candidate
from ..settings import Cell, Settings
from .cell import Prepared, kernel_cell

SHAPES = ((1, 64), (8, 64), (8, 256), (8, 1024), (8, 4096), (64, 1024))
FULL_SHAPES = tuple((batch, length) for batch in (1, 8, 64) for length in (64, 256, 1024, 4096))
MASKED = 0.7
MASK_ID = 126_336
QUOTA, THRESHOLD, RCR = "quota", "threshold", "RCR"
LEAST = 0.9  # the threshold, a probability

RULES: dict[str, dict[str, baselines.Rule]] = {
    QUOTA: {"LLaDA": baselines.llada, "EOSER/CJ-GRPO rollout": baselines.eoser_rollout},
    THRESHOLD: {"Fast-dLLM": baselines.fast_dllm, "dInfer, torch.compile": baselines.dinfer},
}

#: Why a loop over one short sequence may be faster, and up to how many positions that is the reason.
FIXED_COST = (
    "a few small tensor operations that write the canvas alone; ours spends most of so small a call in Python, on "
    "argument checks and torch's dispatcher, and keeps the record too"
)
SMALL = 2**11


class State:
    """A step's inputs.

    Attributes:
        start: canvas int64, masked bool [B, L], what every call starts from.
        tokens int64, confidence float32 [B, L]: of every position; no two confidences of masked positions are equal.
        rows int32, token, score [C]: the same of the masked positions alone, as ours takes them.
        quota int32, threshold float32 [B].
        record: what ours writes besides canvas and masked.
    """

    def __init__(self, batch: int, length: int, device: str) -> None:
        g = torch.Generator().manual_seed(0)
        masked = torch.rand(batch, length, generator=g) < MASKED
        ranks = torch.randperm(batch * length, generator=g).view(batch, length)
        tokens = torch.randint(1000, (batch, length), generator=g)
        canvas = torch.randint(1000, (batch, length), generator=g).masked_fill(masked, MASK_ID)
        self.start = canvas.to(device), masked.to(device)
        self.tokens = tokens.to(device)
        self.confidence = ((ranks + 0.5) / (batch * length)).to(device)
        self.rows = masked.flatten().nonzero()[:, 0].int().to(device)
        self.token, self.score = (x.flatten()[self.rows.long()] for x in (self.tokens, self.confidence))
        self.quota = (torch.arange(batch) % 8 + 1).int().to(device)
        self.threshold = torch.full((batch,), LEAST, device=device)
        self.step = torch.zeros(1, dtype=torch.int32, device=device)
        self.record = empty_record(batch, length, self.rows)
        self.logp = self.score.log()

    def copy(self) -> tuple[Tensor, Tensor]:
        """Canvas and masked to write to."""
        canvas, masked = self.start
        return canvas.clone(), masked.clone()


def empty_record(batch: int, length: int, rows: Tensor) -> dict[str, Any]:
    """What `select_commit_` writes besides canvas and masked, for a canvas [batch, length] and the rows int32 [C]."""
    device = rows.device
    return {
        "commit_step": torch.full((batch, length), -1, dtype=torch.int16, device=device),
        "commit_logp": torch.zeros(batch, length, device=device),
        "masks_left": torch.zeros(batch, dtype=torch.int32, device=device),
        "done": torch.zeros(batch, dtype=torch.bool, device=device),
        "next_rows": torch.zeros_like(rows),
        "num_next_rows": torch.zeros(1, dtype=torch.int32, device=device),
    }


def cells(settings: Settings) -> Iterator[Cell]:
    """Both rules and remasking at every [B, L]."""
    for batch, length in FULL_SHAPES if settings.full else SHAPES:
        for op, variant, prepare in (
            ("select_commit_", QUOTA, partial(commit, QUOTA)),
            ("select_commit_", THRESHOLD, partial(commit, THRESHOLD)),
            ("remask_", RCR, remask),
        ):
            case = {"op": op, "variant": variant, "batch": batch, "length": length}
            yield kernel_cell(case, partial(prepare, batch, length, settings), settings)


def commit(rule: str, batch: int, length: int, settings: Settings) -> Prepared:
    """`select_commit_` by one rule."""
    state = State(batch, length, settings.device)
    bound = state.quota if rule == QUOTA else state.threshold

    def ours(canvas: Tensor, masked: Tensor) -> None:
        ops.select_commit_(
            canvas,
            masked,
            state.rows,
            state.token,
            state.score,
            rule=rule,
            quota=state.quota,
            threshold=state.threshold,
            logp=state.logp,
            step=state.step,
            **state.record,
        )

    def theirs(choose: baselines.Rule, canvas: Tensor, masked: Tensor) -> None:
        choose(canvas, masked, state.tokens, state.confidence, bound)

    # Canvas and mask are read; of each candidate row, token, confidence and log-prob; the next rows are written.
    moved = batch * length * 9 + state.rows.numel() * (4 + 8 + 4 + 4 + 4)
    loops = {name: partial(theirs, choose) for name, choose in RULES[rule].items()}
    return sides(state, ours, loops, moved)


def remask(batch: int, length: int, settings: Settings) -> Prepared:
    """`remask_`: an eighth of what is committed goes back."""
    state = State(batch, length, settings.device)
    committed = ~state.start[1]
    latest = torch.where(committed, state.confidence, 0.0)
    count = (committed.sum(1) // 8).clamp(min=1).int()

    def ours(canvas: Tensor, masked: Tensor) -> None:
        ops.remask_(
            canvas,
            masked,
            latest,
            committed,
            count,
            mask_id=MASK_ID,
            commit_step=state.record["commit_step"],
            masks_left=state.record["masks_left"],
            done=state.record["done"],
        )

    def theirs(canvas: Tensor, masked: Tensor) -> None:
        baselines.mdpo_remask(canvas, latest, count, MASK_ID)

    return sides(state, ours, {"MDPO": theirs}, batch * length * (8 + 1 + 4 + 1))


#: Writes the canvas [B, L] and, ours, masked [B, L].
Step = Callable[[Tensor, Tensor], None]


def sides(state: State, ours: Step, theirs: Mapping[str, Step], moved: int) -> Prepared:
    """Each side on a canvas of its own; `moved` bytes must be read or written."""
    candidates = [Candidate(OURS, partial(restored, ours, *state.copy(), state.start[1]))]
    for name, step in theirs.items():
        candidates.append(Candidate(name, partial(repeated, step, *state.copy())))

    def check() -> dict[str, str]:
        expected, masked = state.copy()
        before = expected.clone()
        ours(expected, masked)
        assert not torch.equal(expected, before), "nothing was written"
        for name, step in theirs.items():
            canvas, untouched = state.copy()
            step(canvas, untouched)
            assert torch.equal(canvas, expected), f"{name} wrote another canvas"
        return dict.fromkeys(theirs, "equal canvas")

    work = {"bytes": float(moved), "tokens": float(state.tokens.numel())}
    small = state.tokens.numel() <= SMALL
    return Prepared(
        candidates,
        check,
        work,
        peaks={candidate.name: partial(candidate.call, 0) for candidate in candidates},
        reasons=dict.fromkeys(theirs, FIXED_COST) if small else {},
    )


def repeated(step: Step, canvas: Tensor, masked: Tensor, i: int) -> None:
    """The i-th call of a baseline, which reads nothing that it wrote before."""
    step(canvas, masked)


def restored(step: Step, canvas: Tensor, masked: Tensor, start: Tensor, i: int) -> None:
    """The i-th call of ours, from the same masks as the last."""
    masked.copy_(start)
    step(canvas, masked)
