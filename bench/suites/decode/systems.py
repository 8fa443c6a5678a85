"""For every published system: its loop, ours in its place, and ours reproducing it to the last tie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import mdlm_fast as mf
from mdlm_fast.compat import dream as compat_dream
from mdlm_fast.compat import eoser_ass as compat_eoser
from mdlm_fast.compat import fast_dllm as compat_fast_dllm
from mdlm_fast.compat import llada as compat_llada
from mdlm_fast.compat import mdpo as compat_mdpo

from ...baselines import dinfer, dream, eoser, fast_dllm, llada, mdpo
from ...baselines.model import eos_id, mask_id
from .shape import Shape

#: (model, prompts int64 [B, P], shape) -> canvas int64 [B, P + G].
Decode = Callable[[Any, Tensor, Shape], Tensor]

THRESHOLD = 0.9
#: The nucleus of Dream's and MDPO's published settings, above temperature 0.
TOP_P = 0.95


@dataclass(frozen=True)
class System:
    """A published decoder and what stands in its place.

    Attributes:
        baseline: the published loop in plain PyTorch.
        ours: what a user of this package calls instead: the drop-in of the same signature, or `generate`.
        released: the drop-in with `released=True`, which draws from torch's generator as the published program does;
            None where there is none.
        paced: ours with the baseline's passes, where `ours` may run fewer canvases; None: `ours` itself.
        eager: the baseline without compilation, where it is compiled.
        captured: the keywords of a `generate` that does the same and can capture its steps in CUDA graphs; None: not
            measured.
        one_prompt: whether the baseline decodes one prompt at a time.
    """

    baseline: Decode
    ours: Decode
    released: Decode | None = None
    paced: Decode | None = None
    eager: Decode | None = None
    captured: Callable[[Shape], dict[str, Any]] | None = None
    one_prompt: bool = False

    def rows(self, batch: int) -> int:
        """Canvases in a pass of the baseline."""
        return 1 if self.one_prompt else batch


def _quota(shape: Shape) -> dict[str, Any]:
    return {
        "steps": shape.steps,
        "gen_length": shape.generated,
        "block_length": shape.block_length,
        "temperature": shape.temperature,
        "mask_id": mask_id(shape.vocab),
    }


def _threshold(shape: Shape) -> dict[str, Any]:
    options = {**_quota(shape), "threshold": THRESHOLD}
    del options["steps"]
    return options


def _nucleus(shape: Shape) -> float | None:
    return TOP_P if shape.temperature > 0 else None


def generate_options(shape: Shape) -> dict[str, Any]:
    """Keywords of `generate` that hold for every system."""
    return {
        "gen_length": shape.generated,
        "block_length": shape.block_length,
        "temperature": shape.temperature,
        "normalize_over": "all",
        "seed": 0,
    }


def wrapped(model: Any, shape: Shape) -> Any:
    return mf.wrap(model, mask_id=mask_id(shape.vocab), eos_ids=eos_id(shape.vocab), attention="full")


# ------------------------------------------------------------------------------------------------------------- LLaDA


def _llada(released: bool) -> Decode:
    return lambda model, prompt, shape: compat_llada.generate(model, prompt, **_quota(shape), released=released)


def _llada_options(shape: Shape) -> dict[str, Any]:
    return {"steps": shape.steps, "record": "none"}


# --------------------------------------------------------------------------------------------- EOSER / CJ-GRPO rollout


def eoser_rollout(model: Any, prompt: Tensor, shape: Shape) -> eoser.Rollout:
    """The baseline with its trajectory."""
    options = _quota(shape)
    del options["block_length"]
    return eoser.rollout(model, prompt, **options, eos_id=eos_id(shape.vocab))


def _eoser_options(shape: Shape) -> dict[str, Any]:
    return {"steps": shape.steps, "eoser": mf.EOSER(g_min=0.4), "record": "trajectory"}


def eoser_generate(model: Any, prompt: Tensor, shape: Shape) -> mf.GenerateOutput:
    """Ours with its trajectory, as a trainer calls it."""
    return mf.generate(wrapped(model, shape), prompt, **generate_options(shape), **_eoser_options(shape))


def _eoser_released(model: Any, prompt: Tensor, shape: Shape) -> Tensor:
    tokenizer = SimpleNamespace(eos_token_id=eos_id(shape.vocab))
    return compat_eoser.eoser_generate(model, prompt, tokenizer, **_quota(shape), released=True)


# ---------------------------------------------------------------------------------------------------- threshold rules


def _fast_dllm(released: bool) -> Decode:
    def decode(model: Any, prompt: Tensor, shape: Shape) -> Tensor:
        # The signature asks for steps that divide among the blocks; the threshold rule does not use them.
        return compat_fast_dllm.generate(model, prompt, shape.generated, **_threshold(shape), released=released)[0]

    return decode


def _dinfer(rule: dinfer.Rule) -> Decode:
    return lambda model, prompt, shape: dinfer.generate(model, prompt, **_threshold(shape), rule=rule)


def _dinfer_options(shape: Shape) -> dict[str, Any]:
    return {"select": "threshold", "threshold": THRESHOLD, "record": "none"}


def _dinfer_ours(model: Any, prompt: Tensor, shape: Shape) -> Tensor:
    """`generate`, where a sequence that has finished its block goes on to the next without waiting for the batch."""
    return mf.generate(wrapped(model, shape), prompt, **generate_options(shape), **_dinfer_options(shape)).sequences


# ------------------------------------------------------------------------------------------------------------- Dream


def _dream_baseline(model: Any, prompt: Tensor, shape: Shape) -> Tensor:
    options = _quota(shape)
    del options["block_length"]
    return dream.generate(model, prompt, **options, top_p=_nucleus(shape))


def _dream(released: bool) -> Decode:
    def decode(model: Any, prompt: Tensor, shape: Shape) -> Tensor:
        canvas = compat_dream.diffusion_generate(
            model,
            prompt,
            max_new_tokens=shape.generated,
            steps=shape.steps,
            alg="entropy",
            temperature=shape.temperature,
            top_p=_nucleus(shape),
            mask_token_id=mask_id(shape.vocab),
            released=released,
        )
        assert isinstance(canvas, Tensor)
        return canvas

    return decode


# -------------------------------------------------------------------------------------------------------------- MDPO


def _mdpo_baseline(model: Any, prompt: Tensor, shape: Shape) -> Tensor:
    """The published function takes one prompt, so a batch is decoded one after the other."""
    rows = [mdpo.generate(model, row, **_quota(shape), top_p=_nucleus(shape))[0] for row in prompt.split(1)]
    return torch.cat([prompt, torch.cat(rows)], 1)


def _mdpo(released: bool) -> Decode:
    def decode(model: Any, prompt: Tensor, shape: Shape) -> Tensor:
        options = {**_quota(shape), "top_p": _nucleus(shape), "conf_alg": "probability", "rcr": True}
        # Reproducing the release draw for draw takes its order of draws, one prompt after the other.
        parts = prompt.split(1) if released else [prompt]
        rows = [compat_mdpo.diffusion_generate(model, part, **options, released=released)[0] for part in parts]
        return torch.cat([prompt, torch.cat(rows)], 1)

    return decode


SYSTEMS: dict[str, System] = {
    "LLaDA": System(
        lambda model, prompt, shape: llada.generate(model, prompt, **_quota(shape)),
        _llada(False),
        _llada(True),
        captured=_llada_options,
    ),
    "EOSER/CJ-GRPO rollout": System(
        lambda model, prompt, shape: eoser_rollout(model, prompt, shape).states[-1],
        lambda model, prompt, shape: eoser_generate(model, prompt, shape).sequences,
        _eoser_released,
        captured=_eoser_options,
    ),
    "Fast-dLLM": System(
        lambda model, prompt, shape: fast_dllm.generate(model, prompt, **_threshold(shape)),
        _fast_dllm(False),
        _fast_dllm(True),
    ),
    "dInfer, torch.compile": System(
        _dinfer(dinfer.compiled_rule),
        _dinfer_ours,
        paced=_fast_dllm(False),
        eager=_dinfer(dinfer.rule),
        captured=_dinfer_options,
    ),
    "Dream": System(_dream_baseline, _dream(False), _dream(True)),
    "MDPO": System(_mdpo_baseline, _mdpo(False), _mdpo(True), one_prompt=True),
}
