"""`generate` against a plain Python decoder: tokens, commit steps, log-probs and every state."""

import itertools

import pytest
import torch
from decode_oracle import NaiveDecoder
from hash_scorer import EOS, MASK, VOCAB, HashScorer
from hypothesis import given, settings
from hypothesis import strategies as st

import mdlm_fast as mf
from mdlm_fast.rng import derive_seed

RULES = {
    "quota": {},
    "threshold": {"select": "threshold", "threshold": 0.5},
    "factor": {"select": "factor", "factor": 1.0},
    "entropy_bound": {"select": "entropy_bound", "entropy_bound": 1.5, "confidence": "neg_entropy"},
    "quota_threshold": {"select": "quota_threshold", "threshold": 0.45},
    "origin": {"select": "origin", "schedule": "dream"},
}


def prompts(generator: torch.Generator, count: int, longest: int, holes: bool = False) -> list[list[int]]:
    rows = []
    for _ in range(count):
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        row = torch.randint(2, VOCAB - 1, (length,), generator=generator)
        if holes:
            row[torch.rand(length, generator=generator) < 0.4] = MASK
        rows.append(row.tolist())
    return rows


def pad(rows: list[list[int]], side: str, extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows padded to one length. Pads are mask tokens, the nastiest choice."""
    width = max(map(len, rows)) + extra
    ids = torch.full((len(rows), width), MASK)
    real = torch.zeros_like(ids)
    for b, row in enumerate(rows):
        part = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[b, part] = torch.tensor(row, dtype=torch.int64)
        real[b, part] = 1
    return ids, real


def check(rows: list[list[int]], config: mf.DecodeConfig, side: str = "left", extra: int = 0) -> mf.GenerateOutput:
    """Decodes the padded batch and compares every row with the oracle's decode of it alone."""
    ids, real = pad(rows, side, extra)
    out = mf.generate(HashScorer(), ids, real, config)
    record = out.trajectory
    width = ids.shape[1]
    for b, row in enumerate(rows):
        temperature = config.temperature[b] if isinstance(config.temperature, tuple) else config.temperature
        want = NaiveDecoder(row, config, derive_seed(config.seed or 0, b), temperature=temperature).run()
        part = slice(width - len(row), None) if side == "left" else slice(0, len(row) + config.gen_length)
        assert out.sequences[b, part].tolist() == want.tokens
        assert record.commit_step[b, part].tolist() == want.commit_step
        for name, values in (("logp", want.logp), ("logp_T", want.logp_T), ("confidence", want.confidence)):
            torch.testing.assert_close(
                getattr(record, f"commit_{name}")[b, part].double(),
                torch.tensor(values, dtype=torch.float64),
                atol=2e-5,
                rtol=1e-4,
            )
        outside = torch.ones(out.sequences.shape[1], dtype=torch.bool)
        outside[part] = False
        assert (record.commit_step[b, outside] == -1).all() and not record.eligible[b, outside].any()
        made = [state[b, part].tolist() for state in record]
        wanted = [tokens for i, tokens in enumerate(want.states) if i == 0 or tokens != want.states[i - 1]]
        assert [tokens for i, tokens in enumerate(made) if i == 0 or tokens != made[i - 1]] == wanted
    return out


@pytest.mark.parametrize("schedule", ["uniform", "ass", "cosine", "linear", "pow2", "log", "exp", "dream"])
def test_schedules_and_block_layouts(schedule: str) -> None:
    generator = torch.Generator().manual_seed(3)
    for blocks, (side, holes) in itertools.product((1, 2, 3), (("left", False), ("right", True))):
        layout = {"num_blocks": blocks} if schedule == "ass" else {"block_length": {1: 13, 2: 7, 3: 5}[blocks]}
        steps = None if schedule == "ass" else {1: 6, 2: 8, 3: 15}[blocks]
        config = mf.DecodeConfig(gen_length=13, schedule=schedule, steps=steps, seed=0, **layout)
        check(prompts(generator, 3, 5, holes), config, side)


THRESHOLDS = {"prob": 0.3, "margin": 0.1, "neg_entropy": -1.6}


@pytest.mark.parametrize(
    ("rule", "confidence"),
    [
        *itertools.product(("quota", "origin"), ("prob", "margin", "neg_entropy", "random")),
        *itertools.product(("threshold", "quota_threshold"), THRESHOLDS),
        ("factor", "prob"),
        ("entropy_bound", "neg_entropy"),
    ],
)
def test_rules_and_confidences(rule: str, confidence: str) -> None:
    values = dict(RULES[rule])
    if "threshold" in values:
        values["threshold"] = THRESHOLDS[confidence]
    generator = torch.Generator().manual_seed(5)
    for case, (origin, temperature, block_length) in enumerate(
        itertools.product(("raw", "tempered"), (0.0, 0.8), (12, 5))
    ):
        config = mf.DecodeConfig(
            **{
                "gen_length": 12,
                "steps": 6,
                "block_length": block_length,
                "confidence_from": origin,
                "temperature": temperature,
                "seed": 11 + case,
                **values,
                "confidence": confidence,
            }
        )
        check(prompts(generator, 3, 4, case % 3 == 0), config, "left" if case % 2 else "right", extra=case % 3)


@pytest.mark.parametrize("confidence", ["prob", "margin", "neg_entropy"])
@pytest.mark.parametrize("schedule", ["uniform", "ass"])
@pytest.mark.parametrize("index", ["global", "block"])
def test_eoser(confidence: str, schedule: str, index: str) -> None:
    generator = torch.Generator().manual_seed(8)
    for g_min, ids in ((None, None), (0.0, (EOS, 5, 9))):
        config = mf.DecodeConfig(
            gen_length=12,
            num_blocks=2,
            schedule=schedule,
            confidence=confidence,
            temperature=0.9,
            eoser=mf.EOSER(g_min=g_min, eos_index=index, eos_ids=ids),
            forbid_ids=range(12, 21),
            seed=4,
        )
        check(prompts(generator, 4, 4), config)
    check(
        prompts(generator, 2, 4),
        config.replace(select="quota_threshold", threshold=0.2 if confidence == "prob" else -9),
    )


@pytest.mark.parametrize("running", ["last", "max"])
@pytest.mark.parametrize("scope", ["block", "canvas"])
def test_running_confidence_remasking(running: str, scope: str) -> None:
    generator = torch.Generator().manual_seed(13)
    for schedule, temperature, eoser in (("uniform", 0.0, None), ("cosine", 0.7, None), ("linear", 0.0, mf.EOSER())):
        config = mf.DecodeConfig(
            gen_length=14,
            block_length=5,
            steps=12,
            schedule=schedule,
            temperature=temperature,
            eoser=eoser,
            remasking=mf.RCR(running=running, scope=scope),
            seed=2,
        )
        check(prompts(generator, 3, 6, True), config, "right")


@pytest.mark.parametrize("over", ["allowed", "all"])
def test_filters_guidance_and_forbidden_ids(over: str) -> None:
    generator = torch.Generator().manual_seed(21)
    for values in (
        {"top_k": 3},
        {"top_p": 0.7},
        {"top_k": 5, "top_p": 0.8, "temperature": 0.0},
        {"cfg_scale": 0.8},
        {"cfg_scale": 1.5, "temperature": 0.0},
        {"forbid_ids": (3, 4, 5), "vocab_limit": 18},
        {"temperature": (0.0, 0.5, 1.7)},
    ):
        config = mf.DecodeConfig(
            **{
                "gen_length": 9,
                "steps": 5,
                "temperature": 0.7,
                "confidence_from": "tempered" if over == "allowed" else "raw",
                "normalize_over": over,
                "seed": 6,
                **values,
            }
        )
        if over == "all":
            # The reference for the tempered record over the whole vocabulary is tested with the ops.
            rows = prompts(generator, 3, 4, True)
            ids, real = pad(rows, "left")
            out = mf.generate(HashScorer(), ids, real, config)
            for b, row in enumerate(rows):
                heat = config.temperature[b] if isinstance(config.temperature, tuple) else config.temperature
                want = NaiveDecoder(row, config, derive_seed(6, b), temperature=heat).run()
                assert out.sequences[b, ids.shape[1] - len(row) :].tolist() == want.tokens
        else:
            check(prompts(generator, 3, 4, True), config)


def test_alg_temp_draws_positions_with_the_rows_own_numbers() -> None:
    generator = torch.Generator().manual_seed(31)
    for confidence in ("prob", "margin", "neg_entropy"):
        config = mf.DecodeConfig(gen_length=11, steps=4, schedule="dream", confidence=confidence, alg_temp=0.3, seed=9)
        check(prompts(generator, 3, 4), config, "right")


def test_origin_with_blocks_that_end_early() -> None:
    generator = torch.Generator().manual_seed(51)
    config = mf.DecodeConfig.preset("dream-origin", gen_length=7, block_length=2, steps=16, temperature=1.0, seed=3)
    out = check(prompts(generator, 6, 4, True), config)
    assert sum(out.stats.row_forwards) < 6 * 16 and max(out.stats.row_steps) > 12


def test_pure_infilling() -> None:
    generator = torch.Generator().manual_seed(41)
    rows = prompts(generator, 4, 12, True)
    for values in ({"steps": 4}, {"select": "threshold", "threshold": 0.4}, {"steps": 5, "remasking": mf.RCR()}):
        check(rows, mf.DecodeConfig(gen_length=0, seed=1, **values), "right")


# The same examples every time: confidences one float32 rounding apart would be ranked differently by the oracle.
@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_any_configuration(data: st.DataObject) -> None:
    draw = data.draw
    blocks = draw(st.integers(1, 3), "blocks")
    length = draw(st.integers(blocks, 10), "gen_length")
    block_length = -(-length // blocks)
    count = -(-length // block_length)
    values = {
        "gen_length": length,
        "block_length": block_length,
        "steps": count * draw(st.integers(1, 5), "steps"),
        "schedule": draw(st.sampled_from(["uniform", "cosine", "pow1.5", "dream"]), "schedule"),
        "temperature": draw(st.sampled_from([0.0, 0.6, 1.0]), "temperature"),
        "confidence": draw(st.sampled_from(["prob", "margin", "neg_entropy"]), "confidence"),
        "confidence_from": draw(st.sampled_from(["raw", "tempered"]), "confidence_from"),
        "cfg_scale": draw(st.sampled_from([0.0, 0.7]), "cfg_scale"),
        "eoser": draw(st.sampled_from([None, mf.EOSER(), mf.EOSER(g_min=0.0, eos_ids=(1, 2, 3, 4))]), "eoser"),
        "seed": draw(st.integers(0, 2**40), "seed"),
    }
    kind = draw(st.sampled_from(["quota", "remasking", "quota_threshold", "threshold"]), "kind")
    if kind == "remasking":
        scope, running = draw(st.sampled_from(["block", "canvas"])), draw(st.sampled_from(["last", "max"]))
        values["remasking"] = mf.RCR(scope=scope, running=running)
    elif kind != "quota":
        values |= {"select": kind, "threshold": THRESHOLDS[values["confidence"]]}
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99), "prompts"))
    rows = prompts(generator, draw(st.integers(1, 3), "rows"), 5, draw(st.booleans(), "holes"))
    check(rows, mf.DecodeConfig(**values), draw(st.sampled_from(["left", "right"]), "side"))
