"""Plan: what a recipe comes to, before any weight is loaded: batches, forward passes, memory."""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from mdlm_fast.models.checkpoint import read_json
from mdlm_fast.models.hub import download_config, is_hub_id
from mdlm_fast.models.loading import BUILTIN, built_in_folder
from mdlm_fast.rl.config import RLConfig
from mdlm_fast.rl.data import check_group_sizes
from mdlm_fast.rl.estimate import Adapter, Estimate, ModelShape, Settings, estimate
from mdlm_fast.rl.recipe import GENERATED_PROMPTS, Recipe
from mdlm_fast.rl.task_data import task_dataset
from mdlm_fast.tasks import get_task

#: Shapes that need no file: by a short name, and by how the hub ids of such checkpoints begin.
SHAPES: dict[str, tuple[str, ModelShape]] = {
    "llada-8b": ("GSAI-ML/LLaDA-8B", ModelShape(32, 4096, 12288, 32, 32, 128, 126464)),
    "dream-7b": ("Dream-org/Dream-v0", ModelShape(28, 3584, 18944, 28, 4, 128, 152064, qkv_bias=True)),
}
#: Of the estimator, by the trainer's name.
_METHODS = {
    "CJGRPOTrainer": "cj-grpo",
    "MDPOTrainer": "mdpo",
    "OneStepGRPOTrainer": "one-step-grpo",
    "DiffuGRPOTrainer": "diffu-grpo",
    "CoupledGRPOTrainer": "coupled-grpo",
    "TraceTrainer": "trace",
    "DMPOTrainer": "dmpo",
}
_SHARDING = {"FSDP": "fsdp", "DEEPSPEED": "zero2"}
#: Positions of a prompt where the config sets no limit: of the built-in model's longest, and of a usual question.
BUILTIN_PROMPT, USUAL_PROMPT = 18, 256


@dataclass(frozen=True)
class Launch:
    """processes: of the run. sharding: "none", "zero2" or "fsdp". command: how to start the run."""

    processes: int
    sharding: str
    command: str

    @classmethod
    def of(cls, recipe: Recipe, processes: int | None = None) -> Launch:
        """From the recipe's accelerate config, or the processes that this one was launched with.

        Raises:
            FileNotFoundError, ValueError: the accelerate config."""
        if recipe.accelerate is None:
            return cls(processes or int(os.environ.get("WORLD_SIZE", "1")), "none", "mdlm-fast train")
        with open(recipe.accelerate, encoding="utf-8") as file:
            values = yaml.safe_load(file)
        if not isinstance(values, dict) or "distributed_type" not in values:
            raise ValueError(f"{recipe.accelerate} is no config of accelerate: it has no distributed_type")
        return cls(
            processes or int(values.get("num_processes", 1)),
            _SHARDING.get(str(values["distributed_type"]), "none"),
            f"accelerate launch --config_file {recipe.accelerate} -m mdlm_fast.cli train",
        )


@dataclass(frozen=True)
class Plan:
    """What a recipe comes to.

    completions: of a rollout, over all processes; prompts: that it takes; problems: training problems there are, None
    where the recipe names no file for a task that needs one. updates: optimizer steps on each rollout.
    rollout_forwards: model calls of a rollout, None where it ends when the scores say so. train_forwards: views trained
    on for each rollout and process, each a forward and a backward pass unless several share one; reference_forwards:
    views scored under the reference policy.
    """

    recipe: Recipe
    config: RLConfig
    launch: Launch
    completions: int
    prompts: int
    problems: int | None
    updates: int
    rollout_forwards: int | None
    train_forwards: int
    reference_forwards: int
    memory: Estimate

    @classmethod
    def of(cls, recipe: Recipe, processes: int | None = None, prompt_length: int | None = None) -> Plan:
        """The plan of a recipe.

        Raises:
            ValueError: settings that cannot work together. FileNotFoundError, ConnectionError: no config of the model.
        """
        launch = Launch.of(recipe, processes)
        config = build_config(recipe, output_dir="plan")
        per_generation = config.steps_per_generation
        assert per_generation is not None
        completions = check_group_sizes(
            config.per_device_train_batch_size, per_generation, launch.processes, config.num_generations
        )
        decode = config.decode_config()
        memory = estimate(memory_settings(recipe, config, launch, prompt_length))
        passes = config.num_iterations if recipe.trainer_class.views_differ else 1
        needs_reference = memory.settings.reference_kind != "none"
        return cls(
            recipe,
            config,
            launch,
            completions=completions,
            prompts=completions // config.num_generations,
            problems=_problems(recipe, config),
            updates=config.num_iterations * per_generation // config.gradient_accumulation_steps,
            rollout_forwards=decode.total_steps if decode.fixed_steps else None,
            train_forwards=config.num_iterations * per_generation * memory.views,
            reference_forwards=passes * per_generation * memory.views if needs_reference else 0,
            memory=memory,
        )

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain values."""
        names = ("completions", "prompts", "problems", "updates")
        forwards = ("rollout_forwards", "train_forwards", "reference_forwards")
        return {
            "preset": self.recipe.preset,
            "trainer": self.recipe.trainer_class.__name__,
            "model": self.recipe.model,
            "task": self.recipe.task,
            "processes": self.launch.processes,
            "sharding": self.launch.sharding,
            **{name: getattr(self, name) for name in (*names, *forwards)},
            "decode": {k: v for k, v in asdict(self.config.decode_config()).items() if _plain(v)},
            "adapter": self.recipe.adapter(),
            "memory": self.memory.as_dict(),
        }

    def lines(self) -> list[str]:
        """The plan in words."""
        config, launch = self.config, self.launch
        adapter, decode = self.memory.settings.adapter, config.decode_config()
        trained = "all weights" if adapter is None else f"LoRA on {adapter.targets}, r={adapter.r}"
        rollout = "as many as the scores ask for" if self.rollout_forwards is None else self.rollout_forwards
        length = (
            f"{config.max_steps} optimizer steps" if config.max_steps > 0 else f"{config.num_train_epochs:g} epochs"
        )
        return [
            f"method      {self.recipe.trainer_class.__name__} (preset {self.recipe.preset}), {trained}",
            f"model       {self.recipe.model}",
            f"task        {self.recipe.task}, "
            + ("--data must name a file of problems" if self.problems is None else f"{self.problems} problems"),
            f"processes   {launch.processes}, sharding {launch.sharding}: {launch.command}",
            f"rollout     {self.completions} completions: {self.prompts} prompts x {config.num_generations}, "
            f"{config.max_completion_length} tokens, decoder {config.decoder}, temperature {decode.temperature:g}",
            f"updates     {self.updates} optimizer steps on each rollout, {length} in all, learning rate "
            f"{config.learning_rate:g}",
            f"forwards    for each rollout and process: {rollout} to decode, {self.reference_forwards} of the "
            f"reference, {self.train_forwards} with backward",
        ]


def build_config(recipe: Recipe, output_dir: str | Path, **changes: Any) -> RLConfig:
    """The method's config. Without a GPU it is one for the CPU, so that the recipes of GPUs can be looked at anywhere.

    Raises:
        ValueError: see `check_rl_config` and `transformers.TrainingArguments`."""
    values = {**recipe.config_values(), **changes}
    if not torch.cuda.is_available():
        values.setdefault("use_cpu", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return recipe.trainer_class.config_class(output_dir=str(output_dir), **values)


def training_rows(recipe: Recipe, config: RLConfig) -> list[dict[str, Any]]:
    """The training problems, as `task_dataset` gives them."""
    size = recipe.prompts or (None if recipe.data else GENERATED_PROMPTS)
    return task_dataset(recipe.task, "train", size, config.seed, data=recipe.data)


def _problems(recipe: Recipe, config: RLConfig) -> int | None:
    if recipe.data is None and get_task(recipe.task).test_rows is None:
        return None
    return len(training_rows(recipe, config))


def model_shape(model: str) -> ModelShape:
    """The sizes of a model: one of `SHAPES`, or read from the config.json of a folder or the hub.

    Raises:
        FileNotFoundError, ConnectionError: there is no config. ValueError: its model is of another kind."""
    for name, (prefix, shape) in SHAPES.items():
        if model == name or model.startswith(prefix):
            return shape
    if model.startswith(BUILTIN):
        folder = built_in_folder(model)
    elif Path(model).is_dir() or not is_hub_id(model):
        folder = Path(model)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"model {model!r} is no folder, no hub id of the form owner/name, and no shape: {', '.join(SHAPES)}"
            )
    else:
        folder = download_config(model)
    return ModelShape.from_config(read_json(folder / "config.json"))


def memory_settings(recipe: Recipe, config: RLConfig, launch: Launch, prompt_length: int | None = None) -> Settings:
    """A run's settings as the estimator takes them.

    prompt_length: positions of a prompt; default: the config's max_prompt_length, or what is usual."""
    adapter, decode = recipe.adapter(), config.decode_config()
    length = prompt_length or config.max_prompt_length or (BUILTIN_PROMPT if recipe.builtin else USUAL_PROMPT)
    lora = None
    if adapter is not None:
        if not isinstance(adapter["targets"], str):
            raise ValueError(f"lora targets {adapter['targets']!r}: memory is estimated for the named presets alone")
        lora = Adapter(adapter.get("r", Adapter.r), adapter["targets"])
    return Settings(
        shape=model_shape(recipe.model),
        method=_METHODS[recipe.trainer_class.__name__],
        completions=config.per_device_train_batch_size,
        prompt_length=length,
        completion_length=config.max_completion_length,
        steps=decode.total_steps,
        views=_views(config, decode.total_steps),
        views_per_backward=config.views_per_backward if isinstance(config.views_per_backward, int) else 1,
        adapter=lora,
        dtype=_dtype(recipe),
        gradient_checkpointing=bool(config.activation_checkpointing or config.gradient_checkpointing),
        beta=config.reference_weight,
        reference=config.reference,
        world_size=launch.processes,
        sharding=launch.sharding,
        device="cpu" if recipe.builtin else "cuda",
        remasking=decode.remasking is not None,
    )


def _dtype(recipe: Recipe) -> torch.dtype:
    kind = getattr(torch, recipe.dtype or ("float32" if recipe.builtin else "bfloat16"), None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(f"dtype={recipe.dtype!r} is not a floating-point torch dtype such as 'bfloat16'")
    return kind


def _views(config: RLConfig, steps: int) -> int | None:
    """Views of a micro-batch, where the method's config says it; None: the estimator's."""
    if (chosen := getattr(config, "sample_train_steps", None)) is not None:  # MDPO
        return min(int(chosen), steps)
    if (shrink := getattr(config, "shrink", None)) is not None:  # trace
        return -(-steps // int(shrink))
    if (pairs := getattr(config, "replicates", None)) is not None:  # DMPO
        return 2 * int(pairs)
    return None


def _plain(value: Any) -> bool:
    return isinstance(value, (int, float, str, bool, dict))
