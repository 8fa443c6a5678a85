"""compat.eoser_ass: four decoders against loops in float64, with gammas and schedules written out."""

from __future__ import annotations

import inspect
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compat_oracle import Fixed, Row, Stub, decode, front_loaded, probability
from torch import Tensor

from mdlm_fast.compat import eoser_ass

MASK, EOS = 18, 3
TOKENIZER = SimpleNamespace(eos_token_id=EOS)
BIAS = {MASK: -40.0, EOS: 2.0}


def prompts(batch: int, length: int = 4) -> Tensor:
    return torch.randint(0, MASK, (batch, length), generator=torch.Generator().manual_seed(2))


def discounted(gammas: list[float]) -> Any:
    def confidence(row: Row, token: int, index: int) -> float:
        return probability(row, token, index) * (gammas[index] if token == EOS else 1.0)

    return confidence


def even(gen_length: int, block_length: int, steps: int) -> list[tuple[int, list[tuple[int, int]]]]:
    blocks = gen_length // block_length
    return [(block_length, list(enumerate(front_loaded(block_length, max(1, steps // blocks)))))] * blocks


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
@pytest.mark.parametrize(("gen_length", "block_length", "steps"), [(12, 12, 7), (12, 4, 6), (12, 4, 8), (8, 2, 3)])
def test_uniform_decoders(gen_length: int, block_length: int, steps: int, cfg_scale: float, released: bool) -> None:
    # EOSER's gamma: the step inside the block over the steps of all blocks.
    gammas = [0.4 + 0.6 * step / (steps - 1) for step in range(steps)]
    low = [0.01 + 0.69 * step / (steps - 1) for step in range(steps)]
    cases: list[tuple[Any, Any, dict[str, float]]] = [
        (eoser_ass.generate, probability, {}),
        (eoser_ass.eoser_generate, discounted(gammas), {}),
        (eoser_ass.eoser_generate, discounted(low), {"eos_min_gamma": 0.01, "eos_max_gamma": 0.7}),
    ]
    for function, confidence, options in cases:
        model, prompt = Stub(seed=steps, bias=BIAS), prompts(2)
        expected, forwards = decode(
            model, prompt, even(gen_length, block_length, steps), MASK, confidence, cfg_scale=cfg_scale
        )
        model.calls.clear()
        canvas = function(
            model,
            prompt,
            TOKENIZER,
            steps,
            gen_length,
            block_length,
            cfg_scale=cfg_scale,
            mask_id=MASK,
            released=released,
            **options,
        )
        assert canvas.dtype == torch.int64
        assert canvas.tolist() == expected
        assert len(model.calls) == forwards


ASCENDING = {
    (16, 1): [(16, [1, 2, 4, 9])],
    (16, 2): [(7, [1, 2, 4]), (9, [9])],
    (20, 3): [(3, [1, 2]), (4, [4]), (13, [13])],
    (16, 4): [(1, [1]), (2, [2]), (4, [4]), (9, [9])],
    (3, 1): [(3, [3])],
}


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize(("gen_length", "block_num"), ASCENDING)
def test_ascending_decoders(gen_length: int, block_num: int, released: bool) -> None:
    counter = itertools.count()
    layout = [(size, [(next(counter), count) for count in counts]) for size, counts in ASCENDING[gen_length, block_num]]
    steps = next(counter)
    gammas = [0.01 + 0.99 * (2 ** (step + 1) - 1) / 2**steps if steps > 1 else 1.0 for step in range(steps)]
    cases: list[tuple[Any, Any]] = [
        (eoser_ass.ass_generate, probability),
        (eoser_ass.eoser_ass_generate, discounted(gammas)),
    ]
    for function, confidence in cases:
        for cfg_scale in (0.0, 1.5):
            model, prompt = Stub(seed=gen_length, bias=BIAS), prompts(2)
            expected, _ = decode(model, prompt, layout, MASK, confidence, cfg_scale=cfg_scale)
            canvas = function(
                model,
                prompt,
                TOKENIZER,
                steps,
                gen_length,
                block_num,
                cfg_scale=cfg_scale,
                mask_id=MASK,
                released=released,
            )
            assert canvas.tolist() == expected


def commit_order(function: Any, table: list[dict[int, float]], released: bool, **options: Any) -> list[int]:
    model = Fixed(19, table)
    nothing = torch.zeros(1, 0, dtype=torch.long)
    canvas = function(
        model, nothing, TOKENIZER, len(table), len(table), len(table), mask_id=MASK, released=released, **options
    )
    states = [*model.inputs, canvas]
    return [int((before != after).nonzero()[0, 1]) for before, after in itertools.pairwise(states)]


@pytest.mark.parametrize("released", [False, True])
def test_trap_s8_only_a_sampled_eos_is_discounted(released: bool) -> None:
    # EOS surest at position 0; at position 1 it is the runner-up and must not be discounted.
    table = [{EOS: 6.0, 5: 1.0}, {6: 3.0, EOS: 2.0}, {7: 2.5, 8: 2.4}]
    assert commit_order(eoser_ass.generate, table, released) == [0, 1, 2]
    assert commit_order(eoser_ass.eoser_generate, table, released, eos_min_gamma=0.1) == [1, 0, 2]


@pytest.mark.parametrize("released", [False, True])
def test_trap_s8_gamma_zero_ranks_last_and_is_still_a_candidate(released: bool) -> None:
    table = [{EOS: 9.0, 5: 1.0}, {6: 3.0, 7: 2.9}, {7: 2.5, 8: 2.4}]
    order = commit_order(eoser_ass.eoser_generate, table, released, eos_min_gamma=0.0, eos_max_gamma=0.0)
    assert order == [1, 2, 0] or order == [2, 1, 0]
    assert order[2] == 0


def test_trap_s8_ties_at_gamma_zero_fall_as_torch_lets_them() -> None:
    model, prompt = Stub(seed=4, bias={MASK: -40.0, EOS: 9.0}), prompts(2)
    options: dict[str, Any] = {"eos_min_gamma": 0.0, "eos_max_gamma": 0.0, "mask_id": MASK}
    made = [
        eoser_ass.eoser_generate(model, prompt, TOKENIZER, 5, 12, 12, released=released, **options)
        for released in (False, True)
    ]
    assert torch.equal(*made)
    fused, plain = model.calls[:5], model.calls[5:]
    assert all(torch.equal(ours[0], theirs[0]) for ours, theirs in zip(fused, plain, strict=True))


@pytest.mark.parametrize("released", [False, True])
def test_trap_s8_gamma_starts_again_in_every_block(released: bool) -> None:
    # Two blocks of two steps with steps=4: gamma is 0.4, 0.6 in both, not 0.4, 0.6, 0.8, 1.0.
    block = [{EOS: 2.0, 5: 0.0}, {6: 0.6, 7: 0.0}]
    model = Fixed(19, block * 2)
    canvas = eoser_ass.eoser_generate(
        model, torch.zeros(1, 0, dtype=torch.long), TOKENIZER, 4, 4, 2, mask_id=MASK, released=released
    )
    states = [*model.inputs, canvas]
    order = [int((before != after).nonzero()[0, 1]) for before, after in itertools.pairwise(states)]
    # p(EOS) = 0.88 and p(6) = 0.65: only a gamma below 0.73 puts 6 first, in the second block too.
    assert order == [1, 0, 3, 2]


@pytest.mark.parametrize("released", [False, True])
def test_one_step_uses_the_largest_gamma(released: bool) -> None:
    model, prompt = Stub(seed=1, bias=BIAS), prompts(1)
    canvas = eoser_ass.eoser_generate(model, prompt, TOKENIZER, 1, 6, 6, mask_id=MASK, released=released)
    expected, _ = decode(model, prompt, [(6, [(0, 6)])], MASK)
    assert canvas.tolist() == expected


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("function", [eoser_ass.generate, eoser_ass.eoser_generate])
def test_random_confidences_are_not_discounted(function: Any, released: bool) -> None:
    model, prompt = Stub(seed=3, bias=BIAS), prompts(2)
    torch.manual_seed(5)
    canvas = function(model, prompt, TOKENIZER, 6, 6, 6, remasking="random", mask_id=MASK, released=released)
    torch.manual_seed(5)
    expected = torch.cat([prompt, torch.full((2, 6), MASK)], 1)
    for _ in range(6):
        tokens, drawn = model(expected).logits.argmax(-1), torch.rand(expected.shape)
        place = torch.where(expected == MASK, drawn, -1.0).argmax(1, keepdim=True)
        expected.scatter_(1, place, tokens.gather(1, place))
    assert torch.equal(canvas, expected)


def test_confidence_is_rounded_to_the_models_dtype() -> None:
    # In bfloat16 both probabilities are 1 and the lower position is not the surer one; in float32 they differ.
    table = [{5: 7.0, 6: 0.0}, {7: 9.0, 8: 0.0}]
    wide, narrow = Fixed(19, table), Fixed(19, table)
    narrow.dtype = torch.bfloat16  # type: ignore[attr-defined]
    orders = []
    for model in (wide, narrow):
        canvas = eoser_ass.eoser_generate(
            model, torch.zeros(1, 0, dtype=torch.long), TOKENIZER, 2, 2, 2, mask_id=MASK, released=True
        )
        orders.append((model.inputs[1] != MASK).nonzero()[0, 1].item())
        assert canvas.tolist() == [[5, 7]]
    ties = torch.tensor([1.0, 1.0], dtype=torch.bfloat16)
    assert orders == [1, ties.topk(1).indices.item()]


def test_signatures() -> None:
    common = ["model", "prompt", "tokenizer", "steps", "gen_length"]
    tail = ["temperature", "cfg_scale", "remasking", "mask_id"]
    gammas = ["eos_min_gamma", "eos_max_gamma"]
    expected: dict[Any, tuple[list[str], list[Any]]] = {
        eoser_ass.generate: ([*common, "block_length", *tail], [64, 128, 32]),
        eoser_ass.eoser_generate: ([*common, "block_length", *tail, *gammas], [64, 128, 32, 0.4, 1.0]),
        eoser_ass.ass_generate: ([*common, "block_num", *tail], [7, 128, 4]),
        eoser_ass.eoser_ass_generate: ([*common, "block_num", *tail, *gammas], [7, 128, 4, 0.01, 1.0]),
    }
    for function, (names, values) in expected.items():
        parameters = inspect.signature(function).parameters
        assert list(parameters) == [*names, "released"]
        defaults = [parameter.default for parameter in list(parameters.values())[3:]]
        assert defaults == [*values[:3], 0.0, 0.0, "low_confidence", 126336, *values[3:], False]


@pytest.mark.parametrize(
    ("function", "change", "message"),
    [
        ("generate", {"block_length": 5}, "block_length=5 does not divide gen_length=8"),
        ("generate", {"remasking": "x"}, "remasking='x'"),
        ("generate", {"temperature": float("nan")}, "temperature=nan"),
        ("eoser_generate", {"tokenizer": SimpleNamespace(eos_token_id=None)}, "tokenizer.eos_token_id is None"),
        ("ass_generate", {"steps": 4}, r"steps=4 with gen_length=8: .* steps = floor\(log2\(gen_length\)\) = 3"),
        ("ass_generate", {"steps": 2}, "steps=2 with gen_length=8"),
        ("ass_generate", {"steps": 3, "block_num": 4}, "num_blocks=4"),
        ("eoser_ass_generate", {"steps": 3, "block_num": 0}, "block_num=0 must be at least 1"),
    ],
)
def test_refusals(function: str, change: dict[str, Any], message: str) -> None:
    keywords: dict[str, Any] = {"tokenizer": TOKENIZER, "gen_length": 8, "mask_id": MASK} | change
    if "block_num" not in keywords and "ass" not in function:
        keywords.setdefault("block_length", 4)
    with pytest.raises(ValueError, match=message):
        getattr(eoser_ass, function)(Stub(), prompts(1), **keywords)


def test_a_negative_gamma_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gamma reaches -0\.5"):
        eoser_ass.eoser_generate(Stub(), prompts(1), TOKENIZER, 4, 8, 4, mask_id=MASK, eos_min_gamma=-0.5)
