"""Reward functions as a TRL user writes them: what they are called with, what they may return, and what is refused."""

from __future__ import annotations

import asyncio
import functools
import gc
import math
import threading
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from mdlm_fast.rl.rewards import RewardError, RewardRunner, StepRewards

CHAT = [[{"role": "user", "content": "hello"}], [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]]


def call(functions: Any, count: int = 3, **changed: Any) -> torch.Tensor:
    arguments: dict[str, Any] = {
        "prompts": [f"p{i}" for i in range(count)],
        "texts": [f"t{i}" for i in range(count)],
        "completion_ids": [[i, 2] for i in range(count)],
        "columns": {"answer": list(range(count))},
    }
    runner = functions if isinstance(functions, RewardRunner) else RewardRunner(functions)
    return runner(**{**arguments, **changed})


def returning(value: Any):
    def reward(**_: Any) -> Any:
        return value

    return reward


# ---- what functions are called with ----------------------------------------------------------------------------------


def test_everything_arrives_by_keyword() -> None:
    seen: dict[str, Any] = {}

    def reward(**given: Any) -> list[float]:
        seen.update(given)
        return [0.0] * 3

    state = object()
    call(reward, trainer_state=state)
    assert seen.pop("trainer_state") is state
    assert callable(seen.pop("log_extra")) and callable(seen.pop("log_metric"))
    assert seen == {
        "prompts": ["p0", "p1", "p2"],
        "completions": ["t0", "t1", "t2"],
        "completion_ids": [[0, 2], [1, 2], [2, 2]],
        "answer": [0, 1, 2],
    }


def test_a_function_without_kwargs_gets_what_it_names() -> None:
    def lengths(completion_ids: list[list[int]]) -> list[float]:
        return [float(len(ids)) for ids in completion_ids]

    def answers(*, answer: list[int], scale: float = 2.0) -> list[float]:
        return [scale * a for a in answer]

    class Bound:
        def method(self, completions: list[str]) -> list[float]:
            return [float(c[1]) for c in completions]

    scaled = functools.partial(answers, scale=3.0)
    assert call([lengths, answers, Bound().method, scaled]).tolist() == [[2, 0, 0, 0], [2, 2, 1, 3], [2, 4, 2, 6]]


def test_conversational_prompts_give_messages() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: list[Any], completions: list[Any]) -> list[float]:
        seen.update(prompts=prompts, completions=completions)
        return [0.0, 0.0]

    call(reward, prompts=CHAT, texts=["a", "b"], completion_ids=[[], []], columns={})
    assert seen["prompts"] == CHAT
    assert seen["completions"] == [[{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]]


def test_a_function_that_changes_its_lists_changes_nothing_for_others() -> None:
    def greedy(completions: list[str], **_: Any) -> list[float]:
        completions.clear()
        return [0.0] * 3

    assert call([greedy, lambda completions: [float(len(completions))] * 3]).tolist() == [[0, 3]] * 3


@pytest.mark.parametrize("seed", range(3))
def test_values_and_kinds_of_numbers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=5)
    kinds: list[Any] = [
        list(values),
        tuple(values.tolist()),
        values,
        torch.tensor(values),
        [np.float32(v) for v in values],
    ]
    kinds += [[torch.tensor(v, dtype=torch.float64) for v in values], [torch.tensor([v]) for v in values]]
    result = call([returning(kind) for kind in kinds], 5)
    assert result.dtype == torch.float32 and result.shape == (5, len(kinds))
    torch.testing.assert_close(result, torch.tensor(values, dtype=torch.float32)[:, None].expand_as(result))
    mixed = [True, np.bool_(False), Fraction(1, 4), np.int64(-3), 2]
    assert call(returning(mixed), 5).flatten().tolist() == [1, 0, 0.25, -3, 2]


def test_none_is_not_scored(caplog: pytest.LogCaptureFixture) -> None:
    runner = RewardRunner([returning([1.0, None, None]), returning([None, None, 2.0])])
    for _ in range(2):
        result = call(runner)
    assert result.isnan().tolist() == [[False, True], [True, True], [True, False]]
    assert result[0, 0] == 1 and result[2, 1] == 2
    assert [r.getMessage() for r in caplog.records if "None for 1 of 3" in r.getMessage()] != []
    assert len(caplog.records) == 1


# ---- coroutines ------------------------------------------------------------------------------------------------------


def test_coroutine_functions_run_at_the_same_time_and_on_one_loop() -> None:
    """Each waits until both have begun: run one after the other they would never end."""
    begun: list[str] = []
    loops: list[Any] = []

    def make(name: str):
        async def reward(completions: list[str], **_: Any) -> list[float]:
            begun.append(name)
            loops.append(asyncio.get_running_loop())
            while len(begun) % 2:
                await asyncio.sleep(0.001)
            return [float(len(begun))] * len(completions)

        return reward

    runner = RewardRunner([make("a"), returning([7.0] * 3), make("b")])
    assert call(runner).tolist() == [[2, 7, 2]] * 3
    assert call(runner).tolist() == [[4, 7, 4]] * 3
    assert len(set(map(id, loops))) == 1, "a client opened in the first call would be on a closed loop in the second"


def test_coroutines_run_inside_a_running_loop() -> None:
    async def reward(completions: list[str]) -> list[float]:
        await asyncio.sleep(0)
        return [1.0] * len(completions)

    async def notebook() -> torch.Tensor:
        return call([reward, functools.partial(reward)])

    assert asyncio.run(notebook()).tolist() == [[1, 1]] * 3


def test_a_callable_object_may_be_async() -> None:
    class Judge:
        async def __call__(self, completions: list[str], **_: Any) -> list[float]:
            return [0.5] * len(completions)

    runner = RewardRunner(Judge())
    assert runner.names == ["Judge"]
    assert call(runner).tolist() == [[0.5]] * 3


def test_the_loop_ends_with_the_runner() -> None:
    async def reward(completions: list[str]) -> list[float]:
        return [1.0] * len(completions)

    runner = RewardRunner(reward)
    call(runner)
    assert any(t.name == "reward-functions" for t in threading.enumerate())
    del runner
    gc.collect()
    assert not any(t.name == "reward-functions" for t in threading.enumerate())


def test_a_failing_coroutine_names_its_function_and_cancels_the_rest() -> None:
    cancelled: list[bool] = []

    async def broken(completions: list[str]) -> list[float]:
        raise KeyError("no such key")

    async def slow(completions: list[str]) -> list[float]:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match=r"'broken' raised KeyError: 'no such key'") as caught:
        call([slow, broken])
    assert isinstance(caught.value.__cause__, KeyError) and cancelled == [True]


@pytest.mark.filterwarnings("error")
def test_a_coroutine_is_not_left_unawaited_when_another_function_raises() -> None:
    async def later(completions: list[str]) -> list[float]:
        return [0.0] * len(completions)

    def broken(completions: list[str]) -> list[float]:
        raise ZeroDivisionError("x")

    with pytest.raises(RewardError, match="'broken'"):
        call([later, broken])
    gc.collect()


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, 2.0], r"returned 2 rewards for 3 completions; return one for each"),
        ([], r"returned 0 rewards for 3"),
        (1.0, r"returned 1.0, not a list"),
        (None, r"returned None, not a list"),
        ("abc", r"returned 'abc', not a list"),
        ({0: 1.0, 1: 1.0, 2: 1.0}, r"not a list"),
        ((v for v in [1.0, 2.0, 3.0]), r"not a list"),
        (torch.zeros(3, 1), r"not a list"),
        ([1.0, "2", 3.0], r"returned '2' for completion 1, which is no number"),
        ([1.0, [2.0], 3.0], r"completion 1, which is no number"),
        ([1.0, 1j, 3.0], r"completion 1, which is no number"),
        ([0.0, 0.0, math.nan], r"returned nan for completion 2; return None to leave"),
        (torch.tensor([0.0, math.nan, 0.0]), r"returned nan for completion 1"),
        ([0.0, np.float64("nan"), 0.0], r"returned nan for completion 1"),
        ([math.inf, 0.0, 0.0], r"returned inf for completion 0, which is not finite"),
        ([0.0, -math.inf, 0.0], r"returned -inf for completion 1"),
        ([0.0, 0.0, 1e39], r"completion 2, which is not finite in float32"),
        ([0.0, 0.0, 10**400], r"completion 2, which is not finite in float32"),
    ],
)
def test_bad_outputs_are_refused(value: Any, message: str) -> None:
    with pytest.raises(RewardError, match=f"reward function 'reward' .*{message}"):
        call(returning(value))


def test_an_exception_inside_a_reward_is_the_cause() -> None:
    def broken(completions: list[str]) -> list[float]:
        raise LookupError("table is gone")

    with pytest.raises(RewardError, match=r"reward function 'broken' raised LookupError: table is gone") as caught:
        call([returning([0.0] * 3), broken])
    assert isinstance(caught.value.__cause__, LookupError) and isinstance(caught.value, RuntimeError)


@pytest.mark.parametrize(
    ("functions", "error", "message"),
    [
        ("org/reward-model", TypeError, r"reward_funcs\[0\] is 'org/reward-model', a reward model; pass a function"),
        (
            [returning([0.0]), torch.nn.Linear(1, 1)],
            TypeError,
            r"reward_funcs\[1\] is a Linear, a reward model; pass a function",
        ),
        ([], ValueError, r"reward_funcs is empty"),
        (None, TypeError, r"reward_funcs\[0\] is None, which cannot be called"),
        ([3], TypeError, r"reward_funcs\[0\] is 3, which cannot be called"),
        ([RewardRunner], TypeError, r"the class RewardRunner; pass an instance"),
        ([eval("lambda completions, /: [0.0]")], TypeError, r"takes 'completions' by position only"),
    ],
)
def test_what_is_no_reward_function(functions: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RewardRunner(functions)


def test_weights() -> None:
    a, b = returning([0.0]), returning([0.0])
    assert RewardRunner([a, b]).weights == [1.0, 1.0]
    assert RewardRunner([a, b], [2, 0.5]).weights == [2.0, 0.5]
    with pytest.raises(ValueError, match=r"reward_weights has 1 entries for 2 reward functions \(reward, reward_2\)"):
        RewardRunner([a, b], [1.0])
    with pytest.raises(ValueError, match="nan for 'reward_2' is not a finite number"):
        RewardRunner([a, b], [1.0, math.nan])


def test_names_are_unique_and_never_those_of_the_completions_file() -> None:
    def advantage(**_: Any) -> list[float]:
        return []

    def reward_2(**_: Any) -> list[float]:
        return []

    functions = [returning([]), reward_2, returning([]), advantage, functools.partial(advantage)]
    assert RewardRunner(functions).names == ["reward", "reward_2", "reward_3", "advantage_2", "advantage_3"]


def test_missing_columns_are_found_before_training() -> None:
    def needs(completions: list[str], solution: list[str], log_extra: Any, **_: Any) -> list[float]:
        return []

    runner = RewardRunner([returning([]), needs])
    runner.check_before_training(["solution"])
    with pytest.raises(ValueError, match=r"'needs' needs the argument 'solution'.*\(it has 'answer'\); add the column"):
        runner.check_before_training(["answer"])
    with pytest.raises(ValueError, match="none besides the prompt"):
        runner.check_before_training([])


# ---- logging from inside a reward ------------------------------------------------------------------------------------


def test_logs_reach_the_trainer_after_success_only() -> None:
    extras: dict[str, list[Any]] = {}
    metrics: list[tuple[str, float]] = []
    logs: dict[str, Any] = {
        "log_extra": lambda column, values: extras.update({column: values}),
        "log_metric": lambda name, value: metrics.append((name, value)),
    }

    def one_by_one(completions: list[str], log_extra: Any, log_metric: Any) -> list[float]:
        for completion in completions:
            log_extra("seen", [completion])
        log_metric("share", np.float32(0.5))
        return [0.0] * len(completions)

    def same(log_extra: Any, **_: Any) -> list[float]:
        log_extra("seen", ["t0", "t1", "t2"])
        return [0.0] * 3

    def differs(log_extra: Any, **_: Any) -> list[float]:
        log_extra("seen", [1, 2, 3])
        return [0.0] * 3

    call([one_by_one, same, differs], **logs)
    assert extras == {"seen": ["t0", "t1", "t2"], "seen (differs)": [1, 2, 3]}
    assert metrics == [("share", 0.5)]

    extras.clear()
    metrics.clear()
    with pytest.raises(RewardError):
        call([one_by_one, returning([0.0])], **logs)
    assert not extras and not metrics

    def short(log_extra: Any, **_: Any) -> list[float]:
        log_extra("seen", [1])
        return [0.0] * 3

    with pytest.raises(RewardError, match="'short' logged 1 values of 'seen' for 3 completions"):
        call(short, **logs)


# ---- TRL's own functions ---------------------------------------------------------------------------------------------


def trl_call(functions: Any, texts: list[str], solutions: list[str], ids: list[list[int]] | None = None, **more: Any):
    prompts = [[{"role": "user", "content": "q"}] for _ in texts]
    ids = [[5, 6, 2]] * len(texts) if ids is None else ids
    return call(
        RewardRunner(functions),
        prompts=prompts,
        texts=texts,
        completion_ids=ids,
        columns={"solution": solutions},
        **more,
    )


def test_trl_reward_functions_run_unchanged() -> None:
    rewards = pytest.importorskip("trl.rewards")
    functions = [
        rewards.accuracy_reward,
        rewards.think_format_reward,
        rewards.get_soft_overlong_punishment(max_completion_len=4, soft_punish_cache=2),
        rewards.get_repetition_penalty_reward(ngram_size=1),
        rewards.get_cosine_scaled_reward(max_len=4),
        rewards.reasoning_accuracy_reward,
    ]
    runner = RewardRunner(functions)
    assert runner.names == [
        "accuracy_reward",
        "think_format_reward",
        "soft_overlong_punishment_reward",
        "repetition_penalty_reward",
        "cosine_scaled_reward",
        "reasoning_accuracy_reward",
    ]
    runner.check_before_training(["solution"])
    extras: dict[str, list[Any]] = {}
    texts = [r"<think>a</think> \boxed{\frac{1}{3}}", r"\boxed{\frac{1}{2}}", r"\boxed{7}"]
    found = trl_call(
        functions,
        texts,
        [r"$\frac{1}{3}$", r"$\frac{1}{3}$", "no number here"],
        [[5, 6, 7], [5, 5, 5, 5], [5]],
        log_extra=lambda column, values: extras.update({column: values}),
    )
    nan = math.nan
    expected = torch.tensor(
        [
            [1.0, 1.0, -0.5, 0.0, 0.5 + 0.25 * (1 + math.cos(0.75 * math.pi)), 1.0],
            [0.0, 0.0, -1.0, -0.75, -0.5, 0.0],
            [nan, 0.0, 0.0, 0.0, nan, 0.0],
        ]
    )
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert extras["solution"] == [r"$\frac{1}{3}$", r"$\frac{1}{3}$", "no number here"]
    assert len(extras["gold_parsed"]) == len(extras["answer_parsed"]) == 3


# ---- rewards of every step -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_step_rewards_equal_scoring_every_step(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples, steps = int(rng.integers(1, 7)), int(rng.integers(1, 10))
    texts = [[str(rng.integers(0, 3)) for _ in range(steps)] for _ in range(samples)]
    ids = [[[int(text), 2] for text in row] for row in texts]
    columns = {"factor": rng.integers(1, 9, samples).tolist()}
    calls: list[int] = []

    def scaled(prompts: list[str], completions: list[str], completion_ids: Any, factor: list[int], log_extra: Any):
        calls.append(len(completions))
        log_extra("text", completions)
        assert [str(i[0]) for i in completion_ids] == completions
        return [int(p) + 10.0 * int(c) * f for p, c, f in zip(prompts, completions, factor, strict=True)]

    def even(completions: list[str]) -> list[float | None]:
        return [None if int(c) % 2 else 1.0 for c in completions]

    extras: dict[str, list[Any]] = {}
    metrics: dict[str, float] = {}
    found = StepRewards(RewardRunner([scaled, even]))(
        prompts=[str(i) for i in range(samples)],
        texts=texts,
        completion_ids=ids,
        columns=columns,
        log_extra=lambda column, values: extras.update({column: values}),
        log_metric=lambda name, value: metrics.update({name: value}),
    )
    assert found.shape == (samples, steps, 2) and found.dtype == torch.float32
    for i in range(samples):
        for s in range(steps):
            assert found[i, s, 0] == i + 10 * int(texts[i][s]) * columns["factor"][i]
            assert found[i, s, 1].isnan() if int(texts[i][s]) % 2 else found[i, s, 1] == 1
    distinct = sum(len(set(row)) for row in texts)
    assert calls == [distinct]
    assert metrics == {"step_rewards/calls": distinct, "step_rewards/calls_saved": samples * steps - distinct}
    assert extras == {"text": [row[-1] for row in texts]}


def test_step_rewards_keep_equal_texts_of_different_tokens_apart() -> None:
    steps = StepRewards(RewardRunner(lambda completion_ids: [float(len(ids)) for ids in completion_ids]))
    found = steps(prompts=["p"], texts=[["a", "a", "a"]], completion_ids=[[[1], [1, 2], [1]]], columns={})
    assert found.flatten().tolist() == [1, 2, 1]


def test_step_rewards_of_a_conversation_and_ragged_rows() -> None:
    steps = StepRewards(RewardRunner(lambda completions: [float(c[0]["content"]) for c in completions]))
    found = steps(prompts=CHAT, texts=[["1", "2"], ["3", "3"]], completion_ids=[[[1], [2]], [[3], [3]]], columns={})
    assert found[..., 0].tolist() == [[1, 2], [3, 3]]
    with pytest.raises(ValueError, match=r"same number of steps for every sample, got \[1, 2\]"):
        steps(prompts=CHAT, texts=[["1", "2"], ["3"]], completion_ids=[[[1], [2]], [[3]]], columns={})
