"""`generate` as a whole: batches, padding, waiting rows, real models, and bad input."""

import pytest
import torch
from decode_cases import CONFIGS, EMPTY, random_prompts
from hash_scorer import MASK, VOCAB, HashScorer, TableScorer
from transformers import LlamaConfig, LlamaForCausalLM

import mdlm_fast as mf


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    config.is_causal = False
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_trap_l4_batch_order_and_waiting_rows_change_nothing(name: str) -> None:
    config = CONFIGS[name]
    ids = random_prompts(7, 5, 1)
    whole = mf.generate(HashScorer(), ids, config=config)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(2))
    shuffled = mf.generate(HashScorer(), ids[order], config=config, row_ids=order)
    assert torch.equal(shuffled.sequences, whole.sequences[order])
    scorer = HashScorer()
    waiting = mf.generate(scorer, ids, config=config, max_batch=3)
    assert max(scorer.batches) <= 3 * (2 if config.cfg_scale else 1)
    for field in ("sequences", "commit_step", "commit_logp", "commit_confidence", "row_steps"):
        assert torch.equal(getattr(waiting.trajectory, field), getattr(whole.trajectory, field)), field
    for step in range(whole.trajectory.steps + 1):
        assert torch.equal(waiting.trajectory.states(step), whole.trajectory.states(step))
    assert waiting.stats.row_forwards == whole.stats.row_forwards
    for row in (0, 4):
        alone = mf.generate(HashScorer(), ids[row : row + 1], config=config, row_ids=[row])
        assert torch.equal(alone.sequences[0], whole.sequences[row])


def test_waiting_rows_take_freed_places_at_once() -> None:
    ids = random_prompts(9, 4, 5)
    config = mf.DecodeConfig(gen_length=10, select="threshold", threshold=0.35)
    scorer = HashScorer()
    out = mf.generate(scorer, ids, config=config, max_batch=3)
    assert len(set(out.stats.row_forwards)) > 1
    assert sum(scorer.batches) == sum(out.stats.row_forwards)
    assert scorer.batches.count(3) > len(scorer.batches) * 0.6
    assert out.stats.committed == 90 and out.stats.tokens_per_forward == 90 / sum(out.stats.row_forwards)
    assert dict(out.stats)["forwards"] == out.stats["forwards"] == len(scorer.batches)


def test_only_candidates_are_scored() -> None:
    scorer = HashScorer()
    mf.generate(scorer, random_prompts(2, 6, 3), gen_length=8, block_length=4, steps=4)
    assert scorer.scored == [8, 4, 8, 4]
    for scope, want in (("masked", [16, 12, 8, 4]), ("generated", [16] * 4)):
        wide = HashScorer()
        out = mf.generate(wide, random_prompts(2, 6, 3), gen_length=8, block_length=4, steps=4, score_scope=scope)
        assert wide.scored == want
        plain = mf.generate(HashScorer(), random_prompts(2, 6, 3), gen_length=8, block_length=4, steps=4)
        assert torch.equal(out.trajectory.commit_step, plain.trajectory.commit_step)


def test_samples_of_a_prompt_share_the_first_forward() -> None:
    ids = random_prompts(2, 5, 7)
    for values in ({"temperature": 0.8}, {"temperature": 0.8, "cfg_scale": 0.5}, {}):
        scorer = HashScorer()
        config = mf.DecodeConfig(gen_length=6, steps=3, num_return_sequences=4, seed=5, **values)
        out = mf.generate(scorer, ids, config=config)
        times = 2 if "cfg_scale" in values else 1
        assert scorer.batches == [2 * times, 8 * times, 8 * times]
        assert out.sequences.shape == (8, 11)
        repeated = mf.generate(HashScorer(), ids.repeat_interleave(4, 0), config=config, num_return_sequences=1)
        assert torch.equal(out.sequences, repeated.sequences)
        alone = mf.generate(HashScorer(), ids[1:], config=config, num_return_sequences=1, row_ids=[6])
        assert torch.equal(alone.sequences[0], out.sequences[6])
        if values:
            assert len(set(map(tuple, out.sequences[:4].tolist()))) > 1


def test_trap_l3_per_prompt_values_follow_their_own_samples() -> None:
    ids = random_prompts(3, 4, 9)
    config = mf.DecodeConfig(gen_length=8, steps=4, temperature=(0.0, 3.0, 0.0), num_return_sequences=3, seed=1)
    out = mf.generate(HashScorer(), ids, config=config).sequences.view(3, 3, -1)
    assert (out[0] == out[0, 0]).all() and (out[2] == out[2, 0]).all()
    assert (out[1] != out[1, 0]).any()


def test_seeds() -> None:
    ids = random_prompts(2, 4, 9)
    config = mf.DecodeConfig(gen_length=8, steps=8, temperature=1.5)
    one = mf.generate(HashScorer(), ids, config=config, seeds=[7, 8])
    two = mf.generate(HashScorer(), ids.flip(0), config=config, seeds=torch.tensor([8, 7]))
    assert torch.equal(one.sequences, two.sequences.flip(0))
    torch.manual_seed(3)
    first = mf.generate(HashScorer(), ids, config=config).sequences
    torch.manual_seed(3)
    assert torch.equal(first, mf.generate(HashScorer(), ids, config=config).sequences)
    assert not torch.equal(first, mf.generate(HashScorer(), ids, config=config).sequences)


def test_trap_n8_guidance_masks_every_token_given_at_the_start() -> None:
    scorer = HashScorer()
    ids = torch.tensor([[0, 4, MASK, 6], [3, MASK, 5, 6]])
    real = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    out = mf.generate(scorer, ids, real, gen_length=3, steps=2, cfg_scale=1.0)
    for canvas in scorer.canvases:
        with_prompt, without = canvas.chunk(2)
        given = torch.cat([(ids != MASK) & real.bool(), torch.zeros(2, 3, dtype=torch.bool)], 1)
        assert (without[given] == MASK).all()
        assert torch.equal(without[~given], with_prompt[~given])
    assert out.sequences[0, :2].tolist() == [0, 4]


def reference_decode(model, ids: list[int], length: int, mask: int, shift: bool) -> list[int]:
    """One token a step, highest probability first, from full logits of one unpadded row."""
    canvas = torch.tensor([[*ids, *[mask] * length]])
    for _ in range(length):
        logits = model(input_ids=canvas).logits[0].double()
        if shift:
            logits = torch.cat([logits[:1], logits[:-1]])
        logits[:, mask] = -torch.inf
        p, token = logits.softmax(-1).max(-1)
        p[canvas[0] != mask] = -1
        canvas[0, p.argmax()] = token[p.argmax()]
    return canvas[0].tolist()


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_trap_l1_llama_with_padding_and_shift(llama: LlamaForCausalLM, shift: bool, side: str) -> None:
    mask = 63
    model = mf.wrap(llama, mask_id=mask, eos_ids=(1,), shift=shift)
    rows = [[5, 9, 12, 40, 7], [8], [33, 2, 50]]
    ids, real = torch.zeros(3, 5, dtype=torch.int64), torch.zeros(3, 5)
    for b, row in enumerate(rows):
        part = slice(5 - len(row), 5) if side == "left" else slice(0, len(row))
        ids[b, part], real[b, part] = torch.tensor(row), 1
    out = mf.generate(model, ids, real, gen_length=8, steps=8)
    for b, row in enumerate(rows):
        want = reference_decode(llama, row, 8, mask, shift)
        part = slice(5 - len(row), None) if side == "left" else slice(0, len(row) + 8)
        assert out.sequences[b, part].tolist() == want
        assert out.sequences[b].tolist().count(0) == 5 - len(row) + want.count(0)


@pytest.mark.parametrize("shift", [False, True])
def test_trap_l4_sampling_does_not_depend_on_the_padding(llama: LlamaForCausalLM, shift: bool) -> None:
    model = mf.wrap(llama, mask_id=63, eos_ids=(1,), shift=shift)
    config = mf.DecodeConfig(gen_length=8, steps=4, temperature=0.8, eoser=mf.EOSER(), seed=2)
    alone = mf.generate(model, torch.tensor([[8, 63, 30]]), config=config, row_ids=[1]).sequences[0].tolist()
    left = torch.tensor([[5, 9, 12, 40, 7], [0, 0, 8, 63, 30]])
    right = torch.tensor([[5, 9, 12, 40, 7], [8, 63, 30, 0, 0]])
    assert mf.generate(model, left, (left > 0).int(), config).sequences[1, 2:].tolist() == alone
    assert mf.generate(model, right, (right > 0).int(), config).sequences[1, :11].tolist() == alone


@torch.no_grad()
def test_plain_models_are_wrapped(llama: LlamaForCausalLM) -> None:
    llama.config.mask_token_id = 63
    out = mf.generate(llama, torch.tensor([[3, 4]]), gen_length=4, steps=2)
    del llama.config.mask_token_id
    assert out.sequences.shape == (1, 6) and out.text is None


def test_trap_l7_int32_ids() -> None:
    ids = random_prompts(2, 3, 2)
    wide, narrow = (mf.generate(HashScorer(), x, gen_length=4, steps=2).sequences for x in (ids, ids.int()))
    assert narrow.dtype == torch.int64 and torch.equal(wide, narrow)


def test_trap_m3_nothing_outside_the_masks_is_written() -> None:
    ids = random_prompts(4, 6, 12)
    real = torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1], [0] * 6])
    out = mf.generate(HashScorer(), ids, real, gen_length=7, block_length=3, steps=6, remasking=mf.RCR(scope="canvas"))
    assert torch.equal(out.sequences[0, :6], ids[0])
    assert torch.equal(out.sequences[1, :2], ids[1, :2]) and torch.equal(out.sequences[1, 9:], ids[1, 2:])
    assert torch.equal(out.sequences[2, :6], ids[2]) and torch.equal(out.sequences[3, :6], ids[3])
    assert out.trajectory.eligible.sum(1).tolist() == [7] * 4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_ids": torch.zeros(2, 3)}, TypeError, "input_ids must be int64 or int32, got torch.float32"),
        ({"input_ids": torch.zeros(3, dtype=torch.int64)}, ValueError, r"shape \[B, P\], got \(3,\)"),
        ({"input_ids": [[1, 2]]}, TypeError, "input_ids must be a tensor, got list"),
        ({"input_ids": torch.tensor([[1, VOCAB]])}, ValueError, f"input_ids holds {VOCAB}"),
        ({"input_ids": torch.tensor([[1, -3]])}, ValueError, "input_ids holds -3"),
        ({"attention_mask": torch.ones(1, 2)}, ValueError, r"attention_mask has shape \(1, 2\)"),
        ({"attention_mask": torch.tensor([[1, 0, 1], [1, 1, 1]])}, ValueError, "row 0 has pads between real tokens"),
        ({"attention_mask": torch.tensor([[1, 1, 1], [2, 1, 1]])}, ValueError, "must hold 0 and 1 only"),
        ({"attention_mask": [1]}, TypeError, "attention_mask must be a tensor"),
        ({"steps": 3, "block_length": 2}, ValueError, "steps=3 must be a multiple of the number of blocks, 2"),
        ({"config": "llada"}, TypeError, "config must be a DecodeConfig, got 'llada'"),
        ({"steeps": 3}, TypeError, "DecodeConfig has no field 'steeps'"),
        ({"temperature": (0.1, 0.2, 0.3)}, ValueError, "temperature has 3 values for 2 prompts"),
        ({"seeds": (1, 2, 3)}, ValueError, "seeds has 3 values for 2 prompts"),
        ({"row_ids": (1,)}, ValueError, "row_ids has 1 values for 2 prompts"),
        ({"forbid_ids": (99,)}, ValueError, "forbid_ids holds 99"),
        ({"stop_strings": ("x",)}, ValueError, "needs a tokenizer"),
        ({"logits_hook": lambda s, r, z: z[:, :2]}, ValueError, r"logits_hook returned \(8, 2\)"),
        ({"token_hook": lambda s: s.canvas[:1]}, ValueError, "token_hook returned"),
        ({"token_hook": lambda s: s.canvas + VOCAB}, ValueError, "token_hook returned holds .*below the vocabulary"),
        ({"forbid_ids": range(VOCAB)}, ValueError, "candidate"),
    ],
)
def test_bad_input(arguments: dict, error: type[Exception], message: str) -> None:
    call = {"input_ids": random_prompts(2, 3, 1), "gen_length": 4, **arguments}
    with pytest.raises(error, match=message):
        mf.generate(HashScorer(), **call)


def test_models_without_ids_they_need() -> None:
    scorer = HashScorer()
    scorer.eos_ids = ()
    for values, message in (({"stop_at_eos": True}, "stop_at_eos needs"), ({"eoser": mf.EOSER()}, "eoser needs")):
        with pytest.raises(ValueError, match=message):
            mf.generate(scorer, EMPTY, gen_length=4, **values)
    scorer.mask_id = None
    with pytest.raises(ValueError, match="no mask_id"):
        mf.generate(scorer, EMPTY, gen_length=4)


def test_nan_logits_are_an_error() -> None:
    table = torch.zeros(4, VOCAB)
    table[2, 5] = torch.nan
    with pytest.raises(ValueError, match=r"logits 2 .*NaN"):
        mf.generate(TableScorer(table), EMPTY, gen_length=4, steps=2)
