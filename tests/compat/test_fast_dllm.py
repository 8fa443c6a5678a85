"""compat.fast_dllm.generate: thresholds, factors, and the count of forward passes."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from compat_oracle import Fixed, Stub, decode, front_loaded
from torch import Tensor

from mdlm_fast.compat import fast_dllm

MASK = 18
BIAS = {MASK: -40.0}
NOTHING = torch.zeros(1, 0, dtype=torch.long)


def prompts(batch: int, length: int = 4) -> Tensor:
    return torch.randint(0, MASK, (batch, length), generator=torch.Generator().manual_seed(3))


def above(threshold: float) -> Callable[[list[float], int], int]:
    return lambda ranked, count: min(len(ranked), max(1, sum(p >= threshold for p in ranked)))


def by_factor(factor: float) -> Callable[[list[float], int], int]:
    def take(ranked: list[float], count: int) -> int:
        taken = 0
        for rank, p in enumerate(ranked, start=1):
            if rank > 1 and p < 1 - factor / (rank + 1):
                break
            taken = rank
        # The released code commits everything where only the last rank fails.
        return len(ranked) if taken == len(ranked) - 1 else taken

    return take


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize(("gen_length", "block_length", "steps"), [(12, 12, 5), (12, 4, 6), (6, 3, 10)])
def test_schedule(gen_length: int, block_length: int, steps: int, released: bool) -> None:
    blocks = gen_length // block_length
    counts = [step for step in enumerate(front_loaded(block_length, steps // blocks)) if step[1] > 0]
    model, prompt = Stub(seed=steps, bias=BIAS), prompts(2)
    expected, forwards = decode(model, prompt, [(block_length, counts)] * blocks, MASK)
    canvas, passes = fast_dllm.generate(model, prompt, steps, gen_length, block_length, mask_id=MASK, released=released)
    assert canvas.tolist() == expected
    assert passes == forwards


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 0.9, 1.0, 1.5])
def test_trap_s4_threshold_is_reached_or_the_best_is_taken(threshold: float, released: bool) -> None:
    for seed, batch in [(1, 1), (2, 3)]:
        model, prompt = Stub(seed=seed, bias=BIAS), prompts(batch)
        layout = [(6, [(0, 0)])] * 2
        expected, forwards = decode(model, prompt, layout, MASK, take=above(threshold), until_done=True)
        canvas, passes = fast_dllm.generate(
            model, prompt, 2, 12, 6, mask_id=MASK, threshold=threshold, released=released
        )
        assert canvas.tolist() == expected
        assert passes == forwards


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0, 1.7, 4.0])
def test_trap_s5_factor_stops_at_the_first_rejection(factor: float, released: bool) -> None:
    for seed in range(4):
        model, prompt = Stub(seed=seed, bias=BIAS, scale=4.0), prompts(1)
        layout = [(7, [(0, 0)])] * 2
        expected, forwards = decode(model, prompt, layout, MASK, take=by_factor(factor), until_done=True)
        canvas, passes = fast_dllm.generate(
            model, prompt, 2, 14, 7, mask_id=MASK, factor=factor, threshold=0.9, released=released
        )
        assert canvas.tolist() == expected
        assert passes == forwards


@pytest.mark.parametrize("released", [False, True])
def test_trap_s5_a_rejected_last_rank_is_committed(released: bool) -> None:
    # Confidences near 0.9 and 0.1: rank 2 needs 1 - 1/3 and fails, but it is the last.
    table = [{5: 2.2, 6: 0.0}, {place: 0.01 * place for place in range(10)}]
    canvas, passes = fast_dllm.generate(Fixed(19, table), NOTHING, 2, 2, 2, mask_id=MASK, factor=1.0, released=released)
    assert canvas.tolist() == [[5, 9]]
    assert passes == 1


@pytest.mark.parametrize("released", [False, True])
def test_factor_with_a_finished_row_in_the_batch(released: bool) -> None:
    # The published code stops with an index error once one row of a batch has no mask left.
    model, prompt = Stub(seed=12, bias=BIAS, scale=3.0), prompts(3)
    expected, _ = decode(model, prompt, [(8, [(0, 0)])], MASK, take=by_factor(1.0), until_done=True)
    canvas, _ = fast_dllm.generate(model, prompt, 1, 8, 8, mask_id=MASK, factor=1.0, released=released)
    assert canvas.tolist() == expected


@pytest.mark.parametrize("released", [False, True])
def test_random_confidences_meet_the_threshold_as_they_are(released: bool) -> None:
    model, prompt = Stub(seed=4, bias=BIAS), prompts(1)
    torch.manual_seed(9)
    canvas, passes = fast_dllm.generate(
        model, prompt, 1, 6, 6, remasking="random", mask_id=MASK, threshold=0.5, released=released
    )
    torch.manual_seed(9)
    expected, forwards = torch.cat([prompt, torch.full((1, 6), MASK)], 1), 0
    while bool((expected == MASK).any()):
        tokens, drawn = model(expected).logits.argmax(-1), torch.rand(expected.shape)
        drawn = torch.where(expected == MASK, drawn, -1.0)
        chosen = (drawn >= 0.5) | (drawn == drawn.max())
        expected, forwards = torch.where(chosen, tokens, expected), forwards + 1
    assert torch.equal(canvas, expected)
    assert passes == forwards


def test_trap_m1_an_endless_decode_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_dllm, "STALL_LIMIT", 20)
    for rule in ({}, {"threshold": 0.9}, {"factor": 1.0}):
        model = Stub(seed=5, bias={MASK: 50.0})
        with pytest.raises(RuntimeError, match="cannot finish: the model predicts mask_id=18"):
            fast_dllm.generate(model, prompts(1), 2, 8, 4, mask_id=MASK, released=True, **rule)
        canvas, _ = fast_dllm.generate(model, prompts(1), 2, 8, 4, mask_id=MASK, **rule)
        assert bool((canvas != MASK).all())


def test_a_schedule_used_up_by_the_prompts_masks_goes_on() -> None:
    model, prompt = Stub(seed=6, bias=BIAS), torch.tensor([[MASK, 1, MASK, MASK]])
    canvas, passes = fast_dllm.generate(model, prompt, 2, 4, 4, mask_id=MASK)
    assert bool((canvas != MASK).all())
    assert passes <= 3
    with pytest.raises(RuntimeError, match="masks in the prompt used up the schedule"):
        fast_dllm.generate(Stub(seed=6, bias={MASK: -40.0}, scale=0.1), prompt, 2, 4, 4, mask_id=MASK, released=True)


def test_signature() -> None:
    parameters = inspect.signature(fast_dllm.generate).parameters
    assert {name: parameter.default for name, parameter in list(parameters.items())[2:]} == {
        "steps": 128,
        "gen_length": 128,
        "block_length": 128,
        "temperature": 0.0,
        "remasking": "low_confidence",
        "mask_id": 126336,
        "threshold": None,
        "factor": None,
        "released": False,
    }


def test_refusals() -> None:
    for change, message in [
        ({"steps": 5}, "steps=5"),
        ({"gen_length": 9}, "gen_length=9"),
        ({"remasking": "no"}, "'no'"),
    ]:
        with pytest.raises(ValueError, match=message):
            fast_dllm.generate(Stub(), prompts(1), **{"steps": 2, "gen_length": 8, "block_length": 4} | change)
