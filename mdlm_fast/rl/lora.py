"""LoRA on LLaDA and Dream: target presets that adapt the matrices of every layer, and never the LM head.

PEFT matches names from their end and skips those it does not find. LLaDA's own code calls its matrices q_proj, k_proj,
v_proj, attn_out, ff_proj, up_proj and ff_out, so the seven Llama names that released RL trainers list for it adapt
four of the seven; and its LM head is called ff_out too, so the bare name adapts the head with the layers. The configs
made here name whole paths, read from the model.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import nn

from mdlm_fast.models import MaskedDiffusionModel
from mdlm_fast.models._introspect import unwrapped
from mdlm_fast.models._patch import output_embeddings

Model = nn.Module | MaskedDiffusionModel

_ROLES = ("q", "k", "v", "o", "gate", "up", "down")
#: Names of the seven matrices of a layer: in transformers' Llama and Qwen2 and in Dream's code, and in LLaDA's code.
_NAMES = {
    "Llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "LLaDA": ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"),
}
#: "paper": what the name lists of d1 (arXiv 2504.12216) and CJ-GRPO adapt on LLaDA.
PRESETS = {
    "all": _ROLES,
    "attention": ("q", "k", "v", "o"),
    "mlp": ("gate", "up", "down"),
    "paper": ("q", "k", "v", "up"),
}
_IN_LAYER = re.compile(r"(?P<layers>.+?)\.(?P<index>\d+)\.(?P<path>.+)")


def lora_config(
    model: Model,
    targets: str | Sequence[str] = "all",
    *,
    r: int = 128,
    alpha: int = 64,
    dropout: float = 0.0,
    **options: Any,
) -> LoraConfig:
    """A `peft.LoraConfig` that adapts the named matrices of every layer of `model` and nothing else.

    Args:
        model: native Llama or Qwen2, LLaDA or Dream in their own code, or any transformer with a list of layers when
            `targets` is a list; not yet adapted.
        targets: "all" (seven matrices a layer), "attention" (q, k, v, o), "mlp" (gate, up, down), "paper" (q, k, v
            and up: what the published lists come to on LLaDA), or names of matrices as the model has them.
        r: rank. alpha: the adapter is scaled by alpha / r. dropout: of the adapter's input; RL wants none, because it
            makes the ratio of new to old policy noisy. The defaults of r and alpha are CJ-GRPO's.
        options: other fields of `LoraConfig`.

    Raises:
        ValueError: an unknown preset or name, a layer that lacks a target or has it more than once, a model whose
            layers are not found or that holds an adapter already, or a target that is the LM head.
    """
    module = _module(model)
    if isinstance(module, PeftModel):
        raise ValueError("model holds an adapter already; pass the model under it, or merge the adapter first")
    layers, matrices = _layers(module)
    names = _target_names(module, targets, matrices)
    paths: dict[str, None] = {}
    for index, inner in matrices.items():
        for name in names:
            found = [path for path in inner if _last(path) == name]
            if len(found) != 1:
                raise ValueError(
                    f"targets: {layers}.{index} has {len(found)} matrices named {name!r}, and must have one; "
                    f"its matrices are {', '.join(sorted(inner))}"
                )
            paths[found[0]] = None
    pattern = rf"{re.escape(layers)}\.\d+\.(?:{'|'.join(map(re.escape, paths))})"
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=pattern, **options)
    check_adapted(module, config)
    return config


def check_adapted(model: Model, config: PeftConfig) -> dict[str, int]:
    """Look at what a PEFT config would adapt before it does; warn when names in it match nothing.

    Args:
        model: as in `lora_config`, or a PEFT model with its own config.
        config: `LoraConfig`, or another config with `target_modules`.

    Returns:
        How many modules it adapts, by the last part of their names; empty where PEFT chooses them itself
        (`target_modules=None` or "all-linear", which leave the LM head out).

    Raises:
        ValueError: it would adapt the LM head.
    """
    module = unwrapped(_module(model))
    targets = getattr(config, "target_modules", None)
    if targets is None or (isinstance(targets, str) and targets.lower() == "all-linear"):
        return {}
    head = output_embeddings(module)
    adapted: Counter[str] = Counter()
    keys = []
    for key, part in module.named_modules():
        keys.append(key)
        if not check_target_module_exists(config, key):
            continue
        if part is head:
            raise ValueError(
                f"target_modules would adapt the LM head, {key!r}: log-probs would need its full logits. Use "
                "lora_config(model, targets) of mdlm_fast.rl.lora, which names the matrices inside the layers only"
            )
        adapted[_last(key)] += 1
    if not isinstance(targets, str):
        unmatched = sorted(t for t in targets if not any(key == t or key.endswith(f".{t}") for key in keys))
        if unmatched:
            warnings.warn(
                f"target_modules: {len(unmatched)} of {len(targets)} names match nothing in "
                f"{type(module).__name__} ({', '.join(unmatched)}), so {sum(adapted.values())} modules are adapted: "
                f"{', '.join(f'{n} {count}' for n, count in sorted(adapted.items())) or 'none'}",
                UserWarning,
                stacklevel=2,
            )
    return dict(adapted)


def count_adapted(model: Model) -> dict[str, int]:
    """How many modules of a PEFT model are adapted, by the last part of their names."""
    counts: Counter[str] = Counter()
    for key, part in _module(model).named_modules():
        if isinstance(part, BaseTunerLayer):
            counts[_last(key)] += 1
    return dict(counts)


# --------------------------------------------------------------------------------------------------------------------


def _module(model: Model) -> nn.Module:
    return model.model if isinstance(model, MaskedDiffusionModel) else model


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _matrices(model: nn.Module) -> Iterator[tuple[str, str, str]]:
    """(path of the list of layers, index, path within the layer) of every linear map inside a layer."""
    for key, part in model.named_modules():
        match = _IN_LAYER.fullmatch(key)
        if match is not None and hasattr(part, "in_features") and hasattr(part, "out_features"):
            yield match["layers"], match["index"], match["path"]


def _layers(model: nn.Module) -> tuple[str, dict[str, list[str]]]:
    """The path of the model's list of layers, and the matrices of each layer: of several lists, that with the most."""
    found = list(_matrices(model))
    if not found:
        raise ValueError(f"{type(model).__name__} has no numbered layers with linear maps inside; LoRA needs them")
    layers = Counter(layers for layers, _, _ in found).most_common(1)[0][0]
    matrices: dict[str, list[str]] = {index: [] for index, _ in model.get_submodule(layers).named_children()}
    for where, index, path in found:
        if where == layers:
            matrices[index].append(path)
    return layers, matrices


def _target_names(model: nn.Module, targets: str | Sequence[str], matrices: dict[str, list[str]]) -> tuple[str, ...]:
    known = {_last(path) for inner in matrices.values() for path in inner}
    has = f"{type(model).__name__} has {', '.join(sorted(known))}"
    if not isinstance(targets, str):
        if not targets:
            raise ValueError(f"targets is an empty list; {has}")
        if unknown := [name for name in targets if name not in known]:
            raise ValueError(f"targets: no layer has a matrix named {unknown[0]!r}; {has}")
        return tuple(dict.fromkeys(targets))
    if targets not in PRESETS:
        raise ValueError(f"targets={targets!r} must be one of {', '.join(PRESETS)}, or a list of names; {has}")
    for names in _NAMES.values():
        if known >= set(names):
            return tuple(names[_ROLES.index(role)] for role in PRESETS[targets])
    raise ValueError(
        f"targets={targets!r} is for layers named as in Llama, Qwen2, Dream or LLaDA; {has}. Pass a list of those"
    )
