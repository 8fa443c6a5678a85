"""`select_commit_` and `remask_`: from identical scores every backend writes what the reference writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import torch
from oracles import commit_oracle, philox_uniform
from parity.inputs import seeded
from parity.measure import Case, Check, Measurement, Target, differing
from torch import Tensor

from mdlm_fast import ops

RULES = ("quota", "threshold", "factor", "entropy_bound", "quota_threshold", "origin")
DISCOUNTS = ("none", "log", "multiply")
ALG_TEMPS = (0.0, 0.7)
EOS_IDS = (0, 3)


def random_step(rule: str, discount: str, alg_temp: float, batch: int, length: int, variant: int) -> dict[str, Any]:
    """Inputs of one step: ties, -inf, padding and bad rows anywhere, unsorted and unmasked rows, quotas of 0 and above
    the candidates, sequences without candidates."""
    g = seeded(rule, discount, alg_temp, batch, length, variant)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=g)

    masked = torch.rand(batch, length, generator=g) < 0.6
    masked[batch // 2] &= variant % 3 > 0
    rows = (torch.rand(batch * length, generator=g) < 0.7).nonzero()[:, 0].int()
    rows = torch.cat([rows, rows.new_full((variant % 4,), -1)])
    if variant % 2:
        rows = rows[torch.randperm(rows.numel(), generator=g)]
    count = rows.numel()
    confidence = torch.randn(count, generator=g).mul(3).round() / 3
    if variant % 3:
        confidence = -confidence.abs()
    if variant % 3 == 1:
        confidence = confidence - torch.rand(count, generator=g)  # hardly any ties
    confidence[torch.rand(count, generator=g) < 0.1] = -torch.inf
    probability = rule in ("factor", "entropy_bound", "origin")
    return {
        "canvas": integers(0, 9, batch, length),
        "masked": masked,
        "rows": rows,
        "token": integers(-4, 12, count).clamp(max=6),
        "confidence": confidence,
        "logp": torch.randn(count, generator=g),
        "logp_T": torch.randn(count, generator=g),
        "entropy": torch.rand(count, generator=g).mul(5).round() / 5,
        "quota": integers(0, max(3, length // 3), batch).int() * (variant % 5 > 0),
        "threshold": torch.rand(batch, generator=g) if probability else -torch.rand(batch, generator=g) * 2,
        "gamma": torch.rand(batch, generator=g) * (variant % 4 != 0),
        "eos_ids": torch.tensor(EOS_IDS),
        "row_position": integers(0, 99, count).int(),
        "seeds": integers(-(2**62), 2**62, batch),
        "step": integers(0, 9, batch if variant % 2 else 1).int(),
        "rule": rule,
        "discount": discount,
        "alg_temp": alg_temp,
    }


def commit_and_remask(inputs: dict[str, Any], target: Target) -> dict[str, Tensor]:
    """Commit, then remask; everything that was written."""
    step = target.put(inputs)
    batch, length = step["canvas"].shape
    written = target.put(
        {
            "commit_step": torch.full((batch, length), -1, dtype=torch.int16),
            "commit_logp": torch.zeros(batch, length),
            "commit_logp_T": torch.zeros(batch, length),
            "commit_confidence": torch.zeros(batch, length),
            "masks_left": torch.full((batch,), -7, dtype=torch.int32),
            "done": torch.zeros(batch, dtype=torch.bool),
            "next_rows": torch.full_like(inputs["rows"], -7),
            "num_next_rows": torch.full((1,), -7, dtype=torch.int32),
        }
    )
    first = [step.pop(name) for name in ("canvas", "masked", "rows", "token", "confidence")]
    canvas, masked = first[:2]
    g = seeded(batch, length)
    running = torch.randn(batch, length, generator=g).mul(2).round()
    scope = torch.rand(batch, length, generator=g) < 0.8
    count = torch.randint(0, length + 2, (batch,), generator=g).int()
    with ops.use_backend(target.backend):
        ops.select_commit_(*first, **step, **written)
        committed = {f"{name}, committed": x.clone() for name, x in written.items()}
        committed |= {"canvas, committed": canvas.clone(), "masked, committed": masked.clone()}
        ops.remask_(
            canvas,
            masked,
            *target.put({"running": running, "scope": scope, "count": count}).values(),
            mask_id=8,
            commit_step=written["commit_step"],
            masks_left=written["masks_left"],
            done=written["done"],
        )
    remasked = {name: written[name] for name in ("commit_step", "masks_left", "done")}
    remasked |= {"canvas": canvas, "masked": masked}
    return committed | {f"{name}, remasked": x for name, x in remasked.items()}


def committed_by_definition(inputs: dict[str, Any]) -> set[tuple[int, int]]:
    """(sequence, position) of what is committed, one sequence and one candidate at a time."""
    batch, length = inputs["canvas"].shape
    taken = set()
    for b in range(batch):
        slots = []
        for slot, row in enumerate(inputs["rows"].tolist()):
            inside = row >= 0 and row // length == b
            if inside and inputs["token"][slot] >= 0 and inputs["masked"][b, row % length]:
                slots.append((row % length, slot))
        slots.sort()
        ranking = [_ranking(inputs, b, slot) for _, slot in slots]
        if inputs["rule"] == "origin":
            chosen = {i for i, (_, slot) in enumerate(slots) if _uniform(inputs, b, slot) < inputs["threshold"][b]}
        else:
            chosen = commit_oracle(
                ranking,
                inputs["rule"],
                quota=int(inputs["quota"][b]),
                threshold=float(inputs["threshold"][b]),
                entropy=[float(inputs["entropy"][slot]) for _, slot in slots],
            )
        taken |= {(b, slots[i][0]) for i in chosen}
    return taken


def _uniform(inputs: dict[str, Any], sequence: int, slot: int) -> float:
    step = inputs["step"]
    return philox_uniform(
        int(inputs["seeds"][sequence]),
        int(inputs["row_position"][slot]),
        int(step[sequence if step.numel() > 1 else 0]),
        2,
    )


def _ranking(inputs: dict[str, Any], sequence: int, slot: int) -> float:
    value = np.float32(inputs["confidence"][slot])
    if inputs["discount"] != "none" and int(inputs["token"][slot]) in EOS_IDS:
        gamma = np.float32(inputs["gamma"][sequence])
        with np.errstate(divide="ignore", invalid="ignore"):
            value = value + np.log(gamma) if inputs["discount"] == "log" else value * gamma
    if inputs["alg_temp"] > 0:
        noise = -np.log(-np.log(_uniform(inputs, sequence, slot)))
        value = np.float32(np.float64(value) / inputs["alg_temp"] + noise)
    return -np.inf if np.isnan(value) else float(value)


def check_commits(inputs: dict[str, Any], expected: dict[str, Tensor], target: Target) -> Iterator[Measurement]:
    ours = commit_and_remask(inputs, target)
    for name, value in expected.items():
        yield differing(name, ours[name], value)


def commit_cases() -> Iterator[Case]:
    needs = ("select_commit_", "remask_")
    for rule, discount, alg_temp in product(RULES, DISCOUNTS, ALG_TEMPS):
        name = f"{rule}, discount {discount}, alg_temp {alg_temp}"
        reduced = DISCOUNTS.index(discount) == RULES.index(rule) % 3 or rule == "factor"
        reduced = reduced and (alg_temp == 0 or rule == "quota")
        for sizes, short in (((((3, 17), 6), ((1, 1), 1), ((5, 40), 6))), False), ((((2, 19), 2),), True):
            build = _build(rule, discount, alg_temp, sizes)
            if short and not reduced:
                continue
            yield Case("select_commit_", name, torch.float32, needs, build, short)
        yield Case("select_commit_", f"{name}, large", torch.float32, needs, _build_large(rule, discount, alg_temp))


def _build(
    rule: str, discount: str, alg_temp: float, sizes: tuple[tuple[tuple[int, int], int], ...]
) -> Callable[[], Check]:
    """Small canvases, where the reference itself is held against the definition."""

    def build() -> Check:
        problems = []
        host = Target("reference", "cpu")
        for (batch, length), variants in sizes:
            for variant in range(variants):
                inputs = random_step(rule, discount, alg_temp, batch, length, variant)
                expected = commit_and_remask(inputs, host)
                now_masked = expected["masked, committed"]
                newly = {tuple(at) for at in (inputs["masked"] & ~now_masked).nonzero().tolist()}
                problems.append((inputs, expected, newly ^ committed_by_definition(inputs)))

        def check(target: Target) -> Iterator[Measurement]:
            for inputs, expected, wrong in problems:
                yield Measurement("reference against the definition", len(wrong))
                yield from check_commits(inputs, expected, target)

        return check

    return build


def _build_large(rule: str, discount: str, alg_temp: float) -> Callable[[], Check]:
    def build() -> Check:
        shapes = ((64, 1024), (2, 4096), (300, 33))
        problems = [random_step(rule, discount, alg_temp, *shape, variant=7 + i) for i, shape in enumerate(shapes)]
        expected = [commit_and_remask(inputs, Target("reference", "cpu")) for inputs in problems]

        def check(target: Target) -> Iterator[Measurement]:
            for inputs, wanted in zip(problems, expected, strict=True):
                yield from check_commits(inputs, wanted, target)

        return check

    return build
