"""MaskedDiffusionModel: a model with what decoding must know about it, and its padding and shift done right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mdlm_fast import ops
from mdlm_fast.models import _introspect as inspect_model
from mdlm_fast.models._patch import output_logits
from mdlm_fast.models.head import RowHead
from mdlm_fast.models.padding import Padding, PaddingReader

ATTENTION_KINDS = ("full", "causal", "block")


class MaskedDiffusionModel:
    """A masked diffusion model: the Hugging Face model plus its mask id, EOS ids, shift and attention.

    Make one with `wrap` or `load_model`.

    Attributes:
        model: the wrapped module, called as it is; its weights and config are not changed.
        tokenizer: or None.
        mask_id: id of the mask token.
        eos_ids: ids that end a text; may be empty.
        shift: True if position l is predicted by the model's row l - 1 (Dream).
        attention: "full" (bidirectional), "causal" (as the model's own config says), or "block": a position attends to
            its own block of `block_size` real tokens and to all earlier ones.
        block_size: with attention="block", tokens per block; else None.
        vocab_size: width V of the logits.
        vocab_limit: ids at or above it have no token and must not be decoded; None if every id has one.
        settings: the free part of a checkpoint's `mdlm_fast.json`, such as task settings.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        mask_id: int,
        eos_ids: tuple[int, ...] = (),
        shift: bool = False,
        attention: str = "full",
        block_size: int | None = None,
        vocab_size: int,
        vocab_limit: int | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.mask_id = mask_id
        self.eos_ids = eos_ids
        self.shift = shift
        self.attention = attention
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.vocab_limit = vocab_limit
        self.settings = dict(settings or {})
        self._head = RowHead.of(model)
        self._accepts = inspect_model.forward_arguments(model)
        self._position_offset = inspect_model.position_offset(model)
        self._max_length = inspect_model.max_length(model)
        self._embeddings = inspect_model.embedding_count(model)
        self._force_full = attention == "full" and inspect_model.is_causal(model)
        self._read_padding = PaddingReader()

    @property
    def device(self) -> torch.device:
        """Where the model's first parameter lies."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's first floating-point parameter."""
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    def __repr__(self) -> str:
        shown = ("mask_id", "eos_ids", "shift", "attention", "block_size", "vocab_size", "vocab_limit")
        facts = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
        return f"MaskedDiffusionModel({type(self.model).__name__}, {facts}, device={self.device}, dtype={self.dtype})"

    def with_module(self, module: nn.Module) -> MaskedDiffusionModel:
        """The same facts about another module: this one inside an adapter, or a copy of it."""
        return MaskedDiffusionModel(
            module,
            self.tokenizer,
            mask_id=self.mask_id,
            eos_ids=self.eos_ids,
            shift=self.shift,
            attention=self.attention,
            block_size=self.block_size,
            vocab_size=self.vocab_size,
            vocab_limit=self.vocab_limit,
            settings=self.settings,
        )

    def score_rows(
        self,
        input_ids: Tensor,
        rows: Tensor,
        *,
        attention_mask: Tensor | None = None,
        guidance_rows: Tensor | None = None,
        guidance_scale: float = 0.0,
        **score_kwargs: Any,
    ) -> ops.RowScores:
        """Run the model once and score chosen canvas positions, without the logits of the others.

        Args:
            input_ids: int64 [B, L].
            rows: int [C], flat canvas index b*L + l, -1 = padding.
            attention_mask: bool or integer [B, L], True = real; left and right padding, or None if nothing is padded.
            guidance_rows, guidance_scale: classifier-free guidance, as in `RowHead.score`; `input_ids` then holds
                the unconditional canvases too.
            score_kwargs: as `ops.score_rows`, except logits, rows and guidance. `row_sequence` defaults to b,
                `row_position` to the number of real tokens before the position, so padding changes no draw.

        Returns:
            RowScores of [C] tensors, shift already applied.
        """
        padding = self._check(input_ids, attention_mask)
        _check_range("rows", rows, input_ids)
        if guidance_rows is not None:
            _check_range("guidance_rows", guidance_rows, input_ids)
        length = input_ids.shape[1]
        if padding is not None:  # the hidden row is not the canvas row, so RowHead cannot tell these
            real = rows.clamp(min=0)
            if score_kwargs.get("row_sequence") is None:
                score_kwargs["row_sequence"] = (real // length).to(torch.int32)
            if score_kwargs.get("row_position") is None:
                score_kwargs["row_position"] = padding.position_ids.flatten()[real].to(torch.int32)
        return self._head.score(
            self._forward(input_ids, padding),
            self._source(rows, padding),
            length=length,
            shift=self.shift and padding is None,
            guidance_rows=None if guidance_rows is None else self._source(guidance_rows, padding),
            guidance_scale=guidance_scale,
            **score_kwargs,
        )

    def row_logits(self, input_ids: Tensor, rows: Tensor, *, attention_mask: Tensor | None = None) -> Tensor:
        """Run the model once and return the logits [C, V] that predict `rows` (shift applied), in the model's dtype."""
        padding = self._check(input_ids, attention_mask)
        _check_range("rows", rows, input_ids)
        return self._head.logits(
            self._forward(input_ids, padding),
            self._source(rows, padding),
            length=input_ids.shape[1],
            shift=self.shift and padding is None,
        )

    def token_logprobs(
        self,
        input_ids: Tensor,
        rows: Tensor,
        targets: Tensor,
        *,
        attention_mask: Tensor | None = None,
        module: nn.Module | None = None,
        head_gradient: ops.HeadGradient | None = None,
        **logprob_kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Run the model once and return the log-probs of tokens at chosen positions, without the logits of the others.

        Differentiable with respect to the model's parameters.

        Args:
            input_ids: int64 [B, L]. rows: int [C], flat canvas index b*L + l, -1 = padding. targets: int64 [C].
            attention_mask: as in `score_rows`.
            module: what to call in place of `model`: the same module inside a wrapper (DistributedDataParallel).
            head_gradient: collects the gradient of the LM head over several calls (see `ops.HeadGradient`); None: it
                flows with the others.
            logprob_kwargs: temperature, forbidden_ids, vocab_limit, entropy_grad of `ops.token_logprobs`.

        Returns:
            (log-probs float32 [C], entropies float32 [C]); -1 rows give (-inf, 0).
        """
        padding = self._check(input_ids, attention_mask)
        _check_range("rows", rows, input_ids)
        return self._head.token_logprobs(
            self._forward(input_ids, padding, module),
            self._source(rows, padding),
            targets,
            length=input_ids.shape[1],
            shift=self.shift and padding is None,
            head_gradient=head_gradient,
            **logprob_kwargs,
        )

    def logits(self, input_ids: Tensor, *, attention_mask: Tensor | None = None) -> Tensor:
        """Run the model once and return [B, L, V] logits, row l predicting position l (under shift a copy)."""
        padding = self._check(input_ids, attention_mask)
        logits = output_logits(self._forward(input_ids, padding)())
        if not self.shift:
            return logits
        if padding is not None:
            return logits.flatten(0, 1)[padding.left].view_as(logits)
        left = (torch.arange(logits.shape[1], device=logits.device) - 1).clamp(min=0)
        return logits[:, left]

    # ------------------------------------------------------------------------------------------------------------

    def _source(self, rows: Tensor, padding: Padding | None) -> Tensor:
        """The hidden row that predicts each row, where padding decides it; RowHead shifts unpadded batches itself."""
        if not self.shift or padding is None:
            return rows
        return torch.where(rows >= 0, padding.left[rows.clamp(min=0)].to(rows.dtype), rows)

    def _forward(
        self, input_ids: Tensor, padding: Padding | None, module: nn.Module | None = None
    ) -> Callable[[], Any]:
        arguments = self._arguments(input_ids, padding)
        called = self.model if module is None else module
        return lambda: called(input_ids=input_ids, **arguments)

    def _arguments(self, input_ids: Tensor, padding: Padding | None) -> dict[str, Any]:
        length = input_ids.shape[1]
        arguments: dict[str, Any] = {}
        if "use_cache" in self._accepts:
            arguments["use_cache"] = False
        if self._force_full:
            arguments["is_causal"] = False
        if self._position_offset or (padding is not None and "position_ids" in self._accepts):
            counted = torch.arange(length, device=input_ids.device)[None] if padding is None else padding.position_ids
            arguments["position_ids"] = counted + self._position_offset
        if self.attention == "block":
            arguments["attention_mask"] = self._block_mask(input_ids, padding)
        elif padding is not None:
            arguments["attention_mask"] = padding.real.to(torch.int64)
        return arguments

    def _block_mask(self, input_ids: Tensor, padding: Padding | None) -> Tensor:
        """[B or 1, 1, L, L]: who may attend to whom, in the form the model's attention wants (bool, or additive)."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        block = (positions if padding is None else padding.position_ids) // (self.block_size or 1)
        allowed = block[:, :, None] >= block[:, None, :]
        if padding is not None:
            allowed = allowed & padding.real[:, None, :]
        allowed = allowed[:, None]
        if getattr(self.model.config, "_attn_implementation", "eager") == "sdpa":
            return allowed
        return torch.zeros_like(allowed, dtype=self.dtype).masked_fill(~allowed, torch.finfo(self.dtype).min)

    def _check(self, input_ids: Tensor, attention_mask: Tensor | None) -> Padding | None:
        if input_ids.ndim != 2 or input_ids.dtype not in (torch.int64, torch.int32) or 0 in input_ids.shape:
            raise ValueError(
                f"input_ids must be int64 of shape [B, L] with B, L >= 1, got {input_ids.dtype} of shape "
                f"{tuple(input_ids.shape)}"
            )
        if self._max_length is not None and input_ids.shape[1] > self._max_length:
            raise ValueError(
                f"input_ids has {input_ids.shape[1]} positions but the model was built for {self._max_length}"
            )
        if input_ids.device.type == "cpu" and self._embeddings is not None:  # elsewhere it would cost a sync
            low, high = (int(v) for v in input_ids.aminmax())
            if low < 0 or high >= self._embeddings:
                wrong = low if low < 0 else high
                raise ValueError(f"input_ids contains {wrong}; the model knows ids 0 to {self._embeddings - 1}")
        if attention_mask is None:
            return None
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}; they "
                "must be equal"
            )
        padding = self._read_padding(attention_mask)
        if padding is not None and "attention_mask" not in self._accepts:
            raise ValueError(
                f"attention_mask pads the batch, but {type(self.model).__name__}.forward takes no attention_mask; "
                "batch sequences of equal length only"
            )
        learned = self._max_length is not None and "position_ids" not in self._accepts
        if padding is not None and padding.displaced and learned:
            raise ValueError(
                f"attention_mask pads on the left, but {type(self.model).__name__} has learned positions and takes no "
                "position_ids; pad on the right"
            )
        return padding


def _check_range(name: str, rows: Tensor, input_ids: Tensor) -> None:
    if rows.ndim != 1 or rows.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} must be int32 or int64 of shape [C], got {rows.dtype} of shape {tuple(rows.shape)}")
    if rows.device != input_ids.device:
        raise ValueError(f"{name} is on {rows.device}, input_ids on {input_ids.device}; move it there")
    if rows.device.type != "cpu" or not rows.numel():  # elsewhere a look at the values would cost a sync
        return
    low, high = (int(v) for v in rows.aminmax())
    if low < -1 or high >= input_ids.numel():
        wrong = low if low < -1 else high
        raise ValueError(
            f"{name} contains {wrong}; input_ids of shape {tuple(input_ids.shape)} has rows 0 to "
            f"{input_ids.numel() - 1}, and -1 is padding"
        )


def as_ids(name: str, ids: int | Sequence[int] | None) -> tuple[int, ...]:
    """One id, several, or none, as a tuple without repeats, in order.

    Raises:
        ValueError: a negative or non-integer id.
    """
    if ids is None:
        return ()
    listed = [ids] if isinstance(ids, int) else list(ids)
    for value in listed:
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{name} must be ids of 0 or more, got {value!r}")
    return tuple(dict.fromkeys(listed))
