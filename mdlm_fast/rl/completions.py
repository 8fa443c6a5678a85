"""The log of completions: a table on the terminal and a parquet file, with TRL's columns and file names."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from torch import Tensor

from mdlm_fast.files import whole_file
from mdlm_fast.rl.data import Prompt

if TYPE_CHECKING:
    import pyarrow

_SHOWN_CHARACTERS = 600  # of a cell of the table; the file has all


class CompletionsLog:
    """Completions since the last `write`, of all processes; kept by the main process.

    Args:
        output_dir: the files go to its folder ``completions``.
        reward_names: `RewardRunner.names`, a column each.
        num_completions_to_print: rows of the table, chosen at random; None: all; 0: no table.
        console: where the table goes.
    """

    def __init__(
        self,
        output_dir: str | Path,
        reward_names: Sequence[str],
        num_completions_to_print: int | None = None,
        console: Console | None = None,
    ) -> None:
        self.folder = Path(output_dir) / "completions"
        self.reward_names = list(reward_names)
        self.num_completions_to_print = num_completions_to_print
        self.console = console
        self._rows: list[dict[str, Any]] = []
        self._extras: list[str] = []

    def add(
        self,
        step: int,
        prompts: Sequence[Prompt],
        completions: Sequence[Any],
        rewards: Tensor,
        advantages: Tensor,
        extras: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """Takes in N completions.

        Args:
            step: optimizer step that they were decoded at.
            prompts, completions: N of each, texts or lists of messages.
            rewards: float [N, F], NaN = not scored.
            advantages: float [N].
            extras: further columns, from `log_extra`; a column that a later batch lacks is None there.
        """
        extras = extras or {}
        taken = {"step", "prompt", "completion", "advantage", *self.reward_names}
        named = {f"{column} (extra)" if column in taken else column: values for column, values in extras.items()}
        self._extras += [column for column in named if column not in self._extras]
        for row in zip(prompts, completions, rewards.tolist(), advantages.tolist(), *named.values(), strict=True):
            prompt, completion, scores, advantage, *others = row
            self._rows.append(
                {
                    "step": step,
                    "prompt": prompt,
                    "completion": completion,
                    **{n: None if math.isnan(s) else s for n, s in zip(self.reward_names, scores, strict=True)},
                    **dict(zip(named, others, strict=True)),
                    "advantage": advantage,
                }
            )

    def write(self, step: int) -> Path | None:
        """Prints the table, writes ``completions/completions_{step:05d}.parquet`` whole or not at all, and starts anew.

        Returns:
            The file; None where nothing was added since the last time: a rollout that is trained on for several steps
            is written once.

        Raises:
            OSError: the file cannot be written; the completions are kept for the next time.
        """
        if not self._rows:
            return None
        self._print(step)
        path = self._write(step)
        self._rows, self._extras = [], []
        return path

    def _write(self, step: int) -> Path:
        import pyarrow
        import pyarrow.parquet

        names = ["step", "prompt", "completion", *self.reward_names, *self._extras, "advantage"]
        columns = {name: _column([row.get(name) for row in self._rows]) for name in names}
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"completions_{step:05d}.parquet"
        with whole_file(path) as temporary:
            pyarrow.parquet.write_table(pyarrow.table(columns), temporary)
        return path

    def _print(self, step: int) -> None:
        shown = self._rows
        count = self.num_completions_to_print
        if count is not None and count < len(shown):  # a generator of its own: training draws stay as they are
            shown = [shown[i] for i in sorted(random.Random(step).sample(range(len(shown)), max(count, 0)))]
        if not shown:
            return
        table = Table(header_style="bold", expand=True, show_lines=True)
        table.add_column("Prompt", style="yellow", overflow="fold", ratio=2)
        table.add_column("Completion", style="green", overflow="fold", ratio=2)
        for name in (*self.reward_names, "Advantage"):
            table.add_column(name, style="magenta" if name == "Advantage" else "cyan", justify="right")
        for name in self._extras:
            table.add_column(name, overflow="fold", ratio=1)
        for row in shown:
            numbers = [row[name] for name in (*self.reward_names, "advantage")]
            table.add_row(
                _cell(row["prompt"]),
                _cell(row["completion"]),
                *("-" if number is None else f"{number:.2f}" for number in numbers),
                *(_cell(row.get(name)) for name in self._extras),
            )
        console = self.console or Console()
        title = f"Step {step}: {len(shown)} of {len(self._rows)} completions"
        console.print(Panel(table, title=title, border_style="bold"))


def _cell(entry: Any) -> Text:
    """A cell's text: messages as their roles and contents; long ones cut; never read as markup."""
    text = Text()
    if (
        isinstance(entry, list)
        and entry
        and all(isinstance(message, Mapping) and "role" in message for message in entry)
    ):
        for number, message in enumerate(entry):
            text.append(f"{chr(10) if number else ''}{message['role']}: ", style="bold")
            text.append(str(message.get("content")))
    elif entry is not None:
        text.append(str(entry))
    if len(text) > _SHOWN_CHARACTERS:
        text.truncate(_SHOWN_CHARACTERS)
        text.append("...", style="dim")
    return text


def _column(values: list[Any]) -> pyarrow.Array:
    """A column of the file; values that no column type holds together are written as text."""
    import pyarrow

    values = [value.tolist() if isinstance(value, Tensor) else value for value in values]
    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, pyarrow.ArrowNotImplementedError, OverflowError):
        return pyarrow.array([None if value is None else str(value) for value in values])
