"""Ranking the positions of one sequence by order-preserving integer keys, and counting how many of them a rule takes.

Nothing is sorted. The k-th largest key is found one bit of it at a time, as the largest bound that at least k keys
reach: 32 counts of a block that stays in registers cost less than a sort, take the same time whatever k is and need no
memory. Equal keys are told apart by a prefix sum. A number of ranks is found in the same way.
"""

import triton
import triton.language as tl

NO_CANDIDATE: tl.constexpr = tl.constexpr(0)  # no float has this key


@triton.jit
def ranking_key(value):
    """uint32 block ordered like the f32 block `value`: -0.0 ties with +0.0, NaN ranks with -inf."""
    bits = value.to(tl.uint32, bitcast=True)
    bits = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0xFF800000, bits)
    bits = tl.where(bits == 0x80000000, 0, bits)
    return tl.where(bits >= 0x80000000, ~bits, bits | 0x80000000)


@triton.jit
def ranking_value(key):
    """The f32 block that the uint32 block `key` stands for; NaN has become -inf."""
    bits = tl.where(key >= 0x80000000, key & 0x7FFFFFFF, ~key)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def highest(keys, wanted, LAST_FIRST: tl.constexpr):
    """int1 block [n]: the `wanted` largest of uint32 keys [n], all candidates if they are fewer, none if wanted <= 0.

    Among equal keys those with the lowest index go first, with LAST_FIRST those with the highest.
    """
    wanted = tl.minimum(wanted, tl.sum((keys != NO_CANDIDATE).to(tl.int32), 0))
    bound = tl.full((), 0, tl.uint32)
    bit = tl.full((), 0x80000000, tl.uint32)
    for _ in range(32):
        reached = tl.sum((keys >= (bound | bit)).to(tl.int32), 0)
        bound = tl.where(reached >= wanted, bound | bit, bound)
        bit = bit >> 1
    tied = (keys == bound).to(tl.int32)
    before = tl.cumsum(tied, 0)  # counts the key itself
    if LAST_FIRST:
        before = tl.sum(tied, 0) - before + 1
    above = tl.sum((keys > bound).to(tl.int32), 0)
    return (keys > bound) | ((keys == bound) & (before <= wanted - above))


@triton.jit
def ranks_by_factor(
    keys,  # uint32 [BLOCK]
    factor,  # float64
    BLOCK: tl.constexpr,
):
    """How many ranks r = 1, 2, ... pass before the first r > 1 with exp(value) < 1 - factor / (r + 1).

    Rank r passes where at least r values do not fall short of its bound. The values fall with r and the bounds rise,
    so those that pass come first and a search over the bits of r finds the last of them. (The bounds of a negative
    factor fall, but lie above 1, which no log-probability reaches.)
    """
    probability = tl.exp(ranking_value(keys).to(tl.float64))
    last = tl.full((), 0, tl.int32)  # the last rank that passes, from 0
    bit = tl.full((), BLOCK // 2, tl.int32)
    while bit > 0:
        bound = 1.0 - factor / ((last | bit) + 2).to(tl.float64)
        passing = tl.sum(((keys != NO_CANDIDATE) & ~(probability < bound)).to(tl.int32), 0)
        last = tl.where(passing > (last | bit), last | bit, last)
        bit = bit >> 1
    return last + 1


@triton.jit
def ranks_by_entropy(
    keys,  # uint32 [BLOCK], complements of the ranking keys of the entropies: the smallest entropy has the largest
    bound,  # float64
    BLOCK: tl.constexpr,
):
    """How many of the smallest entropies are taken while the sum of those before each is <= bound; at least one.

    A bit search finds the entropy whose equals take the sum past the bound; then those equals are counted one by one.
    """
    value = tl.where(keys != NO_CANDIDATE, ranking_value(~keys), 0.0).to(tl.float64)
    over = tl.full((), 0, tl.uint32)
    bit = tl.full((), 0x80000000, tl.uint32)
    for _ in range(32):
        total = tl.sum(tl.where(keys >= (over | bit), value, 0.0), 0)
        over = tl.where(total <= bound, over, over | bit)
        bit = bit >> 1
    before = tl.sum(tl.where(keys > over, value, 0.0), 0)
    taken = tl.sum((keys > over).to(tl.int32), 0)
    equals = tl.sum(((keys == over) & (keys != NO_CANDIDATE)).to(tl.int32), 0)
    index = tl.arange(0, BLOCK)
    sums = before + index.to(tl.float64) * tl.max(tl.where(keys == over, value, 0.0), 0)
    taken += tl.sum(((index < equals) & (sums <= bound)).to(tl.int32), 0)
    return tl.maximum(taken, 1)


@triton.jit
def ranks_taken(
    keys,  # uint32 [BLOCK]
    quota,  # int32 [B] or None
    threshold,  # f32 [B] or None
    sequence,
    RULE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """How many of the highest keys the rule takes (int32); may exceed the number of candidates."""
    if RULE == "quota":
        taken = tl.load(quota + sequence)
    else:
        bound = tl.load(threshold + sequence)
        if RULE == "factor":
            taken = ranks_by_factor(keys, bound.to(tl.float64), BLOCK)
        elif RULE == "entropy_bound":
            taken = ranks_by_entropy(keys, bound.to(tl.float64), BLOCK)
        elif RULE == "threshold":
            reaching = (keys != NO_CANDIDATE) & (ranking_value(keys) >= bound)
            taken = tl.maximum(tl.sum(reaching.to(tl.int32), 0), 1)
        else:
            above = (keys != NO_CANDIDATE) & (ranking_value(keys) > bound)
            taken = tl.maximum(tl.sum(above.to(tl.int32), 0), tl.load(quota + sequence))
    return taken
