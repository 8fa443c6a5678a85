"""Training: seconds and peak memory of a CJ-GRPO iteration (arXiv 2509.23924), by phase, against the released way.

An iteration decodes B completions of one prompt in S steps and updates a random model of LLaDA's vocabulary on them.
The released way (`bench.baselines.cj_grpo`) computes every layer again in its backward pass, as released; ours is
`CJGRPOTrainer` with its defaults, which keeps what the layers computed. So that the two can be told apart, the released
way is also timed with its layers kept, at the centre of the matrix.
"""

from .case import KEPT, RELEASED
from .cells import cases, cells, measure

__all__ = ["KEPT", "RELEASED", "cases", "cells", "measure"]
