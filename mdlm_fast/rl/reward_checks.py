"""What a reward function must be, and what it may return."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

RewardFunction = Callable[..., Any]

_FLOAT32_MAX = torch.finfo(torch.float32).max
_LOG_COLUMNS = ("step", "prompt", "completion", "advantage")  # of the completions file; a reward has a column there too


class RewardError(RuntimeError):
    """A reward function raised, or returned something that is no list of rewards."""


def raised(name: str, error: Exception) -> RewardError:
    """The error to raise from one that a function raised."""
    return RewardError(f"reward function {name!r} raised {type(error).__name__}: {error}")


def as_rewards(name: str, output: Any, count: int) -> list[float]:
    """One function's output as floats, NaN for None."""
    if isinstance(output, (np.ndarray, Tensor)) and output.ndim == 1:
        output = output.tolist()
    if not isinstance(output, (list, tuple)):
        raise RewardError(
            f"reward function {name!r} returned {_shown(output)}, not a list; return a list with one number (or None) "
            "for each completion"
        )
    if len(output) != count:
        raise RewardError(
            f"reward function {name!r} returned {len(output)} rewards for {count} completions; return one for each"
        )
    return [_reward(name, row, value) for row, value in enumerate(output)]


def _reward(name: str, row: int, value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, (np.generic, np.ndarray, Tensor)) and math.prod(value.shape) == 1:
        value = value.item()
    where = f"reward function {name!r} returned {_shown(value)} for completion {row}"
    if not isinstance(value, numbers.Real):
        raise RewardError(f"{where}, which is no number; return a float, or None to leave the completion unscored")
    number = _float(value)
    if math.isnan(number):
        raise RewardError(f"{where}; return None to leave a completion unscored")
    if abs(number) > _FLOAT32_MAX:
        raise RewardError(f"{where}, which is not finite in float32; return a finite number")
    return number


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer or fraction beyond the doubles
        return math.inf


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return f"{text[:80]}..." if len(text) > 80 else text


def check_function(function: Any, number: int) -> None:
    """Raises TypeError, before anything runs, if ``reward_funcs[number]`` cannot be called as a reward function."""
    where = f"reward_funcs[{number}]"
    if isinstance(function, (str, nn.Module)):
        shown = repr(function) if isinstance(function, str) else f"a {type(function).__name__}"
        raise TypeError(
            f"{where} is {shown}, a reward model; pass a function that runs it: it is called with prompts, completions "
            "and the data set's columns, and returns a list of numbers"
        )
    if inspect.isclass(function):
        raise TypeError(f"{where} is the class {function.__name__}; pass an instance of it")
    if not callable(function):
        raise TypeError(f"{where} is {_shown(function)}, which cannot be called; pass a function")
    for parameter in _parameters(function):
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            raise TypeError(
                f"{where} takes {parameter.name!r} by position only, but arguments are passed by keyword; remove the "
                "'/' from its signature"
            )


def _parameters(function: RewardFunction) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except ValueError:  # some builtins have none: they get everything
        return [inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)]


def accepted_arguments(function: RewardFunction) -> set[str] | None:
    """Names of the keyword arguments a function takes; None: any."""
    parameters = _parameters(function)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def required_arguments(function: RewardFunction) -> list[str]:
    """Names of the arguments without a default."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in _parameters(function) if p.kind in kinds and p.default is p.empty]


def function_name(function: RewardFunction) -> str:
    """As TRL names it: `__name__`, of a partial that of its function, else the class."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def unique_names(names: list[str]) -> list[str]:
    """The names, numbered where one is taken: by an earlier function, or by a column of the completions file."""
    unique: list[str] = []
    for name in names:
        candidate, number = name, 2
        while candidate in unique or candidate in _LOG_COLUMNS:
            candidate, number = f"{name}_{number}", number + 1
        unique.append(candidate)
    return unique


def check_weights(weights: Sequence[float] | None, names: list[str]) -> list[float]:
    """One weight a function, all 1.0 by default. Raises ValueError where their number or one of them is wrong."""
    if weights is None:
        return [1.0] * len(names)
    if len(weights) != len(names):
        raise ValueError(
            f"reward_weights has {len(weights)} entries for {len(names)} reward functions ({', '.join(names)}); give "
            "one for each"
        )
    for name, weight in zip(names, weights, strict=True):
        if not isinstance(weight, numbers.Real) or not math.isfinite(weight):
            raise ValueError(f"reward_weights: {weight!r} for {name!r} is not a finite number")
    return [float(weight) for weight in weights]
