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
    find_head,
    module_lock,
    needs_no_probe,
    output_logits,
    patched_forward,
)
from mdlm_fast.models._probe import compare, probe_rows
from mdlm_fast.models._row_scores import (
    Rows,
    check_rows,
    gather,
    gathered_logits,
    left_neighbour,
    logprobs_of_hidden,
    score_hidden,
    score_logits,
)

Forward = Callable[[], Any]
_T = TypeVar("_T")


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
            lambda head, original, hidden, args, kwargs: score_hidden(head, original, hidden, args, kwargs, prepared),
            lambda logits: score_logits(logits, prepared),
        )
        return self._run(forward, on, prepared)

    def token_logprobs(
        self,
        forward: Forward,
        rows: Tensor,
        targets: Tensor,
        *,
        length: int,
        shift: bool = False,
        head_gradient: ops.HeadGradient | None = None,
        **logprob_kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Run the model once and return the log-probs of `targets` at `rows`, and the entropies, float32 [C] each.

        They are what the head returns and so what the model's forward returns: wrappers that look at a module's
        output to prepare the backward pass (FSDP) see them. The gradient mode is left as it is.

        Args:
            forward, rows, length, shift: as in `score`.
            targets: int64 [C].
            head_gradient: collects the gradient of a trained head where it can; then no row is padding and entropy has
                no gradient.
            logprob_kwargs: temperature, forbidden_ids, vocab_limit, entropy_grad as in `ops.token_logprobs`.
        """
        prepared = self._prepare(rows, length, shift, None, 0.0, {})

        def on_head(
            head: nn.Module, original: Callable[..., Tensor], hidden: Tensor, args: tuple[Any, ...], kw: dict[str, Any]
        ) -> Tensor:
            pair = logprobs_of_hidden(
                head, original, hidden, args, kw, prepared, targets, logprob_kwargs, head_gradient
            )
            return torch.stack(pair, -1).unflatten(0, (1,) * (hidden.ndim - 2) + (-1,))

        def on_logits(full: Tensor) -> Tensor:
            return torch.stack(ops.token_logprobs(full, prepared.source, targets, **logprob_kwargs), -1)

        result = self._run(forward, _OnHead(on_head, on_logits), prepared, returned=True)
        logp, entropy = result.flatten(0, -2).float().unbind(-1)
        return logp, entropy if logprob_kwargs.get("entropy_grad") else entropy.detach()

    def logits(self, forward: Forward, rows: Tensor, *, length: int, shift: bool = False) -> Tensor:
        """Run the model once and return the logits of `rows`, [C, V] in the model's dtype; a -1 row repeats row 0.

        Arguments as in `score`. The gradient mode is left as it is, so a trainer can differentiate through it.
        """
        prepared = self._prepare(rows, length, shift, None, 0.0, {})

        def on_head(
            head: nn.Module, original: Callable[..., Tensor], hidden: Tensor, args: tuple[Any, ...], kw: dict[str, Any]
        ) -> Tensor:
            return gathered_logits(original, hidden, prepared.source, length, args, kw)

        return self._run(forward, _OnHead(on_head, lambda full: gather(full, prepared.source, length)), prepared)

    # ------------------------------------------------------------------------------------------------------------

    def _prepare(
        self,
        rows: Tensor,
        length: int,
        shift: bool,
        guidance_rows: Tensor | None,
        guidance_scale: float,
        score_kwargs: dict[str, Any],
    ) -> Rows:
        check_rows("rows", rows, length)
        rows = rows.to(torch.int32)
        options = dict(score_kwargs)
        if options.get("row_sequence") is None:
            options["row_sequence"] = rows.clamp(min=0) // length
        if options.get("row_position") is None:
            options["row_position"] = rows.clamp(min=0) % length
        source = left_neighbour(rows, length) if shift else rows
        guidance = None
        if guidance_rows is not None and guidance_scale != 0.0:
            check_rows("guidance_rows", guidance_rows, length)
            guidance = guidance_rows.to(torch.int32)
            if shift:
                guidance = left_neighbour(guidance, length)
            options["guidance_scale"] = guidance_scale
        return Rows(source, guidance, length, options)

    def _run(self, forward: Forward, on: _OnHead, rows: Rows, *, returned: bool = False) -> Any:
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
            return self._run_patched(forward, head, on, returned)

    def _run_patched(self, forward: Forward, head: nn.Module, on: _OnHead, returned: bool) -> Any:
        """`returned`: the result is read from the model's output, else handed over beside it."""
        results: list[Any] = []

        def replacement(original: Callable[..., Tensor], hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            result = on.head(head, original, hidden, args, kwargs)
            if returned:
                results.append(None)
                return result
            results.append(result)
            # Nobody reads what the model returns; width 0 makes any cast or copy of it free.
            return hidden.new_empty((*hidden.shape[:-1], 0))

        with patched_forward(head, replacement):
            output = forward()
        if len(results) == 1:
            return output_logits(output) if returned else results[0]
        self._fall_back(f"its output head ran {len(results)} times in one forward (a compiled graph may hide it)")
        return on.logits(output_logits(forward()))

    def _probe(self, forward: Forward, head: nn.Module, on: _OnHead, rows: Rows) -> Any:
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
