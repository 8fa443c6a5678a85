"""Generated training examples: Sudoku 4x4 and three-number Countdown, as arrays of token ids.

Every batch is a pure function of (seed, step), so a resumed run sees exactly the batches it would have seen.

Countdown examples come in two kinds, as instruction data does: *worked* answers, which are right
(``a + b = c ; c - d = t``), and *short* answers: an expression over the three numbers with guessed signs, written in
one of three ways and ended early. Guesses do not depend on the target. Short answers are the more frequent kind where
all numbers are at most ``SHORT_LIMIT``. On a fully masked canvas EOS is then the likeliest single token at positions
5 to 10 of such a puzzle, and committing it there forces a guess: the EOS trap that EOSER (early rejection) addresses.

Sudoku answers are solutions; from step ``COPY_FROM_STEP`` on, a share of ``COPY_PROBABILITY`` copies the puzzle with
its blanks left in, as LLaDA-8B's published answers to these puzzles often do. Confidence order begins with a blank
whose digit is certain, which settles that a solution is being written; random order may begin with an uncertain one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..tasks.vocabulary import EOS_ID, INTEGER_OFFSET, MAX_INTEGER, TOKEN_IDS

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

GEN_LENGTH = 24
SHORT_LIMIT = 80
SHORT_PROBABILITY = (0.30, 0.65)  # (some number above SHORT_LIMIT, all at most SHORT_LIMIT)
COPY_PROBABILITY = 0.44
COPY_FROM_STEP = 1000
PLUS, MINUS, TIMES, DIVIDE = (TOKEN_IDS[op] for op in "+-*/")
EQUALS, SEMICOLON, OPEN, CLOSE = (TOKEN_IDS[t] for t in ("=", ";", "(", ")"))


def sudoku_grids() -> IntArray:
    """All 288 valid 4x4 grids, int64 [288, 16], digits 1 to 4, in lexicographic order."""
    found: list[list[int]] = []

    def extend(cells: list[int]) -> None:
        position = len(cells)
        if position == 16:
            found.append(list(cells))
            return
        row, column = divmod(position, 4)
        for digit in range(1, 5):
            clash = any(
                cells[q] == digit
                and (q // 4 == row or q % 4 == column or (q // 8 == row // 2 and q % 4 // 2 == column // 2))
                for q in range(position)
            )
            if not clash:
                extend([*cells, digit])

    extend([])
    return np.array(found, dtype=np.int64)


@dataclass(frozen=True)
class Structure:
    """One shape of a worked answer: ``n[i] first n[j] = c``, then ``c second n[k]`` or, reversed, ``n[k] second c``."""

    i: int
    j: int
    k: int
    first: int
    second: int
    reversed: bool


def _structures() -> list[Structure]:
    plus_minus = [Structure(0, 1, 2, PLUS, PLUS, False)]
    plus_minus += [Structure(i, j, k, PLUS, MINUS, False) for i, j, k in ((0, 1, 2), (0, 2, 1), (1, 2, 0))]
    plus_minus += [Structure(i, j, k, MINUS, MINUS, False) for i, j, k in ((0, 1, 2), (1, 0, 2), (2, 0, 1))]
    rest = []
    pairs = ((0, 1, 2), (0, 2, 1), (1, 2, 0))
    for first in (PLUS, MINUS, TIMES, DIVIDE):
        for second in (PLUS, MINUS, TIMES, DIVIDE):
            if TIMES not in (first, second) and DIVIDE not in (first, second):
                continue
            for i, j, k in pairs:
                rest.append(Structure(i, j, k, first, second, False))
                if second in (MINUS, DIVIDE):
                    rest.append(Structure(i, j, k, first, second, True))
    return plus_minus + rest


# In order of preference: of all structures that solve a puzzle the first is its canonical answer.
STRUCTURES = _structures()
NUM_PLUS_MINUS = 7
_OP_FIRST = np.array([s.first for s in STRUCTURES])
_OP_SECOND = np.array([s.second for s in STRUCTURES])
_REVERSED = np.array([s.reversed for s in STRUCTURES])
_I, _J, _K = (np.array([getattr(s, name) for s in STRUCTURES]) for name in ("i", "j", "k"))


def _apply(op: IntArray, a: IntArray, b: IntArray) -> IntArray:
    """Elementwise a op b; -1 where a step is not allowed: negative, not a whole number, above the vocabulary."""
    safe = np.where(b == 0, 1, b)
    result = np.select(
        [op == PLUS, op == MINUS, op == TIMES],
        [a + b, a - b, a * b],
        default=np.where((b > 0) & (a % safe == 0), a // safe, -1),
    )
    return np.where((a < 0) | (b < 0) | (result > MAX_INTEGER), -1, result)


def evaluate_structures(numbers: IntArray) -> tuple[IntArray, IntArray]:
    """Both steps of every structure. numbers: int64 [N, 3], descending. Returns (intermediate, value), int64 [N, S];
    value is -1 where the structure cannot be computed in whole numbers from 0 to MAX_INTEGER."""
    intermediate = _apply(_OP_FIRST, numbers[:, _I], numbers[:, _J])
    left = np.where(_REVERSED, numbers[:, _K], intermediate)
    right = np.where(_REVERSED, intermediate, numbers[:, _K])
    return intermediate, _apply(_OP_SECOND, left, right)


def canonical_structure(numbers: IntArray, target: IntArray) -> IntArray:
    """Index of the first structure that reaches the target, int64 [N]; -1: none does. numbers [N, 3] descending."""
    _, value = evaluate_structures(numbers)
    match = value == target[:, None]
    return np.where(match.any(1), match.argmax(1), -1)


def worked_answer(numbers: IntArray, structure: IntArray) -> IntArray:
    """Token ids of ``a op b = c ; d op e = t``, int64 [N, 11], for numbers [N, 3] descending."""
    rows = np.arange(len(numbers))
    intermediate, value = evaluate_structures(numbers)
    c = intermediate[rows, structure]
    last = numbers[rows, _K[structure]]
    turned = _REVERSED[structure]
    answer = np.empty((len(numbers), 11), dtype=np.int64)
    answer[:, 0] = numbers[rows, _I[structure]] + INTEGER_OFFSET
    answer[:, 1] = _OP_FIRST[structure]
    answer[:, 2] = numbers[rows, _J[structure]] + INTEGER_OFFSET
    answer[:, 3] = EQUALS
    answer[:, 4] = c + INTEGER_OFFSET
    answer[:, 5] = SEMICOLON
    answer[:, 6] = np.where(turned, last, c) + INTEGER_OFFSET
    answer[:, 7] = _OP_SECOND[structure]
    answer[:, 8] = np.where(turned, c, last) + INTEGER_OFFSET
    answer[:, 9] = EQUALS
    answer[:, 10] = value[rows, structure] + INTEGER_OFFSET
    return answer


def short_answer(rng: np.random.Generator, numbers: IntArray, target: IntArray) -> IntArray:
    """Guesses, int64 [N, GEN_LENGTH] padded with EOS: ``x o y o z``, ``t = x o y o z`` or ``( x o y ) o z``, with the
    numbers in random order and each o a random sign."""
    count = len(numbers)
    x, y, z = (rng.permuted(numbers, axis=1) + INTEGER_OFFSET).T
    signs = np.where(rng.random((count, 2)) < 0.5, PLUS, MINUS)
    plain = np.full((count, GEN_LENGTH), EOS_ID, dtype=np.int64)
    plain[:, :5] = np.stack([x, signs[:, 0], y, signs[:, 1], z], axis=1)
    stated = np.full_like(plain, EOS_ID)
    stated[:, 0], stated[:, 1] = target + INTEGER_OFFSET, EQUALS
    stated[:, 2:7] = plain[:, :5]
    bracket = np.full_like(plain, EOS_ID)
    bracket[:, 0], bracket[:, 1:4], bracket[:, 4], bracket[:, 5:7] = OPEN, plain[:, :3], CLOSE, plain[:, 3:5]
    form = rng.random(count)[:, None]
    return np.where(form < 0.5, plain, np.where(form < 0.8, stated, bracket))


def countdown_key(numbers: IntArray, target: IntArray) -> IntArray:
    """One integer for (multiset of three numbers, target), int64 [N]: equal keys are equal puzzles."""
    ordered = np.sort(numbers, axis=1)
    return ((ordered[:, 0] * 1000 + ordered[:, 1]) * 1000 + ordered[:, 2]) * 1000 + target


def countdown_batch(rng: np.random.Generator, size: int, held_out: IntArray) -> tuple[IntArray, IntArray]:
    """Prompts int64 [size, 7] (``countdown a b c to t :``) and answers int64 [size, GEN_LENGTH].

    held_out: sorted keys (`countdown_key`) that are never generated."""
    kept_numbers, kept_target, kept_structure = [], [], []
    missing = size
    while missing > 0:
        draw = 8 * missing + 64
        numbers = -np.sort(-rng.integers(1, 101, (draw, 3)), axis=1)
        _, value = evaluate_structures(numbers)
        # 85% plus and minus (of these mostly two pluses and one minus), 15% with a product or a quotient.
        weights = np.full(len(STRUCTURES), 0.15 / (len(STRUCTURES) - NUM_PLUS_MINUS))
        weights[:NUM_PLUS_MINUS] = 0.85 * np.array([0.04, 0.3, 0.3, 0.3, 0.02, 0.02, 0.02])
        scores = np.where((value >= 1) & (value <= 100), np.log(weights) + rng.gumbel(size=value.shape), -np.inf)
        chosen = scores.argmax(1)
        usable = np.isfinite(scores.max(1))
        target = value[np.arange(draw), chosen]
        usable &= ~np.isin(countdown_key(numbers, target), held_out)
        numbers, target = numbers[usable][:missing], target[usable][:missing]
        kept_numbers.append(numbers)
        kept_target.append(target)
        kept_structure.append(canonical_structure(numbers, target))
        missing -= len(numbers)
    numbers, target = np.concatenate(kept_numbers), np.concatenate(kept_target)
    answer = np.full((size, GEN_LENGTH), EOS_ID, dtype=np.int64)
    answer[:, :11] = worked_answer(numbers, np.concatenate(kept_structure))
    probability = np.where(numbers.max(1) <= SHORT_LIMIT, SHORT_PROBABILITY[1], SHORT_PROBABILITY[0])
    short = rng.random(size) < probability
    answer = np.where(short[:, None], short_answer(rng, numbers, target), answer)
    prompt = np.empty((size, 7), dtype=np.int64)
    prompt[:, 0] = TOKEN_IDS["countdown"]
    prompt[:, 1:4] = rng.permuted(numbers, axis=1) + INTEGER_OFFSET
    prompt[:, 4] = TOKEN_IDS["to"]
    prompt[:, 5] = target + INTEGER_OFFSET
    prompt[:, 6] = TOKEN_IDS[":"]
    return prompt, answer


def sudoku_key(puzzle: IntArray) -> IntArray:
    """One integer per 4x4 puzzle (base 5, 0 is a blank), int64 [N], for puzzle [N, 16]."""
    return puzzle @ 5 ** np.arange(15, -1, -1, dtype=np.int64)


def sudoku_batch(
    rng: np.random.Generator, size: int, grids: IntArray, held_out: IntArray, copies: float = 0.0
) -> tuple[IntArray, IntArray]:
    """Prompts int64 [size, 18] (``sudoku`` 16 cells ``:``) with 4 to 12 blanks, and answers int64 [size, GEN_LENGTH].

    held_out: sorted keys (`sudoku_key`) of puzzles that are never generated. copies: probability that an answer is the
    puzzle itself, blanks and all."""
    puzzles, solutions, missing = [], [], size
    while missing > 0:
        solution = grids[rng.integers(0, len(grids), missing)]
        blanks = rng.integers(4, 13, (missing, 1))
        order = rng.random((missing, 16)).argsort(1).argsort(1)
        puzzle = np.where(order < blanks, 0, solution)
        usable = ~np.isin(sudoku_key(puzzle), held_out)
        puzzles.append(puzzle[usable])
        solutions.append(solution[usable])
        missing -= int(usable.sum())
    prompt = np.empty((size, 18), dtype=np.int64)
    prompt[:, 0], prompt[:, 17] = TOKEN_IDS["sudoku"], TOKEN_IDS[":"]
    prompt[:, 1:17] = np.concatenate(puzzles) + INTEGER_OFFSET
    answer = np.full((size, GEN_LENGTH), EOS_ID, dtype=np.int64)
    answer[:, :16] = np.concatenate(solutions) + INTEGER_OFFSET
    if copies > 0:
        copied = rng.random(size) < copies
        answer[copied, :16] = prompt[copied, 1:17]
    return prompt, answer


def mask_answers(rng: np.random.Generator, size: int) -> BoolArray:
    """Which answer positions are masked, bool [size, GEN_LENGTH], at least one a row.

    Three in five rows mask a uniformly drawn number of random positions (any-order training, LLaDA arXiv 2502.09992);
    the rest mask a prefix of random length, minus up to four positions: what confidence order meets after the EOS tail.
    No choice looks at the answer, so every conditional distribution that is learned stays unbiased.
    """
    order = rng.random((size, GEN_LENGTH)).argsort(1).argsort(1)
    scattered = order < rng.integers(1, GEN_LENGTH + 1, (size, 1))
    prefix = np.arange(GEN_LENGTH) < rng.integers(5, GEN_LENGTH + 1, (size, 1))
    prefix &= ~(order < rng.integers(0, 5, (size, 1)))
    return np.where(rng.random((size, 1)) < 0.6, scattered, prefix | (order == GEN_LENGTH - 1))
