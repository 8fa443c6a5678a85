"""Tiny checkpoints in each family's own format, and LLaDA and Dream written out in plain PyTorch as oracles."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

Weights = dict[str, Tensor]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def rotate(x: Tensor, theta: float, positions: Tensor) -> Tensor:
    """Rotary embedding of [B, heads, L, dim] in the dtype of x; positions [B, L]."""
    dim = x.shape[-1]
    frequency = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angle = positions[:, None, :, None].float() * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., : dim // 2], x[..., dim // 2 :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Bidirectional attention; k and v may have fewer heads."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=False)
    return out.transpose(1, 2).flatten(2)


def heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def llada_logits(fields: dict[str, Any], w: Weights, ids: Tensor) -> Tensor:
    """LLaDA's forward on its own keys: queries and keys are rotated in float32 and rounded afterwards."""
    prefix = "model.transformer."
    eps, theta = fields["rms_norm_eps"], fields["rope_theta"]
    positions = torch.arange(ids.shape[1])[None]
    x = F.embedding(ids, w[prefix + "wte.weight"])
    for layer in range(fields["n_layers"]):
        block = {k.removeprefix(f"{prefix}blocks.{layer}."): v for k, v in w.items() if f"blocks.{layer}." in k}
        h = rms_norm(x, block["attn_norm.weight"], eps)
        q = heads(F.linear(h, block["q_proj.weight"]), fields["n_heads"])
        k = heads(F.linear(h, block["k_proj.weight"]), fields["n_kv_heads"])
        v = heads(F.linear(h, block["v_proj.weight"]), fields["n_kv_heads"])
        q, k = rotate(q.float(), theta, positions).to(q.dtype), rotate(k.float(), theta, positions).to(k.dtype)
        x = x + F.linear(attend(q, k, v), block["attn_out.weight"])
        h = rms_norm(x, block["ff_norm.weight"], eps)
        gated = F.silu(F.linear(h, block["ff_proj.weight"])) * F.linear(h, block["up_proj.weight"])
        x = x + F.linear(gated, block["ff_out.weight"])
    x = rms_norm(x, w[prefix + "ln_f.weight"], eps)
    return F.linear(x, w.get(prefix + "ff_out.weight", w[prefix + "wte.weight"]))


def dream_logits(fields: dict[str, Any], w: Weights, ids: Tensor) -> Tensor:
    """Dream's forward on its own keys, before any shift."""
    eps, theta = fields["rms_norm_eps"], fields["rope_theta"]
    positions = torch.arange(ids.shape[1])[None]
    x = F.embedding(ids, w["model.embed_tokens.weight"])
    for layer in range(fields["num_hidden_layers"]):
        block = {k.removeprefix(f"model.layers.{layer}."): v for k, v in w.items() if f".layers.{layer}." in k}
        h = rms_norm(x, block["input_layernorm.weight"], eps)
        q, k, v = (
            heads(F.linear(h, block[f"self_attn.{n}_proj.weight"], block[f"self_attn.{n}_proj.bias"]), fields[c])
            for n, c in (("q", "num_attention_heads"), ("k", "num_key_value_heads"), ("v", "num_key_value_heads"))
        )
        x = x + F.linear(
            attend(rotate(q, theta, positions), rotate(k, theta, positions), v), block["self_attn.o_proj.weight"]
        )
        h = rms_norm(x, block["post_attention_layernorm.weight"], eps)
        gated = F.silu(F.linear(h, block["mlp.gate_proj.weight"])) * F.linear(h, block["mlp.up_proj.weight"])
        x = x + F.linear(gated, block["mlp.down_proj.weight"])
    return F.linear(rms_norm(x, w["model.norm.weight"], eps), w["lm_head.weight"])


def llada_checkpoint(
    seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> tuple[dict[str, Any], Weights]:
    """config.json and weights of a tiny LLaDA, with the field and key names of the released checkpoints."""
    fields: dict[str, Any] = {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM"},
        "activation_type": "silu",
        "alibi": False,
        "attention_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "bias_for_layer_norm": False,
        "d_model": 48,
        "embedding_size": 96,
        "eos_token_id": 5,
        "include_bias": False,
        "include_qkv_bias": False,
        "layer_norm_type": "rms",
        "mask_token_id": 90,
        "max_sequence_length": 256,
        "mlp_hidden_size": 80,
        "mlp_ratio": 4,
        "n_heads": 6,
        "n_kv_heads": 3,
        "n_layers": 2,
        "pad_token_id": 5,
        "rms_norm_eps": 1e-5,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 500000.0,
        "scale_logits": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "vocab_size": 96,
        "weight_tying": False,
        **changes,
    }
    g = torch.Generator().manual_seed(seed)
    d, m, v = fields["d_model"], fields["mlp_hidden_size"], fields["embedding_size"]
    kv = d * fields["n_kv_heads"] // fields["n_heads"]
    shapes = {"transformer.wte": (v, d), "transformer.ln_f": (d,), "transformer.ff_out": (v, d)}
    for layer in range(fields["n_layers"]):
        inner = {"q_proj": (d, d), "k_proj": (kv, d), "v_proj": (kv, d), "attn_out": (d, d), "ff_proj": (m, d),
                 "up_proj": (m, d), "ff_out": (d, m), "attn_norm": (d,), "ff_norm": (d,)}  # fmt: skip
        shapes.update({f"transformer.blocks.{layer}.{name}": shape for name, shape in inner.items()})
    if fields["weight_tying"]:
        del shapes["transformer.ff_out"]
    return fields, {f"model.{name}.weight": _random(shape, g, dtype) for name, shape in shapes.items()}


def dream_checkpoint(
    seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> tuple[dict[str, Any], Weights]:
    """config.json and weights of a tiny Dream."""
    fields: dict[str, Any] = {
        "architectures": ["DreamModel"],
        "model_type": "Dream",
        "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 40,
        "intermediate_size": 72,
        "mask_token_id": 70,
        "max_position_embeddings": 512,
        "max_window_layers": 2,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 80,
        **changes,
    }
    g = torch.Generator().manual_seed(seed)
    d, m, v = fields["hidden_size"], fields["intermediate_size"], fields["vocab_size"]
    kv = d * fields["num_key_value_heads"] // fields["num_attention_heads"]
    shapes = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,), "lm_head.weight": (v, d)}
    for layer in range(fields["num_hidden_layers"]):
        inner = {"self_attn.q_proj.weight": (d, d), "self_attn.q_proj.bias": (d,), "self_attn.k_proj.weight": (kv, d),
                 "self_attn.k_proj.bias": (kv,), "self_attn.v_proj.weight": (kv, d), "self_attn.v_proj.bias": (kv,),
                 "self_attn.o_proj.weight": (d, d), "mlp.gate_proj.weight": (m, d), "mlp.up_proj.weight": (m, d),
                 "mlp.down_proj.weight": (d, m), "input_layernorm.weight": (d,),
                 "post_attention_layernorm.weight": (d,)}  # fmt: skip
        shapes.update({f"model.layers.{layer}.{name}": shape for name, shape in inner.items()})
    return fields, {name: _random(shape, g, dtype) for name, shape in shapes.items()}


def _random(shape: tuple[int, ...], g: torch.Generator, dtype: torch.dtype) -> Tensor:
    if len(shape) == 1:
        return (1 + 0.2 * torch.randn(shape, generator=g)).to(dtype)
    return (torch.randn(shape, generator=g) / shape[-1] ** 0.5 * 1.5).to(dtype)


def write_checkpoint(folder: Path, fields: dict[str, Any], weights: Weights, kind: str = "safetensors") -> Path:
    """Write config.json and weights: "safetensors", "bin", or "sharded" (safetensors with an index)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    if kind == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    elif kind == "safetensors":
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        names = sorted(weights)
        parts = [names[i::3] for i in range(3)]
        index = {}
        for i, part in enumerate(parts, 1):
            shard = f"model-{i:05d}-of-00003.safetensors"
            save_file({n: weights[n] for n in part}, folder / shard, metadata={"format": "pt"})
            index.update(dict.fromkeys(part, shard))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small lose more by handing work to other threads than the work takes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Family:
    """One foreign family: how to make a tiny checkpoint, and what its logits must be."""

    def __init__(self, make: Callable[..., tuple[dict[str, Any], Weights]], oracle: Callable[..., Tensor]) -> None:
        self.make = make
        self.oracle = oracle
        self.write = staticmethod(write_checkpoint)


@pytest.fixture
def llada() -> Family:
    return Family(llada_checkpoint, llada_logits)


@pytest.fixture
def dream() -> Family:
    return Family(dream_checkpoint, dream_logits)
