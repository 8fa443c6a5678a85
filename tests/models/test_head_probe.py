"""RowHead's probe: models and heads that give other logits than their head alone are found out."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from head_models import V, check, expected, llama, some_ids, some_rows
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from mdlm_fast.models import RowHead, wrap


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(11)


class Changed(nn.Module):
    """A model that does something to its logits after the head."""

    def __init__(self, change: str) -> None:
        super().__init__()
        self.inner = llama()
        self.change = change

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.lm_head

    def forward(self, ids: Tensor) -> Tensor:
        if self.change == "no head call":
            return torch.nn.functional.linear(self.inner.model(ids).last_hidden_state, self.inner.lm_head.weight)
        z = self.inner(ids).logits
        if self.change == "scale":
            return z / 32**0.5
        if self.change == "softcap":
            return 30 * torch.tanh(z / 30)
        if self.change == "softcap in place":
            return z.div_(30).tanh_().mul_(30)
        if self.change == "shift":
            return torch.cat([z[:, :1], z[:, :-1]], dim=1)
        if self.change == "narrow":
            return z[..., :50]
        return self.inner.lm_head(self.inner.model(ids).last_hidden_state) + z


CHANGES = ["scale", "softcap", "softcap in place", "shift", "narrow", "no head call", "two head calls"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_changes_its_logits_is_scored_from_full_logits_with_one_warning(change):
    model = Changed(change).eval()
    ids = some_ids()
    with torch.no_grad():
        want = expected(model(ids), some_rows())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            check(RowHead.of(model).score(lambda: model(ids), some_rows(), length=10), want)
    assert len(caught) == 1 and "full logits" in str(caught[0].message)
    assert RowHead.of(model).uses_full_logits


def test_trap_l1_a_shift_inside_the_model_shows_even_if_only_first_positions_are_scored():
    model = Changed("shift").eval()
    ids, rows = some_ids(), torch.tensor([0], dtype=torch.int32)
    with pytest.warns(RuntimeWarning, match="shift"):
        RowHead.of(model).score(lambda: model(ids), rows, length=10)


def test_a_canvas_of_masks_alone_cannot_hide_a_shift():
    """Under RoPE every row of such a canvas is the same, so the probe waits for a telling one."""
    model = Changed("shift").eval()
    head, masks, ids = RowHead.of(model), torch.full((2, 10), 7), some_ids(2)
    rows = torch.tensor([4, 13], dtype=torch.int32)
    want = [model(x).flatten(0, 1)[[4, 13]].argmax(-1).tolist() for x in (masks, masks, ids)]
    with pytest.warns(RuntimeWarning, match="shift"):
        got = [head.score(lambda x=x: model(x), rows, length=10).token.tolist() for x in (masks, masks, ids)]
    assert got == want


def test_plain_callable_and_model_without_head_use_full_logits():
    model = llama()
    ids = some_ids()
    full = model(ids).logits

    class Bare(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            return model(x).logits, "more"

    for thing in (lambda x: model(x), Bare()):
        with pytest.warns(RuntimeWarning, match="full logits"):
            got = RowHead.of(thing).score(lambda thing=thing: thing(ids), some_rows(), length=10)
        check(got, expected(full, some_rows()))


def test_embedding_as_output_head_is_refused_by_wrap_and_scored_in_full():
    """A weight-tied LLaDA names its input embedding as its output head."""
    model = llama(tie_word_embeddings=True)
    model.get_output_embeddings = model.get_input_embeddings
    with pytest.raises(ValueError, match="returns its input embedding"):
        wrap(model, mask_id=3)
    ids = some_ids()
    with pytest.warns(RuntimeWarning, match="full logits"):
        check(
            RowHead.of(model).score(lambda: model(ids), some_rows(), length=10),
            expected(model(ids).logits, some_rows()),
        )


def test_somebody_elses_patch_is_kept_and_used():
    model = llama()
    head, ids = RowHead.of(model), some_ids()
    plain = model.lm_head.forward
    model.lm_head.forward = lambda x: 2 * plain(x)  # as accelerate's offloading does
    mine = model.lm_head.forward
    for _ in range(3):
        check(head.score(lambda: model(ids), some_rows(), length=10), expected(model(ids).logits, some_rows()))
    assert model.lm_head.forward is mine and not head.uses_full_logits


def test_a_native_model_that_was_touched_is_probed():
    ids = some_ids()

    def halved(out: Any) -> Any:
        out.logits = out.logits / 2
        return out

    class Softer(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return halved(super().forward(*args, **kwargs))

    hooked, patched, subclass = llama(), llama(), Softer(llama().config).eval()
    hooked.register_forward_hook(lambda module, args, out: halved(out))
    plain = patched.forward
    patched.forward = lambda *args, **kwargs: halved(plain(*args, **kwargs))
    for model in (hooked, patched, subclass):
        want = expected(model(ids).logits, some_rows())
        with pytest.warns(RuntimeWarning, match="changes its logits after the output head"):
            check(RowHead.of(model).score(lambda model=model: model(ids), some_rows(), length=10), want)
        check(RowHead.of(model).score(lambda model=model: model(ids), some_rows(), length=10), want)


def test_a_replaced_head_is_probed_again():
    model = llama()
    head, ids = RowHead.of(model), some_ids()
    for _ in range(2):
        head.score(lambda: model(ids), some_rows(), length=10)
    model.lm_head = nn.Sequential(nn.Linear(32, V), nn.Tanh())
    for _ in range(2):
        check(head.score(lambda: model(ids), some_rows(), length=10), expected(model(ids).logits, some_rows()))


def test_a_head_that_mixes_positions_is_found_out():
    class Mixing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.cumsum(dim=1))

    model = llama()
    model.lm_head = Mixing(32, V)
    ids = some_ids()
    with pytest.warns(RuntimeWarning, match="rows taken alone"):
        check(
            RowHead.of(model).score(lambda: model(ids), some_rows(), length=10),
            expected(model(ids).logits, some_rows()),
        )


@pytest.mark.slow
def test_compiled_model_is_scored_from_full_logits():
    model = llama()
    compiled = torch.compile(model, backend="eager")
    ids = some_ids()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            got = RowHead.of(compiled).score(lambda: compiled(ids), some_rows(), length=10)
            check(got, expected(model(ids).logits, some_rows()))
