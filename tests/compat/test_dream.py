"""compat.dream.diffusion_generate: the shift, the four algorithms, hooks, history and options."""

from __future__ import annotations

import inspect
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compat_oracle import Fixed, Row, Stub, best_token, margin, negative_entropy, probability, rows_of
from torch import Tensor

from mdlm_fast.compat import dream

MASK = 18
BIAS = {MASK: -40.0}
KINDS = {"maskgit_plus": probability, "topk_margin": margin, "entropy": negative_entropy}


def prompts(batch: int, length: int = 4) -> Tensor:
    return torch.randint(0, MASK, (batch, length), generator=torch.Generator().manual_seed(6))


def shifted(rows: Row) -> Row:
    """Position l reads row l - 1; position 0 its own."""
    return rows[:, [0, *range(rows.shape[1] - 1)]]


def loop(model: Any, prompt: Tensor, new: int, steps: int, kind: str, pair: Any = "full", places: Any = None) -> Any:
    canvas = [row + [MASK] * new for row in prompt.tolist()]
    history = []
    for step in range(steps):
        rows = shifted(rows_of(model, canvas, pair, places))
        now, after = (1 + (1e-3 - 1) * i / steps for i in (step, step + 1))
        for line, scored in zip(canvas, rows, strict=True):
            masked = [place for place, token in enumerate(line) if token == MASK]
            count = len(masked) if step == steps - 1 else math.floor(len(masked) * (1 - after / now) + 1e-6)
            tokens = {place: best_token(scored[place], MASK) for place in masked}
            keys = {place: KINDS[kind](scored[place], tokens[place], step) for place in masked}
            for place in sorted(masked, key=lambda place, keys=keys: -keys[place])[:count]:
                line[place] = tokens[place]
        history.append([list(line) for line in canvas])
    return canvas, history


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("alg", KINDS)
@pytest.mark.parametrize(("batch", "new", "steps"), [(1, 12, 5), (3, 8, 8), (2, 6, 9), (1, 5, 1)])
def test_trap_l1_tokens_and_history(batch: int, new: int, steps: int, alg: str, released: bool) -> None:
    model, prompt = Stub(seed=new, bias=BIAS), prompts(batch)
    expected, history = loop(model, prompt, new, steps, alg)
    model.calls.clear()
    options: dict[str, Any] = {"max_new_tokens": new, "steps": steps, "alg": alg, "mask_token_id": MASK}
    out = dream.diffusion_generate(
        model, prompt, return_dict_in_generate=True, output_history=True, released=released, **options
    )
    assert isinstance(out, dream.DreamModelOutput)
    assert out.sequences is not None and out.history is not None
    assert out.sequences.tolist() == expected
    assert [canvas.tolist() for canvas in out.history] == history
    assert len(model.calls) == steps
    assert all(pair == "full" and places is None for _, pair, places in model.calls)
    bare = dream.diffusion_generate(model, prompt, released=released, **options)
    assert torch.equal(bare, out.sequences)


@pytest.mark.parametrize("released", [False, True])
def test_trap_l1_first_position_reads_its_own_row(released: bool) -> None:
    table = [{place + 1: 5.0} for place in range(5)]
    out = dream.diffusion_generate(
        Fixed(19, table),
        torch.tensor([[MASK, 9]]),
        max_length=5,
        steps=1,
        alg="entropy",
        mask_token_id=MASK,
        released=released,
    )
    assert out.tolist() == [[1, 9, 2, 3, 4]]


@pytest.mark.parametrize("released", [False, True])
def test_padding_gives_the_model_positions_and_a_square_mask(released: bool) -> None:
    model, prompt = Stub(seed=2, bias=BIAS), prompts(2)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    dream.diffusion_generate(
        model,
        prompt,
        attention_mask=mask,
        max_new_tokens=2,
        steps=1,
        alg="entropy",
        mask_token_id=MASK,
        released=released,
    )
    _, pair, places = model.calls[0]
    assert places.tolist() == [[1, 1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    real = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]).bool()
    assert pair.dtype == torch.bool
    assert torch.equal(pair, (real[:, :, None] & real[:, None, :])[:, None])


@pytest.mark.parametrize("released", [False, True])
def test_origin_draws_as_torch_draws(released: bool) -> None:
    model, prompt = Stub(seed=3, bias=BIAS), prompts(2)
    torch.manual_seed(4)
    out = dream.diffusion_generate(model, prompt, max_new_tokens=8, steps=4, mask_token_id=MASK, released=released)
    torch.manual_seed(4)
    expected = torch.cat([prompt, torch.full((2, 8), MASK)], 1)
    times = torch.linspace(1, 1e-3, 5)
    for step in range(4):
        tokens = model(expected).logits.argmax(-1)
        tokens = torch.cat([tokens[:, :1], tokens[:, :-1]], 1)
        places = (expected == MASK).nonzero()
        share = 1.0 if step == 3 else 1 - times[step + 1] / times[step]
        for place, drawn in zip(places.tolist(), torch.rand(len(places)), strict=True):
            if drawn < share:
                expected[tuple(place)] = tokens[tuple(place)]
    assert torch.equal(out, expected)


@pytest.mark.parametrize("released", [False, True])
def test_alg_temp_draws_positions_without_replacement(released: bool) -> None:
    # One token a step, position by position: softmax(p / alg_temp) over the masked positions.
    table = [{5: 1.0}, {5: 2.0, 6: 0.0}, {5: 4.0, 6: 0.0}, {5: 0.0, 6: 0.0}, {}]
    model = Fixed(19, table)
    options: dict[str, Any] = {"max_new_tokens": 4, "steps": 4, "alg": "maskgit_plus", "mask_token_id": MASK}
    first = []
    for seed in range(300):
        torch.manual_seed(seed)
        out = dream.diffusion_generate(
            model,
            torch.tensor([[1]]),
            alg_temp=0.3,
            return_dict_in_generate=True,
            output_history=True,
            released=released,
            **options,
        )
        assert out.history is not None
        revealed = next(canvas for canvas in out.history if bool((canvas[:, 1:] != MASK).any()))
        first.append(int((revealed[0, 1:] != MASK).nonzero()[0]))
    p = torch.stack([torch.tensor(probability(row.double().numpy(), int(row.argmax()), 0)) for row in model.rows[:4]])
    share = torch.softmax(p / 0.3, 0)
    counts = torch.bincount(torch.tensor(first), minlength=4) / 300
    assert bool(((counts - share).abs() < 5 * (share * (1 - share) / 300).sqrt()).all())


def test_alg_temp_gives_the_released_positions() -> None:
    model, prompt = Stub(seed=5, bias=BIAS), prompts(2)
    for alg in KINDS:
        results = []
        for released in (False, True):
            torch.manual_seed(8)
            results.append(
                dream.diffusion_generate(
                    model,
                    prompt,
                    max_new_tokens=8,
                    steps=6,
                    alg=alg,
                    alg_temp=0.5,
                    mask_token_id=MASK,
                    released=released,
                )
            )
        assert torch.equal(*results)


def test_alg_temp_with_few_positions_left_to_draw() -> None:
    # All but one probability underflow, and the last step wants all four positions.
    table = [{5: 20.0}, {5: 1.0, 6: 0.9}, {5: 1.0, 6: 0.9}, {5: 1.0, 6: 0.9}, {}]
    out = dream.diffusion_generate(
        Fixed(19, table),
        torch.tensor([[1]]),
        max_new_tokens=4,
        steps=1,
        alg="maskgit_plus",
        alg_temp=1e-4,
        mask_token_id=MASK,
    )
    assert out.tolist() == [[1, 5, 5, 5, 5]]


@pytest.mark.parametrize("released", [False, True])
def test_hooks(released: bool) -> None:
    steps: list[Any] = []

    def on_tokens(step: int | None, canvas: Tensor, logits: Tensor | None) -> Tensor:
        steps.append(("tokens", step, None if logits is None else tuple(logits.shape)))
        canvas = canvas.clone()
        canvas[:, -1] = 7  # a token that must stay: infilling
        return canvas

    def on_logits(step: int, canvas: Tensor, logits: Tensor) -> Tensor:
        steps.append(("logits", step, tuple(logits.shape)))
        assert bool((canvas[:, -1] == 7).all())
        return logits.masked_fill(torch.arange(19) == 4, -torch.inf)

    model, prompt = Stub(seed=7, bias={MASK: -40.0, 4: 3.0}), prompts(2)
    out = dream.diffusion_generate(
        model,
        prompt,
        max_new_tokens=5,
        steps=2,
        alg="maskgit_plus",
        mask_token_id=MASK,
        generation_tokens_hook_func=on_tokens,
        generation_logits_hook_func=on_logits,
        released=released,
    )
    shape = (2, 9, 19)
    assert steps == [("tokens", None, None)] + [
        (what, step, shape) for step in range(2) for what in ("logits", "tokens")
    ]
    assert bool((out[:, 4:] != 4).all()) and bool((out[:, -1] == 7).all()) and bool((out != MASK).all())


@pytest.mark.parametrize("released", [False, True])
def test_the_logits_hook_sees_shifted_logits(released: bool) -> None:
    seen: list[Tensor] = []
    model, prompt = Stub(seed=8, bias=BIAS), prompts(1)

    def on_logits(step: int, canvas: Tensor, logits: Tensor) -> Tensor:
        seen.append(logits.clone())
        return logits

    dream.diffusion_generate(
        model,
        prompt,
        max_new_tokens=3,
        steps=1,
        mask_token_id=MASK,
        generation_logits_hook_func=on_logits,
        released=released,
    )
    plain = model(model.calls[0][0]).logits
    assert torch.equal(seen[0], torch.cat([plain[:, :1], plain[:, :-1]], 1))


def test_trap_s1_rows_with_fewer_masks() -> None:
    # The second row holds one mask, the first four. The released code masks committed tokens again there.
    prompt = torch.tensor([[1, MASK, MASK, MASK], [1, 2, 3, 4]])
    model = Stub(seed=9, bias=BIAS)
    options: dict[str, Any] = {"max_new_tokens": 1, "steps": 2, "alg": "maskgit_plus", "mask_token_id": MASK}
    fused = dream.diffusion_generate(model, prompt, **options)
    assert bool((fused != MASK).all())
    assert fused[1, :4].tolist() == [1, 2, 3, 4]
    together = dream.diffusion_generate(model, prompt, released=True, **options)
    assert bool((together == MASK).any())


@pytest.mark.parametrize("released", [False, True])
def test_trap_m1_the_model_predicts_the_mask_id(released: bool) -> None:
    out = dream.diffusion_generate(
        Stub(seed=1, bias={MASK: 50.0}),
        prompts(1),
        max_new_tokens=4,
        steps=3,
        alg="entropy",
        mask_token_id=MASK,
        released=released,
    )
    assert int((out == MASK).sum()) == (4 if released else 0)


@pytest.mark.parametrize("released", [False, True])
def test_where_options_come_from(released: bool) -> None:
    model, prompt = Stub(seed=2, bias=BIAS), prompts(1)
    config = SimpleNamespace(steps=3, alg="entropy", max_new_tokens=6, temperature=None)
    model.generation_config = SimpleNamespace(mask_token_id=MASK)  # type: ignore[attr-defined]
    out = dream.diffusion_generate(model, prompt, config, released=released)
    assert out.shape == (1, 10)
    assert len(model.calls) == 3
    twice = dream.diffusion_generate(
        model, prompt, config, max_new_tokens=2, steps=1, num_return_sequences=2, released=released
    )
    assert twice.shape == (2, 6)
    assert torch.equal(twice[0], twice[1])
    assert len(model.calls) == 4
    default = dream.diffusion_generate(model, prompt, alg="entropy", steps=1, released=released)
    assert default.shape == (1, 24)  # 20 new tokens
    assert dream.diffusion_generate(model, prompt, max_length=7, alg="entropy", steps=1).shape == (1, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": None}, "inputs must be token ids"),
        ({"mask_token_id": None}, "mask_token_id is neither"),
        ({"max_new_tokens": None, "max_length": 4}, "max_length=4 leaves no room after a prompt of 4"),
        ({"attention_mask": torch.ones(2, 4)}, r"attention_mask must have the prompt's shape \(1, 4\)"),
        ({"alg": "best"}, "alg='best'"),
        ({"steps": 0}, "steps=0"),
        ({"temperature": -1}, "temperature=-1"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    keywords: dict[str, Any] = {"inputs": prompts(1), "max_new_tokens": 4, "mask_token_id": MASK} | change
    with pytest.raises(ValueError, match=message):
        dream.diffusion_generate(Stub(), keywords.pop("inputs"), **keywords)


def test_signature() -> None:
    parameters = inspect.signature(dream.diffusion_generate).parameters
    assert list(parameters) == ["model", "inputs", "generation_config", "released", "kwargs"]
    assert parameters["inputs"].default is None and parameters["generation_config"].default is None
    assert parameters["released"].default is False


@pytest.mark.parametrize("released", [False, True])
def test_an_empty_batch(released: bool) -> None:
    nothing = torch.zeros(0, 3, dtype=torch.long)
    for alg in ("origin", "entropy"):
        out = dream.diffusion_generate(
            Stub(), nothing, max_new_tokens=4, steps=2, alg=alg, mask_token_id=MASK, released=released
        )
        assert out.shape == (0, 7)
