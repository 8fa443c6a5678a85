"""Theoretical occupancy: the share of an SM's warps that blocks of a kernel can fill.

Limits: CUDA C++ programming guide, technical specifications per compute capability. Registers are given to warps in
units of 256 and warps to an SM's four schedulers, shared memory to blocks in units of 128 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

REGISTERS = 65536
SCHEDULERS = 4
WARP = 32
SYSTEM_SHARED = 1024  # bytes of shared memory that every block takes beside its own


@dataclass(frozen=True)
class Limits:
    threads: int
    blocks: int
    shared_bytes: int


LIMITS = {
    "80": Limits(threads=2048, blocks=32, shared_bytes=164 * 1024),
    "90": Limits(threads=2048, blocks=32, shared_bytes=228 * 1024),
    "100": Limits(threads=2048, blocks=32, shared_bytes=228 * 1024),
    "120": Limits(threads=1536, blocks=24, shared_bytes=100 * 1024),
}


def occupancy(arch: str, threads: int, registers: int, shared_bytes: int) -> float:
    """Warps that are resident with as many blocks as fit, over the most warps an SM holds.

    Args:
        arch: "80", "90a", "100" or "120".
        threads: of a block.
        registers: of a thread.
        shared_bytes: of a block, static and dynamic.
    """
    limits = LIMITS[arch.rstrip("a")]
    warps = -(-threads // WARP)
    registers_per_warp = -(-registers * WARP // 256) * 256
    warps_by_registers = REGISTERS // registers_per_warp // SCHEDULERS * SCHEDULERS
    shared_per_block = -(-(shared_bytes + SYSTEM_SHARED) // 128) * 128
    most_warps = limits.threads // WARP
    blocks_by_warps = min(most_warps, warps_by_registers) // warps
    return min(limits.blocks, blocks_by_warps, limits.shared_bytes // shared_per_block) * warps / most_warps
