"""Recipe: what `mdlm-fast train` and `mdlm-fast estimate` are told, by a preset, a YAML file and the command line."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from mdlm_fast.rl.config import RLConfig
from mdlm_fast.rl.lora import PRESETS as LORA_TARGETS
from mdlm_fast.rl.presets import PRESETS, preset
from mdlm_fast.rl.trainer import MaskedDiffusionTrainer
from mdlm_fast.tasks import get_task

BUILTIN = "builtin:puzzles"
_PATHS = ("data", "eval_data", "accelerate")
#: Sudoku and Countdown problems that are generated where the recipe does not say how many.
GENERATED_PROMPTS = 1024
#: Presets are for models of 8 billion parameters. For builtin:puzzles these settings take the place of theirs.
BUILTIN_DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 64,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": None,
    "num_generations": 8,
    "num_iterations": 2,
    "max_completion_length": 24,
    "block_length": None,
    "learning_rate": 5e-5,
    "lr_scheduler_type": "constant",
    "lr_scheduler_kwargs": None,
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "max_steps": 24,
    "logging_steps": 1,
    "save_steps": 8,
}
#: And its decoder takes the place of "llada", which would need a forward pass for each of 24 tokens; others, but for
#: ASS, whose number follows from the length, get as many steps as here.
BUILTIN_DECODER, BUILTIN_STEPS = "eoser-ass", 4


@dataclass(frozen=True)
class Recipe:
    """A training run.

    Attributes:
        preset: name in `mdlm_fast.rl.presets`.
        model: builtin:puzzles, a checkpoint folder, or a hub id. dtype: of its weights; None: the checkpoint's.
        task: "sudoku", "countdown", "gsm8k" or "math500".
        lora: "none", a name of `mdlm_fast.rl.lora.PRESETS`, or a dict of "targets", "r", "alpha" and other arguments of
            `lora_config`. None: the preset's; for builtin:puzzles "none".
        data: JSON-lines file of training problems; None: Sudoku and Countdown are generated.
        eval_data: JSON-lines file of held-out problems; None: those that come with the package, if any.
        prompts: training problems to generate, or the first so many of `data`.
        eval_prompts: the first so many held-out problems; None: all.
        accelerate: the `accelerate launch` config the recipe is written for; for plans and estimates.
        args: fields of the method's config.
    """

    preset: str = "cj-grpo"
    model: str = BUILTIN
    task: str = "sudoku"
    dtype: str | None = None
    lora: str | dict[str, Any] | None = None
    data: str | None = None
    eval_data: str | None = None
    prompts: int | None = None
    eval_prompts: int | None = None
    accelerate: str | None = None
    args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is unknown; choose one of {', '.join(PRESETS)}")
        get_task(self.task)
        if self.lora is not None and not isinstance(self.lora, (str, dict)):
            raise ValueError(f"lora={self.lora!r}: write none, a name of targets, or a mapping of targets, r, alpha")
        for name in ("prompts", "eval_prompts"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1")

    @classmethod
    def read(cls, path: str | Path | None = None, **changes: Any) -> Recipe:
        """A recipe from a YAML file, with changes that are not None; `args` are merged.

        Raises:
            FileNotFoundError: there is no such file. ValueError: it is no YAML, or names something unknown.
        """
        values = {} if path is None else _read_yaml(Path(path))
        args = {**values.pop("args", {}), **(changes.pop("args", None) or {})}
        values |= {name: value for name, value in changes.items() if value is not None}
        return cls(**values, args=args)

    @property
    def builtin(self) -> bool:
        """Whether the model is the small one inside the package."""
        return self.model == BUILTIN

    @property
    def trainer_class(self) -> type[MaskedDiffusionTrainer]:
        """The method's trainer."""
        return preset(self.preset)[0]

    def config_values(self) -> dict[str, Any]:
        """Fields of the method's config: the preset's, for builtin:puzzles its defaults, then the recipe's own.

        Raises:
            ValueError: a field that the config does not have, or a value of another kind.
        """
        trainer, values = preset(self.preset)
        check_fields(trainer.config_class, self.args)
        if self.builtin:
            values |= BUILTIN_DEFAULTS
            if values.get("decoder") == "llada":
                values["decoder"] = BUILTIN_DECODER
            decoder = str(self.args.get("decoder", values.get("decoder")))
            values["diffusion_steps"] = None if decoder.endswith("ass") else BUILTIN_STEPS
        return {**values, **self.args}

    def adapter(self) -> dict[str, Any] | None:
        """Arguments of `lora_config`, "targets" among them; None: the whole model is trained.

        Raises:
            ValueError: unknown targets.
        """
        own = PRESETS[self.preset].lora
        if self.lora == "none" or (self.lora is None and (self.builtin or own is None)):
            return None
        chosen = {"targets": self.lora} if isinstance(self.lora, str) else self.lora
        options = {"targets": "all", **(own or {}), **(chosen or {})}
        if isinstance(options["targets"], str) and options["targets"] not in LORA_TARGETS:
            raise ValueError(f"lora={options['targets']!r}: choose one of none, {', '.join(LORA_TARGETS)}")
        return options

    def to_yaml(self) -> str:
        """The recipe as a YAML file that `read` reads."""
        values = asdict(self)
        for name in _PATHS:
            values[name] = values[name] and str(Path(values[name]).resolve())
        return yaml.safe_dump({name: v for name, v in values.items() if v not in (None, {})}, sort_keys=False)


def check_fields(config_class: type[RLConfig], values: Mapping[str, Any]) -> None:
    """Raises ValueError for a value whose field `config_class` does not have, or which is of another kind."""
    known = {f.name: f for f in fields(config_class) if f.init}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{name!r} is not a field of {config_class.__name__}{_similar(name, list(known))}")
        default = known[name].default
        if isinstance(default, bool) and not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} must be true or false")
        if isinstance(default, (int, float)) and isinstance(value, (str, list, dict)):
            raise ValueError(f"{name}={value!r} must be a number")


def _similar(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


class _Loader(yaml.SafeLoader):
    """YAML whose numbers are as in version 1.2: 3e-6 is a number here too."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, UnicodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping with preset, model, task, args, ...")
    known = [f.name for f in fields(Recipe)]
    for name in values:
        if name not in known:
            raise ValueError(f"{path}: {name!r} is unknown{_similar(str(name), known)}; it can hold {', '.join(known)}")
    if not isinstance(values.setdefault("args", {}) or {}, dict):
        raise ValueError(f"{path}: args must be a mapping of config fields")
    values["args"] = values["args"] or {}
    for name in _PATHS:  # beside the file
        if values.get(name) is not None:
            values[name] = os.path.normpath(path.parent / str(values[name]))
    return values
