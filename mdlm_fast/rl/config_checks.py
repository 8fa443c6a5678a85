"""What `RLConfig` refuses, before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mdlm_fast.rl.config import RLConfig

_CHOICES = {
    "old_logprobs": ("rollout", "recompute"),
    "completion_tokens": ("first_eos", "all"),
    "scale_rewards": ("none", "group", "batch"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "kl_estimator": ("k1", "k2", "k3"),
    "loss_normalization": ("optimizer_step", "micro_batch"),
    "reference": ("auto", "adapter_off", "adapter", "copy", "none"),
}
#: Fields of `DecodeConfig` that are set by another field of the config, or by the method (None).
_FIELD_OF = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "gen_length": "max_completion_length",
    "record": None,
}


def check_rl_config(config: RLConfig) -> None:
    """Raises ValueError naming the field, its value and what to change."""
    for name, allowed in _CHOICES.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f"{name}={getattr(config, name)!r}: choose one of {', '.join(map(repr, allowed))}")
    _at_least(config, 1, "num_iterations", "steps_per_generation", "max_completion_length", "ref_model_sync_steps")
    _at_least(config, 0, "beta", "epsilon", "heatmap_steps", "temperature")
    if config.num_generations < 2:
        raise ValueError(
            f"num_generations={config.num_generations}: advantages compare the completions of a prompt, so it takes "
            "at least 2 of them"
        )
    _check_steps(config)
    if config.views_per_backward != "auto" and not _is_count(config.views_per_backward):
        raise ValueError(f"views_per_backward={config.views_per_backward!r}: give 'auto' or a number of at least 1")
    if config.importance_sampling_cap is not None:
        if config.old_logprobs != "recompute":
            raise ValueError(
                f"importance_sampling_cap={config.importance_sampling_cap} compares recomputed log-probs with the "
                "rollout's; set old_logprobs='recompute'"
            )
        if config.importance_sampling_cap <= 0:
            raise ValueError(f"importance_sampling_cap={config.importance_sampling_cap} must be above 0")
        if not config.recorded:
            raise ValueError(
                f"importance_sampling_cap={config.importance_sampling_cap}: the rollout does not record the "
                f"log-probs that training computes (at temperature {config.training_temperature:g}), so there is "
                "nothing to compare with: set it to None, or change logp_temperature or the decoder"
            )
    if config.logp_temperature is not None and not config.logp_temperature > 0:
        raise ValueError(f"logp_temperature={config.logp_temperature} must be above 0, or None")
    high = config.epsilon if config.epsilon_high is None else config.epsilon_high
    if high < 0:
        raise ValueError(f"epsilon_high={high} must be at least 0, or None for epsilon's value")
    if config.delta is not None and not config.delta > 1 + high:
        raise ValueError(
            f"delta={config.delta} must be above 1 + epsilon_high = {1 + high:g}, where clipping already ends; raise "
            "it, or set it to None"
        )
    if not 0 < config.ref_model_mixup_alpha <= 1:
        raise ValueError(f"ref_model_mixup_alpha={config.ref_model_mixup_alpha} must be above 0 and at most 1")
    if config.auto_find_batch_size:
        raise ValueError(
            "auto_find_batch_size=True would cut groups of completions apart: turn it off; views_per_backward='auto' "
            "fits passes into memory, and per_device_train_batch_size is yours to lower"
        )
    if not config.max_log_ratio > 0:
        raise ValueError(f"max_log_ratio={config.max_log_ratio} must be above 0")
    if config.sync_ref_model and config.reference_weight == 0:
        raise ValueError(
            "sync_ref_model=True has no reference to move (beta=0, or a method without one); set beta, or turn it off"
        )
    _check_decoder(config)


def refuse_other(config: RLConfig, why: str, **only: Any) -> None:
    """Raises ValueError where a field is not the one value that a method has a use for, saying why."""
    for name, value in only.items():
        if getattr(config, name) != value:
            raise ValueError(f"{name}={getattr(config, name)!r} must be {value!r}: {why}")


def _check_steps(config: RLConfig) -> None:
    per_generation, accumulation = config.steps_per_generation, config.gradient_accumulation_steps
    assert per_generation is not None
    if per_generation % accumulation:
        raise ValueError(
            f"steps_per_generation={per_generation} must be a multiple of gradient_accumulation_steps={accumulation}, "
            "so that an optimizer step trains on completions of one rollout"
        )


def _check_decoder(config: RLConfig) -> None:
    for name in config.decoder_overrides or {}:
        if name in _FIELD_OF:
            hint = f"use the field {_FIELD_OF[name]}" if _FIELD_OF[name] else "the method sets it"
            raise ValueError(f"decoder_overrides has {name!r}: {hint}, or training would not know of it")
    decode = config.decode_config()
    if decode.cfg_scale:
        raise ValueError(
            f"cfg_scale={decode.cfg_scale}: guided rollouts are not drawn from the policy that is trained; set it to 0"
        )
    if decode.num_return_sequences != 1 or decode.smc is not None:
        raise ValueError(
            "decoder_overrides: rollouts are one sequence a row; use num_generations for several, and no smc"
        )
    if decode.seed is not None or decode.seeds is not None or decode.row_ids is not None:
        raise ValueError("decoder_overrides: seeds of rollouts follow from seed= of the trainer's config")
    if not decode.samples and decode.confidence != "random" and not decode.alg_temp and decode.select != "origin":
        raise ValueError(
            f"temperature={config.temperature}: every completion of a prompt would be the same, and every advantage 0; "
            "set temperature above 0"
        )
    config.eval_decode_config()


def _at_least(config: Any, least: int, *names: str) -> None:
    for name in names:
        if getattr(config, name) < least:
            raise ValueError(f"{name}={getattr(config, name)} must be at least {least}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
