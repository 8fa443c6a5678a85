"""A CJ-GRPO iteration at LLaDA-8B's size on one GPU: random weights, LoRA of rank 128, bf16, the released lengths.

Ours and the plain way (bench/baselines/cj_grpo.py, activation checkpointing on as released), one after the other in one
process: seconds of an iteration (a rollout of 6 completions, the reference pass, one update), by phase on our side, and
the most memory in use beyond the weights, adapters and optimizer state, with the estimator's prediction of its largest
part.

    python -m bench.rl_llada8b --steps 8 32 --write      # docs/rl_llada8b.json
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

import mdlm_fast as mf
from bench.baselines import cj_grpo
from bench.harness.memory import PeakMeter
from bench.suites.rl.case import LLADA, as_text, make_prompt, make_tokenizer, reward_of_lists, reward_of_rows
from mdlm_fast.rl.estimate import Settings, estimate
from mdlm_fast.rl.lora import lora_config
from mdlm_fast.rl.memory import Adapter, ModelShape
from mdlm_fast.rl.methods.cj_grpo import CJGRPOConfig, CJGRPOTrainer

BATCH, PROMPT, GENERATED, RANK, BETA = 6, 200, 128, 128, 0.04
RESULTS = Path(__file__).resolve().parent.parent / "docs" / "rl_llada8b.json"
GIB = 2**30


def make_config(layers: int) -> LlamaConfig:
    """LLaDA-8B's shape (arXiv 2502.09992)."""
    config = LlamaConfig(
        vocab_size=LLADA.size,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=32,
        bos_token_id=1,
        eos_token_id=LLADA.eos_id,
    )
    config.is_causal = False
    return config


def make_model(layers: int) -> Any:
    """Random weights, made on the GPU in bf16."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(make_config(layers))
    torch.set_default_dtype(torch.float32)
    return model


def adapter(model: Any) -> LoraConfig:
    """On all seven matrices of a layer."""
    return lora_config(model, "all", r=RANK, alpha=64)


def ours(layers: int, steps: int, checkpointing: bool, rounds: int, views: int) -> dict[str, Any]:
    """Seconds of the last `rounds` iterations after one to warm up, their phases, and the peak."""
    tokenizer = make_tokenizer(LLADA)
    base = make_model(layers)
    wrapped = mf.wrap(base, tokenizer, mask_id=LLADA.mask_id, eos_ids=LLADA.eos_id)
    with TemporaryDirectory() as folder:
        args = CJGRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            num_generations=BATCH,
            num_iterations=1,
            max_completion_length=GENERATED,
            diffusion_steps=steps,
            num_blocks=2,
            completion_tokens="all",
            beta=BETA,
            gradient_checkpointing=checkpointing,
            views_per_backward=views or "auto",
            max_steps=rounds + 1,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = CJGRPOTrainer(
            model=wrapped,
            reward_funcs=[reward_of_lists],
            args=args,
            train_dataset=[{"prompt": as_text(make_prompt(LLADA, PROMPT))}],
            processing_class=tokenizer,
            peft_config=adapter(base),
        )
        peak = PeakMeter("cuda")
        found: dict[str, Any] = {"seconds": [], "peak_gib": []}

        class Watch(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                peak.start()
                self.began = time.perf_counter()

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                torch.cuda.synchronize()
                gib = peak.stop() / GIB
                if state.global_step > 1:
                    found["seconds"].append(time.perf_counter() - self.began)
                    found["peak_gib"].append(gib)

        trainer.add_callback(Watch())
        trainer.train()
    logs = [log for log in trainer.state.log_history if "time/train" in log][1:]
    phases = {name: logs[-1][f"time/{name}"] for name in ("rollout", "old", "ref", "train")}
    return {
        **found,
        "phases": phases,
        "logp_gap_max": logs[-1]["rollout/logp_gap_max"],
        "positions_a_pack": trainer.planner.positions(),
    }


def plain(layers: int, steps: int, checkpointing: bool, rounds: int) -> dict[str, Any]:
    """The same of the plain way."""
    base = make_model(layers)
    model = get_peft_model(base, adapter(base))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-6, fused=True)
    prompts = make_prompt(LLADA, PROMPT).expand(BATCH, PROMPT).cuda()
    config = cj_grpo.PlainConfig(
        mask_id=LLADA.mask_id,
        generated=GENERATED,
        steps=steps,
        num_iterations=1,
        beta=BETA,
        checkpointing=checkpointing,
    )

    peak = PeakMeter("cuda")
    found: dict[str, Any] = {"seconds": [], "peak_gib": []}
    for number in range(rounds + 1):
        peak.start()
        began = time.perf_counter()
        try:
            cj_grpo.iteration(model, optimizer, prompts, reward_of_rows, config)
        except torch.cuda.OutOfMemoryError as error:
            return {"out_of_memory": str(error).split(".")[0]}
        torch.cuda.synchronize()
        gib = peak.stop() / GIB
        if number:
            found["seconds"].append(time.perf_counter() - began)
            found["peak_gib"].append(gib)
    return found


def predicted(layers: int, steps: int, checkpointing: bool, views: int) -> float:
    """The estimator's activations of one pack, in GiB."""
    settings = Settings(
        shape=ModelShape.from_config(make_config(layers)),
        completions=BATCH,
        prompt_length=PROMPT,
        completion_length=GENERATED,
        steps=steps,
        views_per_backward=max(views, 1),
        adapter=Adapter(RANK),
        gradient_checkpointing=checkpointing,
        padded=False,
    )
    return float(estimate(settings).as_dict()["activations"]) / GIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", nargs="+", choices=("ours", "plain"), default=["ours", "plain"])
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--views", type=int, default=0, help="of ours: steps whose graphs live at a time; 0: automatic")
    parser.add_argument("--checkpointing", action="store_true", help="of ours (the plain way has it always)")
    parser.add_argument("--write", type=Path, nargs="?", const=RESULTS, help="add the results to this file")
    options = parser.parse_args()
    results = []
    for side in options.side:
        for steps in options.steps:
            if side == "ours":
                found = ours(options.layers, steps, options.checkpointing, options.rounds, options.views)
                if options.views:
                    found["predicted_activations_gib"] = predicted(
                        options.layers, steps, options.checkpointing, options.views
                    )
            else:
                found = plain(options.layers, steps, True, options.rounds)
            gc.collect()
            torch.cuda.empty_cache()
            checkpointing = options.checkpointing or side == "plain"
            row = {"side": side, "steps": steps, "layers": options.layers, "checkpointing": checkpointing, **found}
            row |= {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "views": options.views}
            print(json.dumps(row), flush=True)
            results.append(row)
    if options.write:
        earlier = json.loads(options.write.read_text()) if options.write.exists() else []
        options.write.write_text(json.dumps(earlier + results, indent=1) + "\n")


if __name__ == "__main__":
    main()
