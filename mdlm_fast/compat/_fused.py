"""The drop-ins' fast path: released rules on fused ops.

Only rows that can be chosen (or that the released function returns) meet the LM head, one op turns each into a token
and its confidence, and one op ranks and commits. The mask id is never committed but stays in the normaliser, as in the
released code. Every step calls the model once, with the released arguments, even a step whose quota is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mdlm_fast import ops
from mdlm_fast.compat._released import Forward, logits_of, with_unconditional
from mdlm_fast.models import RowHead
from mdlm_fast.models._patch import find_head

TokenAndConfidence = tuple[Tensor, Tensor]

#: The statistic behind each kind of confidence of Dream and MDPO; any other kind is the token's probability.
MEASURES: dict[str, tuple[str, ...]] = {"entropy": ("entropy",), "topk_margin": ("margin",)}


def draw_seeds(batch: int, device: torch.device) -> Tensor:
    """A 64-bit key for each sequence, int64 ``[B]``, from torch's global generator, so `torch.manual_seed` decides."""
    return torch.randint(-(2**63), 2**63 - 1, (batch,)).to(device)


class Decoder:
    """The canvases of one call, and the two things done to them: score rows, commit tokens.

    canvas: int64 ``[B, L]``, written in place. masked: bool ``[B, L]``. Rows are int32 flat indices ``b * L + l``.
    """

    def __init__(
        self,
        model: Any,
        forward: Forward,
        canvas: Tensor,
        mask_id: int,
        *,
        temperature: float = 0.0,
        cfg_scale: float = 0.0,
        attention_mask: Tensor | None = None,
        shift: bool = False,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> None:
        self.canvas, self.masked = canvas, canvas == mask_id
        self.batch, self.length = canvas.shape
        self.mask_id, self.cfg_scale, self.shift = mask_id, cfg_scale, shift
        self._forward, self._head = forward, RowHead.of(model)
        head = find_head(model)
        self._width: int | None = getattr(head, "out_features", None)
        self._given = ~self.masked if cfg_scale > 0 else None
        #: Whether filters leave one id to many rows at temperature 0, which makes their confidences equal.
        self.ties_are_common = temperature == 0 and (top_k is not None or (top_p is not None and top_p < 1))
        self._step = -1
        self._options: dict[str, Any] = {"normalize_over": "all", "top_k": top_k}
        self._options["top_p"] = top_p if top_p is not None and top_p < 1 else None
        self._positions: Tensor | None = None
        if temperature > 0:
            self._options |= {"temperature": temperature, "seeds": draw_seeds(self.batch, canvas.device)}
            if attention_mask is not None:
                self._positions = (attention_mask.long().cumsum(1) - 1).clamp(min=0).int().flatten()
        #: Masked positions of each row that the current block can still commit.
        self.left: list[int] = []
        #: dtype of the model's logits, known after the first step.
        self.logits_dtype = torch.float32

    # ---------------------------------------------------------------------------------------------------------- rows

    def open_block(self, end: int) -> Tensor:
        """The masked positions left of ``end``, in order: the rows of a block's first step."""
        found = self.masked[:, :end].nonzero()
        self.left = torch.bincount(found[:, 0], minlength=self.batch).tolist()
        return (found[:, 0] * self.length + found[:, 1]).int()

    def close_step(
        self,
        rows: Tensor,
        tokens: Tensor,
        confidence: Tensor,
        counts: Sequence[int],
        eos_id: int | None = None,
        gamma: float = 1.0,
    ) -> Tensor:
        """`commit`, then the rows that are still masked: the next step's, when the block goes on.

        How many there are is known on the host, so nothing waits for the device.
        """
        following = torch.empty_like(rows)
        self.commit(rows, tokens, confidence, counts, eos_id, gamma, next_rows=following)
        self.left = [left - min(left, count) for left, count in zip(self.left, counts, strict=True)]
        return following[: sum(self.left)]

    def take_as_topk(self, rows: Tensor, values: Tensor, counts: Sequence[int]) -> Tensor:
        """Ranking f32 ``[C]`` that puts first the ``counts[b]`` of each row's ``values`` that `torch.topk` takes.

        For options under which exact ties are common, so that it matters which of the equals the released code takes.
        """
        whole = torch.full(self.canvas.shape, -torch.inf, device=rows.device)
        whole.view(-1)[rows] = values
        taken = torch.zeros_like(self.masked)
        for row, count in enumerate(counts):
            taken[row, whole[row].topk(count).indices] = True
        return values.masked_fill(taken.flatten()[rows], torch.inf)

    def replace(self, canvas: Tensor) -> None:
        """Goes on with another canvas of the same shape; its mask ids are what is masked."""
        self.canvas, self.masked = canvas, canvas == self.mask_id

    # --------------------------------------------------------------------------------------------------------- model

    def _run(self) -> Any:
        canvases = self.canvas
        if self._given is not None:
            canvases = with_unconditional(canvases, self._given, self.mask_id)
        output = self._forward(canvases)
        self.logits_dtype = logits_of(output).dtype
        return output

    def skip(self) -> None:
        """Calls the model as the released code does in a step that commits nothing."""
        self._step += 1
        self._run()

    def score(self, rows: Tensor, *stats: str, stats_from: str = "raw") -> ops.RowScores:
        """Runs the model and scores ``rows``: tokens and the ``stats`` asked for, as `ops.score_rows` names them."""
        if self._width is None:
            return self.score_logits(self.row_logits(rows), rows, *stats, stats_from=stats_from)
        self._step += 1
        guided: dict[str, Any] = {}
        if self._given is not None:
            guided = {"guidance_rows": rows + self.canvas.numel(), "guidance_scale": self.cfg_scale}
        return self._head.score(
            self._run,
            rows,
            length=self.length,
            shift=self.shift,
            **guided,
            **self._score_options(rows, self._width, stats, stats_from),
        )

    def score_or_shuffle(self, rows: Tensor, random: bool) -> TokenAndConfidence:
        """Tokens and what ranks them: log-probabilities, or uniforms drawn in the released shape and order."""
        if random:
            return self.score(rows).token, torch.rand(self.canvas.shape, device=rows.device).flatten()[rows]
        scores = self.score(rows, "logp")
        assert scores.logp is not None
        return scores.token, scores.logp

    def row_logits(self, rows: Tensor) -> Tensor:
        """Runs the model; the logits of ``rows``, ``[C, V]``, guided in fp32. The caller may write to them."""
        self._step += 1
        wanted = rows if self._given is None else torch.cat([rows, rows + self.canvas.numel()])
        if self._width is None:
            source = wanted - (wanted % self.length > 0).int() if self.shift else wanted
            logits = logits_of(self._run()).flatten(0, 1).index_select(0, source)
        else:
            logits = self._head.logits(self._run, wanted, length=self.length, shift=self.shift)
        if self._given is None:
            return logits
        conditional, unconditional = logits.float().chunk(2)
        return (self.cfg_scale + 1) * conditional - self.cfg_scale * unconditional

    def score_logits(self, logits: Tensor, rows: Tensor, *stats: str, stats_from: str = "raw") -> ops.RowScores:
        """Scores what `row_logits` gave for ``rows``."""
        return ops.score_rows(logits, **self._score_options(rows, logits.shape[-1], stats, stats_from))

    def filtered_scores(self, rows: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
        """Token, log-probability and ranking (higher first) under the tempered, filtered distribution (Dream, MDPO).

        ``kind``: "entropy", "topk_margin", or anything else for the log-probability. The margin is that of the two most
        probable ids and filters keep the best ids, the mask id among them; both take a second look at the logits.
        """
        measure = MEASURES.get(kind, ())
        filtered = self._options["top_k"] is not None or self._options["top_p"] is not None
        if filtered or kind == "topk_margin":
            logits = self.row_logits(rows)
            scores = self.score_logits(logits, rows, "logp_T")
            options = self._score_options(rows, logits.shape[-1], ("logp_T", *measure), "tempered")
            whole = ops.score_rows(logits, **options | {"forbidden_ids": None, "sample": False})
        else:
            scores = whole = self.score(rows, "logp_T", *measure, stats_from="tempered")
        assert scores.logp_T is not None and whole.logp_T is not None
        logp = torch.where(scores.token == whole.token, whole.logp_T, scores.logp_T)
        if whole.entropy is not None:
            return scores.token, logp, -whole.entropy
        return scores.token, logp, logp if whole.margin is None else whole.margin

    def _score_options(self, rows: Tensor, width: int, stats: Sequence[str], stats_from: str) -> dict[str, Any]:
        position = rows % self.length if self._positions is None else self._positions[rows]
        return self._options | {
            "row_sequence": rows // self.length,
            "row_position": position,
            "step": self._step,
            "forbidden_ids": (self.mask_id,) if 0 <= self.mask_id < width else None,
            "stats": ("token", *stats),
            "stats_from": stats_from,
        }

    # -------------------------------------------------------------------------------------------------------- commit

    def commit(
        self,
        rows: Tensor,
        tokens: Tensor,
        confidence: Tensor,
        counts: Sequence[int],
        eos_id: int | None = None,
        gamma: float = 1.0,
        commit_confidence: Tensor | None = None,
        next_rows: Tensor | None = None,
    ) -> None:
        """Commits the ``counts[b]`` most confident tokens of each row b; ties go to the lower position.

        rows: -1 is no candidate. confidence: f32 ``[C]``, higher first. With ``eos_id``, log gamma is added where the
        token is EOS. commit_confidence, next_rows: outputs of `ops.select_commit_`.
        """
        if eos_id is not None:
            discount: dict[str, Any] = {
                "discount": "log",
                "gamma": torch.full((self.batch,), gamma, device=rows.device),
                "eos_ids": torch.tensor([eos_id], device=rows.device),
            }
        else:
            discount = {}
        quota = torch.tensor(counts, dtype=torch.int32, device=rows.device)
        ops.select_commit_(
            self.canvas,
            self.masked,
            rows,
            tokens,
            confidence,
            quota=quota,
            rule="quota",
            step=self._step,
            commit_confidence=commit_confidence,
            next_rows=next_rows,
            **discount,
        )
