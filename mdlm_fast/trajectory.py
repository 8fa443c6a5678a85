"""The record of a decode: when every position was committed and how likely its token was.

The record rebuilds every state the decoder passed through, so a trainer needs neither copies of the canvas nor a second
pass for the log-probabilities of the policy that acted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Events:
    """What each step wrote, needed when tokens may be masked again. W covers the positions that decoding may write.

    start: int64 [B], the canvas position of column 0 of each row.
    token: int32 [B, S, W], the token a step wrote, -1 where it wrote none. logp: float32 [B, S, W], its untempered
    log-probability, 0 where none. masked: uint8 [B, S, ceil(W / 8)], bit w % 8 of byte w // 8 says whether the position
    was masked when the step began.
    """

    start: Tensor
    token: Tensor
    logp: Tensor
    masked: Tensor

    def masked_at(self, step: int) -> Tensor:
        """bool [B, W], the positions masked when ``step`` begins."""
        bits = torch.arange(8, device=self.masked.device, dtype=torch.uint8)
        spread = self.masked[:, step, :, None].bitwise_right_shift(bits).bitwise_and(1).bool()
        return spread.flatten(1)[:, : self.token.shape[2]]


@dataclass(frozen=True)
class Predictions:
    """Every step's predictions at the positions it scored (record="full"), in the columns of `Events`.

    start: int64 [B]. token: int32 [B, S, W], -1 where not scored. confidence: float32 [B, S, W], NaN where not scored.
    """

    start: Tensor
    token: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class Trajectory:
    """The record of decoding B canvases of L positions.

    Attributes:
        sequences: int64 [B, L], the tokens after the last step. Where a row stopped at an end token, tokens committed
            behind it keep their values here, while the output's are filled with EOS.
        commit_step: int16 [B, L], the row's own step, from 0, that committed the final token; -1 = never (prompt, pad,
            still masked, filled after a stop).
        commit_logp, commit_logp_T: float32 [B, L], log-probability of that token at temperature 1, and under the
            temperature and filters it was drawn with; 0 where commit_step is -1.
        commit_confidence: float32 [B, L], its confidence before EOSER (a log-probability for "prob", a probability with
            alg_temp); 0 where commit_step is -1.
        eligible: bool [B, L], positions decoding may write.
        mask_id, forbidden_ids, vocab_limit: what the tokens were drawn from: training must normalise over the same ids.
        normalize_all: the log-probabilities are over the whole vocabulary instead (normalize_over="all").
        row_steps: int32 [B], steps made by each row.
        events: with remasking, what every step wrote. predictions: with record="full".
    """

    sequences: Tensor
    commit_step: Tensor
    commit_logp: Tensor
    commit_logp_T: Tensor
    commit_confidence: Tensor
    eligible: Tensor
    mask_id: int
    forbidden_ids: tuple[int, ...]
    vocab_limit: int | None
    row_steps: Tensor
    normalize_all: bool = False
    events: Events | None = None
    predictions: Predictions | None = None

    @property
    def steps(self) -> int:
        """Steps made by the row that made the most."""
        return int(self.row_steps.max()) if self.row_steps.numel() else 0

    def committed(self, step: int) -> Tensor:
        """bool [B, L], the positions that ``step`` wrote (with remasking: also those masked again later)."""
        if self.events is None:
            return self.commit_step == step
        written = torch.zeros_like(self.eligible)
        if step < self.events.token.shape[1]:
            self._place(written, self.events.token[:, step] >= 0, torch.ones_like(self.events.token[:, step]).bool())
        return written

    def written(self, step: int) -> tuple[Tensor, Tensor]:
        """(tokens int64 [B, L], untempered log-probs float32 [B, L]) that ``step`` wrote, defined where `committed`."""
        if self.events is None:
            return self.sequences, self.commit_logp
        tokens, logp = self.sequences.clone(), torch.zeros_like(self.commit_logp)
        if step < self.events.token.shape[1]:
            where = self.events.token[:, step] >= 0
            self._place(tokens, where, self.events.token[:, step])
            self._place(logp, where, self.events.logp[:, step])
        return tokens, logp

    def states(self, step: int) -> Tensor:
        """The canvas ENTERING ``step``, int64 [B, L]; ``step == steps`` is the canvas after the last step.

        A row that ended earlier keeps its last state. Raises IndexError outside 0..steps.
        """
        if not 0 <= step <= self.steps:
            raise IndexError(f"step={step} is outside 0..{self.steps}, the states of this trajectory")
        hidden = self.eligible & ((self.commit_step < 0) | (self.commit_step >= step))
        final = torch.where(hidden, self.mask_id, self.sequences)
        if self.events is None or step >= self.events.token.shape[1]:
            return final
        running = self.row_steps > step
        state = torch.where(self.eligible & running[:, None], self.mask_id, final)
        visible = ~self.events.masked_at(step) & running[:, None]
        self._place(state, visible, self._last_written(step))
        return state

    def __iter__(self) -> Iterator[Tensor]:
        """Every state in turn, `steps` + 1 of them."""
        return (self.states(step) for step in range(self.steps + 1))

    def _last_written(self, step: int) -> Tensor:
        """int64 [B, W], what each position was last filled with before ``step``."""
        assert self.events is not None
        if step == 0:
            return torch.full_like(self.events.token[:, 0], self.mask_id, dtype=torch.int64)
        tokens = self.events.token[:, :step]
        number = torch.arange(step, device=tokens.device)[None, :, None]
        last = torch.where(tokens >= 0, number, -1).amax(1)
        return tokens.gather(1, last.clamp(min=0)[:, None]).squeeze(1).to(torch.int64)

    def _place(self, canvas: Tensor, where: Tensor, values: Tensor) -> None:
        """Writes ``values`` [B, W] into ``canvas`` [B, L] where ``where`` holds and the position is eligible."""
        assert self.events is not None
        columns = self.events.start[:, None] + torch.arange(where.shape[1], device=where.device)
        inside = columns < canvas.shape[1]
        columns = columns.clamp(max=canvas.shape[1] - 1)
        row, column = torch.where(where & inside & self.eligible.gather(1, columns))
        canvas[row, columns[row, column]] = values[row, column].to(canvas.dtype)

    def select(self, rows: Tensor | list[int] | slice) -> Trajectory:
        """The trajectory of some rows."""
        return self._map(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> Trajectory:
        """A copy on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, change: Any) -> Trajectory:
        def of(part: Any) -> Any:
            tensors = {f.name: change(v) for f in fields(part) if isinstance(v := getattr(part, f.name), Tensor)}
            return replace(part, **tensors)

        parts = {name: of(part) for name in ("events", "predictions") if (part := getattr(self, name)) is not None}
        return replace(of(self), **parts)

    def to_dict(self) -> dict[str, Tensor]:
        """All of it as contiguous tensors under flat names, ready for ``safetensors.torch.save_file``."""
        numbers = {
            "mask_id": torch.tensor(self.mask_id),
            "forbidden_ids": torch.tensor(self.forbidden_ids, dtype=torch.int64),
            "vocab_limit": torch.tensor(-1 if self.vocab_limit is None else self.vocab_limit),
            "normalize_all": torch.tensor(self.normalize_all),
        }
        tensors = {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        for name in ("events", "predictions"):
            part = getattr(self, name)
            if part is not None:
                tensors.update({f"{name}.{f.name}": getattr(part, f.name) for f in fields(part)})
        return {name: tensor.contiguous() for name, tensor in {**tensors, **numbers}.items()}

    @classmethod
    def from_dict(cls, tensors: dict[str, Tensor]) -> Trajectory:
        """The trajectory that `to_dict` wrote. Raises ValueError naming the first entry that is missing."""
        plain = [f.name for f in fields(cls) if f.name not in ("events", "predictions")]
        for name in plain:
            if name not in tensors:
                raise ValueError(f"tensors has no {name!r}: this is not what Trajectory.to_dict wrote")
        values: dict[str, Any] = {name: tensors[name] for name in plain}
        limit = int(tensors["vocab_limit"])
        values["mask_id"] = int(tensors["mask_id"])
        values["forbidden_ids"] = tuple(tensors["forbidden_ids"].tolist())
        values["vocab_limit"] = None if limit < 0 else limit
        values["normalize_all"] = bool(tensors["normalize_all"])
        for name, part in (("events", Events), ("predictions", Predictions)):
            found = {key.split(".", 1)[1]: value for key, value in tensors.items() if key.startswith(f"{name}.")}
            if found:
                values[name] = part(**found)
        return cls(**values)


def pack_bits(bits: Tensor) -> Tensor:
    """bool [..., W] as uint8 [..., ceil(W / 8)], bit w % 8 of byte w // 8."""
    padded = torch.nn.functional.pad(bits, (0, -bits.shape[-1] % 8)).unflatten(-1, (-1, 8))
    weights = 2 ** torch.arange(8, device=bits.device)
    return (padded * weights).sum(-1).to(torch.uint8)
