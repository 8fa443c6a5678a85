"""A child process that compares mathematical answers with math-verify: one JSON object a line in, one out.

math-verify guards itself with SIGALRM, which works in the main thread of a process only; and sympy can use any amount
of time or memory on an expression that a model made up. So the comparison runs here, where the parent can kill it.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
from typing import Any

MEMORY_BYTES = 4 << 30


def equivalent(gold: str, answer: str) -> bool:
    """Whether math-verify takes the two LaTeX expressions for equal."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    config: tuple[Any, ...] = (LatexExtractionConfig(), ExprExtractionConfig())
    parsed = [parse(f"${text}$", extraction_config=config, parsing_timeout=None) for text in (gold, answer)]
    return bool(verify(parsed[0], parsed[1], timeout_seconds=None))


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            same = equivalent(request["gold"], request["answer"])
        except Exception:  # whatever sympy raises on a made-up expression, it is not the right answer
            same = False
        print(json.dumps({"same": same}), flush=True)


if __name__ == "__main__":
    main()
