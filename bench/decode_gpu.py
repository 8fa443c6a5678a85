"""Whole decodes on a GPU: the published loop, `generate`, and `generate` with its steps captured in CUDA graphs.

First the built-in puzzle model decodes with and without graphs, and the canvases must be equal. Then a random model of
LLaDA-8B's width (8 of its 32 layers, 126,464 tokens, bfloat16) is timed: one prompt or eight of 32 tokens, 128 tokens
in blocks of 32, two a step. The body alone, the same number of times, shows what a step spends outside the model.

    python -m bench.decode_gpu [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import mdlm_fast as mf
from bench.decode import MASK, VOCAB, published_loop

SHAPE = {"steps": 64, "gen_length": 128, "block_length": 32}
PUZZLES: dict[str, dict[str, Any]] = {
    "uniform": {"steps": 8},
    "ass, eoser": {"schedule": "ass", "eoser": mf.EOSER()},
    "sampled": {"temperature": 0.8, "steps": 8},
    "threshold": {"select": "threshold", "threshold": 0.9, "num_blocks": 4},
    "factor": {"select": "factor", "factor": 1.0, "num_blocks": 4},
    "entropy_bound": {"select": "entropy_bound", "entropy_bound": 0.3, "confidence": "neg_entropy"},
    "RCR": {"remasking": mf.RCR(), "steps": 8},
    "stop": {"stop_at_eos": True, "num_blocks": 6},
    "guidance": {"cfg_scale": 0.5, "steps": 6},
}


def puzzles_agree(device: str) -> dict[str, bool]:
    """Whether captured and ordinary decoding of the built-in model give the same canvas, for each of `PUZZLES`."""
    model = mf.load_model("builtin:puzzles", device=device)
    prompts = ["sudoku 1 0 3 4 0 4 1 2 2 1 0 3 4 0 2 0 :", "sudoku 0 0 3 4 3 4 0 2 2 1 0 3 4 0 2 0 :"]
    ids = model.tokenizer(prompts, return_tensors="pt").input_ids.to(device)
    found = {}
    for name, options in PUZZLES.items():
        ordinary, captured = (
            mf.generate(model, ids, gen_length=24, seed=3, cuda_graph=graph, **options).sequences
            for graph in (False, True)
        )
        found[name] = torch.equal(ordinary, captured)
    return found


def make_model(device: str, layers: int) -> LlamaForCausalLM:
    """A random model of LLaDA-8B's width."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
    )
    config.is_causal = False
    with torch.device(device):
        model = LlamaForCausalLM(config).bfloat16()
    return model.eval()


def milliseconds(run: Callable[[], object], rounds: int) -> float:
    """Median wall-clock time, the device's work included."""
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e3


@torch.no_grad()
def time_decodes(device: str, batch: int, temperature: float, layers: int, rounds: int) -> dict[str, Any]:
    """Milliseconds a step of each way to decode, in turns of one process."""
    model = make_model(device, layers)
    wrapped = mf.wrap(model, mask_id=MASK, eos_ids=2, attention="full")
    prompt = torch.randint(3, VOCAB - 200, (batch, 32), generator=torch.Generator().manual_seed(1)).to(device)
    canvas = torch.full((batch, 160), MASK, device=device)

    def ours(graph: bool) -> Tensor:
        config = mf.DecodeConfig(
            **SHAPE, temperature=temperature, seed=0, cuda_graph=graph, normalize_over="all", record="none"
        )
        return mf.generate(wrapped, prompt, config=config).sequences

    def body() -> None:
        for _ in range(SHAPE["steps"]):
            model.model(input_ids=canvas, use_cache=False)

    ways: dict[str, Callable[[], object]] = {
        "published": lambda: published_loop(model, prompt, **SHAPE, temperature=temperature, mask_id=MASK),
        "ours": lambda: ours(False),
        "ours, captured": lambda: ours(True),
        "body alone": body,
    }
    result: dict[str, Any] = {"batch": batch, "temperature": temperature, "layers": layers}
    for name, run in ways.items():
        run()
        result[name] = milliseconds(run, rounds) / SHAPE["steps"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    agree = puzzles_agree("cuda")
    console = Console(width=120)
    console.print("captured equals ordinary:", agree)
    results = [
        time_decodes("cuda", batch, temperature, options.layers, options.rounds)
        for batch in (1, 8)
        for temperature in (0.0, 0.7)
    ]
    table = Table(title=f"{torch.cuda.get_device_name()}: milliseconds a step")
    for column in results[0]:
        table.add_column(column, justify="right")
    for row in results:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps({"agree": agree, "decodes": results}, indent=1))
    if not all(agree.values()):
        raise SystemExit("captured and ordinary decoding differ")


if __name__ == "__main__":
    main()
