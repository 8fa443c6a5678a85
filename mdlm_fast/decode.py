"""`generate`: prompts in, filled canvases out."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdlm_fast.canvas import build_canvas
from mdlm_fast.captured import CapturedDecoder
from mdlm_fast.config import DecodeConfig
from mdlm_fast.engine import Decoder
from mdlm_fast.output import DecodeStats, GenerateOutput
from mdlm_fast.policies import row_seeds, row_temperatures
from mdlm_fast.progress import Watchers
from mdlm_fast.smc import particle_seeds, total_logp
from mdlm_fast.stopping import fill_tail
from mdlm_fast.trajectory import Trajectory


def generate(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    config: DecodeConfig | None = None,
    **overrides: Any,
) -> GenerateOutput:
    """Decodes the masks behind, and inside, every prompt.

    Args:
        model: a MaskedDiffusionModel, a plain Hugging Face model (wrapped with `mdlm_fast.wrap`), or any object with
            the methods of `mdlm_fast.scoring.Scorer` and the attributes mask_id, eos_ids, device, and if they matter
            vocab_limit, vocab_size and tokenizer.
        input_ids: int64 [B, P]. Mask tokens in a prompt are filled too (infilling), as part of the first block. With
            gen_length=0 nothing is appended and only they are filled.
        attention_mask: bool or 0/1 [B, P], 0 on pads, which may be on the left or on the right of the real tokens.
            Pads are never attended to nor written, and change no result.
        config: default DecodeConfig(). Keyword arguments override its fields: ``generate(model, ids, steps=32)``.

    Hooks and streamers (fields of the config) are called with a `mdlm_fast.row_state.StepState`:
        logits_hook(state, rows, logits): before sampling; rows int32 [C] are flat indices into state.canvas (-1 =
            padding), logits [C, V] predict them. Returns logits [C, V].
        token_hook(state): after a step. Returns None or a changed canvas.
        streamer: callable with a StepState after every step, or an object as transformers' TextDiffusionStreamer:
            put(ids) with the prompt and at the end with the generated tokens, put_draft(ids) after every step if it
            has it, end().
            Such an object follows one sequence only.

    Returns:
        GenerateOutput; row b * num_return_sequences + k is sample k of prompt b.

    Raises:
        TypeError, ValueError: an argument that does not fit, named with its value.
    """
    begin = time.perf_counter()
    config = DecodeConfig() if config is None else config
    if not isinstance(config, DecodeConfig):
        raise TypeError(f"config must be a DecodeConfig, got {config!r}; DecodeConfig.preset(name) makes one by name")
    config = config.replace(**overrides) if overrides else config
    model = _as_scorer(model)
    eos_ids = tuple(model.eos_ids)
    tokenizer = getattr(model, "tokenizer", None)
    device = torch.device(model.device)
    if isinstance(input_ids, Tensor) and input_ids.device != device:
        raise ValueError(f"input_ids is on {input_ids.device}, the model on {device}: move input_ids there")
    vocabulary = getattr(model, "vocab_size", None)
    limit = _vocab_limit(config, model, vocabulary)
    _check_ids(config, eos_ids, vocabulary, model.mask_id)
    fill_id = _fill_id(config, eos_ids, tokenizer)
    prompts = build_canvas(input_ids, attention_mask, config.block_sizes(), model.mask_id, vocabulary)
    count, copies = prompts.ids.shape[0], config.num_return_sequences
    particles = config.smc.particles if config.smc else 1
    seeds = row_seeds(config, count, copies, device)
    if particles > 1:
        seeds = particle_seeds(seeds, particles)
    canvas = prompts.repeat(copies * particles)
    with ExitStack() as stack:
        watchers = stack.enter_context(Watchers(config, canvas, input_ids))
        decoder = (CapturedDecoder if config.cuda_graph else Decoder)(
            model,
            canvas,
            config,
            seeds=seeds,
            temperature=row_temperatures(config, count, copies * particles, device),
            twins=_twins(prompts.ids, prompts.real, copies * particles),
            eos_ids=eos_ids,
            vocab_limit=limit,
            tokenizer=tokenizer,
            on_step=watchers.on_step if watchers.any else None,
        )
        if canvas.ids.numel():
            decoder.run()
        chosen = torch.arange(count * copies, device=device)
        if particles > 1:
            best = total_logp(decoder.rows).view(-1, particles).argmax(1)
            chosen = chosen * particles + best
        state = decoder.rows.take(chosen)
        last = decoder.last[chosen]
        sequences = fill_tail(state.canvas, state.eligible, last, fill_id)
        watchers.finish(sequences)
    trajectory = _trajectory(decoder, config, chosen, state, sequences, limit) if config.record != "none" else None
    text = _text(tokenizer, sequences, canvas.start[chosen], canvas.generated, last, eos_ids, model.mask_id)
    return GenerateOutput(sequences, text, trajectory, _stats(decoder, chosen, state, time.perf_counter() - begin))


def _as_scorer(model: Any) -> Any:
    if hasattr(model, "score_rows") and hasattr(model, "row_logits"):
        return model
    from mdlm_fast.models import wrap

    return wrap(model)


def _vocab_limit(config: DecodeConfig, model: Any, vocabulary: int | None) -> int | None:
    limits = [limit for limit in (config.vocab_limit, getattr(model, "vocab_limit", None)) if limit is not None]
    limit = min(limits, default=None)
    return None if vocabulary is not None and limit is not None and limit >= vocabulary else limit


def _check_ids(config: DecodeConfig, eos_ids: tuple[int, ...], vocabulary: int | None, mask_id: int | None) -> None:
    if mask_id is None:
        raise ValueError("the model has no mask_id: wrap it with mdlm_fast.wrap(model, tokenizer, mask_id=...)")
    if vocabulary is not None:
        wrong = [token for token in config.forbid_ids if token >= vocabulary]
        if wrong:
            raise ValueError(f"forbid_ids holds {wrong[0]}: token ids must be below the vocabulary size {vocabulary}")
    if not eos_ids and config.stop_at_eos:
        raise ValueError("stop_at_eos needs the model's end-of-sequence ids: wrap it with eos_ids=")
    if config.eoser is not None and config.eoser.eos_ids is None and not eos_ids:
        raise ValueError("eoser needs end-of-sequence ids: wrap the model with eos_ids=, or give EOSER(eos_ids=)")


def _fill_id(config: DecodeConfig, eos_ids: tuple[int, ...], tokenizer: Any) -> int:
    if eos_ids:
        return eos_ids[0]
    pad = getattr(tokenizer, "pad_token_id", None)
    if config.stop_strings and pad is None:
        raise ValueError(
            "stop_strings fills what is left of a row with EOS, but the model has no eos_ids: wrap it with eos_ids="
        )
    return int(pad or 0)


def _twins(ids: Tensor, real: Tensor, copies: int) -> np.ndarray:
    """int64 [B * copies], the same number for rows that start from the same canvas."""
    if ids.shape[0] > 1 and ids.shape[1]:
        number = torch.unique(torch.cat([ids, real.long()], 1), dim=0, return_inverse=True)[1].cpu().numpy()
    else:
        number = np.arange(ids.shape[0])
    return np.repeat(number, copies)


def _trajectory(
    decoder: Decoder, config: DecodeConfig, chosen: Tensor, state: Any, sequences: Tensor, limit: int | None
) -> Trajectory:
    never = state.commit_step < 0
    events = predictions = None
    row_steps = torch.from_numpy(decoder.row_steps).to(chosen.device)[chosen].to(torch.int32)
    if decoder.recorder is not None:
        steps = int(row_steps.max()) if row_steps.numel() else 0
        events, predictions = decoder.recorder.result(steps, chosen)
    return Trajectory(
        sequences=torch.where(state.masked, sequences, state.canvas),
        commit_step=state.commit_step,
        commit_logp=state.commit_logp.masked_fill(never, 0.0),
        commit_logp_T=state.commit_logp_T.masked_fill(never, 0.0),
        commit_confidence=state.commit_confidence.masked_fill(never, 0.0),
        eligible=state.eligible,
        mask_id=decoder.canvas.mask_id,
        forbidden_ids=decoder.scoring.forbidden,
        vocab_limit=limit,
        row_steps=row_steps,
        normalize_all=config.normalize_over == "all",
        events=events,
        predictions=predictions,
    )


def _text(
    tokenizer: Any,
    sequences: Tensor,
    start: Tensor,
    generated: int,
    last: Tensor,
    eos_ids: tuple[int, ...],
    mask_id: int,
) -> list[str] | None:
    """Text of the generated part of each row, or of the whole row when nothing was appended."""
    if tokenizer is None:
        return None
    texts = []
    rows = zip(sequences.tolist(), start.tolist(), last.tolist(), strict=True)
    for ids, first, final in rows:
        part = ids[first : min(first + generated, final + 1)] if generated else ids
        end = next((i for i, token in enumerate(part) if token in eos_ids), len(part)) if generated else len(part)
        texts.append(tokenizer.decode([token for token in part[:end] if token != mask_id], skip_special_tokens=True))
    return texts


def _stats(decoder: Decoder, chosen: Tensor, state: Any, seconds: float) -> DecodeStats:
    rows = chosen.cpu().numpy()
    committed = int((state.eligible & ~state.masked).sum())
    forwards = decoder.row_forwards[rows]
    return DecodeStats(
        forwards=decoder.scoring.forwards,
        row_forwards=forwards.tolist(),
        row_steps=decoder.row_steps[rows].tolist(),
        committed=committed,
        tokens_per_forward=committed / max(int(forwards.sum()), 1),
        seconds=seconds,
        model_seconds=decoder.scoring.seconds,
        tokens_per_second=committed / max(seconds, 1e-9),
    )
