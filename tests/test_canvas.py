"""The canvas: where masks, pads, blocks and positions lie."""

import torch
from hash_scorer import MASK

from mdlm_fast.canvas import NO_BLOCK, build_canvas

N = NO_BLOCK


def test_left_and_right_padding() -> None:
    ids = torch.tensor([[5, 6, 7], [0, 0, 8], [9, 0, 0], [0, 0, 0]])
    real = torch.tensor([[1, 1, 1], [0, 0, 1], [1, 0, 0], [0, 0, 0]])
    canvas = build_canvas(ids, real, [2, 1], MASK)
    m = MASK
    assert canvas.ids.tolist() == [[5, 6, 7, m, m, m], [0, 0, 8, m, m, m], [9, m, m, m, 0, 0], [0, 0, 0, m, m, m]]
    assert canvas.start.tolist() == [3, 3, 1, 3]
    assert canvas.block.tolist() == [[N] * 3 + [0, 0, 1]] * 2 + [[N, 0, 0, 1, N, N], [N] * 3 + [0, 0, 1]]
    assert canvas.position[0].tolist() == [0, 1, 2, 3, 4, 5] and canvas.position[1, 2:].tolist() == [0, 1, 2, 3]
    assert canvas.real.sum(1).tolist() == [6, 4, 4, 3]
    assert canvas.counts(2).tolist() == [[2, 1]] * 4


def test_trap_m2_masks_in_the_prompt_and_pads_that_equal_the_mask() -> None:
    ids = torch.tensor([[MASK, MASK, 7, MASK]])
    canvas = build_canvas(ids, torch.tensor([[0, 1, 1, 1]]), [2, 2], MASK)
    assert canvas.eligible.tolist() == [[False, True, False, True, True, True, True, True]]
    assert canvas.counts(2).tolist() == [[4, 2]]
    assert canvas.ids[0, 0] == MASK and not canvas.eligible[0, 0]


def test_nothing_appended() -> None:
    canvas = build_canvas(torch.tensor([[4, MASK, 5]]), None, [0], MASK)
    assert canvas.ids.tolist() == [[4, MASK, 5]] and canvas.counts(1).tolist() == [[1]] and canvas.generated == 0


def test_no_prompt_and_no_rows() -> None:
    assert build_canvas(torch.zeros(2, 0, dtype=torch.int64), None, [3], MASK).ids.tolist() == [[MASK] * 3] * 2
    assert build_canvas(torch.zeros(0, 2, dtype=torch.int64), None, [3], MASK).ids.shape == (0, 5)
    assert build_canvas(torch.zeros(2, 0, dtype=torch.int32), None, [0], MASK).counts(1).tolist() == [[0], [0]]


def test_copies_of_a_prompt_are_neighbours() -> None:
    canvas = build_canvas(torch.tensor([[4], [5]]), None, [1], MASK).repeat(3)
    assert canvas.ids[:, 0].tolist() == [4, 4, 4, 5, 5, 5] and canvas.start.tolist() == [1] * 6
