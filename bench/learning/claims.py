"""What shows at this scale and what does not: a table a claim, the verdicts written from the numbers."""

from __future__ import annotations

from bench.learning.analysis import Cell, Result, before, chosen, shared_end, steps_to_reach
from bench.learning.markdown import name, paragraph, place, spread, table
from bench.learning.runs import COMPARISONS, ROLLOUTS

#: Points of held-out accuracy that a method is to gain with every seed.
GOAL = 10.0
#: Gradient updates that d1 takes for one of MDPO's, as MDPO's paper states (arXiv 2508.13148).
PUBLISHED_RATIO = 60
#: Pairs of which the first is claimed to be the better one.
PAIRS = (("cj-grpo", "one-step"), ("cj-grpo", "diffu-grpo"), ("mdpo", "diffu-grpo"))

Key = tuple[str, str]
Found = dict[Key, dict[str, Cell]]


def claims(results: dict[str, Result]) -> str:
    """The claims that there are results for, each under a heading."""
    found: Found = {key: cells for key in COMPARISONS if (cells := chosen(results, *key))}
    starts = {key: start for key in found if (start := before(results, *key)) is not None}
    parts = [
        gains(found),
        pairs(found),
        updates(found),
        decoding_steps(found, starts),
        remasking(found, starts),
    ]
    return "\n".join(part for part in parts if part)


def gains(found: Found) -> str:
    """Whether each method gains `GOAL` points with every seed."""
    rows = []
    for key, cells in found.items():
        for cell in cells.values():
            points = cell.end - cell.start
            each = ", ".join(f"{value:+.1f}" for value in points)
            shows = yes(points.min() >= GOAL)
            rows.append([name(cell), place(key), f"{cell.start.mean():.1f}", spread(cell.end), each, shows])
    head = ["method", "task, rollouts", "before (%)", "after (%)", "gain of each seed (points)", "shows"]
    text = f"Held-out accuracy, greedy, the schedule of training. Shows: at least {GOAL:.0f} points with every seed."
    return f"### Training raises held-out accuracy by {GOAL:.0f} points\n\n{paragraph(text)}\n{table(head, rows)}"


def pairs(found: Found) -> str:
    """Pairs of methods at equal steps and at equal seconds."""
    rows = []
    for first, second in PAIRS:
        for key, cells in found.items():
            if first not in cells or second not in cells:
                continue
            row = [f"{name(cells[first])} or {name(cells[second])}", place(key)]
            for axis, unit in (("step", "steps"), ("cpu_seconds", "s")):
                end = shared_end([cells[first], cells[second]], axis)
                a, b = cells[first].at(axis, end), cells[second].at(axis, end)
                shows = "yes" if a.min() > b.max() else "contrary" if b.min() > a.max() else "undecided"
                row += [f"{end:.0f} {unit}: {spread(a)} or {spread(b)}", shows]
            rows.append(row)
    if not rows:
        return ""
    head = ["first or second method", "task, rollouts", "equal steps (%)", "shows", "equal seconds (%)", "shows"]
    text = (
        "CJ-GRPO and MDPO train on the states that decoding passed through, the others on one canvas of masks. Yes: "
        "every seed of the first method lies above every seed of the second; contrary: below; undecided: they overlap."
    )
    return f"### Consistency beats one step\n\n{paragraph(text)}\n{table(head, rows)}"


def updates(found: Found) -> str:
    """Updates that MDPO needs for what d1 reaches at its end."""
    rows = []
    for key, cells in found.items():
        if "mdpo" not in cells or "diffu-grpo" not in cells:
            continue
        mdpo, d1 = cells["mdpo"], cells["diffu-grpo"]
        end = float(d1.end.mean())
        own, needed = steps_to_reach(d1, end), steps_to_reach(mdpo, end)
        if not own:
            ratio, shows = "", "no: d1 does not rise"
        elif not needed:
            ratio, shows = "", f"no: MDPO stays below in {mdpo.mean('evaluation', 'step')[-1]:.0f}"
        else:
            ratio = f"{own / needed:.1f}"
            shows = "yes" if own / needed >= PUBLISHED_RATIO else "fewer, not so few" if own > needed else "no"
        reached = ["" if value is None else f"{value:.0f}" for value in (own, needed)]
        rows.append([place(key), f"{end:.1f}", *reached, ratio, shows])
    if not rows:
        return ""
    head = ["task, rollouts", "d1 at its end (%)", "d1 first there at", "MDPO there at", "times fewer", "shows"]
    text = "Gradient updates until the mean of the seeds reaches what d1 has at its end, on lines between evaluations."
    return f"### MDPO needs {PUBLISHED_RATIO} times fewer updates than d1\n\n{paragraph(text)}\n{table(head, rows)}"


def decoding_steps(found: Found, starts: dict[Key, Result]) -> str:
    """Decoding steps that the model needed before training for what it solves after: with the trained schedule, and
    with the untrained one at its fewest steps."""
    rows = []
    for key, start in starts.items():
        slow = ROLLOUTS[key[0]].slow
        by_steps = {int(steps): 100 * value for steps, value in start["passes"][slow].items()}
        for method in ("cj-grpo", "mdpo"):
            cell = found[key].get(method)
            if cell is None:
                continue
            for decoder, steps in dict.fromkeys([ROLLOUTS[key[0]].trained, (slow, str(min(by_steps)))]):
                after = cell.with_decoder(decoder, steps)
                needed = min((count for count, value in by_steps.items() if value >= after.mean()), default=None)
                rows.append(
                    [
                        f"{name(cell)}, {place(key)}",
                        f"{decoder}, {steps}",
                        f"{100 * start['passes'][decoder][steps]:.1f}",
                        spread(after),
                        f"{slow}, {'none' if needed is None else needed}",
                        yes(needed is None or needed > int(steps)),
                    ]
                )
    if not rows:
        return ""
    head = ["training", "decoder, steps", "before (%)", "after (%)", "steps for as much before", "shows"]
    text = (
        "The last but one column: with how many steps the model solved as much before training; none: with no number."
    )
    return f"### Fewer decoding steps at equal accuracy\n\n{paragraph(text)}\n{table(head, rows)}"


def remasking(found: Found, starts: dict[Key, Result]) -> str:
    """RCR and MDPO, each with and without the other."""
    rows = []
    for key, start in starts.items():
        cell, (plain, steps) = found[key].get("mdpo"), ROLLOUTS[key[0]].trained
        if cell is None:
            continue
        alone = [f"{100 * start['passes'][decoder][steps]:.1f}" for decoder in (plain, "RCR")]
        trained = [cell.with_decoder(decoder, steps) for decoder in (plain, "RCR")]
        adds = yes(trained[1].mean() > trained[0].mean())
        rows.append([place(key), *alone, *map(spread, trained), adds])
    if not rows:
        return ""
    head = ["task, rollouts", "neither (%)", "RCR (%)", "MDPO (%)", "both (%)", "RCR adds to MDPO"]
    text = "Decoded with the number of steps of the rollouts."
    return f"### RCR with and without MDPO\n\n{paragraph(text)}\n{table(head, rows)}"


def yes(shows: bool) -> str:
    """A verdict in a word."""
    return "yes" if shows else "no"
