"""Round trips of LLaDA and Dream checkpoints in their own key format, against independent forwards."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import mdlm_fast as mf
from mdlm_fast.models import load_model, save_model
from mdlm_fast.models.families import llada_key


def ids(width: int, batch: int = 3, length: int = 17, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, width, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["safetensors", "sharded", "bin"])
def test_llada_checkpoint_gives_lladas_logits(llada, tmp_path, kind):
    fields, weights = llada.make(seed=3)
    model = load_model(llada.write(tmp_path / "m", fields, weights, kind), device="cpu")
    x = ids(96)
    torch.testing.assert_close(model.logits(x), llada.oracle(fields, weights, x), rtol=1e-6, atol=1e-5)
    assert (model.mask_id, model.eos_ids, model.shift, model.attention) == (90, (5,), False, "full")
    assert not model.model.training and not any(p.requires_grad for p in model.model.parameters())


def test_llada_in_bfloat16_is_bit_equal_to_rotation_in_float32(llada, tmp_path):
    fields, weights = llada.make(seed=4, dtype=torch.bfloat16)
    model = load_model(llada.write(tmp_path / "m", fields, weights), device="cpu")
    x = ids(96, length=200)
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.logits(x), llada.oracle(fields, weights, x))
    eager = load_model(tmp_path / "m", device="cpu", attn_implementation="eager")
    # eager attention rounds scores and probabilities to bfloat16 on the way; same model, other arithmetic
    assert (eager.logits(x).float() - llada.oracle(fields, weights, x).float()).abs().mean() < 0.05


def test_llada_bfloat16_without_full_precision_rotation_differs(llada, tmp_path):
    """The test above can fail: rounding cosine and sine first, as transformers does, changes bits."""
    fields, weights = llada.make(seed=4, dtype=torch.bfloat16, rope_full_precision=False)
    model = load_model(llada.write(tmp_path / "m", fields, weights), device="cpu")
    x = ids(96, length=200)
    assert not torch.equal(model.logits(x), llada.oracle(fields, weights, x))


def test_weight_tied_llada_loads(llada, tmp_path):
    fields, weights = llada.make(seed=5, weight_tying=True)
    x = ids(96)
    for change in ({}, {"weight_tying": None}):
        model = load_model(llada.write(tmp_path / "m", {**fields, **change}, weights), device="cpu")
        assert model.model.lm_head.weight is model.model.model.embed_tokens.weight
        torch.testing.assert_close(model.logits(x), llada.oracle(fields, weights, x), rtol=1e-6, atol=1e-5)


def test_llada_embeddings_wider_than_the_vocabulary_limit_what_is_decoded(llada, tmp_path):
    fields, weights = llada.make(vocab_size=91)
    model = load_model(llada.write(tmp_path / "m", fields, weights), device="cpu")
    assert (model.vocab_size, model.vocab_limit) == (96, 91)


@pytest.mark.parametrize("kind", ["safetensors", "sharded", "bin"])
def test_dream_checkpoint_gives_dreams_logits_shifted_by_one(dream, tmp_path, kind):
    fields, weights = dream.make(seed=6)
    model = load_model(dream.write(tmp_path / "m", fields, weights, kind), device="cpu")
    x = ids(80)
    own = dream.oracle(fields, weights, x)
    shifted = torch.cat([own[:, :1], own[:, :-1]], dim=1)
    torch.testing.assert_close(model.logits(x), shifted, rtol=1e-6, atol=1e-5)
    assert (model.mask_id, model.eos_ids, model.shift) == (70, (2,), True)


def test_dream_in_bfloat16_is_close_to_its_own_arithmetic(dream, tmp_path):
    fields, weights = dream.make(seed=6)
    model = load_model(dream.write(tmp_path / "m", fields, weights), device="cpu", dtype="bfloat16")
    x = ids(80)
    own = dream.oracle(fields, {k: v.bfloat16() for k, v in weights.items()}, x)
    assert torch.equal(model.logits(x), torch.cat([own[:, :1], own[:, :-1]], dim=1))


def test_released_special_ids_complete_a_config_that_leaves_them_out(llada, dream, tmp_path):
    sizes = {"d_model": 8, "n_heads": 2, "n_kv_heads": 2, "n_layers": 1, "mlp_hidden_size": 8}
    fields, weights = llada.make(
        vocab_size=126464, embedding_size=126464, eos_token_id=126081, mask_token_id=None, **sizes
    )
    model = load_model(llada.write(tmp_path / "l", fields, weights), device="cpu")
    assert (model.mask_id, model.eos_ids) == (126336, (126081, 126348))
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    fields, weights = dream.make(vocab_size=151936, eos_token_id=151643, **sizes)
    del fields["mask_token_id"]
    model = load_model(dream.write(tmp_path / "d", fields, weights), device="cpu")
    assert (model.mask_id, model.eos_ids, model.vocab_limit) == (151666, (151643, 151645), 151667)


def test_llada_key_map_keeps_block_and_head_ff_out_apart():
    assert llada_key("model.transformer.ff_out.weight") == "lm_head.weight"
    assert llada_key("model.transformer.blocks.11.ff_out.weight") == "model.layers.11.mlp.down_proj.weight"
    assert llada_key("transformer.blocks.0.attn_norm.weight") == "model.layers.0.input_layernorm.weight"
    assert llada_key("model.transformer.wpe.weight") == "model.transformer.wpe.weight"


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_rotary_frequencies_stay_float32_after_any_cast(family, tmp_path, request):
    source = request.getfixturevalue(family)
    fields, weights = source.make(seed=7)
    model = load_model(source.write(tmp_path / "m", fields, weights), device="cpu", dtype=torch.bfloat16)
    other = load_model(tmp_path / "m", device="cpu")
    rotary = model.model.model.rotary_emb
    exact = rotary.inv_freq.clone()
    assert exact.dtype == torch.float32
    for cast in (lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double(), lambda m: m.float()):
        cast(model.model)
        assert torch.equal(rotary.inv_freq, exact)
    model.model.to(torch.bfloat16)
    clone = copy.deepcopy(model.model).half()
    assert torch.equal(clone.model.rotary_emb.inv_freq, exact)
    x = ids(80, length=300, batch=1)
    fresh = load_model(tmp_path / "m", device="cpu", dtype=torch.bfloat16)
    assert torch.equal(model.model(x).logits, fresh.model(x).logits)
    assert torch.equal(other.model.model.rotary_emb.inv_freq, exact)


def test_saved_llada_comes_back_bit_equal_as_a_native_model(llada, tmp_path):
    fields, weights = llada.make(seed=8, dtype=torch.bfloat16)
    model = load_model(llada.write(tmp_path / "m", fields, weights), device="cpu")
    model.settings["task"] = {"answer_length": 11}
    save_model(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved", device="cpu")
    x = ids(96, length=150)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["model_type"] == "llama"
    assert torch.equal(again.logits(x), model.logits(x))
    assert again.settings == {"task": {"answer_length": 11}}
    assert (again.mask_id, again.eos_ids, again.attention) == (model.mask_id, model.eos_ids, "full")


def test_saved_dream_comes_back_with_its_shift(dream, tmp_path):
    fields, weights = dream.make(seed=9)
    model = load_model(dream.write(tmp_path / "m", fields, weights), device="cpu")
    again = load_model(save_model(model, tmp_path / "saved"), device="cpu")
    assert again.shift
    assert torch.equal(again.logits(ids(80)), model.logits(ids(80)))


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_overwriting_the_files_does_not_reach_a_loaded_model(family, tmp_path, request):
    source = request.getfixturevalue(family)
    for kind in ("safetensors", "bin"):
        folder = source.write(tmp_path / kind, *source.make(seed=10), kind)
        model = load_model(folder, device="cpu")
        before = model.logits(ids(80))
        for path in folder.glob("*model*"):
            with path.open("r+b") as file:
                file.write(bytes(path.stat().st_size))
        assert torch.equal(model.logits(ids(80)), before)


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_a_whole_decode_does_not_depend_on_padding_or_batch(family, tmp_path, request):
    source = request.getfixturevalue(family)
    model = load_model(source.write(tmp_path / "m", *source.make(seed=11)), device="cpu")
    lengths = [7, 3, 5]
    prompts = [ids(60, 1, n, seed=n)[0] for n in lengths]
    options = {
        "gen_length": 12,
        "block_length": 4,
        "steps": 6,
        "temperature": 0.9,
        "seeds": [5, 6, 7],
        "cfg_scale": 0.5,
    }
    single = [
        mf.generate(model, p[None], **{**options, "seeds": [s]}).sequences[0, len(p) :]
        for p, s in zip(prompts, options["seeds"], strict=True)
    ]
    for left in (True, False):
        padded, real = torch.zeros(3, 7, dtype=torch.long), torch.zeros(3, 7, dtype=torch.bool)
        for b, p in enumerate(prompts):
            place = slice(7 - len(p), 7) if left else slice(0, len(p))
            padded[b, place], real[b, place] = p, True
        out = mf.generate(model, padded, real, **options).sequences
        for b, (p, alone) in enumerate(zip(prompts, single, strict=True)):
            start = 7 if left else len(p)
            assert torch.equal(out[b, start : start + 12], alone)
