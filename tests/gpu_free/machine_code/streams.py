"""Which kernels stream logits, and what the way of a usual tile through them passes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stream:
    """Kernels of a language whose names match, all of which must have a hot path."""

    language: str
    kernel: str  # regular expression
    load: str  # part of the opcode that loads a vector of logits
    # Part of an opcode -> how many the way of a usual tile passes, where a cheaper way exists: that of a tile of -inf
    # alone, which has no maximum to find, of a caller who does not ask for the runner-up, or of the lanes that write
    # nothing, which wait for the one that does.
    through: dict[str, int] = field(default_factory=dict)


# csrc/cuda/memory.cuh: load_vector leaves nothing in the first-level cache.
_VECTOR = "LDG.E.NA.128"
_TILE = {"SHFL.IDX": 1, "STG": 1}
_ALIGNED = r"_kernel<.*\(Reading\)0"
STREAMS = (
    Stream("CUDA", f"score_(partials|greedy){_ALIGNED}, false", _VECTOR, _TILE),
    Stream("CUDA", f"score_(partials|greedy){_ALIGNED}, true", _VECTOR, {**_TILE, "REDUX.MAX": 2}),
    Stream("CUDA", f"logprob_records{_ALIGNED}", _VECTOR),
    Stream("Triton", r"^(score_partials|statistics|gradient|chunk_gradient)_kernel: (?!.*odd width)", ".128"),
)


def find_stream(language: str, kernel: str) -> Stream | None:
    return next((one for one in STREAMS if one.language == language and re.search(one.kernel, kernel)), None)


def element_bytes(kernel: str) -> int:
    """Bytes loaded for each number of a row, by the types in a kernel's name; a guided one is made of two."""
    size = 2 if re.search("bfloat16|float16", kernel) else 4
    return 2 * size if "guided" in kernel else size
