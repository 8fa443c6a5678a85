"""Log-probs from the statistics of tiles, and the gradient of a row's logits, as `ops/reference/token_logprobs.py`
derives them. Shared by the op on logits and the one with a fused head, whose logits exist a chunk at a time.

A score is one (row, target) pair with its temperature; its gradient at a column is, with x = (z - center) log2(e) / T,

    dL/dz = exp2(x) (a + b x) + (g / T at the target)          center = lse T, rounded to fp32

where a and b hold what does not depend on the column: the gradients, the entropy, and what the rounding of the center
lost, so that a confident row keeps its digits. `score_terms` computes them once per score, in fp64.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdlm_fast.kernels.finish_scores import log1p
from mdlm_fast.kernels.row_logits import (
    Candidates,
    RowLogits,
    exclude,
    excludes_any,
    forbidden_argument,
    forbidden_columns,
    read_logits,
)
from mdlm_fast.kernels.rows import LN_2, LOG2_E, PADDING_ROW, TILE
from mdlm_fast.kernels.tile import LEAST_EXPONENT

FIELDS: tl.constexpr = tl.constexpr(8)  # of a tile's record and of a score's terms
SCORES = 128  # scores a program of `score_terms` takes
GRADIENT_WARPS = 2  # 32 columns a thread: what a program does before its first column counts less


@triton.jit
def targets_allowed(target, forbidden_ids, num_forbidden, vocab_limit, IDS: tl.constexpr):
    """int1 block [scores]: which of the int64 targets are below vocab_limit and not among int64 [num_forbidden]."""
    allowed = target < vocab_limit
    if forbidden_ids is not None:
        for start in range(0, num_forbidden, IDS):
            index = start + tl.arange(0, IDS)
            ids = tl.load(forbidden_ids + index, mask=index < num_forbidden, other=-1)
            equal = target[:, None] == ids[None, :]  # [scores, IDS]
            allowed = allowed & (tl.max(equal.to(tl.int32), 1) == 0)
    return allowed


@triton.jit
def merge_kernel(
    partials,  # f32 [C, tiles, 8], exponents of the sums divided by the temperature
    target_logits,  # f32 [C], -inf where the target is not allowed
    rows,  # int32 [C], -1 = padding
    temperature,  # f32 [1] or [C]
    temperature_stride,  # 0 for [1], 1 for [C]
    logp,  # f32 [C], written
    entropy,  # f32 [C], written, or None
    lse,  # f64 [C], written
    tiles,
    BLOCK: tl.constexpr,
):
    """One program a score. Sums over the tiles as `tl.sum` adds a block of them: by their number alone."""
    score = tl.program_id(0)
    if tl.load(rows + score) < 0:
        tl.store(logp + score, float("-inf"))
        tl.store(lse + score, 0.0)
        if entropy is not None:
            tl.store(entropy + score, 0.0)
    else:
        t = tl.load(temperature + score * temperature_stride).to(tl.float64)
        tile = tl.arange(0, BLOCK)
        inside = tile < tiles
        record = partials + (score.to(tl.int64) * tiles + tile) * FIELDS  # [BLOCK]
        top = tl.load(record, mask=inside, other=float("-inf"))
        others = tl.load(record + 6, mask=inside, other=0.0).to(tl.float64)
        moment = tl.load(record + 7, mask=inside, other=0.0).to(tl.float64)
        nan = tl.max((top != top).to(tl.int32), 0) != 0
        highest = tl.max(tl.where(top == top, top, float("-inf")), 0)  # f32
        bad = nan | (tl.abs(highest) == float("inf"))
        center = tl.where(bad, 0.0, highest).to(tl.float64)
        first = tl.min(tl.where(top == highest, tile, BLOCK), 0)
        live = (top > float("-inf")) & (top < float("inf"))
        distance = tl.where(live, (top.to(tl.float64) - center) / t, 0.0)
        # The maximum of the best tile is that of the row: its own 1 stays outside of the sum.
        count = others + tl.where(tile == first, 0.0, 1.0)
        scale = tl.where(live, tl.exp(distance), 0.0)
        rest = tl.sum(scale * tl.where(live, count, 0.0), 0)
        log_sum = log1p(rest)
        z = tl.load(target_logits + score).to(tl.float64)
        value = (z - center) / t - log_sum
        # What a row that cannot be normalised is told by: NaN in it, +inf, or nothing.
        fault = tl.where(nan, float("nan"), highest.to(tl.float64))
        tl.store(logp + score, tl.where(bad, float("nan"), value).to(tl.float32))
        tl.store(lse + score, tl.where(bad, fault, center / t + log_sum))
        if entropy is not None:
            terms = tl.where(live, scale * (moment + distance * count), 0.0)
            nats = tl.maximum(log_sum - tl.sum(terms, 0) / (1.0 + rest), 0.0)
            tl.store(entropy + score, tl.where(bad, float("nan"), nats).to(tl.float32))


def merge_logprobs(
    partials: Tensor, target_logits: Tensor, rows: Tensor, temperature: Tensor, need_entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs of the log-prob ops from the statistics of their tiles.

    Args:
        partials: f32 [C, tiles, 8]; of these 0 (maximum), 6 (the tempered sum without it) and 7 (the tempered moment,
            only with need_entropy) are read.
        target_logits: f32 [C], z at the target; -inf where it is forbidden or above the limit.
        rows: int32 [C], -1 = padding.
        temperature: f32 [1] or [C].

    Returns:
        (logp f32 [C], entropy f32 [C] or [0], lse f64 [C]). Padding: -inf, 0, 0. A row with a NaN: NaN, NaN, NaN; with
        +inf: NaN, NaN, inf; without an allowed finite logit: NaN, NaN, -inf.
    """
    count, tiles, _ = partials.shape
    logp = torch.empty(count, dtype=torch.float32, device=partials.device)
    entropy = torch.empty(count if need_entropy else 0, dtype=torch.float32, device=partials.device)
    lse = torch.empty(count, dtype=torch.float64, device=partials.device)
    if count:
        merge_kernel[(count,)](
            partials,
            target_logits,
            rows,
            temperature,
            stride_of(temperature),
            logp,
            entropy if need_entropy else None,
            lse,
            tiles,
            BLOCK=max(32, triton.next_power_of_2(tiles)),
            num_warps=1,
        )
    return logp, entropy, lse


@triton.jit(do_not_specialize=["count", "num_forbidden", "vocab_limit"])
def score_terms_kernel(
    grad_logp,  # f32 [C]
    grad_entropy,  # f32 [C] or None
    targets,  # int64 [C]
    temperature,  # f32 [1] or [C]
    temperature_stride,
    forbidden_ids,  # int64 [num_forbidden] or None
    num_forbidden,
    vocab_limit,
    entropy,  # f32 [C], read with grad_entropy
    lse,  # f64 [C]
    order,  # int64 [C], the score of each record, or None: in order
    terms,  # f32 [C, 8], written: center, log2(e) / T, a, b, g / T, the target as int32
    count,
    IDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    score = place
    if order is not None:
        score = tl.load(order + place, mask=inside, other=0)
    target = tl.load(targets + score, mask=inside, other=0)
    t = tl.load(temperature + score * temperature_stride, mask=inside, other=1.0).to(tl.float64)
    g = tl.load(grad_logp + score, mask=inside, other=0.0).to(tl.float64) / t
    # The log-prob of a target that is not allowed is -inf, whatever the logits are.
    g = tl.where(targets_allowed(target, forbidden_ids, num_forbidden, vocab_limit, IDS), g, 0.0)
    exact_center = tl.load(lse + score, mask=inside, other=0.0) * t
    center = exact_center.to(tl.float32)
    log_factor = (center.to(tl.float64) - exact_center) / t  # exp(z / T - lse) = exp((z - center) / T) exp(log_factor)
    factor = tl.exp(log_factor)
    a = -g * factor
    b = tl.zeros_like(a)
    if grad_entropy is not None:
        h = tl.load(grad_entropy + score, mask=inside, other=0.0).to(tl.float64) / t
        a = -(g + h * (log_factor + tl.load(entropy + score, mask=inside, other=0.0).to(tl.float64))) * factor
        b = -h * LN_2 * factor
    record = terms + place * FIELDS
    tl.store(record, center, mask=inside)
    tl.store(record + 1, (1.0 / t * LOG2_E).to(tl.float32), mask=inside)
    tl.store(record + 2, a.to(tl.float32), mask=inside)
    tl.store(record + 3, b.to(tl.float32), mask=inside)
    tl.store(record + 4, g.to(tl.float32), mask=inside)
    tl.store(record + 5, target.to(tl.int32).to(tl.float32, bitcast=True), mask=inside)


def score_terms(
    grad_logp: Tensor,
    grad_entropy: Tensor | None,
    targets: Tensor,
    temperature: Tensor,
    forbidden_ids: Tensor | None,
    vocab_limit: int,
    entropy: Tensor,
    lse: Tensor,
    order: Tensor | None = None,
) -> Tensor:
    """f32 [C, 8], what `add_gradient` needs of each score, in the order given; those of padding mean nothing."""
    count = targets.shape[0]
    terms = torch.empty((count, FIELDS.value), dtype=torch.float32, device=targets.device)
    if count:
        score_terms_kernel[(triton.cdiv(count, SCORES),)](
            grad_logp,
            grad_entropy,
            targets,
            temperature,
            stride_of(temperature),
            forbidden_ids,
            0 if forbidden_ids is None else forbidden_ids.shape[0],
            vocab_limit,
            entropy,
            lse,
            order,
            terms,
            count,
            IDS=32,
            BLOCK=SCORES,
        )
    return terms


@triton.jit
def tile_logits(row, candidates, first, MASKED: tl.constexpr):
    """f32 [2048]: the logits of the tile that starts at column `first`, -inf where not allowed."""
    within = tl.arange(0, TILE)
    z = read_logits(row, first, within, 0, MASKED)
    if excludes_any(first, candidates, forbidden_columns(candidates)) != 0:
        z = exclude(z, first, within, 0, candidates)
    return z


@triton.jit
def add_gradient(gradient, z, first_id, terms, ENTROPY: tl.constexpr):
    """`gradient` (f32 [2048]) plus that of one score at the logits z of a tile, from `tile_logits`.

    Args:
        first_id: the id of the tile's first column.
        terms: pointer to the score's 8 terms.
    """
    exponent = (z - tl.load(terms)) * tl.load(terms + 1)
    weight = tl.exp2(exponent)
    factor = tl.load(terms + 2)
    if ENTROPY:
        factor = factor + tl.load(terms + 3) * tl.maximum(exponent, LEAST_EXPONENT)
    gradient += weight * factor
    at_target = tl.load(terms + 4)
    target = tl.load(terms + 5).to(tl.int32, bitcast=True) - first_id
    if (target >= 0) & (target < TILE):
        gradient += tl.where(tl.arange(0, TILE) == target, at_target, 0.0)
    return gradient


@triton.jit(do_not_specialize=["num_forbidden", "vocab_start"])
def chunk_gradient_kernel(
    logits,  # [N, columns], any row stride; overwritten with the gradient
    row_stride,
    width,
    forbidden,  # int64 [num_forbidden] or uint8 [columns] or None
    num_forbidden,
    vocab_start,
    limit,  # columns from here on are no candidates
    rows,  # int32 [N], -1 = padding
    terms,  # f32 [N, 8]
    ENTROPY: tl.constexpr,
):
    tiles = (width + TILE - 1) // TILE
    score = tl.program_id(0) // tiles
    first = (tl.program_id(0) - score * tiles) * TILE
    row = logits + score.to(tl.int64) * row_stride
    gradient = tl.full((TILE,), 0.0, tl.float32)
    if tl.load(rows + score) > PADDING_ROW:
        candidates = Candidates(forbidden, num_forbidden, vocab_start, limit)
        z = tile_logits(RowLogits(row, None, 1.0, 0.0, width), candidates, first, True)
        gradient = add_gradient(gradient, z, vocab_start + first, terms + score * FIELDS, ENTROPY)
    column = first + tl.arange(0, TILE)
    tl.store(row + column, gradient.to(logits.dtype.element_ty), mask=column < width)


def logit_gradient_(
    logits: Tensor,
    grad_logp: Tensor,
    grad_entropy: Tensor | None,
    targets: Tensor,
    temperature: Tensor,
    forbidden_ids: Tensor | None,
    vocab_start: int,
    vocab_limit: int,
    entropy: Tensor,
    lse: Tensor,
    rows: Tensor,
) -> None:
    """Overwrite a chunk of the vocabulary's logits with dL/dlogits, each row for the score of the same place.

    Args:
        logits: f32, bf16 or f16 [N, columns], columns of stride 1, the ids from vocab_start on; written.
        grad_logp: f32 [N]. grad_entropy: f32 [N] or None.
        targets: int64 [N], global ids.
        temperature: f32 [1] or [N].
        forbidden_ids: int64 [K], global ids; vocab_limit counts globally too.
        entropy: f32 [N], read with grad_entropy; lse: f64 [N].
        rows: int32 [N]; where it is negative the gradient is 0.
    """
    count, width = logits.shape
    if not logits.numel():
        return
    terms = score_terms(grad_logp, grad_entropy, targets, temperature, forbidden_ids, vocab_limit, entropy, lse)
    forbidden, num_forbidden = forbidden_argument(forbidden_ids, vocab_start, width)
    chunk_gradient_kernel[(count * triton.cdiv(width, TILE.value),)](
        logits,
        logits.stride(0),
        width,
        forbidden,
        num_forbidden,
        vocab_start,
        max(min(vocab_limit - vocab_start, width), 0),
        rows,
        terms,
        ENTROPY=grad_entropy is not None,
        num_warps=GRADIENT_WARPS,
    )


def stride_of(temperature: Tensor) -> int:
    """0 for the one temperature of all scores, 1 for one each."""
    return 0 if temperature.shape[0] == 1 else 1
