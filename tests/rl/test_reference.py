"""Reference policies: they stay what the policy was, follow it only when told to, and leave no trace on it."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from mdlm_fast.models import MaskedDiffusionModel, wrap
from mdlm_fast.rl.lora import lora_config
from mdlm_fast.rl.reference import ADAPTER, Reference, make_reference

IDS = torch.randint(0, 40, (2, 7), generator=torch.Generator().manual_seed(0))
REFERENCES = ["adapter_off", "adapter", "copy"]


def policy(seed: int, lora: dict[str, Any] | None = None, trained: bool = False, **config: Any) -> MaskedDiffusionModel:
    """A tiny model in train mode; with `lora`, adapted; with `trained`, the adapter already adds something."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model: nn.Module = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=40, is_causal=False, **config))
    if lora is not None:
        model = peft.get_peft_model(model, lora_config(model, r=2, alpha=4, **lora))
        if trained:
            disturb(model, seed)
    return wrap(model.train(), mask_id=39, eos_ids=(1,), settings={"a": 1})


def disturb(model: nn.Module, seed: int) -> None:
    """An update of everything that is trained."""
    torch.manual_seed(seed + 100)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)


def logits(model: MaskedDiffusionModel) -> Tensor:
    return model.logits(IDS)


def logits_of(reference: Reference) -> Tensor:
    with reference.scorer() as (model, module):
        assert module is None
        return logits(model)


def evaluated(model: MaskedDiffusionModel) -> Tensor:
    """The policy's logits without dropout, its modes left alone."""
    modes = [(m, m.training) for m in model.model.modules()]
    model.model.eval()
    out = logits(model).detach()
    for module, mode in modes:
        module.training = mode
    return out


def case(kind: str, seed: int) -> MaskedDiffusionModel:
    """A policy that `auto` gives this kind of reference, with dropout in it."""
    if kind == "copy":
        return policy(seed, attention_dropout=0.4)
    return policy(seed, {"dropout": 0.3}, trained=kind == "adapter", attention_dropout=0.4)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", REFERENCES)
def test_reference_keeps_the_values_the_policy_had(kind, seed):
    model = case(kind, seed)
    before = evaluated(model)
    reference = make_reference(model, beta=0.04)
    assert reference.kind == kind
    assert torch.equal(evaluated(model), before)
    assert torch.equal(logits_of(reference), before)
    disturb(model.model, seed)
    assert (evaluated(model) - before).abs().max() > 1e-3
    assert torch.equal(logits_of(reference), before)


@pytest.mark.parametrize("kind", REFERENCES)
def test_policy_trains_on_as_if_no_reference_had_been_scored(kind):
    model = case(kind, 3)
    untouched = copy.deepcopy(model.model)
    reference = make_reference(model, beta=0.1)
    trained = [name for name, p in model.model.named_parameters() if p.requires_grad]
    assert trained == [name for name, p in untouched.named_parameters() if p.requires_grad]
    torch.manual_seed(7)
    with reference.scorer() as scorer:
        assert not logits(scorer.model).requires_grad
    for module in (model.model, untouched):
        torch.manual_seed(7)
        module(input_ids=IDS).logits.float().logsumexp(-1).sum().backward()
    wanted = dict(untouched.named_parameters())
    for name, parameter in model.model.named_parameters():
        if name in trained:
            assert torch.equal(parameter.grad, wanted[name].grad), name
        else:
            assert parameter.grad is None
    assert sum(float(p.grad.abs().sum()) for n, p in model.model.named_parameters() if n in trained) > 0


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", REFERENCES)
def test_state_of_the_policy_is_put_back(kind, fails):
    model = case(kind, 4)
    reference = make_reference(model, beta=0.1)
    model.model.get_submodule("base_model.model.model" if kind != "copy" else "model").layers[1].eval()
    frozen = next(n for n, p in model.model.named_parameters() if p.requires_grad)
    model.model.get_parameter(frozen).requires_grad_(False)

    def state() -> tuple[Any, ...]:
        modes = {n: m.training for n, m in model.model.named_modules()}
        wanted = {n: p.requires_grad for n, p in model.model.named_parameters()}
        return modes, wanted, getattr(model.model, "active_adapter", None), torch.is_grad_enabled()

    before = state()
    try:
        with reference.scorer() as scorer:
            assert not any(m.training for m in scorer.model.model.modules())
            assert not torch.is_grad_enabled()
            if fails:
                raise KeyError("reward")
    except KeyError:
        assert fails
    assert state() == before
    assert not before[1][frozen] and any(before[1].values())


@pytest.mark.parametrize("alpha", [0.25, 0.6, 1.0])
@pytest.mark.parametrize("kind", ["adapter", "copy"])
def test_sync_moves_the_reference_by_alpha(kind, alpha):
    model = case(kind, 5)
    start = {n: p.detach().double() for n, p in model.model.named_parameters() if p.requires_grad}
    reference = make_reference(model, kind, beta=0.1)
    disturb(model.model, 5)
    policy_before = {n: p.detach().clone() for n, p in model.model.named_parameters()}
    reference.sync(alpha)
    assert all(torch.equal(p, policy_before[n]) for n, p in model.model.named_parameters() if ADAPTER not in n)
    own = dict((reference.module or model.model).named_parameters())
    for name, first in start.items():
        moved = own[name.replace(".default.", f".{ADAPTER}.") if kind == "adapter" else name]
        wanted = alpha * policy_before[name].double() + (1 - alpha) * first
        torch.testing.assert_close(moved.double(), wanted, rtol=1e-6, atol=1e-6)
        assert not moved.requires_grad
    if alpha == 1.0:
        assert torch.equal(logits_of(reference), evaluated(model))


@pytest.mark.parametrize("kind", ["adapter", "copy"])
def test_a_synced_reference_survives_a_checkpoint(kind):
    model = case(kind, 6)
    reference = make_reference(model, kind, beta=0.1)
    assert bool(reference.state_dict()) == (kind == "adapter")  # a copy never synced is the start model
    disturb(model.model, 6)
    reference.sync(0.5)
    wanted = logits_of(reference)
    saved = {name: tensor.clone() for name, tensor in reference.state_dict().items()}

    again = make_reference(case(kind, 6), kind, beta=0.1)
    assert not torch.equal(logits_of(again), wanted)
    again.load_state_dict(saved)
    assert torch.equal(logits_of(again), wanted)
    assert set(again.state_dict()) == set(saved)

    for wrong in ({**saved, "more": torch.zeros(1)}, dict(list(saved.items())[1:])):
        with pytest.raises(ValueError, match=r"the saved reference has .* resume with the reference"):
            again.load_state_dict(wrong)
    name = next(iter(saved))
    with pytest.raises(ValueError, match="of shape"):
        again.load_state_dict({**saved, name: saved[name][:1, :1]})


def test_auto_chooses_what_equals_the_model_at_the_start():
    lora: dict[str, Any] = {}
    assert make_reference(policy(0), beta=0.1).kind == "copy"
    assert make_reference(policy(0, lora), beta=0.1).kind == "adapter_off"
    assert make_reference(policy(0, lora, trained=True), beta=0.1).kind == "adapter"
    # these start from something else than the base model with a zero adapter
    for options in ({"init_lora_weights": False}, {"init_lora_weights": "pissa"}, {"modules_to_save": ["norm"]}):
        model = policy(1, options)
        before = evaluated(model)
        reference = make_reference(model, beta=0.1)
        assert reference.kind == "adapter"
        disturb(model.model, 1)
        torch.testing.assert_close(logits_of(reference), before, rtol=0, atol=0)
    biased = policy(2, {"bias": "all"}, attention_bias=True)
    reference = make_reference(biased, beta=0.1)
    assert reference.kind == "copy"
    with pytest.raises(ValueError, match=r"shares .*bias, which is trained too, .* use 'copy'"):
        make_reference(biased, "adapter_off", beta=0.1)


@pytest.mark.parametrize("lora", [None, {}])
def test_without_beta_nothing_is_kept(lora):
    model = policy(0, lora)
    before = sum(p.numel() for p in model.model.parameters())
    reference = make_reference(model, beta=0.0)
    assert (reference.kind, reference.module, reference.state_dict()) == ("none", None, {})
    assert sum(p.numel() for p in model.model.parameters()) == before
    with pytest.raises(RuntimeError, match="no reference policy"), reference.scorer():
        pass
    reference.load_state_dict({})


def test_only_a_copy_costs_a_model():
    for kind, extra in (("adapter_off", 0), ("adapter", 1)):
        model = policy(0, {})
        sizes = {n: p.numel() for n, p in model.model.named_parameters()}
        adapter = sum(n for name, n in sizes.items() if "lora_" in name)
        assert make_reference(model, kind, beta=0.1).module is None
        assert sum(p.numel() for p in model.model.parameters()) == sum(sizes.values()) + extra * adapter
    model = policy(0)
    reference = make_reference(model, "copy", beta=0.1)
    assert reference.module is not None and not any(p.requires_grad for p in reference.module.parameters())
    with reference.scorer() as scorer:
        assert scorer.model.model is reference.module
        for fact in ("mask_id", "eos_ids", "shift", "attention", "block_size", "vocab_size", "vocab_limit", "settings"):
            assert getattr(scorer.model, fact) == getattr(model, fact)


def test_second_adapter_takes_the_dtype_of_the_first_and_is_renewed():
    model = policy(0, {}, trained=True)
    model.model.bfloat16()
    for seed in (1, 2):
        disturb(model.model, seed)
        before = evaluated(model)
        reference = make_reference(model, "adapter", beta=0.1)
        disturb(model.model, seed + 10)
        assert torch.equal(logits_of(reference), before)
    assert {p.dtype for p in model.model.parameters()} == {torch.bfloat16}
    assert sorted(model.model.peft_config) == ["default", ADAPTER]


def test_wrapped_module_is_handed_back_where_it_plays_the_reference():
    model = policy(0, {})
    wrapped = nn.Sequential(model.model)
    for kind in ("adapter_off", "adapter"):
        with make_reference(model, kind, beta=0.1).scorer(wrapped) as scorer:
            assert scorer.model is model and scorer.module is wrapped
    with make_reference(model, "copy", beta=0.1).scorer(wrapped) as scorer:
        assert scorer.module is None


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="reference='frozen' must be one of auto, adapter_off"):
        make_reference(policy(0), "frozen", beta=0.1)
    with pytest.raises(ValueError, match=r"reference='none' leaves beta=0.1 without"):
        make_reference(policy(0), "none", beta=0.1)
    for kind in ("adapter", "adapter_off"):
        with pytest.raises(ValueError, match=rf"reference='{kind}' needs a PEFT adapter; LlamaForCausalLM has none"):
            make_reference(policy(0), kind, beta=0.1)
    for reference in (make_reference(policy(0), beta=0), make_reference(policy(0, {}), beta=0.1)):
        with pytest.raises(ValueError, match=rf"reference='{reference.kind}' cannot follow the policy; use 'adapter'"):
            reference.sync(0.5)
        with pytest.raises(ValueError, match="has an unexpected 'x'"):
            reference.load_state_dict({"x": torch.zeros(1)})
    for alpha in (0.0, -0.1, 1.1):
        with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
            make_reference(policy(0), "copy", beta=0.1).sync(alpha)
    named = policy(0)
    named.model = peft.get_peft_model(named.model, lora_config(named, r=2), adapter_name=ADAPTER)
    with pytest.raises(ValueError, match="rename it"):
        make_reference(named, "adapter", beta=0.1)
    sharded = policy(0, {})
    for name, parameter in sharded.model.named_parameters():
        if "lora_B" in name:
            parameter.data = parameter.data.new_empty(0)
    with pytest.raises(ValueError, match=r"lora_B\S* is sharded or on the meta device.*reference='adapter_off'"):
        make_reference(sharded, beta=0.1)
