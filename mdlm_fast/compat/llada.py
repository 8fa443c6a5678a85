"""Drop-in for LLaDA's ``generate`` (arXiv 2502.09992)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdlm_fast.compat import _fused_blocks, _released
from mdlm_fast.compat._layout import (
    check_attention_mask,
    check_temperature,
    choice,
    count_blocks,
    device_of,
    even_blocks,
    make_canvas,
    positive,
)

EOS_ID = 126081  # <|endoftext|> of LLaDA's tokenizer
EOT_ID = 126348  # <|eot_id|>


@torch.no_grad()
def generate(
    model: Any,
    prompt: Tensor,
    attention_mask: Tensor | None = None,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 128,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: str = "low_confidence",
    mask_id: int = 126336,
    logits_eos_inf: bool = False,
    confidence_eos_eot_inf: bool = False,
    released: bool = False,
) -> Tensor:
    """LLaDA's decoder: blocks left to right, a uniform schedule, the most confident tokens first.

    Args:
        model: called as ``model(canvas, attention_mask=...)``; returns an object with ``logits`` ``[B, L, V]``. With
            guidance the batch is the canvases followed by the same canvases with the prompt masked.
        prompt: int64 ``[B, P]``. Mask ids in it are filled as well, competing with the block for its quota.
        attention_mask: ``[B, P]``; ones for the generated part are appended.
        steps: forward passes in all, a multiple of the number of blocks.
        gen_length: tokens to generate, a multiple of ``block_length``.
        temperature: 0 is greedy. Confidence is always the untempered probability.
        cfg_scale: strength of classifier-free guidance; 0 is off. Works without an ``attention_mask`` too.
        remasking: "low_confidence" or "random" (uniform confidences from torch's generator).
        logits_eos_inf: never generate EOS (id 126081).
        confidence_eos_eot_inf: EOS and EOT (126348) get confidence 0 and leave the normaliser of the others; above
            temperature 0 the released code does this to EOT alone, and so does this one.
        released: reproduce the published program to the last tie instead of running the fused path.

    Returns:
        int64 ``[B, P + gen_length]``.

    Raises:
        ValueError: lengths that do not divide, an unknown ``remasking``, or an EOS option with a vocabulary that does
            not hold LLaDA's ids.
    """
    choice("remasking", remasking, ("low_confidence", "random"))
    check_temperature(temperature)
    canvas = make_canvas(prompt, gen_length, mask_id, device_of(model, prompt))
    number = count_blocks(gen_length, block_length)
    positive("steps", steps)
    if steps % number:
        raise ValueError(f"steps={steps} is not a multiple of the {number} blocks of gen_length={gen_length}")
    check_attention_mask(attention_mask, prompt)
    if attention_mask is not None:
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(canvas), gen_length)], 1)
    blocks = even_blocks(canvas, mask_id, gen_length, block_length, steps // number)

    def forward(canvases: Tensor) -> Any:
        mask = attention_mask
        if mask is not None and len(canvases) != len(mask):
            mask = torch.cat([mask, mask])
        return model(canvases, attention_mask=mask)

    if not released:
        return _fused_blocks.decode_blocks(
            model,
            forward,
            canvas,
            blocks,
            mask_id=mask_id,
            temperature=temperature,
            cfg_scale=cfg_scale,
            random=remasking == "random",
            attention_mask=attention_mask,
            never=(EOS_ID,) if logits_eos_inf else (),
            last=() if not confidence_eos_eot_inf else (EOT_ID,) if temperature else (EOS_ID, EOT_ID),
        )
    given = canvas != mask_id

    def score(logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        if logits_eos_inf or confidence_eos_eot_inf:
            _fused_blocks.check_special_ids(logits.shape[-1], (EOS_ID, EOT_ID) if confidence_eos_eot_inf else (EOS_ID,))
        if logits_eos_inf:
            logits[..., EOS_ID] = -torch.inf
        noisy = _released.gumbel_scores(logits, temperature, torch.float64)
        tokens = noisy.argmax(-1)
        if confidence_eos_eot_inf:
            # In the released code this meets the softmax below only where `noisy` is the logits, at temperature 0.
            noisy[..., EOS_ID] = -torch.inf
            logits[..., EOT_ID] = -torch.inf
        if remasking == "random":
            return tokens, torch.rand(tokens.shape, device=tokens.device)
        return tokens, _released.probability_of(logits, tokens)

    return _released.decode_blocks(
        lambda canvas: _released.guided_logits(forward, canvas, given, mask_id, cfg_scale),
        score,
        canvas,
        blocks,
        mask_id,
    )
