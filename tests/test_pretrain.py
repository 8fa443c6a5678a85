"""Pretraining: held-out puzzles never generated, examples right, exact resume, corrupt checkpoints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mdlm_fast import pretrain
from mdlm_fast.pretraining import data
from mdlm_fast.pretraining.checkpoint import CorruptCheckpointError, list_checkpoints, load_newest, save_checkpoint
from mdlm_fast.pretraining.config import PretrainConfig
from mdlm_fast.pretraining.export import export
from mdlm_fast.pretraining.network import build_network, number_features
from mdlm_fast.pretraining.run import Run, masked_loss
from mdlm_fast.pretraining.stream import PuzzleData
from mdlm_fast.pretraining.training import train
from mdlm_fast.tasks import countdown_correct, countdown_test_puzzles, sudoku_correct, sudoku_test_puzzles
from mdlm_fast.tasks.vocabulary import EOS_ID, MASK_ID, VOCAB_SIZE, build_tokenizer, decode, encode

TINY = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_layers": 1,
    "num_heads": 2,
    "countdown_batch": 6,
    "sudoku_batch": 4,
    "steps": 8,
    "warmup": 2,
    "compile": False,
}
NONE = np.array([], dtype=np.int64)


def arguments(folder: Path, **changed: object) -> list[str]:
    result = ["--folder", str(folder), "--checkpoint-every", "2", "--monitor-every", "0", "--no-progress"]
    for name, value in {**TINY, **changed}.items():
        flag = name.replace("_", "-")
        result += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return result


def test_held_out_puzzles_are_never_generated() -> None:
    stream = PuzzleData(PretrainConfig(countdown_batch=400, sudoku_batch=400))
    countdown = {(tuple(sorted(numbers)), target) for numbers, target in countdown_test_puzzles()}
    sudoku = set(sudoku_test_puzzles())
    for step in range(5):
        (numbers, _, _), (cells, _, _) = stream.batches(step)
        for row in numbers:
            words = decode(row).split()
            assert (tuple(sorted(int(w) for w in words[1:4])), int(words[5])) not in countdown
        for row in cells:
            assert "".join(decode(row).split()[1:17]) not in sudoku


def test_what_would_be_generated_is_left_out_when_it_is_held_out() -> None:
    grids = data.sudoku_grids()
    first, _ = data.sudoku_batch(np.random.default_rng(1), 300, grids, NONE)
    keys = np.unique(data.sudoku_key(first[:, 1:17] - data.INTEGER_OFFSET))
    again, _ = data.sudoku_batch(np.random.default_rng(1), 300, grids, keys)
    assert not np.isin(data.sudoku_key(again[:, 1:17] - data.INTEGER_OFFSET), keys).any()
    first, _ = data.countdown_batch(np.random.default_rng(1), 300, NONE)
    keys = np.unique(data.countdown_key(first[:, 1:4] - data.INTEGER_OFFSET, first[:, 5] - data.INTEGER_OFFSET))
    again, _ = data.countdown_batch(np.random.default_rng(1), 300, keys)
    found = data.countdown_key(again[:, 1:4] - data.INTEGER_OFFSET, again[:, 5] - data.INTEGER_OFFSET)
    assert len(again) == 300 and not np.isin(found, keys).any()


def test_worked_answers_are_right_and_short_ones_are_guesses() -> None:
    prompts, answers = data.countdown_batch(np.random.default_rng(3), 600, NONE)
    worked, short = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        text = decode(answer)
        (worked if ";" in text else short).append(countdown_correct(decode(prompt), text))
        end = text.split()
        assert (answer[len(end) :] == EOS_ID).all() and len(end) in (5, 7, 11)
    assert all(worked) and len(worked) > 200
    assert len(short) > 200 and 0.05 < np.mean(short) < 0.35


def test_short_answers_do_not_depend_on_the_target() -> None:
    numbers = np.array([[90, 50, 20]] * 500)
    one = data.short_answer(np.random.default_rng(0), numbers, np.full(500, 7))
    two = data.short_answer(np.random.default_rng(0), numbers, np.full(500, 60))
    stated = one[:, 1] == data.EQUALS  # only the form that states the target names it, as its first word
    np.testing.assert_array_equal(one[:, 1:], two[:, 1:])
    np.testing.assert_array_equal(one[~stated], two[~stated])


def test_the_canonical_answer_solves_nearly_all_test_puzzles() -> None:
    puzzles = countdown_test_puzzles()
    numbers = -np.sort(-np.array([n for n, _ in puzzles]), axis=1)
    target = np.array([t for _, t in puzzles])
    structure = data.canonical_structure(numbers, target)
    assert np.mean(structure >= 0) > 0.98
    solvable = structure >= 0
    answers = data.worked_answer(numbers[solvable], structure[solvable])
    for (given, goal), answer in zip(np.array(puzzles, dtype=object)[solvable], answers, strict=True):
        assert countdown_correct(f"countdown {given[0]} {given[1]} {given[2]} to {goal} :", decode(answer))


def test_sudoku_examples() -> None:
    grids = data.sudoku_grids()
    assert len(np.unique(grids, axis=0)) == 288
    prompts, answers = data.sudoku_batch(np.random.default_rng(5), 200, grids, NONE)
    assert all(sudoku_correct(decode(p), decode(a)) for p, a in zip(prompts, answers, strict=True))
    blanks = (prompts[:, 1:17] == data.INTEGER_OFFSET).sum(1)
    assert blanks.min() == 4 and blanks.max() == 12


def test_a_share_of_late_sudoku_answers_copies_the_puzzle() -> None:
    prompts, answers = data.sudoku_batch(np.random.default_rng(5), 1000, data.sudoku_grids(), NONE, copies=0.44)
    copied = (answers[:, :16] == prompts[:, 1:17]).all(1)
    assert 0.39 < copied.mean() < 0.49
    assert all(sudoku_correct(decode(p), decode(a)) for p, a in zip(prompts[~copied], answers[~copied], strict=True))
    stream = PuzzleData(PretrainConfig(sudoku_batch=300, countdown_batch=1))
    for step, share in ((data.COPY_FROM_STEP - 1, 0.0), (data.COPY_FROM_STEP, 0.44)):
        _, (puzzle, answer, _) = stream.batches(step)
        assert (answer[:, :16] == puzzle[:, 1:17]).all(1).mean() == pytest.approx(share, abs=0.08)


def test_masks_cover_every_count_and_ignore_the_answer() -> None:
    masked = data.mask_answers(np.random.default_rng(0), 4000)
    assert masked.shape == (4000, data.GEN_LENGTH)
    assert set(masked.sum(1)) == set(range(1, data.GEN_LENGTH + 1))


def test_vocabulary_and_tokenizer_agree() -> None:
    tokenizer = build_tokenizer()
    text = "countdown 30 100 93 to 23 : 93 + 30 = 123 ; ( 399 / 3 ) * 1 - 0 sudoku"
    assert tokenizer(text)["input_ids"] == encode(text) and tokenizer.decode(encode(text)) == text
    assert (tokenizer.mask_token_id, tokenizer.eos_token_id, len(tokenizer)) == (MASK_ID, EOS_ID, VOCAB_SIZE)
    assert decode([*encode("1 2"), EOS_ID, *encode("3")]) == "1 2"
    with pytest.raises(ValueError, match="'400', which is not in the puzzle vocabulary"):
        encode("400")
    assert tokenizer.unk_token_id in tokenizer("400")["input_ids"]


def test_only_masked_positions_count_and_each_example_counts_once() -> None:
    torch.manual_seed(0)
    config = PretrainConfig(**TINY)
    network = build_network(config)
    (prompt, answer, masked), _ = PuzzleData(config).batches(0)
    canvas = torch.from_numpy(np.concatenate([prompt, np.where(masked, MASK_ID, answer)], axis=1))
    logp = network(input_ids=canvas).logits[:, prompt.shape[1] :].double().log_softmax(-1)
    expected = 0.0
    for row in range(len(answer)):
        where = np.flatnonzero(masked[row])
        expected += np.mean([-logp[row, i, answer[row, i]].item() for i in where])
    assert masked_loss(network, prompt, answer, masked).item() == pytest.approx(expected, rel=1e-5)


def test_attention_is_bidirectional_and_features_separate_numbers() -> None:
    network = build_network(PretrainConfig(**TINY)).eval()
    ids = torch.tensor([encode("countdown 1 2 3 to 4 :")])
    other = ids.clone()
    other[0, -1] = MASK_ID
    assert not torch.equal(network(input_ids=ids).logits[0, 0], network(input_ids=other).logits[0, 0])
    assert len(torch.unique(number_features(), dim=0)) == len(number_features())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert pretrain.main(arguments(whole, steps=60)) == 0
    command = [sys.executable, "-m", "mdlm_fast.pretrain", *arguments(killed, steps=60)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (killed.exists() and list_checkpoints(killed)):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert pretrain.main(arguments(killed, steps=60)) == 0
    one, two = weights(whole), weights(killed)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    steps = [json.loads(line)["step"] for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert steps == [20, 40, 60]


def test_a_run_in_parts_equals_one_run(tmp_path: Path) -> None:
    for folder, parts in ((tmp_path / "one", 1), (tmp_path / "four", 4)):
        for _ in range(parts):
            assert pretrain.main([*arguments(folder), "--stop-after", str(TINY["steps"] // parts)]) == 0
    one, four = weights(tmp_path / "one"), weights(tmp_path / "four")
    assert all(torch.equal(one[name], four[name]) for name in one)


def test_corrupt_checkpoint_falls_back_to_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = PretrainConfig(**TINY)
    train(config, tmp_path, checkpoint_every=2, monitor_every=0, stop_after=4, progress=False)
    newest, before = list_checkpoints(tmp_path)
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    run = train(config, tmp_path, monitor_every=0, stop_after=1, progress=False)
    assert run.step == 3 and before.name == "checkpoint-2.bin"
    assert "is corrupt" in capsys.readouterr().err
    for path in list_checkpoints(tmp_path):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptCheckpointError, match="no sound checkpoint to resume from"):
        train(config, tmp_path, monitor_every=0, progress=False)


def test_checkpoints_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1})

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, 2, {"step": 2})
    found = load_newest(tmp_path)
    assert found is not None and found[0]["step"] == 1
    assert load_newest(tmp_path / "..") is None


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    train(PretrainConfig(**TINY), tmp_path, monitor_every=0, stop_after=1, progress=False)
    with pytest.raises(ValueError, match="other settings \\(seed 0 -> 1\\)"):
        train(PretrainConfig(**{**TINY, "seed": 1}), tmp_path, monitor_every=0, progress=False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"num_heads": 3}, "hidden_size 16 must be num_heads 3 times an even head size"),
        ({"decay_share": 1.5}, "decay_share must be between 0 and 1, got 1.5"),
    ],
)
def test_settings_are_checked(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**{**TINY, **changed})  # type: ignore[arg-type]


def test_learning_rate_warms_up_stays_and_falls() -> None:
    config = PretrainConfig(steps=100, warmup=10, decay_share=0.3)
    factors = [config.learning_rate_factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9:71] == [1.0] * 62
    assert factors[-1] == pytest.approx(1 / 30) and factors[71:] == sorted(factors[71:], reverse=True)


def test_the_export_loads_in_plain_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = Run(PretrainConfig(**TINY))
    folder = export(run, tmp_path / "model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("sudoku " + "0 " * 16 + ":", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, run.snapshot()(ids).logits)
    assert model.config.is_causal is False and tokenizer.mask_token_id == MASK_ID


def test_monitoring_is_logged(tmp_path: Path) -> None:
    train(PretrainConfig(**{**TINY, "steps": 1}), tmp_path, monitor_every=1, progress=False)
    (record,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"step", "loss_countdown", "loss_sudoku", "countdown", "countdown_eos_last", "sudoku"} <= set(record)
