"""The decode suite: published loops against the drop-ins on small models, and checks that notice a broken loop."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compat_oracle import Stub
from torch import Tensor

from mdlm_fast.bench.baselines import dinfer, dream, eoser, fast_dllm, llada, mdpo
from mdlm_fast.bench.baselines.model import Size, mask_id, random_model, random_prompts
from mdlm_fast.bench.harness.results import Side
from mdlm_fast.bench.harness.spread import Spread
from mdlm_fast.bench.suites.decode import captured, cell, cells, check, systems
from mdlm_fast.bench.suites.decode.passes import passes, split
from mdlm_fast.bench.suites.decode.shape import LAYOUTS, Shape, shapes
from mdlm_fast.bench.suites.settings import Settings
from mdlm_fast.compat import dream as compat_dream
from mdlm_fast.compat import eoser_ass
from mdlm_fast.compat import fast_dllm as compat_fast_dllm
from mdlm_fast.compat import llada as compat_llada
from mdlm_fast.compat import mdpo as compat_mdpo

MASK, EOS = 18, 3
BIAS = {MASK: -40.0, EOS: 2.0}
TINY = Size(layers=2, width=64, intermediate=128, heads=2)
VOCAB = 512
CPU_LAYOUTS = [(decoder, layout) for decoder, layouts in LAYOUTS.items() for layout in layouts]


def prompt(batch: int) -> Tensor:
    return torch.randint(0, MASK, (batch, 4), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The suite on a model of two narrow layers, and with dInfer's rule as it is before compilation."""
    model = random_model(VOCAB, size=TINY)
    for module in (check, cell):
        monkeypatch.setattr(module, "timed_model", lambda vocab, device: model)
    monkeypatch.setattr(cell, "agreement", check.agreement.__wrapped__)
    monkeypatch.setattr(dinfer, "compiled_rule", dinfer.rule)
    monkeypatch.setattr(check, "CHECKED_TOKENS", 16)
    # Slow in a large process, and rounds and memory are not what is tested here.
    monkeypatch.setattr(gc, "collect", lambda: 0)
    return model


def tiny_shape(decoder: str, **fields: Any) -> Shape:
    return Shape(decoder, **{"layout": LAYOUTS[decoder][0], "vocab": VOCAB, "prompt": 8, **fields})


# ------------------------------------------------------------------------------------- loops against released=True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(("batch", "steps", "block"), [(1, 12, 12), (3, 8, 4), (2, 5, 12)])
def test_loops_draw_the_tokens_of_the_released_decoders(
    batch: int, steps: int, block: int, temperature: float, dtype: torch.dtype
) -> None:
    model, ids = Stub(seed=steps, bias=BIAS, dtype=dtype), prompt(batch)
    shared: dict[str, Any] = {"gen_length": 12, "temperature": temperature, "mask_id": MASK}

    def same(ours: Any, theirs: Any) -> None:
        found = []
        for decode in (ours, theirs):
            torch.manual_seed(7)
            found.append(decode())
        assert torch.equal(*found)

    if steps % (12 // block) == 0:
        quota = {**shared, "steps": steps, "block_length": block}
        same(
            lambda: llada.generate(model, ids, **quota),
            lambda: compat_llada.generate(model, ids, **quota, released=True),
        )
        for top_p in (None, 0.8):
            options = {**quota, "top_p": top_p}
            same(
                lambda options=options: mdpo.generate(model, ids[:1], **options)[0],
                lambda options=options: compat_mdpo.diffusion_generate(
                    model, ids[:1], **options, conf_alg="probability", rcr=True, released=True
                )[0],
            )
    for threshold in (0.3, 0.9):
        rule = {**shared, "block_length": block, "threshold": threshold}
        same(
            lambda rule=rule: fast_dllm.generate(model, ids, **rule),
            lambda rule=rule: compat_fast_dllm.generate(model, ids, 12, **rule, released=True)[0],
        )
    for top_p in (None, 0.8):
        same(
            lambda top_p=top_p: dream.generate(model, ids, **shared, steps=steps, top_p=top_p),
            lambda top_p=top_p: compat_dream.diffusion_generate(
                model,
                ids,
                max_new_tokens=12,
                steps=steps,
                alg="entropy",
                temperature=temperature,
                top_p=top_p,
                mask_token_id=MASK,
                released=True,
            ),
        )
    if dtype == torch.float32:  # trainers draw in the model's dtype, the published decoder in float32
        tokenizer = SimpleNamespace(eos_token_id=EOS)
        same(
            lambda: eoser.rollout(model, ids, **shared, steps=steps, eos_id=EOS).states[-1],
            lambda: eoser_ass.eoser_generate(
                model, ids, tokenizer, steps=steps, block_length=12, **shared, released=True
            ),
        )


def test_dinfer_commits_what_fast_dllm_commits() -> None:
    model, ids = Stub(seed=1, bias=BIAS), prompt(3)
    options: dict[str, Any] = {"gen_length": 12, "block_length": 4, "temperature": 0.0, "mask_id": MASK}
    for threshold in (0.2, 0.5, 0.9):
        wanted = fast_dllm.generate(model, ids, **options, threshold=threshold)
        assert torch.equal(dinfer.generate(model, ids, **options, threshold=threshold, rule=dinfer.rule), wanted)


def test_the_rollouts_record_is_its_path() -> None:
    found = eoser.rollout(Stub(bias=BIAS), prompt(2), steps=5, gen_length=12, temperature=0.7, mask_id=MASK, eos_id=EOS)
    for before, after, revealed in zip(found.states, found.states[1:], found.revealed, strict=False):
        assert torch.equal((before != after)[:, -12:], revealed)
    assert len(found.states) == 6 and bool(torch.stack(found.revealed).sum(0).eq(1).all())


# --------------------------------------------------------------------------------------------------- checks can fail


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(("decoder", "layout"), CPU_LAYOUTS)
def test_checks_pass(tiny: Any, decoder: str, layout: str, temperature: float) -> None:
    shape = tiny_shape(decoder, layout=layout, batch=2, generated=16, block=8, temperature=temperature)
    assert "equal tokens" in check.agreement.__wrapped__(shape, "cpu")


BROKEN: dict[str, Any] = {
    "LLaDA": (llada, "probability_of", lambda logits, tokens: -logits.amax(-1)),
    "EOSER/CJ-GRPO rollout": (eoser, "probability_of", lambda logits, tokens: -logits.amax(-1)),
    "Fast-dLLM": (systems, "THRESHOLD", 0.5),
    "dInfer, torch.compile": (dinfer, "SLACK", 0.1),
    "Dream": (dream, "draw", lambda z, t, p: (z.softmax(-1).roll(1, 0), z.argmax(-1), None)),
    "MDPO": (mdpo, "linear_schedule", lambda masks, steps: [0] * (steps - 1) + [masks]),
}


@pytest.mark.parametrize("decoder", LAYOUTS)
def test_a_broken_loop_fails_its_check(tiny: Any, decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name, value = BROKEN[decoder]
    if module is systems:  # the baseline's threshold alone
        monkeypatch.setattr(fast_dllm, "above", lambda c, m, threshold, above=fast_dllm.above: above(c, m, value))
    else:
        monkeypatch.setattr(module, name, value)
    with pytest.raises(AssertionError, match=r"tokens differ|canvases through the model"):
        check.agreement.__wrapped__(tiny_shape(decoder, generated=16, block=8), "cpu")


# ----------------------------------------------------------------------------------------------------- model, passes


def test_the_models_confidences_are_spread() -> None:
    model = random_model(1024)
    canvas = torch.cat([random_prompts(1024, 4, 32), torch.full((4, 64), mask_id(1024))], 1)
    with torch.no_grad():
        confidence = model(canvas).logits[:, 32:].float().softmax(-1).amax(-1)
    low, middle, high = confidence.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    assert low < 0.5 < middle < 0.9 < high
    shape = Shape("Fast-dLLM", vocab=1024)
    found = passes(model, lambda: systems.SYSTEMS["Fast-dLLM"].ours(model, canvas[:1, :32], shape))
    assert 8 < found.forwards < 40  # of 64 tokens


def test_passes_are_counted_and_cut_short() -> None:
    model = random_model(VOCAB, size=TINY)
    shape = tiny_shape("MDPO", batch=3, generated=32)
    ids = random_prompts(VOCAB, 3, 8)
    system = systems.SYSTEMS["MDPO"]
    ours, theirs = (passes(model, lambda how=how: how(model, ids, shape)) for how in (system.ours, system.baseline))
    assert (ours.forwards, ours.rows) == (8, 24)
    assert (theirs.forwards, theirs.rows) == (24, 24)
    first = passes(model, lambda: system.baseline(model, ids, shape), most=2)
    assert (first.forwards, first.rows) == (2, 2)
    watched = split(model, lambda: system.baseline(model, ids, shape), "cpu")
    assert watched.forwards == 24
    assert 0 < watched.head < watched.outside < watched.whole and watched.body > 0
    assert not model.model._forward_pre_hooks and not model.lm_head._forward_hooks


# ------------------------------------------------------------------------------------------------------------- cells


@pytest.mark.parametrize(("decoder", "longest"), [("LLaDA", 60.0), ("MDPO", 0.0)])
def test_a_record(tiny: Any, decoder: str, longest: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell, "LONGEST", {False: longest})
    shape = tiny_shape(decoder, batch=2, generated=16, block=8)
    record = cell.measure(shape, Settings(seconds=0.0))
    assert record.case == shape.case() and record.suite == "decode" and record.work == {"tokens": 32}
    ours, theirs = record.sides["ours"], record.sides[decoder]
    calls = 8 if decoder == "MDPO" else 4
    assert theirs.extrapolated_from == (None if longest else f"1 of {calls} steps")
    assert (ours.figures["forwards"], theirs.figures["forwards"]) == (4, calls)
    assert ours.ratio is None and theirs.ratio is not None and theirs.agreement is not None
    for side in (ours, theirs):
        assert side.seconds is not None
        assert side.figures["tokens_per_forward"] == 4
        assert side.figures["tokens_per_second"] == pytest.approx(32 / side.seconds.median)
        assert 0 < side.figures["outside_share"] < 1
    assert "head_seconds" in theirs.figures and "head_seconds" not in ours.figures


def test_the_reason_of_a_loss() -> None:
    slow, fast = (Side(ratio=Spread(0.8, 0.7, 0.9, 3), figures={"outside_seconds": s}) for s in (2e-3, 1e-3))
    found = cell.reason(slow, fast, Shape("Dream", vocab=1024))
    assert (
        found is not None and "rows of 1,024 ids" in found and "2.00 ms outside the model, of theirs 1.00 ms" in found
    )
    assert cell.reason(fast, slow, Shape("Dream", vocab=1024)) is None


def test_a_baseline_that_does_not_fit(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell, "MOST_BYTES", -1)
    record = cell.measure(tiny_shape("LLaDA", generated=16, block=8), Settings(seconds=0.0))
    assert record.sides["LLaDA"].seconds is None
    assert str(record.sides["LLaDA"].verdict).startswith("does not fit: needs ")
    assert record.sides["ours"].seconds is not None


def test_the_matrix() -> None:
    assert len(list(cells(Settings(full=True)))) == 8 * 3 * 3 * 2 * 2
    small = list(shapes(full=False))
    assert len(set(small)) == len(small)
    assert {shape.decoder for shape in small} == set(LAYOUTS)
    assert set(small) <= set(shapes(full=True))
    for shape in small:
        assert shape.half_done.generated + shape.half_done.prompt == shape.generated + shape.prompt


@pytest.mark.parametrize("decoder", [name for name, system in systems.SYSTEMS.items() if system.captured])
def test_what_can_be_captured_is_what_is_timed(tiny: Any, decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "timed_model", check.timed_model)
    monkeypatch.setattr(captured, "puzzles_agree", lambda device: 9)
    shape = tiny_shape(decoder, batch=2, generated=16, block=8)
    assert "equal tokens" in captured.agreement(shape, "cpu")
    exact = tiny.float()
    ids = random_prompts(VOCAB, 2, 8)
    assert torch.equal(captured.generate(exact, ids, shape), systems.SYSTEMS[decoder].ours(exact, ids, shape))


def test_steps_that_can_be_captured_decode_puzzles_as_ordinary_ones_do() -> None:
    assert captured.puzzles_agree("cpu") == len(captured.RULES)
