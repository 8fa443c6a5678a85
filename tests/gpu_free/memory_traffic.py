"""Bytes of global memory that the kernels move, beside what every kernel has to move: CUDA on the host shim, Triton in
its interpreter.

    python tests/gpu_free/memory_traffic.py [cuda] [triton]            # prints the table
    python tests/gpu_free/memory_traffic.py [cuda] [triton] --write    # and keeps it in bytes.json, for test_bytes.py

Two numbers for each call, both as multiples of its floor. `requested` is every load and store as the threads make it.
`from_memory` counts a 32-byte sector once for each launch that touches it: what is left with a cache that holds all of
a launch. For plain scoring the two differ by records of 32 bytes per tile of 2048 columns, which the second launch
reads several times. With top-k or top-p they differ by passes over the row, which a block makes one after the other, so
that they hit the second-level cache as long as the rows in flight fit there.

Floors: each selected row read once; for a gradient also every row of it written once; for a step of committing, what
is read of a canvas with masks everywhere (mask 1, row 4, token 8, confidence 4 bytes a position) and what is written
for a committed position (id 8, mask 1).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import torch
from gpu_free.build_shim import build_ops
from gpu_free.shim_library import Counters, registered
from torch import Tensor

from mdlm_fast import ops

TABLE = Path(__file__).with_name("bytes.json")
VOCABULARIES = (32768, 126464)
DTYPES = (torch.bfloat16, torch.float32)
SELECTED = 8  # rows, of twice as many

SCORE_OPTIONS: dict[str, dict] = {
    "greedy": {},
    "sampled": {"temperature": 0.7},
    "top-k": {"temperature": 0.7, "top_k": 50},
    "top-p": {"temperature": 0.7, "top_p": 0.9},
}


@dataclass(frozen=True)
class Traffic:
    requested: float
    from_memory: float
    launches: int


@dataclass(frozen=True)
class Meter:
    """A backend whose bytes are counted, and how to take what was counted since the last time."""

    backend: str
    take: Callable[[], Counters]

    def measure(self, floor: int, call: Callable[[], object]) -> Traffic:
        with ops.use_backend(self.backend):
            self.take()
            call()
        counted = self.take()
        return Traffic(round(counted.bytes / floor, 4), round(counted.sector_bytes / floor, 4), counted.launches)


def random_logits(width: int, dtype: torch.dtype) -> Tensor:
    g = torch.Generator().manual_seed(width)
    return (torch.randn(1, 2 * SELECTED, width, generator=g) * 3).to(dtype)


def scoring(meter: Meter, width: int, dtype: torch.dtype) -> dict[str, Traffic]:
    logits = random_logits(width, dtype)
    rows = torch.arange(0, 2 * SELECTED, 2).int()
    floor = SELECTED * width * dtype.itemsize
    arguments = {
        "row_sequence": torch.zeros(SELECTED).int(),
        "row_position": torch.arange(SELECTED).int(),
        "seeds": torch.tensor([1]),
        "forbidden_ids": torch.tensor([5]),
    }
    traffic = {}
    for name, options in SCORE_OPTIONS.items():
        traffic[f"score_rows {name}"] = meter.measure(
            floor, lambda options=options: ops.score_rows(logits, rows, **arguments, **options)
        )
    targets = torch.arange(SELECTED) * 7
    traffic["token_logprobs"] = meter.measure(floor, lambda: ops.token_logprobs(logits, rows, targets))
    leaf = logits.requires_grad_()
    with ops.use_backend(meter.backend):
        logp, _ = ops.token_logprobs(leaf, rows, targets)
    floor += logits.numel() * dtype.itemsize
    traffic["token_logprobs_backward"] = meter.measure(floor, lambda: torch.autograd.grad(logp.sum(), leaf))
    return traffic


def committing(meter: Meter, batch: int, length: int) -> Traffic:
    """One step of a canvas that is masked throughout; an eighth is committed."""
    quota = length // 8
    canvas = torch.zeros(batch, length, dtype=torch.int64)
    masked = torch.ones(batch, length, dtype=torch.bool)
    rows = torch.arange(batch * length).int()
    token = torch.ones(rows.numel(), dtype=torch.int64)
    confidence = torch.rand(rows.numel(), generator=torch.Generator().manual_seed(0))
    read, written = 1 + 4 + 8 + 4, 8 + 1
    floor = batch * (length * read + quota * written)
    quotas = torch.full((batch,), quota, dtype=torch.int32)
    return meter.measure(
        floor, lambda: ops.select_commit_(canvas, masked, rows, token, confidence, rule="quota", quota=quotas)
    )


def measure_all(backend: str, take: Callable[[], Counters]) -> dict[str, Traffic]:
    meter = Meter(backend, take)
    table = {}
    for width in VOCABULARIES:
        for dtype in DTYPES:
            for name, traffic in scoring(meter, width, dtype).items():
                table[f"{name}, V={width}, {str(dtype).removeprefix('torch.')}"] = traffic
    for batch, length in ((4, 1024), (2, 9000)):
        table[f"select_commit_ [{batch}, {length}]"] = committing(meter, batch, length)
    return table


def measure_cuda() -> dict[str, Traffic]:
    """The CUDA kernels, on the host shim."""
    with registered(build_ops()) as shim:
        return measure_all("shim", shim.take_counters)


def measure_triton() -> dict[str, Traffic]:
    """The Triton kernels, in a process with the interpreter."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "TRITON_DEFAULT_FP_FUSION": "1", "OMP_NUM_THREADS": "1"}
    program = str(Path(__file__).with_name("triton_bytes.py"))
    result = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, check=True)
    return {name: Traffic(**values) for name, values in json.loads(result.stdout).items()}


def read_table() -> dict[str, dict[str, Traffic]]:
    """For "cuda" and "triton", call -> traffic."""
    table = json.loads(TABLE.read_text())
    return {kind: {name: Traffic(**values) for name, values in calls.items()} for kind, calls in table.items()}


def as_json(table: dict[str, dict[str, Traffic]]) -> str:
    """A line per call."""
    parts = []
    for kind, calls in table.items():
        lines = [f"    {json.dumps(name)}: {json.dumps(vars(traffic))}" for name, traffic in calls.items()]
        parts.append(f"  {json.dumps(kind)}: {{\n" + ",\n".join(lines) + "\n  }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the table in bytes.json")
    parser.add_argument("kinds", nargs="*", help="cuda (a minute) or triton (five minutes); both by default")
    arguments = parser.parse_args()
    measure = {"cuda": measure_cuda, "triton": measure_triton}
    table = read_table()
    for kind in arguments.kinds or measure:
        calls = table[kind] = measure[kind]()
        for name, traffic in calls.items():
            print(f"{kind:7} {name:50} {traffic.requested:7.4f} {traffic.from_memory:7.4f} {traffic.launches:3}")
    if arguments.write:
        TABLE.write_text(as_json(table))


if __name__ == "__main__":
    main()
