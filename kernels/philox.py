"""Philox4x32-10 and the package's uniform numbers in Triton: the same bits as `mdlm_fast.rng` and the C++ kernels.

`philox4x32` and `uniform` are device functions for other kernels to call; `uniform_numbers` is a host function over a
kernel of its own. Nothing here has run on a GPU yet: it runs under Triton's interpreter (TRITON_INTERPRET=1, CPU
tensors) and compiles for NVIDIA GPUs without one.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), doi:10.1145/2063384.2063405.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

MULTIPLIER_0: tl.constexpr = tl.constexpr(0xD2511F53)
MULTIPLIER_1: tl.constexpr = tl.constexpr(0xCD9E8D57)
KEY_STEP_0: tl.constexpr = tl.constexpr(0x9E3779B9)
KEY_STEP_1: tl.constexpr = tl.constexpr(0xBB67AE85)
BLOCK = 256


@triton.jit
def philox4x32(x0, x1, x2, x3, k0, k1):
    """Ten rounds. Counter words x0..x3 and key words k0, k1: uint32 blocks of one shape; returns four such blocks."""
    multiplier_0 = tl.full(x0.shape, MULTIPLIER_0, tl.uint32)
    multiplier_1 = tl.full(x0.shape, MULTIPLIER_1, tl.uint32)
    key_step_0 = tl.full(x0.shape, KEY_STEP_0, tl.uint32)
    key_step_1 = tl.full(x0.shape, KEY_STEP_1, tl.uint32)
    for _ in tl.static_range(10):
        high_0 = tl.umulhi(x0, multiplier_0)
        low_0 = x0 * multiplier_0
        high_1 = tl.umulhi(x2, multiplier_1)
        low_1 = x2 * multiplier_1
        x0 = high_1 ^ x1 ^ k0
        x1 = low_1
        x2 = high_0 ^ x3 ^ k1
        x3 = low_0
        k0 = k0 + key_step_0
        k1 = k1 + key_step_1
    return x0, x1, x2, x3


@triton.jit
def uniform(seed, position, step, STREAM: tl.constexpr):
    """Float64 block in (0, 1) with 52 random bits: (k + 0.5) * 2**-52, k = top 26 bits of two words, the first high.

    seed: int64 block (bit pattern of the 64-bit key); position, step: integer blocks of its shape; STREAM: a number of
    `mdlm_fast.rng.STREAMS`.
    """
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    stream = tl.full(seed.shape, STREAM, tl.uint32)
    zero = tl.full(seed.shape, 0, tl.uint32)
    r0, r1, _, _ = philox4x32(position.to(tl.uint32), step.to(tl.uint32), stream, zero, k0, k1)
    bits = ((r0 >> 6).to(tl.int64) << 26) | (r1 >> 6).to(tl.int64)
    return (bits.to(tl.float64) + 0.5) * 2.220446049250313e-16  # 2**-52


@triton.jit
def uniform_kernel(
    seeds,  # int64 [n]
    positions,  # int32 [n]
    steps,  # int32 [n]
    out,  # float64 [n]
    n,
    STREAM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    live = index < n
    seed = tl.load(seeds + index, mask=live, other=0)
    position = tl.load(positions + index, mask=live, other=0)
    step = tl.load(steps + index, mask=live, other=0)
    tl.store(out + index, uniform(seed, position, step, STREAM), mask=live)


def uniform_numbers(seeds: Tensor, positions: Tensor, steps: Tensor, stream: int) -> Tensor:
    """Uniform numbers for n (seed, position, step) triples of one stream.

    Args:
        seeds: int64 [n], contiguous.
        positions, steps: int32 [n], contiguous, on the device of `seeds`.
        stream: a number of `mdlm_fast.rng.STREAMS`.

    Returns:
        float64 [n], equal bit for bit to `mdlm_fast.rng.uniform(seeds, positions, steps, stream)`.

    Raises:
        ValueError: a tensor has the wrong shape, dtype, device or layout.
    """
    wanted = (("seeds", seeds, torch.int64), ("positions", positions, torch.int32), ("steps", steps, torch.int32))
    for name, tensor, dtype in wanted:
        if tensor.dtype != dtype or tensor.shape != seeds.shape or tensor.ndim != 1 or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous {dtype} [{seeds.numel()}], got {tensor.dtype} {list(tensor.shape)}"
            )
        if tensor.device != seeds.device:
            raise ValueError(f"{name} is on {tensor.device}, seeds on {seeds.device}: move them to one device")
    out = torch.empty(seeds.shape, dtype=torch.float64, device=seeds.device)
    if seeds.numel():
        grid = (triton.cdiv(seeds.numel(), BLOCK),)
        uniform_kernel[grid](seeds, positions, steps, out, seeds.numel(), STREAM=stream, BLOCK_SIZE=BLOCK)
    return out
