"""A padded sequence gives what it gives alone: left, right, with holes, for every family and attention backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from mdlm_fast.models import MaskedDiffusionModel, load_model, wrap
from mdlm_fast.models.padding import PaddingReader, read_padding

V = 53
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": V,
    "initializer_range": 0.2,
}
CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, num_key_value_heads=2, is_causal=False)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES, num_key_value_heads=4, is_causal=False)),
    "bert": (BertForMaskedLM, BertConfig(**SIZES, max_position_embeddings=40)),
    "roberta": (RobertaForMaskedLM, RobertaConfig(**SIZES, max_position_embeddings=40)),
    "distilbert": (
        DistilBertForMaskedLM,
        DistilBertConfig(vocab_size=V, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=40),
    ),
    "albert": (AlbertForMaskedLM, AlbertConfig(**SIZES, embedding_size=16, max_position_embeddings=40)),
}
MASK = torch.tensor(
    [
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    ]
)


def make(family: str, backend: str = "sdpa", **options: Any) -> MaskedDiffusionModel:
    torch.manual_seed(5)
    model_class, config = CLASSES[family]
    model = model_class._from_config(config, attn_implementation=backend).eval()
    return wrap(model, mask_id=3, **options)


def alone(model: MaskedDiffusionModel, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """Logits of each sequence run by itself, pads cut out."""
    return [model.logits(row[keep.bool()][None])[0] for row, keep in zip(ids, mask, strict=True)]


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("family", CLASSES)
def test_padded_equals_unpadded(family, backend, shift):
    model = make(family, backend, shift=shift)
    ids = torch.randint(0, V, MASK.shape)
    with torch.no_grad():
        full = model.logits(ids, attention_mask=MASK)
        want = alone(model, ids, MASK)
        for b, expected in enumerate(want):
            torch.testing.assert_close(full[b][MASK[b].bool()], expected, rtol=1e-5, atol=1e-5)
        rows = torch.tensor([49, 13, 31, 36, 38, 20, -1, 25, 0], dtype=torch.int32)
        places = {int(r): int(MASK[r // 10, : r % 10].sum()) for r in rows if r >= 0}
        for _ in range(2):
            got = model.row_logits(ids, rows, attention_mask=MASK)
            for i, r in enumerate(rows.tolist()):
                if r >= 0:
                    torch.testing.assert_close(got[i], want[r // 10][places[r]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_what_stands_on_pads_does_not_matter(family):
    model = make(family)
    ids = torch.randint(0, V, MASK.shape)
    other = torch.where(MASK.bool(), ids, torch.randint(0, V, MASK.shape))
    a, b = model.logits(ids, attention_mask=MASK), model.logits(other, attention_mask=MASK.bool())
    torch.testing.assert_close(a[MASK.bool()], b[MASK.bool()], rtol=0, atol=0)


def test_trap_l4_a_draw_does_not_depend_on_padding_or_batch():
    model = make("llama", shift=True)
    ids = torch.randint(0, V, MASK.shape)
    options = {"temperature": 1.5, "step": 4}
    seeds = torch.arange(5) * 1000003 + 17
    rows = torch.tensor([13, 15, 19, 20, 25, 49], dtype=torch.int32)
    for _ in range(2):
        got = model.score_rows(ids, rows, attention_mask=MASK, seeds=seeds, **options)
        for i, r in enumerate(rows.tolist()):
            b = r // 10
            own = torch.tensor([int(MASK[b, : r % 10].sum())], dtype=torch.int32)
            single = model.score_rows(ids[b][MASK[b].bool()][None], own, seeds=seeds[b : b + 1], **options)
            assert got.token is not None and single.token is not None
            assert got.token[i] == single.token[0]


@pytest.mark.parametrize("shift", [False, True])
def test_guidance_in_a_padded_batch(shift):
    model = make("llama", shift=shift)
    ids = torch.randint(0, V, MASK.shape)
    both, mask = torch.cat([ids, torch.where(MASK.bool(), 3, ids)]), MASK.repeat(2, 1)
    rows = torch.tensor([13, -1, 25, 36], dtype=torch.int32)
    other = torch.where(rows >= 0, rows + 50, rows)
    z = model.logits(both, attention_mask=mask).flatten(0, 1).double()
    want = 3.0 * z[rows.clamp(min=0)] - 2.0 * z[other.clamp(min=0)]
    for _ in range(2):
        got = model.score_rows(both, rows, attention_mask=mask, guidance_rows=other, guidance_scale=2.0)
        assert got.token is not None and got.logp is not None
        best = want.log_softmax(-1).max(-1)
        assert got.token[rows >= 0].tolist() == best.indices[rows >= 0].tolist()
        torch.testing.assert_close(got.logp[rows >= 0].double(), best.values[rows >= 0], rtol=0, atol=1e-4)


def test_nothing_padded_means_no_mask_reaches_the_model():
    model = make("llama")
    seen: list[dict[str, Any]] = []
    model.model.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs), with_kwargs=True)
    ids = torch.randint(0, V, (2, 6))
    model.logits(ids, attention_mask=torch.ones_like(ids))
    model.logits(ids)
    assert [sorted(kwargs) for kwargs in seen] == [["input_ids", "use_cache"]] * 2


def test_loaded_llada_and_dream_are_padding_invariant(llada, dream, tmp_path):
    for family, width in ((llada, 96), (dream, 80)):
        folder = family.write(tmp_path / str(width), *family.make(seed=2))
        model = load_model(folder, device="cpu", dtype="float32")
        ids = torch.randint(0, width, MASK.shape)
        full = model.logits(ids, attention_mask=MASK)
        for b, expected in enumerate(alone(model, ids, MASK)):
            torch.testing.assert_close(full[b][MASK[b].bool()], expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_block_attention_sees_its_own_block_and_all_before(backend):
    model = make("llama", backend, attention="block", block_size=3)
    assert model.attention == "block"
    ids = torch.randint(0, V, (1, 10))
    before = model.logits(ids)
    for changed in range(10):
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % V
        same = (model.logits(other) - before)[0].abs().amax(-1) < 1e-7
        assert same.tolist() == [place // 3 < changed // 3 for place in range(10)]
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(12) >= 2).long()[None]
    torch.testing.assert_close(model.logits(padded, attention_mask=mask)[:, 2:], before, rtol=1e-5, atol=1e-5)


def test_full_attention_can_be_asked_of_a_causal_config():
    torch.manual_seed(5)
    config = LlamaConfig(**SIZES, num_key_value_heads=2)
    causal = LlamaForCausalLM(config).eval()
    with pytest.warns(RuntimeWarning, match="attends causally"):
        assert wrap(causal, mask_id=3).attention == "causal"
    full = wrap(causal, mask_id=3, attention="full")
    same = make("llama")
    same.model.load_state_dict(causal.state_dict())
    ids = torch.randint(0, V, (2, 8))
    torch.testing.assert_close(full.logits(ids), same.logits(ids))
    rows = torch.tensor([0, 9], dtype=torch.int32)
    for _ in range(2):
        torch.testing.assert_close(full.row_logits(ids, rows), same.row_logits(ids, rows))
    assert getattr(causal.config, "is_causal", None) is None


def test_padding_is_read_again_when_the_mask_changes():
    reader = PaddingReader()
    mask = MASK.clone()
    first = reader(mask)
    assert first is not None and reader(mask) is first
    mask[1] = 1
    second = reader(mask)
    assert second is not None and second.real[1].all()
    assert reader(torch.ones(2, 3)) is None and reader(None) is None
    with torch.inference_mode():
        assert reader(torch.ones(2, 3)) is None


def test_left_neighbours_and_positions_skip_pads():
    padding = read_padding(MASK)
    assert padding is not None
    assert padding.position_ids[3].tolist() == [0, 0, 1, 2, 2, 2, 3, 4, 5, 5]
    left = padding.left.view(5, 10) - torch.arange(5)[:, None] * 10
    assert left[0].tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert left[1, 3:].tolist() == [3, 3, 4, 5, 6, 7, 8]
    assert left[3, 6:9].tolist() == [3, 6, 7]


def test_learned_positions_that_cannot_be_given_refuse_left_padding():
    class Narrow(BertForMaskedLM):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask)

    torch.manual_seed(5)
    model = wrap(Narrow(CLASSES["bert"][1]).eval(), mask_id=3)
    ids = torch.randint(0, V, (2, 10))
    right = torch.stack([MASK[0], MASK[2]])
    full = model.logits(ids, attention_mask=right)
    for b, want in enumerate(alone(model, ids, right)):
        torch.testing.assert_close(full[b][right[b].bool()], want, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="pad on the right"):
        model.logits(ids, attention_mask=MASK[:2])


def test_wrong_inputs_are_refused():
    model = make("bert")
    ids = torch.randint(0, V, (2, 6))
    with pytest.raises(ValueError, match="no real token in row 1"):
        model.logits(ids, attention_mask=torch.tensor([[1] * 6, [0] * 6]))
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 5\), input_ids \(2, 6\)"):
        model.logits(ids, attention_mask=torch.ones(2, 5))
    with pytest.raises(ValueError, match="input_ids must be int64 of shape"):
        model.logits(ids[0])
    with pytest.raises(ValueError, match="input_ids must be int64 of shape"):
        model.logits(ids.float())
    with pytest.raises(ValueError, match="contains 53; the model knows ids 0 to 52"):
        model.logits(torch.where(ids == ids[0, 0], V, ids))
    with pytest.raises(ValueError, match="41 positions but the model was built for 40"):
        model.logits(torch.zeros(1, 41, dtype=torch.long))
    with pytest.raises(ValueError, match="38"):
        make("roberta").logits(torch.zeros(1, 40, dtype=torch.long))
    for run in (make("llama").score_rows, make("llama").row_logits):
        for rows in ([3, 12], [-2, 3]):
            with pytest.raises(
                ValueError, match=r"rows contains (12|-2); input_ids of shape \(2, 6\) has rows 0 to 11"
            ):
                run(ids, torch.tensor(rows))
        with pytest.raises(ValueError, match="rows must be int32"):
            run(ids, torch.tensor([1.5]))


def test_no_rows_at_all():
    for family in ("llama", "bert"):
        model = make(family)
        ids, none = torch.randint(0, V, (2, 6)), torch.empty(0, dtype=torch.int32)
        for _ in range(2):
            token = model.score_rows(ids, none).token
            assert token is not None and token.shape == (0,)
            assert model.row_logits(ids, none).shape == (0, V)
