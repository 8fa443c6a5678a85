"""Checks of a decode configuration. Every message names the field, its value and what to change."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mdlm_fast.schedules import ass_layout, ass_steps, parse_schedule

if TYPE_CHECKING:
    from mdlm_fast.config import DecodeConfig

CHOICES = {
    "select": ("quota", "threshold", "factor", "entropy_bound", "quota_threshold", "origin"),
    "confidence": ("prob", "margin", "neg_entropy", "random"),
    "confidence_from": ("raw", "tempered"),
    "sampler": ("exact", "gumbel_bf16"),
    "score_scope": ("block", "masked", "generated"),
    "normalize_over": ("allowed", "all"),
    "record": ("none", "trajectory", "full"),
}
#: The longest decode that commit_step, an int16, can number.
MOST_STEPS = 32767


def check_number(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raises unless ``value`` is a finite number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value) or not low <= value <= high:
        bounds = f"at least {low}" if high == math.inf else f"in [{low}, {high}]"
        raise ValueError(f"{name}={value} must be {bounds}")


def _check_integer(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < low:
        raise ValueError(f"{name}={value} must be at least {low}")


def check_config(config: DecodeConfig) -> None:
    """Raises TypeError or ValueError for the first thing that is wrong with a configuration."""
    for name, choices in CHOICES.items():
        if getattr(config, name) not in choices:
            raise ValueError(f"{name}={getattr(config, name)!r}: choose one of {', '.join(choices)}")
    if config.cache is not None:
        raise ValueError(f"cache={config.cache!r}: key-value caches are not available yet; set cache=None")
    _check_lengths(config)
    _check_selection(config)
    _check_sampling(config)
    _check_running(config)


def _check_lengths(config: DecodeConfig) -> None:
    _check_integer("gen_length", config.gen_length, 0)
    parse_schedule(config.schedule)
    for name in ("steps", "block_length", "num_blocks"):
        if getattr(config, name) is not None:
            _check_integer(name, getattr(config, name), 1)
    if config.gen_length > MOST_STEPS or (config.steps or 0) > MOST_STEPS:
        raise ValueError(
            f"gen_length={config.gen_length}, steps={config.steps}: at most {MOST_STEPS} steps can be numbered"
        )
    if config.block_length is not None and config.num_blocks is not None:
        raise ValueError(
            f"block_length={config.block_length} and num_blocks={config.num_blocks} both set the blocks: give one"
        )
    if config.gen_length == 0:
        if config.block_length is not None or config.num_blocks not in (None, 1):
            raise ValueError(
                "gen_length=0 fills the masks of the input as one block: leave block_length and num_blocks out"
            )
        paced = config.eoser is not None or config.select in ("quota", "quota_threshold", "origin")
        if config.steps is None and paced:
            raise ValueError("gen_length=0 has no length to derive the number of steps from: give steps")
    elif config.schedule == "ass":
        _check_ascending(config)
    else:
        _check_blocks(config)


def _check_blocks(config: DecodeConfig) -> None:
    if (config.num_blocks or 1) > config.gen_length:
        raise ValueError(f"num_blocks={config.num_blocks} is more than gen_length={config.gen_length}")
    sizes = config.block_sizes()
    if config.num_blocks is not None and len(sizes) != config.num_blocks:
        raise ValueError(
            f"num_blocks={config.num_blocks} does not fit gen_length={config.gen_length}: equal blocks and a shorter "
            f"last one make {len(sizes)}; set block_length instead"
        )
    scheduled = config.select in ("quota", "quota_threshold", "origin")
    if config.steps is not None and scheduled and config.steps % len(sizes):
        raise ValueError(
            f"steps={config.steps} must be a multiple of the number of blocks, {len(sizes)}: steps counts all blocks "
            f"together and each gets the same share"
        )


def _check_ascending(config: DecodeConfig) -> None:
    if config.block_length is not None:
        raise ValueError(
            f"block_length={config.block_length}: schedule='ass' sets its block sizes; give num_blocks instead"
        )
    steps = ass_steps(config.gen_length)
    ass_layout(config.gen_length, config.num_blocks or 1)
    if config.steps not in (None, steps):
        raise ValueError(
            f"steps={config.steps}: schedule='ass' takes floor(log2(gen_length)) = {steps} steps for "
            f"gen_length={config.gen_length}; leave steps out"
        )
    if config.select not in ("quota", "quota_threshold"):
        raise ValueError(f"select={config.select!r} does not follow schedule='ass': choose select='quota'")


def _check_selection(config: DecodeConfig) -> None:
    rule = config.select
    needs = {"threshold": ("threshold", "quota_threshold"), "factor": ("factor",), "entropy_bound": ("entropy_bound",)}
    for parameter, rules in needs.items():
        value = getattr(config, parameter)
        if rule in rules and value is None:
            raise ValueError(f"select={rule!r} needs {parameter}: give {parameter}=")
        if rule not in rules and value is not None:
            raise ValueError(f"{parameter}={value} has no effect with select={rule!r}: set select={rules[0]!r}")
        if value is not None:
            check_number(parameter, value, -math.inf if parameter == "threshold" else 0)
    if rule == "factor" and config.confidence != "prob":
        raise ValueError(f"select='factor' compares probabilities: set confidence='prob', not {config.confidence!r}")
    if rule == "entropy_bound" and config.confidence != "neg_entropy":
        raise ValueError(
            f"select='entropy_bound' ranks by entropy: set confidence='neg_entropy', not {config.confidence!r}"
        )
    if rule in ("threshold", "quota_threshold") and config.confidence == "random":
        raise ValueError(
            "a threshold on confidence='random' means nothing: choose another confidence or select='quota'"
        )
    if rule == "origin" and config.schedule != "dream":
        raise ValueError(f"select='origin' uses Dream's times: set schedule='dream', not {config.schedule!r}")
    check_number("alg_temp", config.alg_temp, 0)
    if config.alg_temp and rule != "quota":
        raise ValueError(f"alg_temp={config.alg_temp} draws the schedule's number: set select='quota', not {rule!r}")
    if config.remasking is not None:
        if rule != "quota":
            raise ValueError(f"remasking follows a schedule: set select='quota', not {rule!r}")
        if config.alg_temp:
            raise ValueError(
                f"alg_temp={config.alg_temp} has no effect with remasking, which fills every mask: set it to 0"
            )
    if config.eoser is not None and (rule in ("origin", "entropy_bound") or config.confidence == "random"):
        raise ValueError(
            f"eoser discounts a confidence that select={rule!r} with confidence={config.confidence!r} ignores: "
            f"remove eoser, or set select='quota' and confidence='prob'"
        )


def _check_sampling(config: DecodeConfig) -> None:
    temperatures = config.temperature if isinstance(config.temperature, tuple) else (config.temperature,)
    for value in temperatures:
        check_number("temperature", value, 0)
    if config.top_k is not None:
        _check_integer("top_k", config.top_k, 1)
    if config.top_p is not None:
        check_number("top_p", config.top_p, 0, 1)
        if config.top_p == 0:
            raise ValueError("top_p=0 leaves no token: use temperature=0 for the best one")
    check_number("cfg_scale", config.cfg_scale, 0)
    if config.sampler == "gumbel_bf16":
        for name in ("top_k", "top_p", "cfg_scale", "logits_hook", "cuda_graph"):
            if getattr(config, name):
                raise ValueError(
                    f"sampler='gumbel_bf16' repeats a released draw that knows no {name}, got "
                    f"{name}={getattr(config, name)!r}: leave it out, or set sampler='exact'"
                )
    if config.vocab_limit is not None:
        _check_integer("vocab_limit", config.vocab_limit, 1)
    for token in config.forbid_ids:
        if token < 0:
            raise ValueError(f"forbid_ids holds {token}: token ids are not negative")
    if config.seed is not None:
        if isinstance(config.seed, bool) or not isinstance(config.seed, int):
            raise TypeError(f"seed must be an integer, got {config.seed!r}")
        if config.seeds is not None:
            raise ValueError("seed and seeds both set the random numbers: give one of them")
    if config.seeds is not None and config.row_ids is not None:
        raise ValueError("row_ids names rows for seed; seeds already gives every row its own: give one of them")
    if config.smc is not None and config.smc.particles > 1:
        if max(temperatures, default=1) == 0:
            raise ValueError("smc with temperature=0 decodes equal particles: set a temperature above 0")
        if config.max_batch is not None and config.max_batch < config.smc.particles:
            raise ValueError(
                f"max_batch={config.max_batch} is below smc.particles={config.smc.particles}: the particles of a row "
                f"run together; raise max_batch"
            )


def _check_running(config: DecodeConfig) -> None:
    _check_integer("num_return_sequences", config.num_return_sequences, 1)
    if config.max_batch is not None:
        _check_integer("max_batch", config.max_batch, 1)
    for text in config.stop_strings:
        if not isinstance(text, str) or not text:
            raise ValueError(f"stop_strings holds {text!r}: give non-empty strings")
    for name in ("logits_hook", "token_hook"):
        if getattr(config, name) is not None and not callable(getattr(config, name)):
            raise TypeError(f"{name} must be callable, got {getattr(config, name)!r}")
    streamer = config.streamer
    if streamer is not None and not callable(streamer) and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise TypeError(f"streamer must be callable or have put and end, got {streamer!r}")
    if config.cuda_graph:
        _check_captured(config)


def _check_captured(config: DecodeConfig) -> None:
    """A captured step runs without the host, on all rows at once."""
    for name in ("logits_hook", "token_hook", "streamer", "progress", "stop_strings", "smc", "max_batch"):
        value = getattr(config, name)
        if value is not None and value is not False and value != ():
            raise ValueError(
                f"cuda_graph=True replays steps without the host, so {name}={value!r} cannot be: leave it out"
            )
    if config.record == "full" or config.score_scope != "block":
        raise ValueError(
            f"cuda_graph=True scores the rows that can be chosen and records commits: set record='trajectory' and "
            f"score_scope='block', not {config.record!r} and {config.score_scope!r}"
        )
