"""compat.llada.generate against loops in float64, and the traps of LLaDA's decoder."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
import torch
from compat_oracle import Fixed, Stub, decode, front_loaded, probability
from torch import Tensor

from mdlm_fast.compat import llada

MASK = 18
QUIET_MASK = {MASK: -9.0}
LAYOUTS = [(12, 12, 5), (12, 4, 6), (8, 4, 14), (6, 2, 3), (5, 5, 1)]


def prompts(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(0, MASK, (batch, length), generator=torch.Generator().manual_seed(seed))


def layout(gen_length: int, block_length: int, steps: int) -> list[tuple[int, list[tuple[int, int]]]]:
    blocks = gen_length // block_length
    counts = list(enumerate(front_loaded(block_length, steps // blocks)))
    return [(block_length, counts)] * blocks


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
@pytest.mark.parametrize(("gen_length", "block_length", "steps"), LAYOUTS)
def test_tokens(gen_length: int, block_length: int, steps: int, cfg_scale: float, released: bool) -> None:
    for seed, batch, length, masked in [(0, 1, 5, False), (1, 3, 4, True), (2, 2, 0, False)]:
        model = Stub(seed=seed, bias={MASK: -40.0})
        prompt = prompts(batch, length, seed)
        mask = None
        if masked:
            mask = torch.ones_like(prompt)
            mask[0, :2] = 0
        expected, forwards = decode(
            model, prompt, layout(gen_length, block_length, steps), MASK, cfg_scale=cfg_scale, mask=mask
        )
        model.calls.clear()
        canvas = llada.generate(
            model,
            prompt,
            mask,
            steps,
            gen_length,
            block_length,
            cfg_scale=cfg_scale,
            mask_id=MASK,
            released=released,
        )
        assert canvas.dtype == torch.int64
        assert canvas.tolist() == expected
        assert len(model.calls) == forwards


@pytest.mark.parametrize("released", [False, True])
def test_random_remasking_uses_torchs_generator(released: bool) -> None:
    model, prompt = Stub(seed=3, bias=QUIET_MASK), prompts(2, 3)
    torch.manual_seed(11)
    canvas = llada.generate(model, prompt, None, 6, 8, 4, remasking="random", mask_id=MASK, released=released)
    torch.manual_seed(11)
    expected = torch.cat([prompt, torch.full((2, 8), MASK)], 1)
    for end in (7, 11):
        for count in front_loaded(4, 3):
            tokens = model(expected).logits.argmax(-1)
            drawn = torch.rand(expected.shape)
            for row in range(2):
                open_places = [place for place in range(end) if expected[row, place] == MASK]
                for place in sorted(open_places, key=lambda place, row=row: -float(drawn[row, place]))[:count]:
                    expected[row, place] = tokens[row, place]
    assert torch.equal(canvas, expected)


@pytest.mark.parametrize("released", [False, True])
def test_trap_s3_remainders_come_first(released: bool) -> None:
    model = Stub(seed=4, bias=QUIET_MASK)
    llada.generate(model, prompts(1, 2), None, 8, 20, 10, mask_id=MASK, released=released)
    left = [int((canvas == MASK).sum()) for canvas, _, _ in model.calls] + [0]
    revealed = [before - after for before, after in itertools.pairwise(left)]
    assert revealed == [3, 3, 2, 2, 3, 3, 2, 2]


@pytest.mark.parametrize("released", [False, True])
def test_masks_in_the_prompt_compete_for_the_quota(released: bool) -> None:
    prompt = torch.tensor([[3, MASK, 5, MASK]])
    model = Stub(seed=5, bias=QUIET_MASK)
    canvas = llada.generate(model, prompt, None, 4, 8, 4, mask_id=MASK, released=released)
    expected, _ = decode(model, prompt, layout(8, 4, 4), MASK)
    assert canvas.tolist() == expected
    assert int((canvas == MASK).sum()) == 2  # the quotas cover the generated masks only


@pytest.mark.parametrize("released", [False, True])
def test_trap_m1_the_model_predicts_the_mask_id(released: bool) -> None:
    model, prompt = Stub(seed=6, bias={MASK: 50.0}), prompts(2, 3)
    canvas = llada.generate(model, prompt, None, 4, 8, 4, mask_id=MASK, released=released)
    assert len(model.calls) == 4
    assert int((canvas == MASK).sum()) == (16 if released else 0)
    assert torch.equal(canvas[:, :3], prompt)


@pytest.mark.parametrize("released", [False, True])
def test_mask_id_outside_the_vocabulary(released: bool) -> None:
    model, prompt = Stub(vocab=7, seed=7), torch.randint(0, 7, (2, 3), generator=torch.Generator().manual_seed(0))
    expected, _ = decode(model, prompt, layout(6, 3, 4), mask_id=1000)
    canvas = llada.generate(model, prompt, None, 4, 6, 3, mask_id=1000, released=released)
    assert canvas.tolist() == expected


@pytest.mark.parametrize("released", [False, True])
def test_trap_n8_guidance_masks_what_was_given(released: bool) -> None:
    model, prompt = Stub(seed=8, bias=QUIET_MASK), prompts(2, 3)
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    llada.generate(model, prompt, mask, 2, 4, 4, cfg_scale=0.5, mask_id=MASK, released=released)
    canvas, seen, _ = model.calls[1]
    assert canvas.shape == (4, 7)
    assert torch.equal(canvas[:2, :3], prompt)
    assert bool((canvas[2:, :3] == MASK).all())
    assert torch.equal(canvas[2:, 3:], canvas[:2, 3:])
    assert torch.equal(seen, torch.cat([torch.cat([mask, torch.ones(2, 4, dtype=mask.dtype)], 1)] * 2))


@pytest.fixture
def small_ids(monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    monkeypatch.setattr(llada, "EOS_ID", 1)
    monkeypatch.setattr(llada, "EOT_ID", 2)
    return 1, 2


# Positions of the generated part: EOS for sure, EOT for sure, a word less sure, a word still less sure.
ENDINGS = [{1: 9.0, 5: 0.0}, {2: 8.0, 5: 0.0}, {6: 3.0, 7: 2.0}, {8: 3.0, 9: 2.5}]


def order_of_commits(model: Fixed, canvas: Tensor) -> list[int]:
    states = [*model.inputs, canvas]
    pairs = itertools.pairwise(states)
    return [int((before != after).nonzero()[0, 1]) for before, after in pairs]


@pytest.mark.parametrize("released", [False, True])
def test_trap_s9_confidence_of_eos_and_eot(small_ids: tuple[int, int], released: bool) -> None:
    orders = {}
    for temperature in (0.0, 0.01):
        for option in (False, True):
            model = Fixed(19, ENDINGS)
            canvas = llada.generate(
                model,
                torch.zeros(1, 0, dtype=torch.long),
                None,
                4,
                4,
                4,
                temperature,
                mask_id=MASK,
                confidence_eos_eot_inf=option,
                released=released,
            )
            assert canvas.tolist() == [[1, 2, 6, 8]]
            orders[temperature, option] = order_of_commits(model, canvas)
    assert orders[0.0, False] == orders[0.01, False] == [0, 1, 2, 3]
    assert orders[0.0, True][:2] == [2, 3]  # EOS and EOT have confidence 0 and come last
    assert orders[0.01, True] == [0, 2, 3, 1]  # above temperature 0 the released code touches EOT alone


@pytest.mark.parametrize("released", [False, True])
def test_trap_s9_without_eos_the_others_are_renormalised(small_ids: tuple[int, int], released: bool) -> None:
    model = Stub(seed=9, bias={1: 1.5, 2: 0.5, MASK: -9.0})

    def confidence(row: Any, token: int, step: int) -> float:
        kept = row.copy()
        kept[[1, 2]] = -float("inf")
        return probability(kept, token, step) if token > 2 or token == 0 else 0.0

    prompt = prompts(1, 4)
    expected, _ = decode(model, prompt, layout(12, 12, 12), MASK, confidence)
    canvas = llada.generate(
        model, prompt, None, 12, 12, 12, mask_id=MASK, confidence_eos_eot_inf=True, released=released
    )
    assert canvas.tolist() == expected


@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
@pytest.mark.parametrize("released", [False, True])
def test_logits_eos_inf(small_ids: tuple[int, int], released: bool, cfg_scale: float) -> None:
    model, prompt = Stub(seed=10, bias={1: 4.0, MASK: -30.0}), prompts(2, 4)
    canvas = llada.generate(
        model, prompt, None, 6, 12, 6, cfg_scale=cfg_scale, mask_id=MASK, logits_eos_inf=True, released=released
    )
    without = Stub(seed=10, bias={1: -1e9, MASK: -30.0})
    expected, _ = decode(without, prompt, layout(12, 6, 6), MASK, cfg_scale=cfg_scale)
    assert canvas.tolist() == expected
    assert bool((canvas[:, 4:] != 1).all())


def test_the_models_logits_are_not_written_to(small_ids: tuple[int, int]) -> None:
    table = Fixed(19, ENDINGS).rows[None]
    kept = table.clone()
    nothing = torch.zeros(1, 0, dtype=torch.long)
    options: dict[str, Any] = {"logits_eos_inf": True, "confidence_eos_eot_inf": True}
    llada.generate(lambda canvas, attention_mask: table, nothing, None, 2, 4, 4, mask_id=MASK, **options)
    assert torch.equal(table, kept)


def test_signature() -> None:
    parameters = inspect.signature(llada.generate).parameters
    assert {name: parameter.default for name, parameter in list(parameters.items())[2:]} == {
        "attention_mask": None,
        "steps": 128,
        "gen_length": 128,
        "block_length": 128,
        "temperature": 0.0,
        "cfg_scale": 0.0,
        "remasking": "low_confidence",
        "mask_id": 126336,
        "logits_eos_inf": False,
        "confidence_eos_eot_inf": False,
        "released": False,
    }
    assert list(parameters)[:2] == ["model", "prompt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gen_length": 10}, "block_length=4 does not divide gen_length=10"),
        ({"steps": 3}, "steps=3 is not a multiple of the 2 blocks"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"block_length": 0}, "block_length=0 must be at least 1"),
        ({"gen_length": 0}, "gen_length=0 must be at least 1"),
        ({"remasking": "low"}, "remasking='low': choose one of 'low_confidence', 'random'"),
        ({"temperature": -1.0}, "temperature=-1.0 must not be negative"),
        ({"logits_eos_inf": True}, "this model has 19 logits"),
        ({"confidence_eos_eot_inf": True}, "this model has 19 logits"),
        ({"attention_mask": torch.ones(1, 3)}, r"attention_mask must have the prompt's shape \(1, 2\), got \(1, 3\)"),
        ({"prompt": torch.zeros(3, dtype=torch.long)}, r"prompt must be an integer tensor \[B, P\], got \(3,\)"),
    ],
)
@pytest.mark.parametrize("released", [False, True])
def test_refusals(change: dict[str, Any], message: str, released: bool) -> None:
    keywords: dict[str, Any] = {
        "prompt": prompts(1, 2),
        "steps": 4,
        "gen_length": 8,
        "block_length": 4,
        "mask_id": MASK,
    }
    with pytest.raises(ValueError, match=message):
        llada.generate(Stub(), **keywords | change, released=released)


def test_float_prompt_is_refused() -> None:
    with pytest.raises(TypeError, match="integer token ids"):
        llada.generate(Stub(), torch.zeros(1, 2), mask_id=MASK)


@pytest.mark.parametrize("released", [False, True])
def test_an_empty_batch_and_narrow_ids(released: bool) -> None:
    empty = llada.generate(Stub(), torch.zeros(0, 3, dtype=torch.long), None, 4, 8, 4, mask_id=MASK, released=released)
    assert empty.shape == (0, 11)
    prompt = prompts(1, 3)
    wide, narrow = (
        llada.generate(Stub(bias=QUIET_MASK), ids, None, 4, 8, 4, mask_id=MASK, released=released)
        for ids in (prompt, prompt.int())
    )
    assert torch.equal(wide, narrow)
