"""Stopping early, hooks, streamers, the progress bar, and records that replay every state."""

import pytest
import torch
from decode_cases import CONFIGS, EMPTY, random_prompts
from hash_scorer import EOS, MASK, VOCAB, HashScorer, TableScorer, hash_logits, table_of
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, TextDiffusionStreamer

import mdlm_fast as mf
from mdlm_fast.row_state import StepState


class Letters:
    """A tokenizer of one letter a token."""

    pad_token_id = 0

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(97 + int(i)) for i in ids)


def test_trap_m4_an_end_token_behind_a_mask_does_not_stop_the_row() -> None:
    # Confidence order commits the end token at position 4 first; the row goes on until nothing before it is masked.
    scorer = TableScorer(table_of([0.5, 0.6, 0.7, 0.4, 0.9, 0.8, 0.3, 0.2], [2, 3, 4, 5, EOS, 6, 7, 8]))
    out = mf.generate(scorer, EMPTY, gen_length=8, steps=8, stop_at_eos=True)
    assert out.sequences[0].tolist() == [2, 3, 4, 5, EOS, EOS, EOS, EOS]
    assert out.trajectory.commit_step[0].tolist() == [4, 3, 2, 5, 0, 1, -1, -1]
    assert out.stats.forwards == 6 and out.stats.row_steps == [6]
    # The token committed behind the end keeps its value in the record, so that every state is replayed.
    assert out.trajectory.sequences[0].tolist() == [2, 3, 4, 5, EOS, 6, EOS, EOS]
    assert out.trajectory.states(6)[0].tolist() == [2, 3, 4, 5, EOS, 6, MASK, MASK]


def test_an_end_token_in_the_prompt_does_not_stop_the_row() -> None:
    out = mf.generate(HashScorer(), torch.tensor([[EOS, 4]]), gen_length=4, steps=4, stop_at_eos=True, forbid_ids=[EOS])
    assert out.stats.row_steps == [4]


def test_finished_rows_leave_the_batch() -> None:
    scorer = HashScorer()
    config = mf.DecodeConfig(gen_length=16, block_length=2, stop_at_eos=True, temperature=1.0, seed=2)
    out = mf.generate(scorer, random_prompts(12, 4, 3), config=config)
    assert scorer.batches == sorted(scorer.batches, reverse=True) and min(scorer.batches) < 12
    for row, record in zip(out.sequences[:, 4:], out.trajectory.commit_step[:, 4:], strict=True):
        end = (row == EOS).nonzero()
        if len(end):
            assert (row[int(end[0]) :] == EOS).all()
            assert (record[int(end[0]) + 2 :] == -1).all()


def test_stop_strings() -> None:
    scorer = TableScorer(table_of([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [2, 3, 4, 5, 6, 7]))
    scorer.tokenizer = Letters()
    out = mf.generate(scorer, EMPTY, gen_length=6, steps=6, stop_strings="de")
    assert out.sequences[0].tolist() == [2, 3, 4, EOS, EOS, EOS] and out.text == ["cde"]
    assert out.stats.forwards == 3 and out.trajectory.commit_step[0].tolist() == [0, 1, 2, -1, -1, -1]
    out = mf.generate(scorer, EMPTY, gen_length=6, steps=2, stop_strings=["zz", "d"])
    assert out.sequences[0].tolist() == [2, 3, EOS, EOS, EOS, EOS] and out.text == ["cd"]


def test_text_ends_before_the_end_token() -> None:
    scorer = TableScorer(table_of([0.9] * 4, [4, 5, EOS, 6]))
    scorer.tokenizer = Letters()
    assert mf.generate(scorer, torch.tensor([[7]]).expand(0, 1), gen_length=4).text == []
    assert mf.generate(scorer, EMPTY, gen_length=4).text == ["ef"]


def test_logits_hook_sees_and_changes_the_rows() -> None:
    seen = []

    def never_five(state: StepState, rows: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        seen.append((state.step.tolist(), rows.tolist(), state.rows))
        want = hash_logits(state.canvas).flatten(0, 1)[rows.long()]
        assert torch.equal(want, logits)
        logits = logits.clone()
        logits[:, 5:15] = -torch.inf
        return logits

    ids = random_prompts(2, 3, 4)
    hooked = mf.generate(HashScorer(), ids, gen_length=6, steps=3, logits_hook=never_five)
    banned = mf.generate(HashScorer(), ids, gen_length=6, steps=3, forbid_ids=range(5, 15))
    assert torch.equal(hooked.sequences, banned.sequences)
    assert [s[0] for s in seen] == [[0, 0], [1, 1], [2, 2]] and seen[0][2] == [0, 1]
    assert len(seen[0][1]) == 12 and len(seen[2][1]) == 4


def test_token_hook_writes_and_masks_again_and_is_replayed() -> None:
    states = []

    def hook(state: StepState):
        canvas = state.canvas.clone()
        if int(state.step[0]) == 0:
            canvas[:, 3:5] = 9
            canvas[:, 0] = 15  # the prompt is not the hook's to write
        if int(state.step[0]) == 2:
            canvas[:, 3] = MASK
        return canvas

    def before(state: StepState, rows: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        states.append(state.canvas.clone())
        return logits

    ids = random_prompts(2, 3, 4)
    out = mf.generate(HashScorer(), ids, gen_length=8, steps=4, token_hook=hook, logits_hook=before)
    assert torch.equal(out.sequences[:, :3], ids) and (out.sequences != MASK).all()
    assert (out.sequences[:, 4] == 9).all()
    assert (out.trajectory.commit_step[:, 3] == 3).all() and (out.trajectory.commit_step[:, 4] == 0).all()
    for step, state in enumerate(states):
        assert torch.equal(out.trajectory.states(step), state)


def test_token_hook_that_masks_again_under_a_threshold() -> None:
    states = []

    def hook(state: StepState):
        canvas = state.canvas.clone()
        if int(state.step[0]) < 9:
            canvas[:, 4] = MASK
        return canvas

    def before(state: StepState, rows: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        states.append(state.canvas.clone())
        return logits

    rule = {"select": "threshold", "threshold": 0.3}
    out = mf.generate(HashScorer(), random_prompts(1, 3, 4), gen_length=5, token_hook=hook, logits_hook=before, **rule)
    assert (out.sequences != MASK).all() and out.trajectory.steps == len(states) >= 10
    for step, state in enumerate(states):
        assert torch.equal(out.trajectory.states(step), state)


def test_token_hook_that_masks_an_earlier_block_again() -> None:
    def hook(state: StepState):
        canvas = state.canvas.clone()
        if int(state.step[0]) == 1:  # the last step of the first block
            canvas[:, :2] = MASK
        if int(state.step[0]) == 2:
            canvas[:, 8] = 11
        return canvas

    scorer = HashScorer()
    out = mf.generate(scorer, EMPTY, gen_length=9, block_length=3, steps=6, token_hook=hook)
    assert (out.sequences != MASK).all() and out.sequences[0, 8] == 11
    assert scorer.scored == [3, 1, 5, 3, 2]
    assert out.trajectory.commit_step[0, 2] in (0, 1) and (out.trajectory.commit_step[0, :2] >= 2).all()


def test_token_hook_that_never_lets_go_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdlm_fast.pace.MOST_STEPS", 20)
    rule = {"select": "threshold", "threshold": 0.3}
    with pytest.raises(ValueError, match="more than 20 steps: token_hook masks tokens"):
        mf.generate(
            HashScorer(), EMPTY, gen_length=5, token_hook=lambda state: torch.full_like(state.canvas, MASK), **rule
        )


@pytest.mark.parametrize("name", ["quota", "remasking", "threshold", "stop", "remasking stop"])
def test_every_state_is_replayed(name: str) -> None:
    states: dict[tuple[int, int], list[int]] = {}
    config = CONFIGS[name]

    def before(state: StepState, rows: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        for row, step, canvas in zip(state.rows, state.step.tolist(), state.canvas.tolist(), strict=True):
            states[row, step] = canvas
        return logits

    ids = random_prompts(5, 4, 6)
    ids[0, 2] = ids[3, 0] = MASK
    out = mf.generate(HashScorer(), ids, config=config, logits_hook=before, max_batch=2)
    assert len(states) >= 5 * 2
    for (row, step), canvas in states.items():
        assert out.trajectory.states(step)[row].tolist() == canvas
    final = out.trajectory.states(out.trajectory.steps)
    for row, made in enumerate(out.stats.row_steps):
        for step in range(made, out.trajectory.steps):
            assert torch.equal(out.trajectory.states(step)[row], final[row])
    if config.stop_at_eos:
        assert len(set(out.stats.row_steps)) > 1
    assert torch.equal(torch.where(final == MASK, EOS, final), out.trajectory.sequences)


def test_full_record_keeps_every_prediction() -> None:
    config = mf.DecodeConfig(
        gen_length=8, steps=4, block_length=4, record="full", score_scope="masked", remasking=mf.RCR(scope="canvas")
    )
    ids = random_prompts(2, 3, 8)
    ids[1, 1] = MASK
    out = mf.generate(HashScorer(), ids, config=config)
    record = out.trajectory
    for step in range(record.steps):
        state = record.states(step)
        best = hash_logits(state)[..., : VOCAB - 1].argmax(-1)
        for b in range(2):
            start = int(record.predictions.start[b])
            columns = record.predictions.token.shape[2]
            for column in range(columns):
                at = start + column
                if at >= state.shape[1]:
                    continue
                masked = bool(state[b, at] == MASK)
                token = int(record.predictions.token[b, step, column])
                assert token == (int(best[b, at]) if masked else -1)
                assert masked != bool(record.predictions.confidence[b, step, column].isnan())


def test_record_none_gives_the_same_tokens() -> None:
    ids = random_prompts(3, 4, 2)
    for config in CONFIGS.values():
        with_record = mf.generate(HashScorer(), ids, config=config)
        without = mf.generate(HashScorer(), ids, config=config, record="none")
        assert without.trajectory is None and torch.equal(with_record.sequences, without.sequences)


def test_streamer_object_gets_prompt_drafts_and_result() -> None:
    class Streamer:
        def __init__(self) -> None:
            self.calls = []

        def put(self, value: torch.Tensor) -> None:
            self.calls.append(("put", value.tolist()))

        def put_draft(self, value: torch.Tensor) -> None:
            self.calls.append(("draft", value.tolist()))

        def end(self) -> None:
            self.calls.append(("end", None))

    streamer = Streamer()
    ids = random_prompts(1, 3, 2)
    out = mf.generate(HashScorer(), ids, gen_length=4, steps=2, streamer=streamer)
    assert [kind for kind, _ in streamer.calls] == ["put", "draft", "draft", "put", "end"]
    assert streamer.calls[0][1] == ids.tolist() and streamer.calls[-2][1] == out.sequences[0, 3:].tolist()
    assert streamer.calls[1][1] == out.trajectory.states(1)[0, 3:].tolist()
    with pytest.raises(ValueError, match="follows one sequence, this decode has 2"):
        mf.generate(HashScorer(), random_prompts(2, 3, 2), gen_length=4, streamer=streamer)


def test_transformers_diffusion_streamer(capsys: pytest.CaptureFixture[str]) -> None:
    words = {f"w{i}": i for i in range(VOCAB)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")))
    streamer = TextDiffusionStreamer(tokenizer, skip_prompt=True)
    scorer = HashScorer()
    scorer.tokenizer = tokenizer
    out = mf.generate(scorer, random_prompts(1, 3, 2), gen_length=4, steps=2, streamer=streamer)
    printed = capsys.readouterr().out
    assert f"w{MASK}" in printed and printed.strip().endswith(out.text[0])


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    mf.generate(HashScorer(), random_prompts(2, 3, 2), gen_length=4, steps=2, progress=True)
    assert "8/8" in capsys.readouterr().err
