"""Optimizer steps of small models in a process of their own: its peak of resident memory, beside the estimate, as JSON.

Run by test_estimate.py.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import json
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from mdlm_fast import ops
from mdlm_fast.rl.estimate import Adapter, ModelShape, Settings, estimate
from mdlm_fast.rl.lora import lora_config

BATCH, PROMPT, COMPLETION, VIEWS = 4, 96, 96, 4


def resident(name: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(name))
    return int(line.split()[1]) * 1024


def reset_peak() -> int:
    """Lets VmHWM start again from what is resident now, and returns that."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, pack: int) -> None:
    """Every view once, `pack` of them in a backward pass, and an update."""
    length = PROMPT + COMPLETION
    for _ in range(VIEWS // pack):
        canvas = torch.randint(0, model.config.vocab_size, (pack * BATCH, length))
        rows = torch.randperm(canvas.numel(), dtype=torch.int32)[: pack * BATCH * COMPLETION // VIEWS]
        hidden = model.model(input_ids=canvas, use_cache=False, is_causal=False).last_hidden_state
        targets = torch.randint(0, model.config.vocab_size, rows.shape)
        ops.linear_token_logprobs(hidden, model.lm_head.weight, None, rows, targets)[0].mean().backward()
        del hidden
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)


def measure(dtype: torch.dtype, lora: bool, pack: int, checkpointing: bool) -> dict[str, int]:
    sizes = {"hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, vocab_size=4096, dtype=dtype, is_causal=False)
    settings = Settings(
        ModelShape.from_config(config),
        completions=BATCH,
        prompt_length=PROMPT,
        completion_length=COMPLETION,
        steps=VIEWS,
        views_per_backward=pack,
        adapter=Adapter(16) if lora else None,
        dtype=dtype,
        gradient_checkpointing=checkpointing,
        device="cpu",
        padded=False,
    )
    before = reset_peak()
    model = LlamaForCausalLM(config).to(dtype).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    kept = None
    if lora:
        get_peft_model(model, lora_config(model, r=16))
    else:
        kept = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=False)
    for _ in range(2):
        step(model, optimizer, pack)
    peak = resident("VmHWM") - before
    del kept
    return {"peak": peak, "predicted": estimate(settings).total}


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    reset_peak()
    measure(torch.float32, True, 1, False)  # what libraries allocate on first use is theirs for good
    cases = [(torch.float32, False, 1, False), (torch.float32, True, 2, False), (torch.float32, False, 4, True)]
    print(json.dumps([measure(*case) for case in cases]))
