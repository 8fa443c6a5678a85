"""`score_rows`: the statistics of the tiles in one launch, what they say about the rows in a second."""

from torch import Tensor

from mdlm_fast.kernels.finish_scores import Outputs, finish_scores
from mdlm_fast.kernels.score_partials import score_partials


def score_rows(
    logits: Tensor,
    rows: Tensor,
    row_sequence: Tensor,
    row_position: Tensor,
    temperature: Tensor,
    seeds: Tensor,
    step: Tensor,
    forbidden_ids: Tensor | None,
    guidance_logits: Tensor | None,
    guidance_rows: Tensor | None,
    guidance_scale: float,
    vocab_limit: int,
    top_k: int,
    top_p: float,
    sample: bool,
    normalize_all: bool,
    stats_tempered: bool,
    stats: int,
) -> Outputs:
    """See `mdlm_fast.ops.score_rows`."""
    source = (forbidden_ids, guidance_logits, guidance_rows, guidance_scale)
    partials = score_partials(
        logits, rows, row_sequence, temperature, *source, 0, vocab_limit, normalize_all, stats_tempered, stats
    )
    return finish_scores(
        partials,
        logits,
        None,
        None,
        None,
        rows,
        row_sequence,
        row_position,
        temperature,
        seeds,
        step,
        *source,
        vocab_limit,
        top_k,
        top_p,
        sample,
        normalize_all,
        stats_tempered,
        stats,
    )
