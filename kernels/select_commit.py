"""`select_commit_` in Triton: two launches a step, whatever the rule.

1. `place_slots` writes, for each listed canvas position, the slot that lists it: slots come in any order, ranking is by
   position. Entries of positions that no slot lists are left as they were; a reader recognises them because the slot
   they name does not list that position.
2. `select_kernel`, one program per sequence: keys, the rule's number of positions, the best that many, all writes.
   The program that finishes last writes the list of rows that are still masked, which runs over all sequences.

Every rule but "origin" takes the best n by some order (`rank.highest`); the rules differ in n:

    quota             n = quota                      quota_threshold   n = max(quota, number above)
    threshold         n = max(1, number reaching)    factor            n = ranks before the first that fails
    entropy_bound     by entropy ascending: n = ranks before the first whose predecessors exceed the bound

None of them sorts: a number of ranks is found like the bound of `rank.highest`, bit by bit. The fp64 sums of entropies
are exact, and so do not depend on their order, while the fp32 terms lie within a factor of 2**16 of each other.
"""

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdlm_fast.kernels.philox import uniform
from mdlm_fast.kernels.rank import NO_CANDIDATE, highest, ranking_key, ranks_taken

POSITION_CHOICE: tl.constexpr = tl.constexpr(2)  # the stream of mdlm_fast.rng.STREAMS
KEYS_PER_THREAD = 16
MAX_WARPS = 16
# Slots that the list of rows takes at a time. Two sizes: the capacity shrinks in a decode, and each size is compiled.
SLOT_BLOCKS = (2048, 8192)


@triton.jit(do_not_specialize=["positions", "capacity"])
def place_slots(
    rows,  # int32 [C], flat canvas index or -1
    slot_at,  # int32 [B * L], written where a slot lists the position
    finished,  # int32 [1], written: 0
    positions,  # B * L
    capacity,
    BLOCK: tl.constexpr,
):
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows + slot, mask=slot < capacity, other=-1)
    tl.store(slot_at + row, slot, mask=(row >= 0) & (row < positions))
    if tl.program_id(0) == 0:
        tl.store(finished, 0)


@triton.jit
def discounted(
    value,  # f32 [BLOCK]
    token,  # int64 [BLOCK]
    gamma,  # f32
    eos_ids,  # int64 [num_eos]
    num_eos,
    DISCOUNT: tl.constexpr,
):
    """Early rejection of EOS. gamma = 0 in log space gives -inf, which ranks last and is still a candidate."""
    is_eos = token < 0  # none: candidates have tokens >= 0
    for i in range(num_eos):
        is_eos = is_eos | (token == tl.load(eos_ids + i))
    if DISCOUNT == "log":
        lower = value + tl.log(gamma.to(tl.float64)).to(tl.float32)
    else:
        lower = value * gamma
    return tl.where(is_eos, lower, value)


@triton.jit
def write_mask_count(
    is_mask,  # int1 [BLOCK]
    sequence,
    masks_left,  # int32 [B] or None
    done,  # uint8 [B] or None
):
    left = tl.sum(is_mask.to(tl.int32), 0)
    if masks_left is not None:
        tl.store(masks_left + sequence, left)
    if done is not None:
        tl.store(done + sequence, (left == 0).to(tl.uint8))


@triton.jit
def write_next_rows(
    rows,  # int32 [C]
    masked,  # uint8 [B * L]
    next_rows,  # int32 [C] or None
    num_next_rows,  # int32 [1] or None
    positions,  # B * L
    capacity,
    BLOCK: tl.constexpr,
):
    """The rows still masked, in the order of their slots, -1 behind them; one program for all slots."""
    count = 0
    for start in range(0, capacity, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        row = tl.load(rows + slot, mask=slot < capacity, other=-1)
        # Other programs wrote `masked`: read it where they wrote it, not in a cache of this processor.
        listed = (row >= 0) & (row < positions)
        kept = (tl.load(masked + row, mask=listed, other=0, cache_modifier=".cg") != 0).to(tl.int32)
        if next_rows is not None:
            tl.store(next_rows + count + tl.cumsum(kept, 0) - 1, row, mask=kept != 0)
        count += tl.sum(kept, 0)
    if num_next_rows is not None:
        tl.store(num_next_rows, count)
    if next_rows is not None:
        for start in range(count, capacity, BLOCK):
            slot = start + tl.arange(0, BLOCK)
            tl.store(next_rows + slot, tl.full(slot.shape, -1, tl.int32), mask=slot < capacity)


@triton.jit(do_not_specialize=["num_sequences", "capacity", "num_eos", "alg_temp_bits"])
def select_kernel(
    canvas,  # int64 [B, L]
    masked,  # uint8 [B, L], 0 or 1
    rows,  # int32 [C]
    token,  # int64 [C]
    confidence,  # f32 [C]
    logp,  # f32 [C] or None
    logp_T,  # f32 [C] or None
    entropy,  # f32 [C] or None
    quota,  # int32 [B] or None
    threshold,  # f32 [B] or None
    gamma,  # f32 [B] or None
    eos_ids,  # int64 [num_eos] or None
    row_position,  # int32 [C] or None
    seeds,  # int64 [B] or None
    step,  # int32 [1] or [B]
    commit_step,  # int16 [B, L] or None
    commit_logp,  # f32 [B, L] or None
    commit_logp_T,  # f32 [B, L] or None
    commit_confidence,  # f32 [B, L] or None
    masks_left,  # int32 [B] or None
    done,  # uint8 [B] or None
    next_rows,  # int32 [C] or None
    num_next_rows,  # int32 [1] or None
    slot_at,  # int32 [B, L], of place_slots
    finished,  # int32 [1], the number of programs that are through
    num_sequences,
    length,
    capacity,
    num_eos,
    step_stride,  # 0 for a step of [1], 1 for [B]
    alg_temp_bits,  # the float64 alg_temp as int64: a float argument would arrive as f32
    RULE: tl.constexpr,
    DISCOUNT: tl.constexpr,
    SOFT: tl.constexpr,  # alg_temp > 0
    BLOCK: tl.constexpr,
    SLOTS: tl.constexpr,
):
    sequence = tl.program_id(0)
    position = tl.arange(0, BLOCK)
    at = sequence.to(tl.int64) * length + position  # int64 [BLOCK]
    is_mask = tl.load(masked + at, mask=position < length, other=0) != 0
    slot = tl.load(slot_at + at, mask=is_mask, other=-1)
    candidate = (slot >= 0) & (slot < capacity)
    candidate = candidate & (tl.load(rows + slot, mask=candidate, other=-1) == at)
    new_token = tl.load(token + slot, mask=candidate, other=-1)
    candidate = candidate & (new_token >= 0)
    value = tl.load(confidence + slot, mask=candidate, other=0.0)
    now = tl.load(step + sequence * step_stride)

    ranking = value
    if DISCOUNT != "none":
        ranking = discounted(value, new_token, tl.load(gamma + sequence), eos_ids, num_eos, DISCOUNT)
    if SOFT or RULE == "origin":
        seed = tl.full(position.shape, 0, tl.int64) + tl.load(seeds + sequence)
        random_position = tl.load(row_position + slot, mask=candidate, other=0)
        number = uniform(seed, random_position, tl.full(position.shape, 0, tl.int32) + now, POSITION_CHOICE)
        if SOFT:
            alg_temp = alg_temp_bits.to(tl.int64).to(tl.float64, bitcast=True)
            ranking = (ranking.to(tl.float64) / alg_temp - tl.log(-tl.log(number))).to(tl.float32)

    if RULE == "origin":
        chosen = candidate & (number < tl.load(threshold + sequence).to(tl.float64))
    else:
        if RULE == "entropy_bound":
            own = tl.load(entropy + slot, mask=candidate, other=0.0)
            keys = ~ranking_key(tl.where(own == own, own, float("inf")))
        else:
            keys = ranking_key(ranking)
        keys = tl.where(candidate, keys, NO_CANDIDATE)
        taken = ranks_taken(keys, quota, threshold, sequence, RULE, BLOCK)
        chosen = highest(keys, taken, LAST_FIRST=False)

    tl.store(canvas + at, new_token, mask=chosen)
    tl.store(masked + at, tl.full(at.shape, 0, tl.uint8), mask=chosen)
    if commit_step is not None:
        tl.store(commit_step + at, tl.full(at.shape, 0, tl.int16) + now.to(tl.int16), mask=chosen)
    if commit_logp is not None:
        tl.store(commit_logp + at, tl.load(logp + slot, mask=chosen), mask=chosen)
    if commit_logp_T is not None:
        tl.store(commit_logp_T + at, tl.load(logp_T + slot, mask=chosen), mask=chosen)
    if commit_confidence is not None:
        tl.store(commit_confidence + at, value, mask=chosen)
    write_mask_count(is_mask & ~chosen, sequence, masks_left, done)

    if next_rows is not None or num_next_rows is not None:
        tl.debug_barrier()  # all threads have written before one of them says so
        if tl.atomic_add(finished, 1, sem="acq_rel") == num_sequences - 1:
            write_next_rows(rows, masked, next_rows, num_next_rows, num_sequences * length, capacity, SLOTS)


def sequence_block(length: int, also: int = 0) -> tuple[int, int]:
    """(block of at least `length` positions, warps for blocks of that and of `also` elements)."""
    block = max(32, triton.next_power_of_2(length))
    return block, min(max(block, also) // (32 * KEYS_PER_THREAD), MAX_WARPS) or 1


def as_bytes(flags: Tensor | None) -> Tensor | None:
    """Bool as uint8, without a copy."""
    return None if flags is None else flags.view(torch.uint8)


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
    """See `mdlm_fast.ops.select_commit_`. Two launches, scratch of 4 bytes per canvas position."""
    (sequences, length), capacity = canvas.shape, rows.shape[0]
    if sequences == 0:
        if next_rows is not None:
            next_rows.fill_(-1)
        if num_next_rows is not None:
            num_next_rows.zero_()
        return
    scratch = torch.empty(sequences * length + 1, dtype=torch.int32, device=canvas.device)
    slot_at, finished = scratch[:-1], scratch[-1:]
    place_slots[(max(1, triton.cdiv(capacity, 256)),)](
        rows, slot_at, finished, sequences * length, capacity, BLOCK=256, num_warps=2
    )
    slots = SLOT_BLOCKS[capacity > SLOT_BLOCKS[0]]
    block, warps = sequence_block(length, slots)
    select_kernel[(sequences,)](
        canvas,
        as_bytes(masked),
        rows,
        token,
        confidence,
        logp,
        logp_T,
        entropy,
        quota,
        threshold,
        gamma,
        eos_ids,
        row_position,
        seeds,
        step,
        commit_step,
        commit_logp,
        commit_logp_T,
        commit_confidence,
        masks_left,
        as_bytes(done),
        next_rows,
        num_next_rows,
        slot_at,
        finished,
        sequences,
        length,
        capacity,
        0 if eos_ids is None else eos_ids.shape[0],
        0 if step.shape[0] == 1 else 1,
        struct.unpack("<q", struct.pack("<d", alg_temp))[0],
        RULE=rule,
        DISCOUNT=discount,
        SOFT=alg_temp > 0,
        BLOCK=block,
        SLOTS=slots,
        num_warps=warps,
    )
