"""The parity matrix without pytest, for a machine with a GPU:

    python tests/parity/run.py [--device cuda] [--backend cuda] [--reduced] [--op score_rows] [--library FILE]

Prints a line per op, backend and dtype, and what failed; the exit status says whether anything did.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import torch
from gpu_free.shim_library import register_from_environment
from parity.matrix import run_matrix
from parity.measure import Target

from mdlm_fast.ops import _library, register_backend


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", action="append", help="default: cuda and triton, or on the CPU cpp")
    parser.add_argument("--reduced", action="store_true", help="the short list")
    parser.add_argument("--op", action="append", help="only the cases of this op")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no case after that long")
    parser.add_argument("--library", help="load the CUDA kernels from here (bench.gpu_check builds such a file)")
    arguments = parser.parse_args()
    if arguments.library:
        torch.ops.load_library(arguments.library)
        register_backend(_library.cuda_backend())
    register_from_environment()
    backends = arguments.backend or (["cpp"] if arguments.device == "cpu" else ["cuda", "triton"])
    summaries, left_out = run_matrix(
        [Target(backend, arguments.device) for backend in backends],
        reduced=arguments.reduced,
        choose=lambda case: not arguments.op or case.op in arguments.op,
        seconds=arguments.seconds,
    )
    for summary in sorted(summaries, key=lambda s: (s.op, s.backend, s.dtype)):
        print(summary.line())
    if left_out:
        print(f"{left_out} cases left out for want of time")
    if not summaries:
        print("no case ran: the backends have none of the ops on this device")
    return int(not summaries or any(summary.failures for summary in summaries))


if __name__ == "__main__":
    sys.exit(main())
