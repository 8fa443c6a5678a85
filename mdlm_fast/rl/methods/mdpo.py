"""MDPO: every denoising step is an action with a reward of its own (arXiv 2508.13148).

A step predicts the whole answer, not only what it commits. The text of that prediction is rewarded, the advantage of a
step is what it gained and what came of it, and the steps on which a group differs most are trained on.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from mdlm_fast.config import DecodeConfig
from mdlm_fast.files import whole_file
from mdlm_fast.policies import tempered_equals_raw
from mdlm_fast.rl import objectives
from mdlm_fast.rl.backslide import select_backslides
from mdlm_fast.rl.chunk import Chunk
from mdlm_fast.rl.config import RLConfig
from mdlm_fast.rl.data import answer_backslide
from mdlm_fast.rl.rollout import RolloutBatch
from mdlm_fast.rl.step_answers import Prediction, predicted, recording_predictions, reward_answers, step_answers
from mdlm_fast.rl.trainer import MaskedDiffusionTrainer
from mdlm_fast.rl.views import View, token_view

logger = logging.getLogger(__name__)

BACKSLIDES_FILE = "backslides.json"
_PARTS = ("policy", "both", "none")


@dataclass
class MDPOConfig(RLConfig):
    """Settings of MDPO beside those of `RLConfig`. See docs/rl.md for what differs from the released code (preset
    "mdpo-paper").

    Whatever `decoder` says, rollouts score all masked positions, so that every step's answer is whole. Remasking (RCR)
    is `decoder_overrides={"remasking": {}}`.

    Attributes:
        sample_train_steps: K, steps of each group that are trained on: those with the largest sum of |advantage|.
        length_factor: where a step counts G/|U| times, G the tokens to generate and U what is masked at the step: in
            the "policy" term (as released: late steps weigh more there, and in the penalty they do not), "both" or
            "none".
        confidence_weight: where a token is weighted by its confidence, as a probability: "both" terms (as released),
            "policy" or "none".
        step_reduction: "sum" over the K steps (as released), or their "mean".
        completion_tokens: "all" masked positions of a step (as released), or those up to the "first_eos" of its
            prediction.
        scale_rewards: advantages are z-scores within the group, step by step: "group".
        filter_backslides: train only on prompts with an answer backslide (some step's answer is right, the final one
            wrong), found by a pass of rollouts before training. Its result is kept in output_dir/backslides.json, and
            used again on resuming.
        backslide_samples: completions of each prompt in that pass.
        correct_reward: reward from which on an answer is right.
    """

    sample_train_steps: int = field(default=8)
    length_factor: str = field(default="policy")
    confidence_weight: str = field(default="both")
    step_reduction: str = field(default="sum")
    filter_backslides: bool = field(default=False)
    backslide_samples: int = field(default=1)
    correct_reward: float = field(default=1.0)

    decoder: str = field(default="mdpo")
    temperature: float = field(default=0.4)
    completion_tokens: str = field(default="all")
    scale_rewards: str = field(default="group")
    beta: float = field(default=0.02)
    kl_estimator: str = field(default="k2")
    learning_rate: float = field(default=7e-7)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (
            ("length_factor", _PARTS),
            ("confidence_weight", _PARTS),
            ("step_reduction", ("sum", "mean")),
            ("scale_rewards", ("group",)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: MDPO takes {' or '.join(map(repr, allowed))}")
        for name in ("sample_train_steps", "backslide_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        confidence = self.decode_config().confidence
        if self.confidence_weight != "none" and confidence not in ("prob", "margin"):
            raise ValueError(
                f"confidence={confidence!r} of the decoder is no weight between 0 and 1: set confidence_weight='none', "
                "or decode with confidence 'prob' or 'margin'"
            )

    @property
    def record(self) -> str:
        return "full"

    @property
    def recorded(self) -> bool:
        """Whether the confidences of a step's predictions are the log-probs that training computes."""
        config, temperature = self.decode_config(), self.training_temperature
        if config.confidence != "prob" or config.alg_temp:
            return False
        if config.confidence_from == "raw" or tempered_equals_raw(config):
            return temperature == 1.0
        filtered = config.top_k is not None or config.top_p is not None
        return temperature == self.temperature and not filtered

    def decode_config(self, **overrides: Any) -> DecodeConfig:
        config = super().decode_config(**overrides)
        return recording_predictions(config) if config.record == "full" else config


class MDPOTrainer(MaskedDiffusionTrainer):
    """Rows: at the chosen steps, every masked position with the token that the step predicted there. Advantage: of the
    step. Reduction: within a step, confidence * (G/|U|) / |U| a token; the sum over a sequence's steps; the mean over
    sequences."""

    config_class = MDPOConfig
    step_rewards = True
    args: MDPOConfig

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """As in `CheckpointedTrainer`; first filters the prompts, if the config asks for it.

        Raises:
            ValueError: the filter leaves too little."""
        if self.args.filter_backslides and not isinstance(self.prompts.dataset, Subset):
            self._filter_prompts(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, trial=trial, ignore_keys_for_eval=ignore_keys_for_eval)

    def reward(self, items: list[dict[str, Any]], batch: RolloutBatch) -> Tensor:
        """float32 [B, S, F]; after a row's last step its rewards repeat, up to the last step of any process's rows."""
        answers = step_answers(batch, self.processing_class, self.policy.eos_ids)
        with self.processes.raising_together():
            rewards = reward_answers(
                self.rewards,
                self.prompts,
                items,
                answers,
                trainer_state=self.state,
                log_extra=self.reporter.log_extra,
                log_metric=self.reporter.log_metric,
            )
        combined = (rewards.nan_to_num(0.0) * torch.tensor(self.rewards.weights)).sum(2)
        backslides = answer_backslide(combined, self.args.correct_reward)
        self.metrics.add(
            {"step_rewards/mean": float(combined.mean()), "step_rewards/backslides": float(backslides.float().mean())}
        )
        missing = self.processes.maximum(rewards.shape[1]) - rewards.shape[1]
        #: Of the rollout that was rewarded last, bool [B, S]: whether a step had anything to predict.
        self._active = torch.nn.functional.pad(answers.active, (0, missing))
        return torch.cat([rewards, rewards[:, -1:].expand(-1, missing, -1)], 1)

    def advantages(self, rewards: Tensor, groups: Tensor, log_ratio: Tensor | None) -> Tensor:
        """float32 [N, S], NaN at the steps that the row's group does not train on."""
        advantages = objectives.normalize_steps(objectives.step_advantages(rewards), groups)
        active = self.processes.gather(self._active)
        ranked = objectives.rank_steps(advantages.where(active, 0.0), groups, self.args.sample_train_steps)
        chosen = torch.zeros_like(active).scatter(1, ranked, True)
        return advantages.where(chosen, torch.nan)

    def views(self, chunk: Chunk, iteration: int) -> list[View]:
        args, trajectory = self.args, chunk.trajectory
        chosen = ~chunk.advantages.isnan()
        sequences = chunk.total(torch.tensor([chunk.groups.shape[0]], device=chunk.groups.device))
        whole = chunk.scale / int(sequences)
        if args.step_reduction == "mean":
            whole /= min(args.sample_train_steps, chosen.shape[1])
        length = trajectory.eligible.sum(1, keepdim=True)
        views = []
        for step in range(trajectory.steps):
            if not bool(chosen[:, step].any()):
                continue
            prediction = predicted(trajectory, step)
            scored = prediction.masked & chosen[:, step, None]
            if not chunk.all_tokens:
                scored &= objectives.until_first_eos(prediction.canvas, chunk.generated, chunk.eos_ids)
            count = scored.sum(1, keepdim=True).clamp(min=1)
            weight, kl_weight = self._weights(prediction, whole / count, length / count)
            view = token_view(
                partial(trajectory.states, step),
                chunk.attention_mask,
                scored,
                prediction.canvas,
                weight=weight.expand_as(prediction.confidence),
                kl_weight=kl_weight.expand_as(prediction.confidence),
                advantage=chunk.advantages[:, step],
                step=step,
                old_logp=self._recorded_logp(chunk, prediction),
            )
            if view is not None:
                views.append(view)
        return views

    def _weights(self, prediction: Prediction, mean: Tensor, length_factor: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the policy term and of the penalty, [B, 1] or [B, L]. mean, length_factor: float32 [B, 1]."""
        args, config = self.args, self.decode_config
        is_log = config.confidence == "prob" and not config.alg_temp
        confidence = prediction.confidence.exp() if is_log else prediction.confidence
        weight = kl_weight = mean
        for factor, terms in ((confidence, args.confidence_weight), (length_factor, args.length_factor)):
            weight = weight if terms == "none" else weight * factor
            kl_weight = kl_weight * factor if terms == "both" else kl_weight
        return weight, kl_weight

    def _recorded_logp(self, chunk: Chunk, prediction: Prediction) -> Tensor | None:
        """The confidence, where it is the log-prob that training compares with."""
        config = self.decode_config
        if not chunk.use_record or config.confidence != "prob" or config.alg_temp:
            return None
        raw = config.confidence_from == "raw" or tempered_equals_raw(config)
        return prediction.confidence if raw != chunk.tempered else None

    def _filter_prompts(self, resume_from_checkpoint: str | bool | None) -> None:
        """Leaves only the prompts with an answer backslide; a resumed run takes those that the interrupted one kept."""
        args, whole = self.args, len(self.prompts)
        folder = Path(str(args.output_dir))
        found = None
        if resume_from_checkpoint:
            before = folder if resume_from_checkpoint is True else Path(resume_from_checkpoint).parent
            found = _read_rows(before / BACKSLIDES_FILE, whole) if self.is_world_process_zero() else None
            found = self.processes.gather_objects([found])[0]
        if found is None:
            found = select_backslides(
                self.policy,
                self.prompts,
                self.rewards,
                self.decode_config,
                batch_size=args.per_device_train_batch_size * (args.steps_per_generation or 1),
                samples=args.backslide_samples,
                correct=args.correct_reward,
                seed=args.seed,
                processes=self.processes,
                progress=not args.disable_tqdm,
            )
        if self.is_world_process_zero():
            folder.mkdir(parents=True, exist_ok=True)
            with whole_file(folder / BACKSLIDES_FILE) as path:
                path.write_text(json.dumps({"prompts": whole, "rows": found}), encoding="utf-8")
            logger.info("%d of %d prompts have an answer backslide and are trained on", len(found), whole)
        self.prompts.dataset = Subset(self.prompts.dataset, found)


def _read_rows(path: Path, prompts: int) -> list[int] | None:
    """The rows that an earlier run's filter kept; None where it left no file.

    Raises:
        ValueError: they are of another data set."""
    if not path.exists():
        return None
    saved = json.loads(path.read_text(encoding="utf-8"))
    if saved["prompts"] != prompts:
        raise ValueError(
            f"{path} was written for a data set of {saved['prompts']} prompts, this one has {prompts}: resume with the "
            "data set of the interrupted run, or delete the file to filter again"
        )
    rows: list[int] = saved["rows"]
    return rows
