"""Instructions that the way of a usual tile through a kernel passes, where a cheaper way exists.

Without them the cheapest path would be that of a tile of -inf alone, which has no maximum to take out, or of a caller
who did not ask for the runner-up.
"""

from __future__ import annotations

import re

#: Language, regular expression for kernels, part of an opcode -> how many. All entries that match count.
_THROUGH: tuple[tuple[str, str, dict[str, int]], ...] = (
    ("CUDA", r"score_partials_kernel<.*Reading\)0", {"SHFL.IDX": 1}),  # where the maximum lies
    ("CUDA", r"score_partials_kernel<.*Reading\)0, true", {"REDUX.MAX": 2}),  # the maximum and the runner-up
)


def passed_by_a_usual_tile(language: str, kernel: str) -> dict[str, int]:
    """Part of an opcode -> how many the path has to pass, for `find_hot_path`."""
    through: dict[str, int] = {}
    for of, pattern, opcodes in _THROUGH:
        if of == language and re.search(pattern, kernel):
            through |= opcodes
    return through
