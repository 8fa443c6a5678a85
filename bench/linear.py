"""Speed and memory of the fused LM head on the CPU, against the library's GEMM and what follows it.

    python -m bench.linear [--rounds 7] [--only score|logprobs]

Every round runs each candidate once, in turn, so that a busy machine slows all of them; the tables show medians and the
least. The weight is larger than the last-level cache, and two of them take turns, so each call streams it from memory;
`floor` only reads it. Peak memory is the rise of the process's resident set above what it held before the call (the
kernel's own high-water mark, reset before), less the outputs and gradients that the call returns: Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mdlm_fast.ops import linear_score_rows, linear_token_logprobs, score_rows

VOCABULARY = 126464
MIB = 2**20


def interleaved(candidates: dict[str, Callable[[int], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each candidate in each round, after one call to warm up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for i in range(rounds + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            run(i)
            if i > 0:
                times[name].append(time.perf_counter() - start)
    return times


def print_table(title: str, times: dict[str, list[float]], base: str, extra: dict[str, str] | None = None) -> None:
    print(f"\n{title}")
    reference = statistics.median(times[base])
    for name, values in times.items():
        median = statistics.median(values)
        note = "" if extra is None else f"   {extra.get(name, '')}"
        ratio = f"{median / reference:6.2f} x {base}"
        print(f"  {name:32s} median {median * 1e3:9.2f} ms   least {min(values) * 1e3:9.2f} ms   {ratio}{note}")


def softmax_argmax_gather(z: Tensor) -> object:
    p = torch.softmax(z, dim=-1)
    token = torch.argmax(z, dim=-1)
    return token, p.gather(-1, token[:, None])


def bench_score(rows: int, depth: int, rounds: int) -> None:
    """Rows of hidden states to scores, bf16."""
    weights = [(torch.randn(VOCABULARY, depth) * 0.1).bfloat16() for _ in range(2)]
    hidden = torch.randn(rows, depth).bfloat16()

    def weight(i: int) -> Tensor:
        return weights[i % 2]

    candidates: dict[str, Callable[[int], object]] = {
        "floor": lambda i: torch.ops.mdlm_fast_cpp.read_floor(weight(i)),
        "fused, token and logp": lambda i: linear_score_rows(hidden, weight(i), stats=("token", "logp")),
        "fused, five statistics": lambda i: linear_score_rows(hidden, weight(i)),
        "fused, T = 0.7, five": lambda i: linear_score_rows(hidden, weight(i), temperature=0.7, seeds=1),
        "F.linear alone": lambda i: F.linear(hidden, weight(i)),
        "F.linear + score_rows": lambda i: score_rows(F.linear(hidden, weight(i))),
        "F.linear + eager softmax": lambda i: softmax_argmax_gather(F.linear(hidden, weight(i))),
    }
    title = f"linear_score_rows, {rows} rows, H={depth}, V={VOCABULARY}, bfloat16, {torch.get_num_threads()} threads"
    print_table(title, interleaved(candidates, rounds), "F.linear + score_rows")


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak_memory(run: Callable[[], object], returned: int) -> int:
    """Rise of the resident set during `run`, bytes, less `returned` bytes of outputs and gradients."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or memory freed before would be used again unseen
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    run()
    return resident("VmHWM") - before - returned


def bench_logprobs(dtype: torch.dtype, rows: int, depth: int, rounds: int) -> None:
    """Forward and backward of the log-probs of given tokens."""
    hidden = (torch.randn(rows, depth) * 0.5).to(dtype).requires_grad_()
    weight = (torch.randn(VOCABULARY, depth) * 0.1).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (rows,))
    upstream = torch.randn(rows)

    def fused(_: int = 0) -> None:
        hidden.grad = weight.grad = None
        logp, _entropy = linear_token_logprobs(hidden, weight, None, None, targets)
        (logp * upstream).sum().backward()

    def eager(_: int = 0) -> None:
        hidden.grad = weight.grad = None
        logp = F.linear(hidden, weight).log_softmax(-1).gather(1, targets[:, None])[:, 0]
        (logp * upstream.to(dtype)).sum().backward()

    candidates: dict[str, Callable[[int], object]] = {"fused": fused, "eager": eager}
    times = interleaved(candidates, rounds)
    memory = {}
    gradients = (hidden.numel() + weight.numel()) * hidden.element_size()
    for name, run in (("fused", fused), ("eager", eager)):
        hidden.grad = weight.grad = None
        memory[name] = f"{peak_memory(run, gradients) / MIB:8.1f} MiB beyond gradients"
    title = f"linear_token_logprobs forward + backward, {rows} rows, H={depth}, V={VOCABULARY}, {dtype}"
    print_table(title, times, "eager", memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds of each table (log-probs: half as many)")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 32, 64], help="row counts of the head")
    parser.add_argument("--only", choices=("score", "logprobs"), help="one half of the tables")
    parser.add_argument("--dtype", nargs="*", default=["bfloat16", "float32"], help="of the log-probs tables")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.only != "logprobs":
        for rows in arguments.rows:
            bench_score(rows, 256, arguments.rounds)
    if arguments.only != "score":
        for name in arguments.dtype:
            bench_logprobs(getattr(torch, name), 1024, 512, max(1, arguments.rounds // 2))


if __name__ == "__main__":
    main()
