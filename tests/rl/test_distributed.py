"""Two processes over gloo train as one does: the same gradients, one reduction a step, and no process left waiting."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.rl.programs import run_once

CASES = (
    "plain",
    "packed",
    "groups span processes",
    "accumulated",
    "nothing scored in one",
    "mdpo",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each case's processes saved, by name, number of processes and rank."""
    folder = run_once(tmp_path_factory, "distributed_program.py")
    return lambda name, processes, rank=0: torch.load(folder / f"{name}-{processes}-{rank}.pt", weights_only=True)


def assert_close(mine: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    for one, other in zip(mine, theirs, strict=True):
        assert (one - other).double().norm() <= tolerance * other.double().norm()


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(results, case):
    alone, (first, second) = results(case, 1), (results(case, 2, rank) for rank in (0, 1))
    assert sorted(first["sequences"] + second["sequences"]) == sorted(alone["sequences"])
    assert len(alone["gradients"]) == 4
    for mine, other, whole in zip(first["gradients"], second["gradients"], alone["gradients"], strict=True):
        assert max(float(g.abs().max()) for g in whole) > 1e-4
        assert_close(mine, whole, 2e-6)
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))
    assert_close(first["parameters"], alone["parameters"], 1e-6)


@pytest.mark.parametrize("case", CASES)
def test_each_bucket_is_reduced_once_an_optimizer_step(results, case):
    for rank in (0, 1):
        steps = results(case, 2, rank)["reductions"]
        assert len(steps) == 4
        assert len(steps[-1]) > 2
        assert all(set(counts.values()) == {1} for counts in steps)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_log_what_one_does(results, case):
    alone, both = results(case, 1)["log"], results(case, 2)["log"]
    exact = ("reward", "reward_std", "frac_reward_zero_std", "completions/mean_length", "num_tokens")
    for mine, whole in zip(both, alone, strict=True):
        assert set(mine) == set(whole)
        for name in set(exact) & set(whole):
            assert mine[name] == pytest.approx(whole[name], rel=1e-6), name


def test_one_process_of_the_case_has_nothing_to_score(results):
    """Or the case would prove nothing."""
    rewards = [entry.get("frac_reward_zero_std") for entry in results("nothing scored in one", 1)["log"]]
    assert rewards[:4:2] == [0.5, 0.5]


def test_two_processes_resume_to_the_bit(results):
    for rank in (0, 1):
        both = results("resumed", 2, rank)
        assert len(both["whole"]) == 3 and both["whole"] == both["resumed"]


def test_a_reward_that_fails_in_one_process_loses_nothing_in_any(results):
    messages = [results("failing reward", 2, rank)["message"] for rank in (0, 1)]
    assert messages[1].startswith("reward function 'reward' raised KeyError: 'no such answer'. ")
    assert messages[0].startswith("another process failed, whose message says why. ")
    for message in messages:
        assert "checkpoint-2 keeps the 2 finished optimizer steps and the completions" in message
    assert results("failing reward", 2)["files"] == ["unscored-0.safetensors", "unscored-1.safetensors"]
    assert results("failing reward", 2)["resumed"] == results("plain", 2)["log"]


def test_a_reward_that_fails_in_one_process_of_an_evaluation_loses_no_steps(results):
    messages = [results("failing evaluation", 2, rank)["message"] for rank in (0, 1)]
    assert messages[1].startswith("reward function 'failing' raised KeyError")
    assert messages[0].startswith("another process failed")
    for message in messages:
        assert "checkpoint-3 keeps the 3 finished optimizer steps; mend" in message


def test_a_checkpoint_that_one_process_cannot_write_stops_all(results):
    messages = [results("full disk", 2, rank)["message"] for rank in (0, 1)]
    assert "No space left on device" in messages[0] and "another process failed" in messages[1]
    assert all("checkpoint-2 could not be written" in m and "there is no earlier one" in m for m in messages)
