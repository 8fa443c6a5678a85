"""What a rollout looks like: its completions as a table and a file, its trajectories as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mdlm_fast.rl.buffer import RolloutBuffer
from mdlm_fast.rl.completions import CompletionsLog
from mdlm_fast.rl.heatmap import save_trajectory_heatmap
from mdlm_fast.rl.rewards import as_completions

if TYPE_CHECKING:
    from mdlm_fast.rl.trainer import MaskedDiffusionTrainer

#: Sequences of a group that a picture shows.
SHOWN_SEQUENCES = 8


class Showcase:
    """Keeps and writes what the config asks to be shown; the main process writes."""

    def __init__(self, trainer: MaskedDiffusionTrainer) -> None:
        args = trainer.args
        self._trainer = trainer
        self._log = CompletionsLog(str(args.output_dir), trainer.rewards.names, args.num_completions_to_print)
        self._drawn_at = 0

    def keep(self, items: list[dict[str, Any]], buffer: RolloutBuffer, rewards: Tensor) -> None:
        """Takes in a rollout. rewards: float32 [B, F] of its completions, or [B, S, F] of every step's."""
        trainer = self._trainer
        extras, trainer.reporter.extras = trainer.reporter.extras, {}
        if not trainer.args.log_completions:
            return
        processes, batch = trainer.processes, buffer.batch
        prompts = [item["row"]["prompt"] for item in items]
        texts = processes.gather_objects(as_completions(prompts, batch.texts))
        prompts = processes.gather_objects(prompts)
        names = sorted(set(processes.gather_objects(sorted(extras))))  # a reward may log a column on one process alone
        nothing = [None] * len(items)
        extras = {name: processes.gather_objects(extras.get(name, nothing)) for name in names}
        final = rewards if rewards.ndim == 2 else rewards[:, -1]
        scored = processes.gather(final.to(trainer.args.device)).cpu()
        advantages = processes.gather(_per_sequence(buffer.advantages)).cpu()
        if trainer.is_world_process_zero():
            self._log.add(trainer.state.global_step, prompts, texts, scored, advantages, extras)

    def write(self) -> None:
        """Prints and writes the completions kept since the last time."""
        if self._trainer.is_world_process_zero():
            self._log.write(self._trainer.state.global_step)

    def draw(self, buffer: RolloutBuffer) -> None:
        """Draws the group whose advantages differ most, if a picture is due."""
        trainer = self._trainer
        every, step = trainer.args.heatmap_steps, trainer.state.global_step
        if not every or not trainer.is_world_process_zero() or (step - self._drawn_at < every and self._drawn_at):
            return
        self._drawn_at = max(step, 1)
        spread = buffer.advantages.abs().reshape(buffer.groups.shape[0], -1).nansum(1)
        group = int(buffer.groups[int(spread.argmax())])
        rows = (buffer.groups == group).nonzero().flatten().tolist()[:SHOWN_SEQUENCES]
        self._draw_group(buffer, rows, f"Step {step}, prompt {group}", f"step_{step:05d}.png")

    def _draw_group(self, buffer: RolloutBuffer, rows: list[int], title: str, file: str) -> None:
        trainer = self._trainer
        trajectory = buffer.batch.trajectory
        tokenizer: Any = trainer.processing_class
        labels = [[tokenizer.decode([token]) for token in trajectory.sequences[row].tolist()] for row in rows]
        per_step = trainer.reporter.per_step
        names = sorted({name for values in per_step.values() for name in values})
        nothing = float("nan")
        panels = {n: [float(per_step.get(s, {}).get(n, nothing)) for s in range(trajectory.steps)] for n in names}
        save_trajectory_heatmap(
            trajectory,
            rows,
            labels,
            Path(str(trainer.args.output_dir)) / "trajectories" / file,
            names=[f"{advantage:+.2f}" for advantage in _per_sequence(buffer.advantages)[rows].tolist()],
            per_step=panels,
            title=f"{title}; beside each completion its advantage",
        )


def _per_sequence(advantages: Tensor) -> Tensor:
    """float32 [B], of advantages a step their mean."""
    return advantages if advantages.ndim == 1 else advantages.nanmean(1)
