"""Run by test_philox.py in processes of its own: Triton chooses between its interpreter and its compiler at import.

`interpret` prints, as JSON, Philox of the counters and keys read from stdin and uniform numbers of (seed, position,
step) triples; `compile` prints the resources of the kernel compiled for several GPUs.
"""

import json
import sys

import torch
import triton
import triton.language as tl

from mdlm_fast.kernels import philox


@triton.jit
def words_kernel(words, out, n, BLOCK_SIZE: tl.constexpr):
    """words uint32 as int64 [6, n] (four counter words, two key words), out int64 [4, n]."""
    index = tl.arange(0, BLOCK_SIZE)
    live = index < n
    x0 = tl.load(words + index, mask=live, other=0).to(tl.uint32)
    x1 = tl.load(words + n + index, mask=live, other=0).to(tl.uint32)
    x2 = tl.load(words + 2 * n + index, mask=live, other=0).to(tl.uint32)
    x3 = tl.load(words + 3 * n + index, mask=live, other=0).to(tl.uint32)
    k0 = tl.load(words + 4 * n + index, mask=live, other=0).to(tl.uint32)
    k1 = tl.load(words + 5 * n + index, mask=live, other=0).to(tl.uint32)
    r0, r1, r2, r3 = philox.philox4x32(x0, x1, x2, x3, k0, k1)
    tl.store(out + index, r0.to(tl.int64), mask=live)
    tl.store(out + n + index, r1.to(tl.int64), mask=live)
    tl.store(out + 2 * n + index, r2.to(tl.int64), mask=live)
    tl.store(out + 3 * n + index, r3.to(tl.int64), mask=live)


def interpret() -> dict[str, list]:
    given = json.load(sys.stdin)
    words = torch.tensor(given["words"], dtype=torch.int64).T.contiguous()
    out = torch.empty(4, words.shape[1], dtype=torch.int64)
    words_kernel[(1,)](words, out, words.shape[1], BLOCK_SIZE=16)
    uniform = philox.uniform_numbers(
        torch.tensor(given["seeds"], dtype=torch.int64),
        torch.tensor(given["positions"], dtype=torch.int32),
        torch.tensor(given["steps"], dtype=torch.int32),
        given["stream"],
    )
    return {"words": out.T.tolist(), "uniform": uniform.tolist()}


def compiled() -> dict[str, str]:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {"seeds": "*i64", "positions": "*i32", "steps": "*i32", "out": "*fp64", "n": "i32"}
    signature |= {"STREAM": "constexpr", "BLOCK_SIZE": "constexpr"}
    ptx = {}
    for capability in (80, 90, 100):
        source = ASTSource(philox.uniform_kernel, signature, constexprs={"STREAM": 0, "BLOCK_SIZE": philox.BLOCK})
        ptx[str(capability)] = triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]
    return ptx


print(json.dumps({"interpret": interpret, "compile": compiled}[sys.argv[1]]()))
