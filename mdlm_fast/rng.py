"""Counter-based random numbers: Philox4x32-10 with named streams.

Every random decision of a decode is a pure function of (seed of the sequence, position in the sequence, step,
stream), so it does not depend on the batch, the padding, the order of rows, the number of threads or the backend. The
C++, Triton and CUDA kernels compute the same bits.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), doi:10.1145/2063384.2063405.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, overload

import torch
from torch import Tensor

Word = TypeVar("Word", int, Tensor)

#: What a random number is for. Two streams never share bits.
STREAMS: dict[str, int] = {
    "token": 0,  # the inverse-CDF draw of a token
    "random_confidence": 1,  # confidence="random"
    "position_choice": 2,  # alg_temp and Dream's "origin" rule
    "smc": 3,  # resampling of particles
    "training_masks": 4,  # masks of training objectives
}

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_DERIVE_STREAM = 0xFFFFFFFF  # last counter word of derive_seed; no stream uses it


def philox4x32(counter: Sequence[Word], key: Sequence[Word]) -> tuple[Word, Word, Word, Word]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four 32-bit words, each a Python int or an int64 tensor holding values in [0, 2**32).
        key: two such words. Tensors broadcast against each other.

    Returns:
        Four 32-bit words: int64 tensors of the broadcast shape, or Python ints when every input is one.
    """
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        # A product of two 32-bit words fills 64 bits. int64 wraps, so the low word is right as it is, and the mask
        # after the arithmetic shift drops the copies of the sign bit from the high word.
        p0 = x0 * _MULTIPLIERS[0]
        p1 = x2 * _MULTIPLIERS[1]
        x0, x1, x2, x3 = (
            ((p1 >> 32) & _WORD) ^ x1 ^ k0,
            p1 & _WORD,
            ((p0 >> 32) & _WORD) ^ x3 ^ k1,
            p0 & _WORD,
        )
        k0 = (k0 + _KEY_STEPS[0]) & _WORD
        k1 = (k1 + _KEY_STEPS[1]) & _WORD
    return x0, x1, x2, x3


def uniform(seeds: Tensor, position: Tensor | int, step: Tensor | int, stream: int | str) -> Tensor:
    """Uniform numbers in the open interval (0, 1), 52 random bits each.

    Args:
        seeds: int64, any shape: the bit pattern of each 64-bit key.
        position: position in the sequence, counting real tokens only; broadcasts against `seeds`.
        step: global step index; broadcasts against `seeds`.
        stream: a name or number from `STREAMS`.

    Returns:
        float64 tensor of the broadcast shape, (k + 0.5) * 2**-52 with k = the top 26 bits of the first output word,
        then those of the second. 53 bits would let the largest value round to 1.0.

    Raises:
        ValueError: `stream` is not a known name.
    """
    if isinstance(stream, str):
        if stream not in STREAMS:
            raise ValueError(f"stream={stream!r} is unknown: choose one of {', '.join(STREAMS)}")
        stream = STREAMS[stream]
    seeds = seeds.long()
    position = _words(position, seeds)
    step = _words(step, seeds)
    zero = torch.zeros((), dtype=torch.int64, device=seeds.device)
    r0, r1, _, _ = philox4x32((position, step, zero + stream, zero), (seeds & _WORD, (seeds >> 32) & _WORD))
    bits = ((r0 >> 6) << 26) | (r1 >> 6)
    return (bits.double() + 0.5) * 2.0**-52


@overload
def derive_seed(seed: int, row_key: int) -> int: ...
@overload
def derive_seed(seed: Tensor | int, row_key: Tensor) -> Tensor: ...
@overload
def derive_seed(seed: Tensor, row_key: Tensor | int) -> Tensor: ...
def derive_seed(seed: Tensor | int, row_key: Tensor | int) -> Tensor | int:
    """The 64-bit seed of one sequence, from the seed of a run and the key of the row.

    Args:
        seed: Python int (its low 64 bits count) or int64 tensor.
        row_key: the row's index or the caller's row id; Python int or int64 tensor.

    Returns:
        int64 tensor of the broadcast shape, or a signed Python int when both inputs are ints: Philox with counter
        (low word, high word of `row_key`, 0, 2**32 - 1) and `seed` as key, first word low.
    """
    if isinstance(seed, int) and isinstance(row_key, int):
        counter = (row_key & _WORD, (row_key >> 32) & _WORD, 0, _DERIVE_STREAM)
        r0, r1, _, _ = philox4x32(counter, (seed & _WORD, (seed >> 32) & _WORD))
        return signed64(r0 | (r1 << 32))
    like = row_key if isinstance(row_key, Tensor) else seed
    assert isinstance(like, Tensor)
    seeds = _tensor64(seed, like)
    keys = _tensor64(row_key, like)
    zero = torch.zeros((), dtype=torch.int64, device=like.device)
    t0, t1, _, _ = philox4x32(
        (keys & _WORD, (keys >> 32) & _WORD, zero, zero + _DERIVE_STREAM), (seeds & _WORD, (seeds >> 32) & _WORD)
    )
    return t0 | (t1 << 32)


def signed64(value: int) -> int:
    """The signed int64 with the same low 64 bits as `value`, which is how a tensor stores a 64-bit key."""
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value


def random_confidence(seeds: Tensor, position: Tensor | int, step: Tensor | int) -> Tensor:
    """Confidence for random order (stream 1): float32 in (0, 1], one number per (sequence, position, step).

    Args: as for `uniform`. Ties, possible after rounding to float32, are broken by position like all others.
    """
    return uniform(seeds, position, step, "random_confidence").float()


def position_keys(
    confidence: Tensor, seeds: Tensor, position: Tensor | int, step: Tensor | int, alg_temp: float
) -> Tensor:
    """Ranking keys of soft position choice (stream 2): confidence / alg_temp plus Gumbel noise.

    The k largest keys are k positions drawn without replacement with weights exp(confidence / alg_temp). Computed in
    float64 and rounded once to float32, which is what is ranked.

    Args:
        confidence: float, any shape; higher first. -inf stays last.
        seeds, position, step: as for `uniform`, broadcasting against `confidence`.
        alg_temp: > 0.
    """
    u = uniform(seeds, position, step, "position_choice")
    return (confidence.double() / alg_temp - torch.log(-torch.log(u))).float()


def _words(value: Tensor | int, like: Tensor) -> Tensor:
    return _tensor64(value, like) & _WORD


def _tensor64(value: Tensor | int, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(torch.int64)
    return torch.full((), signed64(value), dtype=torch.int64, device=like.device)
