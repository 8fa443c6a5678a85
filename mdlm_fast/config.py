"""What to decode and how: `DecodeConfig` and its parts. A bad combination fails when it is constructed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from mdlm_fast.config_checks import check_config, check_number
from mdlm_fast.presets import PRESETS
from mdlm_fast.schedules import ass_layout

#: Rules that reveal a number of tokens a schedule fixes in advance. The others decide from the scores, and at least one
#: token is revealed a step.
QUOTA_RULES = ("quota", "origin")


@dataclass(frozen=True)
class EOSER:
    """EOS early rejection (arXiv 2509.23924): confidence is discounted where the token is an end-of-sequence token.

    The factor grows from g_min to g_max over the steps; tokens and recorded log-probabilities are untouched.

    Args:
        g_min: factor at the first step, in [0, 1]; None means 0.4, or 0.01 with the "ass" schedule. At 0 the token
            ranks last and is still a candidate.
        g_max: factor at the last step, in [g_min, 1].
        eos_index: "global" counts steps over all blocks; "block" restarts in each block over the same total, as the
            published evaluation does. The "ass" schedule is always global.
        eos_ids: ids to discount; None means the model's end-of-sequence ids.
    """

    g_min: float | None = None
    g_max: float = 1.0
    eos_index: str = "global"
    eos_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.g_min is not None:
            check_number("EOSER.g_min", self.g_min, 0, 1)
        check_number("EOSER.g_max", self.g_max, 0, 1)
        if self.g_min is not None and self.g_min > self.g_max:
            raise ValueError(
                f"EOSER.g_min={self.g_min} is above g_max={self.g_max}: the factor grows from g_min to g_max"
            )
        if self.eos_index not in ("global", "block"):
            raise ValueError(f"EOSER.eos_index={self.eos_index!r}: choose 'global' or 'block'")
        if self.eos_ids is not None:
            ids = (self.eos_ids,) if isinstance(self.eos_ids, int) else tuple(int(i) for i in self.eos_ids)
            if not ids or min(ids) < 0:
                raise ValueError(f"EOSER.eos_ids={self.eos_ids}: give at least one token id, none negative")
            object.__setattr__(self, "eos_ids", ids)


@dataclass(frozen=True)
class RCR:
    """Running confidence remasking (MDPO, arXiv 2508.13148).

    Each step fills every mask up to the active block's end, then masks the least confident tokens again until the
    number of masks is the schedule's.

    Args:
        running: "last" ranks a token by the confidence of its last fill, as released; "max" by its highest so far.
        scope: "block" masks again within the active block only; "canvas" anywhere decoding has written, as released.
    """

    running: str = "last"
    scope: str = "block"

    def __post_init__(self) -> None:
        if self.running not in ("last", "max"):
            raise ValueError(f"RCR.running={self.running!r}: choose 'last' or 'max'")
        if self.scope not in ("block", "canvas"):
            raise ValueError(f"RCR.scope={self.scope!r}: choose 'block' or 'canvas'")


@dataclass(frozen=True)
class SMC:
    """Self-rewarding sequential Monte Carlo: particles of a prompt, resampled at block ends.

    Args:
        particles: decoded per sequence; 1 is plain decoding. The one with the largest total log-probability is
            returned.
        resampling: "systematic", or "multinomial" as published.
        threshold: resample when the effective sample size is below this share of the particles.
    """

    particles: int = 4
    resampling: str = "systematic"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.particles, int) or self.particles < 1:
            raise ValueError(f"SMC.particles={self.particles!r} must be an integer of at least 1")
        if self.resampling not in ("systematic", "multinomial"):
            raise ValueError(f"SMC.resampling={self.resampling!r}: choose 'systematic' or 'multinomial'")
        check_number("SMC.threshold", self.threshold, 0, 1)


@dataclass(frozen=True)
class DecodeConfig:
    """How to decode. See docs/decoding.md for a tour; every field has a default.

    Canvas and schedule:
        gen_length: masks appended to each prompt; 0 fills the masks already in the input, nothing else.
        steps: denoising steps over ALL blocks, as LLaDA counts them; every block gets steps / blocks. None: one step a
            token, or floor(log2 gen_length) for "ass". With select "threshold", "factor" or "entropy_bound" the number
            of steps follows from the scores, and `steps` only sets the pace of EOSER.
        block_length | num_blocks: cut the generated part into blocks decoded left to right; default one block. The last
            block may be shorter. "ass" has its own block sizes and takes num_blocks only.
        schedule: "uniform", "ass", "cosine", "linear", "pow<x>", "log", "exp" or "dream".
    Which positions:
        select: "quota" (the schedule's number), "threshold", "factor", "entropy_bound", "quota_threshold" (LLaDA2) or
            "origin" (Dream: positions at random), with `threshold`, `factor` or `entropy_bound` as its parameter.
        confidence: "prob", "margin", "neg_entropy" or "random"; confidence_from: "raw" or "tempered".
        alg_temp: above 0, positions are drawn with weights exp(confidence / alg_temp) instead of ranked (Dream).
        eoser, remasking, smc: see EOSER, RCR, SMC.
    Which tokens:
        temperature: 0 is greedy; a number, or one per prompt. top_k, top_p restrict the tempered distribution.
        cfg_scale: classifier-free guidance, (s + 1) conditional - s unconditional; every given token is masked in the
            unconditional canvas.
        sampler: "exact" draws from softmax(logits / temperature); "gumbel_bf16" repeats the truncated draw of released
            RL rollouts (see mdlm_fast.bf16_race).
        forbid_ids: ids never produced (the mask id always is one); vocab_limit: ids at or above it are not either.
        normalize_over: "allowed" normalises over the ids that may be produced, "all" over the whole vocabulary as the
            published decoders do.
        seed | seeds | row_ids: row r draws from the seed of (seed, row_ids[r]), default its index, or from seeds[r].
            None: a seed from torch's global generator.
    Running:
        num_return_sequences: sequences per prompt. max_batch: rows decoded at a time; waiting rows take freed places.
        stop_at_eos: a row ends once an end token is committed and no mask precedes it; stop_strings: once its text
            holds one of them. What is left of the row is filled with EOS.
        score_scope: positions that are scored: "block", "masked" or "generated". Only those of the active block can be
            committed.
        record: "none", "trajectory", or "full" (also every step's predictions and confidences).
        cuda_graph: capture whole steps in CUDA graphs and replay them (see mdlm_fast.captured). Nothing may then look
            on: no hooks, streamer, progress, stop_strings, smc, max_batch or record="full".
        cache: None. logits_hook(state, rows, logits) -> logits, token_hook(state) -> canvas or None, streamer,
            progress: see mdlm_fast.decode.generate.
    """

    gen_length: int = 128
    steps: int | None = None
    block_length: int | None = None
    num_blocks: int | None = None
    schedule: str = "uniform"
    select: str = "quota"
    threshold: float | None = None
    factor: float | None = None
    entropy_bound: float | None = None
    confidence: str = "prob"
    confidence_from: str = "raw"
    temperature: float | tuple[float, ...] = 0.0
    top_k: int | None = None
    top_p: float | None = None
    sampler: str = "exact"
    alg_temp: float = 0.0
    eoser: EOSER | None = None
    remasking: RCR | None = None
    cfg_scale: float = 0.0
    smc: SMC | None = None
    cache: str | None = None
    score_scope: str = "block"
    num_return_sequences: int = 1
    max_batch: int | None = None
    stop_at_eos: bool = False
    stop_strings: tuple[str, ...] = ()
    forbid_ids: tuple[int, ...] = ()
    vocab_limit: int | None = None
    normalize_over: str = "allowed"
    seed: int | None = None
    seeds: tuple[int, ...] | None = None
    row_ids: tuple[int, ...] | None = None
    record: str = "trajectory"
    logits_hook: Any = None
    token_hook: Any = None
    streamer: Any = None
    progress: bool = False
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        put = object.__setattr__
        for name, kind in (("eoser", EOSER), ("remasking", RCR), ("smc", SMC)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"{name} must be None or mdlm_fast.{kind.__name__}(...), got {value!r}")
        put(self, "forbid_ids", () if self.forbid_ids is None else self.forbid_ids)
        if isinstance(self.temperature, (Tensor, Sequence)) and not isinstance(self.temperature, str):
            put(self, "temperature", tuple(float(t) for t in _items(self.temperature)))
        for name in ("seeds", "row_ids", "forbid_ids"):
            value = getattr(self, name)
            if value is not None:
                put(self, name, tuple(int(i) for i in _items(value)))
        strings = self.stop_strings
        put(self, "stop_strings", (strings,) if isinstance(strings, str) else tuple(strings or ()))
        put(self, "alg_temp", 0.0 if self.alg_temp is None else self.alg_temp)
        check_config(self)

    @property
    def fixed_steps(self) -> bool:
        """Whether the number of steps is known before decoding."""
        return self.select in QUOTA_RULES

    @property
    def samples(self) -> bool:
        """Whether any row draws its tokens instead of taking the best."""
        return max(self.temperature, default=0) > 0 if isinstance(self.temperature, tuple) else self.temperature > 0

    def block_sizes(self) -> list[int]:
        """Sizes of the blocks of the generated part, left to right; [0] when gen_length is 0."""
        if self.schedule == "ass" and self.gen_length > 0:
            return [size for size, _ in ass_layout(self.gen_length, self.num_blocks or 1)]
        if self.gen_length == 0:
            return [0]
        length = self.block_length or math.ceil(self.gen_length / (self.num_blocks or 1))
        count = math.ceil(self.gen_length / length)
        return [min(length, self.gen_length - block * length) for block in range(count)]

    def blocks(self) -> list[tuple[int, int]]:
        """Blocks as (size, steps), left to right. Steps are the schedule's; rules that decide from the scores end a
        block when it holds no mask."""
        if self.schedule == "ass" and self.gen_length > 0:
            return ass_layout(self.gen_length, self.num_blocks or 1)
        sizes = self.block_sizes()
        if self.steps is None:
            return [(size, max(1, *sizes)) for size in sizes]
        if self.select in ("threshold", "factor", "entropy_bound"):
            return [(size, self.steps) for size in sizes]
        return [(size, self.steps // len(sizes)) for size in sizes]

    @property
    def total_steps(self) -> int:
        """Steps over all blocks: what EOSER's factor is spread over, and with `fixed_steps` the length of a decode."""
        if self.steps is not None:
            return self.steps
        return sum(steps for _, steps in self.blocks())

    def replace(self, **overrides: Any) -> DecodeConfig:
        """A copy with some fields changed, checked again. Setting one of block_length and num_blocks clears the other,
        and so it is for seed and seeds."""
        known = {field.name for field in fields(self)}
        unknown = sorted(set(overrides) - known)
        if unknown:
            raise TypeError(f"DecodeConfig has no field {unknown[0]!r}; it has {', '.join(sorted(known))}")
        values = {name: getattr(self, name) for name in known}
        for one, other in (("block_length", "num_blocks"), ("seed", "seeds")):
            for name, rival in ((one, other), (other, one)):
                if overrides.get(name) is not None and rival not in overrides:
                    values[rival] = None
        return DecodeConfig(**{**values, **overrides})

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> DecodeConfig:
        """A published decoder's settings with some fields changed. See `mdlm_fast.presets.PRESETS` for the names."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(sorted(PRESETS))}")
        parts = {"eoser": EOSER, "remasking": RCR, "smc": SMC}
        values = {field: parts[field](**value) if field in parts else value for field, value in PRESETS[name].items()}
        return cls(**{**_without_rivals(values, overrides), **overrides})


def _without_rivals(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A preset's values without the field that the caller replaces by its alternative."""
    rivals = {"block_length": "num_blocks", "num_blocks": "block_length"}
    return {name: value for name, value in values.items() if overrides.get(rivals.get(name, "")) is None}


def _items(value: Any) -> list[Any]:
    if isinstance(value, Tensor):
        return value.reshape(-1).tolist()
    return [value] if isinstance(value, (int, float)) else list(value)
