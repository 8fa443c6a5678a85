"""LoRA targets: which matrices an adapter really lands on, counted in the adapted model."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from mdlm_fast.models import wrap
from mdlm_fast.rl.lora import check_adapted, count_adapted, lora_config

LAYERS = 3
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 40,
}
LLAMA_NAMES = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
]  # the list of d1 and CJ-GRPO


class LLaDABlock(nn.Module):
    """The modules of one block of LLaDA's own code, under its names."""

    def __init__(self) -> None:
        super().__init__()
        self.attn_out = nn.Linear(16, 16, bias=False)
        self.ff_out = nn.Linear(24, 16, bias=False)
        self.attn_norm, self.ff_norm = nn.RMSNorm(16), nn.RMSNorm(16)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(16, 16, bias=False) for _ in range(3))
        self.ff_proj, self.up_proj = (nn.Linear(16, 24, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.attn_norm(x)
        x = x + self.attn_out(torch.tanh(self.q_proj(h) * self.k_proj(h)) * self.v_proj(h))
        h = self.ff_norm(x)
        return x + self.ff_out(nn.functional.silu(self.ff_proj(h)) * self.up_proj(h))


class LLaDAModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(40, 16), "ln_f": nn.RMSNorm(16)})
        self.transformer["blocks"] = nn.ModuleList(LLaDABlock() for _ in range(LAYERS))
        self.transformer["ff_out"] = nn.Linear(16, 40, bias=False)


class LLaDAModelLM(nn.Module):
    """LLaDA as `trust_remote_code` gives it; model.transformer.ff_out is the LM head."""

    def __init__(self) -> None:
        super().__init__()
        self.model = LLaDAModel()
        self.config = SimpleNamespace(model_type="llada", vocab_size=40, mask_token_id=39)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.transformer["wte"]

    def get_output_embeddings(self) -> nn.Module:
        return self.model.transformer["ff_out"]

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        x = self.model.transformer["wte"](input_ids)
        for block in self.model.transformer["blocks"]:
            x = block(x)
        return SimpleNamespace(logits=self.model.transformer["ff_out"](self.model.transformer["ln_f"](x)))


class DreamModel(Qwen2ForCausalLM):
    """Dream's own code has Qwen2's module names under other class names."""


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SIZES, is_causal=False))


def qwen2() -> nn.Module:
    return Qwen2ForCausalLM(Qwen2Config(**SIZES))


def dream() -> nn.Module:
    return DreamModel(Qwen2Config(**SIZES))


PRESET_NAMES = {
    "all": LLAMA_NAMES,
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "mlp": ["gate_proj", "up_proj", "down_proj"],
    "paper": ["q_proj", "k_proj", "v_proj", "up_proj"],
}
LLADA_NAMES = {"o_proj": "attn_out", "gate_proj": "ff_proj", "down_proj": "ff_out"}


@pytest.mark.parametrize("preset", PRESET_NAMES)
@pytest.mark.parametrize("make", [llama, qwen2, dream, LLaDAModelLM])
def test_preset_adapts_every_named_matrix_of_every_layer_and_nothing_else(make, preset):
    model = make()
    head = model.get_output_embeddings()
    names = PRESET_NAMES[preset]
    if make is LLaDAModelLM:
        names = [LLADA_NAMES.get(name, name) for name in names]
    config = lora_config(model, preset, r=2, alpha=4)
    assert check_adapted(model, config) == dict.fromkeys(names, LAYERS)
    adapted = peft.get_peft_model(model, config)
    assert count_adapted(adapted) == dict.fromkeys(names, LAYERS)
    assert adapted.get_output_embeddings() is head and type(head) is nn.Linear
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * LAYERS * len(names)
    assert all(".layers." in name or ".blocks." in name for name in trained)
    assert adapted(input_ids=torch.zeros(1, 3, dtype=torch.long)).logits.shape == (1, 3, 40)


def test_targets_may_be_names_and_the_model_wrapped():
    model = wrap(LLaDAModelLM())
    config = lora_config(model, ["ff_out", "v_proj", "v_proj"], r=2, alpha=4, use_rslora=True)
    assert config.use_rslora
    model.model = peft.get_peft_model(model.model, config)
    assert count_adapted(model) == {"ff_out": LAYERS, "v_proj": LAYERS}


def test_saved_config_fits_the_same_model_again(tmp_path):
    peft.get_peft_model(llama(), lora_config(llama(), "mlp", r=2)).save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(llama(), tmp_path)
    assert count_adapted(again) == dict.fromkeys(PRESET_NAMES["mlp"], LAYERS)


def test_other_transformers_take_names():
    bert = BertForMaskedLM(BertConfig(**SIZES))
    with pytest.raises(ValueError, match=r"BertForMaskedLM has dense, key, query, value. Pass a list"):
        lora_config(bert)
    assert check_adapted(bert, lora_config(bert, ["query", "value"])) == {"query": LAYERS, "value": LAYERS}
    with pytest.raises(ValueError, match=r"bert.encoder.layer.0 has 3 matrices named 'dense', and must have one"):
        lora_config(bert, ["dense"])


def test_a_layer_without_a_target_is_refused():
    model = llama()
    del model.model.layers[1].mlp.up_proj
    with pytest.raises(ValueError, match=r"model.layers.1 has 0 matrices named 'up_proj'"):
        lora_config(model, "paper")
    model.model.layers[1] = nn.Identity()
    with pytest.raises(ValueError, match=r"model.layers.1 has 0 matrices named 'q_proj'"):
        lora_config(model, ["q_proj"])


def test_wrong_targets_are_refused():
    with pytest.raises(ValueError, match=r"targets='al' must be one of all, attention, mlp, paper"):
        lora_config(llama(), "al")
    with pytest.raises(ValueError, match=r"no layer has a matrix named 'o_proj'; LLaDAModelLM has attn_out, ff_out"):
        lora_config(LLaDAModelLM(), LLAMA_NAMES)
    with pytest.raises(ValueError, match=r"no layer has a matrix named 'lm_head'"):
        lora_config(llama(), ["q_proj", "lm_head"])
    with pytest.raises(ValueError, match="targets is an empty list"):
        lora_config(llama(), [])
    with pytest.raises(ValueError, match="Linear has no numbered layers"):
        lora_config(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="holds an adapter already"):
        lora_config(peft.get_peft_model(llama(), lora_config(llama(), r=2)))


@pytest.mark.parametrize("targets", [["ff_out"], ["q_proj", "model.transformer.ff_out"], r".*ff_out"])
def test_a_config_that_catches_lladas_head_is_refused(targets):
    with pytest.raises(ValueError, match=r"would adapt the LM head, 'model.transformer.ff_out'"):
        check_adapted(LLaDAModelLM(), peft.LoraConfig(target_modules=targets))
    excluding = peft.LoraConfig(target_modules=targets, exclude_modules=["transformer.ff_out"])
    assert check_adapted(LLaDAModelLM(), excluding).get("ff_out", 0) in (0, LAYERS)


def test_a_config_that_names_the_head_of_a_native_model_is_refused():
    with pytest.raises(ValueError, match=r"would adapt the LM head, 'lm_head'"):
        check_adapted(wrap(llama(), mask_id=1), peft.LoraConfig(target_modules=["q_proj", "lm_head"]))
    adapted = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(ValueError, match=r"would adapt the LM head, 'lm_head'"):
        check_adapted(adapted, adapted.active_peft_config)


def test_names_that_match_nothing_are_counted_in_one_warning():
    with pytest.warns(UserWarning) as seen:
        counts = check_adapted(LLaDAModelLM(), peft.LoraConfig(target_modules=LLAMA_NAMES))
    assert counts == dict.fromkeys(PRESET_NAMES["paper"], LAYERS)
    assert [str(w.message) for w in seen] == [
        "target_modules: 3 of 7 names match nothing in LLaDAModelLM (down_proj, gate_proj, o_proj), so 12 modules are "
        "adapted: k_proj 3, q_proj 3, up_proj 3, v_proj 3"
    ]
    with pytest.warns(UserWarning, match=r"1 of 1 names match nothing .* so 0 modules are adapted: none"):
        check_adapted(llama(), peft.LoraConfig(target_modules=["ff_proj"]))


@pytest.mark.parametrize("targets", [None, "all-linear", LLAMA_NAMES, r".*\.(q|v)_proj"])
def test_a_sound_config_passes_in_silence(targets):
    model = llama()
    assert isinstance(model, PreTrainedModel)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counts = check_adapted(model, peft.LoraConfig(target_modules=targets, r=2))
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, r=2))
    if counts:
        assert counts == count_adapted(adapted)
    assert "lm_head" not in count_adapted(adapted)
    assert check_adapted(adapted, adapted.active_peft_config) == count_adapted(adapted)
