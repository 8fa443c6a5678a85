"""Run by test_distributed.py: every case in one process, and in two that share the work over gloo.

Arguments: a folder for results. One import serves all processes, which are forked before anything is computed.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from transformers import TrainerCallback
from watching import Gradients, without_times

from mdlm_fast.rl import CJGRPOTrainer, MDPOTrainer, checkpoints
from mdlm_fast.rl.checkpoints import CheckpointError
from mdlm_fast.rl.reward_checks import RewardError

#: Completions of a rollout.
SIZE = 8
COMMON: dict[str, Any] = {
    "learning_rate": 0.1,
    "optim": "sgd",
    "logging_steps": 1,
    "max_steps": 4,
    "num_iterations": 2,
    "max_grad_norm": 0.0,
    "views_per_backward": 1,
    "beta": 0.1,
    "shuffle_dataset": False,
    "ddp_bucket_cap_mb": 0.02,  # several buckets
}


def half_constant(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The second prompt of every pair, and so one of two processes, has nothing to learn."""
    values = tiny.reward(completions)
    return [0.5 if tiny.PROMPTS.index(p) % 2 else v for p, v in zip(prompts, values, strict=True)]


#: Settings and what else is special. Sizes are those of one process; each of two takes half.
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "packed": {"views_per_backward": "auto", "decoder": "rcr"},
    "groups span processes": {"num_generations": 2, "per_device_train_batch_size": 6},
    "accumulated": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "nothing scored in one": {"beta": 0.0, "rewards": half_constant},
    "mdpo": {  # completions take different numbers of steps, and so do processes
        "kind": MDPOTrainer,
        "sample_train_steps": 2,
        "temperature": 1.0,
        "decoder_overrides": {"select": "threshold", "threshold": 0.1},
    },
}


class Reductions(TrainerCallback):
    """Counts how often each bucket of gradients is reduced before every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[int, int]] = []
        self.counted: Counter[int] = Counter()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        wrapped = self.trainer.model_wrapped
        if hasattr(wrapped, "register_comm_hook"):
            wrapped.register_comm_hook(None, self.reduce)

    def reduce(self, group, bucket):  # without annotations: DistributedDataParallel reads them and wants no strings
        self.counted[bucket.index()] += 1
        return allreduce_hook(group, bucket)

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.steps.append(dict(self.counted))
        self.counted.clear()


def make(folder: Path, processes: int, case: dict[str, Any], callbacks: list[Any], **given: Any) -> Any:
    settings = {**COMMON, "per_device_train_batch_size": SIZE, **case}
    settings["per_device_train_batch_size"] //= processes
    kind, rewards = settings.pop("kind", CJGRPOTrainer), settings.pop("rewards", tiny.reward)
    return tiny.trainer(kind, folder, rewards=rewards, given={"callbacks": callbacks, **given}, **settings)


def run_case(folder: Path, processes: int, case: dict[str, Any]) -> dict[str, Any]:
    gradients, reductions = Gradients(), Reductions()
    trainer = reductions.trainer = make(folder, processes, case, [gradients, reductions])
    texts: list[list[int]] = []
    produce = trainer.producer.produce

    def kept(items: Any) -> Any:
        buffer = produce(items)
        batch = buffer.batch
        texts.extend(
            row[real].tolist() for row, real in zip(batch.trajectory.sequences, batch.attention_mask, strict=True)
        )
        return buffer

    trainer.producer.produce = kept
    trainer.train()
    return {
        "gradients": gradients.steps,
        "parameters": [p.detach().clone() for p in trainer.model.parameters()],
        "reductions": reductions.steps,
        "log": without_times(trainer.state.log_history),
        "sequences": texts,
    }


def run_resumed(folder: Path, processes: int) -> dict[str, Any]:
    """Resumed in the middle of a rollout's passes, and of a logging window."""
    case = {"save_strategy": "steps", "save_steps": 1, "max_steps": 5, "logging_steps": 2}
    whole = make(folder, processes, case, [])
    whole.train()
    trainer = make(folder, processes, case, [])
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    return {"whole": without_times(whole.state.log_history), "resumed": without_times(trainer.state.log_history)}


def run_failing_reward(folder: Path, processes: int) -> dict[str, Any]:
    """The function fails at the second rollout, for prompts of the last process alone."""

    def failing(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        if prompts[-1] == tiny.PROMPTS[3]:
            raise KeyError("no such answer")
        return tiny.reward(completions)

    failing.__name__ = "reward"  # as logs name the one that works
    trainer = make(folder, processes, {"rewards": failing}, [])
    message = caught(RewardError, trainer.train)
    files = sorted(path.name for path in folder.glob("checkpoint-2/unscored*"))
    resumed = make(folder, processes, {}, [])
    resumed.producer._rollout = checked(resumed.producer._rollout)
    resumed.train(resume_from_checkpoint=True)
    return {"message": message, "files": files, "resumed": without_times(resumed.state.log_history)}


def checked(rollout: Callable[..., Any]) -> Callable[..., Any]:
    """`Producer._rollout` that must find the completions of the interrupted run."""

    def found(items: Any) -> Any:
        from mdlm_fast.rl import rollout as rollouts

        decode, rollouts.rollout = rollouts.rollout, None
        try:
            return rollout(items)
        finally:
            rollouts.rollout = decode

    return found


def run_failing_evaluation(folder: Path, processes: int) -> dict[str, Any]:
    """The function fails in the evaluation after the third step, for the prompts of the last process alone."""

    def failing(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        if prompts == [tiny.PROMPTS[3]]:
            raise KeyError("no such answer")
        return tiny.reward(completions)

    case = {"rewards": failing, "eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 1}
    trainer = make(folder, processes, case, [], eval_dataset=[{"prompt": p} for p in tiny.PROMPTS[2:]])
    return {"message": caught(RewardError, trainer.train)}


def run_full_disk(folder: Path, processes: int) -> dict[str, Any]:
    """The main process cannot write; no process waits for it."""
    trainer = make(folder, processes, {"save_strategy": "steps", "save_steps": 2}, [])

    def full(_: Any) -> None:
        raise OSError(28, "No space left on device")

    write, checkpoints.write_manifest = checkpoints.write_manifest, full
    try:
        return {"message": caught(CheckpointError, trainer.train)}
    finally:
        checkpoints.write_manifest = write


def caught(kind: type[Exception], work: Callable[[], Any]) -> str:
    try:
        work()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def work(rank: int, processes: int, results: Path) -> None:
    torch.set_num_threads(1)
    runs: dict[str, Callable[[Path], Any]] = {
        name: lambda folder, case=case: run_case(folder, processes, case) for name, case in CASES.items()
    }
    if processes > 1:
        runs["resumed"] = lambda folder: run_resumed(folder, processes)
        runs["failing reward"] = lambda folder: run_failing_reward(folder, processes)
        runs["failing evaluation"] = lambda folder: run_failing_evaluation(folder, processes)
        runs["full disk"] = lambda folder: run_full_disk(folder, processes)
    for name, run in runs.items():
        torch.save(run(results / f"{name}-{processes}"), results / f"{name}-{processes}-{rank}.pt")


def main(results: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    gc.freeze()  # collections need not look at what was imported
    children = []
    for rank, processes in ((0, 1), (0, 2), (1, 2)):
        child = os.fork()
        if child:
            children.append(child)
            continue
        if processes > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        try:
            work(rank, processes, results)
            code = 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    failed = [code for child in children if (code := os.waitpid(child, 0)[1])]
    gc.unfreeze()
    sys.exit(bool(failed))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
