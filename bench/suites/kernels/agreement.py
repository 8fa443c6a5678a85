"""Whether a published decoder's tokens and confidences are those of `score_rows`, on the same rows of logits.

Greedy tokens must be equal, or tie within the rounding of what was compared. Draws cannot be: every system has its own
random numbers. What can be compared is the distribution they come from: our log-prob of our own token gives the
normaliser, hence our probability of *their* token, which must be their confidence; and their token must not be one that
the filters cut. Both comparisons are made twice: on the logits as they are timed, where the system's own rounding
shows, and on float64 logits, where none does unless the system goes down to float32 by itself. The latter have no ties:
a sort cuts ties at the edge of top-p anywhere, and ours keeps all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from mdlm_fast.ops import RowScores

from ...baselines.score import Scored

Scores = TypeVar("Scores", RowScores, Scored)

FLOAT64 = 1e-5  # the relative difference that a probability may have from ours, which is float32 at the end
FLOAT32 = 1e-4  # ... where float32 sums over a vocabulary
RUNNING = 1e-3  # ... where the edge of top-p is found by a running sum in float32


@dataclass(frozen=True)
class Distribution:
    """What tokens are drawn from.

    Attributes:
        temperature: 0 is greedy.
        tempered: whether the system's confidence is that of the tempered, filtered distribution (Dream, MDPO) or of
            the plain one (LLaDA and its descendants).
        top_p, top_k: filters, None: off.
        rounding: roundings to the logits' dtype that may shift a confidence, in units of the dtype's epsilon. A
            division by the temperature, or noise, in 16 bits shifts a logit near 16 by up to 16 halves of it.
    """

    temperature: float = 0.0
    tempered: bool = False
    top_p: float | None = None
    top_k: int | None = None
    rounding: float = 2.0


def without_ties(logits: Tensor) -> Tensor:
    """float64 logits, of float32 precision as ours reads no more, that mostly round to these: random digits behind."""
    generator = torch.Generator(logits.device).manual_seed(3)
    digits = torch.rand(logits.shape, device=logits.device, generator=generator) - 0.5
    return (logits.float() * (1 + digits * (torch.finfo(logits.dtype).eps / 2))).double()


def tolerance(dtype: torch.dtype, distribution: Distribution) -> float:
    """Relative, of a probability that was computed in, or from logits of, a dtype."""
    if dtype == torch.float64:
        return FLOAT64
    least = FLOAT32 if distribution.top_p is None else RUNNING
    return max(least, distribution.rounding * torch.finfo(dtype).eps)


def described(logits: Tensor, ours: RowScores, theirs: Scored, distribution: Distribution) -> str:
    """Compares all that a system knows of these rows with ours.

    Args:
        logits: [N, V], those that both read.

    Returns:
        what is equal, and the largest relative difference of probabilities, margins and entropies.

    Raises:
        AssertionError: they differ beyond rounding.
    """
    dtype, rows, notes = str(logits.dtype).removeprefix("torch."), len(logits), []
    if logits.dtype.itemsize == 2 and distribution.temperature > 0:
        possible = theirs.confidence > 0
        if not possible.all():
            notes.append(f"{int((~possible).sum())} of {rows} draws have probability 0 by its own account")
            logits, ours, theirs = logits[possible], only(ours, possible), only(theirs, possible)
    worst = compare(logits, ours, theirs, distribution)
    if theirs.margin is not None and theirs.entropy is not None:
        worst = max(worst, compare_statistics(ours, theirs))
        if theirs.entropy.isnan().any():
            notes.append("its entropy is NaN")
    if distribution.temperature > 0:
        text = f"the same probability of its draws to {worst:.0e}"
    else:
        equal = int((theirs.token == ours.token).sum())
        tied = "" if equal == rows else ", the others tie within rounding"
        text = f"{equal} of {rows} tokens equal{tied}, relative difference {worst:.0e}"
    return " ".join([f"in {dtype}", ", ".join([text, *notes])])


def compare(logits: Tensor, ours: RowScores, theirs: Scored, distribution: Distribution) -> float:
    """The largest relative difference of the probabilities of their tokens.

    Args:
        logits: [N, V], those that they read.
        ours, theirs: of these rows.

    Raises:
        AssertionError: another greedy token, a token that was cut, or a difference beyond rounding.
    """
    z = logits.double()  # [N, V]
    allowed = max(tolerance(dtype, distribution) for dtype in (logits.dtype, theirs.confidence.dtype))
    if distribution.temperature == 0:
        behind = at(z, ours.token) - at(z, theirs.token)
        assert (behind <= allowed).all(), f"other tokens, {behind.max():.2e} nats less likely"
    else:
        check_kept(z, theirs.token, distribution, allowed)
    scale = distribution.temperature if distribution.tempered else 1.0
    logp = ours.logp_T if distribution.tempered else ours.logp
    assert logp is not None
    expected = (logp.double() + (at(z, theirs.token) - at(z, ours.token)) / scale).exp()
    return relative(theirs.confidence, expected, allowed, "confidence")


def compare_statistics(ours: RowScores, theirs: Scored) -> float:
    """The largest difference of margins, relative to the best probability, and of entropies, to at least a nat. An
    entropy that is NaN is left out: in float16 the 1e-10 that Dream adds to a probability is 0.

    Raises:
        AssertionError: it is beyond rounding.
    """
    assert ours.logp is not None and ours.margin is not None and ours.entropy is not None
    assert theirs.margin is not None and theirs.entropy is not None
    allowed = tolerance(theirs.margin.dtype, Distribution())
    best, nat = ours.logp.double().exp(), torch.ones_like(ours.logp)
    margin = relative(theirs.margin, ours.margin.double(), allowed, "margin", best)
    if theirs.entropy.dtype == torch.float16 and theirs.entropy.isnan().all():
        return margin
    return max(margin, relative(theirs.entropy, ours.entropy.double(), allowed, "entropy", nat))


def check_kept(z: Tensor, token: Tensor, distribution: Distribution, allowed: float) -> None:
    """Raises AssertionError if a filter should have cut a token."""
    above = z > at(z, token)[:, None]  # [N, V]
    if distribution.top_k is not None:
        # Equal logits after division by the temperature share a rank, so rounding may let some more through.
        clearly = z > (at(z, token) + allowed)[:, None] if allowed > RUNNING else above
        assert (clearly.sum(-1) < distribution.top_k).all(), "a token beyond top-k"
    if distribution.top_p is not None:
        mass = ((z / distribution.temperature).softmax(-1) * above).sum(-1)
        assert (mass <= distribution.top_p + allowed).all(), f"a token beyond top-p, at {mass.max():.4f}"


def relative(theirs: Tensor, expected: Tensor, allowed: float, what: str, least: Tensor | None = None) -> float:
    """The largest difference relative to what is expected (float64 [N]), or to `least` [N] where that is more."""
    floor = torch.finfo(theirs.dtype).smallest_normal * torch.finfo(theirs.dtype).eps  # the least number above 0
    difference = ((theirs.double() - expected).abs() - floor).clamp(min=0)
    scale = expected.abs() if least is None else torch.maximum(expected.abs(), least)
    worst = float((difference / scale.clamp(min=floor)).max())
    assert worst <= allowed, f"{what} differs by {worst:.2e} of itself, {allowed:.1e} is allowed"
    return worst


def only(scores: Scores, chosen: Tensor) -> Scores:
    """Scores of the chosen rows, bool [N] or indices."""
    return scores._replace(**{name: x[chosen] for name, x in scores._asdict().items() if x is not None})


def at(z: Tensor, token: Tensor) -> Tensor:
    """[N] of [N, V] at [N]."""
    return z.gather(-1, token[:, None])[:, 0]
