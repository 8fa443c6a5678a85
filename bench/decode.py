"""Whole decodes: `compat.llada.generate` against the published loop, in one run.

The model is random: native Llama without causal masking, 4 layers of width 256, 126,464 tokens, bfloat16; one prompt of
32 tokens, 64 generated in blocks of 32 with 8 steps in all. The published loop is written here in plain PyTorch the way
the released program works: logits of every position, float64 Gumbel noise above temperature 0, softmax over everything.
Wall time is what counts; processor time (all threads together) is shown because a busy machine disturbs it less.

    python bench/decode.py            # the table
    python bench/decode.py --profile  # and where our time goes
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mdlm_fast.compat import llada

VOCAB, MASK = 126464, 126336
TARGETS = {0.0: (4.0, 6.0), 0.7: (20.0, 35.0)}


def make_model(seed: int = 0) -> LlamaForCausalLM:
    """The random model, bfloat16, in eval mode."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
    )
    config.is_causal = False
    return LlamaForCausalLM(config).bfloat16().eval()


@torch.no_grad()
def published_loop(
    model: Any, prompt: Tensor, steps: int, gen_length: int, block_length: int, temperature: float, mask_id: int
) -> Tensor:
    """LLaDA's loop in plain PyTorch: every position is scored at every step. The rules: `compat.llada.generate`."""
    batch, prompt_length = prompt.shape
    canvas = torch.full((batch, prompt_length + gen_length), mask_id, device=prompt.device)
    canvas[:, :prompt_length] = prompt
    blocks = gen_length // block_length
    for block in range(blocks):
        start, end = prompt_length + block * block_length, prompt_length + (block + 1) * block_length
        masks = (canvas[:, start:end] == mask_id).sum(1)
        for step in range(steps // blocks):
            masked = canvas == mask_id
            logits = model(canvas, attention_mask=None).logits
            noisy = logits
            if temperature > 0:
                wide = logits.double()
                noisy = wide.exp() / (-torch.rand_like(wide).log()) ** temperature
            tokens = noisy.argmax(-1)
            probability = logits.softmax(-1).gather(-1, tokens[..., None])[..., 0]
            probability[:, end:] = -torch.inf
            confidence = torch.where(masked, probability, -torch.inf)
            for row in range(batch):
                count = int(masks[row]) // (steps // blocks) + int(step < int(masks[row]) % (steps // blocks))
                chosen = confidence[row].topk(count).indices
                canvas[row, chosen] = tokens[row, chosen]
    return canvas


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and processor seconds of one run."""
    begin, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - begin, time.process_time() - processor


def medians(runs: list[tuple[float, float]]) -> tuple[float, float]:
    """Median wall-clock and processor seconds."""
    return statistics.median(run[0] for run in runs), statistics.median(run[1] for run in runs)


def compare(model: LlamaForCausalLM, temperature: float, repeats: int, rounds: int) -> dict[str, Any]:
    """Times both decoders in turns, so that a slow spell of the machine meets both; medians in seconds."""
    prompt = torch.randint(3, VOCAB - 200, (1, 32), generator=torch.Generator().manual_seed(1))
    shape: dict[str, Any] = {
        "steps": 8,
        "gen_length": 64,
        "block_length": 32,
        "temperature": temperature,
        "mask_id": MASK,
    }

    def ours(released: bool = False) -> Tensor:
        return llada.generate(model, prompt, **shape, released=released)

    def published() -> Tensor:
        torch.manual_seed(0)
        return published_loop(model, prompt, **shape)

    reference = published()
    ours()
    fast: list[tuple[float, float]] = []
    slow: list[tuple[float, float]] = []
    for _ in range(rounds):
        slow.append(seconds(published))
        fast += [seconds(ours) for _ in range(repeats)]
    torch.manual_seed(0)
    (slow_wall, slow_processor), (fast_wall, fast_processor) = medians(slow), medians(fast)
    return {
        "temperature": temperature,
        "published_s": slow_wall,
        "ours_s": fast_wall,
        "speedup": slow_wall / fast_wall,
        "processor_speedup": slow_processor / fast_processor,
        "released_path_equal": torch.equal(ours(released=True), reference),
    }


def show(results: list[dict[str, Any]]) -> None:
    """The table of `compare`'s results."""
    table = Table(title=f"LLaDA decode, bfloat16, {torch.get_num_threads()} threads: 64 tokens in 8 steps")
    for column in ("T", "published", "ours", "speed-up", "in processor time", "target", "released=True equal"):
        table.add_column(column, justify="right")
    for result in results:
        least, goal = TARGETS[result["temperature"]]
        table.add_row(
            f"{result['temperature']}",
            f"{result['published_s'] * 1e3:.0f} ms",
            f"{result['ours_s'] * 1e3:.0f} ms",
            f"{result['speedup']:.1f}x",
            f"{result['processor_speedup']:.1f}x",
            f"{least:.0f}x to {goal:.0f}x",
            "yes" if result["released_path_equal"] else "NO",
        )
    Console().print(table)


def profile(model: LlamaForCausalLM, temperature: float) -> None:
    """Where one of our decodes spends its time, by operator."""
    prompt = torch.randint(3, VOCAB - 200, (1, 32), generator=torch.Generator().manual_seed(1))
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as recorded:
        for _ in range(5):
            llada.generate(model, prompt, steps=8, gen_length=64, block_length=32, temperature=temperature)
    Console().print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's threads")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each decoder")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of ours in a turn")
    parser.add_argument("--profile", action="store_true", help="also show our time by operator")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = make_model()
    results = [compare(model, temperature, options.repeats, options.rounds) for temperature in TARGETS]
    print(json.dumps(results)) if options.json else show(results)
    if options.profile:
        for temperature in TARGETS:
            profile(model, temperature)


if __name__ == "__main__":
    main()
