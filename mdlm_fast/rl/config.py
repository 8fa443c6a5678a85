"""RLConfig: the settings all trainers share, under TRL's names where they mean the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from mdlm_fast.config import EOSER, RCR, DecodeConfig
from mdlm_fast.rl.config_checks import check_rl_config

_PARTS = {"eoser": EOSER, "remasking": RCR}


@dataclass
class RLConfig(TrainingArguments):
    """Settings of a trainer; those of `transformers.TrainingArguments` are not repeated here.

    Batches, as in TRL: per_device_train_batch_size counts completions; a generation batch holds
    per_device_train_batch_size * steps_per_generation * processes of them, num_generations for each prompt, and is
    trained on num_iterations times.

    Rollout:
        decoder: a preset of `DecodeConfig`; decoder_overrides: any other of its fields (eoser and remasking may be
            dicts, as in a YAML file). max_completion_length is its gen_length, diffusion_steps its steps.
        block_length, num_blocks, temperature, top_k, top_p: fields of `DecodeConfig`.
        max_prompt_length: longer prompts are refused; None: whatever the model takes.
        eval_decoder_overrides: what evaluation changes; default: greedy.
    Policy:
        logp_temperature: logits are divided by it in training; None: the temperature that tokens were drawn with (1
            with top_k or top_p, whose effect a log-prob in training does not have).
        old_logprobs: "rollout" takes the decoder's record where it is the log-prob under the training's own view,
            "recompute" runs a pass before the first update.
        importance_sampling_cap: weight every token by min(p_recomputed / p_rollout, cap): for rollouts that are
            approximate (needs "recompute"). None: off.
        completion_tokens: "first_eos" trains on tokens up to and including the first EOS, "all" on the filler behind it
            too, as CJ-GRPO's released code does.
        disable_dropout: no dropout in any pass.
    Objective:
        num_generations, num_iterations, steps_per_generation, beta, epsilon, epsilon_high, delta, scale_rewards,
        reward_weights, multi_objective_aggregation: as in TRL. steps_per_generation counts micro-batches (default:
            gradient_accumulation_steps).
        kl_estimator: "k1", "k2" or "k3" (default: the method's).
        loss_normalization: "optimizer_step" divides by the tokens (steps, sequences) of everything that goes into one
            optimizer step, over all processes, so the result does not depend on how it is cut into micro-batches;
            "micro_batch" divides within each micro-batch and averages those, as the released trainers do.
        max_log_ratio: training stops when a log ratio of new to old policy is larger, or anything is NaN.
    Reference:
        reference: "auto", "adapter_off", "adapter", "copy" or "none"; sync_ref_model, ref_model_sync_steps,
            ref_model_mixup_alpha: as in TRL.
    Memory:
        views_per_backward: steps whose graphs live at a time, or "auto": as many as fit.
    Logging:
        log_completions: a table on the terminal and a parquet file each logging step; num_completions_to_print.
        heatmap_steps: a picture of a group's trajectories every so many optimizer steps; 0: never.
    """

    # Defaults of TrainingArguments that RL wants otherwise.
    learning_rate: float = field(default=1e-6)
    logging_steps: float = field(default=10)
    remove_unused_columns: bool = field(default=False)
    lr_scheduler_type: str = field(default="constant_with_warmup")
    dataloader_pin_memory: bool = field(default=False)
    logging_nan_inf_filter: bool = field(default=False)
    ddp_find_unused_parameters: bool | None = field(default=False)  # every pass uses every parameter
    ddp_broadcast_buffers: bool | None = field(default=False)  # and no pass changes a buffer

    decoder: str = field(default="llada")
    decoder_overrides: dict[str, Any] | None = field(default=None)
    eval_decoder_overrides: dict[str, Any] | None = field(default_factory=lambda: {"temperature": 0.0})
    max_completion_length: int = field(default=256)
    max_prompt_length: int | None = field(default=None)
    diffusion_steps: int | None = field(default=None)
    block_length: int | None = field(default=None)
    num_blocks: int | None = field(default=None)
    temperature: float = field(default=1.0)
    top_k: int | None = field(default=None)
    top_p: float | None = field(default=None)

    logp_temperature: float | None = field(default=None)
    old_logprobs: str = field(default="rollout")
    importance_sampling_cap: float | None = field(default=None)
    completion_tokens: str = field(default="first_eos")
    disable_dropout: bool = field(default=True)

    num_generations: int = field(default=8)
    num_iterations: int = field(default=1)
    steps_per_generation: int | None = field(default=None)
    beta: float = field(default=0.0)
    epsilon: float = field(default=0.2)
    epsilon_high: float | None = field(default=None)
    delta: float | None = field(default=None)
    scale_rewards: str = field(default="none")
    reward_weights: list[float] | None = field(default=None)
    multi_objective_aggregation: str = field(default="sum_then_normalize")
    kl_estimator: str = field(default="k3")
    loss_normalization: str = field(default="optimizer_step")
    max_log_ratio: float = field(default=20.0)

    reference: str = field(default="auto")
    sync_ref_model: bool = field(default=False)
    ref_model_sync_steps: int = field(default=512)
    ref_model_mixup_alpha: float = field(default=0.6)

    views_per_backward: int | str = field(default="auto")
    shuffle_dataset: bool = field(default=True)
    log_completions: bool = field(default=False)
    num_completions_to_print: int | None = field(default=None)
    heatmap_steps: int = field(default=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps_per_generation is None:
            self.steps_per_generation = self.gradient_accumulation_steps
        check_rl_config(self)

    @property
    def n_gpu(self) -> int:
        """GPUs of this process, one at most: torch's DataParallel would cut canvases away from their rows."""
        return min(int(super().n_gpu), 1)

    @property
    def record(self) -> str:
        """What the decoder must record for this method ("trajectory", or "full": every step's predictions)."""
        return "trajectory"

    @property
    def reference_weight(self) -> float:
        """How much the method leans on a reference policy; 0: it needs none."""
        return self.beta

    @property
    def training_temperature(self) -> float:
        """The temperature of the log-probs in training."""
        if self.logp_temperature is not None:
            return self.logp_temperature
        filtered = self.top_k is not None or self.top_p is not None
        return 1.0 if filtered or self.temperature == 0 else self.temperature

    @property
    def recorded(self) -> bool:
        """Whether a rollout records the log-probs that training computes."""
        temperature = self.training_temperature
        filtered = self.top_k is not None or self.top_p is not None
        tempered = temperature == self.temperature and not filtered and self.decode_config().remasking is None
        return temperature == 1.0 or tempered

    def decode_config(self, **overrides: Any) -> DecodeConfig:
        """The rollouts' `DecodeConfig`.

        Raises:
            ValueError: steps that do not fit the schedule, and whatever else DecodeConfig refuses.
        """
        names = ("block_length", "num_blocks", "temperature", "top_k", "top_p")
        fields: dict[str, Any] = {n: v for n in names if (v := getattr(self, n)) is not None}
        if self.diffusion_steps is not None:
            fields["steps"] = self.diffusion_steps
        fields |= {"gen_length": self.max_completion_length, "record": self.record}
        fields |= {**(self.decoder_overrides or {}), **overrides}
        for name, kind in _PARTS.items():
            if isinstance(fields.get(name), dict):
                fields[name] = kind(**fields[name])
        return DecodeConfig.preset(self.decoder, **fields)

    def eval_decode_config(self) -> DecodeConfig:
        """The `DecodeConfig` of evaluations."""
        return self.decode_config(record="none", **(self.eval_decoder_overrides or {}))
