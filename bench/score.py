"""Speed of `score_rows` on the CPU against what decoders do without it, and against the time to merely read the logits.

    python -m bench.score [--quick]

Every round runs each candidate once, in turn, so that a busy machine slows all of them; the table shows medians and the
least. Buffers are several times the last-level cache and rotated, so each call reads its rows from memory. The float64
and Gumbel baselines run on fewer rows and are scaled up; `*` marks them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mdlm_fast.ops import score_rows

CACHE_BYTES = 32 << 20
VOCABULARY = 126464
ROWS = 256
SLOW_ROWS = 16  # of the baselines that take seconds on all rows


@dataclass(frozen=True)
class Candidate:
    """Something to time: `run` takes one buffer of logits [rows, V]."""

    name: str
    run: Callable[[Tensor], object]
    rows: int = ROWS  # how many rows of the buffer it reads; times are scaled to all
    rounds: int | None = None


def float64_softmax(x: Tensor) -> object:
    """Fast-dLLM: the token, and its probability from a float64 softmax."""
    p = torch.softmax(x.to(torch.float64), dim=-1)
    token = torch.argmax(x, dim=-1)
    return token, p.gather(-1, token[:, None])


def softmax_max(x: Tensor) -> object:
    return torch.softmax(x, dim=-1).max(dim=-1)


def softmax_argmax_gather(x: Tensor) -> object:
    p = torch.softmax(x, dim=-1)
    token = torch.argmax(x, dim=-1)
    return token, p.gather(-1, token[:, None])


def gumbel(x: Tensor, temperature: float = 0.7) -> object:
    """LLaDA with temperature: Gumbel noise in float64 on every entry, then softmax for the confidence."""
    logits = x.to(torch.float64)
    noise = (-torch.log(torch.rand_like(logits, dtype=torch.float64))) ** temperature
    token = torch.argmax(logits.exp() / noise, dim=-1)
    return token, torch.softmax(x, dim=-1).gather(-1, token[:, None])


def five_statistics(x: Tensor) -> object:
    """Token, log-prob, tempered log-prob (T = 1: the same), margin and entropy, for the compiler to fuse."""
    z = x.float()
    top, token = z.max(dim=-1)
    d = z - top[:, None]
    e = d.exp()
    s = e.sum(dim=-1)
    second = z.masked_fill(torch.arange(z.shape[1]) == token[:, None], float("-inf")).amax(dim=-1)
    logp = -s.log()
    entropy = s.log() - (d * e).sum(dim=-1) / s
    return token, logp, logp, (1 - (second - top).exp()) / s, entropy


def candidates(quick: bool) -> list[Candidate]:
    compiled = torch.compile(five_statistics)
    ours = [
        Candidate("floor", torch.ops.mdlm_fast_cpp.read_floor),
        Candidate("token", lambda x: score_rows(x, stats=("token",))),
        Candidate("token logp", lambda x: score_rows(x, stats=("token", "logp"))),
        Candidate("five", score_rows),
        Candidate("T=0.7", lambda x: score_rows(x, temperature=0.7, seeds=1, stats=("token", "logp", "logp_T"))),
        Candidate("T=0.7 five", lambda x: score_rows(x, temperature=0.7, seeds=1)),
    ]
    if quick:
        return ours
    return [
        *ours,
        Candidate("compiled five", compiled),
        Candidate("softmax max", softmax_max, rounds=3),
        Candidate("softmax argmax gather", softmax_argmax_gather, rounds=3),
        Candidate("float64", float64_softmax, SLOW_ROWS, rounds=3),
        Candidate("gumbel", gumbel, SLOW_ROWS, rounds=3),
    ]


def measure(dtype: torch.dtype, rounds: int, quick: bool) -> dict[str, list[float]]:
    """Seconds of every round per candidate, scaled to all rows."""
    bytes_per_buffer = ROWS * VOCABULARY * dtype.itemsize
    count = max(2, -(-4 * CACHE_BYTES // bytes_per_buffer))
    generator = torch.Generator().manual_seed(0)
    buffers = [(torch.randn(ROWS, VOCABULARY, generator=generator) * 3).to(dtype) for _ in range(count)]
    chosen = candidates(quick)
    times: dict[str, list[float]] = {candidate.name: [] for candidate in chosen}
    turn = 0
    for round_index in range(-1, rounds):  # the first round warms up
        for candidate in chosen:
            if candidate.rounds is not None and round_index >= candidate.rounds:
                continue
            turn += 1
            x = buffers[turn % count][: candidate.rows]
            start = time.perf_counter()
            candidate.run(x)
            seconds = (time.perf_counter() - start) * ROWS / candidate.rows
            if round_index >= 0:
                times[candidate.name].append(seconds)
    return times


#: (what is shown, ours, what it is compared with, target by dtype); a share of the floor where compared with the floor.
TARGETS: list[tuple[str, str, str, dict[torch.dtype, float]]] = [
    ("float64 softmax + argmax + gather *", "token logp", "float64", {torch.bfloat16: 40}),
    ("eager softmax + max", "token logp", "softmax max", {torch.float32: 12, torch.bfloat16: 10}),
    ("eager softmax + argmax + gather", "token logp", "softmax argmax gather", {torch.float32: 12, torch.bfloat16: 20}),
    ("the same five statistics, torch.compile", "five", "compiled five", {torch.float32: 5, torch.bfloat16: 5}),
    ("LLaDA's float64 Gumbel, T=0.7 *", "T=0.7", "gumbel", {torch.bfloat16: 100}),
    ("share of the floor: token + logp", "token logp", "floor", {torch.float32: 0.7, torch.bfloat16: 0.5}),
    ("share of the floor: all five", "five", "floor", {torch.float32: 0.7, torch.bfloat16: 0.42}),
    ("share of the floor: T=0.7 token, logp, logp_T", "T=0.7", "floor", {torch.float32: 0.4, torch.bfloat16: 0.25}),
]


def report(dtype: torch.dtype, rounds: dict[str, list[float]]) -> None:
    times = {name: statistics.median(values) for name, values in rounds.items()}
    least = {name: min(values) for name, values in rounds.items()}
    name = str(dtype).removeprefix("torch.")
    size = ROWS * VOCABULARY * dtype.itemsize
    print(f"\n{name}, rows [{ROWS}, {VOCABULARY}], {torch.get_num_threads()} threads")
    print(f"{'':44}{'median ms':>10}{'least ms':>10}{'us/row':>10}{'GB/s':>8}{'of floor':>10}")
    for candidate, seconds in times.items():
        print(
            f"{candidate:44}{seconds * 1e3:10.2f}{least[candidate] * 1e3:10.2f}{seconds * 1e6 / ROWS:10.2f}"
            f"{size / seconds / 1e9:8.1f}{times['floor'] / seconds:10.2f}"
        )
    print(f"\n{'against':44}{'medians':>10}{'least':>10}{'target':>10}")
    for label, ours, other, targets in TARGETS:
        if other not in times:
            continue
        ratio = times[other] / times[ours]
        target = targets.get(dtype)
        verdict = "" if target is None else f"{target:10g}{'' if ratio >= target else '   missed'}"
        print(f"{label:44}{ratio:10.2f}{least[other] / least[ours]:10.2f}{verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], action="append")
    parser.add_argument("--quick", action="store_true", help="only this package and the floor")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, MDLM_FAST_CPU_ISA={os.environ.get('MDLM_FAST_CPU_ISA', 'best')}")
    for name in arguments.dtype or ["float32", "bfloat16"]:
        dtype = getattr(torch, name)
        report(dtype, measure(dtype, arguments.rounds, arguments.quick))


if __name__ == "__main__":
    main()
