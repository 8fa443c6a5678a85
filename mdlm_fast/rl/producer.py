"""Producer: from a batch of prompts to a buffer of completions, rewards, advantages and views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mdlm_fast.rl.backward import packs_in_step
from mdlm_fast.rl.buffer import RolloutBuffer
from mdlm_fast.rl.chunk import Chunk
from mdlm_fast.rl.objectives import combine_rewards, truncated_importance_weight
from mdlm_fast.rl.rollout import RolloutBatch, item_seeds, rollout_items
from mdlm_fast.rl.scoring import Normaliser, log_probs
from mdlm_fast.rl.views import View

if TYPE_CHECKING:
    from mdlm_fast.models import MaskedDiffusionModel
    from mdlm_fast.rl.trainer import MaskedDiffusionTrainer


class Producer:
    """Decodes, rewards and prepares one generation batch at a time for a trainer."""

    def __init__(self, trainer: MaskedDiffusionTrainer) -> None:
        self.trainer = trainer

    @property
    def chunk_size(self) -> int:
        """Completions of this process whose loss is normalised together."""
        args = self.trainer.args
        micro_batches = 1 if args.loss_normalization == "micro_batch" else args.gradient_accumulation_steps
        return int(args.per_device_train_batch_size * micro_batches)

    def produce(self, items: list[dict[str, Any]]) -> RolloutBuffer:
        """items: this process's part of a generation batch, as `PromptSet` gives them."""
        trainer = self.trainer
        args, metrics = trainer.args, trainer.metrics
        with metrics.phase("rollout"):
            batch = self._rollout(items)
        try:
            with metrics.phase("reward"):
                scored = trainer.reward(items, batch)  # [B, F] or [B, S, F]
        except Exception as error:  # whatever a user's function, or a method's use of it, raises
            raise trainer.rescue(error, batch) from error
        trainer.reporter.rollout(batch, float(batch.trajectory.row_steps.float().mean()))
        device = args.device
        groups = torch.tensor([item["index"] for item in items], dtype=torch.int64, device=device)
        buffer = RolloutBuffer(batch, torch.zeros(len(items), device=device), groups, self.chunk_size)
        self._set_advantages(buffer, scored.to(device))
        trainer.showcase.keep(items, buffer, scored)
        self.build_views(buffer)
        for passes in buffer.views:
            self._fill(buffer, passes)
        return buffer

    def build_views(self, buffer: RolloutBuffer) -> None:
        """Builds the views of every chunk and pass, from the buffer alone."""
        trainer = self.trainer
        buffer.views = []
        for rows in buffer.chunk_rows():
            chunk = self.chunk(buffer, rows)
            iterations = trainer.args.num_iterations
            if trainer.views_differ:
                buffer.views.append([self._views(chunk, iteration) for iteration in range(iterations)])
            else:
                buffer.views.append([self._views(chunk, 0)] * iterations)

    def _rollout(self, items: list[dict[str, Any]]) -> RolloutBatch:
        trainer = self.trainer
        seed = trainer.args.seed
        unscored, trainer.unscored = trainer.unscored, None
        if unscored is not None and torch.equal(unscored.seeds.cpu(), item_seeds(seed, items)):
            return unscored
        return rollout_items(trainer.policy, trainer.prompts, items, seed, trainer.decode_config)

    def _set_advantages(self, buffer: RolloutBuffer, scored: Tensor) -> None:
        trainer = self.trainer
        args, processes = trainer.args, trainer.processes
        rewards, groups = processes.gather(scored), processes.gather(buffer.groups)
        weights = torch.tensor(trainer.rewards.weights, device=rewards.device)
        if rewards.ndim == 3:
            steps = [
                combine_rewards(rewards[:, step], weights, groups, args.multi_objective_aggregation)
                for step in range(rewards.shape[1])
            ]
            combined = torch.stack(steps, 1)
        else:
            combined = combine_rewards(rewards, weights, groups, args.multi_objective_aggregation)
        ratio = trainer.sequence_log_ratio(buffer)
        advantages = trainer.advantages(combined, groups, None if ratio is None else processes.gather(ratio))
        buffer.advantages = processes.own(advantages)
        if rewards.ndim == 3:  # what is logged are the rewards of the final answers
            rewards = rewards[:, -1]
        trainer.reporter.rewards(rewards, combine_rewards(rewards, weights, groups, "sum_then_normalize"), groups)

    def chunk(self, buffer: RolloutBuffer, rows: slice) -> Chunk:
        """Some completions of a rollout, as a method sees them."""
        trainer = self.trainer
        args = trainer.args
        whole = args.loss_normalization == "optimizer_step"
        config = trainer.decode_config
        filtered = config.top_k is not None or config.top_p is not None
        temperature = args.training_temperature
        tempered = temperature == args.temperature and not filtered and temperature != 1.0
        recorded = args.old_logprobs == "rollout" or args.importance_sampling_cap is not None
        return Chunk.of(
            buffer.batch,
            rows,
            buffer.advantages,
            buffer.groups,
            eos_ids=trainer.policy.eos_ids,
            all_tokens=args.completion_tokens == "all",
            use_record=recorded and (tempered or temperature == 1.0),
            tempered=tempered,
            total=trainer.processes.total if whole else _unchanged,
            scale=float(trainer.processes.count) if whole else 1.0 / args.gradient_accumulation_steps,
        )

    def _views(self, chunk: Chunk, iteration: int) -> list[View]:
        trainer = self.trainer
        views = trainer.views(chunk, iteration)
        if not trainer.args.beta:  # without a penalty, a completion as good as its group's mean has no gradient
            matters = chunk.advantages.reshape(chunk.advantages.shape[0], -1).nan_to_num().ne(0).any(1)
            views = [part for view in views if (part := view.select(matters)) is not None]
        return [view.with_(ref_logp=view.old_logp) for view in views] if trainer.kl_to_old else views

    def _fill(self, buffer: RolloutBuffer, passes: list[list[View]]) -> None:
        """Gives the views of a chunk the log-probs that need a forward pass: old ones, and the reference's."""
        trainer = self.trainer
        args = trainer.args
        once = args.num_iterations == 1 and len(buffer.views) == 1
        for number, views in enumerate(passes):
            if number and views is passes[0]:
                continue
            # Of any process: one whose views were all left out must take part in the others' passes.
            missing = bool(trainer.processes.maximum(int(any(view.old_logp is None for view in views))))
            wanted = args.old_logprobs == "recompute" or (missing and not once) or (missing and trainer.kl_to_old)
            if wanted and trainer.uses_old:
                with trainer.metrics.phase("old"):
                    views[:] = self._with_old(views, self.log_probs(buffer, views, trainer.policy))
            if args.beta and not trainer.kl_to_old and trainer.reference.kind != "none":
                with trainer.metrics.phase("ref"), trainer.reference.scorer() as (model, module):
                    logps = self.log_probs(buffer, views, model, module)
                views[:] = [view.with_(ref_logp=logp) for view, logp in zip(views, logps, strict=True)]

    def _with_old(self, views: Sequence[View], logps: Sequence[Tensor]) -> list[View]:
        cap, filled = self.trainer.args.importance_sampling_cap, []
        for view, logp in zip(views, logps, strict=True):
            weight = None
            if cap is not None and view.old_logp is not None:
                weight = truncated_importance_weight(logp, view.old_logp, cap)
            reference = logp if self.trainer.kl_to_old else view.ref_logp
            filled.append(view.with_(old_logp=logp, ref_logp=reference, importance=weight))
        return filled

    def log_probs(
        self, buffer: RolloutBuffer, views: Sequence[View], model: MaskedDiffusionModel, module: Any = None
    ) -> list[Tensor]:
        """Log-probs of views of a rollout without gradients, float32 [N] a view; all processes must call it.

        model: the policy, or a reference. module: what to call in its place."""
        normaliser = Normaliser.of(buffer.batch.trajectory, self.trainer.args.training_temperature)
        packs = packs_in_step(self.trainer, views, buffer)
        return log_probs(model, packs, normaliser, module)[: len(views)]


def _unchanged(values: Tensor) -> Tensor:
    return values
