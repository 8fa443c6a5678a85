"""wrap(): what it finds out by itself, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from mdlm_fast.models import MaskedDiffusionModel, wrap

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 40,
}


def llama(**changes: Any) -> LlamaForCausalLM:
    model = LlamaForCausalLM(LlamaConfig(**{**SIZES, "is_causal": False, "eos_token_id": None})).eval()
    for name, value in changes.items():
        setattr(model.config, name, value)
    return model


class Tokenizer(SimpleNamespace):
    def get_vocab(self) -> dict[str, int]:
        return {f"t{i}": i for i in range(self.size)}


def facts(model: MaskedDiffusionModel) -> tuple[Any, ...]:
    return model.mask_id, model.eos_ids, model.shift, model.vocab_size, model.vocab_limit


def test_takes_what_it_needs_from_arguments_config_and_tokenizer():
    tokenizer = Tokenizer(mask_token_id=7, eos_token_id=8, size=31)
    assert facts(wrap(llama(), tokenizer)) == (7, (8,), False, 40, 31)
    assert facts(wrap(llama(mask_token_id=33, eos_token_id=[1, 2]), tokenizer)) == (33, (1, 2, 8), False, 40, 34)
    given = wrap(llama(mask_token_id=33), tokenizer, mask_id=5, eos_ids=[4, 4, 6], shift=True, vocab_limit=35)
    assert facts(given) == (5, (4, 6), True, 40, 35)
    assert facts(wrap(llama(), mask_id=5, eos_ids=())) == (5, (), False, 40, None)
    assert facts(wrap(llama(), mask_id=5, eos_ids=9)) == (5, (9,), False, 40, None)
    assert wrap(llama(), Tokenizer(mask_token_id=7, eos_token_id=None, size=40)).vocab_limit is None


def test_knows_dream_and_llada_by_their_model_type():
    wide = {**SIZES, "vocab_size": 151936, "hidden_size": 4, "intermediate_size": 4}
    model = LlamaForCausalLM(LlamaConfig(**wide, is_causal=False, eos_token_id=None))
    model.config.model_type = "Dream"
    assert facts(wrap(model)) == (151666, (151643, 151645), True, 151936, 151667)
    model.config.model_type = "llada"
    assert facts(wrap(model)) == (126336, (126081, 126348), False, 151936, None)
    small = llama(model_type="Dream")
    with pytest.raises(ValueError, match="mask_id is unknown"):
        wrap(small)
    assert facts(wrap(small, mask_id=3)) == (3, (), True, 40, None)


def test_leaves_the_model_as_it_is():
    model = llama().train()
    before = model.config.to_dict()
    wrapped = wrap(model, mask_id=3)
    wrapped.score_rows(torch.randint(0, 40, (2, 5)), torch.tensor([1, 7], dtype=torch.int32))
    assert wrapped.model is model and model.training and model.config.to_dict() == before
    assert "LlamaForCausalLM, mask_id=3" in repr(wrapped)
    assert (wrapped.device, wrapped.dtype) == (torch.device("cpu"), torch.float32)


def test_works_on_a_peft_model():
    torch.manual_seed(3)
    base = llama()
    ids = torch.randint(0, 40, (2, 6))
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    adapted = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)).eval()
    wrapped = wrap(adapted, mask_id=3)
    alone = wrapped.logits(ids[1:, 2:])
    torch.testing.assert_close(wrapped.logits(ids, attention_mask=mask)[1:, 2:], alone, rtol=1e-5, atol=1e-6)
    rows = torch.tensor([9], dtype=torch.int32)
    for _ in range(2):
        got = wrapped.row_logits(ids, rows, attention_mask=mask)
        torch.testing.assert_close(got, alone[:, 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "mask_id is unknown"),
        ({"mask_id": 40}, r"mask_id=40 is not an id the model can read \(0 to 39\)"),
        ({"mask_id": -1}, "mask_id=-1"),
        ({"mask_id": 3, "eos_ids": [1, 40]}, "eos_ids contains 40"),
        ({"mask_id": 3, "eos_ids": [-2]}, "eos_ids must be ids of 0 or more, got -2"),
        ({"mask_id": 3, "vocab_limit": 41}, "vocab_limit=41 must lie in 1 to 40"),
        ({"mask_id": 3, "attention": "window"}, "attention='window' must be one of"),
        ({"mask_id": 3, "attention": "block"}, "needs block_size of at least 1, got None"),
        ({"mask_id": 3, "attention": "block", "block_size": 0}, "got 0"),
        ({"mask_id": 3, "block_size": 4}, "block_size=4 is only used with attention='block'"),
    ],
)
def test_refuses_with_one_clear_message(options, message):
    with pytest.raises(ValueError, match=message):
        wrap(llama(), **options)


def test_refuses_heads_and_models_that_cannot_work():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
        wrap("GSAI-ML/LLaDA-8B-Instruct", mask_id=3)  # type: ignore[arg-type]
    narrow = llama()
    narrow.lm_head = nn.Linear(16, 39)
    with pytest.raises(ValueError, match=r"gives 39 logits but config\.vocab_size is 40"):
        wrap(narrow, mask_id=3)
    with pytest.raises(ValueError, match=r"neither config\.vocab_size nor an output head"):
        wrap(nn.Linear(4, 4), mask_id=3)
    bert = BertForMaskedLM(BertConfig(**SIZES)).eval()
    with pytest.raises(ValueError, match="needs a rotary decoder"):
        wrap(bert, mask_id=3, attention="block", block_size=2)


def test_a_model_that_takes_no_mask_refuses_padded_batches():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(vocab_size=40)
            self.embed, self.lm_head = nn.Embedding(40, 8), nn.Linear(8, 40)

        def get_input_embeddings(self) -> nn.Module:
            return self.embed

        def get_output_embeddings(self) -> nn.Module:
            return self.lm_head

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.lm_head(self.embed(input_ids))

    model = wrap(Bare(), mask_id=3)
    ids = torch.randint(0, 40, (2, 5))
    assert model.logits(ids).shape == (2, 5, 40)
    with pytest.raises(ValueError, match="takes no attention_mask"):
        model.logits(ids, attention_mask=torch.tensor([[1] * 5, [0, 1, 1, 1, 1]]))
