"""Checkpoints that are whole or not there, and that resume in the middle of a rollout's passes.

A checkpoint is a folder of `transformers.Trainer`'s, with the rollout that is being trained on, what the log has
collected, and a manifest, which is written last: a folder without one, or with a file that does not match it, was torn by
a crash and is not resumed from. Older checkpoints are deleted once the new manifest is on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from mdlm_fast.models.saving import write_settings
from mdlm_fast.rl.buffer import RolloutBuffer

if TYPE_CHECKING:
    from mdlm_fast.models import MaskedDiffusionModel
    from mdlm_fast.rl.metrics import Metrics
    from mdlm_fast.rl.producer import Producer
    from mdlm_fast.rl.reporting import Reporter

MANIFEST = "whole.json"
PROGRESS = "rl_progress.json"
#: Larger files are checked by size alone: reading many gigabytes back would hold up training.
HASHED_BYTES = 64 * 2**20


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or is not whole."""


def write_manifest(folder: Path) -> None:
    """Declares a checkpoint whole, once every file of it is on disk.

    Raises:
        OSError: the disk is full."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = _fingerprint(path)
    temporary = folder / f"{MANIFEST}.tmp"
    with open(temporary, "w", encoding="utf-8") as out:
        json.dump(files, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, folder / MANIFEST)


def why_torn(folder: Path) -> str | None:
    """None for a whole checkpoint, else what is wrong with it."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {MANIFEST}, which is written last"
    except (OSError, ValueError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _fingerprint(path) != expected:
            return f"{name} is not what was written"
    return None


def last_whole_checkpoint(output_dir: str | os.PathLike[str]) -> Path | None:
    """The checkpoint of the most steps that is whole; torn ones are named in a warning."""
    found = []
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.rsplit("-", 1)[1]
        if path.is_dir() and number.isdecimal():
            found.append((int(number), path))
    for _, path in sorted(found, reverse=True):
        reason = why_torn(path)
        if reason is None:
            return path
        warnings.warn(f"checkpoint {path} is torn and not used: {reason}", RuntimeWarning, stacklevel=2)
    return None


def _fingerprint(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > HASHED_BYTES:
        return {"bytes": size}
    return {"bytes": size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


class CheckpointedTrainer(Trainer):
    """The part of a trainer that writes and reads checkpoints.

    Attributes:
        micro_step: micro-batches trained on. buffer: the rollout being trained on. policy, metrics, reporter, producer:
            set by the subclass.
    """

    micro_step: int = 0
    buffer: RolloutBuffer | None = None
    policy: MaskedDiffusionModel
    metrics: Metrics
    reporter: Reporter
    producer: Producer
    _flushed_at: int = 0
    _resumed: Path | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """`transformers.Trainer.train`; True resumes from the last whole checkpoint of output_dir, if there is one.

        Raises:
            CheckpointError: a named checkpoint is not whole.
        """
        folder: Path | None = None
        if resume_from_checkpoint is True:
            folder = last_whole_checkpoint(self.args.output_dir)
        elif resume_from_checkpoint:
            folder = Path(resume_from_checkpoint)
            if (reason := why_torn(folder)) is not None:
                other = last_whole_checkpoint(folder.parent)
                hint = f"resume from {other}" if other else "there is no whole one beside it"
                raise CheckpointError(f"checkpoint {folder} is not whole: {reason}; {hint}")
        self._resumed, self.buffer, self.micro_step = folder, None, 0
        if folder is not None:
            progress = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
            self.micro_step = progress["micro_step"]
        return super().train(resume_from_checkpoint=None if folder is None else str(folder), **kwargs)

    def restore(self) -> None:
        """Once the loop runs: the log's state and the rollout of the checkpoint that `train` resumed from."""
        folder, self._resumed = self._resumed, None
        if folder is None:
            return
        progress = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        self._tr_loss += progress["loss_since_log"]
        self._globalstep_last_logged = self._flushed_at = progress["last_logged"]
        self.metrics.load_state(progress["metrics"])
        self.reporter.num_tokens = progress["num_tokens"]
        path = folder / self._buffer_file()
        if path.exists():
            tensors = {name: tensor.to(self.args.device) for name, tensor in load_file(path).items()}
            self.buffer = RolloutBuffer.from_dict(tensors, self.producer.chunk_size)
            self.producer.build_views(self.buffer)
            self.buffer.restore_views(tensors)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # not before the new one is whole
        try:
            if self.args.should_save and folder.exists():
                shutil.rmtree(folder)  # a torn one of an earlier run
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self._save_progress(folder)
            self.accelerator.wait_for_everyone()
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
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(folder.parent),
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _save_progress(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if self.buffer is not None:
            tensors = {name: tensor.cpu() for name, tensor in self.buffer.to_dict().items()}
            save_file(tensors, folder / self._buffer_file())
        if self.args.should_save:
            progress = {
                "micro_step": self.micro_step,
                "loss_since_log": float(self._tr_loss),
                "last_logged": self._globalstep_last_logged,
                "metrics": self.metrics.state(),
                "num_tokens": self.reporter.num_tokens,
            }
            (folder / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")

    def _buffer_file(self) -> str:
        return f"rollout-{self.args.process_index}.safetensors"

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            write_settings(self.policy, Path(output_dir or self.args.output_dir))
