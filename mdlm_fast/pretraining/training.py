"""The training run: masked diffusion on generated puzzles, resumable bit for bit."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ..tasks.heldout import countdown_test_puzzles, sudoku_test_puzzles
from ..tasks.vocabulary import MASK_ID
from .checkpoint import load_newest, save_checkpoint
from .data import BoolArray, IntArray, countdown_batch, countdown_key, mask_answers, sudoku_batch, sudoku_grids, sudoku_key
from .monitor import monitor
from .network import build_network

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from .config import PretrainConfig


class PuzzleData:
    """The examples of a step, a pure function of (seed, step)."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.grids = sudoku_grids()
        test = countdown_test_puzzles()
        numbers, targets = np.array([n for n, _ in test]), np.array([t for _, t in test])
        self.countdown_held_out = np.unique(countdown_key(numbers, targets))
        cells = np.array([[int(c) for c in puzzle] for puzzle in sudoku_test_puzzles()])
        self.sudoku_held_out = np.unique(sudoku_key(cells))

    def batches(self, step: int) -> list[tuple[IntArray, IntArray, BoolArray]]:
        """(prompt, answer, masked) of each task at a step: int64 [b, P], int64 [b, G], bool [b, G]."""
        rng = np.random.default_rng([self.config.seed, step])
        made = [
            countdown_batch(rng, self.config.countdown_batch, self.countdown_held_out),
            sudoku_batch(rng, self.config.sudoku_batch, self.grids, self.sudoku_held_out),
        ]
        return [(prompt, answer, mask_answers(rng, len(answer))) for prompt, answer in made]


def masked_loss(network: LlamaForCausalLM, prompt: IntArray, answer: IntArray, masked: BoolArray) -> torch.Tensor:
    """Sum over the batch of each example's mean cross-entropy on its masked positions (float32 scalar).

    With the number m of masked positions drawn uniformly, the mean over m masked positions times the answer's length is
    an unbiased estimate of the masked-diffusion bound (its 1/t weight is length / m), without 1/t's variance.
    Only masked positions meet the head.
    """
    where = torch.from_numpy(masked)
    target = torch.from_numpy(answer)
    canvas = torch.cat([torch.from_numpy(prompt), target.masked_fill(where, MASK_ID)], dim=1)
    hidden = network.model(input_ids=canvas).last_hidden_state[:, prompt.shape[1] :]
    logits = network.lm_head(hidden[where]).float()
    weight = (1.0 / where.sum(1, keepdim=True)).expand_as(where)[where]
    return (cross_entropy(logits, target[where], reduction="none") * weight).sum()


class Run:
    """Network, optimisers and averaged weights of one run."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.network = build_network(config)
        if config.compile:
            self.network.model.compile(dynamic=False)  # in place: parameter names stay as they are
        matrices = [p for name, p in self.network.named_parameters() if "layers." in name and p.ndim == 2]
        others = [p for name, p in self.network.named_parameters() if not ("layers." in name and p.ndim == 2)]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay, adjust_lr_fn="original"),
            torch.optim.AdamW(others, lr=config.adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        ]
        self.peaks = (config.muon_lr, config.adam_lr)
        self.ema = {name: p.detach().clone() for name, p in self.network.named_parameters()}
        self.step = 0

    def train_step(self, batches: list[tuple[IntArray, IntArray, BoolArray]]) -> list[float]:
        """One optimiser step; returns each task's mean loss."""
        examples = sum(len(answer) for _, answer, _ in batches)
        losses = []
        for prompt, answer, masked in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bf16):
                loss = masked_loss(self.network, prompt, answer, masked)
            (loss / examples).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.item() / len(answer))
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0, error_if_nonfinite=True)
        factor = self.config.learning_rate_factor(self.step)
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                self.ema[name].lerp_(parameter, 1 - decay)
        return losses

    def state(self) -> dict[str, Any]:
        """Everything a later process needs to go on exactly here. Batches are made from (seed, step), so no generator
        state belongs to it."""
        return {
            "step": self.step,
            "identity": self.config.identity(),
            "network": self.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "ema": self.ema,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from `state()`.

        Raises:
            ValueError: the checkpoint belongs to a run with other settings.
        """
        mine, other = self.config.identity(), state["identity"]
        if mine != other:
            changed = ", ".join(f"{k} {other.get(k)!r} -> {mine.get(k)!r}" for k in mine if mine.get(k) != other.get(k))
            raise ValueError(f"the checkpoint was made with other settings ({changed}); use them or another folder")
        self.network.load_state_dict(state["network"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.ema = state["ema"]
        self.step = state["step"]

    def averaged_network(self) -> LlamaForCausalLM:
        """A copy of the network that holds the averaged weights."""
        network = build_network(self.config)
        network.load_state_dict(self.ema)
        return network.eval()


def _truncate_metrics(path: Path, step: int) -> None:
    """Drops metrics of steps that the resumed run will do again."""
    if not path.exists():
        return
    lines = [line for line in path.read_text().splitlines() if line.strip() and json.loads(line)["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in lines))
    temporary.replace(path)


def train(
    config: PretrainConfig,
    folder: Path,
    *,
    checkpoint_every: int = 100,
    log_every: int = 20,
    monitor_every: int = 500,
    stop_after: int | None = None,
    progress: bool = True,
) -> Run:
    """Trains up to ``config.steps``, resuming from the newest sound checkpoint in ``folder``.

    Args:
        folder: holds ``checkpoint-*.bin`` and ``metrics.jsonl`` (one JSON object a line).
        checkpoint_every, log_every, monitor_every: in optimiser steps. Monitoring decodes fresh puzzles; 0 turns it off.
        stop_after: end this process after so many steps (a checkpoint is written), to spread training over several runs.
        progress: show a progress bar.

    Returns:
        The run; ``run.step < config.steps`` when ``stop_after`` ended it early.
    """
    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    run = Run(config)
    found = load_newest(folder)
    if found is not None:
        state, problems = found
        for problem in problems:
            tqdm.write(f"{problem}; going on from the one before")
        run.load_state(state)
        tqdm.write(f"resumed from step {run.step}")
    metrics = folder / "metrics.jsonl"
    _truncate_metrics(metrics, run.step)
    data = PuzzleData(config)
    last = config.steps if stop_after is None else min(config.steps, run.step + stop_after)
    recent: list[list[float]] = []
    started = time.perf_counter()
    with open(metrics, "a", encoding="utf-8") as log, tqdm(
        total=config.steps, initial=run.step, disable=not progress, mininterval=5, unit="step"
    ) as bar:
        while run.step < last:
            recent.append(run.train_step(data.batches(run.step)))
            bar.update()
            record: dict[str, Any] = {}
            if run.step % log_every == 0 or run.step == last:
                countdown, sudoku = np.mean(recent, axis=0)
                record = {"loss_countdown": round(float(countdown), 5), "loss_sudoku": round(float(sudoku), 5)}
                record |= {"lr_factor": round(config.learning_rate_factor(run.step - 1), 5)}
                bar.set_postfix(countdown=f"{countdown:.3f}", sudoku=f"{sudoku:.3f}")
                recent = []
            if monitor_every and (run.step % monitor_every == 0 or run.step == config.steps):
                record |= monitor(run.averaged_network(), data)
            if record:
                seconds = round(time.perf_counter() - started, 1)
                log.write(json.dumps({"step": run.step, "seconds_this_process": seconds, **record}) + "\n")
                log.flush()
            if run.step % checkpoint_every == 0 or run.step == last:
                save_checkpoint(folder, run.step, run.state())
    return run
