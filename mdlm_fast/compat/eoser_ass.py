"""Drop-ins for the four decoders of EOSER/ASS (arXiv 2509.23924), as the published evaluation runs them.

EOSER (EOS early rejection) multiplies the confidence of a predicted EOS by gamma, which rises from ``eos_min_gamma`` to
``eos_max_gamma``. `eoser_generate` feeds it the step inside the block although ``steps`` counts all blocks, so with
several blocks gamma starts again in each; `eoser_ass_generate` feeds it the share of the canvas revealed so far.
ASS (ascending step size) reveals 1, 2, 4, ... tokens a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mdlm_fast.compat import _fused_blocks, _released
from mdlm_fast.compat._layout import (
    Block,
    ascending_blocks,
    check_temperature,
    choice,
    count_blocks,
    even_blocks,
    make_canvas,
    positive,
)


def _gammas(progress: Sequence[float], low: float, high: float) -> list[float]:
    return [low + (high - low) * done if len(progress) > 1 else high for done in progress]


def _uniform_gammas(steps: int, low: float, high: float) -> list[float]:
    return _gammas([step / (steps - 1) if steps > 1 else 1.0 for step in range(steps)], low, high)


def _ascending_gammas(steps: int, low: float, high: float) -> list[float]:
    return _gammas([(2 ** (step + 1) - 1) / 2**steps for step in range(steps)], low, high)


def _decode(
    model: Any,
    canvas: Tensor,
    blocks: Iterable[Block],
    temperature: float,
    cfg_scale: float,
    remasking: str,
    mask_id: int,
    released: bool,
    tokenizer: Any = None,
    gammas: Sequence[float] | None = None,
) -> Tensor:
    """The common decoder. ``gammas`` holds the EOS factor of each step index; None is no EOSER."""
    choice("remasking", remasking, ("low_confidence", "random"))
    check_temperature(temperature)
    random = remasking == "random"
    eos_id = None
    if gammas is not None and not random:
        eos_id = getattr(tokenizer, "eos_token_id", None)
        if not isinstance(eos_id, int):
            raise ValueError(f"tokenizer.eos_token_id is {eos_id!r}; EOSER needs one EOS id")
    if not released:
        return _fused_blocks.decode_blocks(
            model,
            model,
            canvas,
            blocks,
            mask_id=mask_id,
            temperature=temperature,
            cfg_scale=cfg_scale,
            random=random,
            eos_id=eos_id,
            gammas=gammas,
        )
    given = canvas != mask_id

    def score(logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        tokens = _released.gumbel_scores(logits, temperature, torch.float32).argmax(-1)
        if random:
            return tokens, torch.rand(tokens.shape, device=tokens.device)
        if eos_id is None or gammas is None:
            return tokens, _released.probability_of(logits, tokens)
        confidence = _released.probability_of(logits.to(getattr(model, "dtype", logits.dtype)), tokens)
        return tokens, torch.where(tokens == eos_id, confidence * gammas[step], confidence)

    return _released.decode_blocks(
        lambda canvas: _released.guided_logits(model, canvas, given, mask_id, cfg_scale),
        score,
        canvas,
        blocks,
        mask_id,
    )


def _even(canvas: Tensor, mask_id: int, gen_length: int, block_length: int, steps: int) -> Iterator[Block]:
    number = count_blocks(gen_length, block_length)
    positive("steps", steps)
    return even_blocks(canvas, mask_id, gen_length, block_length, max(1, steps // number))


@torch.no_grad()
def generate(
    model: Any,
    prompt: Tensor,
    tokenizer: Any,
    steps: int = 64,
    gen_length: int = 128,
    block_length: int = 32,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: str = "low_confidence",
    mask_id: int = 126336,
    released: bool = False,
) -> Tensor:
    """Plain LLaDA decoding as EOSER/ASS's evaluation runs it.

    Args:
        model: called as ``model(canvas)``; returns an object with ``logits`` ``[B, L, V]``.
        prompt: int64 ``[B, P]``.
        tokenizer: not used here; the published signature has it.
        steps: shared out over the blocks, rounded down, at least one a block.
        gen_length: a multiple of ``block_length``.
        temperature: 0 is greedy.
        cfg_scale: classifier-free guidance; 0 is off.
        remasking: "low_confidence" or "random".
        released: reproduce the published program to the last tie instead of running the fused path.

    Returns:
        int64 ``[B, P + gen_length]``.
    """
    canvas = make_canvas(prompt, gen_length, mask_id, prompt.device)
    blocks = _even(canvas, mask_id, gen_length, block_length, steps)
    return _decode(model, canvas, blocks, temperature, cfg_scale, remasking, mask_id, released)


@torch.no_grad()
def eoser_generate(
    model: Any,
    prompt: Tensor,
    tokenizer: Any,
    steps: int = 64,
    gen_length: int = 128,
    block_length: int = 32,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: str = "low_confidence",
    mask_id: int = 126336,
    eos_min_gamma: float = 0.4,
    eos_max_gamma: float = 1.0,
    released: bool = False,
) -> Tensor:
    """`generate` with EOSER: step i of every block uses gamma = min + (max - min) i / (steps - 1).

    Args:
        tokenizer: ``tokenizer.eos_token_id`` is the one EOS id.
        eos_min_gamma, eos_max_gamma: bounds of gamma. One step uses ``eos_max_gamma``.
        The rest as in `generate`. "random" confidences are not discounted.

    Returns:
        int64 ``[B, P + gen_length]``.
    """
    canvas = make_canvas(prompt, gen_length, mask_id, prompt.device)
    blocks = _even(canvas, mask_id, gen_length, block_length, steps)
    gammas = _uniform_gammas(steps, eos_min_gamma, eos_max_gamma)
    return _decode(model, canvas, blocks, temperature, cfg_scale, remasking, mask_id, released, tokenizer, gammas)


@torch.no_grad()
def ass_generate(
    model: Any,
    prompt: Tensor,
    tokenizer: Any,
    steps: int = 7,
    gen_length: int = 128,
    block_num: int = 4,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: str = "low_confidence",
    mask_id: int = 126336,
    released: bool = False,
) -> Tensor:
    """Ascending step size: step i reveals 2^i tokens, the last step the rest.

    Args:
        steps: floor(log2(gen_length)); anything else is an error, as it is in the published code.
        block_num: blocks of unequal size, 1 to ``steps``: the later powers of two become blocks of one step each.
        The rest as in `generate`.

    Returns:
        int64 ``[B, P + gen_length]``.
    """
    canvas = make_canvas(prompt, gen_length, mask_id, prompt.device)
    blocks = ascending_blocks(prompt, gen_length, block_num, steps)
    return _decode(model, canvas, blocks, temperature, cfg_scale, remasking, mask_id, released)


@torch.no_grad()
def eoser_ass_generate(
    model: Any,
    prompt: Tensor,
    tokenizer: Any,
    steps: int = 7,
    gen_length: int = 128,
    block_num: int = 4,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: str = "low_confidence",
    mask_id: int = 126336,
    eos_min_gamma: float = 0.01,
    eos_max_gamma: float = 1.0,
    released: bool = False,
) -> Tensor:
    """`ass_generate` with EOSER: gamma = min + (max - min) (2^(i+1) - 1) / 2^steps at step i.

    Arguments as in `ass_generate` and `eoser_generate`.

    Returns:
        int64 ``[B, P + gen_length]``.
    """
    canvas = make_canvas(prompt, gen_length, mask_id, prompt.device)
    blocks = ascending_blocks(prompt, gen_length, block_num, steps)
    gammas = _ascending_gammas(steps, eos_min_gamma, eos_max_gamma)
    return _decode(model, canvas, blocks, temperature, cfg_scale, remasking, mask_id, released, tokenizer, gammas)
