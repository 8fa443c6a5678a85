"""The command: writes the figures of README.md and docs/, or says which of them differ from the results."""

from __future__ import annotations

import argparse
import sys
from itertools import zip_longest
from pathlib import Path

from mdlm_fast.files import whole_file

from . import cpu, gpu, training  # noqa: F401 - their figures become known
from .markers import MARKED, rewrite
from .sources import FIGURES, NotMeasured, Sources

ROOT = Path(__file__).resolve().parents[3]
ABSENT = "not measured"


def documents(root: Path) -> list[Path]:
    """Those that may have figures."""
    return [path for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))) if path.exists()]


def update(root: Path, check: bool) -> tuple[list[str], list[str]]:
    """Writes the figures of every document, unless `check`.

    Args:
        root: of a checkout.

    Returns:
        lines: one for every figure that was not as the results say, and one for every figure that no results file has,
        in whose place ABSENT stands.

    Raises:
        ValueError: a document's markers are wrong, or name a figure that does not exist.
    """
    sources = Sources(root / "docs")
    changed, missing = [], []
    for path in documents(root):
        place = path.relative_to(root)
        absent: list[str] = []

        def render(name: str, absent: list[str] = absent) -> str:
            if name not in FIGURES:
                raise ValueError(f"there is no figure {name}; there are {', '.join(sorted(FIGURES))}")
            try:
                return FIGURES[name](sources)
            except NotMeasured as error:
                absent.append(f"{name}: {error}")
                return ABSENT

        text = path.read_text(encoding="utf-8")
        try:
            new, differences = rewrite(text, render)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        missing += [f"{place}: {line}" for line in dict.fromkeys(absent)]
        for found in differences:
            old, now = first_difference(found.old, found.new)
            changed.append(f"{place}:{found.line}: {found.name} says {old}, but its results {now}")
        if new != text and not check:
            with whole_file(path) as temporary:
                temporary.write_text(new, encoding="utf-8")
    return changed, missing


def first_difference(old: str, new: str) -> tuple[str, str]:
    """The first lines of two texts that differ; "nothing" where one has ended."""
    pairs = zip_longest(old.splitlines(), new.splitlines(), fillvalue=None)
    before, now = next((a, b) for a, b in pairs if a != b)
    return shown(before), shown(now)


def shown(line: str | None) -> str:
    return "nothing" if line is None else f'"{line}"'


def used(root: Path) -> set[str]:
    """Names of the figures that documents show."""
    return {match["name"] for path in documents(root) for match in MARKED.finditer(path.read_text(encoding="utf-8"))}


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """The command; its exit status is 1 if `--check` found a difference."""
    parser = argparse.ArgumentParser(prog="python -m bench.report.figures", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a document is not as results say")
    args = parser.parse_args(argv)
    changed, missing = update(root, args.check)
    for line in changed + missing:
        print(line, file=sys.stderr)
    if args.check:
        return int(bool(changed + missing))
    print(f"README.md and docs/ show {len(used(root))} figures, {len(changed)} of them changed", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
