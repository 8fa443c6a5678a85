"""Training: seconds and peak memory of a CJ-GRPO iteration (arXiv 2509.23924), by phase, against the released way.

An iteration decodes B completions of one prompt in S steps and updates a random model of LLaDA's vocabulary on them.
The released way (`bench.baselines.cj_grpo`) computes every layer again in its backward pass, as released; ours is
`CJGRPOTrainer` with its defaults, which does not.
"""

from .cells import RELEASED, cases, cells, measure

__all__ = ["RELEASED", "cases", "cells", "measure"]
