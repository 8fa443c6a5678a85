"""The memory estimate against what autograd keeps, what is alive at the peak, and what a process needs."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import mdlm_fast as mf
from mdlm_fast import ops
from mdlm_fast.rl.estimate import METHODS, Adapter, ModelShape, Settings, ViewCost, estimate
from mdlm_fast.rl.lora import PRESETS, lora_config

F32, BF16 = torch.float32, torch.bfloat16
LLADA_8B = ModelShape(
    layers=32, hidden=4096, intermediate=12288, heads=32, kv_heads=32, head_dim=128, vocab=126464
)  # fmt: skip


def native(seed: int, dtype: torch.dtype = F32, **changes: Any) -> LlamaForCausalLM:
    """A random Llama of random sizes."""
    torch.manual_seed(seed)
    pick = lambda *values: values[int(torch.randint(len(values), ()))]  # noqa: E731
    sizes = {
        "hidden_size": pick(32, 48, 96),
        "intermediate_size": pick(40, 96, 200),
        "num_hidden_layers": pick(3, 5),
        "num_attention_heads": 4,
        "num_key_value_heads": pick(2, 4),
        "vocab_size": pick(50, 333),
    }
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **changes}, is_causal=False, dtype=dtype)).to(dtype).train()


def adapt(model: LlamaForCausalLM, adapter: Adapter | None) -> None:
    if adapter is not None:
        cast = adapter.dtype == F32
        peft.get_peft_model(model, lora_config(model, adapter.targets, r=adapter.r), autocast_adapter_dtype=cast)


def forward(model: LlamaForCausalLM, sequences: int, length: int, rows: int, padded: bool = False) -> Tensor:
    """Log-probs of `rows` random positions."""
    vocab = model.config.vocab_size
    mask = None
    if padded:
        mask = torch.ones(sequences, length, dtype=torch.long)
        mask[0, : length // 4] = 0
    canvas = torch.randint(vocab, (sequences, length))
    hidden = model.model(input_ids=canvas, attention_mask=mask, use_cache=False, is_causal=False).last_hidden_state
    chosen = torch.randperm(sequences * length, dtype=torch.int32)[:rows]
    return ops.linear_token_logprobs(hidden, model.lm_head.weight, None, chosen, torch.randint(vocab, (rows,)))[0]


def saved_bytes(model: LlamaForCausalLM, *args: Any) -> int:
    """Bytes of the storages autograd keeps for the backward pass, those of parameters left out."""
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward(model, *args)
    return sum(storage.nbytes() for storage in kept.values())


class Alive(TorchDispatchMode):
    """Bytes of all tensors alive, and the most there ever were. What kernels allocate inside is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.watch(leaf)
        return out

    def watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self.now -= size
            self.known.discard(key)

        weakref.finalize(storage, gone)


ADAPTERS = [
    None,
    Adapter(4),
    Adapter(4, "paper"),
    Adapter(3, "attention", BF16),
    Adapter(5, "all", BF16),
    Adapter(2, "mlp"),
]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_activations_are_what_autograd_keeps(dtype, adapter, seed):
    if adapter is not None and dtype == F32:
        adapter = replace(adapter, dtype=F32)
    model = native(seed, dtype)
    shape = ModelShape.from_config(model.config)
    adapt(model, adapter)
    sequences, length, rows = 2 + seed, 40 + 16 * seed, 30
    for padded in (False, True):
        view = ViewCost(shape, sequences, length, rows, dtype, adapter, padded=padded, device="cpu")
        saved = saved_bytes(model, sequences, length, rows, padded)
        assert view.activation_bytes() == pytest.approx(saved, rel=0.02), (padded, shape)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("adapter", [None, Adapter(4), Adapter(4, "paper", BF16)])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_pass_is_the_peak_of_what_is_alive(dtype, adapter, checkpointing):
    if adapter is not None and dtype == F32:
        adapter = replace(adapter, dtype=F32)
    model = native(5, dtype, hidden_size=64, intermediate_size=192, num_hidden_layers=8, vocab_size=100)
    shape = ModelShape.from_config(model.config)
    adapt(model, adapter)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    alive = Alive()
    for parameter in model.parameters():
        alive.watch(parameter)
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
            alive.watch(parameter.grad)
    before = alive.now
    with alive:
        forward(model, 4, 96, 48).sum().backward()
    view = ViewCost(shape, 4, 96, 48, dtype, adapter, checkpointing, device="cpu")
    measured = alive.peak - before
    assert view.pass_bytes() == pytest.approx(measured, rel=0.15)


@pytest.mark.slow
def test_process_needs_what_is_predicted():
    program = Path(__file__).with_name("estimate_program.py")
    # glibc holds on to freed blocks below its threshold; given back at once, resident memory is what is in use
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for case in json.loads(done.stdout.splitlines()[-1]):
        assert case["predicted"] == pytest.approx(case["peak"], rel=0.25), case


# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_parameters_are_counted_exactly(seed):
    tied = {"tie_word_embeddings": seed % 2 == 0}
    llama = native(seed, **tied)
    config = Qwen2Config(**{k: v for k, v in llama.config.to_dict().items() if k in QWEN2_SIZES}, **tied)
    for model in (llama, Qwen2ForCausalLM(config)):
        shape = ModelShape.from_config(model.config)
        assert shape.parameters == sum(p.numel() for p in model.parameters())
        for preset in PRESETS:
            adapted = peft.get_peft_model(model, lora_config(model, preset, r=3))
            trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
            assert Adapter(3, preset).parameters(shape) == trained
            model = adapted.unload()


QWEN2_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)


def test_shapes_of_llada_and_dream_are_read_from_their_own_configs():
    llada = {
        "model_type": "llada", "d_model": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 32, "mlp_ratio": 4,
        "mlp_hidden_size": 12288, "embedding_size": 126464, "vocab_size": 126000, "weight_tying": False,
    }  # fmt: skip
    assert ModelShape.from_config(llada) == LLADA_8B
    assert ModelShape.from_config({**llada, "mlp_hidden_size": None}).intermediate == 16384
    assert ModelShape.from_config({**llada, "n_kv_heads": None, "multi_query_attention": True}).kv_heads == 1
    dream = {
        "model_type": "Dream", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False,
    }  # fmt: skip
    shape = ModelShape.from_config(dream)
    assert shape.qkv_bias and (shape.attention_width, shape.kv_width) == (3584, 512)
    assert shape.parameters == 7_615_616_512  # what the released Dream-7B holds
    for broken in ({**dream, "hidden_size": None}, {**dream, "num_hidden_layers": 0}):
        with pytest.raises(ValueError, match=r"has no (hidden_size or d_model|num_hidden_layers or n_layers)"):
            ModelShape.from_config(broken)


def test_llada_8b_as_in_the_published_runs():
    """The released trainer keeps 6.2 GB of log-softmax and 16.5 GB of layer inputs at S=32, L=128."""
    settings = Settings(LLADA_8B, adapter=Adapter(128, "paper"))
    assert LLADA_8B.parameters == 8_015_581_184
    assert Adapter(128).parameters(LLADA_8B) == pytest.approx(336e6, rel=0.005)
    assert Adapter(128, "paper").parameters(LLADA_8B) == pytest.approx(168e6, rel=0.005)
    assert estimate(settings).released == pytest.approx((6.2 + 16.5) * 1e9, rel=0.01)
    long = estimate(replace(settings, completion_length=256, steps=128))
    assert long.released == pytest.approx((49.7 + 91.8) * 1e9, rel=0.01)
    assert long.total < 60e9 < 80e9 < long.released
    assert long.weights == 2 * 8_015_581_184 + 4 * Adapter(128, "paper").parameters(LLADA_8B)


def test_memory_does_not_grow_with_steps_but_the_released_way_does():
    totals, released = [], []
    for steps in (8, 32, 128):
        made = estimate(replace(Settings(LLADA_8B), steps=steps))
        totals.append(made.total - made.workspace)
        released.append(made.released)
        assert made.rows * made.views >= 6 * 128 > (made.rows - 1) * made.views
    assert max(totals) / min(totals) < 1.0001
    assert released[2] == 4 * released[1] == 16 * released[0]


def test_views_of_a_method_are_those_of_its_trainer():
    """At S=32 steps, B*L = 6 * 128 tokens and the trainers' defaults."""
    views = {method: (made.views, made.view.sequences, made.rows) for method in METHODS
             for made in [estimate(Settings(LLADA_8B, method))]}  # fmt: skip
    assert views == {
        "cj-grpo": (32, 6, 24),
        "trace": (4, 6, 192),  # shrink=8
        "mdpo": (8, 6, 768),  # sample_train_steps=8
        "one-step-grpo": (1, 6, 768),
        "diffu-grpo": (1, 6, 768),
        "coupled-grpo": (1, 18, 1536),  # three canvases, two rows a token
        "dmpo": (4, 6, 768),  # replicates=2, in pairs
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_largest_pack_fits_and_one_more_does_not(method, device):
    settings = Settings(LLADA_8B, method, views=6, device=device)
    made = estimate(settings)
    assert made.views == 6
    totals = [estimate(replace(settings, views_per_backward=k)).total for k in range(1, 7)]
    assert totals == sorted(totals)
    for k, total in enumerate(totals, 1):
        assert made.largest_pack(total) == k
        assert made.largest_pack(total - 1) == k - 1
    assert made.largest_pack(10**15) == 6
    assert estimate(replace(settings, views_per_backward=60)).total == totals[-1]


def test_sharding_divides_what_it_shards():
    whole = Settings(LLADA_8B, adapter=None, beta=0.0)
    count, eight = LLADA_8B.parameters, {"world_size": 8}
    alone, ddp = estimate(whole), estimate(replace(whole, **eight))
    assert (alone.weights, alone.gradients, alone.optimizer, alone.reference) == (2 * count, 2 * count, 4 * count, 0)
    assert ddp.parts == alone.parts
    zero2 = estimate(replace(whole, **eight, sharding="zero2"))
    assert (zero2.weights, zero2.gradients, zero2.optimizer) == (2 * count, count // 4, 12 * count // 8)
    fsdp = estimate(replace(whole, **eight, sharding="fsdp", reference="copy"))
    assert (fsdp.weights, fsdp.optimizer, fsdp.reference) == (count // 2, count, count // 4)
    assert fsdp.gathered > 0 == zero2.gathered
    lora = replace(whole, adapter=Adapter(16, "paper"), beta=0.1)
    adapter = Adapter(16, "paper").parameters(LLADA_8B)
    assert estimate(lora).optimizer == 8 * adapter and estimate(lora).reference == 0
    assert estimate(replace(lora, reference="adapter")).reference == 4 * adapter
    assert estimate(replace(whole, beta=0.1)).reference == 2 * count
    assert estimate(replace(whole, beta=0.1, method="trace")).reference == 0
    assert estimate(replace(lora, sharding="zero2", **eight)).weights == 2 * (count + adapter)


@pytest.mark.parametrize(("method", "remasking"), [("cj-grpo", False), ("mdpo", False), ("mdpo", True)])
def test_record_is_a_trajectory_and_its_views(method, remasking):
    model = mf.wrap(native(0, vocab_size=50).eval(), mask_id=49)
    batch, prompt, completion, steps = 3, 5, 16, 8
    out = mf.generate(
        model,
        torch.randint(48, (batch, prompt)),
        gen_length=completion,
        block_length=completion,
        steps=steps,
        record="full" if method == "mdpo" else "trajectory",
        remasking=mf.RCR() if remasking else None,
    )
    tensors = out.trajectory.to_dict()
    sizes = sum(t.numel() * t.element_size() for t in tensors.values())
    shape = ModelShape.from_config(model.model.config)
    made = estimate(
        Settings(shape, method, batch, prompt, completion, steps, adapter=None, remasking=remasking, device="cpu")
    )
    assert made.record - made.views * made.rows * 40 == pytest.approx(sizes, abs=256)


def test_estimate_can_be_shown_and_stored():
    made = estimate(Settings(LLADA_8B, adapter=Adapter(128, "paper", BF16)))
    stored = json.loads(json.dumps(made.as_dict()))
    assert stored["total"] == sum(stored[name] for name in made.parts) == made.total
    assert stored["settings"]["dtype"] == stored["settings"]["adapter"]["dtype"] == "bfloat16"
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(made.table(80 * 10**9))
    text = console.export_text(clear=True)
    assert f"{made.total / 1e9:.2f}" in text and "22.72" in text
    assert str(made.largest_pack(80 * 10**9)) in next(r for r in text.splitlines() if "80.00 GB" in r)
    console.print(made.table())
    assert "80.00 GB" not in console.export_text()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "ppo"}, r"method='ppo' must be one of cj-grpo, trace"),
        ({"sharding": "zero3"}, r"sharding='zero3' must be one of none, zero2, fsdp"),
        ({"device": "tpu"}, r"device='tpu'"),
        ({"reference": "frozen"}, r"reference='frozen'"),
        ({"completions": 0}, r"completions=0 must be 1 or more"),
        ({"prompt_length": -1}, r"prompt_length=-1 must be 0 or more"),
        ({"views": 0}, r"views=0 must be 1 or more"),
        ({"adapter": None, "reference": "adapter"}, r"reference='adapter' needs an adapter"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Settings(LLADA_8B, **wrong)
