"""The definition of every op, in plain PyTorch: correct on any device, dtype and strides, readable rather than fast.

The other backends are held to these functions by one test matrix. The maths is derived in `_tiles` (statistics),
`_sampling` (draws and filters), `select_commit_` (selection) and `token_logprobs` (gradients).
"""

from __future__ import annotations

from mdlm_fast.ops._registry import Backend
from mdlm_fast.ops.reference import finish_scores, remask_, score_rows, select_commit_, token_logprobs


def reference_backend() -> Backend:
    """The backend that is always there."""
    return Backend(
        "reference",
        ops={
            "score_partials": score_rows.score_partials,
            "finish_scores": finish_scores.finish_scores,
            "score_rows": score_rows.score_rows,
            "linear_score_rows": score_rows.linear_score_rows,
            "select_commit_": select_commit_.select_commit_,
            "remask_": remask_.remask_,
            "token_logprobs": token_logprobs.token_logprobs,
            "token_logprobs_backward": token_logprobs.token_logprobs_backward,
            "linear_token_logprobs": token_logprobs.linear_token_logprobs,
            "linear_token_logprobs_backward": token_logprobs.linear_token_logprobs_backward,
        },
    )
