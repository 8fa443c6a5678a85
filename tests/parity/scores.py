"""Scores of rows against the float64 oracle: tokens, statistics, padding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from oracles import RowOracle, philox_uniform
from parity.inputs import placed
from parity.measure import Measurement, Target, accuracy, differing
from torch import Tensor

from mdlm_fast import ops
from mdlm_fast.ops import RowScores
from mdlm_fast.rng import derive_seed

STATISTICS = ("logp", "logp_T", "margin", "entropy")
INTERVAL_SLACK = 2.0**-20
TOP_P_SLACK = 2.0**-20  # the pivot may fall on either side of the bound within the rounding of the masses


class Slot(NamedTuple):
    """One row that is scored, from the arguments of `score_rows`."""

    row: int
    guidance_row: int
    temperature: float
    sampled: bool
    uniform: float


class Head(NamedTuple):
    """hidden [..., H], weight [V, H], bias [V] or None: what the logits are made of in the fused ops."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    guidance: Tensor | None = None


@dataclass
class ScoreProblem:
    """Logits on the CPU, [N, V] or [B, L, V], and the keywords of `score_rows`."""

    logits: Tensor
    options: dict[str, Any] = field(default_factory=dict)
    layout: str = "contiguous"
    head: Head | None = None
    whole: ScoreProblem | None = None  # with all the rows, where this one has a few of them

    def thinned(self, count: int = 10) -> ScoreProblem:
        """The same with few of the rows, for backends that are slow."""
        keep = torch.linspace(0, self.rows.numel() - 1, min(count, self.rows.numel())).long()
        options = {**self.options, "rows": self.rows[keep].int()}
        options |= {name: options[name][keep] for name in ("row_position", "guidance_rows") if name in options}
        if "guidance_logits" in options:
            options.setdefault("guidance_rows", options["rows"])
        return ScoreProblem(self.logits, options, self.layout, self.head, whole=self)

    def score(self, target: Target) -> RowScores:
        """`score_rows` on a target."""
        options = target.put(self.options)
        if "guidance_logits" in options:
            options["guidance_logits"] = placed(self.options["guidance_logits"], self.layout, target.device)
        with ops.use_backend(target.backend):
            return ops.score_rows(placed(self.logits, self.layout, target.device), **options)

    def score_head(self, target: Target) -> RowScores:
        """`linear_score_rows` on a target."""
        assert self.head is not None
        options = target.put({name: value for name, value in self.options.items() if name != "guidance_logits"})
        hidden = placed(self.head.hidden, self.layout, target.device)
        weight, bias, guidance = (target.put(x) for x in (self.head.weight, self.head.bias, self.head.guidance))
        with ops.use_backend(target.backend):
            return ops.linear_score_rows(hidden, weight, bias, guidance_hidden=guidance, **options)

    @cached_property
    def reference(self) -> RowScores:
        return self.score(Target("reference", "cpu"))

    @cached_property
    def rows(self) -> Tensor:
        rows = self.options.get("rows")
        return torch.arange(self.logits.shape[:-1].numel()) if rows is None else rows.long()

    @cached_property
    def slots(self) -> list[Slot]:
        """The live slots, in order."""
        length, batched = self.logits.shape[-2], self.logits.dim() == 3
        options = self.options
        temperature, step = (torch.as_tensor(options.get(n, 0)).flatten() for n in ("temperature", "step"))
        seeds = options.get("seeds", 0)
        sample = options.get("sample", "temperature" in options)
        slots = []
        for at, row in enumerate(self.rows.tolist()):
            if row < 0:
                continue
            sequence = int(options["row_sequence"][at]) if "row_sequence" in options else row // length * batched
            position = int(options["row_position"][at]) if "row_position" in options else row % length
            t = float(temperature[min(sequence, temperature.numel() - 1)])
            seed = int(seeds.flatten()[min(sequence, seeds.numel() - 1)]) if isinstance(seeds, Tensor) else 0
            if not isinstance(seeds, Tensor):
                seed = derive_seed(seeds, sequence)
            u = philox_uniform(seed, position, int(step[min(sequence, step.numel() - 1)]), 0)
            guidance_rows = options.get("guidance_rows")
            guidance_row = row if guidance_rows is None else int(guidance_rows[at])
            slots.append(Slot(row, guidance_row, t, bool(sample) and t > 0, u))
        return slots

    @cached_property
    def z(self) -> Tensor:
        """f32 [live slots, V]: the rows, guided."""
        width = self.logits.shape[-1]
        z = self.logits.reshape(-1, width)[[slot.row for slot in self.slots]].float()
        guidance = self.options.get("guidance_logits")
        if guidance is None:
            return z
        scale = self.options["guidance_scale"]
        other = guidance.reshape(-1, width)[[slot.guidance_row for slot in self.slots]].float()
        return torch.where(z == -torch.inf, z, (scale + 1.0) * z - scale * other)

    @cached_property
    def oracles(self) -> list[list[RowOracle]]:
        """Per live slot; with top-p more than one where the bound is too close to call."""
        forbidden = self.options.get("forbidden_ids")
        common = {
            "forbidden": () if forbidden is None else tuple(torch.as_tensor(forbidden).tolist()),
            "vocab_limit": self.options.get("vocab_limit"),
            "top_k": self.options.get("top_k", 0),
            "normalize_all": self.options.get("normalize_over") == "all",
        }
        top_p = self.options.get("top_p", 1.0)
        bounds = [top_p] if top_p == 1.0 else [top_p, top_p * (1 - TOP_P_SLACK), min(1.0, top_p * (1 + TOP_P_SLACK))]
        result = []
        for row, slot in zip(self.z.double().numpy(), self.slots, strict=True):
            choices: list[RowOracle] = []
            for bound in bounds:
                oracle = RowOracle(row, temperature=slot.temperature, top_p=bound, **common)
                if all((oracle.kept != other.kept).any() for other in choices):
                    choices.append(oracle)
            result.append(choices)
        return result

    def fp32(self, tokens: list[int], tempered_shape: bool) -> dict[str, Tensor]:
        """The statistics by plain PyTorch in fp32, [live slots]."""
        first = [choices[0] for choices in self.oracles]
        temperature = torch.tensor([oracle.divisor for oracle in first])[:, None]
        candidates = torch.from_numpy(np.stack([oracle.candidates for oracle in first]))
        kept = torch.from_numpy(np.stack([oracle.kept for oracle in first]))
        outside = ~candidates if first[0].normalize_all else torch.zeros_like(candidates)
        raw = torch.where(candidates | outside, self.z, -torch.inf).log_softmax(-1)
        tempered = torch.where(kept | outside, self.z / temperature, -torch.inf).log_softmax(-1)
        shape, inside = (tempered, kept) if tempered_shape else (raw, candidates)
        at = torch.tensor(tokens)[:, None]
        top = torch.where(inside, shape, -torch.inf).exp().topk(min(2, shape.shape[1])).values
        return {
            "logp": raw.gather(1, at)[:, 0],
            "logp_T": tempered.gather(1, at)[:, 0],
            "margin": top[:, 0] - top[:, 1] if top.shape[1] > 1 else top[:, 0],
            "entropy": -torch.where(shape > -torch.inf, shape.exp() * shape, 0.0).sum(-1),
        }

    def check(self, scores: RowScores, *, against_reference: bool = True) -> Iterator[Measurement]:
        """Everything that is asked of the scores of a target."""
        live = self.rows >= 0
        scores = RowScores(*(None if x is None else x.cpu() for x in scores))
        if not live.all():
            padding = {"token": -1, "logp": -torch.inf, "logp_T": -torch.inf, "margin": 0.0, "entropy": 0.0}
            wrong = sum(
                int((value[~live] != padding[name]).sum())
                for name, value in scores._asdict().items()
                if value is not None
            )
            yield Measurement("padding", wrong)
        tokens = scores.token[live].tolist()
        sampled = torch.tensor([slot.sampled for slot in self.slots])
        greedy = [choices[0].greedy for choices in self.oracles]
        wrong = sum(t != g for t, g, s in zip(tokens, greedy, sampled, strict=True) if not s)
        yield Measurement("greedy tokens", wrong)
        if any(not 0 <= token < self.logits.shape[-1] for token in tokens):
            yield Measurement("token out of range", float("inf"))
            return
        if sampled.any():
            yield from self._check_draws(scores.token[live], sampled, against_reference)
        yield from self._check_statistics(scores, live, tokens)

    def _check_draws(self, token: Tensor, sampled: Tensor, against_reference: bool) -> Iterator[Measurement]:
        worst = 0.0
        for slot, choices, v in zip(self.slots, self.oracles, token.tolist(), strict=True):
            if slot.sampled:
                worst = max(worst, min(_outside_interval(oracle, v, slot.uniform) for oracle in choices))
        yield Measurement("interval of the draw", worst, INTERVAL_SLACK)
        if against_reference:
            expected = self.reference.token[self.rows >= 0]
            share = max(1, int(sampled.sum()) // 100)
            yield differing("sampled tokens other than the reference's", token[sampled], expected[sampled], share)

    def _check_statistics(self, scores: RowScores, live: Tensor, tokens: list[int]) -> Iterator[Measurement]:
        tempered = self.options.get("stats_from") == "tempered"
        fp32 = self.fp32(tokens, tempered)
        elsewhere = self.whole.torch_errors if self.whole is not None else {}
        for name in STATISTICS:
            value = getattr(scores, name)
            if value is None:
                continue
            ours = value[live]
            exact = np.empty(len(tokens))
            for i, (choices, v) in enumerate(zip(self.oracles, tokens, strict=True)):
                values = [_exact(oracle, name, v, tempered) for oracle in choices]
                exact[i] = min(values, key=lambda x, i=i: abs(x - float(ours[i])) if np.isfinite(x) else np.inf)
            yield accuracy(name, ours, exact, fp32[name], elsewhere.get(name, 0.0))

    @cached_property
    def torch_errors(self) -> dict[str, float]:
        """The largest error of plain PyTorch in fp32 per statistic, for the greedy tokens."""
        tempered = self.options.get("stats_from") == "tempered"
        oracles = [choices[0] for choices in self.oracles]
        tokens = [oracle.greedy for oracle in oracles]
        fp32 = self.fp32(tokens, tempered)
        errors = {}
        for name in STATISTICS:
            exact = [_exact(oracle, name, token, tempered) for oracle, token in zip(oracles, tokens, strict=True)]
            difference = np.abs(np.array(exact) - fp32[name].double().numpy())
            errors[name] = float(difference[np.isfinite(difference)].max(initial=0.0))
        return errors


def _outside_interval(oracle: RowOracle, token: int, u: float) -> float:
    """How far u lies outside [C(v - 1), C(v)); infinite for a token without mass."""
    if not oracle.kept[token] or oracle.z[token] == -np.inf:
        return float("inf")
    cdf = oracle.cdf()
    return max(cdf[token] - u, u - cdf[token + 1], 0.0)


def _exact(oracle: RowOracle, statistic: str, token: int, tempered: bool) -> float:
    if statistic in ("logp", "logp_T"):
        return float(oracle.log_probs(statistic == "logp_T")[token])
    return getattr(oracle, statistic)(tempered)
