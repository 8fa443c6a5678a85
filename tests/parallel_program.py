"""Run by test_parallel.py in each of several processes: rank, processes, a file to meet at, a folder for results."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from parallel_cases import CASES, rows_and_logits, shard_bounds

from mdlm_fast.parallel import score_rows_sharded

rank, processes = int(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=processes)
results = {}
for name, options in CASES.items():
    rows, whole = rows_and_logits(name)
    start, stop = shard_bounds(whole.shape[-1], processes)[rank]
    logits = torch.full_like(whole, torch.nan)  # what others hold is not there
    logits[:, start:stop] = whole[:, start:stop]
    results[name] = tuple(score_rows_sharded(logits, rows, vocab_start=start, vocab_stop=stop, **options))
torch.save(results, Path(sys.argv[4]) / f"{rank}.pt")
dist.destroy_process_group()
