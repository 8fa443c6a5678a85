"""Figures of the GPU: docs/gpu_check.json (kernels) and docs/gpu_decode.json (whole decodes)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from .. import wording
from .sources import Sources, figure, only, register, rows_table

V = 126_464
DEFAULTS = {"dtype": "bfloat16"}  # of ops that were timed in one dtype
Row = Mapping[str, Any]

#: Rows of the table: what it says, the op, what chooses the measurement, and what eager PyTorch is measured as.
TABLE: tuple[tuple[str, dict[str, Any], dict[str, Any] | None], ...] = (
    ("`score_rows`, 512 rows, token + log-prob", {"op": "score_rows", "rows": 512, "mode": "logp"}, None),
    ("everything", {"op": "score_rows", "rows": 512, "mode": "all"}, None),
    ("T = 0.7", {"op": "score_rows", "rows": 512, "mode": "T=0.7"}, None),
    ("top-k", {"op": "score_rows", "rows": 512, "mode": "top-k"}, None),
    ("top-p", {"op": "score_rows", "rows": 512, "mode": "top-p"}, None),
    ("32 rows, token + log-prob", {"op": "score_rows", "rows": 32, "mode": "logp"}, None),
    ("`token_logprobs` forward + backward, 1,024 rows", {"op": "token_logprobs", "rows": 1024}, None),
    (
        "`select_commit_` [64, 1024], quota",
        {"op": "select_commit_", "name": "quota", "batch": 64, "length": 1024},
        None,
    ),
    (
        "`linear_score_rows`, H = 4096, 32 rows",
        {"op": "linear_score_rows", "name": "fused, logp", "rows": 32},
        {"op": "linear_score_rows", "name": "F.linear + eager", "rows": 32},
    ),
    (
        "`linear_token_logprobs` forward + backward, 1,024 rows",
        {"op": "linear_token_logprobs", "rows": 1024},
        None,
    ),
)


def checked(sources: Sources) -> Any:
    """docs/gpu_check.json."""
    return sources.json("gpu_check.json", "make gpu-check")


def measured(sources: Sources, backend: str, **values: Any) -> list[Row]:
    """Timings of a backend with these values; logits are bfloat16 where several dtypes were timed."""
    rows = checked(sources)["bench"]["results"].values()
    wanted = {"backend": backend, **DEFAULTS, **values}
    return [
        row
        for row in rows
        if row.get("width", V) == V
        and all(row.get(name, DEFAULTS.get(name)) == found for name, found in wanted.items())
    ]


def one(sources: Sources, backend: str, **values: Any) -> Row:
    """The only such timing."""
    return only(measured(sources, backend, **values), "gpu_check.json", backend=backend)


def ceiling(sources: Sources, name: str, unit: str) -> float:
    """What the machine reached in the same run."""
    return float(checked(sources)["machine"]["results"][name][unit])


def floor_us(sources: Sources, row: Row) -> float:
    """The larger of the bytes over the copy bandwidth and the operations over the rate of the matrix product."""
    bandwidth, rate = ceiling(sources, "copy bandwidth", "gb_per_s"), ceiling(sources, "matrix rate", "tflop_per_s")
    return max(row["bytes"] / bandwidth / 1e3, row.get("flops", 0.0) / rate / 1e6)


@figure
def gpu_kernels(sources: Sources) -> str:
    """A table of both GPU backends, the floor and the best that plain PyTorch, not compiled, does."""
    rows = []
    for label, ours, eager in TABLE:
        times = [one(sources, backend, **ours) for backend in ("cuda", "triton")]
        best = min(measured(sources, "PyTorch", **(eager or ours)), key=lambda row: float(row["device_us"]))
        floor = "launch" if ours["op"] == "select_commit_" else microseconds(floor_us(sources, times[0]))
        name = f" ({best['name']})" if best.get("name") != ours.get("name") else ""
        cells = [*(microseconds(row["device_us"]) for row in times), floor, f"{microseconds(best['device_us'])}{name}"]
        rows.append([label, *cells])
    return rows_table([f"V = {V:,}, bf16; µs", "CUDA", "Triton", "floor", "best of eager PyTorch"], rows)


def microseconds(value: float) -> str:
    return wording.significant(value)


@figure
def gpu_check_date(sources: Sources) -> str:
    """Of the run."""
    return str(checked(sources)["date"]).split()[0]


@figure
def gpu_copy_bandwidth(sources: Sources) -> str:
    """Measured in the run."""
    return f"{ceiling(sources, 'copy bandwidth', 'gb_per_s'):,.0f} GB/s"


@figure
def gpu_parity(sources: Sources) -> str:
    """Parity cases that ran and failed."""
    stage, results = checked(sources)["stages"]["parity"], checked(sources)["parity"]["results"]
    failed = sum(bool(result["failures"]) for result in results.values())
    left_out = int(stage["left_out"])
    ran = f"{stage['cases']} of {stage['cases'] + left_out} parity cases, {failed or 'none'} failed"
    return f"{ran}; {left_out} were left out for want of time" if left_out else ran


@figure
def gpu_sanitizer(sources: Sources) -> str:
    """What compute-sanitizer found."""
    tools = checked(sources)["sanitizer"]
    errors = sum(int(found["errors"]) for found in tools.values())
    cases = " and ".join(f"{tools[tool]['cases']} ({tool})" for tool in ("memcheck", "racecheck"))
    return f"found {f'{errors} errors' if errors else 'no error'} in {cases} cases"


def scoring_share(sources: Sources, dtype: str) -> str:
    """Share of the copy bandwidth that CUDA's `score_rows` reaches with 512 rows."""
    row = one(sources, "cuda", op="score_rows", rows=512, mode="logp", dtype=dtype)
    return f"{floor_us(sources, row) / row['device_us']:.2f}"


def head_us(sources: Sources, name: str) -> str:
    """Microseconds of the Triton backend's `linear_score_rows` with 32 rows, or of what does the same."""
    return f"{one(sources, 'triton', op='linear_score_rows', name=name, rows=32)['device_us']:.0f} µs"


def call_us(sources: Sources, backend: str) -> str:
    """Microseconds of a call of `score_rows` with 32 rows from Python, which the host bounds."""
    return f"{one(sources, backend, op='score_rows', mode='logp', rows=32)['call_us']:.0f} µs"


for _name, _dtype in (("bf16", "bfloat16"), ("fp32", "float32")):
    register(f"gpu-share-of-copy-{_name}", partial(scoring_share, dtype=_dtype))
register("gpu-head-fused", partial(head_us, name="fused, logp"))
register("gpu-head-library", partial(head_us, name="F.linear + score_rows"))
for _backend in ("cuda", "triton"):
    register(f"gpu-call-{_backend}", partial(call_us, backend=_backend))


@figure
def gpu_decode(sources: Sources) -> str:
    """Milliseconds a step of a whole decode: the published loop, ours, ours captured, the model's body alone."""
    sides = {"published": "published loop", "ours": "`generate`", "ours, captured": "captured"}
    sides["body alone"] = "the body alone"
    rows = [
        [f"{decode['batch']}", f"{decode['temperature']:g}", *(f"{decode[side]:.1f}" for side in sides)]
        for decode in sources.json("gpu_decode.json", "git checkout docs/gpu_decode.json")["decodes"]
    ]
    return rows_table(["prompts", "temperature", *sides.values()], rows, texts=0)
