"""RowHead against full logits: every kind of head, and the undoing of the patch."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import peft
import pytest
import torch
from head_models import MODELS, V, check, expected, llama, some_ids, some_rows

from mdlm_fast.models import RowHead


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(11)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shift", [False, True])
def test_scores_equal_those_of_full_logits(name, shift):
    model = MODELS[name]()
    head = RowHead.of(model)
    for _ in range(3):  # the first call probes, the later ones run patched
        ids = some_ids()
        with torch.no_grad():
            full = model(ids).logits
        rows = some_rows()
        check(head.score(lambda ids=ids: model(ids), rows, length=10, shift=shift), expected(full, rows, shift))
        logits = head.logits(lambda ids=ids: model(ids), rows, length=10, shift=shift)
        source = torch.tensor([max(r - 1 if shift and r % 10 else r, 0) for r in rows.tolist()])
        torch.testing.assert_close(logits, full.flatten(0, 1)[source], rtol=1e-5, atol=1e-6)
    assert not head.uses_full_logits


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_patched_forward_makes_no_full_logits(name):
    model = MODELS[name]()
    head = RowHead.of(model)
    ids, widths = some_ids(), []
    for _ in range(2):
        head.score(lambda: widths.append(tuple((out := model(ids)).logits.shape)) or out, some_rows(), length=10)
    first = 0 if name == "llama" else V  # native Llama and Qwen2 are known and need no probe
    assert widths == [(3, 10, first), (3, 10, 0)]


def test_trap_l1_shift_of_the_first_position_is_itself_and_never_another_sequence():
    model = llama()
    head, ids = RowHead.of(model), some_ids()
    full = model(ids).logits.flatten(0, 1)
    rows = torch.tensor([0, 10, 20, 1, 11], dtype=torch.int32)
    for _ in range(2):
        got = head.logits(lambda: model(ids), rows, length=10, shift=True)
        torch.testing.assert_close(got, full[[0, 10, 20, 0, 10]], rtol=1e-5, atol=1e-5)


def test_trap_n8_guidance_combines_in_float32_before_everything():
    model = llama().bfloat16()
    head = RowHead.of(model)
    ids = some_ids(4)  # two conditional canvases, then their unconditional ones
    rows = torch.tensor([3, -1, 18, 0], dtype=torch.int32)
    other = torch.where(rows >= 0, rows + 20, rows)
    with torch.no_grad():
        z = model(ids).logits.flatten(0, 1).float()
    for shift in (False, True):
        source, pair = ([2, 0, 17, 0], [22, 0, 37, 20]) if shift else ([3, 0, 18, 0], [23, 0, 38, 20])
        want = (2.5 * z[source] - 1.5 * z[pair]).double().log_softmax(-1)
        for _ in range(2):
            got = head.score(lambda: model(ids), rows, length=10, shift=shift, guidance_rows=other, guidance_scale=1.5)
            live = rows >= 0
            assert got.token is not None and got.logp is not None
            assert got.token[live].tolist() == want.argmax(-1)[live].tolist()
            torch.testing.assert_close(got.logp[live].double(), want.max(-1).values[live], rtol=0, atol=0.05)


def test_sampling_depends_on_seed_and_position_not_on_the_path():
    model = llama()
    ids = some_ids()
    rows = torch.arange(30, dtype=torch.int32)
    options = {"temperature": 1.3, "seeds": 7, "step": 2}
    head = RowHead.of(model)
    first = head.score(lambda: model(ids), rows, length=10, **options)  # full logits
    patched = head.score(lambda: model(ids), rows, length=10, **options)  # fused head
    with torch.autocast("cpu", dtype=torch.float32, enabled=False):
        callable_path = RowHead.of(lambda: None)
        with pytest.warns(RuntimeWarning, match="full logits"):
            full = callable_path.score(lambda: model(ids), rows, length=10, **options)
    assert first.token is not None and patched.token is not None and full.token is not None
    assert first.token.tolist() == patched.token.tolist() == full.token.tolist()
    assert len(set(first.token.tolist())) > 5


def test_lora_head_runs_its_own_forward_on_the_rows_alone():
    base = llama()
    model = peft.get_peft_model(
        base, peft.LoraConfig(target_modules=["lm_head", "q_proj"], r=4, init_lora_weights=False)
    )
    model.eval()
    head, ids, seen = RowHead.of(model), some_ids(), []
    model.get_output_embeddings().register_forward_pre_hook(lambda m, args: seen.append(tuple(args[0].shape)))
    base_layer = model.get_output_embeddings().base_layer
    base_layer.register_forward_pre_hook(lambda m, args: seen.append(tuple(args[0].shape)))
    full = model(ids).logits
    assert not torch.allclose(full, torch.nn.functional.linear(base.model(ids).last_hidden_state, base_layer.weight))
    for options in ({}, {"temperature": 0.8, "seeds": 3}):
        seen.clear()
        for _ in range(2):
            got = head.score(lambda: model(ids), some_rows(), length=10, **options)
        assert seen[-1] == (1, 8, 32)
        if not options:
            check(got, expected(full, some_rows()))
    assert not head.uses_full_logits


def test_autocast_keeps_the_dtype_the_model_would_use():
    model = llama()
    head, ids = RowHead.of(model), some_ids()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        full = model(ids).logits
        for _ in range(2):
            logits = head.logits(lambda: model(ids), some_rows(), length=10)
            check(head.score(lambda: model(ids), some_rows(), length=10), expected(full, some_rows()))
    assert logits.dtype == full.dtype == torch.bfloat16


@pytest.mark.parametrize("where", ["body", "head", "after"])
def test_an_exception_leaves_the_head_unpatched(where):
    model = llama()
    head, ids = RowHead.of(model), some_ids()
    head.score(lambda: model(ids), some_rows(), length=10)

    def forward() -> Any:
        if where == "body":
            raise RuntimeError("boom")
        out = model(ids)
        if where == "after":
            raise RuntimeError("boom")
        return out

    wrong = {"length": 7} if where == "head" else {"length": 10}
    with pytest.raises((RuntimeError, ValueError)):
        head.score(forward, some_rows(), **wrong)
    assert "forward" not in model.lm_head.__dict__
    assert model(ids).logits.shape == (3, 10, V)
    check(head.score(lambda: model(ids), some_rows(), length=10), expected(model(ids).logits, some_rows()))


def test_two_models_and_two_threads_do_not_interfere():
    models = [llama(), llama()]
    ids = [some_ids(), some_ids()]
    want = [expected(m(x).logits, some_rows()) for m, x in zip(models, ids, strict=True)]
    faults: list[BaseException] = []

    def work(i: int) -> None:
        try:
            for _ in range(20):
                check(RowHead.of(models[i]).score(lambda: models[i](ids[i]), some_rows(), length=10), want[i])
                with torch.no_grad():
                    assert models[i](ids[i]).logits.shape == (3, 10, V)  # the other thread's patch is not ours
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_nested_models_score_inside_each_others_forward():
    outer, inner = llama(), llama()
    ids = some_ids()
    for _ in range(3):
        seen = []

        def forward(seen=seen) -> Any:
            seen.append(RowHead.of(inner).score(lambda: inner(ids), some_rows(), length=10))
            return outer(ids)

        check(RowHead.of(outer).score(forward, some_rows(), length=10), expected(outer(ids).logits, some_rows()))
        check(seen[0], expected(inner(ids).logits, some_rows()))


def test_row_head_is_cached_and_does_not_keep_the_model_alive():
    model = llama()
    head = RowHead.of(model)
    assert RowHead.of(model) is head
    gone = weakref.ref(model)
    head.score(lambda m=model: m(some_ids()), some_rows(), length=10)
    del model
    gc.collect()
    assert gone() is None


def test_logits_are_differentiable_through_the_rows():
    model = llama()
    head, ids = RowHead.of(model), some_ids()
    rows = torch.tensor([3, 12], dtype=torch.int32)
    head.score(lambda: model(ids), rows, length=10)
    head.logits(lambda: model(ids), rows, length=10).logsumexp(-1).sum().backward()
    mine = model.lm_head.weight.grad.clone()
    model.zero_grad()
    model(ids).logits.flatten(0, 1)[[3, 12]].logsumexp(-1).sum().backward()
    torch.testing.assert_close(mine, model.lm_head.weight.grad, rtol=1e-4, atol=1e-6)


def test_refuses_wrong_rows_and_outputs():
    model = llama()
    head, ids = RowHead.of(model), some_ids()
    with pytest.raises(ValueError, match=r"rows must be int32"):
        head.score(lambda: model(ids), torch.ones(3), length=10)
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        head.score(lambda: model(ids), some_rows(), length=0)
    with pytest.raises(TypeError, match="returned dict without logits"), pytest.warns(RuntimeWarning, match="0 times"):
        head.score(lambda: {"loss": 1}, some_rows(), length=10)
    with pytest.raises(ValueError, match="for every position"):
        head.score(lambda: model(ids, logits_to_keep=3), some_rows(), length=10)
