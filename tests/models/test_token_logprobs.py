"""MaskedDiffusionModel.token_logprobs against a dense log-softmax of the model's full logits, values and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from mdlm_fast import wrap
from mdlm_fast.models import MaskedDiffusionModel

VOCAB, LENGTH = 61, 12
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def make(kind: str, seed: int = 0) -> MaskedDiffusionModel:
    torch.manual_seed(seed)
    if kind == "dream":
        model: nn.Module = Qwen2ForCausalLM(Qwen2Config(**SIZES))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=kind == "tied"))
    model.config.is_causal = False
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    if kind == "scaled":  # changes its logits after the head, so full logits must be scored
        model.register_forward_hook(lambda module, args, output: setattr(output, "logits", output.logits * 0.5))
    return wrap(model.eval(), mask_id=1, eos_ids=2, shift=kind == "dream", attention="full", vocab_limit=VOCAB - 3)


def case(seed: int, padded: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB - 3, (3, LENGTH), generator=generator)
    mask = torch.ones(3, LENGTH, dtype=torch.bool)
    if padded:
        mask[1, :4] = False
    rows = torch.tensor([5, 7, LENGTH + 4, LENGTH + 5, 3 * LENGTH - 1, 5])
    targets = torch.randint(3, VOCAB - 3, rows.shape, generator=generator)
    return ids, mask, rows.to(torch.int32), targets


def dense(model: MaskedDiffusionModel, ids: Tensor, mask: Tensor, rows: Tensor, targets: Tensor, t: float) -> Tensor:
    """float64 log-softmax of full logits, row l - 1 predicting position l under shift."""
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    logits = model.model(input_ids=ids, attention_mask=mask.long(), position_ids=positions).logits.double() / t
    result = []
    for row, target in zip(rows.tolist(), targets.tolist(), strict=True):
        sequence, position = divmod(row, LENGTH)
        if model.shift and position > 0 and bool(mask[sequence, position - 1]):
            position -= 1
        allowed = logits[sequence, position].clone()
        allowed[1] = -torch.inf
        allowed[VOCAB - 3 :] = -torch.inf
        result.append(allowed.log_softmax(0)[target])
    return torch.stack(result)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", ["llada", "dream", "tied", "lora", "scaled"])
@pytest.mark.filterwarnings("ignore:mdlm_fast scores")
def test_values_and_gradients_equal_a_dense_log_softmax(kind: str, padded: bool) -> None:
    model = make(kind)
    ids, mask, rows, targets = case(3, padded)
    weights = torch.linspace(0.5, 2.0, rows.shape[0])
    logp, entropy = model.token_logprobs(
        ids, rows, targets, attention_mask=mask, temperature=0.7, forbidden_ids=[1], vocab_limit=VOCAB - 3
    )
    expected = dense(model, ids, mask, rows, targets, 0.7)
    torch.testing.assert_close(logp.double(), expected, atol=2e-5, rtol=2e-5)
    assert entropy.shape == logp.shape and not entropy.requires_grad
    trained = [p for p in model.model.parameters() if p.requires_grad]
    ours = torch.autograd.grad((logp * weights).sum(), trained)
    theirs = torch.autograd.grad((expected * weights.double()).sum(), trained)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-3)


def test_autocast_scores_in_its_dtype_through_the_fused_head() -> None:
    model = make("llada")
    ids, mask, rows, targets = case(5, True)
    low = make("llada")
    low.model.load_state_dict(copy.deepcopy(model.model.state_dict()))
    exact, _ = model.token_logprobs(ids, rows, targets, attention_mask=mask)
    with torch.autocast("cpu", torch.bfloat16):
        logp, _ = low.token_logprobs(ids, rows, targets, attention_mask=mask)
    assert logp.dtype == torch.float32
    assert not torch.equal(logp, exact)  # the products were rounded
    torch.testing.assert_close(logp, exact, atol=0.1, rtol=0.05)
    logp.sum().backward()
    assert low.model.lm_head.weight.grad is not None
    assert low.model.lm_head.weight.grad.dtype == torch.float32


def test_a_wrapped_module_is_what_runs() -> None:
    model = make("llada")
    ids, mask, rows, targets = case(7, False)
    seen = []

    class Around(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, **inputs: Tensor) -> object:
            output = self.inner(**inputs)
            seen.append(output.logits.requires_grad)
            return output

    around = Around(model.model)
    logp, _ = model.token_logprobs(ids, rows, targets, attention_mask=mask, module=around)
    expected, _ = model.token_logprobs(ids, rows, targets, attention_mask=mask)
    assert torch.equal(logp, expected)
    assert seen == [True]  # the log-probs pass through the module's output, where wrappers look
