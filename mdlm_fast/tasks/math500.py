"""MATH-500: competition problems with a LaTeX answer (arXiv 2103.03874, 2305.20050), compared by math-verify."""

from __future__ import annotations

import atexit
import json
import re
import selectors
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from .completions import answer_section, boxed, completion_text, strip_special

INSTRUCTION = (
    "Solve the problem step by step. Write your reasoning between <reasoning> and </reasoning>, then the final answer "
    "in \\boxed{} between <answer> and </answer>."
)
MAX_ANSWER_LENGTH = 500
TIMEOUT_SECONDS = 5.0
START_SECONDS = 60.0
_SPACING = re.compile(r"\\[!,;: ]|\\left|\\right|\s+|^\$|\$$|\.$")


def math500_prompt(problem: str) -> str:
    """The user message for a problem."""
    return f"{INSTRUCTION}\n\n{problem}"


def parse_answer(completion: str) -> str | None:
    r"""The LaTeX a completion gives as its answer: the last non-empty ``\boxed{}``, else a short answer section."""
    text = strip_special(completion)
    for content in reversed(boxed(text)):
        if content:
            return content
    section = answer_section(text)
    return section if section and len(section) <= MAX_ANSWER_LENGTH else None


class MathVerifier:
    """math-verify in a child process that is killed and replaced when an answer takes too long. Thread-safe.

    Args:
        timeout: seconds an answer may take before it counts as different.
    """

    def __init__(self, timeout: float = TIMEOUT_SECONDS) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds, got {timeout}")
        self.timeout = timeout
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None

    def equivalent(self, gold: str, answer: str) -> bool:
        """Whether two LaTeX answers mean the same. Equal texts need no child process; over-long ones are different."""
        if _SPACING.sub("", gold) == _SPACING.sub("", answer):
            return True
        if len(gold) > MAX_ANSWER_LENGTH or len(answer) > MAX_ANSWER_LENGTH:
            return False
        with self._lock:
            fresh = self._child is None or self._child.poll() is not None
            if fresh and self._ask("1", "1", START_SECONDS) is None:  # imports sympy, outside the answer's own time
                raise RuntimeError("the math-verify process does not start; is math-verify installed?")
            return bool(self._ask(gold, answer, self.timeout))

    def _ask(self, gold: str, answer: str, timeout: float) -> bool | None:
        """The child's reply, or None if it died or took too long (it is gone then)."""
        if self._child is None or self._child.poll() is not None:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "mdlm_fast.tasks.math_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        child = self._child
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(json.dumps({"gold": gold, "answer": answer}) + "\n")
            child.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(child.stdout, selectors.EVENT_READ)
                if selector.select(timeout):
                    line = child.stdout.readline()
                    if line:
                        return bool(json.loads(line)["same"])
        except OSError:
            pass
        self._stop()
        return None

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def close(self) -> None:
        """Ends the child process; a later call starts another."""
        with self._lock:
            self._stop()


_VERIFIER = MathVerifier()
atexit.register(_VERIFIER.close)


def math500_correct(completion: str, answer: Any) -> bool:
    """Whether the completion's answer is equivalent to the reference (LaTeX, with or without its own box)."""
    given = parse_answer(completion)
    if given is None or answer is None:
        return False
    gold = str(answer)
    return _VERIFIER.equivalent((boxed(gold) or [gold])[-1], given)


def math500_reward(completions: Sequence[Any], answer: Sequence[Any], **_: Any) -> list[float]:
    """TRL reward: 1.0 where the final answer is equivalent to the ``answer`` column."""
    return [float(math500_correct(completion_text(c), a)) for c, a in zip(completions, answer, strict=True)]
