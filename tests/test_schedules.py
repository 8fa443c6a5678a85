"""Schedules against definitions written out in plain Python, and the published tables."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mdlm_fast.schedules import (
    ass_layout,
    ass_steps,
    dream_transfer_probabilities,
    parse_schedule,
    quota_plan,
    schedule_table,
)

NAMES = ["uniform", "ass", "cosine", "linear", "pow2", "pow0.5", "log", "exp", "dream"]


def row(name: str, masks: int, steps: int) -> list[int]:
    return schedule_table(name, masks, steps)[masks].tolist()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(NAMES), st.integers(0, 300), st.integers(1, 70))
def test_trap_s3_every_row_sums_to_its_masks(name: str, masks: int, steps: int) -> None:
    table = schedule_table(name, masks, steps)
    assert table.dtype == torch.int32 and table.shape == (masks + 1, steps)
    assert (table >= 0).all()
    assert torch.equal(table.sum(1), torch.arange(masks + 1))


@pytest.mark.parametrize("name", NAMES)
def test_trap_s3_one_step_no_mask_and_more_steps_than_masks(name: str) -> None:
    assert row(name, 37, 1) == [37]
    assert row(name, 0, 5) == [0] * 5
    assert sum(row(name, 3, 50)) == 3
    assert sum(row(name, 1, 4)) == 1


def test_uniform_puts_the_remainder_first() -> None:
    assert row("uniform", 10, 4) == [3, 3, 2, 2]
    assert row("uniform", 2, 4) == [1, 1, 0, 0]


def test_ascending_published_tables() -> None:
    assert row("ass", 128, ass_steps(128)) == [1, 2, 4, 8, 16, 32, 65]
    assert row("ass", 256, ass_steps(256)) == [1, 2, 4, 8, 16, 32, 64, 129]
    assert row("ass", 200, ass_steps(200)) == [1, 2, 4, 8, 16, 32, 137]
    assert (ass_steps(512), ass_steps(1024)) == (9, 10)
    assert row("ass", 5, 7) == [1, 2, 2, 0, 0, 0, 0]


def test_ascending_blocks() -> None:
    assert ass_layout(128, 4) == [(15, 4), (16, 1), (32, 1), (65, 1)]
    assert ass_layout(128, 7) == [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (32, 1), (65, 1)]
    assert ass_layout(128, 2) == [(63, 6), (65, 1)]
    assert ass_layout(1) == [(1, 1)]


@given(st.integers(1, 3000), st.data())
def test_ascending_blocks_cover_the_canvas(length: int, data: st.DataObject) -> None:
    blocks = data.draw(st.integers(1, ass_steps(length)))
    layout = ass_layout(length, blocks)
    assert len(layout) == blocks
    assert sum(size for size, _ in layout) == length
    assert sum(steps for _, steps in layout) == ass_steps(length)
    whole = row("ass", length, ass_steps(length))
    assert [n for size, steps in layout for n in row("ass", size, steps)] == whole


def maskgit(name: str, masks: int, steps: int) -> list[int]:
    """MaskGIT's rule with Python floats, one step at a time."""
    revealed, counts = 0, []
    for t in range(steps):
        r = (t + 1) / steps
        if masks <= 1:
            total = masks if t == steps - 1 else 0
        else:
            if name == "cosine":
                ratio = math.cos(math.pi * r / 2)
            elif name == "linear":
                ratio = 1 - r
            elif name.startswith("pow"):
                ratio = 1 - r ** float(name[3:])
            elif name == "log":
                ratio = -math.log2(r) / math.log2(masks)
            else:
                ratio = 1 - 2 ** (-math.log2(masks) * (1 - r))
            total = masks - math.floor(masks * min(max(ratio, 1e-6), 1.0))
        counts.append(total - revealed)
        revealed = total
    return counts


@pytest.mark.parametrize("name", ["cosine", "linear", "pow2", "pow0.5", "log", "exp"])
def test_maskgit_family_against_python(name: str) -> None:
    wrong = sum(row(name, m, s) != maskgit(name, m, s) for m in range(0, 140, 7) for s in (1, 2, 7, 16, 32, 64, 150))
    # m * ratio may be an integer up to the last bit of a library's cos or pow, where floor jumps.
    assert wrong <= 2


def test_maskgit_steps_that_reveal_nothing() -> None:
    assert row("cosine", 128, 32)[:6] == [1, 0, 1, 1, 1, 2]
    assert row("exp", 128, 32)[:5] == [2, 0, 0, 0, 1]
    assert row("log", 128, 32)[-1] == 0


def test_dream_published_floors() -> None:
    full = row("dream", 512, 512)
    assert full[0] == 0 and full[-1] == 2 and set(full[1:-1]) == {1}
    half = row("dream", 256, 128)
    assert half[0] == 1 and half[1] == 2 and half[-1] == 3
    quarter = row("dream", 256, 64)
    assert quarter[0] == 3 and quarter[1] == 4 and quarter[-1] == 5


def test_dream_in_float32() -> None:
    times = torch.linspace(1, 1e-3, 17)
    for masks in (1, 5, 31, 64):
        left, counts = masks, []
        for i in range(16):
            n = int(torch.tensor(float(left)) * (1 - times[i + 1] / times[i])) if i < 15 else left
            counts.append(n)
            left -= n
        assert row("dream", masks, 16) == counts


def test_dream_origin_probabilities() -> None:
    p = dream_transfer_probabilities(8)
    assert p.dtype == torch.float32 and p[-1] == 1.0
    assert torch.allclose(p[:2], torch.tensor([0.124875, 0.1427]), atol=1e-4)


def test_plan_takes_each_rows_own_masks() -> None:
    masks = torch.tensor([[10, 4], [0, 3], [1, 0]])
    plan = quota_plan("uniform", masks, [4, 2])
    assert plan.dtype == torch.int32
    assert plan.tolist() == [[3, 3, 2, 2, 2, 2], [0, 0, 0, 0, 2, 1], [1, 0, 0, 0, 0, 0]]
    assert quota_plan("cosine", torch.zeros(0, 2, dtype=torch.int64), [4, 2]).shape == (0, 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parse_schedule("sine"), "unknown schedule 'sine'"),
        (lambda: parse_schedule("pow"), "write a positive exponent"),
        (lambda: parse_schedule("pow-1"), "write a positive exponent"),
        (lambda: parse_schedule("pow<x>"), "write a positive exponent"),
        (lambda: schedule_table("uniform", 4, 0), "steps=0"),
        (lambda: schedule_table("uniform", -1, 2), "max_masks=-1"),
        (lambda: ass_layout(128, 8), "num_blocks=8"),
        (lambda: ass_layout(0), "gen_length=0"),
        (lambda: quota_plan("uniform", torch.zeros(2, 3, dtype=torch.int64), [1]), r"expected \[B, 1\]"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
