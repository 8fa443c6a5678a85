"""A decoder in plain Python and float64, one row at a time, for models whose logits are a hash of the canvas.

It shares nothing with the package but the random numbers and the schedules, which have oracles of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from hash_scorer import EOS, MASK, VOCAB, hash_logits

from mdlm_fast.config import DecodeConfig
from mdlm_fast.rng import STREAMS, philox4x32
from mdlm_fast.schedules import dream_transfer_probabilities, schedule_table


def uniform(seed: int, position: int, step: int, stream: str) -> float:
    r0, r1, _, _ = philox4x32((position, step, STREAMS[stream], 0), (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    return ((((r0 >> 6) << 26) | (r1 >> 6)) + 0.5) * 2.0**-52


@dataclass
class Record:
    """What the oracle returns for a row."""

    tokens: list[int]
    commit_step: list[int]
    logp: list[float]
    logp_T: list[float]
    confidence: list[float]
    states: list[list[int]] = field(default_factory=list)
    steps: int = 0


@dataclass
class Score:
    token: int
    logp: float
    logp_T: float
    margin: float
    entropy: float


def _log_softmax(values: dict[int, float]) -> dict[int, float]:
    top = max(values.values())
    total = math.log(sum(math.exp(v - top) for v in values.values())) + top
    return {i: v - total for i, v in values.items()}


def _filtered(z: dict[int, float], config: DecodeConfig) -> dict[int, float]:
    kept = dict(z)
    if config.top_p is not None and config.top_p < 1:
        p = {i: math.exp(v) for i, v in _log_softmax(kept).items()}
        order = sorted(p, key=lambda i: -p[i])
        mass, pivot = 0.0, 0.0
        for i in order:
            mass, pivot = mass + p[i], p[i]
            if mass >= config.top_p:
                break
        kept = {i: v for i, v in kept.items() if p[i] >= pivot}
    if config.top_k is not None and config.top_k < len(kept):
        pivot = sorted(kept.values(), reverse=True)[config.top_k - 1]
        kept = {i: v for i, v in kept.items() if v >= pivot}
    return kept


def score(z: list[float], config: DecodeConfig, temperature: float, seed: int, position: int, step: int) -> Score:
    """Token and statistics of one row of logits. Filters are only tested over the allowed ids."""
    banned = {MASK, *config.forbid_ids}
    limit = config.vocab_limit or VOCAB
    allowed = {i: v for i, v in enumerate(z) if i not in banned and i < limit}
    everything = dict(enumerate(z)) if config.normalize_over == "all" else allowed
    raw = _log_softmax(everything)
    heat = temperature if temperature > 0 else 1.0
    kept = _filtered({i: v / heat for i, v in allowed.items()}, config)
    if config.normalize_over == "all":
        extra = {i: v / heat for i, v in enumerate(z) if i not in allowed}
        tempered = _log_softmax({**kept, **extra})
    else:
        tempered = _log_softmax(kept)
    if temperature > 0:
        weights = {i: math.exp(v) for i, v in _log_softmax(kept).items()}
        u = uniform(seed, position, step, "token")
        mass, token = 0.0, -1
        for i in sorted(weights):
            mass += weights[i]
            token = i
            if mass > u:
                break
    else:
        token = max(allowed, key=lambda i: (allowed[i], -i))
    use_tempered = config.confidence_from == "tempered"
    logs = tempered if use_tempered else raw
    best = sorted((logs[i] for i in (kept if use_tempered else allowed)), reverse=True)
    margin = math.exp(best[0]) - (math.exp(best[1]) if len(best) > 1 else 0.0)
    entropy = -sum(math.exp(v) * v for v in logs.values())
    return Score(token, raw[token], tempered.get(token, -math.inf), margin, entropy)


class NaiveDecoder:
    """Decodes one row. prompt: its real tokens, masks among them to be filled."""

    scale = 7.0

    def __init__(self, prompt: list[int], config: DecodeConfig, seed: int, eos_ids=(EOS,), temperature=None) -> None:
        self.config, self.seed, self.eos_ids = config, seed, eos_ids
        self.temperature = config.temperature if temperature is None else temperature
        sizes = config.block_sizes()
        self.canvas = prompt + [MASK] * sum(sizes)
        self.given = [t != MASK for t in self.canvas]
        self.block = {}
        for p, t in enumerate(prompt):
            if t == MASK:
                self.block[p] = 0
        at = len(prompt)
        for k, size in enumerate(sizes):
            for p in range(at, at + size):
                self.block[p] = k
            at += size
        n = len(self.canvas)
        self.eligible = set(self.block)
        self.masked = set(self.block)
        self.record = Record([], [-1] * n, [0.0] * n, [0.0] * n, [0.0] * n)
        self.running: dict[int, float] = {}
        self.blocks = config.blocks()

    def row_logits(self) -> list[list[float]]:
        z = hash_logits(torch.tensor([self.canvas]), scale=self.scale)[0].double()
        if self.config.cfg_scale:
            without = [MASK if given else t for t, given in zip(self.canvas, self.given, strict=True)]
            u = hash_logits(torch.tensor([without]), scale=self.scale)[0].double()
            z = (self.config.cfg_scale + 1) * z - self.config.cfg_scale * u
        return z.tolist()

    def confidence(self, s: Score, position: int, step: int) -> float:
        kind = self.config.confidence
        if kind == "random":
            return uniform(self.seed, position, step, "random_confidence")
        if kind == "margin":
            return s.margin
        if kind == "neg_entropy":
            return -s.entropy
        logp = s.logp_T if self.config.confidence_from == "tempered" else s.logp
        return math.exp(logp) if self.config.alg_temp else logp

    def gamma(self, step: int, in_block: int) -> float:
        eoser, total = self.config.eoser, self.config.total_steps
        low = eoser.g_min if eoser.g_min is not None else (0.01 if self.config.schedule == "ass" else 0.4)
        if total == 1:
            return eoser.g_max
        if self.config.schedule == "ass":
            t = (2 ** (step + 1) - 1) / 2**total
        else:
            t = min(in_block if eoser.eos_index == "block" else step, total - 1) / (total - 1)
        return low + (eoser.g_max - low) * t

    def ranking(self, c: float, s: Score, step: int, in_block: int) -> float:
        eoser = self.config.eoser
        ids = (eoser.eos_ids or self.eos_ids) if eoser else ()
        if s.token not in ids:
            return c
        g = self.gamma(step, in_block)
        if self.config.confidence == "margin" or self.config.alg_temp:
            return c * g
        return c + math.log(g) if g > 0 else -math.inf

    def choose(self, ranked, quota, probability, step):
        """Positions to commit. ranked: (ranking, position, score, confidence)."""
        c = self.config
        if c.alg_temp:

            def key(r):
                u = uniform(self.seed, r[1], step, "position_choice")
                return (-(r[0] / c.alg_temp - math.log(-math.log(u))), r[1])
        else:

            def key(r):
                return (-r[0], r[1])

        if c.select == "entropy_bound":
            order = sorted(ranked, key=lambda r: (r[2].entropy, r[1]))
        else:
            order = sorted(ranked, key=key)
        if c.select == "quota":
            return order[:quota]
        if c.select == "origin":
            return [r for r in order if uniform(self.seed, r[1], step, "position_choice") < probability]
        tau = c.threshold
        if tau is not None and c.confidence == "prob":
            tau = math.log(tau) if tau > 0 else -math.inf
        if c.select == "threshold":
            return [r for i, r in enumerate(order) if i == 0 or r[0] >= tau]
        if c.select == "quota_threshold":
            above = [r for r in order if r[0] > tau]
            return above if len(above) >= quota else order[:quota]
        taken, before = [], 0.0
        for rank, r in enumerate(order, 1):
            if c.select == "factor" and rank > 1 and math.exp(r[0]) < 1 - c.factor / (rank + 1):
                break
            if c.select == "entropy_bound" and rank > 1 and before > c.entropy_bound:
                break
            before += r[2].entropy
            taken.append(r)
        return taken

    def one_step(self, block: int, step: int, in_block: int, quota: int, probability: float, remask: int) -> None:
        self.record.states.append(list(self.canvas))
        candidates = sorted(p for p in self.masked if self.block[p] <= block)
        logits = self.row_logits()
        ranked = []
        for p in candidates:
            s = score(logits[p], self.config, self.temperature, self.seed, p, step)
            c = self.confidence(s, p, step)
            ranked.append((self.ranking(c, s, step, in_block), p, s, c))
        rcr = self.config.remasking
        chosen = ranked if rcr else self.choose(ranked, quota, probability, step)
        for r, p, s, c in chosen:
            self.canvas[p] = s.token
            self.masked.discard(p)
            self.record.commit_step[p] = step
            self.record.logp[p], self.record.logp_T[p], self.record.confidence[p] = s.logp, s.logp_T, c
            self.running[p] = max(r, self.running.get(p, -math.inf)) if rcr and rcr.running == "max" else r
        if remask:
            scope = [
                p
                for p in self.eligible - self.masked
                if self.block[p] == block or (rcr.scope == "canvas" and self.block[p] <= block)
            ]
            for p in sorted(scope, key=lambda p: (self.running[p], -p))[:remask]:
                self.canvas[p] = MASK
                self.masked.add(p)
                self.record.commit_step[p] = -1
        self.record.steps = step + 1

    def run_block(self, block: int) -> None:
        """Decodes one block; the blocks before it must have been decoded."""
        c = self.config
        steps = self.blocks[block][1]
        present = sum(1 for p in self.masked if self.block[p] == block)
        table = schedule_table(c.schedule, present, steps)[present].tolist()
        if c.select not in ("quota", "origin"):
            i = 0
            while any(self.block[p] == block for p in self.masked):
                self.one_step(block, self.record.steps, i, table[min(i, steps - 1)], 0.0, 0)
                i += 1
            return
        first = sum(n for _, n in self.blocks[:block])
        for i in range(steps):
            if c.select == "origin":
                if any(self.block[p] == block for p in self.masked):
                    p = float(dream_transfer_probabilities(steps)[i])
                    self.one_step(block, first + i, i, 0, p, 0)
            elif present and (c.remasking or table[i]):
                self.one_step(block, first + i, i, table[i], 0.0, sum(table[i + 1 :]) if c.remasking else 0)

    def total_logp(self) -> float:
        return sum(self.record.logp[p] for p in self.eligible - self.masked)

    def run(self) -> Record:
        for block in range(len(self.blocks)):
            self.run_block(block)
        return self.finish()

    def finish(self) -> Record:
        self.record.tokens = self.canvas
        self.record.states.append(list(self.canvas))
        for p, s in enumerate(self.record.commit_step):
            if s < 0:
                self.record.logp[p] = self.record.logp_T[p] = self.record.confidence[p] = 0.0
        return self.record
