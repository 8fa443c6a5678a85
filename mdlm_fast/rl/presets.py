"""Presets in pairs: `*-paper` repeats a released trainer's behaviour, the other is the same run with its errors
corrected.

The numbers are for models of 8 billion parameters, as published. What differs within a pair, and why, is in
`mdlm_fast.rl.preset_d1` and `preset_others` and, as a table made by this module, in docs/rl_presets.md:

    python -m mdlm_fast.rl.presets docs/rl_presets.md
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdlm_fast.rl import preset_d1, preset_others
from mdlm_fast.rl.preset_parts import Behaviour, Pair, Setting

if TYPE_CHECKING:
    from mdlm_fast.rl.trainer import MaskedDiffusionTrainer


@dataclass(frozen=True)
class Preset:
    """A method with its settings.

    Attributes:
        name, source: its name, and the paper and code it is of.
        trainer: name of the trainer in `mdlm_fast.rl`.
        settings: fields of the trainer's config.
        lora: keyword arguments of `mdlm_fast.rl.lora.lora_config`; None: the whole model is trained.
    """

    name: str
    source: str
    trainer: str
    settings: Mapping[str, Any]
    lora: dict[str, Any] | None


def preset(name: str, **overrides: Any) -> tuple[type[MaskedDiffusionTrainer], dict[str, Any]]:
    """The trainer's class and the keyword arguments of its config (`trainer.config_class(**kwargs)`).

    overrides: fields of the config; those of `decoder_overrides` are added to the preset's.

    Raises:
        ValueError: there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    import mdlm_fast.rl

    chosen = PRESETS[name]
    settings = copy.deepcopy(dict(chosen.settings))
    if "decoder_overrides" in overrides:
        added = overrides["decoder_overrides"] or {}
        overrides = {**overrides, "decoder_overrides": {**settings.get("decoder_overrides", {}), **added}}
    return getattr(mdlm_fast.rl, chosen.trainer), {**settings, **overrides}


def _make(pair: Pair, *, released: bool) -> Preset:
    parts: dict[str, dict[str, Any]] = {
        "": copy.deepcopy(pair.settings),
        "lora": dict(pair.lora or {}),
        "decoder_overrides": copy.deepcopy(pair.settings.get("decoder_overrides", {})),
    }
    for difference in pair.differences:
        if isinstance(difference, Setting):
            part, _, field = difference.name.rpartition(".")
            parts[part][field] = difference.released if released else difference.ours
    settings = parts[""]
    if parts["decoder_overrides"]:
        settings["decoder_overrides"] = parts["decoder_overrides"]
    name = f"{pair.name}-paper" if released else pair.name
    return Preset(name, pair.source, pair.trainer, settings, parts["lora"] or None)


PAIRS = (*preset_d1.PAIRS, *preset_others.PAIRS)
#: Every preset by name.
PRESETS: dict[str, Preset] = {
    made.name: made for pair in PAIRS for made in (_make(pair, released=False), _make(pair, released=True))
}


# ---- the table -----------------------------------------------------------------------------------------------------

_INTRODUCTION = """# Presets of the trainers

Made by `python -m mdlm_fast.rl.presets docs/rl_presets.md` from what `mdlm_fast/rl/preset_d1.py` and
`preset_others.py` say; do not edit.

`trainer, settings = mdlm_fast.rl.presets.preset("cj-grpo", output_dir="run")` gives the trainer's class and the fields
of its config. A preset named `*-paper` repeats what the released code does, the one without that ending corrects it.
For every pair, the first table lists the settings in which the two differ, the second what is no setting: there both
presets do the same.

In all methods, which positions a step commits is no part of the policy's log-prob, only which tokens.
"""


def table() -> str:
    """docs/rl_presets.md, in Markdown."""
    return "\n".join([_INTRODUCTION, *(_section(pair) for pair in PAIRS)])


def _section(pair: Pair) -> str:
    settings = [d for d in pair.differences if isinstance(d, Setting)]
    behaviours = [d for d in pair.differences if isinstance(d, Behaviour)]
    both = {**pair.settings, **{f"lora.{name}": value for name, value in (pair.lora or {}).items()}}
    lines = [
        f"## {pair.name}",
        "",
        f"{pair.source}. `{pair.trainer}`, {'LoRA' if pair.lora else 'the whole model is trained'}. Both presets: "
        + ", ".join(f"{name} {_value(value)}" for name, value in both.items())
        + ".",
        "",
        f"| setting | `{pair.name}-paper` | `{pair.name}` | why |",
        "|---|---|---|---|",
        *(_row(d.name, _value(d.released), _value(d.ours), d.why) for d in settings),
        "",
        "| no setting | released code | both presets | why |",
        "|---|---|---|---|",
        *(_row(d.what, d.released, d.ours, d.why) for d in behaviours),
        "",
    ]
    return "\n".join(lines)


def _row(*cells: str) -> str:
    escaped = [cell.replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _value(value: Any) -> str:
    return f"`{json.dumps(value)}`"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(table(), encoding="utf-8")
