"""What runs there are: every method, on every task, at every learning rate of one grid, with every seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SEEDS = (0, 1, 2)
#: The grid every method's learning rate is chosen from.
LEARNING_RATES = ("1e-4", "3e-5", "3e-4")
#: The name of the run that trains nothing: the model as it comes, under the same decoders.
BEFORE = "before"

LENGTH = 24
#: Prompts that are generated for a run, and how many more to choose learning rates with.
TRAINING_PROMPTS, VALIDATION_PROMPTS = 1024, 256
#: Accuracy over decoding steps is measured on the first so many held-out puzzles.
PASSES_PUZZLES = 256
EVALUATE_EVERY, LOG_EVERY, SAVE_EVERY = 10, 4, 20

#: Settings of every run, as fields of `RLConfig`: 8 prompts x 8 completions an optimizer step, all weights trained.
SHARED: dict[str, Any] = {
    "per_device_train_batch_size": 64,
    "num_generations": 8,
    "max_completion_length": LENGTH,
    "num_iterations": 2,
    "beta": 0.02,
    "epsilon": 0.5,
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 1.0,
    "use_cpu": True,
}


@dataclass(frozen=True)
class Rollouts:
    """How completions are decoded, in training and (greedily) in evaluation.

    Attributes:
        fields: of `RLConfig`.
        decoders: what the trained model is evaluated with at the end: label -> (preset of `DecodeConfig`, steps).
        trained: of these, the label and the steps of the rollouts. slow: the label of the one that trades steps for
            accuracy without training.
    """

    name: str
    label: str
    fields: dict[str, Any]
    decoders: dict[str, tuple[str, tuple[int, ...]]]
    trained: tuple[str, str]
    slow: str


@dataclass(frozen=True)
class Method:
    """A trainer. steps: its optimizer steps; methods whose step is cheaper take more of them, so that curves can be
    compared at equal seconds too. fields: of its config, beyond `SHARED`."""

    name: str
    label: str
    trainer: str
    steps: int
    fields: dict[str, Any] = field(default_factory=dict)


ROLLOUTS = {
    "eoser-ass": Rollouts(
        "eoser-ass",
        "EOSER + ASS in 4 steps",
        {"decoder": "eoser-ass", "temperature": 1.0},
        {
            "EOSER + ASS": ("eoser-ass", (4,)),
            "ASS": ("ass", (4,)),
            "EOSER": ("eoser", (2, 3, 4, 6, 8, 12, 24)),
        },
        ("EOSER + ASS", "4"),
        "EOSER",
    ),
    "ass": Rollouts(
        "ass",
        "ASS in 4 steps",
        {"decoder": "ass", "temperature": 1.0},
        {"ASS": ("ass", (4,)), "EOSER + ASS": ("eoser-ass", (4,)), "plain": ("llada", (2, 3, 4, 6, 8, 12, 24))},
        ("ASS", "4"),
        "plain",
    ),
    "linear": Rollouts(
        "linear",
        "MDPO's linear schedule in 6 steps",
        {"decoder": "mdpo", "temperature": 0.4, "diffusion_steps": 6},
        {"plain": ("mdpo", (2, 3, 6, 12, 24)), "RCR": ("rcr", (2, 3, 6, 12, 24))},
        ("plain", "6"),
        "plain",
    ),
}
METHODS = {
    "cj-grpo": Method("cj-grpo", "CJ-GRPO", "CJGRPO", 60),
    "one-step": Method("one-step", "one-step GRPO", "OneStepGRPO", 160),
    "diffu-grpo": Method("diffu-grpo", "diffu-GRPO (d1)", "DiffuGRPO", 160, {"logp_temperature": 1.0}),
    "mdpo": Method("mdpo", "MDPO", "MDPO", 60),
}
#: (rollouts, task): the methods that are compared with each other there.
COMPARISONS: dict[tuple[str, str], tuple[str, ...]] = {
    ("eoser-ass", "sudoku"): ("cj-grpo", "one-step", "diffu-grpo"),
    ("eoser-ass", "countdown"): ("cj-grpo",),
    ("ass", "countdown"): ("cj-grpo", "one-step", "diffu-grpo"),
    ("linear", "countdown"): ("mdpo", "diffu-grpo"),
    ("linear", "sudoku"): ("mdpo", "diffu-grpo"),
}


@dataclass(frozen=True)
class Run:
    """One training run. learning_rate is its text in `LEARNING_RATES`; "0" and no seed for `BEFORE`."""

    rollouts: str
    task: str
    method: str
    learning_rate: str = "0"
    seed: int = 0

    @property
    def id(self) -> str:
        """The name of the run, of its folder and of its entry in the results."""
        if self.method == BEFORE:
            return f"{self.rollouts}/{self.task}/{self.method}"
        return f"{self.rollouts}/{self.task}/{self.method}/{self.learning_rate}/{self.seed}"

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return 0 if self.method == BEFORE else METHODS[self.method].steps

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the method's config."""
        own = {} if self.method == BEFORE else METHODS[self.method].fields
        rate = float(self.learning_rate)
        return {**SHARED, **ROLLOUTS[self.rollouts].fields, **own, "learning_rate": rate, "seed": self.seed}

    def settings(self) -> dict[str, Any]:
        """Everything that the result follows from, as JSON holds it: a finished run counts while this is the same."""
        decoders = {
            label: [preset, list(passes)] for label, (preset, passes) in ROLLOUTS[self.rollouts].decoders.items()
        }
        counts = {
            "training_prompts": TRAINING_PROMPTS,
            "validation_prompts": VALIDATION_PROMPTS,
            "passes_puzzles": PASSES_PUZZLES,
        }
        return {**asdict(self), "max_steps": self.steps, "fields": self.fields, "decoders": decoders, **counts}


def all_runs() -> list[Run]:
    """Every run, in the order in which they are made: one learning rate after the other, so that the first third shows
    every comparison."""
    runs = [Run(rollouts, task, BEFORE) for rollouts, task in COMPARISONS]
    return runs + [
        Run(rollouts, task, method, rate, seed)
        for rate in LEARNING_RATES
        for seed in SEEDS
        for (rollouts, task), methods in COMPARISONS.items()
        for method in methods
    ]


def select_runs(only: Sequence[str] = ()) -> list[Run]:
    """The runs whose id starts with one of `only` (whole parts of it); all of them when that is empty.

    Raises:
        ValueError: an entry matches no run.
    """
    runs = all_runs()
    if not only:
        return runs
    chosen = []
    for name in only:
        parts = name.strip("/").split("/")
        found = [run for run in runs if run.id.split("/")[: len(parts)] == parts]
        if not found:
            raise ValueError(f"no run is called {name!r} or begins with it; `python -m bench.learning list` names them")
        chosen += found
    return list(dict.fromkeys(chosen))
