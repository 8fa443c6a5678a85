"""Watching a decode: streamers and the progress bar."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mdlm_fast.canvas import Canvas
from mdlm_fast.config import DecodeConfig
from mdlm_fast.row_state import StepState


class Watchers:
    """Context manager that feeds the streamer and the progress bar of a configuration.

    canvas: of all rows. prompt: int64 [B, P], put to a streamer object first.
    """

    def __init__(self, config: DecodeConfig, canvas: Canvas, prompt: Tensor) -> None:
        self.streamer = config.streamer
        self.canvas = canvas
        self.prompt = prompt
        self.is_object = self.streamer is not None and hasattr(self.streamer, "put")
        if self.is_object and canvas.ids.shape[0] != 1:
            raise ValueError(
                f"streamer {type(self.streamer).__name__} follows one sequence, this decode has {canvas.ids.shape[0]}: "
                f"pass one prompt, or a callable, which sees them all"
            )
        self.show = config.progress
        self.any = self.streamer is not None or config.progress
        self.bar: Any = None
        self.left: dict[int, int] = {}

    def __enter__(self) -> Watchers:
        if self.is_object:
            self.streamer.put(self.prompt.cpu())
        if self.show:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            masks = self.canvas.eligible.sum(1).tolist()
            self.left = dict(enumerate(masks))
            columns = (
                TextColumn("decoding"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("tokens"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task("decoding", total=sum(masks))
            self.bar.start()
        return self

    def on_step(self, state: StepState) -> None:
        """Shows the state after a step."""
        if self.bar is not None:
            self.left.update(zip(state.rows, state.masked.sum(1).tolist(), strict=True))
            total = self.bar.tasks[self.task].total
            self.bar.update(self.task, completed=total - sum(self.left.values()))
        if self.is_object:
            if hasattr(self.streamer, "put_draft"):
                self.streamer.put_draft(self._generated(state.canvas).cpu())
        elif self.streamer is not None:
            self.streamer(state)

    def finish(self, sequences: Tensor) -> None:
        """Hands the final tokens to a streamer object."""
        if self.is_object:
            self.streamer.put(self._generated(sequences).cpu())
            self.streamer.end()

    def _generated(self, canvas: Tensor) -> Tensor:
        """int64 [G], the generated part of the only row; the whole row when nothing was appended."""
        if self.canvas.generated == 0:
            return canvas[0]
        start = int(self.canvas.start[0])
        return canvas[0, start : start + self.canvas.generated]

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()
