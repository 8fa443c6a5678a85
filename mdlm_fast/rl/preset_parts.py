"""What pairs of presets are made of, and what several released trainers have in common.

A `Setting` is a field of the method's config with the value that repeats the released code and the corrected one. A
`Behaviour` is no setting: both presets do the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Setting:
    """name: a field of the config, "decoder_overrides.x" of the decoder's, or "lora.x" an argument of `lora_config`."""

    name: str
    released: Any
    ours: Any
    why: str


@dataclass(frozen=True)
class Behaviour:
    """What the released code does and both presets do otherwise, in words."""

    what: str
    released: str
    ours: str
    why: str


@dataclass(frozen=True)
class Pair:
    """A preset and its released counterpart.

    source: paper and repository. trainer: name in `mdlm_fast.rl`. settings: fields of the config that both have. lora:
    arguments of `lora_config` that both have; None: the whole model is trained.
    """

    name: str
    source: str
    trainer: str
    settings: dict[str, Any]
    differences: tuple[Setting | Behaviour, ...]
    lora: dict[str, Any] | None = field(default=None)


NORMALISER = Setting(
    "decoder_overrides.normalize_over",
    "all",
    "allowed",
    "the policy never draws the mask token, nor ids without a token, so its log-probs leave them out",
)
MICRO_BATCH = Setting(
    "loss_normalization",
    "micro_batch",
    "optimizer_step",
    "a token counts the same in every micro-batch, however many tokens it has, and the result does not depend on how a "
    "batch is cut",
)
RACE = Setting(
    "decoder_overrides.sampler",
    "gumbel_bf16",
    "exact",
    "noise from bfloat16 uniforms ends at 5.5 and never draws a token further below the best; the exact draw explores "
    "more at the same temperature, so lower it, or set top_p, if rewards fall",
)
DROPOUT = (
    Setting("lora.dropout", 0.05, 0.0, "dropout makes the ratio of new to old policy noise, from the first update on"),
    Setting("disable_dropout", False, True, "the same"),
    Behaviour(
        "dropout in rollouts and reference passes", "on", "off there in both", "the policy that acts has no dropout"
    ),
)
LORA_TARGETS = Setting(
    "lora.targets",
    "paper",
    "all",
    "the published list of seven names matches q, k, v and up only on LLaDA, whose other matrices have other names",
)
TEMPERATURE = Setting(
    "logp_temperature",
    1.0,
    None,
    "log-probs are those of the distribution that drew the tokens: divided by the rollout's temperature",
)
BFLOAT16 = Behaviour(
    "precision of log-probs and confidences",
    "softmax in bfloat16",
    "float32 in both",
    "bfloat16 moves a ratio by up to 3%, and ties all confidences above 0.998",
)
CUT_PROMPTS = Behaviour(
    "long prompts",
    "cut to 200 tokens (MDPO: to 320)",
    "refused where they do not fit the model, or above max_prompt_length",
    "a part of a prompt is another question",
)
PADS = Behaviour(
    "pads on the left of short prompts",
    "attended to",
    "masked, positions count real tokens",
    "no difference while a batch holds one prompt, as released; otherwise they change every result",
)
MASK_DRAWN = Behaviour(
    "the mask token",
    "can be drawn; the position then stays masked and is not trained on",
    "never drawn",
    "it takes up a commit and leaves holes in the completion",
)
SYNC = Behaviour(
    "sync_ref_model under LoRA",
    "set, and without effect",
    "off",
    "a reference that is the model without its adapter cannot follow; reference='adapter' can",
)
ALL_TOKENS = Setting(
    "completion_tokens",
    "all",
    "first_eos",
    "the filler behind the first EOS is no part of the answer, and may be most of the tokens",
)
LOADED = Behaviour("base model", "4-bit", "as it is loaded", "quantisation is a choice of the caller")
STD = Behaviour(
    "advantage",
    "the figure divides by the group's standard deviation, the code does not",
    "as the code (scale_rewards='none')",
    "what the published results were trained with",
)
#: Of the optimizer, in the configs of d1 and of what came from it.
ADAM = {"adam_beta2": 0.99, "weight_decay": 0.1, "max_grad_norm": 0.2, "warmup_steps": 1e-4}
D1_FORK = (RACE, NORMALISER, MICRO_BATCH, *DROPOUT, LORA_TARGETS)
D1_BEHAVIOUR = (BFLOAT16, STD, MASK_DRAWN, PADS, CUT_PROMPTS, SYNC)
