"""Results as JSON, as Markdown, and as a short table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.gpu_check import parity

Row = dict[str, Any]


def write(results: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu_check.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "gpu_check.md").write_text(markdown(results))


def failures(results: dict[str, Any]) -> list[str]:
    """Everything that is wrong rather than slow or absent."""
    wrong = [f"{name}: {error}" for name, error in results.get("stage_errors", {}).items()]
    build_errors = results.get("build", {}).get("errors", {})
    wrong += [f"build: {name}: {log.splitlines()[0] if log else ''}" for name, log in build_errors.items()]
    for name, result in _results(results, "parity"):
        if result["failures"]:
            wrong.append(f"parity: {name}: {'; '.join(result['failures'][:3])}")
    for name, result in _results(results, "graph"):
        if result["differing"] or not result["committed"]:
            wrong.append(f"graph: {name}: {result['differing']} elements differ, {result['committed']} committed")
    for name, result in _results(results, "bench"):
        if "not_captured" in result and not name.startswith("PyTorch"):
            wrong.append(f"bench: {name}: not captured in a CUDA graph: {result['not_captured']}")
    for stage in ("parity", "graph", "bench"):
        wrong += [f"{stage}: {name}: {error}" for name, error in results.get(stage, {}).get("errors", {}).items()]
    for tool, found in results.get("sanitizer", {}).items():
        errors = [*found["first"], *found["worker_errors"].values()]
        if not found.get("unsupported") and (found["errors"] or errors or not found["summaries"]):
            wrong.append(f"{tool}: {found['errors']} errors: {' '.join(errors[:1]) or 'it printed no summary'}")
    return wrong


def _results(results: dict[str, Any], stage: str) -> list[tuple[str, Row]]:
    return list(results.get(stage, {}).get("results", {}).items())


def bench_rows(results: dict[str, Any]) -> list[Row]:
    """Measured rows with what follows from them: GB/s, shares of the ceilings, ratios to plain PyTorch."""
    ceilings = results.get("machine", {}).get("results", {})
    copy = ceilings.get("copy bandwidth", {}).get("gb_per_s")
    rate = ceilings.get("matrix rate", {}).get("tflop_per_s")
    rows = [dict(row) for _, row in _results(results, "bench")]
    for row in rows:
        seconds = row["device_us"] / 1e6
        row["gb_per_s"] = row["bytes"] / seconds / 1e9
        floors = [row["bytes"] / copy / 1e3] if copy else []
        if rate and "flops" in row:
            floors.append(row["flops"] / rate / 1e6)
        row["floor_us"] = max(floors, default=0.0)
        row["of_floor"] = row["floor_us"] / row["device_us"]
        row["against PyTorch"] = _ratio(row, rows, "PyTorch")
        row["against torch.compile"] = _ratio(row, rows, "torch.compile")
    return rows


def _ratio(row: Row, rows: list[Row], backend: str) -> float | None:
    """The time of the fastest that does the same without this package, over that of the row."""
    if row["backend"] in ("PyTorch", "torch.compile"):
        return None
    keys = {
        "score_rows": ("mode", "rows", "width", "dtype"),
        "select_commit_": ("name", "batch", "length"),
        "linear_score_rows": ("rows", "depth", "width"),
    }.get(row["op"], ("rows", "width"))
    same = [
        other
        for other in rows
        if other["op"] == row["op"] and other["backend"] == backend and all(other[k] == row[k] for k in keys)
    ]
    times = [other["device_us"] for other in same if other.get("name") != "F.linear alone"]
    return min(times) / row["device_us"] if times else None


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}x"


def _input(row: Row) -> str:
    if row["op"] == "select_commit_":
        return f"[{row['batch']}, {row['length']}]"
    depth = f", H={row['depth']}" if "depth" in row else ""
    return f"{row['rows']} x {row['width']}{depth}"


def _label(row: Row) -> str:
    dtype = "" if row.get("dtype", "bfloat16") == "bfloat16" else f", {row['dtype']}"
    return f"{row.get('name', 'forward + backward')}{dtype}"


def markdown(results: dict[str, Any]) -> str:
    ceilings = results.get("machine", {}).get("results", {})
    lines = ["# GPU check", ""]
    versions = ceilings.get("versions", {})
    lines.append(", ".join(f"{name} {value}" for name, value in versions.items()) + f". Run on {results['date']}.")
    if "copy bandwidth" in ceilings and "matrix rate" in ceilings:
        lines.append(
            f"Copy bandwidth {ceilings['copy bandwidth']['gb_per_s']:.0f} GB/s, bf16 matrix product "
            f"{ceilings['matrix rate']['tflop_per_s']:.0f} TFLOP/s, both measured in this run."
        )
    if "parity" in results:
        lines += ["", "## Parity", "", "| op | backend | dtype | cases | failed | worst error / allowed |"]
        lines.append("|---|---|---|--:|--:|---|")
        for row in parity.table(**results["parity"]):
            worst = f"{row['worst']:.2f} ({row['what']})"
            lines.append(
                f"| {row['op']} | {row['backend']} | {row['dtype']} | {row['cases']} | {row['failed']} | {worst} |"
            )
    rows = bench_rows(results)
    for op in dict.fromkeys(row["op"] for row in rows):
        lines += ["", f"## {op}", ""]
        columns = ("device us", "call us", "GB/s", "of floor", "against PyTorch", "against torch.compile", "peak MiB")
        lines.append("| input | what | backend | " + " | ".join(columns) + " |")
        lines.append("|---|---|---|" + "--:|" * len(columns))
        for row in rows:
            if row["op"] == op:
                peak = f"{row['peak_bytes'] / 2**20:.0f}" if "peak_bytes" in row else ""
                cells = [_input(row), _label(row), row["backend"], f"{row['device_us']:.1f}", f"{row['call_us']:.1f}"]
                cells += [f"{row['gb_per_s']:.0f}", f"{row['of_floor']:.2f}"]
                cells += [_times(row["against PyTorch"]), _times(row["against torch.compile"]), peak]
                lines.append("| " + " | ".join(cells) + " |")
    wrong = failures(results)
    lines += ["", "## Failures", "", *([f"- {line}" for line in wrong] or ["None."])]
    left_out = {name: stage["left_out"] for name, stage in results["stages"].items() if stage.get("left_out")}
    if left_out:
        lines += ["", "Left out for want of time: " + ", ".join(f"{name} {count}" for name, count in left_out.items())]
    return "\n".join(lines) + "\n"


def short_table(results: dict[str, Any]) -> str:
    """For the end of the output."""
    lines = []
    if "parity" in results:
        for row in parity.table(**results["parity"]):
            verdict = "ok" if not row["failed"] else f"{row['failed']} FAILED"
            lines.append(
                f"parity {row['op']:22}{row['backend']:10}{row['dtype']:9}{row['cases']:4} cases {verdict:10} "
                f"worst {row['worst']:.2f}"
            )
    lines += [
        f"{row['op']:22.22}{_input(row):22.22}{_label(row):28.28}{row['backend']:14}"
        f"{row['device_us']:10.1f} us{row['of_floor']:6.2f}{_times(row['against PyTorch']):>8}"
        for row in bench_rows(results)
    ]
    wrong = failures(results)
    lines.append(f"{len(wrong)} failures" if wrong else "no failures")
    lines += [f"  {line[:240]}" for line in wrong[:20]]
    return "\n".join(lines)
