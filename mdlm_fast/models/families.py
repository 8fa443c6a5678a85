"""LLaDA and Dream checkpoints as native Llama and Qwen2: their configs and key names translated.

Both families are bidirectional transformers that transformers has under another name: with `config.is_causal = False`
its Llama is LLaDA (arXiv 2502.09992) and its Qwen2 is Dream (arXiv 2508.15487), to the last bit on the same weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from mdlm_fast.models import checkpoint
from mdlm_fast.models.rope import rotate_in_float32
from mdlm_fast.models.wrapping import RELEASED

NativeModel = LlamaForCausalLM | Qwen2ForCausalLM

# Fields of LLaDA's config that change the architecture, with the values that native Llama computes.
_LLADA_NEEDS: dict[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "block_group_size": (1,),
    "activation_type": ("silu",),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "bias_for_layer_norm": (False, None),
    "attention_layer_norm": (False,),
    "include_bias": (False,),
    "include_qkv_bias": (False, None),
    "input_emb_norm": (False,),
    "scale_logits": (False,),
    "alibi": (False,),
    "rope": (True,),
}
_LLADA_TOP = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}
_LLADA_BLOCK = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
}
_LLADA_KEY = re.compile(r"^(?:model\.)?transformer\.(?:blocks\.(\d+)\.)?(\w+)\.(weight|bias)$")
_DREAM_DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
}


class Translation(NamedTuple):
    """A checkpoint of a foreign family, seen as a native model."""

    config: Any
    model_class: type[Any]
    rename: Callable[[str], str | None]
    shift: bool
    vocab_limit: int | None
    rope_float32: bool


def translate_llada(fields: dict[str, Any], directory: Path) -> Translation:
    """LLaDA's config.json as a LlamaConfig, and its key names as Llama's.

    Raises:
        ValueError: a missing size, or an architecture that Llama does not compute.
    """
    for name, accepted in _LLADA_NEEDS.items():
        if name in fields and fields[name] not in accepted:
            raise ValueError(
                f"{directory}/config.json: {name}={fields[name]!r} is not supported (only {accepted[0]!r}); released "
                "LLaDA checkpoints do not use it"
            )
    sizes = _required(fields, directory, "d_model", "n_heads", "n_layers", "vocab_size")
    width = fields.get("embedding_size") or sizes["vocab_size"]
    if width < sizes["vocab_size"]:
        raise ValueError(
            f"{directory}/config.json: embedding_size={width} is smaller than vocab_size={sizes['vocab_size']}"
        )
    kv_heads = fields.get("n_kv_heads") or (1 if fields.get("multi_query_attention") else sizes["n_heads"])
    for whole, name, part, other in (
        (sizes["d_model"], "d_model", sizes["n_heads"], "n_heads"),
        (sizes["n_heads"], "n_heads", kv_heads, "n_kv_heads"),
    ):
        if whole % part:
            raise ValueError(f"{directory}/config.json: {name}={whole} is not a multiple of {other}={part}")
    mask_id, eos_ids = _special_ids(fields, "llada", width)
    config = LlamaConfig(
        vocab_size=width,
        hidden_size=sizes["d_model"],
        intermediate_size=fields.get("mlp_hidden_size") or fields.get("mlp_ratio", 4) * sizes["d_model"],
        num_hidden_layers=sizes["n_layers"],
        num_attention_heads=sizes["n_heads"],
        num_key_value_heads=kv_heads,
        max_position_embeddings=fields.get("max_sequence_length", 1024),
        rms_norm_eps=fields.get("rms_norm_eps", 1e-5),
        rope_parameters={"rope_type": "default", "rope_theta": float(fields.get("rope_theta", 10000.0))},
        initializer_range=fields.get("init_std", 0.02),
        tie_word_embeddings=_llada_is_tied(fields, directory),
        bos_token_id=fields.get("bos_token_id"),
        eos_token_id=list(eos_ids) or None,
        pad_token_id=fields.get("pad_token_id"),
    )
    _add_fields(config, mask_id)
    limit = sizes["vocab_size"] if sizes["vocab_size"] < width else None
    return Translation(config, LlamaForCausalLM, llada_key, False, limit, bool(fields.get("rope_full_precision", True)))


def llada_key(key: str) -> str | None:
    """LLaDA's name of a weight as Llama's; a name that is not LLaDA's comes back as it is."""
    match = _LLADA_KEY.match(key)
    if match is None:
        return key
    layer, name, kind = match.groups()
    table = _LLADA_TOP if layer is None else _LLADA_BLOCK
    if name not in table:
        return key
    prefix = "" if layer is None else f"model.layers.{layer}."
    return f"{prefix}{table[name]}.{kind}"


def translate_dream(fields: dict[str, Any], directory: Path) -> Translation:
    """Dream's config.json as a Qwen2Config; the key names are Qwen2's already.

    Raises:
        ValueError: sliding-window attention, which is one-sided.
    """
    if fields.get("use_sliding_window"):
        raise ValueError(f"{directory}/config.json: use_sliding_window=True is not supported with full attention")
    known = {name: fields.get(name, default) for name, default in _DREAM_DEFAULTS.items()}
    theta, scaling = known.pop("rope_theta"), known.pop("rope_scaling")
    rope = {"rope_type": "default", **(scaling or {}), "rope_theta": float(theta)}
    mask_id, eos_ids = _special_ids(fields, "dream", known["vocab_size"])
    config = Qwen2Config(
        **known,
        rope_parameters=rope,
        use_sliding_window=False,
        bos_token_id=fields.get("bos_token_id"),
        eos_token_id=list(eos_ids) or None,
        pad_token_id=fields.get("pad_token_id"),
    )
    _add_fields(config, mask_id)
    limit = RELEASED["dream"][2]
    return Translation(
        config,
        Qwen2ForCausalLM,
        lambda key: None if key.endswith("rotary_emb.inv_freq") else key,
        True,
        limit if limit is not None and mask_id == RELEASED["dream"][0] and limit < known["vocab_size"] else None,
        False,
    )


TRANSLATIONS: dict[str, Callable[[dict[str, Any], Path], Translation]] = {
    "llada": translate_llada,
    "dream": translate_dream,
}


def load_translated(
    translation: Translation,
    directory: Path,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    attn_implementation: str | None,
) -> NativeModel:
    """Build the native model and fill it from the foreign checkpoint; in eval mode, gradients off."""
    config = translation.config
    if dtype is not None:
        config.dtype = dtype
    with torch.device("meta"):
        model = translation.model_class._from_config(config, attn_implementation=attn_implementation)
    checkpoint.load_into(model, directory, rename=translation.rename, device=device, dtype=dtype)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    config.dtype = model.model.embed_tokens.weight.dtype
    if translation.model_class is Qwen2ForCausalLM:
        model.model.rotary_emb = Qwen2RotaryEmbedding(config).to(device)
    else:
        model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
        if translation.rope_float32:
            rotate_in_float32(model)
    return model.eval()


def _required(fields: dict[str, Any], directory: Path, *names: str) -> dict[str, int]:
    for name in names:
        if not isinstance(fields.get(name), int) or fields[name] < 1:
            raise ValueError(f"{directory}/config.json: {name} must be a positive integer, got {fields.get(name)!r}")
    return {name: fields[name] for name in names}


def _special_ids(fields: dict[str, Any], family: str, width: int) -> tuple[int | None, tuple[int, ...]]:
    """Mask id and EOS ids: the config's, completed by the released checkpoint's where they are in range."""
    released_mask, released_eos, _, _ = RELEASED[family]
    mask_id = fields.get("mask_token_id")
    if mask_id is None and released_mask < width:
        mask_id = released_mask
    eos = fields.get("eos_token_id")
    found = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    if not found or set(found) & set(released_eos):
        found.extend(i for i in released_eos if i < width)
    return mask_id, tuple(dict.fromkeys(found))


def _add_fields(config: Any, mask_id: int | None) -> None:
    """Fields that the native classes do not declare but keep in config.json, and transformers acts on the first."""
    config.is_causal = False
    config.mask_token_id = mask_id


def _llada_is_tied(fields: dict[str, Any], directory: Path) -> bool:
    """`weight_tying`; where the config leaves it out, whether the weights come without a head of their own."""
    tied = fields.get("weight_tying")
    if tied is not None:
        return bool(tied)
    return "lm_head.weight" not in {llada_key(key) for key in checkpoint.weight_names(directory)}
