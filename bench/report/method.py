"""How the figures came about, in the words of every page, and what the machine was."""

from __future__ import annotations

from collections.abc import Mapping

from . import wording
from .tables_decode import CACHED, cache_note
from .tables_kernels import FROM_CACHE
from .views import View

DEVICES = {"cpu": "CPU", "cuda": "GPU"}

REPRODUCE = """make bench                 # the small set and this page
make bench BENCH=--full    # every shape, hours
mdlm-fast bench --suite kernels --where op=score_rows
mdlm-fast report docs/benchmarks.json --output report    # page and pictures from results"""

CPU_ONLY = "All figures of this section were measured on the CPU; they say nothing about a GPU."


def method() -> list[tuple[str, str]]:
    """Topics and what there is to say about each, with the limits that the suites themselves keep."""
    # Here, because the suites import models and trainers, which takes seconds.
    from ..baselines.model import LLADA_WIDTH, SMALL
    from ..harness.timing import LEAST_ROUNDS, LEAST_SAMPLE
    from ..suites import quality
    from ..suites.decode.cell import LONGEST, WATCHED_STEPS
    from ..suites.kernels import arena, linear, score
    from ..suites.settings import MOST_BYTES, MOST_SECONDS

    most = f"{MOST_BYTES / 1e9:g} GB"
    return [
        (
            "Interleaved rounds",
            "All sides of a cell run in the same rounds, in an order drawn anew each round, so that a slow spell of "
            "the machine meets all of them. A ratio is the median of the quotients of samples of the same round, "
            "seconds of the baseline over seconds of ours: above 1, ours is faster. Times and ratios are medians with "
            f"the first and third quartile over {LEAST_ROUNDS} rounds or more; the hints of the HTML page say how "
            f"many. Short calls are repeated until a sample lasts about {LEAST_SAMPLE * 1e3:g} ms; every side "
            "warms up first.",
        ),
        (
            "Baselines",
            "Each is written in plain PyTorch in the way of the published system it is named after, with that "
            "system's dtypes, passes, loops and synchronisations. It gets the same inputs, and its answer is compared "
            "with ours before anything is timed; the benchmark fails where they differ. A cell is judged by the "
            "fastest of its baselines.",
        ),
        (
            "Kernels",
            "GB/s counts the bytes that the op must read and write at least, once. The share of read compares with a "
            "loop that merely reads those bytes, in the same rounds. Logits and weights rotate through a buffer "
            f"{arena.CACHES} times as large as the last-level cache, {arena.MOST_BYTES / 1e9:g} GB at most, so they "
            "come from memory, as logits do that a model has just written. Inputs of "
            f"{', '.join(FROM_CACHE[:-1])} and {FROM_CACHE[-1]} are small and come from the cache.",
        ),
        (
            "Decodes",
            f"The model has random weights: {SMALL.layers} layers of width {SMALL.width} on a CPU, so that what is "
            f"done outside it can be seen, {LLADA_WIDTH.layers} of width {LLADA_WIDTH.width:,} on a GPU. "
            f"{cache_note(CACHED)} "
            "Latency and tokens a second come from the rounds. The share outside the model comes from one watched "
            f"decode a side, without a spread, or where a step stands for the decode from {WATCHED_STEPS} watched "
            "steps; outside is all but the model's body: LM head, scoring, choosing, committing and the loop.",
        ),
        (
            "Accuracy",
            "Shares of puzzles solved stand with their 95% interval (Wilson). Throughput at batch "
            f"{quality.LARGE_BATCH} comes from the one evaluation that gave the accuracy, without a spread; latency "
            f"of a puzzle alone and throughput at batch {quality.SMALL_BATCH} from rounds, at one point of a curve.",
        ),
        (
            "Memory",
            "Peak memory is the most in use during a call beyond its inputs; of a decode, during a step that needs the "
            "most. Of an iteration of training it is what is in use beyond weights, gradients and optimizer state, "
            "each side in a process of its own.",
        ),
        (
            "What did not run whole",
            "~ marks a baseline that ran a part of the work, whose time was multiplied. Ours always runs whole. "
            f"score_rows: where a baseline's temporaries would exceed {limits(score.MOST_TEMPORARIES)}, it runs on "
            "the largest power of two of rows with which they do not; so it does for linear_score_rows, with "
            f"{limits(linear.MOST_TEMPORARIES)}. Peaks are multiplied too. Decodes: a baseline that "
            f"would take over {LONGEST[False]:g} s in the small set, {LONGEST[True]:g} s in the full one, runs one "
            "step, the first of the same decode with half of its tokens given, whose cost is that of a mean step, "
            "times the passes of the decode. These are counted with ours, also for rules that decide from the scores "
            f"how many they take. One that would use over {most}, by a step with one prompt times the prompts, does "
            f"not fit, which is said; so does a released way of training. Where that would take over "
            f"{MOST_SECONDS:g} s, it runs fewer steps, and the phases that grow with them are multiplied.",
        ),
        (
            "Fits",
            "An exponent b of cost ~ size^b is the slope of a least-squares line through logarithms, with its standard "
            "error, which two sizes do not give. It covers the range that is bound by work: from the first size whose "
            "rate is at least half of the best (Hockney's half-performance length).",
        ),
    ]


def limits(most: Mapping[str, int]) -> str:
    """Bytes by device."""
    return ", ".join(f"{wording.storage(count)} on a {DEVICES[device]}" for device, count in most.items())


def machine_facts(view: View) -> list[tuple[str, str]]:
    """Name and value of what the figures depend on."""
    found = view.newest
    facts = [("machine", view.machine), ("device", DEVICES.get(found["device"], found["device"]))]
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
