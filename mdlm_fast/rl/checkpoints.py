"""Checkpoints that are whole or not there, and that resume in the middle of a rollout's passes.

A checkpoint is a folder of `transformers.Trainer`'s, with the rollout that is being trained on, what the log has
collected, the reference policy if it has moved, and a manifest (see `mdlm_fast.rl.manifest`).
"""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mdlm_fast.files import whole_file
from mdlm_fast.models.saving import write_settings
from mdlm_fast.rl.buffer import RolloutBuffer
from mdlm_fast.rl.config import RLConfig
from mdlm_fast.rl.manifest import delete_old_checkpoints, last_whole_checkpoint, why_torn, write_manifest
from mdlm_fast.rl.reward_checks import RewardError
from mdlm_fast.rl.rollout import RolloutBatch

if TYPE_CHECKING:
    from mdlm_fast.models import MaskedDiffusionModel
    from mdlm_fast.ops import HeadGradient
    from mdlm_fast.rl.metrics import Metrics
    from mdlm_fast.rl.packing import PackPlanner
    from mdlm_fast.rl.processes import Processes
    from mdlm_fast.rl.producer import Producer
    from mdlm_fast.rl.reference import Reference
    from mdlm_fast.rl.reporting import Reporter
    from mdlm_fast.rl.showing import Showcase

REFERENCE = "reference.safetensors"
#: What `RolloutBatch` holds beside its tensors.
_NOTES = ("texts", "completion_ids", "ended", "forwards", "seconds")


#: Fields of the config that a rollout's completions and views depend on, beside the method's own.
_OF_ROLLOUTS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "num_iterations",
    "num_generations",
    "decoder",
    "max_completion_length",
    "diffusion_steps",
    "block_length",
    "temperature",
    "top_k",
    "top_p",
    "logp_temperature",
    "old_logprobs",
    "importance_sampling_cap",
    "completion_tokens",
    "loss_normalization",
    "beta",
)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or is not whole."""


class CheckpointedTrainer(Trainer):
    """The part of a trainer that writes and reads checkpoints.

    Attributes:
        micro_step: micro-batches trained on. buffer: the rollout being trained on. unscored: the rollout of a resumed
            run whose rewards failed. The rest is set by the subclass.
    """

    args: RLConfig
    micro_step: int = 0
    buffer: RolloutBuffer | None = None
    unscored: RolloutBatch | None = None
    policy: MaskedDiffusionModel
    metrics: Metrics
    planner: PackPlanner
    processes: Processes
    producer: Producer
    head_gradient: HeadGradient
    reference: Reference
    reporter: Reporter
    showcase: Showcase
    _flushed_at: int = 0
    _resumed: Path | None = None
    _last_written: Path | None = None

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """`transformers.Trainer.train`; True resumes from the last whole checkpoint of output_dir, if there is one.

        Raises:
            CheckpointError: a named checkpoint is not whole, or one could not be written.
            RewardError: a reward function failed; the message says what was kept.
            TrainingDiverged: see `mdlm_fast.rl.divergence`.
        """
        folder: Path | None = None
        if resume_from_checkpoint is True:
            folder = last_whole_checkpoint(str(self.args.output_dir))
        elif resume_from_checkpoint:
            folder = Path(resume_from_checkpoint)
            if (reason := why_torn(folder)) is not None:
                other = last_whole_checkpoint(folder.parent)
                hint = f"resume from {other}" if other else "there is no whole one beside it"
                raise CheckpointError(f"checkpoint {folder} is not whole: {reason}; {hint}")
        self._resumed, self._last_written = folder, folder and folder.resolve()
        self.buffer, self.unscored, self.micro_step, self._flushed_at = None, None, 0, 0
        self.head_gradient.clear()  # an earlier run may have stopped anywhere
        self.metrics.restart()
        self.reporter.extras, self.reporter.num_tokens = {}, 0
        try:
            return super().train(None if folder is None else str(folder), trial, ignore_keys_for_eval)
        finally:
            self.is_in_train = False

    def restore(self) -> None:
        """Once the loop runs: what the checkpoint that `train` resumed from holds beside transformers' own files."""
        folder, self._resumed = self._resumed, None
        if folder is None:
            return
        progress = json.loads(self._own_file(folder, "progress", ".json").read_text(encoding="utf-8"))
        self.micro_step = progress["micro_step"]
        self._tr_loss += progress["loss_since_log"]
        self._globalstep_last_logged = self._flushed_at = progress["last_logged"]
        self.metrics.load_state(progress["metrics"])
        self.planner.load_state(progress["planner"])
        self.reporter.num_tokens = progress["num_tokens"]
        if (folder / REFERENCE).exists():
            self.reference.load_state_dict(self._load(folder / REFERENCE))
        now = self._layout()
        changed = {name: (was, now.get(name)) for name, was in progress["layout"].items() if was != now.get(name)}
        if (rollout := self._own_file(folder, "rollout")).exists():
            if not changed:
                self._restore_buffer(self._load(rollout))
            else:
                warnings.warn(
                    f"{folder} was written in the middle of a rollout under other settings ("
                    + ", ".join(f"{name} {before}, now {after}" for name, (before, after) in changed.items())
                    + "), which is decoded anew",
                    RuntimeWarning,
                    stacklevel=2,
                )
        unscored = self._own_file(folder, "unscored")
        if not changed and not self.processes.maximum(int(not unscored.exists())):
            self.unscored = _load_batch(unscored, self.args.device)

    def rescue(self, error: Exception, batch: RolloutBatch | None = None) -> RewardError:
        """Keeps what is finished when a reward function fails.

        Writes a checkpoint unless the last one is of this optimizer step, and beside it the completions that were to be
        scored, so that a resumed run only calls the rewards again.

        Args:
            error: what the function raised. batch: this process's completions; None in an evaluation.

        Returns:
            The error to raise, which says how to go on.
        """
        folder = self._checkpoint_folder()
        try:
            if self._last_written != folder.resolve():
                self._save_checkpoint(self.model_wrapped, None)
            with self.processes.raising_together():
                if batch is not None:
                    _save_batch(batch, self._own_file(folder, "unscored"))
        except Exception as failure:  # whatever else is wrong must not hide the error
            last = last_whole_checkpoint(folder.parent)
            kept = f"what was finished since {last or 'the start'} could not be saved ({failure})"
        else:
            what = "" if batch is None else " and the completions that were to be scored"
            kept = f"{folder} keeps the {self.state.global_step} finished optimizer steps{what}"
        return RewardError(f"{error}. {kept}; mend the function and go on with train(resume_from_checkpoint=True)")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = self._checkpoint_folder(trial)
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # not before the new one is whole
        try:
            with self.processes.raising_together():
                self.showcase.write()  # a resumed run does not have the completions that wait for the next log
                if self.args.should_save and folder.exists():
                    shutil.rmtree(folder)  # of an earlier run
            with self.processes.raising_together():
                super()._save_checkpoint(model, trial)
                self._save_progress(folder)
            with self.processes.raising_together():
                if self.args.should_save:
                    write_manifest(folder)
        except Exception as error:
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            last = last_whole_checkpoint(folder.parent)
            raise CheckpointError(
                f"checkpoint {folder} could not be written ({error}); "
                + (f"training can go on from {last}" if last else "there is no earlier one")
            ) from error
        finally:
            self.args.save_total_limit = limit
        self._last_written = folder.resolve()
        if self.args.should_save:
            delete_old_checkpoints(folder.parent, limit, self.state.best_model_checkpoint)

    def _save_progress(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if self.buffer is not None:
            _save(self.buffer.to_dict(), self._own_file(folder, "rollout"))
        reference = {name: _whole(tensor) for name, tensor in self.reference.state_dict().items()}
        if self.args.should_save and reference:
            _save(reference, folder / REFERENCE)
        progress = {
            "micro_step": self.micro_step,
            "loss_since_log": float(self._tr_loss),
            "last_logged": self._globalstep_last_logged,
            "metrics": self.metrics.state(),
            "planner": self.planner.state(),
            "num_tokens": self.reporter.num_tokens,
            "layout": self._layout(),
        }
        self._own_file(folder, "progress", ".json").write_text(json.dumps(progress), encoding="utf-8")

    def _restore_buffer(self, tensors: dict[str, Tensor]) -> None:
        self.buffer = RolloutBuffer.from_dict(tensors, self.producer.chunk_size)
        self.producer.build_views(self.buffer)
        self.buffer.restore_views(tensors)

    def _layout(self) -> dict[str, Any]:
        """What must be as it was for a saved rollout to be of use."""
        of_method = {f.name for f in fields(type(self.args))} - {f.name for f in fields(RLConfig)}
        settings = {name: getattr(self.args, name) for name in _OF_ROLLOUTS}
        settings |= {name: repr(getattr(self.args, name)) for name in sorted(of_method)}
        return {**settings, "processes": self.processes.count}

    def _checkpoint_folder(self, trial: Any = None) -> Path:
        return Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"

    def _own_file(self, folder: Path, name: str, suffix: str = ".safetensors") -> Path:
        """This process's file of a checkpoint."""
        return folder / f"{name}-{self.processes.index}{suffix}"

    def _load(self, path: Path) -> dict[str, Tensor]:
        return {name: tensor.to(self.args.device) for name, tensor in load_file(path).items()}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            write_settings(self.policy, Path(str(self.args.output_dir if output_dir is None else output_dir)))


def _whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or of shards the whole one: all processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)


def _save_batch(batch: RolloutBatch, path: Path) -> None:
    notes = {name: getattr(batch, name) for name in _NOTES}
    with whole_file(path) as temporary:
        _save(batch.to_dict(), temporary, {"notes": json.dumps(notes)})


def _load_batch(path: Path, device: torch.device) -> RolloutBatch:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118 (no mapping)
        notes = json.loads(file.metadata()["notes"])
    return replace(RolloutBatch.from_dict(tensors), **notes)
