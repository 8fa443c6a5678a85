"""How the figures came about, in the words of every page, and what the machine was."""

from __future__ import annotations

from . import wording
from .views import View

METHOD = (
    (
        "Interleaved rounds",
        "All sides of a cell run in the same rounds, in an order drawn anew each round, so that a slow spell of the "
        "machine meets all of them. A ratio is the median of the quotients of samples of the same round, seconds of "
        "the baseline over seconds of ours: above 1, ours is faster. Every figure is a median with the first and "
        "third quartile; a sample lasts at least 2 ms, and each side's first is thrown away.",
    ),
    (
        "Baselines",
        "Each is written in plain PyTorch in the way of the published system it is named after, with that system's "
        "dtypes, passes, loops and synchronisations. It gets the same inputs, and its answer is compared with ours "
        "before anything is timed; the benchmark fails where they differ.",
    ),
    (
        "Limits",
        "GB/s counts the bytes that the op must read and write at least, once. The share of read compares with a loop "
        "that merely reads those bytes, in the same rounds. Inputs of the kernels rotate through a buffer much larger "
        "than the last-level cache, so they come from memory, as logits do that a model has just written.",
    ),
    (
        "Memory",
        "Peak memory is the most in use during a call beyond its inputs.",
    ),
    (
        "What did not run whole",
        "A side that would need over 10 GB or a minute runs a part of the work and is extrapolated, which ~ marks, or "
        "does not fit, which is said.",
    ),
    (
        "Fits",
        "An exponent b of cost ~ size^b is the slope of a least-squares line through logarithms, with its standard "
        "error. It covers the range that is bound by work: from the first size whose rate is at least half of the "
        "best (Hockney's half-performance length).",
    ),
)

REPRODUCE = """make bench                 # the small set and this page
make bench BENCH=--full    # every shape, hours
mdlm-fast bench --suite kernels --where op=score_rows
mdlm-fast report docs/benchmarks.json --output report    # page and pictures from results"""

CPU_ONLY = "All figures of this section were measured on the CPU; they say nothing about a GPU."


def machine_facts(view: View) -> list[tuple[str, str]]:
    """Name and value of what the figures depend on."""
    found = view.newest
    facts = [("machine", view.machine), ("device", {"cpu": "CPU", "cuda": "GPU"}.get(found["device"], found["device"]))]
    if found["device"] != "cpu" and found.get("cpu"):
        facts.append(("host CPU", found["cpu"]))
    if found.get("cores"):
        facts.append(("cores, threads", f"{found['cores']}, {found['threads']}"))
    if found["device"] == "cpu":
        facts.append(("vector instructions", str(found.get("instructions", "unknown"))))
        if found.get("cache_bytes"):
            facts.append(("last-level cache", wording.storage(found["cache_bytes"])))
    if found.get("memory_bytes"):
        facts.append(("memory", wording.storage(found["memory_bytes"])))
    packages = found.get("packages", {})
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    facts += [("backend of ours", str(found.get("backend", "unknown"))), ("versions", versions)]
    facts.append(("Python, system", ", ".join(filter(None, (found.get("python"), found.get("system"))))))
    facts.append(("commit", listed(view, "commit")))
    facts.append(("measured", listed(view, "date") + " UTC"))
    if "load" in found:
        facts.append(("load when it began", f"{found['load']} processes"))
    return [(name, value) for name, value in facts if value]


def listed(view: View, name: str) -> str:
    """A value of every run, each once, the newest last."""
    return ", ".join(dict.fromkeys(str(run[name]) for run in view.environments))
