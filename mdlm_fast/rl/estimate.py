"""`estimate`: what a training run needs of each device's memory, from the model's shape and the run's settings.

Weights, gradients and optimizer state follow from counts; activations and workspace from `memory.ViewCost`. Left out:
what the CUDA context, libraries and the allocator's gaps take, and rollouts, which keep less than a training pass does.
On a CPU the gaps can be as large as the rest: glibc keeps freed blocks of up to 32 MB unless MALLOC_MMAP_THRESHOLD_ is
set (131072 brings a process to within a few percent of the estimate).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from rich.table import Table

from mdlm_fast.rl.memory import Adapter, ModelShape, ViewCost, activation_bytes_per_token
from mdlm_fast.rl.reference import KINDS

__all__ = ["Adapter", "Estimate", "ModelShape", "Settings", "ViewCost", "activation_bytes_per_token", "estimate"]

SHARDING = ("none", "zero2", "fsdp")
#: Bytes a canvas position of `Trajectory`: token, step, two log-probs, confidence, eligible.
_RECORD_BYTES = 8 + 2 + 4 + 4 + 4 + 1
#: Bytes a scored token of `View`: row, target, sequence, two weights, advantage, old and reference log-prob.
_VIEW_BYTES = 4 + 8 + 8 + 4 + 4 + 4 + 4 + 4


@dataclass(frozen=True)
class Settings:
    """A training run, as far as memory depends on it.

    shape: of the model. dtype: of its weights and activations.
    method: "cj-grpo", "mdpo", "one-step-grpo", "diffu-grpo", "coupled-grpo", "trace" or "dmpo".
    completions: per device and micro-batch. prompt_length, completion_length: positions. steps: of the rollout.
    views: forward passes a micro-batch is trained on; None: the method's defaults.
    views_per_backward: of them, how many share one backward pass.
    adapter: None = the whole model is trained.
    beta, reference: as in RLConfig.
    sharding: over world_size devices: "none" (one device, or DDP); "zero2": gradients and optimizer, which keeps a
        float32 copy of the weights; "fsdp": weights, gradients and optimizer, in float32 where all weights are
        trained, two layers gathered at a time.
    padded: whether prompts differ in length. remasking: whether committed tokens may be masked again (RCR).
    """

    shape: ModelShape
    method: str = "cj-grpo"
    completions: int = 6
    prompt_length: int = 200
    completion_length: int = 128
    steps: int = 32
    views: int | None = None
    views_per_backward: int = 1
    adapter: Adapter | None = None
    dtype: torch.dtype = torch.bfloat16
    gradient_checkpointing: bool = False
    beta: float = 0.04
    reference: str = "auto"
    world_size: int = 1
    sharding: str = "none"
    device: str = "cuda"
    padded: bool = True
    remasking: bool = False

    def __post_init__(self) -> None:
        for name, known in (
            ("method", METHODS),
            ("sharding", SHARDING),
            ("reference", KINDS),
            ("device", ("cuda", "cpu")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(known)}")
        counted = ("completions", "prompt_length", "completion_length", "steps", "views_per_backward", "world_size")
        for name in (*counted, *(("views",) if self.views is not None else ())):
            least = 0 if name == "prompt_length" else 1
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be {least} or more")
        if self.adapter is None and self.reference in ("adapter", "adapter_off"):
            raise ValueError(f"reference={self.reference!r} needs an adapter; use 'copy', or train a LoRA adapter")

    @property
    def length(self) -> int:
        """Positions of a canvas."""
        return self.prompt_length + self.completion_length

    @property
    def reference_kind(self) -> str:
        """The reference that `make_reference` chooses for a fresh adapter or a whole model."""
        if self.method == "trace":  # its divergence is from the policy that acted
            return "none"
        if self.reference != "auto":
            return self.reference
        return "none" if self.beta == 0 else "copy" if self.adapter is None else "adapter_off"


def _all_tokens(settings: Settings) -> int:
    return settings.completions * settings.completion_length


def _step_views(shrink: int) -> Callable[[Settings], tuple[int, int, int]]:
    """A view for every `shrink` steps; each token is scored in one of them."""

    def views(settings: Settings) -> tuple[int, int, int]:
        count = settings.views or -(-settings.steps // shrink)
        return count, 1, -(-_all_tokens(settings) // count)

    return views


def _masked_views(default: int) -> Callable[[Settings], tuple[int, int, int]]:
    """Views that score whatever is masked: at most every token."""
    return lambda settings: (settings.views or default, 1, _all_tokens(settings))


#: Method -> (views of a micro-batch, canvases in a view for each completion, scored rows of a view).
METHODS: dict[str, Callable[[Settings], tuple[int, int, int]]] = {
    "cj-grpo": _step_views(1),
    "trace": _step_views(8),
    "mdpo": _masked_views(8),
    "one-step-grpo": _masked_views(1),
    "diffu-grpo": _masked_views(1),
    "coupled-grpo": lambda settings: (settings.views or 1, 3, 2 * _all_tokens(settings)),
    "dmpo": _masked_views(4),
}


@dataclass(frozen=True)
class Estimate:
    """Bytes of one device.

    weights: of model and adapter. gradients. optimizer: AdamW's two moments, and ZeRO's float32 weights. reference.
    gathered: FSDP's whole layers. record: trajectories and views of a micro-batch. activations: kept from a pack's
    forward to its backward pass. workspace: what comes and goes in it.
    views, rows: of a micro-batch, and scored positions of a view.
    released: what the released CJ-GRPO trainer keeps from its forward passes to its one backward pass, with gradient
        checkpointing: the log-softmax of every completion position, and every layer's input, of all views.
    """

    settings: Settings
    view: ViewCost
    weights: int
    gradients: int
    optimizer: int
    reference: int
    gathered: int
    record: int
    activations: int
    workspace: int
    views: int
    rows: int
    released: int

    @property
    def parts(self) -> dict[str, int]:
        """The parts that add up to the total."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name in _PARTS}

    @property
    def total(self) -> int:
        """Bytes at the peak of a training step."""
        return sum(self.parts.values())

    def largest_pack(self, memory_bytes: int) -> int:
        """How many views can share a backward pass on a device with so much memory; 0: not even one."""
        fixed = self.total - self.activations - self.workspace
        return self.view.largest_pack(memory_bytes - fixed, self.views)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values; bytes under the parts' names."""
        settings = asdict(self.settings)
        settings["dtype"] = _name(self.settings.dtype)
        if self.settings.adapter is not None:
            settings["adapter"]["dtype"] = _name(self.settings.adapter.dtype)
        facts = {"total": self.total, "views": self.views, "rows": self.rows, "released": self.released}
        return {**self.parts, **facts, "settings": settings}

    def table(self, memory_bytes: int | None = None) -> Table:
        """The parts in GB (10^9 bytes), and with `memory_bytes` how many views fit."""
        s = self.settings
        table = Table("per device", title=f"{s.method}, {s.completions} completions of {s.length} positions")
        table.add_column("GB", justify="right")
        for name, value in self.parts.items():
            table.add_row(_PARTS[name], _gigabytes(value))
        table.add_section()
        table.add_row("total", _gigabytes(self.total))
        if memory_bytes is not None:
            table.add_row(
                f"views in one backward pass on {_gigabytes(memory_bytes)} GB", str(self.largest_pack(memory_bytes))
            )
        table.add_section()
        table.add_row(f"activations of the released way, {self.views} views at once", _gigabytes(self.released))
        return table


_PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "reference": "reference policy",
    "gathered": "gathered layers",
    "record": "trajectories and views",
    "activations": "activations of a pack",
    "workspace": "workspace of a pack",
}


def estimate(settings: Settings) -> Estimate:
    """The memory one device needs for a training run."""
    shape, e = settings.shape, settings.dtype.itemsize
    adapter = settings.adapter
    if adapter is not None and settings.sharding == "zero2":  # DeepSpeed casts the module, adapters included
        adapter = Adapter(adapter.r, adapter.targets, settings.dtype)
    views, canvases, rows = METHODS[settings.method](settings)
    view = ViewCost(
        shape,
        sequences=canvases * settings.completions,
        length=settings.length,
        rows=rows,
        dtype=settings.dtype,
        adapter=adapter,
        checkpointing=settings.gradient_checkpointing,
        padded=settings.padded,
        device=settings.device,
    )
    base = shape.parameters * e
    # Under FSDP2 accelerate makes float32 shards of weights that are trained; layers are cast when they are gathered.
    shard = shape.parameters * max(e, 4) if settings.sharding == "fsdp" and adapter is None else base
    extra = 0 if adapter is None else adapter.parameters(shape) * adapter.dtype.itemsize
    trained, trained_bytes = (shape.parameters, shard) if adapter is None else (adapter.parameters(shape), extra)
    shards = settings.world_size
    whole = 1 if settings.sharding != "fsdp" else shards
    split = 1 if settings.sharding == "none" else shards
    references = {"copy": base, "adapter": extra}
    pack = min(settings.views_per_backward, views)
    positions = settings.completions * settings.length
    released = settings.completions * settings.completion_length * shape.vocab + positions * shape.layers * shape.hidden
    return Estimate(
        settings,
        view,
        weights=(shard + extra) // whole,
        gradients=trained_bytes // split,
        optimizer=(12 * trained if settings.sharding == "zero2" else 2 * trained_bytes) // split,
        reference=references.get(settings.reference_kind, 0) // whole,
        gathered=(2 * shape.layer_parameters + shape.outer_parameters) * e if whole > 1 else 0,
        record=_record_bytes(settings) + views * rows * _VIEW_BYTES,
        activations=view.activation_bytes(pack),
        workspace=view.workspace_bytes(pack),
        views=views,
        rows=rows,
        released=views * released * e,
    )


def _record_bytes(settings: Settings) -> int:
    """A micro-batch's `Trajectory`: with remasking its `Events`, for mdpo its `Predictions`."""
    written = _all_tokens(settings) * settings.steps
    events = written * 8 + -(-written // 8) if settings.remasking else 0
    predictions = written * 8 if settings.method == "mdpo" else 0
    return settings.completions * settings.length * _RECORD_BYTES + events + predictions


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
