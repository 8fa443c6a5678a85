"""Views against dense computations: building, selecting and joining them changes no token, weight or canvas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mdlm_fast.rl.views import Mix, View, from_tensors, join, to_tensors, token_values, token_view

SEEDS = range(25)


class Dense:
    """Random [B, L] tensors of a view, some sequences without a scored position."""

    def __init__(self, seed: int, length: int | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)

        def below(high: int, *shape: int) -> Tensor:
            return torch.randint(high, shape, generator=generator)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.batch = int(below(5, 1)) + 1
        self.length = int(below(7, 1)) + 1 if length is None else length
        shape = (self.batch, self.length)
        self.canvas, self.targets = below(50, *shape), below(50, *shape)
        self.attention_mask = below(3, *shape) > 0
        self.scored = (below(3, *shape) == 0) & (below(3, self.batch, 1) > 0)
        self.weight, self.old_logp, self.reference = normal(*shape), normal(*shape), normal(*shape)
        self.kl_weight = normal(self.batch)
        self.advantage = normal(*shape) if seed % 2 else normal(self.batch)
        self.logits = torch.randn(50, self.length, 50, generator=generator)  # log-probs depend on canvas, place, target
        self.keep = below(2, self.batch) > 0

    def view(self, **changes: Any) -> View | None:
        return token_view(
            lambda: self.canvas,
            self.attention_mask,
            self.scored,
            self.targets,
            **{
                "weight": self.weight,
                "kl_weight": self.kl_weight,
                "advantage": self.advantage,
                "step": 3,
                "old_logp": self.old_logp,
                **changes,
            },
        )

    def logp(self, canvas: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """A stand-in for a model: a number for every (sum of the canvas, place, target)."""
        row, place = rows.long() // self.length, rows.long() % self.length
        return self.logits[canvas.sum(1)[row] % 50, place, targets]

    def tokens(self, keep: Tensor | None = None) -> list[tuple[float, ...]]:
        """Of every scored position: sequence, target, weight, kl_weight, advantage, old log-prob, new log-prob."""
        found = []
        for b in range(self.batch):
            for i in range(self.length):
                if not self.scored[b, i] or (keep is not None and not keep[b]):
                    continue
                advantage = self.advantage[b, i] if self.advantage.ndim == 2 else self.advantage[b]
                new = self.logits[int(self.canvas[b].sum()) % 50, i, self.targets[b, i]]
                parts = (self.targets[b, i], self.weight[b, i], self.kl_weight[b], advantage, self.old_logp[b, i], new)
                found.append((b, *map(float, parts)))
        return found


def described(view: View, dense: Dense, new: Tensor) -> list[tuple[float, ...]]:
    """The view's tokens, as `Dense.tokens` gives them; new: their log-probs."""
    assert view.old_logp is not None
    parts = (view.sequence, view.targets, view.weight, view.kl_weight, view.advantage, view.old_logp, new)
    return [(int(b), *map(float, rest)) for b, *rest in zip(*parts, strict=True)]


def scored_alone(view: View, dense: Dense) -> Tensor:
    return dense.logp(view.canvas(), view.rows, view.targets)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_view_holds_what_the_dense_tensors_say(seed):
    dense = Dense(seed)
    view = dense.view()
    if view is None:
        assert not dense.scored.any()
        return
    assert described(view, dense, scored_alone(view, dense)) == dense.tokens()
    assert view.owner.tolist() == dense.scored.any(1).nonzero().flatten().tolist()
    assert torch.equal(view.canvas(), dense.canvas[view.owner])
    assert torch.equal(view.attention_mask, dense.attention_mask[view.owner])
    assert (view.tokens, view.canvases, view.step) == (len(dense.tokens()), len(view.owner), 3)
    assert view.rows.dtype == torch.int32 and view.weight.dtype == torch.float32


def test_numbers_stand_for_every_token():
    dense = Dense(1)
    view = dense.view(weight=0.25, kl_weight=None, old_logp=None)
    assert view is not None and view.old_logp is None
    assert view.weight.tolist() == view.kl_weight.tolist() == [0.25] * view.tokens


@pytest.mark.parametrize("seed", SEEDS)
def test_a_selected_part_is_the_view_of_those_sequences(seed):
    dense = Dense(seed)
    view = dense.view()
    if view is None:
        return
    part = view.select(dense.keep)
    kept = dense.tokens(dense.keep)
    if part is None:
        assert kept == []
        return
    assert described(part, dense, scored_alone(part, dense)) == kept
    assert part.owner.tolist() == [b for b in view.owner.tolist() if dense.keep[b]]
    assert torch.equal(part.canvas(), dense.canvas[part.owner])
    assert torch.equal(part.attention_mask, dense.attention_mask[part.owner])
    again = part.select(torch.ones(dense.batch, dtype=torch.bool))
    assert again is part
    rest = view.select(~dense.keep)
    assert part.tokens + (0 if rest is None else rest.tokens) == view.tokens


@pytest.mark.parametrize("seed", SEEDS)
def test_joined_views_are_scored_as_each_alone(seed):
    dense = [Dense(100 * seed + i, length=5) for i in range(4)]
    views = [(d, view) for d in dense if (view := d.view()) is not None]
    if not views:
        return
    one = dense[0]  # one model for all
    canvas, mask, rows, targets = join([view for _, view in views])
    assert torch.equal(mask, torch.cat([view.attention_mask for _, view in views])) and rows.dtype == torch.int32
    values = token_values([view for _, view in views], one.logp(canvas, rows, targets))
    for (_, view), new in zip(views, values, strict=True):
        assert torch.equal(new, one.logp(view.canvas(), view.rows, view.targets))


def mixed_view(dense: Dense, seed: int) -> View:
    """Two canvases a sequence, and tokens that are weighted sums of rows of either, in any order."""
    generator = torch.Generator().manual_seed(seed)
    both = torch.stack([dense.canvas, (dense.canvas + 7) % 50], 1).flatten(0, 1)
    owner = torch.arange(dense.batch).repeat_interleave(2)
    sequence = torch.arange(dense.batch).repeat_interleave(2)  # two tokens each
    picks = torch.randint(2 * dense.length, (len(sequence), 3), generator=generator)
    rows = (2 * sequence[:, None] * dense.length + picks).flatten()
    order = torch.randperm(len(rows), generator=generator)
    tokens = torch.arange(len(sequence)).repeat_interleave(3)
    coefficient = torch.randn(len(rows), generator=generator)
    advantage = torch.randn(len(sequence), generator=generator)
    return View(
        canvas=lambda: both,
        attention_mask=torch.ones_like(both, dtype=torch.bool),
        rows=rows[order].to(torch.int32),
        targets=torch.randint(50, (len(rows),), generator=generator),
        owner=owner,
        sequence=sequence,
        weight=advantage + 1,
        kl_weight=advantage + 2,
        advantage=advantage,
        step=0,
        importance=advantage + 3,
        mix=Mix(tokens[order], coefficient),
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_mixed_tokens_are_weighted_sums_of_their_rows(seed):
    dense = Dense(seed, length=5)
    view = mixed_view(dense, seed)
    assert view.mix is not None
    of_rows = scored_alone(view, dense).double()
    expected = [
        sum(float(c * v) for t, c, v in zip(view.mix.token, view.mix.coefficient, of_rows, strict=True) if t == n)
        for n in range(view.tokens)
    ]
    plain = Dense(seed + 1000, length=5)
    other = plain.view()
    views = [view] if other is None else [other, view]
    canvas, _, rows, targets = join(views)
    values = token_values(views, dense.logp(canvas, rows, targets).double())
    torch.testing.assert_close(values[-1], torch.tensor(expected, dtype=torch.float64))
    part = view.select(dense.keep)
    chosen = dense.keep[view.sequence]
    if part is None:
        assert not chosen.any()
        return
    assert part.mix is not None
    selected = token_values([part], scored_alone(part, dense).double())[0]
    torch.testing.assert_close(selected, values[-1][chosen], rtol=0, atol=1e-12)
    for name in ("sequence", "weight", "kl_weight", "advantage", "importance"):
        assert torch.equal(getattr(part, name), getattr(view, name)[chosen])


@pytest.mark.parametrize("seed", SEEDS)
def test_what_views_learned_comes_back_from_tensors(seed):
    dense = [Dense(100 * seed + i) for i in range(3)]
    bare = [view for d in dense if (view := d.view(old_logp=None)) is not None]
    learned = [
        view.with_(
            old_logp=torch.randn(view.tokens),
            ref_logp=torch.randn(view.tokens) if number % 2 else None,
            importance=torch.rand(view.tokens)[:, None].expand(-1, 2)[:, 0],  # not contiguous
        )
        for number, view in enumerate(bare)
    ]
    saved = to_tensors(learned, "a.0") | to_tensors(learned[:1], "a.00")
    assert all(tensor.is_contiguous() for tensor in saved.values())
    for mine, theirs in zip(from_tensors(bare, saved, "a.0"), learned, strict=True):
        for name in ("old_logp", "ref_logp", "importance"):
            got, wanted = getattr(mine, name), getattr(theirs, name)
            assert (got is None and wanted is None) or torch.equal(got, wanted)
        assert mine.canvas is theirs.canvas
