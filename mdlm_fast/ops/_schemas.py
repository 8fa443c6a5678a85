"""The schema of every op, written once. Backends register the same text, and a test compares them."""

from __future__ import annotations

import functools

#: Columns of one canonical tile of the global vocabulary. Part of the definition of sampling, not a tuning knob.
TILE = 2048

#: Fields of one tile's partial statistics (last dimension of `score_partials`).
PARTIAL_FIELDS = 8

#: Bits of the `stats` mask, in the order of the outputs.
STAT_BITS: dict[str, int] = {"token": 1, "logp": 2, "logp_T": 4, "margin": 8, "entropy": 16}

_SCORES = "(Tensor token, Tensor logp, Tensor logp_T, Tensor margin, Tensor entropy)"
_ROWS = "Tensor rows, Tensor row_sequence, Tensor row_position, Tensor temperature, Tensor seeds, Tensor step"
_FILTERS = "int vocab_limit, int top_k, float top_p, bool sample, bool normalize_all, bool stats_tempered, int stats"
_GUIDANCE = "Tensor? guidance_logits, Tensor? guidance_rows, float guidance_scale"
_TARGETS = "Tensor rows, Tensor targets, Tensor temperature, Tensor? forbidden_ids, int vocab_limit"

SCHEMAS: dict[str, str] = {
    "score_partials": (
        "(Tensor logits, Tensor rows, Tensor row_sequence, Tensor temperature, Tensor? forbidden_ids, "
        f"{_GUIDANCE}, int vocab_start, int vocab_limit, bool normalize_all, bool stats_tempered, int stats) -> Tensor"
    ),
    "finish_scores": (
        "(Tensor partials, Tensor? logits, Tensor? hidden, Tensor? weight, Tensor? bias, "
        f"{_ROWS}, Tensor? forbidden_ids, {_GUIDANCE}, {_FILTERS}) -> {_SCORES}"
    ),
    "score_rows": f"(Tensor logits, {_ROWS}, Tensor? forbidden_ids, {_GUIDANCE}, {_FILTERS}) -> {_SCORES}",
    "linear_score_rows": (
        f"(Tensor hidden, Tensor weight, Tensor? bias, {_ROWS}, Tensor? forbidden_ids, "
        f"Tensor? guidance_hidden, Tensor? guidance_rows, float guidance_scale, {_FILTERS}) -> {_SCORES}"
    ),
    "select_commit_": (
        "(Tensor(a!) canvas, Tensor(b!) masked, Tensor rows, Tensor token, Tensor confidence, Tensor? logp, "
        "Tensor? logp_T, Tensor? entropy, Tensor? quota, Tensor? threshold, Tensor? gamma, Tensor? eos_ids, "
        "Tensor? row_position, Tensor? seeds, Tensor step, Tensor(c!)? commit_step, Tensor(d!)? commit_logp, "
        "Tensor(e!)? commit_logp_T, Tensor(f!)? commit_confidence, Tensor(g!)? masks_left, Tensor(h!)? done, "
        "Tensor(i!)? next_rows, Tensor(j!)? num_next_rows, str rule, str discount, float alg_temp) -> ()"
    ),
    "remask_": (
        "(Tensor(a!) canvas, Tensor(b!) masked, Tensor running, Tensor scope, Tensor count, int mask_id, "
        "Tensor(c!)? commit_step, Tensor(d!)? masks_left, Tensor(e!)? done) -> ()"
    ),
    "token_logprobs": (f"(Tensor logits, {_TARGETS}, bool need_entropy) -> (Tensor logp, Tensor entropy, Tensor lse)"),
    "token_logprobs_backward": (
        f"(Tensor grad_logp, Tensor? grad_entropy, Tensor logits, {_TARGETS}, Tensor entropy, Tensor lse) -> Tensor"
    ),
    "linear_token_logprobs": (
        f"(Tensor hidden, Tensor weight, Tensor? bias, {_TARGETS}, bool need_entropy) -> "
        "(Tensor logp, Tensor entropy, Tensor lse)"
    ),
    "linear_token_logprobs_backward": (
        f"(Tensor grad_logp, Tensor? grad_entropy, Tensor hidden, Tensor weight, Tensor? bias, {_TARGETS}, "
        "Tensor entropy, Tensor lse, bool need_hidden, bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor)"
    ),
}


@functools.cache
def mutable_arguments(op: str) -> frozenset[int]:
    """Which arguments, by place, an op writes to."""
    arguments = SCHEMAS[op].split(") -> ")[0][1:].split(", ")
    return frozenset(place for place, argument in enumerate(arguments) if "!" in argument)
