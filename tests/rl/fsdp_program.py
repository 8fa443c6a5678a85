"""Run by test_recipes.py in two processes: a few optimizer steps of CJ-GRPO under FSDP2 on the CPU, or under DDP.

Arguments: "fsdp" or "ddp", and a file for the log. accelerate shards on GPUs alone; here it is told to shard anyway.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

import mdlm_fast as mf
from mdlm_fast.rl import CJGRPOConfig, CJGRPOTrainer
from mdlm_fast.rl.checkpoints import REFERENCE
from mdlm_fast.rl.task_data import task_dataset
from mdlm_fast.tasks import countdown_reward


def shard_on_the_cpu(recipe: Path) -> None:
    """Sets what `accelerate launch` would set for the recipe, and lets AcceleratorState take it on a CPU too."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    parsed = launch_command_parser().parse_args(["--config_file", str(recipe), "program"])
    environment = prepare_multi_gpu_env(_validate_launch_command(parsed)[0])
    os.environ |= {k: v for k, v in environment.items() if k.startswith(("FSDP_", "ACCELERATE_USE_FSDP"))}
    make = AcceleratorState.__init__

    def sharded(self: Any, *args: Any, fsdp_plugin: Any = None, **options: Any) -> None:
        make(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = sharded


def main() -> None:
    kind, output = sys.argv[1], Path(sys.argv[2])
    if kind == "fsdp":
        shard_on_the_cpu(Path(__file__).parents[2] / "recipes" / "accelerate" / "fsdp2.yaml")
    torch.set_num_threads(1)
    args = CJGRPOConfig(
        output_dir=str(output.with_suffix("")),
        use_cpu=True,
        per_device_train_batch_size=8,
        num_generations=4,
        num_iterations=2,
        max_completion_length=24,
        decoder="eoser-ass",
        temperature=2.0,
        learning_rate=1e-3,
        beta=0.1,
        max_steps=3,
        sync_ref_model=True,
        ref_model_sync_steps=2,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = CJGRPOTrainer(
        model=mf.load_model("builtin:puzzles", device="cpu"),
        reward_funcs=[countdown_reward],
        args=args,
        train_dataset=task_dataset("countdown", size=16),
    )
    trainer.train()
    folder = output.with_suffix("") / "progress"
    trainer._save_progress(folder)
    torch.distributed.barrier()
    trainer.reference.load_state_dict(trainer._load(folder / REFERENCE))
    trainer.save_model(str(output.with_suffix("") / "model"))
    modules = (trainer.policy.model, trainer.reference.module)
    # After a pass without gradients FSDP2 leaves the head whole.
    sharded = [any(isinstance(p, DTensor) for p in module.parameters()) for module in modules]
    if trainer.is_world_process_zero():
        output.write_text(json.dumps({"sharded": sharded, "log": trainer.state.log_history}))


if __name__ == "__main__":
    main()
