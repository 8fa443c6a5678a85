"""Reference of `select_commit_`: rank the candidates of each sequence, take some, write them down.

Candidates are slots with row >= 0, token >= 0 and a position that is still masked. They are ranked by (ranking
descending, position ascending), where ranking is the confidence, discounted where the token is an EOS (early
rejection of EOS), plus Gumbel noise with alg_temp > 0. Rank r counts from 1 within the sequence. Each rule then takes:

    quota             r <= k; k above the number of candidates takes them all
    threshold         ranking >= tau, or r = 1
    factor            the first ranks, as long as r = 1 or exp(ranking) >= 1 - f / (r + 1) (Fast-dLLM, arXiv:2505.22618)
    entropy_bound     by entropy ascending instead: while the sum of those before <= b, or r = 1 (arXiv:2505.24857)
    quota_threshold   all with ranking > tau if they are at least k, else the best k (LLaDA2, arXiv:2512.15745)
    origin            each with probability p, independently (Dream, arXiv:2508.15487)
"""

from __future__ import annotations

import torch
from torch import Tensor

from mdlm_fast.rng import position_keys, uniform


def select_commit_(
    canvas: Tensor,
    masked: Tensor,
    rows: Tensor,
    token: Tensor,
    confidence: Tensor,
    logp: Tensor | None,
    logp_T: Tensor | None,
    entropy: Tensor | None,
    quota: Tensor | None,
    threshold: Tensor | None,
    gamma: Tensor | None,
    eos_ids: Tensor | None,
    row_position: Tensor | None,
    seeds: Tensor | None,
    step: Tensor,
    commit_step: Tensor | None,
    commit_logp: Tensor | None,
    commit_logp_T: Tensor | None,
    commit_confidence: Tensor | None,
    masks_left: Tensor | None,
    done: Tensor | None,
    next_rows: Tensor | None,
    num_next_rows: Tensor | None,
    rule: str,
    discount: str,
    alg_temp: float,
) -> None:
    """See `mdlm_fast.ops.select_commit_`."""
    length = canvas.shape[1]
    row = rows.long().clamp(min=0)
    sequence, position = torch.div(row, max(length, 1), rounding_mode="floor"), row % max(length, 1)
    slots = ((rows >= 0) & (token >= 0)).nonzero()[:, 0]
    slots = slots[masked[sequence[slots], position[slots]]]
    b, at = sequence[slots], position[slots]
    steps = step[b] if step.numel() > 1 else step.expand(b.numel())

    ranking = confidence[slots]
    if discount != "none":
        assert gamma is not None and eos_ids is not None
        is_eos = torch.isin(token[slots], eos_ids)
        factor = gamma[b]
        ranking = torch.where(is_eos, ranking + factor.log() if discount == "log" else ranking * factor, ranking)
    if alg_temp > 0:
        assert seeds is not None and row_position is not None
        ranking = position_keys(ranking, seeds[b], row_position[slots], steps, alg_temp)
    ranking = ranking.masked_fill(ranking.isnan(), -torch.inf)  # e.g. margin -inf times gamma 0: ranks last

    if rule == "origin":
        assert seeds is not None and row_position is not None and threshold is not None
        chosen = uniform(seeds[b], row_position[slots], steps, "position_choice") < threshold[b]
    else:
        if rule == "entropy_bound":
            assert entropy is not None
            order = _ranked(b, at, entropy[slots], descending=False)
        else:
            order = _ranked(b, at, ranking, descending=True)
        b_sorted = b[order]
        first = torch.searchsorted(b_sorted, b_sorted)  # where the sequence of each ranked slot begins
        rank = 1 + torch.arange(order.numel(), device=order.device) - first
        taken = torch.empty_like(order, dtype=torch.bool)
        amounts = entropy[slots][order] if rule == "entropy_bound" and entropy is not None else ranking[order]
        taken[order] = _take(rule, amounts, rank, first, b_sorted, quota, threshold, canvas.shape[0])
        chosen = taken

    slots, b, at, steps = slots[chosen], b[chosen], at[chosen], steps[chosen]
    canvas[b, at] = token[slots]
    masked[b, at] = False
    if commit_step is not None:
        commit_step[b, at] = steps.to(commit_step.dtype)
    for record, values in ((commit_logp, logp), (commit_logp_T, logp_T), (commit_confidence, confidence)):
        if record is not None:
            assert values is not None
            record[b, at] = values[slots]
    count_masks(masked, masks_left, done)
    listed = (rows >= 0).nonzero()[:, 0]
    still_masked = rows[listed[masked[sequence[listed], position[listed]]]]
    if next_rows is not None:
        next_rows.fill_(-1)
        next_rows[: still_masked.numel()] = still_masked
    if num_next_rows is not None:
        num_next_rows.fill_(still_masked.numel())


def count_masks(masked: Tensor, masks_left: Tensor | None, done: Tensor | None) -> None:
    """Write the number of masks of each sequence and whether none is left."""
    count = masked.sum(1)
    if masks_left is not None:
        masks_left.copy_(count)
    if done is not None:
        done.copy_(count == 0)


def _ranked(sequence: Tensor, position: Tensor, value: Tensor, *, descending: bool) -> Tensor:
    """The order by (sequence, value, position ascending): stable sorts, least important first."""
    order = position.argsort(stable=True)
    order = order[value[order].argsort(stable=True, descending=descending)]
    return order[sequence[order].argsort(stable=True)]


def _take(
    rule: str,
    amount: Tensor,
    rank: Tensor,
    first: Tensor,
    sequence: Tensor,
    quota: Tensor | None,
    threshold: Tensor | None,
    num_sequences: int,
) -> Tensor:
    """Which ranked slots a rule takes. `amount` = ranking (or entropy), all in rank order; rank from 1."""
    if rule == "quota":
        assert quota is not None
        return rank <= quota[sequence]
    assert threshold is not None
    bound = threshold[sequence]
    if rule == "threshold":
        return (amount >= bound) | (rank == 1)
    if rule == "quota_threshold":
        assert quota is not None
        above = torch.zeros(num_sequences, dtype=torch.int64, device=rank.device)
        above.index_add_(0, sequence, (amount > bound).long())
        return rank <= torch.maximum(above, quota.long())[sequence]
    if rule == "factor":
        stops = (amount.double().exp() < 1.0 - bound.double() / (rank + 1.0)) & (rank > 1)
        stopped = stops.long().cumsum(0)
        return stopped - stopped[first] == 0  # rank 1 never stops, so its own count is that of the sequences before
    total = amount.double().cumsum(0)
    before = total - amount.double()
    return (before - before[first] <= bound.double()) | (rank == 1)
