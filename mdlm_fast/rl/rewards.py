"""Reward functions by TRL's conventions: called by keyword, sync or async, their answers checked."""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mdlm_fast.rl.data import Prompt
from mdlm_fast.rl.data_checks import RESERVED_COLUMNS
from mdlm_fast.rl.reward_checks import (
    RewardError,
    RewardFunction,
    accepted_arguments,
    as_rewards,
    check_function,
    check_weights,
    function_name,
    raised,
    required_arguments,
    unique_names,
)
from mdlm_fast.rl.reward_loop import LoopThread, gather

logger = logging.getLogger(__name__)

LogExtra = Callable[[str, list[Any]], None]
LogMetric = Callable[[str, float], None]


def as_completions(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Any]:
    """Completions as reward functions get them: texts, or for conversational prompts lists of one assistant message."""
    return [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]


class RewardRunner:
    """Calls reward functions on a batch of completions.

    Every function gets by keyword what its signature names, or everything if it has ``**kwargs``: ``prompts``,
    ``completions``, ``completion_ids``, every data set column, ``trainer_state``, ``log_extra(column, values)`` and
    ``log_metric(name, value)``. It returns one number or None (not scored) for each completion. Coroutine functions run
    concurrently on one event loop, which lives in its own thread as long as the runner, so their clients may be reused.

    Attributes:
        names: of the functions, for log keys; made unique by numbering.
        weights: of the functions, 1.0 by default.

    Raises:
        TypeError: something that is no function. ValueError: no function, or weights that do not fit.
    """

    def __init__(
        self,
        reward_funcs: RewardFunction | Sequence[RewardFunction],
        reward_weights: Sequence[float] | None = None,
    ) -> None:
        several = isinstance(reward_funcs, (list, tuple))
        self.functions: list[Any] = list(reward_funcs) if several else [reward_funcs]  # type: ignore[arg-type]
        if not self.functions:
            raise ValueError("reward_funcs is empty; pass at least one reward function")
        for number, function in enumerate(self.functions):
            check_function(function, number)
        self.names = unique_names([function_name(function) for function in self.functions])
        self.weights = check_weights(reward_weights, self.names)
        self._loop: LoopThread | None = None
        self._warned = False

    def check_before_training(self, columns: Iterable[str]) -> None:
        """Raises ValueError if a function needs an argument that is neither TRL's nor one of the data set's columns."""
        columns = list(columns)
        available = {*RESERVED_COLUMNS, "completion_ids", *columns}
        for name, function in zip(self.names, self.functions, strict=True):
            missing = [argument for argument in required_arguments(function) if argument not in available]
            if missing:
                raise ValueError(
                    f"reward function {name!r} needs the argument {missing[0]!r}, but the data set has no such column "
                    f"(it has {', '.join(map(repr, columns)) or 'none besides the prompt'}); add the column or "
                    "give the argument a default"
                )

    def __call__(
        self,
        *,
        prompts: Sequence[Prompt],
        texts: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Sequence[Any]],
        trainer_state: Any = None,
        log_extra: LogExtra | None = None,
        log_metric: LogMetric | None = None,
    ) -> Tensor:
        """Rewards of N completions, float32 [N, F], NaN where a function returned None.

        Args:
            prompts: N prompts, each repeated for each of its completions.
            texts: N completions.
            completion_ids: their tokens, up to and including the first EOS.
            columns: the data set's other columns, N values each.
            trainer_state: passed on.
            log_extra, log_metric: get what the functions logged, once all of them have succeeded.

        Raises:
            RewardError: naming the function and what was wrong; the exception it raised is the cause.
        """
        count = len(prompts)
        shared = {
            **columns,
            "prompts": prompts,
            "completions": as_completions(prompts, texts),
            "completion_ids": completion_ids,
        }
        logs = [_FunctionLog(name, count) for name in self.names]
        outputs: list[Any] = []
        for name, function, log in zip(self.names, self.functions, logs, strict=True):
            given: dict[str, Any] = {
                key: list(values) for key, values in shared.items()
            }  # no function sees another one's changes
            given |= {"trainer_state": trainer_state, "log_extra": log.log_extra, "log_metric": log.log_metric}
            try:
                outputs.append(_call(name, function, given))
            except BaseException:
                for output in filter(inspect.iscoroutine, outputs):
                    output.close()  # else Python warns that nobody awaited it
                raise
        outputs = self._await(outputs)
        values = [as_rewards(name, output, count) for name, output in zip(self.names, outputs, strict=True)]
        rewards = torch.tensor(values, dtype=torch.float32).reshape(len(values), count).T.contiguous()
        _pass_on(logs, log_extra, log_metric)
        self._warn_if_unscored(rewards)
        return rewards

    def _await(self, outputs: list[Any]) -> list[Any]:
        """The outputs, awaited where they are awaitable."""
        waiting = {i: output for i, output in enumerate(outputs) if inspect.isawaitable(output)}
        if not waiting:
            return outputs
        if self._loop is None:
            self._loop = LoopThread()
            weakref.finalize(self, self._loop.close)
        done = self._loop.run(gather([(self.names[i], output) for i, output in waiting.items()]))
        results = dict(zip(waiting, done, strict=True))
        return [results.get(i, output) for i, output in enumerate(outputs)]

    def _warn_if_unscored(self, rewards: Tensor) -> None:
        unscored = rewards.isnan().all(1)
        if bool(unscored.any()) and not self._warned:
            self._warned = True
            logger.warning(
                "every reward function returned None for %d of %d completions (the first is number %d); they are left "
                "out of their group. This is said once.",
                int(unscored.sum()),
                len(rewards),
                int(unscored.to(torch.int8).argmax()),
            )


class StepRewards:
    """Rewards of the text that every step would have answered (MDPO), each distinct text of a sample verified once.

    Most steps of a decode repeat the answer of the step before, so this calls the reward functions far less often.
    """

    def __init__(self, runner: RewardRunner) -> None:
        self.runner = runner

    def __call__(
        self,
        *,
        prompts: Sequence[Prompt],
        texts: Sequence[Sequence[str]],
        completion_ids: Sequence[Sequence[Sequence[int]]],
        columns: Mapping[str, Sequence[Any]],
        trainer_state: Any = None,
        log_extra: LogExtra | None = None,
        log_metric: LogMetric | None = None,
    ) -> Tensor:
        """Rewards float32 [B, S, F], NaN for None.

        Args:
            prompts: B prompts. columns: B values each.
            texts: [B][S], the answer as of each step. completion_ids: their tokens.
            trainer_state: passed on.
            log_extra: gets B values a column, those of the last step.
            log_metric: also gets "step_rewards/calls" and "step_rewards/calls_saved", in completions.

        Raises:
            RewardError: as `RewardRunner`. ValueError: rows with different numbers of steps.
        """
        steps = {len(row) for row in texts}
        if len(steps) != 1:
            raise ValueError(f"texts must hold the same number of steps for every sample, got {sorted(steps)}")
        number: dict[tuple[int, str, tuple[int, ...]], int] = {}  # of each distinct answer, in order of appearance
        inverse = torch.tensor(
            [
                [number.setdefault((i, text, tuple(ids)), len(number)) for text, ids in zip(*answers, strict=True)]
                for i, answers in enumerate(zip(texts, completion_ids, strict=True))
            ]
        )
        sample = [i for i, _, _ in number]
        final = inverse[:, -1].tolist()

        def log_final(column: str, values: list[Any]) -> None:
            if log_extra is not None:
                log_extra(column, [values[i] for i in final])

        rewards = self.runner(
            prompts=[prompts[i] for i in sample],
            texts=[text for _, text, _ in number],
            completion_ids=[list(ids) for _, _, ids in number],
            columns={name: [values[i] for i in sample] for name, values in columns.items()},
            trainer_state=trainer_state,
            log_extra=log_final,
            log_metric=log_metric,
        )
        if log_metric is not None:
            log_metric("step_rewards/calls", float(len(number)))
            log_metric("step_rewards/calls_saved", float(inverse.numel() - len(number)))
        return rewards[inverse]


class _FunctionLog:
    """What one function logged in one call."""

    def __init__(self, name: str, count: int) -> None:
        self.name = name
        self.count = count
        self.extras: dict[str, list[Any]] = {}
        self.metrics: list[tuple[str, float]] = []

    def log_extra(self, column: str, values: list[Any]) -> None:
        self.extras.setdefault(column, []).extend(values)

    def log_metric(self, name: str, value: float) -> None:
        self.metrics.append((name, float(value)))


def _call(name: str, function: RewardFunction, given: dict[str, Any]) -> Any:
    accepted = accepted_arguments(function)
    try:
        return function(**{key: value for key, value in given.items() if accepted is None or key in accepted})
    except Exception as error:
        raise raised(name, error) from error


def _pass_on(logs: list[_FunctionLog], log_extra: LogExtra | None, log_metric: LogMetric | None) -> None:
    """Hands what the functions logged to the trainer. A column that several functions log is passed on once if they
    agree, else under a name for each."""
    columns: dict[str, list[Any]] = {}
    for log in logs:
        for column, values in log.extras.items():
            if len(values) != log.count:
                raise RewardError(
                    f"reward function {log.name!r} logged {len(values)} values of {column!r} for {log.count} "
                    "completions; log_extra takes one for each"
                )
            differs = column in columns and repr(columns[column]) != repr(values)
            columns[f"{column} ({log.name})" if differs else column] = values
        for name, value in log.metrics:
            if log_metric is not None:
                log_metric(name, value)
    for column, values in columns.items():
        if log_extra is not None:
            log_extra(column, values)
