"""compat.mdpo.diffusion_generate: schedules, confidences, running confidence remasking and the three records."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from compat_oracle import Fixed, Row, Stub, best_token, margin, negative_entropy, probability, softmax
from torch import Tensor

from mdlm_fast.compat import mdpo
from mdlm_fast.compat._layout import maskgit_quotas

MASK = 18
BIAS = {MASK: -40.0}
KINDS = {"llada": probability, "topk_margin": margin, "entropy": negative_entropy}


def prompt_of(length: int = 4) -> Tensor:
    return torch.randint(0, MASK, (1, length), generator=torch.Generator().manual_seed(4))


def share_masked(mode: str, progress: float, masks: int) -> float:
    if mode == "cosine":
        return math.cos(math.pi * progress / 2)
    if mode == "log":
        return -math.log2(progress) / math.log2(masks)
    if mode == "exp":
        return 1 - 2 ** (-math.log2(masks) * (1 - progress))
    return 1 - progress ** (1.0 if mode == "linear" else float(mode[3:]))


def quotas(mode: str, masks: int, steps: int) -> list[int]:
    left = [math.floor(masks * min(1, max(1e-6, share_masked(mode, (i + 1) / steps, masks)))) for i in range(steps)]
    return [before - after for before, after in zip([masks, *left[:-1]], left, strict=True)]


def filtered(row: Row, top_p: float | None, top_k: int | None) -> Row:
    order = np.argsort(-row)
    keep = len(row)
    if top_p is not None:
        mass = np.cumsum(softmax(row)[order])
        keep = min(keep, 1 + int((mass <= top_p).sum()))
    if top_k is not None:
        keep = min(keep, top_k)
    out = np.full_like(row, -np.inf)
    out[order[:keep]] = row[order[:keep]]
    return out


def loop(
    model: Any,
    prompt: Tensor,
    gen_length: int,
    block_length: int,
    steps: int,
    mode: str,
    kind: str,
    rcr: bool,
    top_p: float | None = None,
    top_k: int | None = None,
) -> tuple[list[int], list[list[int]], list[list[float]], list[list[int]]]:
    """One sequence. Returns the generated ids and the records: predictions, confidences, inputs."""
    line = prompt[0].tolist() + [MASK] * gen_length
    latest: dict[int, float] = {}
    predictions, confidences, inputs = [], [], []
    mask = torch.ones(1, len(line), dtype=torch.long)
    begin, end = prompt.shape[1], prompt.shape[1]
    for _ in range(gen_length // block_length):
        end += block_length
        counts = quotas(mode, block_length, steps)
        for i, count in enumerate(counts):
            inputs.append(line[begin:])
            rows = model(torch.tensor([line]), attention_mask=mask).logits[0].double().numpy()
            rows = [filtered(row, top_p, top_k) for row in rows]
            masked = [place for place, token in enumerate(line) if token == MASK]
            tokens = {place: best_token(rows[place], MASK) for place in masked}
            predictions.append([tokens.get(place, line[place]) for place in range(begin, len(line))])
            keys = {place: KINDS[kind](rows[place], tokens[place], i) for place in masked if place < end}
            order = sorted(keys, key=lambda place: -keys[place])
            for place in order[: sum(counts[i:]) if rcr else count]:
                line[place], latest[place] = tokens[place], keys[place]
            if rcr:
                again = sorted(latest, key=lambda place: latest[place])[: sum(counts[i + 1 :])]
                for place in again:
                    line[place] = MASK
                confidences.append([latest.get(place, 0.0) for place in range(begin, len(line))])
            else:
                confidences.append([float(softmax(rows[place]).max()) for place in range(begin, len(line))])
    return line[begin:], predictions, confidences, inputs


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("rcr", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_decoding(kind: str, rcr: bool, released: bool) -> None:
    cases: list[tuple[int, int, int, str]] = [
        (12, 12, 5, "linear"),
        (12, 4, 6, "cosine"),
        (12, 6, 14, "pow2"),
        (10, 10, 4, "log"),
        (12, 6, 8, "exp"),
        (8, 4, 1, "pow0.5"),
    ]
    for gen_length, block_length, steps, mode in cases:
        model, prompt = Stub(seed=gen_length + steps, bias=BIAS, scale=3.0), prompt_of()
        a_block = max(1, steps // (gen_length // block_length))
        expected = loop(model, prompt, gen_length, block_length, a_block, mode, kind, rcr)
        made, predictions, confidences, inputs = mdpo.diffusion_generate(
            model,
            prompt,
            MASK,
            steps=steps,
            gen_length=gen_length,
            block_length=block_length,
            conf_alg=kind,
            mode=mode,
            rcr=rcr,
            released=released,
        )
        assert made.tolist() == [expected[0]]
        assert [record.tolist() for record in predictions] == [[record] for record in expected[1]]
        assert [record.tolist() for record in inputs] == [[record] for record in expected[3]]
        for got, wanted in zip(confidences, expected[2], strict=True):
            assert got.dtype == torch.float32
            assert np.allclose(got[0].numpy(), wanted, atol=2e-6)


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize(("top_p", "top_k"), [(0.8, None), (None, 3), (0.9, 4), (1.0, 1000)])
def test_filters_change_the_confidence_at_temperature_zero(
    top_p: float | None, top_k: int | None, released: bool
) -> None:
    model, prompt = Stub(seed=21, bias=BIAS, scale=1.0), prompt_of()
    expected = loop(model, prompt, 12, 12, 5, "linear", "llada", False, None if top_p == 1.0 else top_p, top_k)
    made, _, confidences, _ = mdpo.diffusion_generate(
        model,
        prompt,
        MASK,
        steps=5,
        gen_length=12,
        block_length=12,
        conf_alg="llada",
        top_p=top_p,
        top_k=top_k,
        released=released,
    )
    assert made.tolist() == [expected[0]]
    for got, wanted in zip(confidences, expected[2], strict=True):
        assert np.allclose(got[0].numpy(), wanted, atol=2e-6)


@pytest.mark.parametrize("released", [False, True])
def test_trap_s10_remasking_reaches_into_earlier_blocks(released: bool) -> None:
    touched = 0
    for seed in range(8):
        model, prompt = Stub(seed=seed, bias=BIAS, scale=3.0), prompt_of()
        made, _, _, inputs = mdpo.diffusion_generate(
            model,
            prompt,
            MASK,
            steps=8,
            gen_length=12,
            block_length=6,
            conf_alg="llada",
            rcr=True,
            released=released,
        )
        left = [int((record == MASK).sum()) for record in inputs]
        assert left == [12, 10, 9, 7, 6, 4, 3, 1]  # masks after step i: the quotas still to come
        touched += any(bool((record[:, :6] == MASK).any()) for record in inputs[5:])
        assert bool((made != MASK).all())
        assert all(bool((canvas[:, :4] == prompt).all()) for canvas, _, _ in model.calls)
    assert touched > 0


@pytest.mark.parametrize("released", [False, True])
def test_trap_s10_the_latest_fill_counts(released: bool) -> None:
    # Position 0 is filled surely at first (0.9) and, after it is masked again, hardly (0.2): 0.2 is what counts.
    model, prompt = Stub(seed=2, bias=BIAS, scale=3.0), prompt_of()
    _, _, confidences, inputs = mdpo.diffusion_generate(
        model, prompt, MASK, steps=6, gen_length=6, block_length=6, conf_alg="llada", rcr=True, released=released
    )
    changed = 0
    for step in range(1, 6):
        refilled = inputs[step] == MASK
        stayed = ~refilled
        assert torch.equal(confidences[step][stayed], confidences[step - 1][stayed])
        changed += int((confidences[step][refilled] < confidences[step - 1][refilled]).sum())
    assert changed > 0


def test_a_prompt_is_never_masked_again_on_the_fused_path() -> None:
    # Every confidence saturates at 1, which the released code cannot tell from "never filled".
    table = [{5: 60.0}] * 8
    made, _, _, inputs = mdpo.diffusion_generate(
        Fixed(19, table), torch.tensor([[1, 2]]), MASK, steps=3, gen_length=6, block_length=6, conf_alg="x", rcr=True
    )
    assert made.tolist() == [[5] * 6]
    assert [int((record == MASK).sum()) for record in inputs] == [6, 4, 2]


@pytest.mark.parametrize("released", [False, True])
def test_random_works_where_the_published_function_stops(released: bool) -> None:
    model, prompt = Stub(seed=5, bias=BIAS), prompt_of()
    torch.manual_seed(1)
    first = mdpo.diffusion_generate(model, prompt, MASK, steps=6, gen_length=6, block_length=6, released=released)
    torch.manual_seed(1)
    again = mdpo.diffusion_generate(model, prompt, MASK, steps=6, gen_length=6, block_length=6, released=released)
    assert torch.equal(first[0], again[0])
    assert bool((first[0] != MASK).all())


@pytest.mark.parametrize("released", [False, True])
def test_attention_mask_and_dtypes(released: bool) -> None:
    model, prompt = Stub(seed=6, bias=BIAS, dtype=torch.bfloat16), prompt_of()
    mask = torch.tensor([[0, 0, 1, 1]])
    made, predictions, confidences, inputs = mdpo.diffusion_generate(
        model, prompt, MASK, mask, 2, 4, 4, conf_alg="llada", released=released
    )
    assert all(torch.equal(seen, torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])) for _, seen, _ in model.calls)
    assert made.shape == (1, 4)
    assert {record.dtype for record in [*predictions, *inputs, made]} == {torch.int64}
    assert {record.dtype for record in confidences} == {torch.bfloat16}
    mdpo.diffusion_generate(model, prompt, MASK, None, 1, 4, 4, conf_alg="llada", released=released)
    assert torch.equal(model.calls[-1][1], torch.ones(1, 8, dtype=torch.long))


@pytest.mark.parametrize("mode", ["linear", "cosine", "pow2", "pow0.5", "log", "exp"])
def test_trap_s3_schedules_sum_to_the_masks(mode: str) -> None:
    for masks in (0, 1, 2, 7, 32, 128):
        for steps in (1, 2, 5, 32, 40):
            counts = maskgit_quotas(mode, masks, steps)
            assert len(counts) == steps
            assert sum(counts) == masks
            assert min(counts) >= 0
    assert maskgit_quotas("cosine", 128, 32)[:6] == [1, 0, 1, 1, 1, 2]  # a step may reveal nothing


def test_signature() -> None:
    parameters = inspect.signature(mdpo.diffusion_generate).parameters
    assert list(parameters)[:3] == ["model", "prompt", "mask_id"]
    assert {name: parameter.default for name, parameter in list(parameters.items())[3:]} == {
        "prompt_mask": None,
        "steps": 64,
        "gen_length": 128,
        "block_length": 32,
        "temperature": 0.0,
        "conf_alg": "random",
        "mode": "linear",
        "rcr": False,
        "top_p": None,
        "top_k": None,
        "released": False,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "cubic"}, "unknown schedule 'cubic'"),
        ({"mode": "dream"}, "mode='dream': choose"),
        ({"block_length": 3}, "block_length=3"),
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mdpo.diffusion_generate(Stub(), prompt_of(), MASK, **{"gen_length": 8, "block_length": 4} | change)


@pytest.mark.parametrize(("released", "kept"), [(True, 2), (False, 5)])
def test_ids_tied_for_the_last_place_in_top_p(released: bool, kept: int) -> None:
    # 3 has mass 0.649 and each of the four ids at 1 has 0.088: one of them is enough for 0.7.
    model = Fixed(19, [{}, {0: 3.0} | dict.fromkeys(range(1, 5), 1.0)])
    _, _, confidences, _ = mdpo.diffusion_generate(
        model,
        torch.tensor([[1]]),
        MASK,
        steps=1,
        gen_length=1,
        block_length=1,
        conf_alg="x",
        top_p=0.7,
        released=released,
    )
    assert confidences[0].item() == pytest.approx(math.exp(3) / (math.exp(3) + (kept - 1) * math.exp(1)), rel=1e-6)


@pytest.mark.parametrize("conf_alg", ["x", "entropy", "topk_margin"])
def test_remasking_with_mask_ids_in_the_prompt(conf_alg: str) -> None:
    for seed in range(12):
        prompt = torch.tensor([[6, MASK, 17]])
        options: dict[str, Any] = {"steps": 8, "gen_length": 8, "block_length": 4, "conf_alg": conf_alg, "rcr": True}
        ours, theirs = (
            mdpo.diffusion_generate(Stub(seed=seed, bias=BIAS), prompt, MASK, **options, released=released)
            for released in (False, True)
        )
        assert torch.equal(ours[0], theirs[0])
        assert all(torch.equal(*pair) for pair in zip(ours[3], theirs[3], strict=True))
