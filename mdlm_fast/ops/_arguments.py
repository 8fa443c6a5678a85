"""From the friendly arguments of the public functions to the tensors of the op schemas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mdlm_fast.ops._checks import check_tensor
from mdlm_fast.ops._schemas import STAT_BITS
from mdlm_fast.ops.reference._rows import gather_rows
from mdlm_fast.rng import derive_seed, signed64

_INTEGERS = (torch.int32, torch.int64)
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_integer(op: str, name: str, value: object) -> None:
    """Refuse a number that is not an integer: torch would round it silently or fail with the whole schema."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{op}: {name}={value!r} must be an integer")


class RowArguments(NamedTuple):
    """The per-row and per-sequence tensors of the scoring schemas."""

    rows: Tensor
    row_sequence: Tensor
    row_position: Tensor
    temperature: Tensor
    seeds: Tensor
    step: Tensor
    sample: bool


def row_arguments(
    op: str,
    leading: Sequence[int],
    device: torch.device,
    rows: Tensor | None,
    row_sequence: Tensor | None,
    row_position: Tensor | None,
    temperature: Tensor | float | None,
    seeds: Tensor | int | None,
    step: Tensor | int,
    sample: bool | None,
) -> RowArguments:
    """Defaults and checks for the arguments about rows and sequences. `leading` = shape of the logits without V."""
    length = leading[-1]
    rows = row_indices(op, rows, leading, device)
    capacity = rows.shape[0]
    if sample is None:
        sample = temperature is not None and not (isinstance(temperature, (int, float)) and temperature == 0)
    if isinstance(temperature, (int, float)) and not 0 <= temperature < float("inf"):
        raise ValueError(f"{op}: temperature={temperature} must be finite and >= 0")

    sequences = _num_sequences(op, leading, row_sequence, temperature, seeds, step, sample)
    if row_sequence is None:
        row_sequence = torch.div(rows, max(length, 1), rounding_mode="floor") if len(leading) == 2 else None
    else:
        row_sequence = _int32(op, "row_sequence", row_sequence, capacity, device)
    if row_sequence is None or sequences == 1:
        row_sequence = torch.zeros_like(rows)
    if row_position is None:
        row_position = torch.remainder(rows, max(length, 1)) if len(leading) == 2 else rows
    else:
        row_position = _int32(op, "row_position", row_position, capacity, device)
    return RowArguments(
        rows,
        row_sequence,
        row_position,
        _per_sequence(op, "temperature", 0.0 if temperature is None else temperature, sequences, device),
        _seeds(op, 0 if seeds is None else seeds, sequences, device, sample),
        _step(op, step, sequences, device),
        sample,
    )


def row_indices(op: str, rows: Tensor | None, leading: Sequence[int], device: torch.device) -> Tensor:
    """int32 [C]; None means every row of the flattened leading dimensions."""
    if rows is None:
        count = leading[0] if len(leading) == 1 else leading[0] * leading[1]
        return torch.arange(count, dtype=torch.int32, device=device)
    return _int32(op, "rows", rows, None, device)


def _num_sequences(
    op: str,
    leading: Sequence[int],
    row_sequence: Tensor | None,
    temperature: Tensor | float | None,
    seeds: Tensor | int | None,
    step: Tensor | int,
    sample: bool,
) -> int:
    sizes = {
        name: value.numel()
        for name, value in (("temperature", temperature), ("seeds", seeds), ("step", step))
        if isinstance(value, Tensor) and value.numel() != 1
    }
    if len(leading) == 2 and row_sequence is None:
        sizes["logits"] = leading[0]
    if not sizes:
        if row_sequence is not None and len(leading) == 2:
            return leading[0]
        if row_sequence is not None and sample and not isinstance(seeds, Tensor):
            raise ValueError(f"{op}: row_sequence needs one seed per sequence: pass seeds as an int64 tensor [B]")
        return 1
    count = next(iter(sizes.values()))
    if any(size != count for size in sizes.values()):
        found = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"{op}: the number of sequences differs between arguments: {found}")
    return count


def _per_sequence(op: str, name: str, value: Tensor | float, sequences: int, device: torch.device) -> Tensor:
    if isinstance(value, (int, float)):
        return torch.full((sequences,), float(value), dtype=torch.float32, device=device)
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name}={value!r} must be a number or a floating tensor [B]")
    if value.dtype not in _FLOATS:
        raise TypeError(f"{op}: {name} must be a float or a floating tensor [B], got {value.dtype}")
    if value.device != device:
        raise ValueError(f"{op}: {name} is on {value.device}, the other tensors on {device}; move it there")
    return value.reshape(-1).float().expand(sequences).contiguous()


def _seeds(op: str, seeds: Tensor | int, sequences: int, device: torch.device, sample: bool) -> Tensor:
    if isinstance(seeds, Tensor):
        if seeds.dtype != torch.int64:
            raise TypeError(f"{op}: seeds must be an int or an int64 tensor [B], got {seeds.dtype}")
        if seeds.device != device:
            raise ValueError(f"{op}: seeds is on {seeds.device}, the other tensors on {device}; move it there")
        return seeds.reshape(-1).expand(sequences).contiguous()
    check_integer(op, "seeds", seeds)
    if not sample:
        return torch.zeros(sequences, dtype=torch.int64, device=device)
    if sequences <= 16:
        return torch.tensor([derive_seed(seeds, b) for b in range(sequences)], dtype=torch.int64, device=device)
    return derive_seed(signed64(seeds), torch.arange(sequences, device=device))


def _step(op: str, step: Tensor | int, sequences: int, device: torch.device) -> Tensor:
    if not isinstance(step, Tensor):
        check_integer(op, "step", step)
        return torch.full((1,), step, dtype=torch.int32, device=device)
    if step.dtype not in _INTEGERS:
        raise TypeError(f"{op}: step must be an int or an int32 tensor [1] or [B], got {step.dtype}")
    if step.device != device:
        raise ValueError(f"{op}: step is on {step.device}, the other tensors on {device}; move it there")
    if step.numel() not in (1, sequences):
        raise ValueError(f"{op}: step must have 1 or {sequences} elements, got {step.numel()}")
    return step.reshape(-1).int()


def _int32(op: str, name: str, value: Tensor, size: int | None, device: torch.device) -> Tensor:
    check_tensor(op, name, value, (size,), _INTEGERS, device)
    if value.dtype == torch.int64:  # a value that int32 cannot hold stays out of range instead of wrapping into it
        value = value.clamp(-(2**31), 2**31 - 1)
    return value.int().contiguous()


def vocabulary_arguments(
    op: str,
    vocab_size: int,
    device: torch.device,
    forbidden_ids: Tensor | Iterable[int] | int | None,
    vocab_limit: int | None,
) -> tuple[Tensor | None, int]:
    """(forbidden ids int64 [K] or None, vocab_limit)."""
    if vocab_limit is None:
        vocab_limit = vocab_size
    check_integer(op, "vocab_limit", vocab_limit)
    if not 1 <= vocab_limit <= vocab_size:
        raise ValueError(f"{op}: vocab_limit={vocab_limit} must be between 1 and the width of the logits, {vocab_size}")
    if forbidden_ids is None:
        return None, vocab_limit
    if isinstance(forbidden_ids, Tensor):
        if forbidden_ids.dtype not in _INTEGERS:
            raise TypeError(f"{op}: forbidden_ids must be integers, got {forbidden_ids.dtype}")
        if forbidden_ids.device != device:
            raise ValueError(
                f"{op}: forbidden_ids is on {forbidden_ids.device}, the other tensors on {device}; move it there"
            )
        ids = forbidden_ids.reshape(-1).long().contiguous()
    else:
        listed = [forbidden_ids] if isinstance(forbidden_ids, int) else list(forbidden_ids)
        for token in listed:
            check_integer(op, "an id of forbidden_ids", token)
        ids = torch.tensor(listed, dtype=torch.int64, device=device)
    return (ids if ids.shape[0] else None), vocab_limit


def filter_arguments(op: str, top_k: int | None, top_p: float | None) -> tuple[int, float]:
    """(top_k, 0 = off; top_p, 1.0 = off)."""
    top_k = 0 if top_k is None else top_k
    top_p = 1.0 if top_p is None else float(top_p)
    check_integer(op, "top_k", top_k)
    if top_k < 0:
        raise ValueError(f"{op}: top_k={top_k} must be >= 0 (0 turns it off)")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"{op}: top_p={top_p} must be in (0, 1] (1 turns it off)")
    return top_k, top_p


def stats_mask(op: str, stats: Sequence[str]) -> int:
    """The bit mask of the named statistics; `token` is always there."""
    mask = STAT_BITS["token"]
    for stat in (stats,) if isinstance(stats, str) else stats:
        if stat not in STAT_BITS:
            raise ValueError(f"{op}: stats has {stat!r}: choose from {', '.join(STAT_BITS)}")
        mask |= STAT_BITS[stat]
    return mask


def choice(op: str, name: str, value: str, first: str, second: str) -> bool:
    """Whether an argument with two named values has the second one."""
    if value not in (first, second):
        raise ValueError(f"{op}: {name}={value!r} must be {first!r} or {second!r}")
    return value == second


def guidance_arguments(
    op: str,
    name: str,
    guidance: Tensor | None,
    like: Tensor,
    guidance_rows: Tensor | None,
    rows: Tensor,
    scale: float,
) -> tuple[Tensor | None, Tensor | None, float]:
    """(guidance tensor or None, its row indices int32 [C] or None, scale)."""
    if guidance is None:
        if scale != 0.0 or guidance_rows is not None:
            raise ValueError(f"{op}: guidance_scale={scale} and guidance_rows need {name}")
        return None, None, 0.0
    if not isinstance(guidance, Tensor) or guidance.dim() not in (2, 3) or guidance.shape[-1] != like.shape[-1]:
        raise ValueError(f"{op}: {name} must have shape [N, {like.shape[-1]}] or [B, L, {like.shape[-1]}]")
    if guidance.dtype != like.dtype or guidance.device != like.device:
        raise ValueError(
            f"{op}: {name} must be {like.dtype} on {like.device}, got {guidance.dtype} on {guidance.device}"
        )
    if guidance_rows is None:
        return guidance.detach(), rows, float(scale)
    return guidance.detach(), _int32(op, "guidance_rows", guidance_rows, rows.shape[0], like.device), float(scale)


def with_unit_stride(tensor: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(tensor, rows) for kernels, which read columns with stride 1: else the selected rows alone are copied."""
    if tensor.stride(-1) == 1 or rows.numel() == 0 or tensor.numel() == 0:
        return tensor, rows
    copied = gather_rows(tensor, rows.clamp(min=0).long()).contiguous()
    return copied, torch.where(rows >= 0, torch.arange(rows.numel(), dtype=torch.int32, device=rows.device), -1)
