"""Drop-in for Dream's ``diffusion_generate`` (arXiv 2508.15487; the generation code published with its checkpoints)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import ModelOutput

from mdlm_fast.compat import _fused, _released
from mdlm_fast.compat._layout import check_attention_mask, check_temperature, choice, device_of, positive

TokensHook = Callable[[int | None, Tensor, Tensor | None], Tensor]
LogitsHook = Callable[[int, Tensor, Tensor], Tensor]

_DEFAULTS: dict[str, Any] = {
    "temperature": 0.0,
    "top_p": None,
    "top_k": None,
    "max_length": 20,
    "max_new_tokens": None,
    "eps": 1e-3,
    "steps": 512,
    "alg": "origin",
    "alg_temp": None,
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "output_history": False,
    "mask_token_id": None,
}


@dataclass
class DreamModelOutput(ModelOutput):
    """What ``return_dict_in_generate=True`` returns.

    sequences: ``[B, L]``. history: with ``output_history=True``, the canvas after every step, else None.
    """

    sequences: Tensor | None = None
    history: list[Tensor] | None = None


@torch.no_grad()
def diffusion_generate(
    model: Any,
    inputs: Tensor | None = None,
    generation_config: Any = None,
    *,
    released: bool = False,
    **kwargs: Any,
) -> DreamModelOutput | Tensor:
    """Dream's decoder: the whole canvas at once, a linear-time schedule, logits shifted by one position.

    Args:
        model: called as ``model(canvas, attention_mask, position_ids)``. Without padding that is ``(canvas, "full",
            None)``, as Dream's own class wants; transformers' classes, which know no "full", get None. With padding it
            is a bool mask ``[B, 1, L, L]`` and positions that count real tokens.
        inputs: integer ids ``[B, P]``.
        generation_config: an object with any of the attributes below; a keyword wins over it. ``mask_token_id`` is also
            looked for in ``model.generation_config`` and ``model.config``.
        kwargs: ``attention_mask`` ``[B, P]``; ``max_new_tokens`` or ``max_length`` (default 20 new tokens); ``steps``
            (512); ``eps`` (1e-3, the last time); ``alg`` "origin" (each masked position independently), "maskgit_plus"
            (probability), "topk_margin" or "entropy"; ``alg_temp`` (above 0: positions are drawn, not ranked);
            ``temperature``, ``top_p``, ``top_k``; ``num_return_sequences``; ``return_dict_in_generate``;
            ``output_history``; ``mask_token_id``; ``generation_tokens_hook_func(step, canvas, logits) -> canvas``,
            called once before the first step with step and logits None; ``generation_logits_hook_func(step, canvas,
            logits) -> logits``. Hooks see the shifted logits ``[B, L, V]``, so with one the full logits are computed.
        released: reproduce the published program to the last tie instead of running the fused path. There every row
            of a batch commits the batch's mean, and a row with fewer masks has tokens masked again; the fused path
            counts each row by itself. ``top_p`` keeps there as many ids tied for the last place as it needs, the fused
            path all of them.

    Returns:
        ``[B, L]`` ids, or `DreamModelOutput`.

    Note:
        What is not passed has Dream's own defaults: temperature 0 and no filters. The published method takes them, when
        called without ``generation_config``, from the model's config, where transformers 4.46 (the release that Dream
        names) has ``temperature=1.0, top_p=1.0, top_k=50``. To repeat such a call, pass ``top_k=50`` as well.

    Raises:
        ValueError: no ``inputs``, no mask id, no room to generate, or an unknown ``alg``.
    """
    if inputs is None or inputs.dim() != 2:
        raise ValueError(f"inputs must be token ids [B, P], got {None if inputs is None else tuple(inputs.shape)}")
    options = _options(model, generation_config, kwargs, inputs.shape[1])
    choice("alg", options["alg"], ("origin", "maskgit_plus", "topk_margin", "entropy"))
    positive("steps", options["steps"])
    check_temperature(options["temperature"])
    attention_mask = kwargs.get("attention_mask")
    check_attention_mask(attention_mask, inputs)
    if options["num_return_sequences"] != 1:
        inputs = inputs.repeat_interleave(options["num_return_sequences"], 0)
        if attention_mask is not None:
            attention_mask = attention_mask.repeat_interleave(options["num_return_sequences"], 0)
    canvas = F.pad(inputs.long(), (0, options["max_length"] - inputs.shape[1]), value=options["mask_token_id"])
    if attention_mask is not None and bool((attention_mask == 0).any()):
        attention_mask = F.pad(attention_mask, (0, canvas.shape[1] - attention_mask.shape[1]), value=1)
    else:
        attention_mask = None
    forward = _forward(model, attention_mask)
    hooks = _Hooks(kwargs.get("generation_tokens_hook_func"), kwargs.get("generation_logits_hook_func"))
    history: list[Tensor] | None = None
    if options["return_dict_in_generate"] and options["output_history"]:
        history = []
    decode = _decode_released if released else _decode_fused
    canvas = decode(model, forward, canvas, options, hooks, history, attention_mask)
    return DreamModelOutput(sequences=canvas, history=history) if options["return_dict_in_generate"] else canvas


@dataclass
class _Hooks:
    tokens: TokensHook | None
    logits: LogitsHook | None

    def on_tokens(self, step: int | None, canvas: Tensor, logits: Tensor | None) -> Tensor:
        return canvas if self.tokens is None else self.tokens(step, canvas, logits)

    def on_logits(self, step: int, canvas: Tensor, logits: Tensor) -> Tensor:
        return logits if self.logits is None else self.logits(step, canvas, logits)


def _options(model: Any, generation_config: Any, kwargs: dict[str, Any], prompt_length: int) -> dict[str, Any]:
    """The options in force, by the published precedence, with ``max_length`` resolved."""
    options = dict(_DEFAULTS)
    given = {name: getattr(generation_config, name, None) for name in _DEFAULTS}
    options |= {name: value for name, value in given.items() if value is not None}
    for source in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        if options["mask_token_id"] is None:
            options["mask_token_id"] = getattr(source, "mask_token_id", None)
    options |= {name: value for name, value in kwargs.items() if name in _DEFAULTS}
    if options["mask_token_id"] is None:
        raise ValueError("mask_token_id is neither an argument nor in the generation config: pass mask_token_id=")
    if options["max_new_tokens"] is not None:
        options["max_length"] = options["max_new_tokens"] + prompt_length
    elif kwargs.get("max_length") is None and options["max_length"] == _DEFAULTS["max_length"]:
        limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        options["max_length"] = min(options["max_length"] + prompt_length, limit or 2**62)
    if prompt_length >= options["max_length"]:
        raise ValueError(
            f"max_length={options['max_length']} leaves no room after a prompt of {prompt_length}; pass max_new_tokens="
        )
    return options


def _forward(model: Any, attention_mask: Tensor | None) -> _released.Forward:
    """The released call of the model, which has three positional arguments."""
    if attention_mask is None:
        ours = type(model).__module__.startswith("transformers.models.")
        pair: Any = None if ours else "full"
        positions = None
    else:
        positions = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)
        real = attention_mask.bool()
        pair = real[:, None, None, :] & real[:, None, :, None]
    return lambda canvas: model(canvas, pair, positions)


def _transfer(options: dict[str, Any], device: torch.device) -> Tensor:
    """float32 ``[steps]``: the share of the masks revealed at each step, 1 - t[i+1] / t[i]; the last reveals all."""
    times = torch.linspace(1, options["eps"], options["steps"] + 1, device=device)
    share = 1 - times[1:] / times[:-1]
    share[-1] = 1.0
    return share


def _shifted(logits: Tensor) -> Tensor:
    return torch.cat([logits[:, :1], logits[:, :-1]], 1)


def _decode_released(
    model: Any,
    forward: _released.Forward,
    canvas: Tensor,
    options: dict[str, Any],
    hooks: _Hooks,
    history: list[Tensor] | None,
    attention_mask: Tensor | None,
) -> Tensor:
    mask_id, temperature = options["mask_token_id"], options["temperature"]
    canvas = hooks.on_tokens(None, canvas, None)
    for step, share in enumerate(_transfer(options, canvas.device)):
        masked = canvas == mask_id
        logits = hooks.on_logits(step, canvas, _shifted(_released.logits_of(forward(canvas))))
        scored = masked
        if options["alg"] == "origin":
            transferred = torch.rand(int(masked.sum()), device=device_of(model, canvas)) < share
            scored = masked.clone()
            scored[masked] = transferred
        probabilities = _released.filtered_probabilities(
            logits[scored], temperature, options["top_p"], options["top_k"]
        )
        confidence, tokens = _released.draw(probabilities, temperature)
        predicted = torch.full_like(canvas, mask_id)
        predicted[scored] = tokens
        if options["alg"] == "origin":
            canvas[scored] = tokens
        else:
            confidence = _released.distribution_confidence(probabilities, options["alg"], confidence)
            ranking = torch.full_like(canvas, -torch.inf, dtype=logits.dtype)
            ranking[masked] = confidence
            count = int(masked.sum() / max(1, len(canvas)) * share)
            if count > 0:
                if options["alg_temp"]:
                    chosen = (ranking / options["alg_temp"]).softmax(-1).multinomial(count)
                else:
                    chosen = ranking.topk(count).indices
                canvas.scatter_(1, chosen, predicted.gather(1, chosen))
        canvas = hooks.on_tokens(step, canvas, logits)
        if history is not None:
            history.append(canvas.clone())
    return canvas


def _decode_fused(
    model: Any,
    forward: _released.Forward,
    canvas: Tensor,
    options: dict[str, Any],
    hooks: _Hooks,
    history: list[Tensor] | None,
    attention_mask: Tensor | None,
) -> Tensor:
    mask_id = options["mask_token_id"]
    hooked = hooks.tokens is not None or hooks.logits is not None
    seen: Tensor | None = None
    step = 0

    def forward_with_hooks(canvas: Tensor) -> Tensor:
        nonlocal seen
        seen = hooks.on_logits(step, canvas, _shifted(_released.logits_of(forward(canvas))))
        return seen

    decoder = _fused.Decoder(
        forward_with_hooks if hooked else model,
        forward_with_hooks if hooked else forward,
        hooks.on_tokens(None, canvas, None),
        mask_id,
        temperature=options["temperature"],
        attention_mask=attention_mask,
        shift=not hooked,
        top_k=options["top_k"],
        top_p=options["top_p"],
    )
    for step, share in enumerate(_transfer(options, canvas.device)):
        rows = decoder.open_block(decoder.length)
        if options["alg"] == "origin":
            rows = rows[torch.rand(rows.shape, device=rows.device) < share]
            counts = [decoder.length] * decoder.batch
        else:
            counts = (torch.tensor(decoder.left, dtype=torch.float32) * share.cpu()).long().tolist()
        if rows.numel() == 0 or not any(counts):
            decoder.skip()
        else:
            tokens, logp, ranking = decoder.filtered_scores(rows, options["alg"])
            confidence = ranking if options["alg"] in _fused.MEASURES else logp.exp()
            if options["alg_temp"] and options["alg"] != "origin":
                ranking = _draw_first(decoder, rows, confidence, counts, options["alg_temp"])
            elif decoder.ties_are_common:
                ranking = decoder.take_as_topk(rows, confidence, counts)
            decoder.commit(rows, tokens, ranking, counts)
        if hooks.tokens is not None:
            decoder.replace(hooks.on_tokens(step, decoder.canvas, seen))
        if history is not None:
            history.append(decoder.canvas.clone())
    return decoder.canvas


def _draw_first(decoder: _fused.Decoder, rows: Tensor, ranking: Tensor, counts: list[int], alg_temp: float) -> Tensor:
    """Ranking in which ``counts[b]`` positions of row b, drawn by softmax(ranking / alg_temp), come before all others.

    torch's generator is used in the released shape and order. A draw can run out of positions whose probability has not
    underflowed; the most confident of the others then follow.
    """
    whole = torch.full(decoder.canvas.shape, -torch.inf, device=rows.device)
    whole.view(-1)[rows] = ranking
    drawn = torch.zeros_like(decoder.masked)
    groups = [slice(None)] if len(set(counts)) == 1 else [slice(row, row + 1) for row in range(len(counts))]
    for group in groups:
        count = counts[group][0]
        if count > 0:
            chosen = (whole[group] / alg_temp).softmax(-1).multinomial(count)
            drawn[group] = drawn[group].scatter(1, chosen, True)
    return ranking.masked_fill(drawn.flatten()[rows], torch.inf)
