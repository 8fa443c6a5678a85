"""Bytes that a forward and backward pass of a Llama-like model needs, from its shape alone.

What autograd keeps of one layer of transformers' Llama or Qwen2 with sdpa attention, in bytes a token. H hidden,
A = heads * head_dim, K = kv_heads * head_dim, I intermediate, e bytes of an element; "trained": the base model is.

| kept for | tensor | bytes | when |
|---|---|---|---|
| norms (2): square, product | input in float32; without a cast, the residual stream | 4 H | always |
| | reciprocal root | 4 | always |
| weight of the norm | normalised input | H e | trained |
| q, k, v; gate, up | output of the norm, once for its readers | H e | trained, or LoRA in dtype e |
| attention | q and k after rotation, v | (A + 2 K) e | always |
| | output, which o reads too; log-sum-exp in float32 | A e + 4 heads | always |
| | k and v repeated; the mask as numbers | 2 (A - K) e + L e | padded |
| silu; its product with up | gate; silu(gate), up | 3 I e | always |
| down | the product | I e | trained, or LoRA in dtype e |
| LoRA of another dtype | its input cast, a copy for each matrix | 4 H, 4 A or 4 I | PEFT's default over bf16 |
| LoRA B | output of A | r, in LoRA's dtype | LoRA |

Rotation keeps cosine and sine, once for the model; residual additions keep nothing. Under LoRA the first layer's input
needs no gradient, so what comes before the first adapted matrix keeps nothing. With gradient checkpointing every layer
keeps its input, H e, and one layer at a time all of the above. Not covered: autocast, dropout, eager attention (L
numbers a head more). BERT and kin keep less, because their MLP has no gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mdlm_fast.ops._library_gemm import SCRATCH_BYTES
from mdlm_fast.ops._schemas import TILE
from mdlm_fast.rl.lora import PRESETS

#: What linear_token_logprobs keeps for each scored token: row, target, log-prob, entropy, log-sum-exp.
_TOKEN_BYTES = 4 + 8 + 4 + 4 + 8
#: Of the logits, or their gradient, that linear_token_logprobs holds at a time on a CPU.
_CPU_CHUNK_BYTES = 32 << 20


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a Llama-like model: gated MLP, RMSNorm before attention and MLP, no biases but `qkv_bias`."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    qkv_bias: bool = False

    @classmethod
    def from_config(cls, config: Any) -> ModelShape:
        """Read from a transformers config or the fields of a config.json; LLaDA's own names are known.

        Raises:
            ValueError: a size is missing.
        """
        fields: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()

        def size(*names: str, default: int | None = None) -> int:
            value = next((fields[name] for name in names if fields.get(name) is not None), default)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"the model's config has no {' or '.join(names)}; its memory cannot be estimated")
            return value

        hidden, heads = size("hidden_size", "d_model"), size("num_attention_heads", "n_heads")
        shared = 1 if fields.get("multi_query_attention") else heads
        ratio = fields.get("mlp_ratio")
        return cls(
            layers=size("num_hidden_layers", "n_layers"),
            hidden=hidden,
            intermediate=size("intermediate_size", "mlp_hidden_size", default=ratio and ratio * hidden),
            heads=heads,
            kv_heads=size("num_key_value_heads", "n_kv_heads", default=shared),
            head_dim=size("head_dim", default=hidden // heads),
            vocab=size(*(("embedding_size", "vocab_size") if "d_model" in fields else ("vocab_size",))),
            tied=bool(fields.get("tie_word_embeddings") or fields.get("weight_tying")),
            qkv_bias=str(fields.get("model_type")).lower() in ("qwen2", "dream"),
        )

    @property
    def attention_width(self) -> int:
        """A: width of queries and of attention's output."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """K: width of keys and of values."""
        return self.kv_heads * self.head_dim

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """(input width, output width) of the seven matrices of a layer, by the roles of `lora.PRESETS`."""
        h, a, k, i = self.hidden, self.attention_width, self.kv_width, self.intermediate
        return {"q": (h, a), "k": (h, k), "v": (h, k), "o": (a, h), "gate": (h, i), "up": (h, i), "down": (i, h)}

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        biases = self.attention_width + 2 * self.kv_width if self.qkv_bias else 0
        return sum(i * o for i, o in self.matrices.values()) + 2 * self.hidden + biases

    @property
    def outer_parameters(self) -> int:
        """Parameters outside the layers: embedding, head unless tied, final norm."""
        return self.vocab * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.layers * self.layer_parameters + self.outer_parameters


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter. targets: a preset of `lora.PRESETS`. dtype: PEFT makes it float32 over any base model unless told
    `autocast_adapter_dtype=False`."""

    r: int = 128
    targets: str = "all"
    dtype: torch.dtype = torch.float32

    def parameters(self, shape: ModelShape) -> int:
        """Parameters of the adapter of a model of this shape."""
        return shape.layers * sum(self.r * sum(shape.matrices[role]) for role in PRESETS[self.targets])

    def saved_bytes(self, shape: ModelShape, dtype: torch.dtype) -> int:
        """Bytes a token that autograd keeps of the adapter of one layer, over a base model in `dtype`."""
        roles, own = PRESETS[self.targets], self.dtype.itemsize
        if self.dtype != dtype:
            inputs = sum(shape.matrices[role][0] for role in roles)
        else:  # what matrices share is kept once, and attention keeps its output anyway
            inputs = sum(
                shape.matrices[group[0]][0] for group in ("qkv", ("gate", "up"), ("down",)) if {*group} & {*roles}
            )
        return (inputs + self.r * len(roles)) * own


def activation_bytes_per_token(
    shape: ModelShape,
    dtype: torch.dtype,
    trainable_base: bool,
    checkpointing: bool,
    *,
    adapter: Adapter | None = None,
    mask_length: int = 0,
) -> int:
    """Bytes that autograd keeps of a model's layers and final norm, a token.

    Args:
        shape: of the model.
        dtype: of its weights and activations.
        trainable_base: whether the model's own weights are trained; if not, `adapter` is.
        checkpointing: gradient checkpointing of every layer.
        adapter: default: `Adapter()` where the base is not trained.
        mask_length: positions of a sequence in batches with padding; 0: no padding.
    """
    h, a, k, i, e = shape.hidden, shape.attention_width, shape.kv_width, shape.intermediate, dtype.itemsize
    norm = 4 * h + 4 + (h * e if trainable_base else 0)
    attention = (2 * a + 2 * k) * e + 4 * shape.heads
    if mask_length:
        attention += (2 * (a - k) + mask_length) * e
    layer = 2 * norm + attention + 3 * i * e
    unneeded = 0  # before the first trained matrix
    if trainable_base:
        layer += (2 * h + i) * e
    else:
        adapter = adapter or Adapter()
        layer += adapter.saved_bytes(shape, dtype)
        unneeded = norm if {*"qkv"} & {*PRESETS[adapter.targets]} else 2 * norm + attention
    ends = norm + h * e  # the final norm, and its output, which the head reads
    if checkpointing:
        return shape.layers * h * e + max(layer, ends)
    return shape.layers * layer + ends - unneeded


@dataclass(frozen=True)
class ViewCost:
    """Memory of the forward and backward pass of a view (`views.View`), and of packs of such views.

    shape, dtype, checkpointing: as in `activation_bytes_per_token`. adapter: None = the whole model is trained.
    sequences, length: of a view's canvas. rows: scored positions of a view. padded: with a padding mask.
    device: "cuda" or "cpu", whose heads work in chunks of other sizes.
    """

    shape: ModelShape
    sequences: int
    length: int
    rows: int
    dtype: torch.dtype
    adapter: Adapter | None = None
    checkpointing: bool = False
    padded: bool = False
    device: str = "cuda"

    def activation_bytes(self, views: int = 1) -> int:
        """Bytes kept from the forward pass of so many views to their backward pass."""
        per_token = activation_bytes_per_token(
            self.shape,
            self.dtype,
            self.adapter is None,
            self.checkpointing,
            adapter=self.adapter,
            mask_length=self.length if self.padded else 0,
        )
        return views * (self.sequences * self.length * per_token + self.rows * _TOKEN_BYTES)

    def workspace_bytes(self, views: int = 1) -> int:
        """Bytes that come and go beside them: gradients of activations, and the LM head's scratch.

        The first peak at a norm's backward pass, in float32, or inside an MLP; the head has finished by then. A trained
        head's gradient is formed while the one of earlier passes is kept.
        """
        shape, e = self.shape, self.dtype.itemsize
        tokens, rows = views * self.sequences * self.length, views * self.rows
        layers = tokens * max(16 * shape.hidden, 3 * shape.intermediate * e)
        chunk = min(rows * shape.vocab * e, max(self._chunk_bytes, rows * TILE * e))
        gathered = (
            rows * shape.hidden * (e + (8 if self.device == "cuda" else 4))
        )  # rows, and their gradient in float32
        partials = rows * -(-shape.vocab // TILE) * (32 if self.device == "cuda" else 28)
        trained = shape.vocab * shape.hidden * e if self.adapter is None else 0
        return max(layers, tokens * shape.hidden * e + chunk + gathered + partials + trained)

    @property
    def _chunk_bytes(self) -> int:
        return SCRATCH_BYTES if self.device == "cuda" else _CPU_CHUNK_BYTES

    def pass_bytes(self, views: int = 1) -> int:
        """Bytes of activations and workspace."""
        return self.activation_bytes(views) + self.workspace_bytes(views)

    def largest_pack(self, free_bytes: int, views: int) -> int:
        """How many of `views` views one pass can take together in so much memory; 0 if not even one."""
        return max((k for k in range(1, views + 1) if self.pass_bytes(k) <= free_bytes), default=0)
