"""The record: replay, packing, saving and selecting."""

import pytest
import torch
from hash_scorer import MASK, VOCAB, HashScorer
from safetensors.torch import load_file, save_file

import mdlm_fast as mf
from mdlm_fast.trajectory import pack_bits


def decode(**config) -> mf.Trajectory:
    ids = torch.randint(2, VOCAB - 1, (3, 5), generator=torch.Generator().manual_seed(2))
    ids[0, 1] = MASK
    return mf.generate(HashScorer(), ids, gen_length=9, steps=4, **config).trajectory


@pytest.mark.parametrize("config", [{}, {"remasking": mf.RCR(), "record": "full"}, {"vocab_limit": 20}])
def test_saved_and_loaded(config: dict, tmp_path) -> None:
    record = decode(**config)
    save_file(record.to_dict(), tmp_path / "t.safetensors")
    again = mf.Trajectory.from_dict(load_file(tmp_path / "t.safetensors"))
    assert (again.mask_id, again.forbidden_ids, again.vocab_limit) == (MASK, (MASK,), config.get("vocab_limit"))
    for one, two in zip(record, again, strict=True):
        assert torch.equal(one, two)
    assert set(again.to_dict()) == set(record.to_dict())


@pytest.mark.parametrize("config", [{}, {"remasking": mf.RCR()}])
def test_committed_tokens_are_the_difference_between_states(config: dict) -> None:
    record = decode(**config)
    assert record.states(0)[record.eligible].eq(MASK).all()
    for step in range(record.steps):
        before, after = record.states(step), record.states(step + 1)
        written = record.committed(step)
        assert written[(before == MASK) & (after != MASK)].all()
        if not config:
            assert torch.equal(written, before != after)
    assert torch.equal(record.states(record.steps), record.sequences)
    assert (record.commit_step[~record.eligible] == -1).all()


def test_selected_rows() -> None:
    record = decode(remasking=mf.RCR(), record="full")
    part = record.select([2, 0])
    for one, two in zip(record, part, strict=True):
        assert torch.equal(one[[2, 0]], two)
    assert torch.equal(part.predictions.token, record.predictions.token[[2, 0]])
    assert part.to("cpu").sequences.shape[0] == 2


def test_sizes_of_the_event_record() -> None:
    record = decode(remasking=mf.RCR())
    assert record.events.token.shape == (3, 4, 13) and record.events.masked.shape == (3, 4, 2)
    assert record.events.token.dtype == torch.int32 and record.commit_step.dtype == torch.int16
    assert decode().events is None


def test_pack_bits() -> None:
    bits = torch.rand(3, 4, 21, generator=torch.Generator().manual_seed(0)) < 0.5
    packed = pack_bits(bits)
    assert packed.shape == (3, 4, 3) and packed.dtype == torch.uint8
    for column in range(21):
        assert torch.equal((packed[..., column // 8] >> (column % 8)) & 1, bits[..., column].to(torch.uint8))


def test_bad_input() -> None:
    record = decode()
    for step in (-1, record.steps + 1):
        with pytest.raises(IndexError, match=f"step={step} is outside 0..{record.steps}"):
            record.states(step)
    tensors = record.to_dict()
    del tensors["commit_logp"]
    with pytest.raises(ValueError, match="has no 'commit_logp'"):
        mf.Trajectory.from_dict(tensors)
