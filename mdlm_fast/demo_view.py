"""What the demo draws: puzzles whose answers fill in while they are decoded, and the table of decoders."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from mdlm_fast.row_state import StepState

#: Dark blue to yellow, the colours of the picture too: early steps first.
RAMP = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
MASK_SIGN = "·"
END_SIGN = "∎"


@dataclass(frozen=True)
class Puzzle:
    """A held-out puzzle. kind: "sudoku" or "countdown". prompt: the text the model is given. solved: judges a
    completion."""

    kind: str
    prompt: str
    solved: Callable[[str], bool]

    @property
    def title(self) -> str:
        """One short line: the numbers and the target of a Countdown, the kind of a Sudoku."""
        words = self.prompt.split()
        if self.kind == "sudoku":
            return "Sudoku 4x4"
        return f"Countdown: {words[-2]} from {', '.join(words[1:-3])}"

    def given(self, position: int) -> str:
        """The digit that the prompt gives for a Sudoku cell, "" for a blank and for everything else."""
        if self.kind != "sudoku" or position >= 16:
            return ""
        return self.prompt.split()[1 + position].replace("0", "")


def colour(share: float) -> str:
    """A colour of the ramp at a share from 0 to 1, as rich writes it, lightened enough to read on black."""
    place = min(max(share, 0.0), 1.0) * (len(RAMP) - 1)
    low = min(int(place), len(RAMP) - 2)
    mixed = [a + (b - a) * (place - low) for a, b in zip(RAMP[low], RAMP[low + 1], strict=True)]
    red, green, blue = (int(90 + value * 165 / 255) for value in mixed)
    return f"rgb({red},{green},{blue})"


class CanvasView:
    """A streamer for `mdlm_fast.generate` that shows the answers of a few puzzles filling in.

    On a terminal the picture is redrawn in place; elsewhere a line a puzzle is printed at a few of the steps.

    Args:
        puzzles: one for each row of the batch.
        words: text of every token id.
        length: answer tokens, the last columns of the canvas.
        steps: forward passes to expect.
        eos_ids: tokens drawn as an end sign.
        delay: seconds a step stays on the screen.
    """

    def __init__(
        self,
        console: Console,
        puzzles: Sequence[Puzzle],
        words: Sequence[str],
        *,
        length: int,
        steps: int,
        eos_ids: Sequence[int],
        delay: float,
    ) -> None:
        self.console, self.puzzles, self.words = console, puzzles, words
        self.length, self.steps, self.eos_ids = length, steps, set(eos_ids)
        self.delay = delay if console.is_terminal else 0.0
        self.answers = [[-1] * length for _ in puzzles]  # token ids, -1 while masked
        self.committed = [[-1] * length for _ in puzzles]  # forward pass that committed each
        self.forwards = 0
        self.live = Live(self.render(), console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> CanvasView:
        if self.console.is_terminal:
            self.live.start(refresh=True)
        return self

    def __exit__(self, *_: Any) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def __call__(self, state: StepState) -> None:
        """Take over what a step committed and redraw."""
        self.forwards = state.forwards
        tokens = state.canvas[:, -self.length :].tolist()
        masked = state.masked[:, -self.length :].tolist()
        for row, row_tokens, row_masked in zip(state.rows, tokens, masked, strict=True):
            for position, (token, hidden) in enumerate(zip(row_tokens, row_masked, strict=True)):
                fresh = self.answers[row][position] != token
                self.answers[row][position] = -1 if hidden else token
                if hidden:
                    self.committed[row][position] = -1
                elif fresh:
                    self.committed[row][position] = state.forwards
        if self.console.is_terminal:
            self.live.update(self.render(), refresh=True)
            time.sleep(self.delay)
        elif state.forwards % max(1, self.steps // 6) == 0 or state.forwards == self.steps:
            for row in range(len(self.puzzles)):
                answer = " ".join(self._word(row, position).plain for position in range(self.length))
                self.console.print(f"pass {state.forwards:>3}  {self.puzzles[row].kind:<9}  {answer}", soft_wrap=True)

    def render(self) -> Group:
        """The picture of the current state."""
        panels = []
        for row, puzzle in enumerate(self.puzzles):
            body = self._grid(row) if puzzle.kind == "sudoku" else self._line(row)
            done = -1 not in self.answers[row]
            mark = ""
            if done:
                ends = (i for i, token in enumerate(self.answers[row]) if token in self.eos_ids)
                text = " ".join(self.words[token] for token in self.answers[row][: next(ends, self.length)])
                mark = " [green]✓[/]" if puzzle.solved(text) else " [red]✗[/]"
            height = 9 if puzzle.kind == "sudoku" else 7
            panels.append(Panel(body, title=puzzle.title + mark, width=38, height=height, border_style="dim"))
        head = Text(f"pass {self.forwards:>2} of {self.steps}  ")
        head.append(f"{MASK_SIGN} masked  {END_SIGN} end of sequence  committed early ")
        for step in range(0, self.steps, max(1, self.steps // 8)):
            head.append("█", style=colour(step / max(1, self.steps - 1)))
        head.append(" late  ")
        head.append("given", style="bold")
        return Group(head, Columns(panels))

    def _word(self, row: int, position: int) -> Text:
        token = self.answers[row][position]
        if token < 0:
            given = self.puzzles[row].given(position)
            return Text(given or MASK_SIGN, style="dim")
        share = (self.committed[row][position] - 1) / max(1, self.steps - 1)
        word = END_SIGN if token in self.eos_ids else self.words[token]
        return Text(word, style=f"bold {colour(share)}" if self.puzzles[row].given(position) else colour(share))

    def _grid(self, row: int) -> Text:
        text = Text()
        for line in range(4):
            text.append("     ")
            for column in range(4):
                text.append_text(self._word(row, 4 * line + column))
                text.append(" │ " if column == 1 else " ")
            text.append("\n     ────┼────\n" if line == 1 else "\n")
        text.append("\n     ")
        for position in range(16, self.length):
            text.append_text(self._word(row, position))
            text.append(" ")
        return text

    def _line(self, row: int) -> Text:
        # Six tokens a line, where each worked step "a + b = c ;" has its own, so that nothing moves as it fills in.
        text = Text("\n")
        for position in range(self.length):
            word = self._word(row, position)
            text.append("  " if position % 6 == 0 else "")
            text.append_text(word)
            text.append("\n" if position % 6 == 5 else " " * max(1, 5 - len(word.plain)))
        return text


def decoder_table(results: Sequence[dict[str, Any]], puzzles: int) -> Table:
    """The comparison as a table. results: dicts as `mdlm_fast.demo.compare` makes; puzzles: number of each kind."""
    table = Table(title=f"The same {puzzles} Sudoku and {puzzles} Countdown puzzles, decoded by", title_justify="left")
    table.add_column("decoder", no_wrap=True)
    for name in ("forward passes", "seconds", "tokens per forward", "Sudoku solved", "Countdown solved"):
        table.add_column(name, justify="right")
    for result in results:
        table.add_row(
            result["decoder"],
            str(result["forwards"]),
            f"{result['seconds']:.2f}",
            f"{result['tokens_per_forward']:.1f}",
            f"{result['sudoku_solved']} / {puzzles}",
            f"{result['countdown_solved']} / {puzzles}",
        )
    return table
