"""RowHead: run a masked diffusion model and let only chosen rows meet its LM head.

A decoding step can only commit masked positions of the active block, so the other rows of logits are never looked
at. RowHead patches the LM head of one model instance for the length of one forward call: the body runs as ever, the
head scores the chosen rows, and no [B, L, V] tensor exists. Whether the model's logits are those of its head alone
(no scale, softcap or shift after it) is probed on the first forward, which runs unpatched; native Llama and Qwen2 are
known to be so.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from mdlm_fast import ops
from mdlm_fast.models._patch import (
    can_fuse,
    find_head,
    module_lock,
    needs_no_probe,
    output_logits,
    patched_forward,
)
from mdlm_fast.models._probe import compare, probe_rows
from mdlm_fast.rng import derive_seed, signed64

Forward = Callable[[], Any]
_T = TypeVar("_T")


class _Rows(NamedTuple):
    """Rows of one call: where the hidden states are, and whom they belong to."""

    source: Tensor  # int32 [C], flat index of the hidden row, -1 padding
    guidance: Tensor | None  # int32 [C], flat index of the unconditional hidden row
    length: int
    options: dict[str, Any]  # keyword arguments of ops.score_rows


class _OnHead(NamedTuple):
    """What to compute from the head's input (inside its forward) and from full logits (when that cannot be)."""

    head: Callable[[nn.Module, Callable[..., Tensor], Tensor, tuple[Any, ...], dict[str, Any]], Any]
    logits: Callable[[Tensor], Any]


class RowHead:
    """Scores chosen rows of a model's output without its full logits; use `RowHead.of(model)`.

    A plain `nn.Linear` head is replaced by `ops.linear_score_rows` inside its own forward; any other head (LoRA,
    quantised, offloaded, under autocast) runs its own forward on the gathered rows. A model without
    `get_output_embeddings`, a plain callable, and a model that changes its logits after the head are scored from
    full logits, with one warning.
    """

    _cache: ClassVar[weakref.WeakKeyDictionary[Any, RowHead]] = weakref.WeakKeyDictionary()
    _cache_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, model: Any) -> None:
        try:
            self._model: Callable[[], Any] = weakref.ref(model)
        except TypeError:  # some callables cannot be referenced weakly
            self._model = lambda: model
        self._probed: weakref.ref[nn.Module] | None = None
        self._full_logits = False

    @classmethod
    def of(cls, model: Any) -> RowHead:
        """The RowHead of `model`, made on first use and kept as long as the model lives."""
        try:
            with cls._cache_lock:
                return cls._cache.setdefault(model, cls(model))
        except TypeError:  # unhashable, or no weak references
            return cls(model)

    @property
    def uses_full_logits(self) -> bool:
        """Whether the probe found that this model must be scored from its full logits."""
        return self._full_logits

    @torch.no_grad()
    def score(
        self,
        forward: Forward,
        rows: Tensor,
        *,
        length: int,
        shift: bool = False,
        guidance_rows: Tensor | None = None,
        guidance_scale: float = 0.0,
        **score_kwargs: Any,
    ) -> ops.RowScores:
        """Run the model once and score `rows` of its output.

        Args:
            forward: runs the model on [B, L] ids; returns logits [B, L, V], an object with `.logits`, or a tuple.
            rows: int [C], flat index b*L + l of each canvas position to score; -1 is padding.
            length: L.
            shift: position l is predicted by hidden row l - 1, the first position by its own (Dream).
            guidance_rows: int [C], flat index of the unconditional counterpart of each row, in a forward of 2B rows.
            guidance_scale: s in (s + 1) * conditional - s * unconditional; ignored without `guidance_rows`.
            score_kwargs: as `ops.score_rows`, except logits, rows and guidance. `row_sequence` and `row_position`
                default to `rows // L` and `rows % L`, of the canvas position even under `shift`.

        Returns:
            RowScores of [C] tensors.
        """
        prepared = self._prepare(rows, length, shift, guidance_rows, guidance_scale, score_kwargs)
        on = _OnHead(
            lambda head, original, hidden, args, kwargs: _score_hidden(head, original, hidden, args, kwargs, prepared),
            lambda logits: _score_logits(logits, prepared),
        )
        return self._run(forward, on, prepared)

    def logits(self, forward: Forward, rows: Tensor, *, length: int, shift: bool = False) -> Tensor:
        """Run the model once and return the logits of `rows`, [C, V] in the model's dtype; a -1 row repeats row 0.

        Arguments as in `score`. The gradient mode is left as it is, so a trainer can differentiate through it.
        """
        prepared = self._prepare(rows, length, shift, None, 0.0, {})

        def on_head(
            head: nn.Module, original: Callable[..., Tensor], hidden: Tensor, args: tuple[Any, ...], kw: dict[str, Any]
        ) -> Tensor:
            return _gathered_logits(original, hidden, prepared.source, length, args, kw)

        return self._run(forward, _OnHead(on_head, lambda full: _gather(full, prepared.source, length)), prepared)

    # ------------------------------------------------------------------------------------------------------------

    def _prepare(
        self,
        rows: Tensor,
        length: int,
        shift: bool,
        guidance_rows: Tensor | None,
        guidance_scale: float,
        score_kwargs: dict[str, Any],
    ) -> _Rows:
        _check_rows("rows", rows, length)
        rows = rows.to(torch.int32)
        options = dict(score_kwargs)
        real = rows.clamp(min=0)
        options.setdefault("row_sequence", real // length)
        options.setdefault("row_position", real % length)
        source = _left_neighbour(rows, length) if shift else rows
        guidance = None
        if guidance_rows is not None and guidance_scale != 0.0:
            _check_rows("guidance_rows", guidance_rows, length)
            guidance = guidance_rows.to(torch.int32)
            if shift:
                guidance = _left_neighbour(guidance, length)
            options["guidance_scale"] = guidance_scale
        return _Rows(source, guidance, length, options)

    def _run(self, forward: Forward, on: _OnHead, rows: _Rows) -> Any:
        model = self._model()
        head = find_head(model)
        if head is None:
            self._fall_back("it names no output head that maps hidden states to logits (get_output_embeddings)")
        if head is None or self._full_logits:
            return on.logits(output_logits(forward()))
        with module_lock(head):
            known = self._probed is not None and self._probed() is head
            if not known and needs_no_probe(model, head):
                self._probed, known = weakref.ref(head), True
            if not known:
                return self._probe(forward, head, on, rows)
            return self._run_patched(forward, head, on)

    def _run_patched(self, forward: Forward, head: nn.Module, on: _OnHead) -> Any:
        results: list[Any] = []

        def replacement(original: Callable[..., Tensor], hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            results.append(on.head(head, original, hidden, args, kwargs))
            # Nobody reads what the model returns; width 0 makes any cast or copy of it free.
            return hidden.new_empty((*hidden.shape[:-1], 0))

        with patched_forward(head, replacement):
            forward()
        if len(results) == 1:
            return results[0]
        self._fall_back(f"its output head ran {len(results)} times in one forward (a compiled graph may hide it)")
        return on.logits(output_logits(forward()))

    def _probe(self, forward: Forward, head: nn.Module, on: _OnHead, rows: _Rows) -> Any:
        owner = threading.get_ident()
        seen: list[tuple[Any, Tensor, Tensor, bool]] = []

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if threading.get_ident() != owner:
                return
            hidden = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(hidden, Tensor) and isinstance(output, Tensor) and output.shape[:-1] == hidden.shape[:-1]:
                # Copied now: a model may change its logits in place afterwards.
                picked, telling = probe_rows(output, rows.length)
                seen.append((hidden.detach(), picked, output.flatten(0, -2)[picked].detach().clone(), telling))
            else:
                seen.append((None, rows.source, rows.source, True))

        handle = head.register_forward_hook(keep, with_kwargs=True)
        try:
            logits = output_logits(forward())
        finally:
            handle.remove()
        if len(seen) != 1:
            self._fall_back(f"its output head ran {len(seen)} times in one forward")
        else:
            reason, telling = compare(head, logits, *seen[0])
            if reason is not None:
                self._fall_back(reason)
            elif telling:
                self._probed = weakref.ref(head)
        return on.logits(logits)

    def _fall_back(self, reason: str) -> None:
        if not self._full_logits:
            self._full_logits = True
            warnings.warn(
                f"mdlm_fast scores {type(self._model()).__name__} from its full logits, which is slower: {reason}.",
                RuntimeWarning,
                stacklevel=5,
            )


def _check_rows(name: str, rows: Tensor, length: int) -> None:
    if rows.ndim != 1 or rows.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} must be int32 or int64 of shape [C], got {rows.dtype} of shape {tuple(rows.shape)}")
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")


def _left_neighbour(rows: Tensor, length: int) -> Tensor:
    """Row l - 1 of the same sequence; the first row of a sequence and padding stay as they are."""
    return torch.where((rows > 0) & (rows % length > 0), rows - 1, rows)


def _canvas(tensor: Tensor, length: int) -> Tensor:
    """[B, L, X], from that or from [B*L, X]."""
    if tensor.ndim == 2 and tensor.shape[0] % length == 0:
        return tensor.unflatten(0, (-1, length))
    if tensor.ndim != 3 or tensor.shape[1] != length:
        raise ValueError(
            f"the model's output head saw or gave shape {tuple(tensor.shape)}; expected [B, length={length}, ...]. "
            "forward must return logits for every position"
        )
    return tensor


def _gather(tensor: Tensor, source: Tensor, length: int) -> Tensor:
    return _canvas(tensor, length).flatten(0, 1).index_select(0, source.clamp(min=0))


def _gathered_logits(
    original: Callable[..., Tensor], hidden: Tensor, source: Tensor, length: int, args: Any, kwargs: Any
) -> Tensor:
    picked = _gather(hidden, source, length)
    if hidden.ndim == 3:
        picked = picked[None]
    return original(picked, *args, **kwargs).flatten(0, -2)


def _score_hidden(
    head: nn.Module, original: Callable[..., Tensor], hidden: Tensor, args: Any, kwargs: Any, rows: _Rows
) -> ops.RowScores:
    linear = _is_linear_call(original, args, kwargs)
    if linear and isinstance(head, nn.Linear) and can_fuse(hidden, head.weight, head.bias):
        canvas = _canvas(hidden, rows.length)
        return ops.linear_score_rows(
            canvas,
            head.weight,
            head.bias,
            rows.source,
            guidance_hidden=None if rows.guidance is None else canvas,
            guidance_rows=rows.guidance,
            **rows.options,
        )
    own = torch.arange(rows.source.shape[0], dtype=torch.int32, device=rows.source.device)
    local = torch.where(rows.source >= 0, own, rows.source)
    options = _with_seed_per_sequence(rows.options, hidden, rows.length)
    if rows.guidance is None:
        logits = _gathered_logits(original, hidden, rows.source, rows.length, args, kwargs)
        return ops.score_rows(logits, local, **options)
    both = torch.cat([rows.source, rows.guidance])
    logits = _gathered_logits(original, hidden, both, rows.length, args, kwargs)
    return ops.score_rows(logits, local, guidance_logits=logits, guidance_rows=own + own.shape[0], **options)


def _with_seed_per_sequence(options: dict[str, Any], hidden: Tensor, length: int) -> dict[str, Any]:
    """The options with an int seed spread over the sequences, which gathered logits [C, V] no longer show."""
    seeds = options.get("seeds")
    if not isinstance(seeds, int):
        return options
    temperature = options.get("temperature")
    sequences = _canvas(hidden, length).shape[0]
    if isinstance(temperature, Tensor) and temperature.numel() > 1:
        sequences = temperature.numel()
    keys = torch.arange(sequences, device=hidden.device)
    return {**options, "seeds": derive_seed(signed64(seeds), keys)}


def _is_linear_call(original: Callable[..., Tensor], args: Any, kwargs: Any) -> bool:
    """Whether the forward under our patch is `nn.Linear`'s own, called with nothing but the hidden states."""
    return getattr(original, "__func__", None) is nn.Linear.forward and not args and not kwargs


def _score_logits(logits: Tensor, rows: _Rows) -> ops.RowScores:
    canvas = _canvas(logits, rows.length)
    return ops.score_rows(
        canvas,
        rows.source,
        guidance_logits=None if rows.guidance is None else canvas,
        guidance_rows=rows.guidance,
        **rows.options,
    )
